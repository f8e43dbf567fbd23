"""The relay: the only module that calls pluggy's hooks.

pluggy calls are synchronous: over async implementations ``firstresult`` would return the first coroutine
even if that resolves to None, and a raise would leak the others un-awaited. So the relay takes the
implementations from pluggy, in its order, and awaits them itself.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import pluggy
import structlog
from pydantic import BaseModel

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import FailedPrecondition
from ksi_common.guessing import nearest
from ksi_common.records import record
from ksi_common.strict_json import dumps, non_finite
from ksi_daemon import hookspecs
from ksi_daemon.contributions import Command, HttpRoute
from ksi_daemon.explaining import PluginBug, explain
from ksi_daemon.layers import Layer, layer_of
from ksi_daemon.observers import WaitingObserver
from ksi_daemon.services import Service
from ksi_daemon.supervisor import attempt

if TYPE_CHECKING:
    from ksi_daemon.children import Tasks

log = structlog.get_logger()

PROJECT = "ksi"

MAX_SHOWN: Final = 100
"""Characters of what a hook gives, where it does not fit."""

T = TypeVar("T")

_SPECS: Mapping[str, Callable[..., Any]] = {
    name: spec for name, spec in vars(hookspecs).items() if name.startswith("ksi_")
}


class Marks(Protocol):
    """Where it is noted whose code runs."""

    def during(self, plugin: str, action: Callable[[], T]) -> T:
        """Run what is that plugin's."""
        ...

    def awaiting(self, plugin: str, awaitable: Awaitable[T]) -> Awaitable[T]:
        """Note every step of what is awaited."""
        ...


class HookError(FailedPrecondition):
    """A hook is implemented wrongly; the message says which and how."""


@record
class HookInfo:
    """A hook and the plugins that implement it, in the order they are called."""

    name: str
    summary: str
    parameters: Sequence[str]
    plugins: Sequence[str]


class Relay:
    """Register modules, ask them what they declare, and await what they do."""

    def __init__(self, marks: Marks | None = None) -> None:
        self.tasks: Tasks | None = None
        """Where observers that wait are run; None: before the daemon serves."""
        self._marks = marks
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def register(self, module: object, name: str) -> None:
        """Take a plugin in; raise HookError where a hook is not as specified."""
        for attribute in dir(module):
            options = self._manager.parse_hookimpl_opts(module, attribute)
            if options is not None:
                _check(options["specname"] or attribute, getattr(module, attribute))
        self._manager.register(module, name=name)

    def unregister(self, name: str) -> None:
        """Let a plugin go."""
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)

    def handlers(self, name: str) -> Sequence[Callable[..., Any]]:
        """Give the handlers that a plugin makes at load."""
        return self._listed("ksi_handlers", name, "functions", callable)

    def services(self, name: str) -> Sequence[Service[Any]]:
        """Give the services that a plugin offers."""
        return self._listed("ksi_services", name, "Service(interface, factory)", _is_service)

    def settings(self, name: str) -> type[BaseModel] | None:
        """Give the model of a plugin's settings."""
        models = self._ask("ksi_settings", name)
        for model in models:
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                raise HookError(f"ksi_settings must give a class of pydantic's BaseModel, not {model!r}")
        return models[0] if models else None

    def transports(self, name: str) -> Sequence[hookspecs.Transport]:
        """Give a plugin's ways in."""
        return self._listed("ksi_transports", name, "functions", callable)

    def routes(self, name: str) -> Sequence[HttpRoute]:
        """Give a plugin's paths of HTTP."""
        routes = self._listed("ksi_routes", name, "HttpRoute(…)", lambda each: isinstance(each, HttpRoute))
        return [replace(route, plugin=name) for route in routes]

    def commands(self, name: str) -> Sequence[Command]:
        """Give a plugin's commands."""
        return self._listed("ksi_cli", name, "Command(…)", lambda each: isinstance(each, Command))

    def middleware(self, name: str) -> Sequence[Layer]:
        """Give the layers of a plugin."""
        return [layer_of(given, name) for given in self._listed("ksi_middleware", name, "functions")]

    def migrations(self, name: str) -> Mapping[int, str]:
        """Give the scripts of a plugin's tables."""
        merged: dict[int, str] = {}
        for scripts in self._ask("ksi_migrations", name):
            if scripts and not _are_scripts(scripts):
                raise HookError(
                    f"ksi_migrations must give SQL by number, as {{1: 'CREATE TABLE …'}}, "
                    f"not {_short(scripts)}"
                )
            merged.update(scripts)
        return merged

    async def startup(self, name: str, **arguments: Any) -> None:
        """Await a plugin's preparation."""
        await self._await_one("ksi_startup", name, arguments)

    def serves(self, name: str) -> bool:
        """Tell whether a plugin has something to run."""
        return bool(self._implementations("ksi_serve", name))

    async def serve(self, name: str, **arguments: Any) -> None:
        """Run a plugin's long-running part."""
        await self._await_one("ksi_serve", name, arguments)

    async def drain(self, name: str, **arguments: Any) -> None:
        """Await that a plugin has finished what it has at work."""
        await self._await_one("ksi_drain", name, arguments)

    async def shutdown(self, name: str) -> None:
        """Await a plugin's end."""
        await self._await_one("ksi_shutdown", name, {})

    @property
    def handles_unrouted(self) -> bool:
        """Tell whether any plugin wants events that no class declares."""
        return bool(self._manager.hook.ksi_handle_event.get_hookimpls())

    async def handle_event(self, envelope: EventEnvelope) -> Mapping[str, Any] | None:
        """Ask plugins for an event that no class declares; the first answer that is not None wins.

        Raises PluginBug where that cannot be sent: it is found here, where it is known whose it is.
        """
        arguments = {"event": envelope.event, "data": envelope.data, "context": envelope}
        for implementation in reversed(self._manager.hook.ksi_handle_event.get_hookimpls()):
            answer = await self._call(implementation, arguments)
            if answer is not None:
                if (wrong := _wrong_answer(answer)) is not None:
                    raise PluginBug(
                        f"{envelope.event} was answered with {wrong}",
                        implementation.function,
                        plugin=implementation.plugin_name,
                    )
                return answer  # type: ignore[no-any-return]
        return None

    def observers(self, name: str) -> Sequence[Callable[[EventEnvelope, float, str], None]]:
        """Give a plugin's observers, to be compiled into the path of an event."""
        return [self._observer(name, impl) for impl in self._implementations("ksi_event_handled", name)]

    def hooks(self) -> Sequence[HookInfo]:
        """Describe every hook."""
        infos = []
        for name, spec in sorted(_SPECS.items()):
            caller = getattr(self._manager.hook, name)
            plugins = [impl.plugin_name for impl in reversed(caller.get_hookimpls())]
            summary = (inspect.getdoc(spec) or "").partition("\n")[0]
            infos.append(HookInfo(name, summary, list(inspect.signature(spec).parameters), plugins))
        return infos

    def hooks_of(self, name: str) -> Sequence[str]:
        """List the hooks that a plugin implements."""
        return [info.name for info in self.hooks() if name in info.plugins]

    def _ask(self, hook: str, name: str) -> Sequence[Any]:
        """Give what a plugin's implementations give; one that gives None gives nothing."""
        calls = [impl.function for impl in self._implementations(hook, name)]
        if self._marks is not None:
            calls = [partial(self._marks.during, name, call) for call in calls]
        return [given for call in calls if (given := call()) is not None]

    def _listed(
        self, hook: str, name: str, of_what: str, fits: Callable[[Any], bool] = lambda _: True
    ) -> Sequence[Any]:
        listed: list[Any] = []
        for several in self._ask(hook, name):
            if isinstance(several, str) or not isinstance(several, Iterable):
                raise HookError(f"{hook} must give a list of {of_what}, not {_short(several)}")
            given = list(several)
            for each in given:
                if not fits(each):
                    raise HookError(f"{hook} must give a list of {of_what}; {_short(each)} is none")
            listed += given
        return listed

    def _implementations(self, hook: str, name: str) -> Sequence[Any]:
        caller = getattr(self._manager.hook, hook)
        return [impl for impl in reversed(caller.get_hookimpls()) if impl.plugin_name == name]

    async def _await_one(self, hook: str, name: str, arguments: Mapping[str, Any]) -> None:
        for implementation in self._implementations(hook, name):
            await self._call(implementation, arguments)

    def _observer(self, name: str, implementation: Any) -> Callable[[EventEnvelope, float, str], None]:
        wanted = set(implementation.argnames)

        waits = inspect.iscoroutinefunction(implementation.function)
        waiting = WaitingObserver(name, partial(self._awaited, name), lambda: self.tasks) if waits else None

        def observe(envelope: EventEnvelope, took_s: float, code: str) -> None:
            arguments = {"envelope": _copy_of(envelope), "took_s": took_s, "code": code}
            given = {key: value for key, value in arguments.items() if key in wanted}
            call = partial(implementation.function, **given)
            if waiting is not None:
                waiting.start(call)
                return
            error = attempt(call if self._marks is None else partial(self._marks.during, name, call))
            if isinstance(error, BaseException):
                log.error("observer.failed", plugin=name, handled=envelope.event, error=explain(error))

        return observe

    async def _awaited(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Await what a plugin does, noted as its own."""
        return await (call() if self._marks is None else self._marks.awaiting(name, call()))

    async def _call(self, implementation: Any, arguments: Mapping[str, Any]) -> Any:
        name = implementation.plugin_name
        given = {name: arguments[name] for name in implementation.argnames}
        if self._marks is None:
            answer = implementation.function(**given)
            return await answer if inspect.isawaitable(answer) else answer
        answer = self._marks.during(name, partial(implementation.function, **given))
        return await self._marks.awaiting(name, answer) if inspect.isawaitable(answer) else answer


def _check(hook: str, function: Callable[..., Any]) -> None:
    spec = _SPECS.get(hook)
    if spec is None:
        near = nearest(hook, _SPECS)
        raise HookError(f"there is no hook {hook}" + (f"; did you mean {near[0]}?" if near else ""))
    known = inspect.signature(spec).parameters
    strange = [name for name in inspect.signature(function).parameters if name not in known]
    if strange:
        has = ", ".join(known) or "none"
        raise HookError(f"hook {hook} has no parameter {strange[0]}; it has {has}")
    may_wait = inspect.iscoroutinefunction(spec) or hook == "ksi_event_handled"
    if inspect.iscoroutinefunction(function) and not may_wait:
        raise HookError(f"hook {hook} is called without await; {function.__name__} must not be async")


def _wrong_answer(answer: object) -> str | None:
    if not isinstance(answer, Mapping):
        return f"{type(answer).__name__}, not with an object"
    try:
        text = dumps(answer)
    except TypeError as error:
        return f"what is no JSON: {error}"
    number = non_finite(answer) if b"null" in text else None
    return None if number is None else f"what is no JSON: it has a number {number}"


def _is_service(given: object) -> bool:
    return isinstance(given, Service) and isinstance(given.interface, type) and callable(given.factory)


def _are_scripts(given: object) -> bool:
    return isinstance(given, Mapping) and all(
        isinstance(number, int) and isinstance(script, str) for number, script in given.items()
    )


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _copy_of(envelope: EventEnvelope) -> EventEnvelope:
    copied = copy(envelope)
    copied.data = MappingProxyType(dict(envelope.data))
    return copied
