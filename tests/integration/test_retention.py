"""Retention keeps what the rules say; what is gone is said to be gone, and its bytes are given back."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ksi_daemon import retention
from ksi_daemon.referrers import Referrers
from ksi_daemon.supervisor import MAX_FAILURES
from ksi_daemon.testing import FakeClock, RunningDaemon, Wire, running_daemon
from tests.integration.test_references import follow, reference, stream
from tests.support.databases import rows
from tests.support.waiting import eventually

DAY_S = 86_400


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@asynccontextmanager
async def keeping(clock: FakeClock, **settings: Any) -> AsyncIterator[RunningDaemon]:
    """Run a daemon with settings of retention."""
    async with running_daemon(
        settings={"retention": settings, "load_plugins": "events,state"}, clock=clock
    ) as ksi:
        yield ksi


async def publish(ksi: RunningDaemon, number: int, event: str = "demo:told", **fields: Any) -> dict[str, Any]:
    return await ksi.call_raw(
        "event:publish", {"event": event, "data": {"n": number}, "event_id": f"e{number}", **fields}
    )


async def ids_with_data(ksi: RunningDaemon, pattern: str = "demo:*") -> list[str]:
    page = await ksi.call_raw("event:query", {"patterns": [pattern], "reverse": False, "limit": 1000})
    assert page["damaged"] == []
    assert all((event["data"] is None) == event["removed"] for event in page["events"])
    return [event["event_id"] for event in page["events"] if not event["removed"]]


async def verified(wire: Wire) -> dict[str, Any]:
    """Verify; give the last item."""
    *frames, end = await stream(wire, "event:verify", {"deep": True})
    assert end["type"] == "end"
    assert [damaged for frame in frames for damaged in frame["data"]["damaged"]] == []
    last: dict[str, Any] = frames[-1]["data"]
    return last


async def damage(ksi: RunningDaemon, change: str) -> None:
    await ksi.daemon.database.write_apart(lambda tx: tx.execute(change).rowcount)


async def test_the_data_of_old_events_goes_and_their_stubs_stay(clock: FakeClock) -> None:
    async with keeping(clock, max_age_days=2) as ksi, ksi.connect() as wire:
        await publish(ksi, 1, stream="demo/1")
        clock.advance(3 * DAY_S)
        await publish(ksi, 2, stream="demo/1")
        swept = await ksi.call_raw("event:sweep")
        assert (swept["removed"], swept["compacted"]) == (2, 0)  # system:started is as old
        stub = await ksi.call_raw("event:get", {"event_id": "e1"})
        assert (stub["data"], stub["removed"], stub["version"]) == (None, True, 1)
        assert await ids_with_data(ksi) == ["e2"]
        assert (await verified(wire))["removed"] == 2
        frames = await follow(wire)
        assert [frame["data"]["event_id"] for frame in frames if frame["type"] == "item"] == ["e2"]
        assert [(f["reason"], f["removed"]) for f in frames if f["type"] == "gap"] == [("retention", 1)]
        assert (await publish(ksi, 1, stream="demo/1"))["deduplicated"]
        other = await wire.call("event:publish", {"event": "demo:told", "data": {"n": 7}, "event_id": "e1"})
        assert other["error"]["details"]["reason"] == "id_reused"


async def test_an_event_whose_data_is_no_text_any_more_stops_no_sweep(clock: FakeClock) -> None:
    change = "UPDATE log SET data = CAST(x'7bff7d' AS TEXT) WHERE event_id = 'e1'"
    async with keeping(clock, max_age_days=2) as ksi:
        for number in (1, 2):
            await publish(ksi, number)
        await damage(ksi, change)
        clock.advance(3 * DAY_S)
        await publish(ksi, 3)
        await ksi.call_raw("event:sweep")
        assert await ids_with_data(ksi) == ["e3"]


@pytest.mark.parametrize("name", ["x'64ff'", "CAST(x'64ff' AS TEXT)", "7"])
async def test_an_event_whose_name_is_damaged_stops_no_sweep(clock: FakeClock, name: str) -> None:
    async with keeping(clock, max_age_days=2) as ksi:
        for number in (1, 2):
            await publish(ksi, number)
        await damage(ksi, f"UPDATE log SET name = {name} WHERE event_id = 'e1'")
        clock.advance(3 * DAY_S)
        await publish(ksi, 3)
        await ksi.call_raw("event:sweep")
        assert await ids_with_data(ksi) == ["e3"]


@pytest.mark.parametrize("time", ["'never'", "x'00'", "1e300"])
async def test_an_event_whose_time_is_damaged_is_as_old_as_the_one_after_it(
    clock: FakeClock, time: str
) -> None:
    async with keeping(clock, max_age_days=2, stubs_max_age_days=2) as ksi:
        for number in (1, 2, 3):
            await publish(ksi, number)
        await damage(ksi, f"UPDATE log SET time = {time} WHERE event_id IN ('e1', 'e2')")
        assert (await ksi.call_raw("event:sweep"))["removed"] == 0
        clock.advance(3 * DAY_S)
        await publish(ksi, 4)
        swept = await ksi.call_raw("event:sweep")
        assert (swept["removed"], swept["compacted"]) == (4, 5)  # system:started, and the first sweep
        assert await ids_with_data(ksi) == ["e4"]


async def test_an_event_whose_reference_is_no_text_any_more_stops_no_sweep(clock: FakeClock) -> None:
    async with keeping(clock, max_age_days=2) as ksi:
        for number in (1, 2):
            await publish(ksi, number, data={"n": "x" * 100_000})
        change = "UPDATE log SET reference = CAST(CAST(reference AS BLOB) || x'ff' AS TEXT) "
        await damage(ksi, change + "WHERE event_id = 'e1'")
        clock.advance(3 * DAY_S)
        await publish(ksi, 3)
        await ksi.call_raw("event:sweep")
        assert await ids_with_data(ksi) == ["e3"]


@pytest.mark.parametrize(
    "change", ["DELETE FROM log WHERE event_id = 'e4'", "UPDATE log SET chain = 'x' WHERE event_id = 'e4'"]
)
async def test_rows_before_one_that_is_lost_are_deleted(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The log begins at a row that says what it is to be verified from."""
    async with keeping(clock, max_age_days=1, stubs_max_age_days=2) as ksi, ksi.connect() as wire:
        seqs = [(await publish(ksi, number))["seq"] for number in range(1, 9)]
        monkeypatch.setattr(retention, "SLICE", seqs[3])
        await damage(ksi, change)
        clock.advance(3 * DAY_S)
        await publish(ksi, 9)
        assert (await ksi.call_raw("event:sweep"))["compacted"] == seqs[-1]
        assert (await ksi.call_raw("event:retention"))["horizon"] == seqs[-1]
        await verified(wire)


async def test_each_pattern_has_its_own_rule(clock: FakeClock) -> None:
    rules = [{"pattern": "demo:kept"}, {"pattern": "demo:*", "max_age_days": 1}]
    async with keeping(clock, max_age_days=100, rules=rules) as ksi:
        await publish(ksi, 1, "demo:kept")
        await publish(ksi, 2)
        await publish(ksi, 3, "other:told")
        clock.advance(3 * DAY_S)
        await publish(ksi, 4)
        assert (await ksi.call_raw("event:sweep"))["removed"] == 1
        assert await ids_with_data(ksi) == ["e1", "e4"]
        assert await ids_with_data(ksi, "other:*") == ["e3"]
        state = await ksi.call_raw("event:retention")
        assert [rule["pattern"] for rule in state["rules"]] == ["demo:kept", "demo:*", "*"]
        assert state["last"]["removed"] == 1


async def test_the_newest_bytes_are_kept(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "LOOK", 7)
    monkeypatch.setattr(retention, "SLICE", 3)
    rules = [{"pattern": "demo:*", "max_bytes": 5 * len('{"n":10}')}]
    async with keeping(clock, rules=rules) as ksi:
        for number in range(10, 30):
            await publish(ksi, number)
        assert (await ksi.call_raw("event:sweep"))["removed"] == 15
        assert await ids_with_data(ksi) == [f"e{number}" for number in range(25, 30)]
        assert (await ksi.call_raw("event:sweep"))["removed"] == 0


async def test_rows_before_the_horizon_are_deleted_and_whoever_asks_is_told(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "SLICE", 4)
    async with keeping(clock, max_age_days=1, stubs_max_age_days=2) as ksi, ksi.connect() as wire:
        first = await publish(ksi, 1, stream="demo/1")
        for number in range(2, 12):
            await publish(ksi, number, stream="demo/1")
        clock.advance(3 * DAY_S)
        last = await publish(ksi, 12, stream="demo/2")
        swept = await ksi.call_raw("event:sweep")
        horizon = last["seq"] - 1
        assert (swept["compacted"], (await ksi.call_raw("event:retention"))["horizon"]) == (horizon, horizon)
        assert [told["horizon"] for told in ksi.emitted("event:swept")] == [horizon]
        assert rows(ksi.paths.database, f"SELECT count(*) FROM log WHERE seq <= {horizon}") == [(0,)]

        gaps = [frame for frame in await follow(wire) if frame["type"] == "gap"]
        assert [(gap["reason"], gap["lost"]) for gap in gaps] == [("horizon", horizon)]
        start = {"patterns": ["demo:*"], "start": {"cursor": first["cursor"]}}
        wire.send({"event": "event:subscribe", "data": start, "id": "c"})
        gap = await wire.receive()
        assert (gap["type"], gap["reason"], gap["lost"]) == ("gap", "horizon", horizon - first["seq"])
        assert gap["cursor"].endswith(f"-{horizon}")

        read = await ksi.call_raw("event:read", {"stream": "demo/1"})
        assert (read["events"], read["compacted"]) == ([], 11)
        appended = await ksi.call_raw(
            "event:append", {"stream": "demo/1", "events": [{"event": "demo:told"}], "expected_version": 11}
        )
        assert appended["version"] == 12
        assert (await ksi.call_raw("event:read", {"stream": "demo/1"}))["compacted"] == 11
        async with ksi.connect() as other:
            assert (await verified(other))["checked"] == ksi.daemon.hub.head - horizon


async def test_the_horizon_survives_a_restart(clock: FakeClock, tmp_path: Path) -> None:
    settings = {"retention": {"max_age_days": 1, "stubs_max_age_days": 1}, "load_plugins": "events"}
    home = tmp_path / "var"
    async with running_daemon(home=home, settings=settings, clock=clock) as ksi:
        for number in range(5):
            await publish(ksi, number, stream="demo/1")
        clock.advance(2 * DAY_S)
        await publish(ksi, 9)
        await ksi.call_raw("event:sweep")
        horizon = (await ksi.call_raw("event:retention"))["horizon"]
    async with running_daemon(home=home, settings=settings, clock=clock) as ksi, ksi.connect() as wire:
        assert horizon == (await ksi.call_raw("event:retention"))["horizon"] > 0
        await verified(wire)
        appended = await ksi.call_raw(
            "event:append", {"stream": "demo/1", "events": [{"event": "demo:told"}]}
        )
        assert appended["version"] == 6


async def test_blobs_that_nobody_names_go_after_an_hour(clock: FakeClock) -> None:
    async with keeping(clock, rules=[{"pattern": "demo:gone", "max_bytes": 0}]) as ksi:
        paths = {}
        for event in ("demo:gone", "demo:told"):
            data = {"text": event * 10_000}
            await ksi.call_raw("event:publish", {"event": event, "data": data, "event_id": event})
            paths[event] = ksi.paths.home / str(reference(ksi, event)["path"])
        assert (await ksi.call_raw("event:sweep"))["blobs"] == 0, "it is not an hour old"
        for path in paths.values():
            os.utime(path, (1, 1))
        swept = await ksi.call_raw("event:sweep")
        assert (swept["blobs"], [path.exists() for path in paths.values()]) == (1, [False, True])
        assert (await ksi.call_raw("event:get", {"event_id": "demo:gone"}))["removed"]


async def test_what_is_deleted_is_given_back(clock: FakeClock) -> None:
    async with keeping(clock, max_age_days=1, stubs_max_age_days=1) as ksi:
        events = [{"event": "demo:told", "data": {"text": "x" * 2000}}] * 500
        for number in range(4):
            await ksi.call_raw("event:append", {"stream": f"demo/{number}", "events": events})
        clock.advance(2 * DAY_S)
        await publish(ksi, 1)
        before = rows(ksi.paths.database, "PRAGMA page_count")[0][0]
        swept = await ksi.call_raw("event:sweep")
        after = rows(ksi.paths.database, "PRAGMA page_count")[0][0]
        assert after < before // 5
        assert swept["returned_bytes"] > 4 * 1024 * 1024


KEEPER = """
from ksi_daemon.plugin import Blobs, Database, Message, Referrers, Request, handler, hookimpl

class Kept(Message): path: str
class Keep(Request[Kept], event="keeper:keep"):
    '''Keep something large.'''

@hookimpl
def ksi_migrations():
    return {1: "CREATE TABLE kept (name TEXT, path TEXT, length INTEGER, sha256 TEXT);"}

@hookimpl
async def ksi_startup(services):
    services.get(Referrers).add("keeper", "SELECT name, path, 0, length, sha256 FROM kept")

@handler
async def keep(request: Keep, blobs: Blobs, database: Database) -> Kept:
    blob = await blobs.put(b"x" * 1000)
    values = ("a", blob.path, blob.length, blob.sha256)
    await database.write(lambda tx: tx.execute("INSERT INTO kept VALUES (?, ?, ?, ?)", values) and None)
    return Kept(path=blob.path)
"""


@pytest.mark.parametrize("damaged", ["path = CAST(X'ff' AS TEXT)", "sha256 = '0'"])
async def test_what_a_damaged_row_refers_to_is_kept(tmp_path: Path, damaged: str) -> None:
    home, plugin = tmp_path / "var", tmp_path / "keeper.py"
    plugin.write_text(KEEPER)
    async with running_daemon(home=home, plugins=[plugin]) as ksi:
        kept = home / (await ksi.call_raw("keeper:keep"))["path"]
        os.utime(kept, (1, 1))
        await ksi.daemon.database.write(lambda tx: tx.execute(f"UPDATE kept SET {damaged}") and None)
        assert (await ksi.call_raw("event:sweep"))["blobs"] == 0
        assert kept.exists()


@pytest.mark.parametrize(
    "damaged",
    [
        "replace(reference, 'blobs/', 'blocs/')",
        "replace(reference, 'sha256', 'sha252')",
        '\'{"path":"blobs\'',
    ],
    ids=["path", "hash", "all"],
)
async def test_what_a_damaged_row_of_the_log_refers_to_is_kept(tmp_path: Path, damaged: str) -> None:
    home = tmp_path / "var"
    async with running_daemon(home=home, settings={"load_plugins": "events"}) as ksi:
        for text in ("a", "b"):
            data = {"text": text * 100_000}
            await ksi.call_raw("event:publish", {"event": "demo:large", "data": data, "event_id": text})
        blobs = [path for path in (home / "blobs").glob("*/*") if path.is_file()]
        for path in blobs:
            os.utime(path, (1, 1))
        change = f"UPDATE log SET reference = {damaged} WHERE event_id = 'a'"
        await damage(ksi, change)
        assert (await ksi.call_raw("event:sweep"))["blobs"] == 0
        assert [path for path in blobs if not path.exists()] == []


async def test_what_a_plugin_refers_to_is_kept_while_the_plugin_is_not_loaded(tmp_path: Path) -> None:
    home, plugin = tmp_path / "var", tmp_path / "keeper.py"
    plugin.write_text(KEEPER)
    async with running_daemon(home=home, plugins=[plugin]) as ksi:
        kept = home / (await ksi.call_raw("keeper:keep"))["path"]
        os.utime(kept, (1, 1))
        assert (await ksi.call_raw("event:sweep"))["blobs"] == 0
    async with running_daemon(home=home, settings={"load_plugins": "events"}) as ksi:
        assert (await ksi.call_raw("event:sweep"))["blobs"] == 0
        assert kept.exists()


async def test_what_tables_are_made_of_goes_when_a_snapshot_stands_for_it(clock: FakeClock) -> None:
    async with keeping(clock, max_age_days=1, stubs_max_age_days=1) as ksi:
        for number in range(5):
            await ksi.call_raw("state:set", {"key": f"k{number % 3}", "value": number})
        clock.advance(3 * DAY_S)
        await ksi.call_raw("state:set", {"key": "young", "value": 1})
        swept = await sweep(ksi)
        assert (swept["removed"] > 5, swept["compacted"] > 5, swept["needed"]) == (True, True, 0)
        assert await differences(ksi) == []
        clock.advance(3 * DAY_S)
        await ksi.call_raw("state:delete", {"key": "k0"})
        assert (await sweep(ksi))["needed"] == 0
        assert len(list((ksi.paths.home / "snapshots").iterdir())) == 1
        assert await differences(ksi) == []
        assert (await ksi.call_raw("state:list"))["keys"] == ["k1", "k2", "young"]


async def test_what_tables_are_made_of_stays_where_the_log_does_not_make_them(clock: FakeClock) -> None:
    async with keeping(clock, max_age_days=1) as ksi:
        await ksi.call_raw("state:set", {"key": "k", "value": 1})
        await publish(ksi, 1)
        await ksi.daemon.database.write(lambda tx: tx.execute("UPDATE state SET value = '2'").rowcount)
        clock.advance(3 * DAY_S)
        swept = await sweep(ksi)
        assert (swept["needed"], await ids_with_data(ksi, "state:changed")) != (0, [])
        assert await ids_with_data(ksi) == []  # what nothing is made of has gone
        (difference,) = await differences(ksi)
        assert "value is '2' live and '1' replayed" in difference
        assert (await sweep(ksi, trust_live=True))["needed"] == 0
        assert await ids_with_data(ksi, "state:changed") == []
        assert await differences(ksi) == []


async def test_a_snapshot_that_is_damaged_is_named(clock: FakeClock) -> None:
    async with keeping(clock, max_age_days=1) as ksi, ksi.connect(patience_s=60) as wire:
        await ksi.call_raw("state:set", {"key": "k", "value": 1})
        clock.advance(3 * DAY_S)
        assert (await sweep(ksi))["needed"] == 0
        (file,) = (ksi.paths.home / "snapshots").iterdir()
        file.write_bytes(file.read_bytes()[:-1])
        (frame,) = await stream(wire, "event:replay", {})
        assert frame["error"]["details"]["reason"] == "reference_corrupt"
        assert file.name in frame["error"]["message"]


async def test_sweeps_that_fail_are_tried_again_and_nothing_else_stops_for_them(clock: FakeClock) -> None:
    async with keeping(clock, every_s=0.01) as ksi:

        async def failed() -> bool:
            return [line["event"] for line in logged].count("retention.failed") > MAX_FAILURES

        with capture_logs() as logged:
            ksi.daemon.services.get(Referrers).add("demo", "SELECT * FROM what_is_not_there")
            await eventually(failed)
        assert (await ksi.call_raw("system:health"))["status"] == "healthy"


async def differences(ksi: RunningDaemon) -> list[str]:
    """Replay into a sandbox; give what differs."""
    async with ksi.connect(patience_s=60) as wire:
        *frames, _ = await stream(wire, "event:replay", {})
    return [table["difference"] for table in frames[-1]["data"]["tables"] if table["difference"]]


async def sweep(ksi: RunningDaemon, **how: Any) -> dict[str, Any]:
    """Sweep with what may take a process of its own."""
    async with ksi.connect(patience_s=60) as wire:
        answer = await wire.call("event:sweep", how)
    assert answer["type"] == "reply", answer
    swept: dict[str, Any] = answer["data"]
    return swept
