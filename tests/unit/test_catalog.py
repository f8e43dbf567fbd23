"""The catalog knows what is loaded, who handles and tells what, and whose fault a bug is."""

from collections.abc import Callable
from types import ModuleType

import pytest

from ksi_common.envelope import EventEnvelope
from ksi_common.messages import Message, Notification, Request, spec_of
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.outcomes import Send
from ksi_daemon.router import Route


class Bought(Message):
    n: int


class Buy(Request[Bought], event="shop:buy"):
    """Buy."""


class Count(Request[Bought], event="shop:count"):
    """Count."""


class Audit(Request[Bought], event="shop:audit", expose=False):
    """Audit."""


class Look(Request[Bought], event="room:look"):
    """Look."""


class Sold(Notification, event="shop:sold"):
    n: int


async def handle(_: EventEnvelope, __: Send) -> None:
    raise NotImplementedError


def route(message: type[Request[Bought]], plugin: str = "shop") -> Route:
    return Route(spec_of(message), message, plugin, handle)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(
        plugins={"shop": Plugin("shop", "shop.py", told=["shop:sold"]), "room": Plugin("room", "room.py")},
        routes={spec_of(message).name: route(message) for message in (Count, Buy, Audit, Look)},
        notifications={"shop:sold": Sold},
    )


@pytest.mark.parametrize(("event", "found"), [("shop:buy", Buy), ("shop:sold", Sold), ("shop:other", None)])
def test_a_class_is_found_by_the_name_of_its_event(
    catalog: Catalog, event: str, found: type[Message] | None
) -> None:
    assert catalog.message_class(event) is found


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("/site/shop/handlers.py", "shop"),
        ("/site/shop/store/rows.py", "shop"),
        ("/site/shop/rooms.py", "room"),
        ("/site/shopping.py", None),
        ("/site/single.py", "single"),
        ("/site/fractions.py", None),
    ],
)
def test_a_plugin_has_the_files_of_its_package(catalog: Catalog, file: str, owner: str | None) -> None:
    catalog.plugins["single"] = Plugin("single", "single.py")
    for plugin, module, package in (
        ("shop", "shop/handlers", "shop"),
        ("room", "shop/rooms", "shop"),
        ("single", "single", ""),
    ):
        made = catalog.plugins[plugin].module = ModuleType(module.replace("/", "."))
        made.__file__, made.__package__ = f"/site/{module}.py", package
    found = catalog.owner_of(file)
    assert (found.name if found else None) == owner


def test_the_nearest_names_are_of_asked_and_told_events(catalog: Catalog) -> None:
    assert catalog.nearest("shop:buyy")[0] == "shop:buy"
    assert catalog.nearest("shop:solt")[0] == "shop:sold"
    assert catalog.nearest("zzzz") == []


def test_who_tells_an_event_is_who_declares_it(catalog: Catalog) -> None:
    assert catalog.plugin_telling("shop:sold") == "shop"


def test_an_event_that_nobody_declares_is_told_by_its_namespace(catalog: Catalog) -> None:
    assert catalog.plugin_telling("timer:failed") == "timer"


@pytest.mark.parametrize(
    "count", [lambda catalog: catalog.blame("shop:buy"), lambda catalog: catalog.charge("shop")]
)
def test_a_bug_is_counted_against_its_plugin(catalog: Catalog, count: Callable[[Catalog], str]) -> None:
    assert count(catalog) == "shop"
    assert (catalog.plugins["shop"].failures, catalog.plugins["room"].failures) == (1, 0)


def test_a_bug_in_what_nobody_declares_is_nobodys(catalog: Catalog) -> None:
    assert catalog.blame("other:ask") == "unknown"
    assert [plugin.failures for plugin in catalog.plugins.values()] == [0, 0]


def names(catalog: Catalog, namespace: str | None = None) -> dict[str, list[str]]:
    found = catalog.by_namespace(namespace)
    return {name: [route.spec.name for route in routes] for name, routes in found.items()}


def test_events_are_listed_by_namespace_in_order_without_those_not_exposed(catalog: Catalog) -> None:
    assert names(catalog) == {"room": ["room:look"], "shop": ["shop:buy", "shop:count"]}
    assert list(names(catalog)) == ["room", "shop"]


def test_events_of_one_namespace_can_be_listed(catalog: Catalog) -> None:
    assert names(catalog, "room") == {"room": ["room:look"]}
    assert names(catalog, "other") == {}
