"""Each ready layer does its one thing, for requests and streams of the one middleware shape."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import (
    DeadlineExceeded,
    InvalidArgument,
    KSIError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from ksi_common.messages import EventSpec, Message
from ksi_daemon.outcomes import Middleware, Outcome, Replied, Send
from ksi_daemon.ready_layers import (
    auth_check,
    cache,
    chain,
    dedupe,
    rate_limit,
    retry,
    timeout,
    validate,
    when,
)

SAFE = EventSpec("shop:ask", "request", Message, safe=True)
CHANGING = replace(SAFE, safe=False)


def envelope(
    data: dict[str, Any] | None = None, spec: EventSpec = SAFE, actor: str = "owner"
) -> EventEnvelope:
    return EventEnvelope("shop:ask", data or {}, "e1", "c1", actor=actor, spec=spec)


class Handler:
    """An endpoint that counts its calls, and raises what it is told to, then replies with its count."""

    def __init__(self, *errors: KSIError) -> None:
        self.calls = 0
        self._errors = list(errors)

    async def __call__(self, envelope: EventEnvelope, send: Send) -> None:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        await asyncio.sleep(0)
        await send(Replied({"n": self.calls}))


async def ask(layer: Middleware, handler: Any, asked: EventEnvelope | None = None) -> list[Any]:
    sent: list[Outcome] = []

    async def send(outcome: Outcome) -> None:
        sent.append(outcome)

    await layer(asked or envelope(), send, handler)
    return [outcome.value for outcome in sent if isinstance(outcome, Replied)]


class Now:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


async def yes(_: EventEnvelope) -> bool:
    return True


@pytest.mark.parametrize("allowed", [lambda e: e.actor == "owner", yes])
async def test_who_is_allowed_goes_on(allowed: Callable[[EventEnvelope], bool]) -> None:
    assert await ask(auth_check(allowed), Handler()) == [{"n": 1}]


async def test_who_is_not_allowed_is_refused_before_the_handler() -> None:
    handler = Handler()
    with pytest.raises(PermissionDenied, match="agent-1 may not send shop:ask"):
        await ask(auth_check(lambda e: e.actor == "owner"), handler, envelope(actor="agent-1"))
    assert handler.calls == 0


async def test_data_that_a_check_refuses_is_an_invalid_argument() -> None:
    def check(data: Any) -> None:
        if data.get("n", 0) > 9:
            raise ValueError("n is above 9")

    assert await ask(validate(check), Handler(), envelope({"n": 9})) == [{"n": 1}]
    with pytest.raises(InvalidArgument, match="shop:ask: n is above 9"):
        await ask(validate(check), Handler(), envelope({"n": 10}))


async def test_a_rate_is_kept_for_each_key_and_says_when_to_come_back() -> None:
    now = Now()
    layer, handler = rate_limit(per_s=2, burst=2, now=now), Handler()
    for _ in range(2):
        await ask(layer, handler)
    with pytest.raises(ResourceExhausted) as refused:
        await ask(layer, handler)
    assert refused.value.details == {"reason": "rate_limit", "retry_after_s": 0.5}
    await ask(layer, handler, envelope(actor="another"))
    now.time += 0.5
    await ask(layer, handler)
    assert handler.calls == 4


async def test_an_answer_is_cached_for_its_time_by_data_and_actor() -> None:
    now = Now()
    layer, handler = cache(ttl_s=10, max_entries=2, now=now), Handler()
    assert await ask(layer, handler, envelope({"a": 1, "b": 2})) == [{"n": 1}]
    assert await ask(layer, handler, envelope({"b": 2, "a": 1})) == [{"n": 1}]
    assert await ask(layer, handler, envelope({"a": 2})) == [{"n": 2}]
    assert await ask(layer, handler, envelope({"a": 1, "b": 2}, actor="x")) == [{"n": 3}]
    assert await ask(layer, handler, envelope({"a": 1, "b": 2})) == [{"n": 4}]  # the oldest of three is gone
    now.time += 10
    assert await ask(layer, handler, envelope({"a": 1, "b": 2}, actor="x")) == [{"n": 5}]


async def test_an_error_and_what_changes_something_are_not_cached() -> None:
    layer, handler = cache(ttl_s=10), Handler(NotFound("x"))
    with pytest.raises(NotFound):
        await ask(layer, handler)
    assert await ask(layer, handler) == [{"n": 2}]
    assert await ask(layer, handler, envelope({}, CHANGING)) == [{"n": 3}]


async def together(layer: Middleware, handler: Any, asked: Sequence[EventEnvelope]) -> list[Any]:
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(ask(layer, handler, each)) for each in asked]
    return [task.result() for task in running]


async def test_equal_requests_at_work_share_one_answer() -> None:
    layer, handler = dedupe(), Handler()
    assert await together(layer, handler, [envelope(), envelope(), envelope({"a": 1})]) == [
        [{"n": 2}], [{"n": 2}], [{"n": 2}],
    ]  # fmt: skip
    assert handler.calls == 2
    await together(layer, handler, [envelope({}, CHANGING), envelope({}, CHANGING)])
    assert handler.calls == 4


async def test_the_failure_of_one_is_not_shared() -> None:
    layer, handler = dedupe(), Handler(NotFound("x"))

    async def first() -> None:
        with pytest.raises(NotFound):
            await ask(layer, handler)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(first())
        second = tasks.create_task(ask(layer, handler))
    assert second.result() == [{"n": 2}]


async def test_what_takes_longer_than_its_time_is_late() -> None:
    async def stuck(envelope: EventEnvelope, send: Send) -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded, match="shop:ask took over"):
        await ask(timeout(0.01), stuck)
    assert await ask(timeout(5), Handler()) == [{"n": 1}]


async def test_a_time_out_of_the_handlers_own_stays_what_it_is() -> None:
    async def bug(envelope: EventEnvelope, send: Send) -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await ask(timeout(5), bug)


async def test_what_may_pass_is_tried_again_after_what_it_says() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    handler = Handler(Unavailable("a"), ResourceExhausted("b", retry_after_s=7))
    assert await ask(retry(attempts=3, sleep=sleep), handler) == [{"n": 3}]
    assert 0.05 <= waits[0] <= 0.1
    assert waits[1] == 7


@pytest.mark.parametrize(
    ("handler", "spec", "error"),
    [
        (Handler(NotFound("x")), SAFE, NotFound),
        (Handler(*[Unavailable("x")] * 3), SAFE, Unavailable),
        (Handler(Unavailable("x")), CHANGING, Unavailable),
    ],
)
async def test_what_does_not_pass_or_changes_something_is_not_tried_again(
    handler: Handler, spec: EventSpec, error: type[KSIError]
) -> None:
    async def sleep(_: float) -> None: ...

    with pytest.raises(error):
        await ask(retry(attempts=3, sleep=sleep), handler, envelope({}, spec))
    assert handler.calls in (1, 3)


async def test_what_was_answered_in_part_is_not_tried_again() -> None:
    async def half(envelope: EventEnvelope, send: Send) -> None:
        await send(Replied({}))
        raise Unavailable("x")

    with pytest.raises(Unavailable):
        await ask(retry(), half)


async def test_layers_are_joined_in_order_and_by_a_condition() -> None:
    seen: list[str] = []

    def note(name: str) -> Middleware:
        async def noting(envelope: EventEnvelope, send: Send, call_next: Any) -> None:
            seen.append(name)
            await call_next(envelope, send)

        return noting

    layer = chain(note("a"), when(lambda e: bool(e.data), note("b")), note("c"))
    await ask(layer, Handler())
    await ask(layer, Handler(), envelope({"x": 1}))
    assert seen == ["a", "c", "a", "b", "c"]
