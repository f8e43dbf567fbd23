"""A disk that is full, or fails at any write: what is stored is what was acknowledged, and reads go on."""

import os
import shutil
import signal
from asyncio import timeout
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.faults.test_group_faults import ON_A_SMALL_DISK, ask, can_mount, fill, publishing
from tests.support.audit import Audit
from tests.support.daemon_process import DaemonProcess, Died
from tests.support.pipeline import call_line, connected
from tests.support.scale import scaled
from tests.support.tracing import can_trace
from tests.support.waiting import eventually

PUBLISHES: Final = 40
TEXT: Final = "x" * 3000
"""Some pages an event: every commit is several writes."""
WRITES: Final = range(1, 61, scaled(20, 1))


class Outcomes:
    """What a daemon answered to publishes, one after another."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.unanswered: set[str] = set()

    async def publish(self, daemon: DaemonProcess, idents: list[str]) -> None:
        """Publish each; where the daemon hangs up, the rest is unanswered."""
        self.unanswered = set(idents)
        try:
            async with timeout(60), connected(daemon.socket) as (reader, writer):
                for ident in idents:
                    writer.write(publishing(ident, TEXT))
                    line = await reader.readline()
                    if not line:
                        return
                    self._heard(orjson.loads(line))
        except (ConnectionError, FileNotFoundError):
            return

    def _heard(self, answer: dict[str, Any]) -> None:
        ident = answer["id"]
        self.unanswered.discard(ident)
        if answer["type"] == "reply":
            self.acknowledged[ident] = answer["data"]["seq"]
        else:
            self.refused[ident] = answer["error"]["details"]["reason"]


async def stored(database: Path) -> dict[str, int]:
    """Read a log; give the events of the test."""
    audit = Audit(database)
    await audit.read_on()
    await audit.check_integrity()
    return {ident: seq for ident, seq in audit.seqs.items() if ident.startswith("p")}


def idents(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@pytest.mark.root
@pytest.mark.timeout(120)
@pytest.mark.skipif(not can_mount(), reason="only root mounts a small disk")
async def test_a_full_disk_refuses_reads_on_and_recovers_without_a_restart(tmp_path: Path) -> None:
    async with DaemonProcess(wrapper=ON_A_SMALL_DISK, environ={"KSI_LOAD_PLUGINS": "events"}) as daemon:
        disk = Path(f"/proc/{daemon.pid}/root{daemon.database.parent}")
        filler = await fill(disk, 200_000)
        before = Outcomes()
        await before.publish(daemon, idents(200))
        assert before.acknowledged
        assert set(before.refused.values()) == {"store_unavailable"}
        get = {"g": call_line("event:get", {"event_id": "p0"}, "g")}
        assert (await ask(daemon, get))["g"]["data"]["event_id"] == "p0"
        filler.unlink()

        async def recovered() -> bool:
            answer = (await ask(daemon, {"o": publishing("other")}))["other"]
            return bool(answer["type"] == "reply")

        await eventually(recovered)
        after = Outcomes()
        await after.publish(daemon, idents(50, "pp"))
        assert len(after.acknowledged) == 50
        os.kill(daemon.pid, signal.SIGSTOP)  # its files stand still, and go when it goes
        copy = shutil.copytree(disk, tmp_path / "db")
    assert await stored(copy / daemon.database.name) == before.acknowledged | after.acknowledged


def on_a_full_disk(folder: str) -> list[str]:
    """Run a command where a folder of its home is a disk that is full."""
    mount = f'mkdir "$KSI_HOME/{folder}" && mount -t tmpfs -o size=64k,mode=700 ksi "$KSI_HOME/{folder}"'
    fill_it = f'{{ cat /dev/zero > "$KSI_HOME/{folder}/filler" 2> /dev/null; true; }}'
    return ["unshare", "-m", "sh", "-c", f'{mount} && {fill_it} && exec "$@"', "sh"]


@pytest.mark.root
@pytest.mark.timeout(120)
@pytest.mark.skipif(not can_mount(), reason="only root mounts a small disk")
async def test_a_start_with_the_database_on_a_full_disk_says_what_to_do() -> None:
    with pytest.raises(Died) as died:
        async with DaemonProcess(wrapper=on_a_full_disk("db")):
            pass
    assert "KSI cannot run: cannot store: database or disk is full\n  free space on the disk" in str(
        died.value
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["garbage", "folder"])
async def test_a_start_with_a_database_that_is_none_names_its_file(kind: str) -> None:
    daemon = DaemonProcess()
    daemon.database.parent.mkdir(parents=True)
    if kind == "folder":
        daemon.database.mkdir()
    else:
        daemon.database.write_bytes(b"garbage" * 1000)
    with pytest.raises(Died, match=f"KSI cannot run: cannot open {daemon.database}: .*\n  move it away"):
        async with daemon:
            pass


@pytest.mark.root
@pytest.mark.timeout(120)
@pytest.mark.skipif(not can_mount(), reason="only root mounts a small disk")
async def test_a_daemon_whose_log_has_no_room_stops_as_asked() -> None:
    """Else its supervisor would take the end for a crash, and start it again."""
    async with DaemonProcess(wrapper=on_a_full_disk("logs")) as daemon:
        assert await daemon.stop() == 0


def injecting(calls: str, error: str, when: str, path: Path) -> list[str]:
    """Make some of the calls on a file fail."""
    inject = f"inject={calls}:error={error}:when={when}"
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(path), "-e", f"trace={calls}", "-e", inject]


@pytest.mark.slow
@pytest.mark.timeout(scaled(300, 2400))
@pytest.mark.skipif(not can_trace(), reason="strace cannot trace here")
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
async def test_what_is_stored_is_what_was_acknowledged_whichever_write_fails(error: str) -> None:
    refused = 0
    for when in WRITES:
        async with DaemonProcess(environ={"KSI_LOAD_PLUGINS": "events"}) as daemon:
            await daemon.stop()
            wal = daemon.database.with_name("ksi.db-wal")
            plain, daemon._command = daemon._command, [
                *injecting("pwrite64", error, f"{when}..{when + 5}", wal), *daemon._command,
            ]  # fmt: skip
            outcomes = Outcomes()
            try:
                await daemon.start()
            except Died:
                pass  # the fault hit the start: nobody was told of anything
            else:
                await outcomes.publish(daemon, idents(PUBLISHES))
                await daemon.kill()
            refused += len(outcomes.refused)
            assert outcomes.unanswered <= set(idents(PUBLISHES)), when
            daemon._command = plain
            await daemon.start()
            await daemon.stop()
            found = await stored(daemon.database)
            assert outcomes.acknowledged.items() <= found.items(), (
                f"write {when}: acknowledged and not stored"
            )
            assert not found.keys() & outcomes.refused.keys(), f"write {when}: refused and stored"
            assert found.keys() - outcomes.acknowledged.keys() <= outcomes.unanswered, f"write {when}"
    assert refused, "the faults hit nothing"


@pytest.mark.timeout(120)
@pytest.mark.skipif(not can_trace(), reason="strace cannot trace here")
async def test_a_failed_sync_stops_the_daemon_with_a_clear_word() -> None:
    async with DaemonProcess(environ={"KSI_LOAD_PLUGINS": "events"}) as daemon:
        await daemon.stop()
        wal = daemon.database.with_name("ksi.db-wal")
        plain, daemon._command = daemon._command, [
            *injecting("fdatasync,fsync", "EIO", "10", wal), *daemon._command,
        ]  # fmt: skip
        await daemon.start()
        outcomes = Outcomes()
        await outcomes.publish(daemon, idents(PUBLISHES))
        assert outcomes.acknowledged
        assert len(outcomes.acknowledged) < PUBLISHES
        assert await daemon.wait() == 1
        assert "KSI cannot run: cannot store: disk I/O error" in daemon.stderr.read_text()
        lines = (daemon.home / "logs" / "daemon" / "ksi.jsonl").read_text().splitlines()
        assert any(orjson.loads(line)["event"] == "daemon.failed" for line in lines)
        daemon._command = plain
        await daemon.start()
        await daemon.stop()
        found = await stored(daemon.database)
        assert outcomes.acknowledged.items() <= found.items()
