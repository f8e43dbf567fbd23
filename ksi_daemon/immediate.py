"""Handlers that do not wait: they run on the loop at once, or are a unit of work. Neither needs a task.

@handler
def set_(request: Set, tx: Transaction) -> Stored: ...                    # it is the unit
@handler
def publish(request: Publish, ...) -> Published | Unit[Published]: ...    # its reply, or the unit giving it
@handler
def get(request: Get, ...) -> Found | Awaitable[Found]: ...               # its reply, or what to await for it
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import FailedPrecondition, KSIError
from ksi_common.messages import EventSpec, Message, Rendered
from ksi_common.validation import parser
from ksi_daemon.database import Database, Telling, Transaction, Unit
from ksi_daemon.explaining import PluginBug
from ksi_daemon.outcomes import Begin, Endpoint, Later, Replied, Reply, Send, is_reply

Function = Callable[..., Any]
Bound = Callable[[Message, EventEnvelope], Any]
"""A handler with its services: what is left of the call is the event and its envelope."""


class HandlerError(FailedPrecondition):
    """A handler is declared wrongly; the message says which and how."""


def call_of(function: Function) -> Function | None:
    """Give what is to be called of a handler that does not wait; None: it waits, or takes a thread."""
    hints = get_type_hints(function)
    if Transaction in [kind for name, kind in hints.items() if name != "return"]:
        _check_unit(function, hints)
        return _giving_itself(function)
    later = any(map(_is_later, _members(hints.get("return"))))
    return function if later and not waits(function) else None


def replies_of(function: Function) -> Sequence[Any]:
    """Give the types of reply that a handler says it comes to, at once or later."""
    members = _members(get_type_hints(function).get("return"))
    if waits(function):
        return members
    replies = [get_args(member)[-1] if _is_later(member) else member for member in members]
    return [get_args(reply)[0] if get_origin(reply) is Rendered else reply for reply in replies]


def waits(function: Function) -> bool:
    """Tell whether a function is async."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def compiled(function: Function, call: Bound, event: type[Message], spec: EventSpec) -> Begin:
    """Make what begins a handler that does not wait. ``function``: as its plugin wrote it."""
    parse = parser(event)
    to_record = spec.recorded and not spec.safe
    reply_type = spec.reply or Message

    def begin(envelope: EventEnvelope) -> Replied | Unit[Reply] | Awaitable[Reply] | Later:
        message = envelope.message
        if message is None:
            message = envelope.message = parse(envelope.data)
        envelope.to_record = to_record
        outcome = call(message, envelope)
        if type(outcome) is Telling:
            return outcome
        if callable(outcome):
            return lambda tx: _checked(outcome(tx), reply_type, spec, function)
        if type(outcome) is not reply_type and isinstance(outcome, Awaitable):
            return outcome
        reply = _checked(outcome, reply_type, spec, function)
        return (lambda _: reply) if to_record else Replied(reply)

    return begin


def endpoint(begin: Begin, spec: EventSpec, database: Database) -> Endpoint:
    """Make the end of the chain for a handler that does not wait, where its caller or its outcome does."""

    async def handle(envelope: EventEnvelope, send: Send) -> None:
        outcome = envelope.begun or begin(envelope)
        if isinstance(outcome, Replied):
            await send(outcome)
            return
        if callable(outcome):
            reply = await database.write(outcome)
        else:
            awaited = arrival(outcome) if isinstance(outcome, Later) else outcome
            reply = _checked(await awaited, spec.reply or Message, spec)
            if envelope.to_record and not envelope.recorded:
                await database.record(envelope, reply)
        await send(Replied(reply))

    return handle


async def arrival(later: Later) -> Reply:
    """Wait for a reply that comes by a callback; cancelling this stops the work."""
    arrived: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def done(reply: Rendered[Any] | None, error: KSIError | None) -> None:
        if arrived.done():
            return
        if error is not None:
            arrived.set_exception(error)
        elif reply is not None:
            arrived.set_result(reply)

    later.begin(done)
    try:
        return await arrived
    finally:
        later.cancel()


def wrong_reply(function: Function | None, reply: object, wanted: type[Message], spec: EventSpec) -> KSIError:
    """Make the error of a handler that gives what is no reply to its event."""
    message = f"the handler of {spec.name} returned {type(reply).__name__}, not {wanted.__name__}"
    return PluginBug(message, function)


def _checked(reply: Any, wanted: type[Message], spec: EventSpec, function: Function | None = None) -> Reply:
    if is_reply(reply, wanted):
        return reply  # type: ignore[no-any-return]
    raise wrong_reply(function, reply, wanted, spec)


def _check_unit(function: Function, hints: Mapping[str, Any]) -> None:
    name = function.__qualname__
    if waits(function):
        raise HandlerError(f"{name} takes a Transaction: it is a unit of work, which is no async function")
    second = [*inspect.signature(function).parameters][1:2]
    if [hints.get(parameter) for parameter in second] != [Transaction]:
        raise HandlerError(f"{name} must take its Transaction as the second parameter")


def _giving_itself(function: Function) -> Function:
    def handler(message: Message, *services: Any, **dynamic: Any) -> Unit[Any]:
        return lambda tx: function(message, tx, *services, **dynamic)

    return handler


def _members(annotation: Any) -> Sequence[Any]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def _is_later(annotation: Any) -> bool:
    return get_origin(annotation) in {Awaitable, Callable, Telling}
