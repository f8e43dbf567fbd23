"""No answer leaves before the disk has confirmed what it promises: read off the daemon's system calls."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from ksi_daemon.database.wal import EXTENT
from tests.faults.twins import faulty
from tests.support.daemon_process import DaemonProcess
from tests.support.pipeline import call_line, expect_reply, pipeline
from tests.support.tracing import can_trace
from tests.support.waiting import eventually

PUBLISHES = 200
CALLS: Final = "trace=pwrite64,pwritev,write,writev,sendto,sendmsg,fdatasync,fsync"

_EVENT = re.compile(r"told-\d{4}")
_WAL = r"\(\d+<[^>]*/ksi\.db-wal>"
_WAL_WRITE = re.compile(rf"^\d+ +p?write\w*{_WAL}")
_WAL_SYNC = re.compile(rf"^(\d+) +f(?:data)?sync{_WAL}(.*)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. f(?:data)?sync resumed>(.*)$")
_ANSWER = re.compile(r"^\d+ +(?:writev?|sendto|sendmsg)\(\d+<(?:socket|UNIX)")


class Disk:
    """What is on disk as the trace goes on, and which answers ran ahead of it."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.too_early: list[str] = []
        self._written: set[str] = set()
        self._synced: set[str] = set()
        self._dirty = False
        self._syncing: set[str] = set()

    def follow(self, trace: Iterable[str]) -> None:
        """Take the lines of strace, in order."""
        for line in trace:
            if _WAL_WRITE.match(line):
                self._dirty = True
                self._written.update(_EVENT.findall(line))
            elif sync := _WAL_SYNC.match(line):
                self._sync(*sync.groups())
            elif (resumed := _RESUMED.match(line)) and resumed[1] in self._syncing:
                self._sync(*resumed.groups())
            elif _ANSWER.match(line):
                self._answer(_EVENT.findall(line))

    def _sync(self, thread: str, rest: str) -> None:
        if "<unfinished" in rest:
            self._syncing.add(thread)
        elif rest.rstrip().endswith("= 0"):
            self._syncing.discard(thread)
            self._synced |= self._written
            self._dirty = False

    def _answer(self, events: Iterable[str]) -> None:
        for event in events:
            self.answered.append(event)
            if self._dirty or event not in self._synced:
                self.too_early.append(event)


pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not can_trace(), reason="no strace, or it may not trace here"),
]


def traced(trace: Path) -> list[str]:
    """Give the command in front of a daemon whose calls are written to ``trace``, bytes in full."""
    whole = ["-s", "65536", "-e", "signal=none"]
    return ["strace", "-f", "-y", "-qq", "--seccomp-bpf", *whole, "-e", CALLS, "-o", str(trace)]


async def publish_one_by_one(daemon: DaemonProcess, trace: Path) -> Disk:
    """Publish, read the calls that it took, and check that every answer is among them."""
    async with daemon:
        await eventually(lambda: has_its_extent(daemon))
        ids = [f"told-{number:04}" for number in range(PUBLISHES)]
        told = ({"event": "demo:told", "event_id": event_id} for event_id in ids)
        lines = (call_line("event:publish", data) for data in told)
        await pipeline(daemon.socket, lines, expect_reply, window=1)
        assert await daemon.stop() == 0
    disk = Disk()
    with trace.open(errors="replace") as lines_of_trace:
        disk.follow(lines_of_trace)
    assert disk.answered == ids
    return disk


async def has_its_extent(daemon: DaemonProcess) -> bool:
    """Tell whether the write-ahead log is as long as it is to be: that, too, is written and synced."""
    return daemon.database.with_name("ksi.db-wal").stat().st_size >= EXTENT


async def test_no_answer_precedes_the_sync_of_its_commit(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    disk = await publish_one_by_one(DaemonProcess(wrapper=traced(trace)), trace)
    assert disk.too_early == []


@pytest.mark.parametrize("fault", ["acknowledge_before_commit", "never_sync"])
async def test_a_daemon_that_answers_too_early_is_found_out(tmp_path: Path, fault: str) -> None:
    trace = tmp_path / "trace"
    disk = await publish_one_by_one(faulty(fault, wrapper=traced(trace)), trace)
    assert len(disk.too_early) == PUBLISHES
