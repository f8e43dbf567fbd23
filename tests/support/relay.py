"""A socket between a client and a daemon, whose connections can be cut while both live on."""

import selectors
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PATIENCE_S: Final = 30.0


class Relay:
    """Listens at ``path`` and passes all on to ``target``, in a thread of its own."""

    def __init__(self, path: Path, target: Path) -> None:
        self._target = target
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._others: dict[socket.socket, socket.socket] = {}
        self._targets: set[socket.socket] = set()
        self._answered = threading.Event()
        self._waking, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waking.send(b"e")
        self._thread.join()
        for sock in (self._listening, self._waking, self._woken):
            sock.close()
        self._selector.close()

    def cut(self) -> None:
        """End every connection, and wait until that is done; new ones are taken."""
        self._waking.send(b"c")
        self._waking.recv(1)

    def wait_answered(self) -> None:
        """Return once the daemon has said something on a connection made since the last cut."""
        assert self._answered.wait(PATIENCE_S)

    def _run(self) -> None:
        order = b""
        while order != b"e":
            for key, _ in self._selector.select():
                if key.fileobj is self._listening:
                    self._accept()
                elif key.fileobj is self._woken:
                    order = self._woken.recv(1)
                    for sock in list(self._others):
                        self._end(sock)
                    self._answered.clear()
                    self._woken.send(b"d")
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._others:
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        far = socket.socket(socket.AF_UNIX)
        far.connect(str(self._target))
        self._targets.add(far)
        for sock, other in ((near, far), (far, near)):
            self._others[sock] = other
            self._selector.register(sock, selectors.EVENT_READ)

    def _pass_on(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
            self._others[sock].sendall(data)
            if data and sock in self._targets:
                self._answered.set()
        except OSError:
            data = b""
        if not data:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        other = self._others.pop(sock, None)
        if other is not None:
            self._targets.discard(sock)
            self._selector.unregister(sock)
            sock.close()
            self._end(other)
