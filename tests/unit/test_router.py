"""One look-up finds the handler; what nobody handles is refused with the nearest names."""

from collections.abc import Mapping
from typing import Any

import pytest

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import NotFound
from ksi_common.messages import EventSpec, Message
from ksi_daemon.outcomes import Outcome, Replied, Send
from ksi_daemon.router import Absent, Route, Router


async def handle(envelope: EventEnvelope, send: Send) -> None:
    await send(Replied({"handled": envelope.event}))


def route(name: str) -> Route:
    return Route(EventSpec(name, "request", Message), Message, "shop", handle)


ROUTES = {name: route(name) for name in ("shop:buy", "shop:sell", "shop:sells", "shop:seal", "state:get")}


class Unrouted:
    """A plugin that takes what no class declares."""

    def __init__(self, reply: Mapping[str, Any] | None) -> None:
        self.asked: list[str] = []
        self._reply = reply

    async def __call__(self, envelope: EventEnvelope) -> Mapping[str, Any] | None:
        self.asked.append(envelope.event)
        return self._reply


async def routed(router: Router, event: str) -> object:
    outcomes: list[Outcome] = []

    async def send(outcome: Outcome) -> None:
        outcomes.append(outcome)

    await router(EventEnvelope(event, {}, "e1", "c1"), send)
    (outcome,) = outcomes
    assert isinstance(outcome, Replied)
    return outcome.value


async def refused(router: Router, event: str) -> NotFound:
    with pytest.raises(NotFound) as refusal:
        await routed(router, event)
    return refusal.value


async def test_an_event_goes_to_its_handler() -> None:
    assert await routed(Router(ROUTES), "shop:buy") == {"handled": "shop:buy"}


async def test_a_declared_event_is_not_offered_to_plugins_that_take_any() -> None:
    unrouted = Unrouted({"n": 1})
    await routed(Router(ROUTES, unrouted), "shop:buy")
    assert unrouted.asked == []


async def test_an_undeclared_event_is_answered_by_a_plugin_that_takes_it() -> None:
    assert await routed(Router(ROUTES, Unrouted({"n": 1})), "other:ask") == {"n": 1}


async def test_an_empty_answer_of_such_a_plugin_is_an_answer() -> None:
    assert await routed(Router(ROUTES, Unrouted({})), "other:ask") == {}


@pytest.mark.parametrize("unrouted", [None, Unrouted(None)], ids=["no such plugin", "none wants it"])
async def test_an_event_that_nobody_takes_is_refused(unrouted: Unrouted | None) -> None:
    error = await refused(Router(ROUTES, unrouted), "zzzz")
    assert error.message == 'no plugin handles "zzzz"'
    assert error.details == {"reason": "unknown_event", "nearest": []}
    assert error.hint == "system:discover lists what there is"


async def test_the_nearest_name_is_guessed() -> None:
    error = await refused(Router(ROUTES), "state:gett")
    assert error.details["nearest"][0] == "state:get"
    assert error.hint == "did you mean state:get?"


async def test_an_event_of_a_plugin_that_is_off_says_why() -> None:
    off = Absent("shop", "refused: no such setting", "mend that")
    router = Router(ROUTES, absent=lambda event: off if event.startswith("shop:") else None)
    error = await refused(router, "shop:selll")
    assert error.message == "no plugin handles shop:selll: plugin shop is refused: no such setting"
    assert (error.code, error.details["reason"]) == ("NOT_FOUND", "plugin_off")
    assert error.hint == "mend that and restart the daemon; plugin:list shows every plugin"
    assert (await refused(router, "other:selll")).details["reason"] == "unknown_event"


async def test_three_guesses_at_most_are_given() -> None:
    error = await refused(Router(ROUTES), "shop:selll")
    near = error.details["nearest"]
    assert len(near) == 3
    assert "shop:buy" not in near
    assert error.hint == f"did you mean {' or '.join(near)}?"


async def test_a_long_name_is_shown_in_part() -> None:
    error = await refused(Router(ROUTES), "x" * 100_000)
    assert error.message == f'no plugin handles "{"x" * 125}..."'


async def test_a_route_that_is_taken_out_is_gone() -> None:
    routes = dict(ROUTES)
    router = Router(routes)
    assert await routed(router, "shop:buy") == {"handled": "shop:buy"}
    routes.clear()
    assert (await refused(router, "shop:buy")).details["reason"] == "unknown_event"
