"""Between messages and the wire: what a request sends, and what its answers are."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from ksi_client.exchanges import Consumption, Entry, Feed, Question, Subscription
from ksi_client.raw import Start, keyed, subscribe_call, time_now
from ksi_common.bus import Delivered
from ksi_common.errors import FailedPrecondition
from ksi_common.frames import Call, Item, Mark
from ksi_common.ids import new_id
from ksi_common.messages import Message, Notification, Request, Stream, spec_of

R = TypeVar("R", bound=Message)

log = logging.getLogger("ksi_client")


def question(
    request: Request[R], timeout_s: float | None, *, key: str | None, new_key: Callable[[], str]
) -> Question:
    """Make the exchange of a request: what is ``safe`` may be sent again as it is, the rest with its key."""
    spec = spec_of(type(request))
    call = Call(spec.name, _asked(request), timeout_s=timeout_s, idempotency_key=key)
    return keyed(call, new_key, safe=spec.safe, idempotent=spec.idempotent)


def reply(request: Request[R] | Stream[R], data: Mapping[str, Any]) -> R:
    """Make the reply of a request, or an item of a stream."""
    spec = spec_of(type(request))
    assert spec.reply is not None
    try:
        return cast("R", spec.reply.model_validate(data))
    except ValidationError as error:
        raise FailedPrecondition(
            f"the answer to {spec.name!r} is no {spec.reply.__name__}: {error}",
            reason="protocol_mismatch",
            hint="use a client and a daemon of the same version",
        ) from error


def feed(request: Stream[R], timeout_s: float | None) -> Feed:
    """Make the exchange of a stream."""
    return Feed(Call(spec_of(type(request)).name, _asked(request), timeout_s=timeout_s))


def items_of(request: Stream[R]) -> Callable[[Entry], R | None]:
    """Give what makes items of what a stream sends."""

    def convert(entry: Entry) -> R | None:
        return reply(request, entry.data) if isinstance(entry, Item) else None

    return convert


def told(notification: Notification, timeout_s: float | None) -> Question:
    """Make the exchange of a notification. Its id makes it safe to send again: it is stored once."""
    spec = spec_of(type(notification))
    data: dict[str, Any] = {"event": spec.name, "data": notification.model_dump(mode="json", by_alias=True)}
    data |= {"ephemeral": True} if spec.ephemeral else {"event_id": new_id()}
    call = Call("event:publish", data, timeout_s=timeout_s)
    return Question(call, resend=not spec.ephemeral, retryable=not spec.ephemeral, changes=True)


def subscription(patterns: Any, start: Start) -> Subscription:
    """Make the exchange of a subscription."""
    return Subscription(subscribe_call(patterns, start), asked=time_now())


def consumption(
    name: str, patterns: str | Sequence[str], start: Start, *, group: str | None, max_inflight: int | None
) -> Consumption:
    """Make the exchange of a named consumer."""
    call = subscribe_call(patterns, start)
    wish = {"consumer": name, "group": group, "max_inflight": max_inflight}
    call.data = {**call.data, **{key: value for key, value in wish.items() if value is not None}}
    return Consumption(call, asked=time_now())


def report(feed: Consumption, cursor: str, timeout_s: float, **refusal: Any) -> Question:
    """Make the exchange that says what became of an event. It may be said again."""
    whose = {key: feed.call.data[key] for key in ("consumer", "group") if key in feed.call.data}
    event = "event:nak" if refusal else "event:ack"
    given = {key: value for key, value in refusal.items() if value is not None}
    return Question(Call(event, {**whose, "cursors": [cursor], **given}, timeout_s=timeout_s), resend=True)


def facts_of(entry: Item) -> dict[str, Any]:
    """Give the fields of what a consumer is given."""
    return {**vars_of(entry), "attempt": entry.data.get("attempt", 1)}


def delivered(entry: Entry) -> Delivered | None:
    """Make an event of an item; of a mark nothing, but a gap is logged."""
    mark = delivered_or_mark(entry)
    if isinstance(mark, Delivered):
        return mark
    if mark.kind == "gap":
        log.warning("subscription has a gap: %s", mark.fields)
    return None


def delivered_or_mark(entry: Entry) -> Delivered | Mark:
    """Make an event of an item, and leave a mark as it is."""
    if isinstance(entry, Mark):
        return entry
    return Delivered(**vars_of(entry))


def vars_of(entry: Item) -> dict[str, Any]:
    """Give the fields of an event as a subscriber gets it."""
    data = entry.data
    return {
        "event": data["event"],
        "data": data["data"],
        "event_id": data["event_id"],
        "cursor": entry.cursor or "",
        "correlation_id": data["correlation_id"],
        "causation_id": data.get("causation_id"),
        "actor": data["actor"],
        "time": data["time"],
        "stream": data.get("stream"),
        "version": data.get("version"),
        "raw": data.get("raw", False),
    }


def _asked(request: Message) -> dict[str, Any]:
    # Only what was given: the defaults are the daemon's, and an older one may not know every field.
    return request.model_dump(mode="json", by_alias=True, exclude_unset=True)
