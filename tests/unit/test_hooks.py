"""The relay awaits what plugins implement, in pluggy's order; what is implemented wrongly is refused."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ksi_common.envelope import EventEnvelope
from ksi_daemon.hooks import HookError, Relay
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.services import Service


@pytest.fixture
def relay() -> Relay:
    return Relay()


def plugin(*functions: Callable[..., Any]) -> SimpleNamespace:
    """Make a module of hooks."""
    return SimpleNamespace(**{function.__name__: hookimpl(function) for function in functions})


def answering(answer: object, asked: list[object] | None = None, **options: bool) -> SimpleNamespace:
    """Make a module that answers events that no class declares."""

    async def ksi_handle_event(event: str) -> object:
        if asked is not None:
            asked.append(answer)
        return None if answer is None else {"answer": answer}

    hookimpl(ksi_handle_event, **options)  # type: ignore[call-overload]  # flags, by their names
    return SimpleNamespace(ksi_handle_event=ksi_handle_event)


def envelope() -> EventEnvelope:
    return EventEnvelope("demo:ask", {"n": 1}, "e1", "c1")


async def test_an_event_is_answered_by_the_plugin_registered_last(relay: Relay) -> None:
    asked: list[object] = []
    for name in ("a", "b", "c"):
        relay.register(answering(name, asked), name)
    assert await relay.handle_event(envelope()) == {"answer": "c"}
    assert asked == ["c"]


async def test_an_answer_that_is_awaited_to_none_passes_the_event_on(relay: Relay) -> None:
    asked: list[object] = []
    relay.register(answering("a", asked), "a")
    relay.register(answering(None, asked), "b")
    assert await relay.handle_event(envelope()) == {"answer": "a"}
    assert asked == [None, "a"]


async def test_an_empty_answer_is_an_answer(relay: Relay) -> None:
    async def ksi_handle_event() -> dict[str, Any]:
        return {}

    relay.register(answering("a"), "a")
    relay.register(plugin(ksi_handle_event), "b")
    assert await relay.handle_event(envelope()) == {}


async def test_an_event_that_nobody_wants_is_not_answered(relay: Relay) -> None:
    relay.register(answering(None), "a")
    assert await relay.handle_event(envelope()) is None


async def test_a_plugin_may_ask_to_be_first_or_last(relay: Relay) -> None:
    asked: list[object] = []
    relay.register(answering(None, asked, tryfirst=True), "first")
    relay.register(SimpleNamespace(), "between")
    relay.register(answering(0, asked, trylast=True), "last")
    await relay.handle_event(envelope())
    assert asked == [None, 0]


async def test_a_raise_asks_nobody_further(relay: Relay) -> None:
    asked: list[object] = []

    async def ksi_handle_event() -> int:
        return int("oh")

    relay.register(answering("a", asked), "a")
    relay.register(plugin(ksi_handle_event), "b")
    with pytest.raises(ValueError, match="oh"):
        await relay.handle_event(envelope())
    assert asked == []


async def test_a_hook_is_given_the_parameters_that_it_names(relay: Relay) -> None:
    async def ksi_handle_event(data: Any, context: EventEnvelope) -> Any:
        return {"data": data, "id": context.correlation_id}

    relay.register(plugin(ksi_handle_event), "a")
    assert await relay.handle_event(envelope()) == {"data": {"n": 1}, "id": "c1"}


async def test_a_plain_function_may_implement_an_awaited_hook(relay: Relay) -> None:
    def ksi_handle_event(event: str) -> dict[str, Any]:
        return {"event": event}

    relay.register(plugin(ksi_handle_event), "a")
    assert await relay.handle_event(envelope()) == {"event": "demo:ask"}


async def test_it_is_known_whether_anybody_wants_undeclared_events(relay: Relay) -> None:
    wanted = [relay.handles_unrouted]
    relay.register(answering(1), "a")
    wanted.append(relay.handles_unrouted)
    relay.unregister("a")
    wanted.append(relay.handles_unrouted)
    assert wanted == [False, True, False]


async def test_startup_is_awaited_of_the_plugin_named_only(relay: Relay) -> None:
    started: list[tuple[str, object]] = []

    def module(name: str) -> SimpleNamespace:
        async def ksi_startup(bus: object) -> None:
            started.append((name, bus))

        return plugin(ksi_startup)

    relay.register(module("a"), "a")
    relay.register(module("b"), "b")
    await relay.startup("a", bus="bus", services="services")
    assert started == [("a", "bus")]


async def test_serve_and_shutdown_are_awaited(relay: Relay) -> None:
    passed: list[str] = []

    async def ksi_serve(services: object) -> None:
        passed.append(f"served with {services}")

    async def ksi_shutdown() -> None:
        passed.append("shut down")

    relay.register(plugin(ksi_serve, ksi_shutdown), "a")
    await relay.serve("a", bus="bus", services="services")
    await relay.shutdown("a")
    assert passed == ["served with services", "shut down"]


async def test_it_is_known_whether_a_plugin_serves(relay: Relay) -> None:
    async def ksi_serve() -> None:
        pass

    relay.register(plugin(ksi_serve), "a")
    relay.register(SimpleNamespace(), "b")
    assert relay.serves("a")
    assert not relay.serves("b")


async def test_what_a_plugin_does_not_implement_is_not_awaited(relay: Relay) -> None:
    relay.register(SimpleNamespace(), "a")
    await relay.startup("a", bus=None, services=None)
    await relay.shutdown("a")


def test_declarations_are_those_of_the_plugin_named(relay: Relay) -> None:
    def handle() -> None:
        pass

    service = Service(int, lambda: NotImplemented)

    def ksi_handlers() -> Any:
        return [handle]

    def ksi_services() -> Any:
        return [service]

    def ksi_migrations() -> Any:
        return {1: "CREATE"}

    relay.register(plugin(ksi_handlers, ksi_services, ksi_migrations), "a")
    assert relay.handlers("a") == [handle]
    assert relay.services("a") == [service]
    assert relay.migrations("a") == {1: "CREATE"}
    assert (relay.handlers("b"), relay.services("b"), relay.migrations("b")) == ([], [], {})


def test_a_declaration_of_none_declares_nothing(relay: Relay) -> None:
    def ksi_middleware() -> None:
        return None

    relay.register(plugin(ksi_middleware), "a")
    assert relay.middleware("a") == []


def test_an_observer_is_given_the_parameters_that_it_names(relay: Relay) -> None:
    seen: list[object] = []

    def ksi_event_handled(code: str, envelope: EventEnvelope) -> None:
        seen.append((code, envelope.event))

    relay.register(plugin(ksi_event_handled), "a")
    (observe,) = relay.observers("a")
    observe(envelope(), 0.1, "OK")
    assert seen == [("OK", "demo:ask")]


def test_every_hook_is_described(relay: Relay) -> None:
    relay.register(answering(1), "a")
    relay.register(answering(2), "b")
    hooks = {hook.name: hook for hook in relay.hooks()}
    assert len(hooks) == 14
    handle = hooks["ksi_handle_event"]
    assert handle.parameters == ["event", "data", "context"]
    assert handle.plugins == ["b", "a"]
    assert all(hook.summary for hook in hooks.values())


def test_the_hooks_of_a_plugin_are_listed(relay: Relay) -> None:
    relay.register(answering(1), "a")
    assert relay.hooks_of("a") == ["ksi_handle_event"]
    assert relay.hooks_of("b") == []


def test_a_plugin_that_was_never_registered_can_be_let_go(relay: Relay) -> None:
    relay.unregister("nobody")


def refusal(relay: Relay, *functions: Callable[..., Any]) -> str:
    with pytest.raises(HookError) as refused:
        relay.register(plugin(*functions), "a")
    return refused.value.message


def test_a_parameter_that_the_hook_does_not_have_is_refused(relay: Relay) -> None:
    async def ksi_startup(bus: object, servises: object) -> None:
        pass

    message = "hook ksi_startup has no parameter servises; it has bus, services"
    assert refusal(relay, ksi_startup) == message


def test_a_parameter_of_a_hook_that_has_none_is_refused(relay: Relay) -> None:
    def ksi_handlers(bus: object) -> Any:
        return []

    assert refusal(relay, ksi_handlers) == "hook ksi_handlers has no parameter bus; it has none"


def test_an_unknown_hook_is_refused_with_a_guess(relay: Relay) -> None:
    def ksi_handler() -> Any:
        return []

    assert refusal(relay, ksi_handler) == "there is no hook ksi_handler; did you mean ksi_handlers?"


def test_an_unknown_hook_like_no_other_is_refused_without_one(relay: Relay) -> None:
    def zzz() -> None:
        pass

    assert refusal(relay, zzz) == "there is no hook zzz"


def test_an_async_function_for_a_hook_that_is_not_awaited_is_refused(relay: Relay) -> None:
    async def ksi_services() -> Any:
        return []

    message = "hook ksi_services is called without await; ksi_services must not be async"
    assert refusal(relay, ksi_services) == message


def test_a_refused_plugin_is_not_registered(relay: Relay) -> None:
    async def ksi_handle_event(event: str) -> str:
        return event

    def ksi_handler() -> None:
        pass

    refusal(relay, ksi_handle_event, ksi_handler)
    assert not relay.handles_unrouted


def test_a_hook_may_be_implemented_under_another_name(relay: Relay) -> None:
    def handle() -> None:
        pass

    def mine() -> Any:
        return [handle]

    relay.register(SimpleNamespace(mine=hookimpl(specname="ksi_handlers")(mine)), "a")
    assert relay.handlers("a") == [handle]


@pytest.mark.parametrize(
    ("hook", "ask"),
    [
        ("ksi_settings", Relay.settings),
        ("ksi_migrations", Relay.migrations),
        ("ksi_services", Relay.services),
        ("ksi_cli", Relay.commands),
    ],
)
def test_a_hook_that_gives_none_gives_nothing(
    relay: Relay, hook: str, ask: Callable[[Relay, str], object]
) -> None:
    relay.register(SimpleNamespace(**{hook: hookimpl(lambda: None)}), "a")
    assert not ask(relay, "a")
