"""Units that share a commit with one that fails: they are stored, and it alone hears of the failure."""

import os
import shutil
import signal
import subprocess
from asyncio import timeout
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.support.audit import Audit
from tests.support.daemon_process import DaemonProcess
from tests.support.pipeline import call_line, pipeline
from tests.support.waiting import eventually

PAGE_BYTES: Final = 4096
FREE_BYTES: Final = 300_000
GUILTY_BYTES: Final = 900_000
"""More than is free, and what a checkpoint leaves of the write-ahead log to be written again."""
ON_A_SMALL_DISK: Final = (
    "unshare",
    "-m",
    "sh",
    "-c",
    'mkdir "$KSI_HOME/db" && mount -t tmpfs -o size=8m,mode=700 ksi "$KSI_HOME/db" && exec "$@"',
    "sh",
)

DAWDLER: Final = '''
from ksi_daemon.plugin import Database, Message, Request, handler

FOR_EVER = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT %s FROM c"


class Done(Message):
    """It never comes to this."""


class Read(Request[Done], event="dawdler:read"):
    """Read for ever; SQLite takes back nothing."""


class Write(Request[Done], event="dawdler:write"):
    """Write for ever; SQLite takes the whole transaction back."""


@handler
async def read(request: Read, database: Database) -> Done:
    """Hold the writer."""
    await database.write(lambda tx: tx.execute(FOR_EVER % "count(*)").fetchone())
    return Done()


@handler
async def write(request: Write, database: Database) -> Done:
    """Hold the writer."""

    def unit(tx):
        tx.execute("CREATE TABLE dawdled (n)")
        tx.execute("INSERT INTO dawdled " + FOR_EVER % "n")

    await database.write(unit)
    return Done()
'''


def can_mount() -> bool:
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs ksi /mnt"]
    return os.getuid() == 0 and not subprocess.run(command, capture_output=True, check=False).returncode


async def ask(daemon: DaemonProcess, lines: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Send all at once; give the answers by id."""
    answers: dict[str, dict[str, Any]] = {}

    def heard(line: bytes) -> None:
        answer = orjson.loads(line)
        answers[answer["id"]] = answer

    async with timeout(40):
        await pipeline(daemon.socket, lines.values(), heard)
    return answers


def publishing(ident: str, text: str = "") -> bytes:
    return call_line(
        "event:publish", {"event": "demo:told", "event_id": ident, "data": {"text": text}}, ident
    )


def appending(ident: str, size: int) -> bytes:
    """Append many bytes in one unit, none of its events large enough for a blob; the last has the id."""
    text = {"text": "x" * 60_000}
    events = [{"event": "demo:told", "data": text} for _ in range(size // 60_000)]
    last = {"event": "demo:told", "event_id": ident}
    return call_line("event:append", {"stream": "demo/large", "events": [*events, last]}, ident)


def expect_stored(answers: Mapping[str, dict[str, Any]], idents: str) -> dict[str, int]:
    """Check that these, one letter each, were acknowledged; give their places in the log."""
    kinds = {ident: answers[ident]["type"] for ident in idents}
    assert kinds == dict.fromkeys(idents, "reply"), answers
    return {ident: answers[ident]["data"]["seq"] for ident in idents}


@pytest.mark.parametrize("event", ["dawdler:read", "dawdler:write"])
async def test_an_interrupted_unit_takes_no_other_with_it(event: str) -> None:
    daemon = DaemonProcess()
    daemon.add_plugin("dawdler", DAWDLER)
    async with daemon:
        guilty = {"guilty": call_line(event, ident="guilty")}
        answers = await ask(daemon, {**told("ab"), **guilty, **told("cd")})
        error = answers["guilty"]["error"]
        assert (error["code"], error["details"]["reason"]) == ("DEADLINE_EXCEEDED", "unit_interrupted")
        stored = expect_stored(answers, "abcd")
        audit = Audit(daemon.database)
        names = [row.event for row in await audit.read_on()]
        audit.expect(stored)
        assert event not in names


@pytest.mark.root
@pytest.mark.skipif(not can_mount(), reason="only root mounts a small disk")
async def test_what_fills_the_disk_takes_no_other_with_it(tmp_path: Path) -> None:
    async with DaemonProcess(wrapper=ON_A_SMALL_DISK) as daemon:
        disk = Path(f"/proc/{daemon.pid}/root{daemon.database.parent}")
        filler = await fill(disk, FREE_BYTES)
        guilty = {"g": appending("g", GUILTY_BYTES)}
        answers = await ask(daemon, {**told("ab"), **guilty, **told("cd")})
        error = answers["g"]["error"]
        assert (error["code"], error["details"]["reason"]) == ("UNAVAILABLE", "store_unavailable")
        assert error["retryable"]
        stored = expect_stored(answers, "abcd")

        filler.unlink()
        stored |= expect_stored(await ask(daemon, {**guilty, **told("e")}), "ge")
        os.kill(daemon.pid, signal.SIGSTOP)  # its files stand still, and go when it goes
        copy = shutil.copytree(disk, tmp_path / "db")
    audit = Audit(copy / daemon.database.name)
    await audit.read_on()
    audit.expect(stored)
    await audit.check_integrity()


def told(idents: str) -> dict[str, bytes]:
    """Publish an event for each letter."""
    return {ident: publishing(ident) for ident in idents}


async def fill(disk: Path, free: int) -> Path:
    """Leave so much room, once the first checkpoint has taken what it needs; give what takes the rest."""

    async def checkpointed() -> bool:
        with (disk / "ksi.db").open("rb") as database:
            head = database.read(32)
        pages = int.from_bytes(head[28:32])  # a checkpoint writes this first, and the last page last
        return (disk / "ksi.db").stat().st_size == pages * PAGE_BYTES > PAGE_BYTES

    await eventually(checkpointed)
    filler = disk / "filler"
    filler.write_bytes(bytes(free_bytes(disk) - free))
    return filler


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
