"""What of a handler can be decided at load is decided there; what is wrong with it is said there."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from ksi_common.envelope import EventEnvelope, EventMetadata, event_context
from ksi_common.errors import InternalError, InvalidArgument, Unimplemented
from ksi_common.messages import Message, Notification, Request, Stream
from ksi_daemon.database import Database
from ksi_daemon.handlers import Compiler, event_of
from ksi_daemon.immediate import HandlerError
from ksi_daemon.outcomes import Ended, Outcome, Replied, Yielded
from ksi_daemon.router import Route
from ksi_daemon.services import ServiceError, Services
from ksi_daemon.subscriptions import Sink
from ksi_daemon.threads import Threads
from tests.support.databases import Heard, rows


class Bought(Message):
    n: int = 0
    who: str = ""


class RareBought(Bought):
    pass


class Buy(Request[Bought], event="shop:buy"):
    """Buy."""

    n: int = 1


class Look(Request[Bought], event="shop:look", safe=True):
    """Look."""


class Follow(Stream[Bought], event="shop:follow", safe=True):
    """Follow."""

    n: int = 2


class Order(Stream[Bought], event="shop:order"):
    """Follow, and leave a row."""


class Sold(Notification, event="shop:sold"):
    n: int = 0


class Store:
    name = "store"


class Cache:
    name = "cache"


@pytest.fixture
def compiler(database: Database) -> Compiler:
    services = Services()
    services.offer(Store, Store())
    services.offer(Cache, Cache())
    return Compiler(services, Threads(), database)


def asked(event: str = "shop:buy", data: dict[str, Any] | None = None, **facts: Any) -> EventEnvelope:
    return EventEnvelope(event, data or {}, "e1", "c1", **facts)


async def sent(route: Route, envelope: EventEnvelope | None = None) -> Sequence[Outcome]:
    """Handle an event as the router would; give what was sent."""
    outcomes: list[Outcome] = []

    async def send(outcome: Outcome) -> None:
        outcomes.append(outcome)

    envelope = envelope or asked(route.spec.name)
    with event_context(envelope):
        await route.handle(envelope, send)
    return outcomes


async def reply(route: Route, envelope: EventEnvelope | None = None) -> Any:
    (outcome,) = await sent(route, envelope)
    assert isinstance(outcome, Replied)
    return outcome.value


def recorded(database: Database) -> list[str]:
    return [name for (name,) in rows(database.path, "SELECT name FROM log ORDER BY seq")]


def refusal(compiler: Compiler, function: Callable[..., Any], kind: str = "handler") -> str:
    with pytest.raises(HandlerError) as refused:
        compiler.handler(function, "shop") if kind == "handler" else compiler.subscriber(function)
    return refused.value.message


async def test_a_handler_becomes_a_route(compiler: Compiler) -> None:
    async def buy(request: Buy) -> Bought:
        return Bought(n=request.n)

    route = compiler.handler(buy, "shop")
    assert (route.spec.name, route.message, route.plugin) == ("shop:buy", Buy, "shop")
    assert await reply(route, asked(data={"n": 5})) == Bought(n=5)


async def test_data_that_does_not_fit_is_refused_before_the_handler(compiler: Compiler) -> None:
    async def buy(request: Buy) -> Bought:
        raise NotImplementedError

    with pytest.raises(InvalidArgument, match="n: input should be a valid integer"):
        await sent(compiler.handler(buy, "shop"), asked(data={"n": "x"}))


async def test_a_message_that_is_given_is_not_read_again(compiler: Compiler) -> None:
    seen: list[Message] = []

    async def buy(request: Buy) -> Bought:
        seen.append(request)
        return Bought()

    message = Buy(n=7)
    await sent(compiler.handler(buy, "shop"), asked(data={"n": "x"}, message=message))
    assert seen[0] is message


async def test_services_are_given_by_type(compiler: Compiler) -> None:
    async def buy(request: Buy, cache: Cache, store: Store) -> Bought:
        return Bought(who=f"{cache.name} {store.name}")

    assert await reply(compiler.handler(buy, "shop")) == Bought(who="cache store")


async def test_the_envelope_is_given_to_who_asks_for_it(compiler: Compiler) -> None:
    async def buy(_: Buy, context: EventEnvelope, store: Store) -> Bought:
        return Bought(who=f"{context.event_id} {store.name}")

    assert await reply(compiler.handler(buy, "shop")) == Bought(who="e1 store")


async def test_the_metadata_are_given_to_who_asks_for_them(compiler: Compiler) -> None:
    async def buy(_: Buy, metadata: EventMetadata) -> Bought:
        return Bought(who=metadata.correlation_id)

    assert await reply(compiler.handler(buy, "shop")) == Bought(who="c1")


async def test_a_plain_handler_runs_in_a_thread(compiler: Compiler) -> None:
    def buy(request: Buy, store: Store) -> Bought:
        return Bought(n=request.n, who=threading.current_thread().name)

    assert await reply(compiler.handler(buy, "shop")) == Bought(n=1, who="ksi-handler-1")


async def test_a_reply_of_a_narrower_type_is_a_reply(compiler: Compiler) -> None:
    async def buy(_: Buy) -> RareBought:
        return RareBought(n=1)

    assert await reply(compiler.handler(buy, "shop")) == RareBought(n=1)


async def test_a_reply_of_another_type_at_run_time_is_a_bug(compiler: Compiler) -> None:
    async def buy(_: Buy) -> Bought:
        return {"n": 1}  # type: ignore[return-value]

    with pytest.raises(InternalError, match="the handler of shop:buy returned dict, not Bought"):
        await sent(compiler.handler(buy, "shop"))


async def test_a_request_is_recorded_before_its_reply(compiler: Compiler, database: Database) -> None:
    async def buy(_: Buy) -> Bought:
        return Bought()

    await sent(compiler.handler(buy, "shop"))
    assert recorded(database) == ["shop:buy"]


async def test_a_request_is_recorded_once_with_what_it_wrote(
    compiler: Compiler, database: Database, heard: Heard
) -> None:
    async def buy(_: Buy) -> Bought:
        await database.write(lambda tx: tx.tell(Sold()))
        return Bought()

    await sent(compiler.handler(buy, "shop"))
    assert sorted(recorded(database)) == ["shop:buy", "shop:sold"]


async def test_a_safe_request_is_not_recorded(compiler: Compiler, database: Database) -> None:
    async def look(_: Look) -> Bought:
        return Bought()

    await sent(compiler.handler(look, "shop"))
    assert recorded(database) == []


async def test_a_stream_gives_its_items_and_an_end(compiler: Compiler) -> None:
    async def follow(request: Follow) -> AsyncIterator[Bought]:
        for n in range(request.n):
            yield Bought(n=n)

    *items, end = await sent(compiler.handler(follow, "shop"))
    assert [item.value for item in items if isinstance(item, Yielded)] == [Bought(n=0), Bought(n=1)]
    assert isinstance(end, Ended)


async def test_a_stream_may_be_annotated_as_a_generator(compiler: Compiler) -> None:
    async def follow(request: Follow) -> AsyncGenerator[Bought, None]:
        yield Bought()

    assert len(await sent(compiler.handler(follow, "shop"))) == 2


async def test_an_item_of_another_type_is_a_bug(compiler: Compiler) -> None:
    async def follow(_: Follow) -> AsyncIterator[Bought]:
        yield Sold()  # type: ignore[misc]

    with pytest.raises(InternalError, match="the handler of shop:follow gave Sold as an item"):
        await sent(compiler.handler(follow, "shop"))


async def test_a_stream_is_closed_where_its_caller_takes_no_more(compiler: Compiler) -> None:
    closed: list[int] = []

    async def follow(_: Follow) -> AsyncIterator[Bought]:
        try:
            yield Bought()
        finally:
            closed.append(1)

    async def refuse(_: Outcome) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await compiler.handler(follow, "shop").handle(asked("shop:follow"), refuse)
    assert closed == [1]


async def test_a_stream_that_is_not_safe_is_recorded(compiler: Compiler, database: Database) -> None:
    async def order(_: Order) -> AsyncIterator[Bought]:
        yield Bought()

    await sent(compiler.handler(order, "shop"))
    assert recorded(database) == ["shop:order"]


class Client:
    """A caller that is a connection."""

    connection: object = None

    def abandon(self) -> None:
        pass

    def sink(self) -> str:
        return "its sink"


async def test_a_stream_may_write_into_the_sink_of_its_caller(compiler: Compiler, database: Database) -> None:
    seen: list[object] = []

    async def order(_: Order, sink: Sink) -> None:
        seen.append(sink)

    outcomes = await sent(compiler.handler(order, "shop"), asked("shop:order", caller=Client()))
    assert seen == ["its sink"]
    assert [type(outcome) for outcome in outcomes] == [Ended]
    assert recorded(database) == ["shop:order"]


async def test_a_caller_within_the_process_has_no_sink(compiler: Compiler) -> None:
    async def follow(_: Follow, sink: Sink) -> None:
        raise NotImplementedError

    with pytest.raises(Unimplemented, match=r"in the daemon, use bus\.subscribe"):
        await sent(compiler.handler(follow, "shop"))


async def test_a_subscriber_is_called_with_the_event(compiler: Compiler) -> None:
    seen: list[object] = []

    async def hear(told: Sold, store: Store) -> None:
        seen.append((told, store.name))

    event, call = compiler.subscriber(hear)
    await call(Sold(n=1), asked())
    assert (event, seen) == (Sold, [(Sold(n=1), "store")])


def test_a_notification_has_no_handler(compiler: Compiler) -> None:
    async def hear(told: Sold) -> None: ...

    assert refusal(compiler, hear) == "hear takes a Sold; use @subscriber for it"


def test_a_request_has_no_subscriber(compiler: Compiler) -> None:
    async def buy(request: Buy) -> Bought: ...  # type: ignore[empty-body]

    assert refusal(compiler, buy, "subscriber") == "buy takes a Buy; use @handler for it"


def test_a_handler_that_does_not_say_what_it_returns_is_refused(compiler: Compiler) -> None:
    async def buy(request: Buy): ...  # type: ignore[no-untyped-def]

    assert "buy does not say what it returns" in refusal(compiler, buy)


def test_a_stream_that_does_not_say_what_it_returns_is_told_what_to_write(compiler: Compiler) -> None:
    async def follow(request: Follow):  # type: ignore[no-untyped-def]
        yield Bought()

    assert "write -> AsyncIterator[Bought]" in refusal(compiler, follow)


def test_a_reply_of_another_type_is_refused(compiler: Compiler) -> None:
    async def buy(request: Buy) -> Sold: ...  # type: ignore[empty-body]

    assert "buy returns Sold, but shop:buy is answered with Bought" in refusal(compiler, buy)


def test_an_optional_reply_is_refused(compiler: Compiler) -> None:
    async def buy(request: Buy) -> Bought | None: ...

    assert "but shop:buy is answered with Bought" in refusal(compiler, buy)


def test_items_of_another_type_are_refused(compiler: Compiler) -> None:
    async def follow(request: Follow) -> AsyncIterator[Sold]:
        yield Sold()

    assert "but shop:follow is answered with AsyncIterator[Bought]" in refusal(compiler, follow)


def test_a_generator_that_says_it_returns_nothing_is_refused(compiler: Compiler) -> None:
    async def follow(request: Follow) -> None:  # type: ignore[misc]
        yield Bought()

    assert "but shop:follow is answered with AsyncIterator[Bought]" in refusal(compiler, follow)


def test_a_handler_whose_first_parameter_is_no_event_is_refused() -> None:
    async def buy(request: dict[str, Any]) -> Bought: ...  # type: ignore[empty-body]

    with pytest.raises(
        HandlerError, match="the first parameter must be annotated with the class of an event"
    ):
        event_of(buy)


def test_a_handler_of_a_class_that_declares_no_event_is_refused() -> None:
    async def buy(request: Bought) -> Bought: ...  # type: ignore[empty-body]

    with pytest.raises(
        HandlerError, match="the first parameter must be annotated with the class of an event"
    ):
        event_of(buy)


def test_a_handler_without_parameters_is_refused() -> None:
    async def buy() -> Bought: ...  # type: ignore[empty-body]

    with pytest.raises(HandlerError, match="the first parameter must be annotated"):
        event_of(buy)


def test_an_annotation_of_nothing_is_refused() -> None:
    async def buy(request: "Byu") -> Bought: ...  # type: ignore[name-defined,empty-body]  # noqa: F821

    with pytest.raises(HandlerError, match="annotation not found at load: name 'Byu' is not defined"):
        event_of(buy)


def test_a_service_that_nobody_offers_is_refused(compiler: Compiler) -> None:
    async def buy(request: Buy, loop: asyncio.Event) -> Bought: ...  # type: ignore[empty-body]

    with pytest.raises(ServiceError, match="no plugin offers the service Event; there are Cache, Store"):
        compiler.handler(buy, "shop")


def test_a_service_without_a_type_is_refused(compiler: Compiler) -> None:
    async def buy(request: Buy, store) -> Bought: ...  # type: ignore[no-untyped-def,empty-body]

    with pytest.raises(HandlerError, match=r"parameter store of .*buy has no type"):
        compiler.handler(buy, "shop")
