"""A request with an idempotency key takes effect once, and whoever asks again gets the same answer."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from structlog.testing import capture_logs

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import InvalidArgument, ResourceExhausted
from ksi_daemon.keys.forgetting import SLICE, KeyForgetting
from ksi_daemon.middleware.idempotency import Idempotency
from ksi_daemon.outcomes import Endpoint, Outcome, Replied, Send
from ksi_daemon.testing import FakeClock, RunningDaemon, Wire, running_daemon
from tests.support import keyed as source
from tests.support.databases import jobs_of_requests, writable
from tests.support.waiting import eventually

PLUGIN = Path(source.__file__)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def daemon(clock: FakeClock) -> AsyncIterator[RunningDaemon]:
    async with running_daemon(plugins=[PLUGIN], clock=clock, settings={"strict": False}) as running:
        yield running


@pytest.fixture
def keyed(daemon: RunningDaemon) -> ModuleType:
    """Give the plugin as the daemon has loaded it."""
    return sys.modules["ksi_file_keyed"]


@pytest.fixture
async def wire(daemon: RunningDaemon) -> AsyncIterator[Wire]:
    async with daemon.connect() as wire:
        yield wire


async def do(wire: Wire, ident: str = "a", *, key: str = "k1", again: bool = False, **data: Any) -> Any:
    """Ask under a key; give the reply's data, or the error."""
    event = "keyed:do_again" if again else "keyed:do"
    frame = await wire.call(event, {"ident": ident, **data}, idempotency_key=key)
    return frame["data"] if frame["type"] == "reply" else frame["error"]


def effects(daemon: RunningDaemon) -> list[str]:
    return [told["ident"] for told in daemon.emitted("keyed:counted")]


@contextmanager
def holding(keyed: ModuleType, place: str) -> Iterator[asyncio.Event]:
    """Hold handlers at a place, at the latest until the block ends."""
    event = keyed.held[place] = asyncio.Event()
    try:
        yield event
    finally:
        event.set()
        del keyed.held[place]


@pytest.mark.parametrize("way", ["later", "unit", "nothing"])
async def test_a_retry_gets_the_reply_of_the_first_try(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire, way: str
) -> None:
    first = await do(wire, way=way)
    await do(wire, key="k2", way=way)
    assert await do(wire, way=way) == first
    assert keyed.calls == ["a", "a"]
    assert effects(daemon) == ([] if way == "nothing" else ["a", "a"])


async def test_the_reply_is_on_disk_with_the_effect_where_the_unit_gives_it(
    daemon: RunningDaemon, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of_requests(daemon.daemon.database, monkeypatch)
    await do(wire, way="unit")
    publish = {"event": "demo:told", "data": {"n": 1}}
    for event, data in (("event:publish", publish), ("state:set", {"key": "a", "value": 1})):
        await wire.call(event, data, idempotency_key="k")
    assert len(jobs) == 3


@pytest.mark.parametrize("way", ["refuse", "busy"])
async def test_a_refusal_that_wrote_nothing_leaves_no_key(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire, way: str
) -> None:
    first, second = [await do(wire, way=way) for _ in range(2)]
    assert first == second
    assert len(keyed.calls) == 2
    assert await do(wire, "b") == {"number": 1}


async def test_a_refusal_after_the_effect_is_the_answer_for_good(keyed: ModuleType, wire: Wire) -> None:
    first, second = [await do(wire, way="refuse_after") for _ in range(2)]
    assert first == second
    assert (first["code"], first["message"]) == ("NOT_FOUND", "1 is no such thing")
    assert len(keyed.calls) == 1


async def test_a_refusal_whose_words_are_no_unicode_is_kept_and_given_again(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire
) -> None:
    """As the name of a file may be: it was a bug in its place, and the key was at work for ever."""
    first = await do(wire, way="odd_after")
    assert (first["code"], first["message"]) == ("NOT_FOUND", "1 is no such file: \\udcff")
    assert await do(wire, way="odd_after") == first

    async def kept() -> bool:
        return not daemon.daemon.idempotency._running

    await eventually(kept)
    assert await do(wire, way="odd_after") == first
    assert keyed.calls == ["a"]


async def test_a_bug_after_the_effect_is_answered_alike_and_found_once(keyed: ModuleType, wire: Wire) -> None:
    first, second = [await do(wire, way="bug_after") for _ in range(2)]
    assert first["code"] == second["code"] == "INTERNAL"
    assert len(keyed.calls) == 1


async def test_a_passing_failure_after_the_effect_leaves_the_outcome_unknown(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire
) -> None:
    first, second = [await do(wire, way="busy_after") for _ in range(2)]
    assert first["code"] == "UNAVAILABLE"
    assert (second["code"], second["details"]["reason"]) == ("FAILED_PRECONDITION", "outcome_unknown")
    row = await wire.call("event:get", {"event_id": second["details"]["event_id"]})
    assert row["data"]["event"] == "keyed:do"
    assert effects(daemon) == ["a"]


async def test_what_is_idempotent_is_done_again_where_the_outcome_is_unknown(
    daemon: RunningDaemon, wire: Wire
) -> None:
    first, second = [await do(wire, way="busy_after", again=True) for _ in range(2)]
    assert first == second
    assert effects(daemon) == ["a", "a"]


async def test_another_body_under_a_key_is_refused(keyed: ModuleType, wire: Wire) -> None:
    await do(wire)
    error = await do(wire, "b")
    assert (error["code"], error["details"]["reason"]) == ("ALREADY_EXISTS", "other_body")
    assert keyed.calls == ["a"]


async def test_another_body_is_refused_while_the_first_runs(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire
) -> None:
    async with asyncio.TaskGroup() as tasks, daemon.connect() as other:
        with holding(keyed, "before"):
            first = tasks.create_task(do(wire))
            await keyed.reached.get()
            assert (await do(other, "b"))["details"]["reason"] == "other_body"
    assert first.result() == {"number": 1}


async def test_the_order_of_fields_makes_no_other_body(keyed: ModuleType, wire: Wire) -> None:
    for data in ({"ident": "a", "way": "unit"}, {"way": "unit", "ident": "a"}):
        frame = await wire.call("keyed:do", data, idempotency_key="k")
        assert frame["data"] == {"number": 1}
    assert len(keyed.calls) == 1


async def test_a_key_is_of_one_event(daemon: RunningDaemon, wire: Wire) -> None:
    assert await do(wire) == {"number": 1}
    assert await do(wire, again=True) == {"number": 2}


async def test_a_hundred_retries_at_once_are_one_execution(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire
) -> None:
    with holding(keyed, "before"):
        for number in range(100):
            data = {"ident": "a"}
            wire.send({"event": "keyed:do", "data": data, "id": number, "idempotency_key": "k"})
        await keyed.reached.get()
    frames = [await wire.receive() for _ in range(100)]
    assert {frame["id"] for frame in frames} == set(range(100))
    assert all(frame["data"] == {"number": 1} for frame in frames)
    assert keyed.calls == ["a"]
    assert effects(daemon) == ["a"]


async def test_who_lost_the_connection_finds_the_request_at_work_on_another(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire
) -> None:
    with holding(keyed, "after") as event:
        async with daemon.connect() as gone:
            gone.send({"event": "keyed:do", "data": {"ident": "a"}, "idempotency_key": "k1"})
            await keyed.reached.get()
        wire.send({"event": "keyed:do", "data": {"ident": "a"}, "id": "retry", "idempotency_key": "k1"})
        await wire.call("system:health")  # requests are dispatched in the order sent: the retry waits
        event.set()
    assert (await wire.receive())["data"] == {"number": 1}
    assert keyed.calls == ["a"]


async def ask_at_once(keyed: ModuleType, wire: Wire, way: str, times: int) -> None:
    """Ask for the same under one key; all but the first wait for that."""
    with holding(keyed, "before"):
        for number in range(times):
            data = {"ident": "a", "way": way}
            wire.send({"event": "keyed:do", "data": data, "id": number, "idempotency_key": "k"})
        await keyed.reached.get()


async def test_who_waits_gets_the_failure_of_the_one_that_runs(keyed: ModuleType, wire: Wire) -> None:
    await ask_at_once(keyed, wire, "busy", 3)
    assert [(await wire.receive())["error"]["code"] for _ in range(3)] == ["UNAVAILABLE"] * 3
    assert keyed.calls == ["a"]


async def test_who_waits_for_a_wrong_reply_is_told_what_is_wrong(keyed: ModuleType, wire: Wire) -> None:
    await ask_at_once(keyed, wire, "wrong", 2)
    other, own = sorted([(await wire.receive())["error"]["message"] for _ in range(2)])
    what = "the handler of keyed:do returned dict, not Done"
    assert other == f"keyed:do failed under this key: {what}"
    assert own.startswith(f"plugin keyed failed: {what} (keyed.py:")


@pytest.mark.parametrize("place", ["before", "after"])
async def test_a_cancelled_try_is_taken_over_by_one_that_waits(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire, place: str
) -> None:
    with holding(keyed, place):
        for number in range(2):
            data = {"ident": "a"}
            wire.send({"event": "keyed:do_again", "data": data, "id": number, "idempotency_key": "k"})
        await keyed.reached.get()
        wire.send({"type": "cancel", "id": 0})
        cancelled = await wire.receive()
    answered = await wire.receive()
    assert (cancelled["id"], cancelled["error"]["code"]) == (0, "CANCELLED")
    assert (answered["id"], answered["type"]) == (1, "reply")
    assert len(keyed.calls) == 2
    assert effects(daemon) == (["a"] if place == "before" else ["a", "a"])


async def test_a_try_cancelled_after_its_effect_is_not_done_twice(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire
) -> None:
    with holding(keyed, "after"):
        for number in range(2):
            data = {"ident": "a"}
            wire.send({"event": "keyed:do", "data": data, "id": number, "idempotency_key": "k"})
        await keyed.reached.get()
        wire.send({"type": "cancel", "id": 0})
        frames = {frame["id"]: frame for frame in [await wire.receive() for _ in range(2)]}
    assert frames[1]["error"]["details"]["reason"] == "outcome_unknown"
    assert effects(daemon) == ["a"]


async def test_a_retry_that_overtakes_the_unit_of_a_cancelled_try_changes_nothing(
    daemon: RunningDaemon, keyed: ModuleType, wire: Wire
) -> None:
    """Both units wait for the writer: when the second begins no key is on disk, when it runs there is."""
    database = daemon.daemon.database
    envelopes = [envelope(keyed, f"e{number}") for number in range(2)]
    layer = daemon.daemon.idempotency
    answers: list[Any] = []

    async def send(outcome: Outcome) -> None:
        assert isinstance(outcome, Replied)
        answers.append(outcome.value)

    async def handle(envelope: EventEnvelope, send: Send) -> None:
        assert envelope.joins is not None
        unit = envelope.joins.around(lambda tx: keyed.Done(number=keyed._count(tx, "a")))
        await send(Replied(await database.write_apart(unit)))

    free = threading.Event()
    held = database.write_apart(lambda _: free.wait(10))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(_run(layer, envelopes[0], send, handle))
        await asyncio.sleep(0)  # it has given its unit
        first.cancel()
        await asyncio.wait([first])
        tasks.create_task(_run(layer, envelopes[1], send, handle))
        await asyncio.sleep(0)  # and so has this one, which found no key
        assert database.statistics.waiting >= 3  # the daemon may have given one of its own
        free.set()
        await held
    assert answers == [{"number": 1}]
    assert effects(daemon) == ["a"]


def envelope(keyed: ModuleType, event_id: str, key: str = "k") -> EventEnvelope:
    spec = keyed.Do.__ksi__
    return EventEnvelope("keyed:do", {"ident": "a"}, event_id, "c", idempotency_key=key, spec=spec)


async def test_a_key_outlives_the_daemon(clock: FakeClock, tmp_path: Path) -> None:
    replies = []
    for _ in range(2):
        async with (
            running_daemon(home=tmp_path / "var", plugins=[PLUGIN], clock=clock) as daemon,
            daemon.connect() as wire,
        ):
            replies.append(await do(wire, way="unit"))
    assert replies == [{"number": 1}] * 2


async def test_an_ephemeral_event_with_a_key_is_told_once(daemon: RunningDaemon, wire: Wire) -> None:
    data = {"event": "demo:blink", "ephemeral": True}
    frames = [await wire.call("event:publish", data, idempotency_key="k") for _ in range(2)]
    assert frames[0]["data"] == frames[1]["data"]
    assert len(daemon.events("demo:blink")) == 1


async def test_an_ephemeral_event_that_is_refused_with_its_key_was_told_to_nobody(
    daemon: RunningDaemon, wire: Wire
) -> None:
    """The disk is full: the key cannot be kept, so a retry of what was told would tell it again."""

    async def publish(n: int) -> str:
        data = {"event": "demo:blink", "data": {"n": n}, "ephemeral": True}
        frame = await wire.call("event:publish", data, idempotency_key=f"k{n}")
        return "told" if frame["type"] == "reply" else str(frame["error"]["details"]["reason"])

    async def allow(pages: int) -> None:
        pragma = f"PRAGMA max_page_count = {pages}"  # never less than there are
        await daemon.daemon.database.write_apart(lambda tx: tx.execute(pragma).fetchone())

    await allow(1)
    refused = 0
    while await publish(refused) == "told":  # what is left of the last page takes some keys
        refused += 1
    assert await publish(refused) == "store_unavailable"
    await allow(1_000_000)
    assert [await publish(refused) for _ in range(2)] == ["told", "told"]
    assert [told["n"] for told in daemon.emitted("demo:blink")] == list(range(refused + 1))


async def test_publish_and_append_take_keys(daemon: RunningDaemon, wire: Wire) -> None:
    publish = {"event": "demo:told", "data": {"n": 1}}
    append = {"stream": "demo/1", "events": [publish, publish], "expected_version": 0}
    for event, data in (("event:publish", publish), ("event:append", append)):
        frames = [await wire.call(event, data, idempotency_key="k") for _ in range(2)]
        assert frames[0]["data"] == frames[1]["data"]
    assert len(daemon.events("demo:told")) == 3


async def test_a_safe_request_ignores_its_key(wire: Wire) -> None:
    for key in ("a", "b"):
        frame = await wire.call("state:get", {"key": key}, idempotency_key="k")
        assert frame["data"]["key"] == key


async def test_a_stream_takes_no_key(wire: Wire) -> None:
    frame = await wire.call("completion:stream", {"prompt": "x"}, idempotency_key="k")
    assert (frame["error"]["code"], frame["error"]["details"]["reason"]) == (
        "INVALID_ARGUMENT",
        "key_on_stream",
    )


@pytest.mark.parametrize("key", ["", "x" * 129, "é", "a\nb"])
async def test_a_key_that_is_none_is_refused(daemon: RunningDaemon, keyed: ModuleType, key: str) -> None:
    with pytest.raises(InvalidArgument, match="1 to 128 printable"):
        await daemon.daemon.idempotency(envelope(keyed, "e1", key), _ignore, _reply)


async def test_an_event_that_nobody_handles_leaves_no_key(daemon: RunningDaemon, wire: Wire) -> None:
    for _ in range(2):
        frame = await wire.call("demo:nothing", {}, idempotency_key="k")
        assert frame["error"]["details"]["reason"] == "unknown_event"
    assert await _keys(daemon) == 0


async def test_keys_at_work_are_bounded(daemon: RunningDaemon, keyed: ModuleType) -> None:
    layer = Idempotency(daemon.daemon.database, daemon.daemon.clock, max_running=0)
    with pytest.raises(ResourceExhausted, match="0 idempotency keys are at work"):
        await layer(envelope(keyed, "e1"), _ignore, _reply)


async def test_keys_are_forgotten_in_time_and_by_slices(
    daemon: RunningDaemon, wire: Wire, clock: FakeClock, keyed: ModuleType
) -> None:
    database, layer = daemon.daemon.database, daemon.daemon.idempotency
    forgetting = KeyForgetting(database, clock, keep_s=100.0)
    assert forgetting.rest_s() == 100.0
    for number in range(3):
        await do(wire, key=f"k{number}", way="unit")
    clock.advance(60)
    assert forgetting.rest_s() == 40.0
    await do(wire, key="late", way="unit")
    assert await forgetting.forget() == 0
    clock.advance(41)
    assert forgetting.rest_s() < 1.0
    assert await forgetting.forget() == 3
    assert await do(wire, key="late", way="unit") == {"number": 4}
    assert await do(wire, key="k0", way="unit") == {"number": 5}
    async with asyncio.TaskGroup() as tasks:
        for number in range(SLICE + 1):
            asked = envelope(keyed, f"e{number}", f"n{number}")
            tasks.create_task(_run(layer, asked, _ignore, _reply))
    clock.advance(1000)
    assert [await forgetting.forget() for _ in range(3)] == [SLICE, 3, 0]
    assert await _keys(daemon) == 0


async def test_a_disk_that_takes_nothing_is_waited_for_until_keys_can_be_forgotten(
    daemon: RunningDaemon, wire: Wire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an error of a child that the daemon cannot do without: the third in a minute ended it."""
    monkeypatch.setattr("ksi_daemon.keys.forgetting.STORE_RETRY_S", 0.01)
    database = daemon.daemon.database
    forgetting = KeyForgetting(database, clock, keep_s=100.0)
    await do(wire, way="unit")
    clock.advance(200)
    writable(database, is_so=False)

    async def refused() -> bool:
        return [line["event"] for line in logged].count("keys.not_forgotten") >= 3

    async def forgotten() -> bool:
        return await _keys(daemon) == 0

    with capture_logs() as logged:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(forgetting.serve())
            await eventually(refused)
            writable(database, is_so=True)
            await eventually(forgotten)
            serving.cancel()


async def _run(layer: Idempotency, asked: EventEnvelope, send: Send, call_next: Endpoint) -> None:
    await layer(asked, send, call_next)


async def _ignore(_: Outcome) -> None:
    pass


async def _reply(_: EventEnvelope, send: Send) -> None:
    await send(Replied({"number": 0}))


async def _keys(daemon: RunningDaemon) -> int:
    ((count,),) = await daemon.daemon.database.read("SELECT count(*) FROM idempotency_keys")
    return int(count)
