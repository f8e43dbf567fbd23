"""The daemon's end of one runner: its socket, the child's three streams, and its exit."""

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from signal import SIGKILL
from typing import Any, Final, Self, cast

from ksi_common.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    OperationalError,
    PermissionDenied,
    Unavailable,
)
from ksi_common.records import record
from ksi_daemon import runner
from ksi_daemon.runner_marks import Reaped

BUFFER_BYTES: Final = 1024 * 1024
"""How long a line of output may be; twice as much waits for a slow reader, then the child does."""

DRAIN_S: Final = 1.0
"""How long to wait for the end of output when nothing of the child is left."""


@record
class Exit:
    """How a child ended: a code, a signal, or neither where its runner was killed before it could see."""

    code: int | None = None
    signal: int | None = None


class Stdin:
    """Write to a child; where it has ended, or closed its stdin, all but `close` raise Unavailable."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        """Buffer bytes for the child; `drain` then, so that they do not pile up."""
        # Asked first, because after the end one loop's writer raises RuntimeError, and the other's nothing.
        if self._writer.is_closing():
            raise Unavailable("the child does not read its stdin any more", reason="stdin_closed")
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the child has taken most of what was written."""
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise Unavailable(
                "the child did not read all of its stdin", retryable=False, reason="stdin_closed"
            ) from error

    def close(self) -> None:
        """Let the child read to the end of what was written, and see the end."""
        self._writer.close()


class RunnerLink:
    """One runner and its child. ``started`` and ``ended`` are set once each; then the other fields hold."""

    def __init__(self, popen: subprocess.Popen[bytes], pidfd: int, control: socket.socket) -> None:
        self.pid = 0
        """Of the child; 0 where none was started."""
        self.exit = Exit()
        self.failure: OperationalError | None = None
        self.pids_gone: tuple[int, ...] = ()
        self.is_gone = False
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self._popen = popen
        self._pidfd = pidfd
        self._socket = control
        self._socket.settimeout(0)
        self._outputs = (_Output(), _Output())
        self._stdin: Stdin | None = None

    @classmethod
    def launch(cls) -> Self:
        """Start a runner, which waits to be told what to run. Raises Unavailable where there is no room."""
        try:
            with ExitStack() as undo:
                ours, theirs = map(undo.enter_context, socket.socketpair())
                popen = undo.enter_context(_popen(theirs.fileno()))
                undo.callback(popen.kill)
                link = cls(popen, os.pidfd_open(popen.pid), ours)
                undo.pop_all()
                theirs.close()
                return link
        except OSError as error:
            raise Unavailable(f"cannot start a runner: {error.strerror}", reason="not_started") from error

    @property
    def runner_pid(self) -> int:
        """The pid of the runner itself."""
        return self._popen.pid

    @property
    def stdin(self) -> Stdin:
        """The child's stdin, once it is started."""
        assert self._stdin is not None
        return self._stdin

    @property
    def readers(self) -> tuple[asyncio.StreamReader, asyncio.StreamReader]:
        """The child's stdout and stderr."""
        return self._outputs[0].reader, self._outputs[1].reader

    async def converse(self, spec: Mapping[str, Any]) -> None:
        """Tell the runner what to run, and take its reports until it ends."""
        await self._open_streams()
        # The end of the socket is, to a runner that lives, the order to end everything.
        with self._socket, suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._socket, _line(spec))
            async for report in self._reports():
                self._take(report, spec)

    def order(self, **order: Any) -> None:
        """Send an order; after the runner's end, nothing."""
        with suppress(OSError):
            self._socket.send(_line(order))

    def kill_runner(self) -> None:
        """Leave everything to the mark; harmless after the runner's end."""
        self._popen.send_signal(SIGKILL)

    async def wait_runner(self) -> None:
        """Wait for the runner to exit, by its pidfd: no thread, no SIGCHLD handler. To be called once."""
        exited = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, exited.set)
        try:
            await exited.wait()
        finally:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._popen.wait()

    def note_reaped(self, reaped: Sequence[Reaped]) -> None:
        """Take over what the marks said, where the runner could not say it."""
        self.pids_gone = tuple(pid for found in reaped for pid in {found.pid, *found.pids_gone})
        left = [pid for found in reaped for pid in found.pids_left]
        if left:
            self.failure = DeadlineExceeded(f"processes {left} outlive SIGKILL", pids=left)
        elif not self.started.is_set():
            self.failure = Unavailable("the runner ended before its child was started", reason="not_started")

    async def finish(self) -> None:
        """Read the rest of the output, close the pipes, and say so."""
        if self._stdin is not None:
            self._stdin.close()
        with suppress(TimeoutError):
            # Nothing of the child is left to write; but it may have passed its pipe to a stranger.
            async with asyncio.timeout(DRAIN_S):
                for output in self._outputs:
                    await output.read_rest()
        for output in self._outputs:
            output.close()
        self.started.set()
        self.ended.set()

    async def _reports(self) -> AsyncIterator[dict[str, Any]]:
        """Read the socket by hand: a stream drops what it has unread when an order finds the runner gone."""
        loop = asyncio.get_running_loop()
        received = b""
        while data := await loop.sock_recv(self._socket, 65536):
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                yield json.loads(line)

    async def _open_streams(self) -> None:
        loop = asyncio.get_running_loop()
        for output, pipe in zip(self._outputs, (self._popen.stdout, self._popen.stderr), strict=True):
            await loop.connect_read_pipe(output.as_protocol, pipe)
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport, _ = await loop.connect_write_pipe(lambda: protocol, self._popen.stdin)
        self._stdin = Stdin(asyncio.StreamWriter(transport, protocol, None, loop))

    def _take(self, report: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        match report:
            case {"report": "started", "pid": pid}:
                self.pid = pid
                self.started.set()
            case {"report": "failed", "step": step, "errno": number}:
                self.failure = _start_error(spec, step, number)
            case {"report": "exited", "code": code, "signal": signal}:
                self.exit = Exit(code, signal)
            case {"report": "gone", "pids": pids}:
                self.pids_gone = tuple(pids)
                self.is_gone = True


class _Output(asyncio.Protocol):
    """Feed a pipe to a reader, which holds the child up at its limit until `read_rest`."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=BUFFER_BYTES)
        self._transport: asyncio.ReadTransport | None = None
        self._closed = asyncio.Event()

    def as_protocol(self) -> Self:
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.ReadTransport", transport)
        self.reader.set_transport(transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a broken pipe is an ended one
        self.reader.feed_eof()
        self._closed.set()

    async def read_rest(self) -> None:
        """Take what the pipe still holds, past the reader's limit."""
        if self._transport is not None:
            self._transport.resume_reading()
            await self._closed.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _popen(control: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - every word of it is ours
        [sys.executable, "-I", "-S", "-X", "utf8", runner.__file__, str(control)],
        bufsize=0,
        # What an interpreter may need to find its own library, and nothing that could be secret.
        env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[control],
        start_new_session=True,
    )


def _start_error(spec: Mapping[str, Any], step: str, number: int) -> OperationalError:
    what = {"exec": f"command {spec['argv'][0]!r}", "cwd": f"a child in {spec['cwd']!r}"}
    message = f"cannot start {what.get(step, f'a child ({step})')}: {os.strerror(number).lower()}"
    match number:
        case errno.ENOENT | errno.ENOTDIR:
            return NotFound(message, reason="no_directory" if step == "cwd" else "no_command")
        case errno.EACCES | errno.EPERM:
            return PermissionDenied(message, reason="not_permitted")
        case errno.E2BIG | errno.EINVAL | errno.ENOEXEC | errno.ENAMETOOLONG:
            return InvalidArgument(message, reason="bad_argv")
    return Unavailable(message, reason="not_started")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
