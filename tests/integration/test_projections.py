"""Projections follow the log, say how far they are, and are built again beside what readers see."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_common.events.projection import Rebuilt
from ksi_daemon.projections.follower import Projection
from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.integration.conftest import WritePlugin
from tests.support.waiting import eventually

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "plugins"
STATE_VALUES = EXAMPLES / "state_values.py"

SALES = """
from ksi_daemon.plugin import Bus, Delivered, Message, Notification, Projections, Request, handler, projection

class Sums(Message):
    total: int = 0
    events: list[str] = []

class Sum(Request[Sums], event="shop:sum"):
    '''Give the sum.'''
    shop: str

@projection(version=VERSION, name="sums", patterns=["sale:*"], key=lambda event: str(event.data["shop"]))
def sums(state: Sums, event: Delivered) -> Sums:
    return Sums(total=state.total + FACTOR * int(event.data["n"]), events=[*state.events, event.event_id])

@handler
async def sum_(request: Sum, projections: Projections) -> Sums:
    return await projections.document(sums, request.shop) or Sums()
"""


def sales(version: int = 1, factor: int = 1) -> str:
    return SALES.replace("VERSION", str(version)).replace("FACTOR", str(factor))


async def sell(ksi: RunningDaemon, shop: str, n: Any) -> str:
    told = await ksi.call_raw("event:publish", {"event": "sale:made", "data": {"shop": shop, "n": n}})
    return str(told["cursor"])


async def get(ksi: RunningDaemon, name: str, key: Any = None, cursor: str | None = None) -> dict[str, Any]:
    return await ksi.call_raw("projection:get", {"name": name, "key": key, "cursor": cursor})


async def head(ksi: RunningDaemon) -> str:
    return str((await ksi.call_raw("system:info"))["log"]["cursor"])


async def rebuilt(ksi: RunningDaemon, name: str) -> None:
    """Ask for a rebuild, and wait until it is told that readers see it."""
    async with ksi.connect() as wire:
        wire.send({"event": "event:subscribe", "data": {"patterns": ["projection:rebuilt"]}, "id": "s"})
        while (await wire.receive())["type"] != "caught_up":
            pass
        await ksi.call_raw("projection:rebuild", {"name": name})
        frame = await wire.receive()
        assert Rebuilt(**frame["data"]["data"]).name == name


@pytest.fixture
async def ksi() -> AsyncIterator[RunningDaemon]:
    async with running_daemon(plugins=[STATE_VALUES, EXAMPLES / "popularity.py"]) as running:
        yield running


async def test_a_table_is_what_the_events_made(ksi: RunningDaemon) -> None:
    for key, value in (("a", 1), ("b", [2]), ("a", None)):
        await ksi.call_raw("state:set", {"key": key, "value": value})
    await ksi.call_raw("state:delete", {"key": "b"})
    await ksi.call_raw("state:set", {"namespace": "other", "key": "a", "value": "x"})
    await ksi.call_raw("state:set", {"namespace": "gone", "key": "a", "value": "x"})
    await ksi.call_raw("state:clear", {"namespace": "gone"})
    found = await get(ksi, "state_values", ["global", "a"], await head(ksi))
    assert (found["found"], found["value"]) == (True, {"namespace": "global", "key": "a", "value": "null"})
    page = await ksi.call_raw("projection:query", {"name": "state_values"})
    assert [entry["key"] for entry in page["entries"]] == [["global", "a"], ["other", "a"]]
    assert page["next"] is None


async def test_a_projection_has_a_document_for_each_key(ksi: RunningDaemon) -> None:
    for key in ("a", "b", "a"):
        await ksi.call_raw("state:set", {"key": key, "value": 1})
    assert (await get(ksi, "popularity", "a", await head(ksi)))["value"] == {"changes": 2, "last": "global"}
    assert (await get(ksi, "popularity", "b"))["value"] == {"changes": 1, "last": "global"}
    assert (await get(ksi, "popularity", "c"))["found"] is False


async def test_pages_follow_each_other(ksi: RunningDaemon) -> None:
    for number in range(5):
        await ksi.call_raw("state:set", {"key": f"k{number}", "value": number})
    await get(ksi, "state_values", cursor=await head(ksi))
    for name in ("state_values", "popularity"):
        keys: list[Any] = []
        after = None
        while True:
            page = await ksi.call_raw("projection:query", {"name": name, "limit": 2, "after": after})
            keys += [entry["key"] for entry in page["entries"]]
            after = page["next"]
            if after is None:
                break
        expected = [f"k{n}" for n in range(5)]
        assert keys == (expected if name == "popularity" else [["global", key] for key in expected])
    found = await ksi.call_raw("projection:query", {"name": "state_values", "where": {"value": "3"}})
    assert [entry["key"] for entry in found["entries"]] == [["global", "k3"]]


async def test_what_is_asked_wrongly_is_refused(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for event, data, code in (
            ("projection:get", {"name": "none"}, "NOT_FOUND"),
            ("projection:get", {"name": "state_values", "key": "a"}, "INVALID_ARGUMENT"),
            ("projection:query", {"name": "state_values", "where": {"x; --": 1}}, "INVALID_ARGUMENT"),
            ("projection:query", {"name": "popularity", "where": {"key": 1}}, "INVALID_ARGUMENT"),
            ("projection:query", {"name": "state_values", "after": "a"}, "INVALID_ARGUMENT"),
            ("projection:get", {"name": "state_values", "cursor": "0-1"}, "INVALID_ARGUMENT"),
        ):
            assert (await wire.call(event, data))["error"]["code"] == code, (event, data)


async def test_what_it_says_of_itself(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:set", {"key": "a", "value": 1})
    await get(ksi, "state_values", cursor=await head(ksi))
    listed = await ksi.call_raw("projection:list")
    assert [each["name"] for each in listed["projections"]] == ["popularity", "state_values"]
    one = listed["projections"][1]
    assert one | {"position": 0} == {
        "name": "state_values",
        "plugin": "state_values",
        "kind": "table",
        "version": 1,
        "patterns": ["state:changed", "state:removed", "state:cleared"],
        "status": "following",
        "position": 0,
        "lag_events": 0,
        "lag_s": 0.0,
        "missing": 0,
        "rebuilt_to": None,
        "error": None,
    }


async def test_it_goes_on_after_a_restart_and_counts_no_event_twice(
    tmp_path: Path, write_plugin: WritePlugin
) -> None:
    plugin = write_plugin(sales())
    async with running_daemon(home=tmp_path / "base" / "var", plugins=[plugin]) as ksi:
        await sell(ksi, "north", 1)
    async with running_daemon(home=tmp_path / "base" / "var") as ksi:
        cursor = await sell(ksi, "north", 2)
        found = await get(ksi, "sums", "north", cursor)
        assert (found["value"]["total"], len(found["value"]["events"])) == (3, 2)
        assert await ksi.call_raw("shop:sum", {"shop": "north"}) == found["value"]


async def test_another_version_is_built_again_and_swapped_in(
    tmp_path: Path, write_plugin: WritePlugin
) -> None:
    home = tmp_path / "base" / "var"
    async with running_daemon(home=home, plugins=[write_plugin(sales())]) as ksi:
        cursor = await sell(ksi, "north", 2)
        assert (await get(ksi, "sums", "north", cursor))["value"]["total"] == 2
    async with running_daemon(home=home, plugins=[write_plugin(sales(version=2, factor=10))]) as ksi:
        cursor = await sell(ksi, "north", 3)
        found = await get(ksi, "sums", "north", cursor)
        assert (found["version"], found["value"]["total"]) == (2, 50)
        rows = await ksi.daemon.database.read("SELECT role, version FROM projections")
        assert ("live", 2) in {tuple(row) for row in rows}


async def test_a_wish_builds_it_again(ksi: RunningDaemon) -> None:
    for number in range(10):
        await ksi.call_raw("state:set", {"key": f"k{number}", "value": number})
    await get(ksi, "state_values", cursor=await head(ksi))
    await ksi.daemon.database.write(lambda tx: tx.execute("DELETE FROM projection_state_values_1").rowcount)
    assert (await ksi.call_raw("projection:query", {"name": "state_values"}))["count"] == 0
    await rebuilt(ksi, "state_values")
    assert (await ksi.call_raw("projection:query", {"name": "state_values"}))["count"] == 10
    await rebuilt(ksi, "popularity")
    assert (await ksi.call_raw("projection:query", {"name": "popularity"}))["count"] == 10


async def test_an_event_that_cannot_be_applied_stops_it_before_that_event(
    tmp_path: Path, write_plugin: WritePlugin
) -> None:
    plugin = write_plugin(sales())
    async with running_daemon(home=tmp_path / "base" / "var", plugins=[plugin]) as ksi, ksi.connect() as wire:
        first = await sell(ksi, "north", 1)
        await get(ksi, "sums", "north", first)
        wire.send({"event": "event:subscribe", "data": {"patterns": ["projection:stopped"]}, "id": "s"})
        while (await wire.receive())["type"] != "caught_up":
            pass
        await sell(ksi, "north", "many")
        stopped = (await wire.receive())["data"]["data"]
        assert (stopped["name"], "invalid literal" in stopped["error"]) == ("sums", True)
        last = await sell(ksi, "north", 4)
        answer = await wire.call("projection:get", {"name": "sums", "key": "north", "cursor": last})
        assert answer["error"]["details"]["reason"] == "stopped"
        found = await get(ksi, "sums", "north")
        assert (found["status"], found["value"]["total"]) == ("stopped", 1)
        assert found["lag_events"] > 0
        assert (await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"}))["failures"] == 1
        health = (await ksi.call_raw("system:health"))["checks"]["plugins"]
        assert (health["status"], health["detail"]["stopped_projections"]) == ("degraded", ["sums"])
    mended = sales().replace("int(event", "len(str(event").replace('["n"]), ev', '["n"])), ev')
    async with running_daemon(home=tmp_path / "base" / "var", plugins=[write_plugin(mended)]) as ksi:
        assert (await get(ksi, "sums", "north", await head(ksi)))["value"]["total"] == 1 + 4 + 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "@projection()\ndef p(state: S, event: int) -> S: return state",
            "neither Delivered nor a told event",
        ),
        ("@projection()\ndef p(state: S, event: Delivered) -> S: return state", "patterns"),
        ("@projection(patterns=['a:b c'])\ndef p(state: S, event: Delivered) -> S: return state", "patterns"),
        ("@projection(patterns=['a:b'])\ndef p(state: N, event: Delivered) -> N: return state", "no default"),
        (
            "@projection(patterns=['a:b'])\nasync def p(s: S, e: Delivered) -> S: return s",
            "p must not be async",
        ),
        (
            "@table_projection('sku TEXT', patterns=['a:b'])\ndef p(rows: Rows, e: Delivered) -> None: ...",
            "its table has no primary key",
        ),
        (
            "@table_projection('sku TEXT,', patterns=['a:b'])\ndef p(rows: Rows, e: Delivered) -> None: ...",
            "its columns make no table: near",
        ),
        (
            "@projection(patterns=['a:b'])\ndef p(state: int, event: Delivered) -> int: return state",
            "a Message",
        ),
        ("@projection(patterns=['a:b'])\ndef p(state: S) -> S: return state", "a state and an event"),
        ("@projection(patterns=['a:b'], name='A-b')\ndef p(s: S, e: Delivered) -> S: return s", "names no"),
        (
            "@projection(patterns=['a:b'], name='p')\ndef o(s: S, e: Delivered) -> S: return s\n"
            "@projection(patterns=['a:b'])\ndef p(s: S, e: Delivered) -> S: return s",
            "is declared by plugin probe already",
        ),
    ],
)
async def test_what_is_declared_wrongly_refuses_the_plugin(
    write_plugin: WritePlugin, source: str, reason: str
) -> None:
    start = (
        "from ksi_daemon.plugin import Delivered, Message, Rows, projection, table_projection\n"
        "class S(Message): n: int = 0\nclass N(Message): n: int\n"
    )
    async with running_daemon(plugins=[write_plugin(start + source)], settings={"strict": False}) as ksi:
        found = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
        assert (found["status"], reason in found["error"]) == ("refused", True), found["error"]
        assert re.search(r" \(probe\.py:\d+\)$|already$", found["error"])
        assert (await ksi.call_raw("projection:list"))["count"] == 0


ODD = """
from ksi_daemon.plugin import Delivered, Message, projection

class Cart(Message):
    items: list[int] = []
    seen: int = 0

    def __len__(self) -> int:
        return len(self.items)

@projection(patterns=["cart:*"])
def cart(state: Cart, event: Delivered) -> Cart:
    n = int(event.data["n"])
    return Cart(items=[n] if n else [], seen=state.seen + 1)

@projection(patterns=["cart:*"], key=lambda event: event.data["n"])
def numbered(state: Cart, event: Delivered) -> Cart:
    return Cart(seen=state.seen + 1)
"""


async def test_a_state_that_is_false_and_a_key_that_is_no_text(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(ODD, "odd")]) as ksi:
        told = [{"event": "cart:changed", "data": {"n": n}} for n in (1, 0, 0)]
        await ksi.call_raw("event:append", {"stream": "cart/1", "events": told})
        cursor = (await ksi.call_raw("system:info"))["log"]["cursor"]
        got = {"name": "cart", "key": "", "cursor": cursor}
        assert (await ksi.call_raw("projection:get", got))["value"] == {"items": [], "seen": 3}
        async with ksi.connect() as wire:
            stopped = await wire.call("projection:get", {**got, "name": "numbered"})
        assert "key gave int, not str" in stopped["error"]["message"]


@pytest.mark.parametrize("value", [[1], {"a": 1}])
async def test_what_no_column_can_be_is_refused(value: Any) -> None:
    async with running_daemon(plugins=[STATE_VALUES]) as ksi, ksi.connect() as wire:
        answer = await wire.call("projection:query", {"name": "state_values", "where": {"key": value}})
        assert answer["error"]["code"] == "INVALID_ARGUMENT"


NOTES = """
from ksi_daemon.plugin import Delivered, Message, projection

class Note(Message):
    text: str = ""

@projection(version=1, name="notes", patterns=["note:*"], key=lambda event: str(event.data["key"]))
def notes(state: Note, event: Delivered) -> Note:
    return Note(text=event.data["text"])
"""


async def test_a_page_ends_by_its_bytes_in_any_script(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(NOTES)]) as ksi:
        for key in "abcde":
            note = {"event": "note:made", "data": {"key": key, "text": "語" * 170_000}}
            await ksi.call_raw("event:publish", note)
        await get(ksi, "notes", cursor=await head(ksi), key="e")
        page = await ksi.call_raw("projection:query", {"name": "notes"})
        assert ([entry["key"] for entry in page["entries"]], page["next"]) == (["a", "b"], "b")


async def test_one_that_was_given_up_says_so_where_it_is_to_be_built_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def begin(self: Projection) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Projection, "_begin", begin)
    async with running_daemon(plugins=[EXAMPLES / "popularity.py"]) as ksi:
        follower = ksi.daemon.projections.named("popularity")

        async def is_stopped() -> bool:
            return follower.status == "stopped"

        await eventually(is_stopped)
        error = await ksi.call_error("projection:rebuild", {"name": "popularity"})
    assert (error.code, error.details["reason"]) == ("FAILED_PRECONDITION", "given_up")


HEAVY = """
import time
from ksi_daemon.plugin import Delivered, Rows, table_projection

runs = []
STEPS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT max(i) FROM n"

@table_projection("id TEXT PRIMARY KEY, n INTEGER", patterns=["sale:*"])
def heavy(rows: Rows, event: Delivered) -> None:
    rows.put(id=event.event_id, n=event.data["n"])
    if event.data["shop"] == "slow":
        runs.append(event.event_id)
        if len(runs) <= event.data["n"]:
            time.sleep(0.26)
        rows.execute(STEPS)
"""


@pytest.fixture
def short_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt units as a daemon does that is no test's."""
    monkeypatch.setattr("ksi_daemon.database.writer.UNIT_LIMIT_S", 0.25)


@pytest.mark.usefixtures("short_units")
async def test_an_event_that_was_interrupted_is_tried_again_alone(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(HEAVY)]) as ksi:
        await sell(ksi, "quick", 0)
        await sell(ksi, "slow", 4)
        last = await sell(ksi, "quick", 0)
        await get(ksi, "heavy", ["any"], last)
        page = await ksi.call_raw("projection:query", {"name": "heavy"})
        assert sorted(entry["value"]["n"] for entry in page["entries"]) == [0, 0, 4]


async def test_more_documents_than_one_unit_may_write_are_written_in_several(
    write_plugin: WritePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = sales().replace("event.event_id]", "event.event_id * 400]")
    appends = [
        {
            "stream": f"shop/{page}",
            "events": [{"event": "sale:made", "data": {"shop": f"s{page}-{n}", "n": n}} for n in range(100)],
        }
        for page in range(20)
    ]
    async with running_daemon(plugins=[write_plugin(large)]) as ksi:
        for append in appends:
            await ksi.call_raw("event:append", append)
        await get(ksi, "sums", "s0-0", await head(ksi))
        monkeypatch.setattr("ksi_daemon.database.writer.UNIT_LIMIT_S", 0.002)
        await rebuilt(ksi, "sums")
        assert (await get(ksi, "sums", "s19-99"))["value"]["total"] == 99


@pytest.mark.usefixtures("short_units")
async def test_an_event_that_is_always_interrupted_stops_its_projection(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(HEAVY)]) as ksi:
        await sell(ksi, "quick", 0)
        last = await sell(ksi, "slow", 1000)
        error = await ksi.call_error("projection:get", {"name": "heavy", "key": ["any"], "cursor": last})
        assert (error.details["reason"], "UnitInterrupted" in error.message) == ("stopped", True)
        page = await ksi.call_raw("projection:query", {"name": "heavy"})
        assert [entry["value"]["n"] for entry in page["entries"]] == [0]
