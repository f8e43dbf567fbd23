"""What runs without a task is told by its declaration, at load; what is declared wrongly is refused there."""

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_common.envelope import EventEnvelope, current_envelope, event_context
from ksi_common.errors import InternalError, InvalidArgument
from ksi_common.messages import Message, Notification, Rendered, Request
from ksi_daemon.breadcrumb import Breadcrumb
from ksi_daemon.database import Database, Transaction, Unit
from ksi_daemon.handlers import Compiler
from ksi_daemon.immediate import HandlerError
from ksi_daemon.outcomes import Outcome, Replied
from ksi_daemon.router import Route
from ksi_daemon.services import Services
from ksi_daemon.threads import Threads
from tests.support.databases import rows


class Bought(Message):
    n: int = 0
    who: str = ""


class RareBought(Bought):
    pass


class Sold(Notification, event="shop:sold"):
    n: int = 0


class Buy(Request[Bought], event="shop:buy"):
    """Buy."""

    n: int = 1


class Look(Request[Bought], event="shop:look", safe=True):
    """Look."""


class Store:
    name = "store"


@pytest.fixture
def compiler(database: Database) -> Compiler:
    services = Services()
    services.offer(Store, Store())
    return Compiler(services, Threads(), database)


async def reply(route: Route, data: dict[str, Any] | None = None) -> Any:
    """Handle an event as the router would; give the value of its reply."""
    outcomes: list[Outcome] = []

    async def send(outcome: Outcome) -> None:
        outcomes.append(outcome)

    envelope = EventEnvelope(route.spec.name, data or {}, "e1", "c1", spec=route.spec)
    with event_context(envelope):
        await route.handle(envelope, send)
    (outcome,) = outcomes
    assert isinstance(outcome, Replied)
    return outcome.value


def recorded(database: Database) -> list[str]:
    return [name for (name,) in rows(database.path, "SELECT name FROM log ORDER BY seq")]


async def test_a_handler_that_takes_the_transaction_is_the_unit(
    compiler: Compiler, database: Database
) -> None:
    def buy(request: Buy, tx: Transaction, store: Store) -> Bought:
        tx.tell(Sold(n=request.n))
        return Bought(n=request.n, who=f"{threading.current_thread().name} {store.name}")

    route = compiler.handler(buy, "shop")
    assert await reply(route, {"n": 3}) == Bought(n=3, who="ksi-writer store")
    assert recorded(database) == ["shop:buy", "shop:sold"]


async def test_a_unit_has_the_envelope_that_it_asks_for_and_works_for(compiler: Compiler) -> None:
    def buy(_: Buy, tx: Transaction, store: Store, envelope: EventEnvelope) -> Bought:
        assert tx.envelope is envelope is current_envelope()
        return Bought(who=f"{envelope.event_id} {store.name}")

    assert await reply(compiler.handler(buy, "shop")) == Bought(who="e1 store")


async def test_a_unit_of_a_safe_request_leaves_no_row_of_it(compiler: Compiler, database: Database) -> None:
    def look(_: Look, tx: Transaction) -> Bought:
        return Bought(n=tx.version("none"))

    assert await reply(compiler.handler(look, "shop")) == Bought(n=0)
    assert recorded(database) == []


async def test_a_unit_that_gives_something_else_is_taken_back(compiler: Compiler, database: Database) -> None:
    def buy(_: Buy, tx: Transaction) -> Bought:
        tx.tell(Sold())
        return {"n": 1}  # type: ignore[return-value]

    with pytest.raises(InternalError, match="the handler of shop:buy returned dict, not Bought"):
        await reply(compiler.handler(buy, "shop"))
    assert recorded(database) == []


async def test_a_narrower_reply_is_a_reply(compiler: Compiler) -> None:
    def buy(_: Buy, tx: Transaction) -> RareBought:
        return RareBought(n=1)

    assert await reply(compiler.handler(buy, "shop")) == RareBought(n=1)


async def test_data_that_does_not_fit_is_refused_before_the_handler(compiler: Compiler) -> None:
    def buy(_: Buy, tx: Transaction) -> Bought:
        raise NotImplementedError

    with pytest.raises(InvalidArgument, match="n: input should be a valid integer"):
        await reply(compiler.handler(buy, "shop"), {"n": "x"})


def buy_now(_: Buy, store: Store) -> Bought | Unit[Bought]:
    return Bought(who=f"{threading.current_thread().name} {store.name}")


def buy_unit(request: Buy) -> Unit[Bought]:
    return lambda tx: Bought(n=request.n, who=threading.current_thread().name)


def buy_later(_: Buy) -> Bought | Awaitable[Bought]:
    return _bought()


async def _bought() -> Bought:
    return Bought(who=threading.current_thread().name)


def buy_rendered(_: Buy) -> Unit[Rendered[Bought]]:
    return lambda tx: Rendered(Bought, b'{"n":9}')


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (buy_now, Bought(who="MainThread store")),
        (buy_unit, Bought(n=1, who="ksi-writer")),
        (buy_later, Bought(who="MainThread")),
        (buy_rendered, Rendered(Bought, b'{"n":9}')),
    ],
)
async def test_what_may_be_a_unit_or_awaited_runs_on_the_loop_and_leaves_its_row(
    compiler: Compiler, database: Database, function: Callable[..., Any], given: Any
) -> None:
    route = compiler.handler(function, "shop")
    assert route.begin is not None
    value = await reply(route)
    assert getattr(value, "data", value) == getattr(given, "data", given)
    assert recorded(database) == ["shop:buy"]


@pytest.mark.parametrize("value", [None, Sold(), Rendered(Sold, b"{}")])
async def test_another_type_at_run_time_is_a_bug(compiler: Compiler, value: Any) -> None:
    def look(_: Look) -> Bought | Awaitable[Bought]:
        return value  # type: ignore[no-any-return]

    with pytest.raises(InternalError, match="the handler of shop:look returned"):
        await reply(compiler.handler(look, "shop"))


def test_a_handler_that_waits_or_blocks_is_not_begun_at_once(compiler: Compiler) -> None:
    async def waiting(_: Buy) -> Bought:
        raise NotImplementedError

    def blocking(_: Buy) -> Bought:
        raise NotImplementedError

    assert compiler.handler(waiting, "shop").begin is None
    assert compiler.handler(blocking, "shop").begin is None


async def async_unit(_: Buy, tx: Transaction) -> Bought:
    raise NotImplementedError


def late_transaction(_: Buy, store: Store, tx: Transaction) -> Bought:
    raise NotImplementedError


def other_reply(_: Buy, tx: Transaction) -> Sold:
    raise NotImplementedError


def other_unit(_: Buy) -> Bought | Unit[Sold]:
    raise NotImplementedError


def other_awaited(_: Buy) -> Bought | Awaitable[int]:
    raise NotImplementedError


async def async_later(_: Buy) -> Bought | Awaitable[Bought]:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (async_unit, "async_unit takes a Transaction: it is a unit of work, which is no async function"),
        (late_transaction, "late_transaction must take its Transaction as the second parameter"),
        (other_reply, "other_reply returns Sold, but shop:buy is answered with Bought"),
        (other_unit, "but shop:buy is answered with Bought"),
        (other_awaited, "but shop:buy is answered with Bought"),
        (async_later, "but shop:buy is answered with Bought"),
    ],
)
def test_what_is_declared_wrongly_is_refused_at_load(
    compiler: Compiler, function: Callable[..., Any], says: str
) -> None:
    with pytest.raises(HandlerError) as refused:
        compiler.handler(function, "shop")
    assert says in refused.value.message


def test_what_a_foreign_handler_does_at_once_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "crumb"
    seen: list[bytes] = []

    def begin(_: EventEnvelope) -> Replied:
        seen.append(path.read_bytes().rstrip(b"\0"))
        return Replied(Bought())

    with Breadcrumb(path) as breadcrumb:
        breadcrumb.before("shop", begin)(EventEnvelope("shop:buy", {}, "e1", "c1"))
        assert path.read_bytes().strip(b"\0") == b""
    assert seen == [b"shop"]
