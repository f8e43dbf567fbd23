"""The log is replayed: into a sandbox that is compared with what is live, a projection, or a subscriber."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.testing import RunningDaemon, Wire, running_daemon
from tests.integration.conftest import WritePlugin
from tests.support.waiting import eventually

POPULARITY = Path(__file__).resolve().parents[2] / "examples" / "plugins" / "popularity.py"

AUDITOR = """
from ksi_common.events.state import Changed, Set
from ksi_daemon.plugin import Blobs, Bus, Database, Notification, subscriber

class Seen(Notification, event="audit:seen"):
    key: str

@subscriber
async def look(change: Changed, bus: Bus, database: Database) -> None:
    if change.key.startswith("odd"):
        raise ValueError("odd")
    await database.write(lambda tx: tx.tell(Seen(key=change.key)))
    await bus.notify(Seen(key=change.key))
    if change.key == "meddling":
        await bus.call(Set(key="meddled", value=1))

@subscriber
async def keep(change: Changed, blobs: Blobs) -> None:
    pass
"""


STARTING_S = 60.0
"""For the process of a sandbox to say its first word, on a machine with other things to do."""


async def replay(ksi: RunningDaemon, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Replay, and give every item; an error's frame where it ends with one."""
    items: list[dict[str, Any]] = []
    async with ksi.connect(patience_s=STARTING_S) as wire:
        wire.send({"event": "event:replay", "data": dict(data), "id": "r"})
        while True:
            frame = await wire.receive()
            if frame["type"] != "item":
                return [*items, frame] if frame["type"] == "error" else items
            items.append(frame["data"])


async def live(ksi: RunningDaemon) -> None:
    """Let state be set, replaced, removed and cleared."""
    odd: list[Any] = [None, {"a": [1.5, -0.0, 1e300, "\u2028\ud83d\ude00"]}, 2**53, "", True, [[], {}]]
    for number, value in enumerate(odd):
        metadata = {"n": number} if number % 2 else None
        await ksi.call_raw("state:set", {"key": f"k{number}", "value": value, "metadata": metadata})
    await ksi.call_raw("state:set", {"key": "k1", "value": "again"})
    await ksi.call_raw("state:delete", {"key": "k2"})
    await ksi.call_raw("state:set", {"namespace": "gone", "key": "a", "value": 1})
    await ksi.call_raw("state:clear", {"namespace": "gone"})
    await ksi.call_raw("state:set", {"namespace": "b", "key": "a:b", "value": 1.0})


@pytest.fixture
async def ksi(write_plugin: WritePlugin) -> AsyncIterator[RunningDaemon]:
    plugin = write_plugin(AUDITOR)
    async with running_daemon(plugins=[plugin, POPULARITY], settings={"strict": False}) as running:
        yield running


async def test_a_sandbox_made_of_the_log_is_what_is_live(ksi: RunningDaemon) -> None:
    await live(ksi)
    *_, last = await replay(ksi, {})
    (state,) = (table for table in last["tables"] if table["table"] == "state")
    assert state == {"table": "state", "plugin": "state", "rows": 6, "difference": None}
    assert (last["done"], last["applied"], last["missing"]) == (True, 11, 0)
    assert last["position"] == last["end"]


@pytest.mark.parametrize(
    ("meddle", "difference"),
    [
        ("UPDATE state SET value = '1' WHERE key = 'a:b'", "value is '1' live and '1.0' replayed"),
        ("UPDATE state SET metadata = '{}' WHERE key = 'k0'", "metadata is '{}' live and None replayed"),
        ("DELETE FROM state WHERE key = 'k5'", "it is replayed, and not live"),
        ("INSERT INTO state VALUES ('z', 'z', 'null', NULL)", "it is live, and not replayed"),
    ],
)
async def test_twin_what_nobody_told_is_named(ksi: RunningDaemon, meddle: str, difference: str) -> None:
    await live(ksi)
    await ksi.daemon.database.write(lambda tx: tx.execute(meddle).rowcount)
    *_, last = await replay(ksi, {"into": "sandbox"})
    (found,) = (table["difference"] for table in last["tables"] if table["table"] == "state")
    assert difference in found


async def test_everything_relational_is_made_again(ksi: RunningDaemon) -> None:
    await live(ksi)
    await relate(ksi)
    *_, last = await replay(ksi, {})
    rows = {table["table"]: table["rows"] for table in last["tables"] if table["difference"] is None}
    expected = {
        "state": 6, "entities": 2, "entity_properties": 3, "relationships": 1,
        "relationship_properties": 1, "queue_items": 2,
    }  # fmt: skip
    assert rows == expected, last
    left_out = {table["plugin"] for table in last["not_compared"]}
    assert left_out.isdisjoint({"state", "graph", "queues"})


async def relate(ksi: RunningDaemon) -> None:
    """Let there be a graph and queues, of which something has gone."""
    for ident, properties in (("a", {"n": 1, "x": -0.0}), ("gone", {}), ("b", {"t": "é"})):
        new = {"type": "t", "id": ident, "properties": properties}
        await ksi.call_raw("state:entity:create", new)
    await ksi.call_raw("state:entity:delete", {"id": "gone"})
    await ksi.call_raw("state:entity:update", {"id": "a", "properties": {"x": None}})
    edge = {"type": "r", "from": "a", "to": "b", "properties": {"w": 0.5}}
    await ksi.call_raw("state:relationship:create", edge)
    for number in range(4):
        await ksi.call_raw("async_state:push", {"key": "q", "data": number, "ttl_seconds": 900})
    await ksi.call_raw("async_state:expire_queue", {"key": "q", "ttl_seconds": 600})
    for _ in range(2):
        await ksi.call_raw("async_state:pop", {"key": "q"})


@pytest.mark.parametrize(
    ("meddle", "difference"),
    [
        ("UPDATE entity_properties SET value = 2 WHERE name = 'n'", "value is 2 live and 1 replayed"),
        ("UPDATE entities SET version = 7 WHERE id = 'a'", "version is 7 live and 2 replayed"),
        ("UPDATE sqlite_sequence SET seq = 9 WHERE name = 'entities'", "last number given is 9 live and 3"),
        ("DELETE FROM queue_items WHERE number = 4", "it is replayed, and not live"),
    ],
)
async def test_twin_what_nobody_told_of_the_graph_and_the_queues_is_named(
    ksi: RunningDaemon, meddle: str, difference: str
) -> None:
    await relate(ksi)
    await ksi.daemon.database.write(lambda tx: tx.execute(meddle).rowcount)
    *_, last = await replay(ksi, {})
    (found,) = (table["difference"] for table in last["tables"] if table["difference"])
    assert difference in found


async def test_a_sandbox_that_is_kept_answers_what_is_safe_and_does_nothing(ksi: RunningDaemon) -> None:
    await live(ksi)
    await ksi.call_raw("event:publish", {"event": "demo:large", "data": {"text": "x" * 100_000}})
    sandboxes = ksi.paths.run / "sandboxes"
    async with ksi.connect(patience_s=STARTING_S) as wire:
        wire.send({"event": "event:replay", "data": {"keep": True}, "id": "r"})
        while not (item := (await wire.receive())["data"])["done"]:
            pass
        reader, writer = await asyncio.open_unix_connection(item["socket"], limit=4 * 1024 * 1024)
        sandbox = Wire(reader, writer)
        found = await sandbox.call("state:get", {"namespace": "b", "key": "a:b"})
        assert found["data"]["value"] == 1.0
        large = await sandbox.call("event:query", {"patterns": ["demo:large"]})
        assert len(large["data"]["events"][0]["data"]["text"]) == 100_000
        refused = await sandbox.call("state:set", {"key": "k", "value": 1})
        assert refused["error"]["details"]["reason"] == "sandbox"
        there = await sandbox.call("event:query", {"patterns": ["*"], "limit": 1000})
        here = await ksi.call_raw("event:query", {"patterns": ["*"], "limit": 1000})
        ended = {event["event_id"] for event in there["data"]["events"]}
        assert ended <= {event["event_id"] for event in here["events"]}
        assert not [name for name in (event["event"] for event in there["data"]["events"]) if "stop" in name]
        wire.send({"type": "cancel", "id": "r"})
        assert (await wire.receive())["type"] == "error"
        assert await reader.read() == b""  # it is gone with who asked for it
        writer.close()

    async def nothing_left() -> bool:
        return not any(sandboxes.iterdir())

    await eventually(nothing_left)


async def test_it_says_how_far_it_is_and_leaves_nothing(ksi: RunningDaemon, tmp_path: Path) -> None:
    for number in range(1200):
        await ksi.daemon.database.write(
            lambda tx, n=number: tx.tell_raw("demo:told", json.dumps({"n": n}).encode())  # type: ignore[misc]
        )
    steps = await replay(ksi, {})
    assert [step["done"] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert len(steps) > 1
    positions = [step["position"] for step in steps]
    assert positions == sorted(positions)


async def test_a_projection_is_built_again(ksi: RunningDaemon) -> None:
    await live(ksi)
    (last,) = await replay(ksi, {"into": "projection", "name": "popularity"})
    assert (last["done"], last["applied"]) == (True, 9)
    found = await ksi.call_raw("projection:get", {"name": "popularity", "key": "k1"})
    assert found["value"] == {"changes": 2, "last": "global"}


async def test_a_subscriber_gets_its_events_again_and_its_effects_are_held_back(ksi: RunningDaemon) -> None:
    for key in ("a", "meddling", "odd", "last"):
        await ksi.call_raw("state:set", {"key": key, "value": 1})
    await ksi.wait_emitted("audit:seen", 8)  # twice of each but the odd, and of "meddled": that was all
    before = await ksi.call_raw("event:query", {"patterns": ["audit:*", "state:*"]})
    *_, last = await replay(ksi, {"into": "handler", "name": "probe.look"})
    assert (last["done"], last["applied"], last["failed"], last["held_back"]) == (True, 5, 2, 9)
    assert "state:set is not asked while effects are held back" in last["error"]
    assert await ksi.call_raw("event:query", {"patterns": ["audit:*", "state:*"]}) == before
    *_, last = await replay(ksi, {"into": "handler", "name": "probe.look", "effects": True})
    assert (last["failed"], last["held_back"]) == (1, 0)
    after = await ksi.call_raw("event:query", {"patterns": ["audit:*", "state:*"]})
    assert after["count"] > before["count"]


async def test_a_part_of_the_log_is_replayed(ksi: RunningDaemon) -> None:
    cursors = []
    for key in ("a", "b", "c", "d"):
        await ksi.call_raw("state:set", {"key": key, "value": 1})
        cursors.append((await ksi.call_raw("system:info"))["log"]["cursor"])
    data = {"into": "handler", "name": "probe.look"}
    *_, last = await replay(ksi, {**data, "start": {"cursor": cursors[0]}, "end": {"cursor": cursors[2]}})
    assert last["applied"] == 2
    *_, last = await replay(ksi, {**data, "patterns": ["no:*"]})
    assert last["applied"] == 0
    *_, last = await replay(ksi, {**data, "start": {"time": "2100-01-01T00:00:00Z"}})
    assert (last["applied"], last["done"]) == (0, True)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"into": "handler"}, "INVALID_ARGUMENT"),
        ({"into": "handler", "name": "none.none"}, "NOT_FOUND"),
        ({"into": "handler", "name": "probe.keep"}, "FAILED_PRECONDITION"),
        ({"into": "projection", "name": "none"}, "NOT_FOUND"),
        ({"into": "sandbox", "patterns": ["a:b"]}, "INVALID_ARGUMENT"),
        ({"into": "handler", "name": "probe.look", "start": {"cursor": "0-1"}}, "INVALID_ARGUMENT"),
    ],
)
async def test_what_is_asked_wrongly_is_refused(ksi: RunningDaemon, data: Any, code: str) -> None:
    (frame,) = await replay(ksi, data)
    assert frame["error"]["code"] == code, frame


async def test_what_a_plugin_prints_is_none_of_what_a_sandbox_says(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin("print('hello')", "loud")]) as ksi:
        *_, last = await replay(ksi, {})
        assert last["done"]


async def test_a_plugin_that_prints_much_holds_no_sandbox_up(write_plugin: WritePlugin) -> None:
    source = "import sys\nif 'ksi_daemon.replay' in sys.orig_argv:\n    print('x' * 6_000_000)"
    async with running_daemon(plugins=[write_plugin(source, "loud")]) as ksi, asyncio.timeout(STARTING_S):
        *_, last = await replay(ksi, {})
        assert last["done"]


@pytest.mark.parametrize("reference", ["{", '{"path":7}', '{"path":"blobs/../../x","length":1,"sha256":"x"}'])
async def test_a_damaged_reference_is_counted_and_keeps_no_sandbox_from_being_made(reference: str) -> None:
    async with running_daemon(settings={"strict": False}) as ksi:
        await ksi.call_raw("state:set", {"key": "k", "value": "x" * 100_000})
        change = "UPDATE log SET reference = ? WHERE reference IS NOT NULL"
        await ksi.daemon.database.write_apart(lambda tx: tx.execute(change, (reference,)).rowcount)
        *_, last = await replay(ksi, {})
        assert (last["done"], last["missing"]) == (True, 1)


async def test_a_plugin_that_is_switched_off_is_so_in_a_sandbox() -> None:
    async with running_daemon(settings={"plugins": {"state": {"enabled": False}}}) as ksi:
        *_, last = await replay(ksi, {})
        assert [table["plugin"] for table in last["tables"] if table["plugin"] == "state"] == []


async def test_a_sandbox_is_not_started_while_retention_is_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The snapshot that it is told of may be gone in the next moment."""
    async with running_daemon() as ksi:
        sandboxes = ksi.daemon.sandboxes
        began: list[bool] = []
        snapshot = sandboxes.snapshot

        async def noted() -> Any:
            began.append(sandboxes.turn.locked())
            return await snapshot()

        monkeypatch.setattr(sandboxes, "snapshot", noted)
        await replay(ksi, {})
        assert began == [True]
