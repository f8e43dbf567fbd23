"""A log that is cut short by its disk opens, says from which position on it is missing, and goes on."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from ksi_daemon.database.head_file import Head, read_head
from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.integration.test_references import stream
from tests.support.audit import Audit
from tests.support.daemon_process import DaemonProcess
from tests.support.databases import looking, rows
from tests.support.pipeline import call_line, pipeline
from tests.support.scale import scaled
from tests.support.waiting import eventually

EVENTS = 600
CUTS = scaled(12, 50)
SETTINGS = {"load_plugins": "events"}


@dataclass
class Killed:
    """A home that was left by SIGKILL after a burst, with all of that in the write-ahead log."""

    home: Path
    head: Head
    acknowledged: int
    """The seq of the last acknowledged event."""

    @property
    def wal_bytes(self) -> int:
        """What was written since the last checkpoint; the file may be longer (sqlite.org/fileformat, 4)."""
        wal = (self.home / "db" / "ksi.db-wal").read_bytes()
        frame = 24 + int.from_bytes(wal[8:12])
        end = 32
        while wal[end + 8 : end + 16] == wal[16:24]:  # the salts, other ones since the checkpoint
            end += frame
        return end


@pytest.fixture
async def killed(tmp_path: Path) -> Killed:
    seqs: list[int] = []

    def heard(answer: bytes) -> None:
        seqs.append(orjson.loads(answer)["data"]["seq"])

    async with DaemonProcess(environ={"KSI_LOAD_PLUGINS": "events"}) as daemon:
        lines = (
            call_line("event:publish", {"event": "demo:told", "data": {"n": n, "text": "x" * 300}})
            for n in range(EVENTS)
        )
        with looking(daemon.database) as reader:
            reader.execute("BEGIN")  # no checkpoint takes what comes after this snapshot
            reader.execute("SELECT count(*) FROM log").fetchone()
            await pipeline(daemon.socket, lines, heard, window=4)

            async def head_written() -> bool:
                head = read_head(daemon.home / "run" / "head")
                return head is not None and head.seq >= max(seqs)

            await eventually(head_written)
            await daemon.kill()
            home = shutil.copytree(
                daemon.home, tmp_path / "killed", ignore=shutil.ignore_patterns("*.sock", "*-shm")
            )
    head = read_head(home / "run" / "head")
    assert head is not None
    return Killed(home, head, max(seqs))


@asynccontextmanager
async def cut(killed: Killed, to: Path, wal_bytes: int) -> AsyncIterator[RunningDaemon]:
    """Run a daemon on a copy whose write-ahead log ends earlier."""
    shutil.copytree(killed.home, to)
    with (to / "db" / "ksi.db-wal").open("r+b") as wal:
        wal.truncate(wal_bytes)
    try:
        async with running_daemon(home=to, settings=SETTINGS) as ksi:
            yield ksi
    finally:
        shutil.rmtree(to)


async def check_reported(ksi: RunningDaemon, killed: Killed, first_missing: int) -> None:
    missing = killed.head.seq - first_missing + 1
    told = await ksi.call_raw("event:query", {"patterns": ["system:tail_lost"]})
    assert [event["data"]["first_missing"] for event in told["events"]] == [first_missing]
    assert told["events"][0]["data"]["missing"] == missing
    health = await ksi.call_raw("system:health")
    assert (health["status"], health["checks"]["database"]["status"]) == ("degraded", "degraded")
    async with ksi.connect() as wire:
        for seq, gap in ((first_missing - 1, None), (killed.head.seq, ("tail_lost", missing))):
            start = {"cursor": f"{killed.head.log_id}-{seq}"}
            ident = str(seq)
            wire.send(
                {"event": "event:subscribe", "data": {"patterns": ["demo:*"], "start": start}, "id": ident}
            )
            frame = await wire.receive()
            if gap is None:
                assert frame["type"] == "caught_up", frame
            else:
                assert (frame["type"], frame["reason"], frame["lost"]) == ("gap", *gap)
            wire.send({"type": "cancel", "id": ident})
            while frame["type"] != "error":
                frame = await wire.receive()
    known = await ksi.call_raw("event:acknowledge_loss")
    assert (known["first_missing"], known["missing"]) == (first_missing, missing)
    assert ksi.daemon.database.facts.lost_tail is not None
    assert ksi.daemon.database.facts.lost_tail.acknowledged


async def check_whole(ksi: RunningDaemon) -> None:
    """Verify what is there: it has no gap, and its chain holds over the loss."""
    async with ksi.connect() as wire:
        *frames, end = await stream(wire, "event:verify", {"deep": True})
    assert end["type"] == "end"
    assert [frame["data"]["damaged"] for frame in frames] == [[]] * len(frames)
    audit = Audit(ksi.paths.database)
    await audit.read_on()
    await audit.check_integrity()


@pytest.mark.slow
@pytest.mark.timeout(scaled(240, 600))
async def test_a_cut_log_says_what_is_missing(killed: Killed, tmp_path: Path) -> None:
    lost = 0
    for number in range(CUTS):
        length = killed.wal_bytes * number // CUTS
        async with cut(killed, tmp_path / "copy", length) as ksi:
            survived = (
                rows(ksi.paths.database, "SELECT max(seq) FROM log WHERE name = 'demo:told'")[0][0] or 0
            )
            if survived < killed.head.seq:
                lost += 1
                reported = ksi.daemon.database.facts.lost_tail
                assert reported is not None, f"{length} bytes are left, up to {survived}: nothing is said"
                assert reported.first_missing - 1 >= survived
                await check_reported(ksi, killed, reported.first_missing)
            await check_whole(ksi)
    assert lost >= CUTS // 4, "the cuts took nothing"


@pytest.mark.timeout(120)
async def test_without_the_head_the_loss_is_silent(killed: Killed, tmp_path: Path) -> None:
    """The twin: it is the head that shows what is missing."""
    (killed.home / "run" / "head").unlink()
    async with cut(killed, tmp_path / "copy", killed.wal_bytes // 2) as ksi:
        assert ksi.daemon.hub.head < killed.acknowledged
        assert ksi.daemon.database.facts.lost_tail is None


@pytest.mark.timeout(120)
async def test_a_head_that_is_torn_says_nothing(killed: Killed, tmp_path: Path) -> None:
    (killed.home / "run" / "head").write_bytes(b'{"log_id":"')
    async with cut(killed, tmp_path / "copy", killed.wal_bytes // 2) as ksi:
        assert ksi.daemon.database.facts.lost_tail is None


@pytest.mark.timeout(120)
async def test_a_loss_is_told_once_and_remembered_until_it_is_acknowledged(
    killed: Killed, tmp_path: Path
) -> None:
    home = tmp_path / "again"
    shutil.copytree(killed.home, home)
    with (home / "db" / "ksi.db-wal").open("r+b") as wal:
        wal.truncate(killed.wal_bytes // 2)
    log_ids = []
    for _ in range(2):
        async with running_daemon(home=home, settings=SETTINGS) as ksi:
            log_ids.append(ksi.daemon.database.log_id)

            async def is_told() -> bool:
                told = await ksi.call_raw("event:query", {"patterns": ["system:tail_lost"]})
                return bool(told["count"] == 1)

            await eventually(is_told)
            assert (await ksi.call_raw("system:health"))["status"] == "degraded"
    async with running_daemon(home=home, settings=SETTINGS) as ksi:
        log_ids.append(ksi.daemon.database.log_id)
        await ksi.call_raw("event:acknowledge_loss")
    async with running_daemon(home=home, settings=SETTINGS) as ksi:
        assert (await ksi.call_raw("system:health"))["checks"]["database"]["status"] == "healthy"
        assert (await ksi.call_raw("event:acknowledge_loss"))["missing"] is None
    assert len(set(log_ids)) == 1
    assert log_ids[0] != killed.head.log_id


@pytest.mark.timeout(120)
async def test_a_whole_log_has_lost_nothing(killed: Killed, tmp_path: Path) -> None:
    async with cut(killed, tmp_path / "copy", killed.wal_bytes) as ksi:
        assert ksi.daemon.database.facts.lost_tail is None
        assert ksi.daemon.database.log_id == killed.head.log_id
        health = await ksi.call_raw("system:health")
        assert health["checks"]["database"]["status"] == "healthy"
        await check_whole(ksi)
