"""What a bus promises to a type checker. mypy reads this; an ignore too many is an error."""

from collections.abc import AsyncIterator, Mapping
from typing import assert_type

from pydantic import JsonValue

from ksi_common.bus import Bus, Delivered
from ksi_common.events import event, state, system
from ksi_daemon.plugin import Database, Message, Notification, Request, Stream, handler, subscriber


class Greeting(Message):
    text: str


class Greet(Request[Greeting], event="typed:greet"):
    name: str = "world"


class Follow(Stream[Greeting], event="typed:follow"):
    name: str = "world"


class Greeted(Notification, event="typed:greeted"):
    name: str


async def ask(bus: Bus) -> None:
    assert_type(await bus.call(state.Get(key="a")), state.Found)
    assert_type(await bus.call(state.Set(key="a", value={"b": [1, None]})), state.Stored)
    assert_type(await bus.call(system.Health(), timeout_s=1), system.Healthy)
    assert_type(await bus.call(Greet(name="Ada")), Greeting)
    assert_type((await bus.call(Greet())).text, str)
    assert_type((await bus.call(state.Get(key="a"))).value, JsonValue)
    await bus.call("state:get")  # type: ignore[arg-type]
    await bus.call(Follow())  # type: ignore[arg-type]
    await bus.call(Greeted(name="Ada"))  # type: ignore[arg-type]
    Greet(nmae="Ada")  # type: ignore[call-arg]
    state.Get()  # type: ignore[call-arg]


async def follow(bus: Bus) -> None:
    assert_type(bus.stream(Follow()), AsyncIterator[Greeting])
    assert_type(bus.stream(event.Subscribe(patterns=["a:*"])), AsyncIterator[event.Subscribed])
    bus.stream(Greet())  # type: ignore[arg-type]
    assert_type(bus.subscribe("typed:*"), AsyncIterator[Delivered])
    async for delivered in bus.subscribe(["typed:*"], start={"cursor": "x"}):
        assert_type(delivered.data, Mapping[str, JsonValue])


async def tell(bus: Bus) -> None:
    await bus.notify(Greeted(name="Ada"))
    await bus.notify(Greet())  # type: ignore[arg-type]


@handler
async def greet(request: Greet, database: Database) -> Greeting:
    assert_type(request.name, str)
    return Greeting(text=request.name)


@subscriber
async def hear(greeted: Greeted) -> None:
    assert_type(greeted.name, str)


async def call_directly(database: Database) -> None:
    assert_type(await greet(Greet(), database), Greeting)  # a decorated handler keeps its type
    await greet(Follow(), database)  # type: ignore[arg-type]


def test_the_events_that_are_typed_here_are_declared() -> None:
    assert [cls.__ksi__.kind for cls in (Greet, Follow, Greeted)] == ["request", "stream", "notification"]
