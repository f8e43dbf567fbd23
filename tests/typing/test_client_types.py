"""What the clients promise to a type checker. mypy reads this; pytest runs it against nothing."""

from typing import assert_type

from ksi_client import AsyncClient, AsyncItems, Client, Items, RawClient
from ksi_common.bus import Bus, Delivered
from ksi_common.events import event, state, system
from ksi_common.frames import Item, Mark


def test_an_async_client_is_a_bus() -> None:
    bus: Bus = AsyncClient()
    assert bus is not None


async def read_async(client: AsyncClient) -> None:
    assert_type(await client.call(state.Get(key="a")), state.Found)
    assert_type(await client.call(system.Health(), timeout_s=1), system.Healthy)
    assert_type(client.stream(event.Subscribe(patterns=["a:*"])), AsyncItems[event.Subscribed])
    assert_type(client.subscribe("a:*"), AsyncItems[Delivered])
    assert_type(client.subscribe(["a:*", "b:c"], start={"cursor": "x"}), AsyncItems[Delivered])
    assert_type(client.subscribe("a:*", marks=True), AsyncItems[Delivered | Mark])
    await client.call("state:get")  # type: ignore[arg-type]
    await client.call(event.Subscribe(patterns=["a:*"]))  # type: ignore[arg-type]
    client.stream(state.Get(key="a"))  # type: ignore[arg-type]
    await client.notify(state.Get(key="a"))  # type: ignore[arg-type]


def read_blocking(client: Client) -> None:
    assert_type(client.call(state.Get(key="a")), state.Found)
    assert_type(client.stream(event.Subscribe(patterns=["a:*"])), Items[event.Subscribed])
    assert_type(client.subscribe("a:*"), Items[Delivered])
    assert_type(client.subscribe("a:*", marks=True), Items[Delivered | Mark])
    client.call(event.Subscribe(patterns=["a:*"]))  # type: ignore[arg-type]


def read_raw(client: RawClient) -> None:
    assert_type(client.subscribe_raw("a:*"), Items[Item | Mark])
    assert_type(next(client.subscribe_raw("a:*")), Item | Mark)
