"""An answer is on disk before a row can name it: read off the system calls of those that store one."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from tests.support.tracing import can_trace

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not can_trace(), reason="no strace, or it may not trace here"),
]

PROGRAM: Final = """
import asyncio, os, sys
from pathlib import Path
from ksi_common.clock import SystemClock
from ksi_completion.responses import Line, Responses
from ksi_daemon.blobs import FileBlobs
from ksi_daemon.database import Database, writer

writer._IDLE_S = 60.0  # no checkpoint comes between
home = Path(sys.argv[1])

def line(request_id):
    about = {"session_id": "s", "provider": "p", "timestamp": "t", "duration_ms": 1}
    return Line(request_id=request_id, response={}, **about)

async def store(database, responses, request_id, at):
    os.write(1, b"-- " + request_id.encode())
    written = await responses.store("s", line(request_id), at=at)
    def name(tx):
        tx.before_commit(written.reference.path, written.sync)
        tx.execute("INSERT INTO things VALUES (?)", (written.reference.offset,))
    await database.write(name)
    os.write(1, b"-- named")
    return written.end

async def main():
    database = Database(home / "db" / "ksi.db", backups=home, clock=SystemClock(),
                        published=lambda events, head: None, failed=print)
    async with Responses(home, FileBlobs(home)) as responses, database:
        database.migrate("test", {1: "CREATE TABLE things (x);"})
        database.start()
        end = await store(database, responses, "first", 0)
        end = await store(database, responses, "second", end)
        await responses.store("s", line("lost"), at=end)
        await store(database, responses, "third", end)
    os.write(1, b"-- end")

asyncio.run(main())
"""

_CALL = re.compile(r'^\d+ +(\w+)\(\d+<[^>]*?([^/>]+)>(?:\(deleted\))?(?:, "(-- [^"]*)")?')
_SEEN: Final = {"s.jsonl": "answer", "s.jsonl.torn": "torn", "responses": "folder", "ksi.db-wal": "wal"}


def told(trace: Iterable[str]) -> dict[str, list[str]]:
    """Give the calls that stored each answer, in order, by its name."""
    phases: dict[str, list[str]] = {}
    calls: list[str] = []
    for line in trace:
        found = _CALL.match(line)
        if found is None:
            continue
        call, file, mark = found.groups()
        if mark is not None:
            calls = phases.setdefault(mark.removeprefix("-- "), [])
        elif file in _SEEN:
            kind = "sync" if call in ("fsync", "fdatasync") else "cut" if call == "ftruncate" else "write"
            calls.append(f"{kind} {_SEEN[file]}")
    return phases


def without_repeats(calls: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for call in calls:
        if kept[-1:] != [call]:
            kept.append(call)
    return kept


def test_an_answer_is_on_disk_before_a_row_names_it(tmp_path: Path) -> None:
    """So is the name of its file, where that is new, and what was cut off, before it is cut."""
    trace = tmp_path / "trace"
    calls = "trace=write,pwrite64,fsync,fdatasync,ftruncate"
    strace = ["strace", "-f", "-y", "-qq", "-e", "signal=none", "-e", calls, "-o", str(trace)]
    subprocess.run([*strace, sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, timeout=100)
    phases = told(trace.read_text(errors="replace").splitlines())
    named = ["write wal", "sync wal"]
    assert without_repeats(phases["first"]) == ["write answer", "sync answer", "sync folder", *named]
    assert without_repeats(phases["second"]) == ["write answer", "sync answer", *named]
    assert without_repeats(phases["third"]) == [
        "write torn",
        "sync torn",
        "sync folder",
        "cut answer",
        "write answer",
        "sync answer",
        *named,
    ]
