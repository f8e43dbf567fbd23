"""Handlers that do not wait, over the socket: what holds for others holds for them, task or no task."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.plugin import DeadlineExceeded, NotFound, StoredEvent
from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.support.databases import jobs_of_requests, rows

from .conftest import LogFile, WritePlugin

DESK = """
    import threading
    from collections.abc import Awaitable

    from ksi_daemon.plugin import (
        Bus, Database, EventEnvelope, Message, NotFound, Notification, Rendered, Request, Transaction, Unit,
        current_envelope, handler,
    )

    gate = threading.Event()
    entered = threading.Event()

    class Kept(Message):
        n: int
        about: str = ""

    class Told(Notification, event="desk:told"):
        '''Something was kept.'''
        n: int

    class Keep(Request[Kept], event="desk:keep"):
        '''Keep a number.'''
        n: int

    class Hold(Request[Kept], event="desk:hold"):
        '''Keep a number once the gate is open.'''

    class Open(Request[Kept], event="desk:open", safe=True):
        '''Open the gate.'''

    class Choose(Request[Kept], event="desk:choose"):
        '''Answer in one of the ways.'''
        way: str

    class Write(Request[Kept], event="desk:write"):
        '''Keep a number, by a task.'''
        n: int

    class Relay(Request[Kept], event="desk:relay", safe=True):
        '''Ask the desk from within.'''
        n: int

    @handler
    def keep(request: Keep, tx: Transaction) -> Kept:
        tx.tell(Told(n=request.n))
        if request.n == 404:
            raise NotFound("there is no 404")
        if request.n == 500:
            raise ValueError("a bug")
        if request.n == 600:
            return request
        if request.n == 700:
            raise SystemExit
        return Kept(n=request.n, about=current_envelope().correlation_id)

    @handler
    def hold(request: Hold, tx: Transaction) -> Kept:
        tx.tell(Told(n=0))
        entered.set()
        gate.wait(30)
        return Kept(n=0)

    @handler
    def open_(request: Open) -> Kept | Awaitable[Kept]:
        entered.wait(30)
        gate.set()
        return Kept(n=0)

    @handler
    def choose(
        request: Choose, envelope: EventEnvelope
    ) -> Kept | Rendered[Kept] | Unit[Kept] | Awaitable[Kept]:
        match request.way:
            case "now":
                return Kept(n=1, about=current_envelope().correlation_id)
            case "rendered":
                return Rendered(Kept, b'{"n":2}')
            case "unit":
                return lambda tx: Kept(n=len(tx.tell(Told(n=3)).event_id) and 3)
            case "later":
                return later(envelope)
            case "bug":
                raise ValueError("a bug")
            case "other":
                return Told(n=1)
            case _:
                raise NotFound("no such way")

    async def later(envelope):
        return Kept(n=4, about=envelope.correlation_id)

    @handler
    async def write(request: Write, database: Database) -> Kept:
        await database.write(lambda tx: tx.tell(Told(n=request.n)))
        return Kept(n=request.n)

    @handler
    async def relay(request: Relay, bus: Bus) -> Kept:
        return await bus.call(Keep(n=request.n))
"""

LAYER = """
    from ksi_daemon.plugin import hookimpl

    seen = []

    async def layer(envelope, send, call_next):
        seen.append(envelope.event)
        await call_next(envelope, send)

    @hookimpl
    def ksi_middleware():
        return [layer]
"""

OBSERVER = """
    from pathlib import Path

    from ksi_daemon.plugin import hookimpl

    @hookimpl
    def ksi_event_handled(envelope, code):
        with Path(__file__).with_suffix(".txt").open("a") as file:
            file.write(f"{envelope.event} {code}\\n")
"""


@asynccontextmanager
async def desk(write_plugin: WritePlugin, *others: Path, **settings: Any) -> AsyncIterator[RunningDaemon]:
    plugins = [write_plugin(DESK, "desk"), *others]
    async with running_daemon(plugins=plugins, settings={"strict": False, **settings}) as ksi:
        yield ksi


@pytest.fixture(params=["direct", "chain"])
async def ksi(write_plugin: WritePlugin, request: pytest.FixtureRequest) -> AsyncIterator[RunningDaemon]:
    """The desk, reached without a task, and through the chain that the layer of a plugin asks for."""
    others = [write_plugin(LAYER, "layer")] if request.param == "chain" else []
    async with desk(write_plugin, *others) as running:
        route = running.daemon.catalog.routes["desk:keep"]
        assert (route.begin is None) is (request.param == "chain")
        yield running


def told(ksi: RunningDaemon) -> StoredEvent:
    (event,) = ksi.events("desk:told")
    return event


async def answer(ksi: RunningDaemon, event: str, data: Any = None, **frame: Any) -> dict[str, Any]:
    async with ksi.connect() as wire:
        return await wire.call(event, data, **frame)


async def entered(ksi: RunningDaemon) -> None:
    """Return when the unit of ``desk:hold`` runs."""
    module: Any = ksi.daemon.catalog.plugins["desk"].module
    assert await asyncio.to_thread(module.entered.wait, 30)


async def test_a_unit_is_answered_after_its_commit_which_its_row_is_part_of(ksi: RunningDaemon) -> None:
    frame = await answer(ksi, "desk:keep", {"n": 1}, correlation_id="c1", causation_id="x1")
    assert (frame["type"], frame["data"]) == ("reply", {"n": 1, "about": "c1"})
    stored = rows(
        ksi.paths.database, "SELECT kind, name, correlation_id, causation_id, hop, event_id FROM log"
    )
    (asked,) = [row for row in stored if row[1] == "desk:keep"]
    (event,) = [row for row in stored if row[1] == "desk:told"]
    assert asked[:5] == (1, "desk:keep", "c1", "x1", 0)
    assert event[:5] == (0, "desk:told", "c1", asked[5], 1)


@pytest.mark.parametrize(
    ("n", "code"), [(404, "NOT_FOUND"), (500, "INTERNAL"), (600, "INTERNAL"), (700, "INTERNAL")]
)
async def test_a_unit_that_raises_or_gives_something_else_leaves_nothing(
    ksi: RunningDaemon, n: int, code: str
) -> None:
    async with ksi.connect() as wire:
        wire.send({"event": "desk:keep", "data": {"n": 1}, "id": "a"})
        wire.send({"event": "desk:keep", "data": {"n": n}, "id": "b"})
        wire.send({"event": "desk:keep", "data": {"n": 2}, "id": "c"})
        frames = {frame["id"]: frame for frame in [await wire.receive() for _ in range(3)]}
    assert [frames[name]["type"] for name in "abc"] == ["reply", "error", "reply"]
    assert frames["b"]["error"]["code"] == code
    assert [data["n"] for data in ksi.emitted("desk:told")] == [1, 2]
    names = rows(ksi.paths.database, "SELECT name FROM log WHERE name LIKE 'desk:%' ORDER BY seq")
    assert [name for (name,) in names] == ["desk:keep", "desk:told"] * 2


async def test_it_does_not_overtake_a_request_that_was_sent_before(ksi: RunningDaemon) -> None:
    """Requests of a connection begin in the order sent, also where some have tasks and some have not."""
    kinds = ["keep", "write", "keep", "keep", "write", "write", "keep"] * 5
    async with ksi.connect() as wire:
        lines = [
            b'{"event":"desk:%b","data":{"n":%d}}\n' % (kind.encode(), n) for n, kind in enumerate(kinds)
        ]
        wire.send(b"".join(lines))
        for _ in kinds:
            assert (await wire.receive())["type"] == "reply"
    assert [data["n"] for data in ksi.emitted("desk:told")] == list(range(len(kinds)))


@pytest.mark.parametrize("event", ["desk:keep", "event:publish"])
async def test_under_an_idempotency_key_it_is_done_once(
    ksi: RunningDaemon, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of_requests(ksi.daemon.database, monkeypatch)
    data = {"n": 1} if event == "desk:keep" else {"event": "demo:told", "data": {"n": 1}}
    frames = [await answer(ksi, event, data, idempotency_key="k") for _ in range(2)]
    assert [frame["type"] for frame in frames] == ["reply", "reply"]
    assert frames[0]["data"] == frames[1]["data"]
    assert len(ksi.emitted("desk:told") + ksi.emitted("demo:told")) == 1
    assert len(jobs) == 1


async def test_data_that_does_not_fit_is_refused_with_its_field(ksi: RunningDaemon) -> None:
    frame = await answer(ksi, "desk:keep", {"m": 1})
    assert (frame["error"]["code"], frame["error"]["details"]["field"]) == ("INVALID_ARGUMENT", "m")


@pytest.mark.parametrize(
    ("way", "n"),
    [("now", 1), ("rendered", 2), ("unit", 3), ("later", 4)],
    ids=["now", "json", "unit", "later"],
)
async def test_every_way_to_answer_is_answered_and_leaves_its_row(
    ksi: RunningDaemon, way: str, n: int
) -> None:
    frame = await answer(ksi, "desk:choose", {"way": way}, correlation_id="c1")
    assert frame["data"]["n"] == n
    assert frame["data"].get("about", "") in {"", "c1"}
    assert frame["correlation_id"] == "c1"
    (count,) = rows(ksi.paths.database, "SELECT count(*) FROM log WHERE name = 'desk:choose'")[0]
    assert count == 1


@pytest.mark.parametrize(("way", "code"), [("none", "NOT_FOUND"), ("bug", "INTERNAL"), ("other", "INTERNAL")])
async def test_what_is_raised_at_once_is_an_error_and_leaves_no_row(
    ksi: RunningDaemon, way: str, code: str
) -> None:
    frame = await answer(ksi, "desk:choose", {"way": way})
    assert frame["error"]["code"] == code
    assert rows(ksi.paths.database, "SELECT count(*) FROM log WHERE name = 'desk:choose'") == [(0,)]


async def test_a_bug_is_counted_against_its_plugin_and_logged_once(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    with log_file.written():
        async with desk(write_plugin) as ksi:
            await answer(ksi, "desk:keep", {"n": 500}, correlation_id="c1")
            assert ksi.daemon.catalog.plugins["desk"].failures == 1
    (line,) = log_file.lines("handler.crashed")
    assert (line["handled"], line["plugin"]) == ("desk:keep", "desk")


async def test_in_strict_mode_a_bug_ends_the_daemon(write_plugin: WritePlugin) -> None:
    async def provoke() -> None:
        async with desk(write_plugin, strict=True) as ksi:
            frame = await answer(ksi, "desk:keep", {"n": 500})
            assert frame["error"]["message"] == "desk:keep was not answered"

    with pytest.raises(ValueError, match="a bug"):
        await provoke()


async def test_a_request_that_is_cancelled_is_answered_though_its_unit_is_done(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        wire.send({"event": "desk:hold", "id": "h"})
        await entered(ksi)
        wire.send({"type": "cancel", "id": "h"})
        frame = await wire.receive()
        assert (frame["id"], frame["error"]["code"]) == ("h", "CANCELLED")
        assert (await wire.call("desk:open"))["type"] == "reply"
        assert (await wire.call("desk:keep", {"n": 1}))["type"] == "reply"
    assert [data["n"] for data in ksi.emitted("desk:told")] == [0, 1]
    figures = ksi.daemon.observation.statistics["desk:hold"]
    assert (figures.handled, figures.failed) == (1, 1)


async def test_a_request_whose_time_is_over_is_answered_though_its_unit_goes_on(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        frame = await wire.call("desk:hold", timeout_s=0.01)
        assert frame["error"]["code"] == DeadlineExceeded.code
        assert (await wire.call("desk:open"))["type"] == "reply"
        assert (await wire.call("desk:keep", {"n": 1}))["type"] == "reply"
    assert [data["n"] for data in ksi.emitted("desk:told")] == [0, 1]


async def test_a_unit_of_a_client_that_has_gone_is_done(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        wire.send({"event": "desk:hold", "id": "h"})
        await entered(ksi)
        wire.close()
        async with ksi.connect() as other:
            assert (await other.call("desk:open"))["type"] == "reply"
            assert (await other.call("desk:keep", {"n": 1}))["type"] == "reply"
    assert [data["n"] for data in ksi.emitted("desk:told")] == [0, 1]


async def test_within_the_daemon_it_is_called_as_any_other(ksi: RunningDaemon) -> None:
    frame = await answer(ksi, "desk:relay", {"n": 5}, correlation_id="c1")
    assert frame["data"] == {"n": 5, "about": "c1"}
    assert (told(ksi).correlation_id, told(ksi).hop) == ("c1", 2)
    frame = await answer(ksi, "desk:relay", {"n": 404})
    assert frame["error"]["code"] == NotFound.code


async def test_observers_hear_of_it(write_plugin: WritePlugin) -> None:
    observer = write_plugin(OBSERVER, "observer")
    async with desk(write_plugin, observer) as ksi:
        assert ksi.daemon.catalog.routes["desk:keep"].begin is not None
        async with ksi.connect() as wire:
            for n in (1, 404, 500):
                await wire.call("desk:keep", {"n": n})
            await wire.call("desk:choose", {"way": "now"})
        heard = (ksi.paths.plugins / "observer.txt").read_text().splitlines()
    assert [line for line in heard if line.startswith("desk:")] == [
        "desk:keep OK", "desk:keep NOT_FOUND", "desk:keep INTERNAL", "desk:choose OK",
    ]  # fmt: skip


async def test_what_the_owner_only_may_do_is_refused_to_all(ksi: RunningDaemon) -> None:
    """An event that is not exposed is not there, whichever way its request takes."""
    route = ksi.daemon.catalog.routes["desk:keep"]
    object.__setattr__(route.spec, "expose", False)
    frame = await answer(ksi, "desk:keep", {"n": 1})
    assert frame["error"]["code"] == "NOT_FOUND"
