"""An event that nobody handles is missing for a reason: the plugin that would handle it does not run."""

from types import ModuleType

import pytest

from ksi_common.envelope import EventEnvelope
from ksi_common.messages import EventSpec, Message, Request
from ksi_daemon.absence import absent_by
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.outcomes import Send
from ksi_daemon.plugin import handler
from ksi_daemon.router import Absent, Route


class Sold(Message):
    """It is sold."""


class Sell(Request[Sold], event="counter:sell"):
    """Sell."""


@handler
def sell(request: Sell) -> Sold:
    """Sell."""
    del request
    return Sold()


@handler
def nonsense(request) -> Sold:  # type: ignore[no-untyped-def]
    """Be what cannot be handled."""
    del request
    return Sold()


def catalog_of(status: str, error: str | None) -> Catalog:
    module = ModuleType("shop")
    vars(module).update(nonsense=nonsense, sell=sell)
    catalog = Catalog()
    catalog.plugins["shop"] = Plugin("shop", "shop", "1", module=module, status=status, error=error)  # type: ignore[arg-type]
    catalog.plugins["gone"] = Plugin("gone", "gone", "1", status="disabled", error=None)
    return catalog


def served(catalog: Catalog, event: str) -> Catalog:
    """Have another plugin serve an event."""

    async def handle(envelope: EventEnvelope, send: Send) -> None:
        del envelope, send

    catalog.routes[event] = Route(EventSpec(event, "request", Message), Message, "other", handle)
    return catalog


def test_what_may_be_a_misspelt_event_of_others_is_nobodys() -> None:
    absent = absent_by(served(catalog_of("refused", "no such setting"), "counter:count"))
    assert absent("counter:cuont") is None
    assert absent("counter:sell") is not None


def test_a_module_that_cannot_be_looked_at_is_found_by_its_name() -> None:
    class Lazy:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(name)

    catalog = catalog_of("refused", "lazy")
    vars(catalog.plugins["shop"].module)["lazy"] = Lazy()
    assert absent_by(catalog)("shop:buy") is not None
    assert absent_by(catalog)("other:ask") is None


@pytest.mark.parametrize("event", ["shop:buy", "counter:sell", "counter:other"], ids=["name", "own", "near"])
def test_a_plugin_is_found_by_its_name_and_by_what_it_would_handle(event: str) -> None:
    absent = absent_by(catalog_of("refused", "no such setting"))
    assert absent(event) == Absent("shop", "refused: no such setting", "mend that")


def test_a_plugin_that_was_never_imported_is_found_by_its_name() -> None:
    assert absent_by(catalog_of("loaded", None))("gone:ask") == Absent(
        "gone", "disabled", "ksi plugin enable gone"
    )


@pytest.mark.parametrize("event", ["counter:other", "shop:buy", "other:ask"])
def test_what_no_plugin_is_missing_for_is_nobodys(event: str) -> None:
    assert absent_by(catalog_of("loaded", None))(event) is None
