"""Reach the daemon's socket: who listens there, what a refusal means, when to try again."""

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ksi_client.programs import control
from ksi_common.errors import FailedPrecondition, KSIError, PermissionDenied, Unavailable
from ksi_common.paths import Paths, default_home

FIRST_DELAY_S: Final = 0.05
MAX_DELAY_S: Final = 2.0
BUSY_PATIENCE_S: Final = 2.0
"""How long a daemon whose backlog is full is tried at least: it is there, it is only busy."""

_ELSEWHERE: Final = "set KSI_SOCKET or KSI_HOME to your own daemon"

Address = str | os.PathLike[str]


def socket_path(named: Address | None = None) -> Path:
    """Give the socket that is meant: the one named, ``$KSI_SOCKET``, or that of ``$KSI_HOME``."""
    return Path(named) if named is not None else Paths(default_home()).socket


def connect(path: Path, *, owner: int | None = None) -> socket.socket:
    """Give a connected, non-blocking socket whose other end belongs to ``owner`` (a uid; default: ours).

    Raises Unavailable (``retryable`` where waiting may help), PermissionDenied or FailedPrecondition.
    A Unix socket connects at once or not at all, so this never waits.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:  # no descriptor is left
        raise _refusal(path, error) from error
    try:
        sock.settimeout(0)
        sock.connect(os.fspath(path))
        check_owner(sock, path, os.geteuid() if owner is None else owner)
    except OSError as error:
        sock.close()
        raise _refusal(path, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


def check_owner(sock: socket.socket, path: Path, owner: int) -> None:
    """Raise PermissionDenied unless ``owner`` runs what listens at ``path``."""
    uid = peer_uid(sock, path)
    if uid != owner:
        raise PermissionDenied(
            f"the socket {path} belongs to uid {uid}, not to {owner}: not connecting",
            reason="foreign_server",
            hint=_ELSEWHERE,
        )


def peer_uid(sock: socket.socket, path: Path) -> int:
    """Give the uid of the listening process, or of the file where the system cannot tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return path.stat().st_uid
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])


_UCRED: Final = struct.Struct("iii")


def fraction() -> float:
    """Draw a number from 0 up to 1, without the 5 ms that importing ``random`` takes."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


class Attempts:
    """When to try to connect again, and when to give up.

    Between attempts: full jitter below 50 ms, doubled up to 2 s. ``connect_timeout_s``: seconds to go on
    since the first failure; None: for ever.
    """

    def __init__(
        self,
        connect_timeout_s: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = fraction,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._draw = draw
        self._begun: float | None = None
        self._ceiling = 0.0
        self._connected_at = 0.0

    def delay(self) -> float:
        """Give seconds to wait before the next attempt: none before the first."""
        if self._begun is None:
            self._begun = self._clock()
            return 0.0
        self._ceiling = min(max(self._ceiling * 2, FIRST_DELAY_S), MAX_DELAY_S)
        return self._draw() * self._ceiling

    def failed(self, error: KSIError) -> None:
        """Note a failure; raise ``error`` where no further attempt is to be made."""
        patience = self._patience(error)
        begun = self._clock() if self._begun is None else self._begun
        if patience is not None and self._clock() - begun >= patience:
            self._reset()
            raise error

    def connected(self) -> None:
        """Note a connection; it counts as a success only once it proved of use."""
        self._connected_at = self._clock()

    def lost(self, *, heard: bool) -> None:
        """Note a connection's end. One that was of no use counts as a failed attempt; may raise."""
        if heard or self._clock() - self._connected_at >= MAX_DELAY_S:
            self._reset()
        else:
            self.failed(
                Unavailable("the daemon closes every connection at once", reason="daemon_not_running")
            )

    def _reset(self) -> None:
        self._begun = None
        self._ceiling = 0.0

    def _patience(self, error: KSIError) -> float | None:
        if not error.retryable:
            return 0.0
        if self._connect_timeout_s is not None and error.details.get("reason") == "busy":
            return max(self._connect_timeout_s, BUSY_PATIENCE_S)
        return self._connect_timeout_s


def _refusal(path: Path, error: OSError) -> KSIError:
    match error.errno:
        case errno.ENOENT | errno.ECONNREFUSED:
            is_other = path.exists() and not path.is_socket()
            return Unavailable(
                f"KSI is not running: {f'{path} is no socket' if is_other else f'nothing listens at {path}'}",
                reason="daemon_not_running",
                socket=str(path),
                hint=_ELSEWHERE if is_other else f"start it: {control('start')}",
            )
        case errno.EAGAIN:
            return Unavailable(f"KSI is busy: the backlog of {path} is full", reason="busy", socket=str(path))
        case errno.EACCES | errno.EPERM:
            return PermissionDenied(
                f"you may not open the socket {path}", reason="foreign_server", hint=_ELSEWHERE
            )
        case None:
            size = len(os.fsencode(path))
            return FailedPrecondition(
                f"the socket path has {size} bytes; the system allows 107",
                reason="socket_path_too_long",
                hint="set KSI_SOCKET to a shorter one",
            )
    return Unavailable(
        f"cannot open {path}: {error.strerror}", reason="no_socket", retryable=False, hint=_ELSEWHERE
    )
