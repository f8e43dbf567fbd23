"""From a function to a route: everything that can be decided at load is decided here, once."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, get_args, get_origin, get_type_hints

from ksi_common.envelope import EventEnvelope, EventMetadata
from ksi_common.errors import Unimplemented
from ksi_common.messages import EventSpec, Message, Notification, Request, Stream, spec_of
from ksi_common.records import record
from ksi_common.validation import parser
from ksi_daemon import immediate
from ksi_daemon.database import Database, Transaction
from ksi_daemon.explaining import PluginBug, place_of
from ksi_daemon.immediate import HandlerError
from ksi_daemon.outcomes import Ended, Endpoint, Replied, Send, Yielded
from ksi_daemon.remote.server import Line
from ksi_daemon.router import Route
from ksi_daemon.services import ServiceError, Services, needs_of
from ksi_daemon.several import item_of
from ksi_daemon.subscriptions import Sink
from ksi_daemon.threads import Threads

Function = Callable[..., Any]


@record
class Compiler:
    """What handlers are made with."""

    services: Services
    threads: Threads
    database: Database

    def handler(self, function: Function, plugin: str) -> Route:
        """Make the route of a ``@handler`` function; raise HandlerError, ServiceError or TypeError."""
        event = event_of(function)
        if not issubclass(event, Request | Stream):
            raise HandlerError(f"{function.__name__} takes a {event.__name__}; use @subscriber for it")
        spec = spec_of(event)
        if spec.answers != "one":
            part = item_of(spec)
            _check_reply(function, part)
            return replace(self._request(function, event, part, plugin), declared=spec)
        _check_reply(function, spec)
        if spec.kind == "request":
            return self._request(function, event, spec, plugin)
        bound = self._bind(function)
        handle: Endpoint
        if inspect.isasyncgenfunction(function):
            handle = _streaming(function, bound, event, spec, self.database)
        elif Sink in _parameters(function).values():
            handle = _sinking(bound, event, spec, self.database)
        else:
            raise HandlerError(
                f"{function.__qualname__} is no async generator, but {spec.name} is a stream: "
                f"write async def, and yield its items{place_of(function)}"
            )
        return Route(spec, event, plugin, handle)

    def _request(self, function: Function, event: type[Message], spec: EventSpec, plugin: str) -> Route:
        call = immediate.call_of(function)
        if call is None:
            handle = _unary(function, self._bind(function), event, spec, self.database)
            return Route(spec, event, plugin, handle)
        begin = immediate.compiled(function, self._bind(function, call), event, spec)
        return Route(spec, event, plugin, immediate.endpoint(begin, spec, self.database), begin)

    def subscriber(self, function: Function) -> tuple[type[Notification], Callable[..., Awaitable[Any]]]:
        """Make the callable of a ``@subscriber`` function: (notification, envelope)."""
        event = event_of(function)
        if not issubclass(event, Notification):
            raise HandlerError(f"{function.__name__} takes a {event.__name__}; use @handler for it")
        return event, self._bind(function)

    def _service(self, function: Function, name: str, kind: type) -> Any:
        try:
            return self.services.get(kind)
        except ServiceError as error:
            wants = f"{function.__qualname__} takes {name}: {getattr(kind, '__name__', kind)}"
            raise ServiceError(
                f"{wants}, but {error.message}{place_of(function)}", **error.details
            ) from error

    def _bind(
        self, function: Function, call: Function | None = None
    ) -> Callable[[Message, EventEnvelope], Any]:
        """Fix the services; what is left of the call is the event and its envelope.

        ``call``: what is called in its place; else a function that is not async gets a thread.
        """
        _, *others = _parameters(function).items()
        if call is not None:
            others = [(name, kind) for name, kind in others if kind is not Transaction]
        services = {
            name: self._service(function, name, kind) for name, kind in others if kind not in _DYNAMIC
        }
        dynamic = {name: _DYNAMIC[kind] for name, kind in others if kind in _DYNAMIC}
        if call is None:
            call = function if immediate.waits(function) else self.threads.wrap(function)
        return _bound(call, services, dynamic)


def _parameters(function: Function) -> Mapping[str, Any]:
    try:
        return needs_of(function)
    except TypeError as error:
        raise HandlerError(
            f"{error}: write the service that it is to be, such as bus: Bus{place_of(function)}"
        ) from error


def event_of(function: Function) -> type[Message]:
    """Give the event class that the first parameter is annotated with."""
    name = f"{function.__module__}.{function.__qualname__}"
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise HandlerError(
            f"{name}: annotation not found at load: {error}; import it at the top{place_of(function)}"
        ) from error
    parameters = list(inspect.signature(function).parameters)
    first = hints.get(parameters[0]) if parameters else None
    if not (isinstance(first, type) and issubclass(first, Message) and hasattr(first, "__ksi__")):
        raise HandlerError(
            f"{name}: the first parameter must be annotated with the class of an event, "
            f"such as request: Greet, where class Greet(Request[Greeting], event=...){place_of(function)}"
        )
    return first


def _sink_of(envelope: EventEnvelope) -> Sink:
    open_sink = getattr(envelope.caller, "sink", None)
    if open_sink is None:
        raise Unimplemented(
            f"{envelope.event} feeds connections; in the daemon, use bus.subscribe", reason="no_sink"
        )
    sink: Sink = open_sink()
    return sink


def _line_of(envelope: EventEnvelope) -> Line:
    line = getattr(envelope.caller, "connection", None)
    if line is None:
        raise Unimplemented(
            f"{envelope.event} is for connections; in the daemon, write a handler", reason="no_connection"
        )
    found: Line = line
    return found


_DYNAMIC: Mapping[Any, Callable[[EventEnvelope], Any]] = {
    EventEnvelope: lambda envelope: envelope,
    EventMetadata: lambda envelope: envelope.metadata,
    Sink: _sink_of,
    Line: _line_of,
}


def _bound(
    call: Function, services: Mapping[str, Any], dynamic: Mapping[str, Callable[[EventEnvelope], Any]]
) -> Callable[[Message, EventEnvelope], Any]:
    if not services and not dynamic:
        return lambda message, _: call(message)
    if not dynamic:
        given = tuple(services.values())  # in the order of the parameters
        return lambda message, _: call(message, *given)
    return lambda message, envelope: call(
        message, **services, **{name: give(envelope) for name, give in dynamic.items()}
    )


def _check_reply(function: Function, spec: EventSpec) -> None:
    hints = get_type_hints(function)
    if "return" not in hints:
        reply = spec.reply.__name__ if spec.reply else "None"
        wanted = f"AsyncIterator[{reply}]" if spec.kind == "stream" else reply
        raise HandlerError(
            f"{function.__qualname__} does not say what it returns; {spec.name} is answered with {reply}: "
            f"write -> {wanted}{place_of(function)}"
        )
    returned = hints["return"]
    if spec.kind == "stream":
        item = get_args(returned)[0] if get_origin(returned) in _ITERATORS else returned
        wanted = f"AsyncIterator[{spec.reply.__name__}]" if spec.reply else ""
        fits = item is spec.reply or (returned is type(None) and not inspect.isasyncgenfunction(function))
    else:
        wanted = spec.reply.__name__ if spec.reply else ""
        fits = all(
            isinstance(kind, type) and spec.reply is not None and issubclass(kind, spec.reply)
            for kind in immediate.replies_of(function)
        )
    if not fits:
        name = getattr(returned, "__name__", returned)
        raise HandlerError(
            f"{function.__qualname__} returns {name}, but {spec.name} is answered with {wanted}: "
            f"write -> {wanted}{place_of(function)}"
        )


_ITERATORS = (AsyncIterator, AsyncGenerator, AsyncIterable)


def _unary(
    function: Function, call: Function, event: type[Message], spec: EventSpec, database: Database
) -> Endpoint:
    parse = parser(event)
    to_record = spec.recorded and not spec.safe
    reply_type = spec.reply or Message

    async def handle(envelope: EventEnvelope, send: Send) -> None:
        message = envelope.message
        if message is None:
            message = envelope.message = parse(envelope.data)
        envelope.to_record = to_record
        reply = await call(message, envelope)
        if not isinstance(reply, reply_type):
            raise immediate.wrong_reply(function, reply, reply_type, spec)
        if to_record and not envelope.recorded:
            await database.record(envelope, reply)
        await send(Replied(reply))

    return handle


def _streaming(
    function: Function, call: Function, event: type[Message], spec: EventSpec, database: Database
) -> Endpoint:
    parse = parser(event)
    item_type = spec.reply or Message

    async def handle(envelope: EventEnvelope, send: Send) -> None:
        message = envelope.message = envelope.message or parse(envelope.data)
        if spec.recorded and not spec.safe:
            await database.record(envelope)
        items = call(message, envelope)
        try:
            async for item in items:
                if not isinstance(item, item_type):
                    given = type(item).__name__
                    raise PluginBug(f"the handler of {spec.name} gave {given} as an item", function)
                await send(Yielded(item))
        finally:
            await items.aclose()
        await send(Ended())

    return handle


def _sinking(call: Function, event: type[Message], spec: EventSpec, database: Database) -> Endpoint:
    """Serve a stream whose handler writes rendered frames itself, into a Sink that it takes."""
    parse = parser(event)

    async def handle(envelope: EventEnvelope, send: Send) -> None:
        message = envelope.message = envelope.message or parse(envelope.data)
        if spec.recorded and not spec.safe:
            await database.record(envelope)
        await call(message, envelope)
        await send(Ended())

    return handle
