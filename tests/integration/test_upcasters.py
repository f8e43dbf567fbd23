"""A log of one version is read by code of another: older events are brought up to date, newer ones marked."""

from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.integration.conftest import WritePlugin

COMMON = """
from ksi_daemon.plugin import Bus, Message, Notification, Request, handler, projection, subscriber, upcaster

class Done(Message): pass

class Totals(Message):
    total: int = 0
    currencies: list[str] = []

heard = []
"""

FIRST = """
class Sold(Notification, event="shop:sold"):
    price: int

class Sell(Request[Done], event="shop:sell"):
    '''Sell.'''
    price: int

@handler
async def sell(request: Sell, bus: Bus) -> Done:
    await bus.notify(Sold(price=request.price))
    return Done()
"""

SECOND = """
class Sold(Notification, event="shop:sold", version=2):
    cents: int

class Sell(Request[Done], event="shop:sell"):
    '''Sell.'''
    price: int

@handler
async def sell(request: Sell, bus: Bus) -> Done:
    await bus.notify(Sold(cents=100 * request.price))
    return Done()

@upcaster(Sold, version=1)
def in_cents(data):
    return {"cents": 100 * data["price"]}

@projection(version=1)
def totals(state: Totals, event: Sold) -> Totals:
    return Totals(total=state.total + event.cents)
"""

THIRD = SECOND.replace("version=2", "version=3").replace("cents: int", "cents: int\n    currency: str")
THIRD = THIRD.replace("cents=100 * request.price", "cents=100 * request.price, currency='EUR'")
THIRD = (
    THIRD.replace("projection(version=1)", "projection(version=2)")
    + """
@upcaster(Sold, version=2)
def in_euro(data):
    return {**data, "currency": "EUR"}
"""
)


async def sold(ksi: RunningDaemon) -> list[dict[str, Any]]:
    found = await ksi.call_raw("event:query", {"patterns": ["shop:sold"], "reverse": False})
    return [event["data"] | ({"raw": True} if event["raw"] else {}) for event in found["events"]]


async def followed(ksi: RunningDaemon, number: int) -> list[dict[str, Any]]:
    """Follow from the beginning; give what a client gets."""
    items: list[dict[str, Any]] = []
    async with ksi.connect() as wire:
        wire.send(
            {"event": "event:subscribe", "data": {"patterns": ["shop:sold"], "start": "beginning"}, "id": "s"}
        )
        while len(items) < number:
            frame = await wire.receive()
            if frame["type"] == "item":
                items.append(frame["data"])
    return [item["data"] | ({"raw": True} if item.get("raw") else {}) for item in items]


async def test_a_log_is_read_by_newer_and_by_older_code(tmp_path: Path, write_plugin: WritePlugin) -> None:
    home = tmp_path / "base" / "var"
    async with running_daemon(home=home, plugins=[write_plugin(COMMON + FIRST)]) as ksi:
        await ksi.call_raw("shop:sell", {"price": 1})
        assert await sold(ksi) == await followed(ksi, 1) == [{"price": 1}]
    async with running_daemon(home=home, plugins=[write_plugin(COMMON + SECOND)]) as ksi:
        await ksi.call_raw("shop:sell", {"price": 2})
        both = [{"cents": 100, "$version": 2}, {"cents": 200, "$version": 2}]
        assert await sold(ksi) == await followed(ksi, 2) == both
        cursor = (await ksi.call_raw("system:info"))["log"]["cursor"]
        found = await ksi.call_raw("projection:get", {"name": "totals", "cursor": cursor})
        assert found["value"]["total"] == 300
        assert (await ksi.call_raw("system:help", {"event": "shop:sold"}))["version"] == 2
    async with running_daemon(home=home, plugins=[write_plugin(COMMON + THIRD)]) as ksi:
        three = [{**event, "currency": "EUR", "$version": 3} for event in both]
        assert await sold(ksi) == await followed(ksi, 2) == three
        await ksi.call_raw("shop:sell", {"price": 3})
    async with running_daemon(home=home, plugins=[write_plugin(COMMON + FIRST)]) as ksi:
        older = [
            {"price": 1},
            {"cents": 200, "$version": 2, "raw": True},
            {"cents": 300, "currency": "EUR", "$version": 3, "raw": True},
        ]
        assert await sold(ksi) == await followed(ksi, 3) == older
        delivered = [event async for event in _three(ksi)]
        assert [event.raw for event in delivered] == [False, True, True]
        async with AsyncClient(ksi.paths.socket) as client:
            items = client.subscribe("shop:sold", start="beginning")
            assert [(await anext(items)).raw for _ in range(3)] == [False, True, True]


async def _three(ksi: RunningDaemon) -> Any:
    count = 0
    async for event in ksi.bus.subscribe("shop:sold", start="beginning"):
        yield event
        count += 1
        if count == 3:
            return


async def test_an_event_that_cannot_be_brought_up_to_date_is_given_as_it_is(
    tmp_path: Path, write_plugin: WritePlugin
) -> None:
    home = tmp_path / "base" / "var"
    async with running_daemon(home=home, plugins=[write_plugin(COMMON + FIRST)]) as ksi:
        await ksi.call_raw("shop:sell", {"price": 1})
    broken = SECOND.replace('data["price"]', 'data["prize"]')
    async with running_daemon(home=home, plugins=[write_plugin(COMMON + broken)]) as ksi:
        assert await sold(ksi) == [{"price": 1, "raw": True}]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (SECOND.replace("@upcaster(Sold, version=1)", ""), "has no upcaster of version 1"),
        (THIRD.replace("@upcaster(Sold, version=2)", ""), "has no upcaster of version 2"),
        (THIRD.replace("@upcaster(Sold, version=2)", "@upcaster(Sold, version=1)"), "has two upcasters"),
        (SECOND.replace("@upcaster(Sold, version=1)", "@upcaster(Sold, version=2)"), "which is at 2"),
    ],
)
async def test_what_does_not_lead_to_the_newest_version_refuses_the_plugin(
    write_plugin: WritePlugin, source: str, reason: str
) -> None:
    async with running_daemon(plugins=[write_plugin(COMMON + source)], settings={"strict": False}) as ksi:
        found = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
        assert (found["status"], reason in found["error"]) == ("refused", True), found["error"]
