"""Layers that authors need often, and what joins them; ``layer`` says where one stands.

@hookimpl
def ksi_middleware() -> list[Middleware]:
    at = layer(stage="before", events=["weather:get"])
    return [at(chain(rate_limit(per_s=5), cache(ttl_s=60), retry(attempts=3)))]
"""

import asyncio
import inspect
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, Final

import orjson

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import (
    DeadlineExceeded,
    InvalidArgument,
    OperationalError,
    PermissionDenied,
    ResourceExhausted,
)
from ksi_daemon.middleware import compose
from ksi_daemon.outcomes import Endpoint, Middleware, Outcome, Replied, Send

MAX_KEYS: Final = 10_000
"""Callers that a rate limit tells apart; who was away longest is forgotten, and begins anew."""


def chain(*layers: Middleware) -> Middleware:
    """Make one layer of several, the first one outermost."""

    async def chained(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        await compose(layers, call_next)(envelope, send)

    return chained


def when(condition: Callable[[EventEnvelope], bool], layer: Middleware) -> Middleware:
    """Go through ``layer`` where ``condition`` holds, else past it."""

    async def conditional(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        if condition(envelope):
            await layer(envelope, send, call_next)
        else:
            await call_next(envelope, send)

    return conditional


def auth_check(allowed: Callable[[EventEnvelope], bool | Awaitable[bool]]) -> Middleware:
    """Let through what ``allowed`` says yes to; answer the rest with PERMISSION_DENIED."""

    async def authorized(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        answer = allowed(envelope)
        if not (await answer if inspect.isawaitable(answer) else answer):
            raise PermissionDenied(f"{envelope.actor} may not send {envelope.event}", reason="auth_check")
        await call_next(envelope, send)

    return authorized


def validate(check: Callable[[Mapping[str, Any]], object]) -> Middleware:
    """Show ``check`` the data; a ValueError that it raises is answered as INVALID_ARGUMENT."""

    async def validated(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        try:
            check(_data(envelope))
        except ValueError as error:
            raise InvalidArgument(f"{envelope.event}: {error}", reason="invalid_field") from error
        await call_next(envelope, send)

    return validated


def rate_limit(
    *,
    per_s: float,
    burst: int = 1,
    key: Callable[[EventEnvelope], object] = lambda envelope: envelope.actor,
    now: Callable[[], float] = monotonic,
) -> Middleware:
    """Let ``burst`` requests of a ``key`` through at once, then ``per_s`` a second; refuse the rest."""
    buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()

    async def limited(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        whose, moment = key(envelope), now()
        left, since = buckets.pop(whose, (float(burst), moment))
        left = min(float(burst), left + (moment - since) * per_s)
        buckets[whose] = (left - 1, moment) if left >= 1 else (left, moment)
        if len(buckets) > MAX_KEYS:
            buckets.popitem(last=False)
        if left < 1:
            wait_s = round((1 - left) / per_s, 3)
            raise ResourceExhausted(
                f"{envelope.event} is limited to {per_s:g} a second",
                reason="rate_limit",
                retry_after_s=wait_s,
            )
        await call_next(envelope, send)

    return limited


def cache(*, ttl_s: float, max_entries: int = 1024, now: Callable[[], float] = monotonic) -> Middleware:
    """Answer a ``safe`` request as the same one was answered within the last ``ttl_s`` seconds."""
    entries: OrderedDict[bytes, tuple[float, Replied]] = OrderedDict()

    async def cached(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        if envelope.spec is None or not envelope.spec.safe:
            await call_next(envelope, send)
            return
        name = _identity(envelope)
        until, known = entries.get(name, (0.0, None))
        if known is not None and now() < until:
            await send(known)
            return

        async def keep(outcome: Outcome) -> None:
            if isinstance(outcome, Replied):
                entries[name] = (now() + ttl_s, outcome)
                entries.move_to_end(name)
                if len(entries) > max_entries:
                    entries.popitem(last=False)
            await send(outcome)

        await call_next(envelope, keep)

    return cached


def dedupe() -> Middleware:
    """Let a ``safe`` request that is the same as one at work share its answer."""
    running: dict[bytes, asyncio.Future[Replied | None]] = {}

    async def deduped(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        if envelope.spec is None or not envelope.spec.safe or envelope.spec.kind != "request":
            await call_next(envelope, send)
            return
        name = _identity(envelope)
        while (leader := running.get(name)) is not None:
            shared = await asyncio.shield(leader)
            if shared is not None:  # else it failed or was cancelled: that was its own affair
                await send(shared)
                return
        await _lead(running, name, envelope, send, call_next)

    return deduped


async def _lead(
    running: dict[bytes, "asyncio.Future[Replied | None]"],
    name: bytes,
    envelope: EventEnvelope,
    send: Send,
    call_next: Endpoint,
) -> None:
    answered: asyncio.Future[Replied | None] = asyncio.get_running_loop().create_future()
    running[name] = answered

    async def share(outcome: Outcome) -> None:
        if isinstance(outcome, Replied) and not answered.done():
            answered.set_result(outcome)
        await send(outcome)

    try:
        await call_next(envelope, share)
    finally:
        del running[name]
        if not answered.done():
            answered.set_result(None)


def timeout(seconds: float) -> Middleware:
    """Answer DEADLINE_EXCEEDED where the rest of the way takes longer."""

    async def timed(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await call_next(envelope, send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"{envelope.event} took over {seconds:g} s", reason="timeout") from None

    return timed


def retry(
    *,
    attempts: int = 3,
    first_s: float = 0.1,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Middleware:
    """Try again what is ``safe`` or ``idempotent`` and fails with an error that is ``retryable``.

    ``first_s``: before the second attempt, doubled with each, with jitter; an error's ``retry_after_s`` is
    the least. What has given an item already is not tried again.
    """

    async def retried(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        spec = envelope.spec
        left = attempts if spec is not None and (spec.safe or spec.idempotent) else 1
        begun = False

        async def note(outcome: Outcome) -> None:
            nonlocal begun
            begun = True
            await send(outcome)

        delay_s = first_s
        while True:
            left -= 1
            try:
                await call_next(envelope, note)
            except OperationalError as error:
                if not error.retryable or begun or left <= 0:
                    raise
                least = float(error.details.get("retry_after_s") or 0)
                await sleep(max(least, delay_s * random.uniform(0.5, 1.0)))  # noqa: S311 -- no secret
                delay_s *= 2
            else:
                return

    return retried


def _data(envelope: EventEnvelope) -> Mapping[str, Any]:
    if envelope.message is not None and not envelope.data:
        return envelope.message.model_dump(mode="json", by_alias=True)
    return envelope.data


def _identity(envelope: EventEnvelope) -> bytes:
    """Tell requests apart: by event, actor and data."""
    return orjson.dumps([envelope.event, envelope.actor, _data(envelope)], option=orjson.OPT_SORT_KEYS)
