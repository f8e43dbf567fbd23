"""What handlers take as parameters, by type: opened once, in order of need, closed in reverse."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, get_type_hints

from ksi_common.errors import FailedPrecondition
from ksi_common.guessing import nearest
from ksi_common.records import record
from ksi_daemon.explaining import place_of
from ksi_daemon.supervisor import attempt_async

T = TypeVar("T")


Marked = Callable[[str, Awaitable[Any]], Awaitable[Any]]
"""Note, while something is awaited, whose code it is."""


class ServiceError(FailedPrecondition):
    """A service cannot be had: nobody offers it, two do, or it needs itself."""


@record
class Service(Generic[T]):
    """Offer ``interface`` (a Protocol or a class).

    ``factory`` makes an async context manager; its parameters are services, resolved by type.
    """

    interface: type[T]
    factory: Callable[..., AbstractAsyncContextManager[T]]


class Services:
    """The typed registry. Lives from start to stop; look-ups are for load time, not for each event."""

    def __init__(self) -> None:
        self._instances: dict[type, Any] = {}
        self._origins: dict[type, str] = {}
        self._exit = AsyncExitStack()
        self._marked: Marked = lambda _, opened: opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    @property
    def origins(self) -> Mapping[type, str]:
        """Give the plugin that offers each interface."""
        return self._origins

    def offer(self, interface: type[T], instance: T, *, plugin: str = "core") -> None:
        """Register an instance that is open already."""
        if interface in self._instances:
            taken = self._origins[interface]
            raise ServiceError(f"service {interface.__name__} is offered by plugin {taken} already")
        self._instances[interface] = instance
        self._origins[interface] = plugin

    def get(self, interface: type[T]) -> T:
        """Give the instance of ``interface``; raise ServiceError where nobody offers it."""
        try:
            instance: T = self._instances[interface]
        except KeyError:
            name = getattr(interface, "__name__", str(interface))
            known = sorted(kind.__name__ for kind in self._instances)
            near = nearest(name, known)
            guess = f"did you mean {near[0]}? " if near else ""
            raise ServiceError(
                f"no plugin offers the service {name}; {guess}there are {', '.join(known)}", service=name
            ) from None
        return instance

    def knows(self, interface: Any) -> bool:
        """Tell whether ``interface`` is offered."""
        return interface in self._instances

    async def open(
        self, offered: Mapping[str, Sequence[Service[Any]]], marked: Marked = lambda _, opened: opened
    ) -> Mapping[str, BaseException]:
        """Open the services of plugins, in order of need; give the plugins that failed, with the reason.

        A plugin's services are closed with the registry, also where a later one of it failed. ``marked``:
        notes whose code it is that opens.
        """
        self._marked = marked
        opening = _Opening(self, offered)
        failed: dict[str, BaseException] = {}
        for plugin, services in offered.items():
            error = await attempt_async(partial(opening.open_all, plugin, services))
            if error is not None:
                failed[plugin] = error
        return failed

    async def enter(self, plugin: str, service: Service[T]) -> None:
        """Open one service whose needs are open."""
        needs = {name: self.get(kind) for name, kind in needs_of(service.factory).items()}
        unfit = ServiceError(
            f"what makes the service {service.interface.__name__} is no async context manager: "
            f"put @asynccontextmanager above it, and yield the service{place_of(service.factory)}"
        )
        if inspect.iscoroutinefunction(inspect.unwrap(service.factory)):
            raise unfit  # called, it would be a coroutine that nobody awaits
        opened: Any = service.factory(**needs)
        if not hasattr(opened, "__aenter__"):
            raise unfit
        instance: T = await self._marked(plugin, opened.__aenter__())
        self._exit.push_async_exit(opened.__aexit__)
        self.offer(service.interface, instance, plugin=plugin)


class _Opening:
    """One pass over all that is offered: what is needed first is opened first."""

    def __init__(self, services: Services, offered: Mapping[str, Sequence[Service[Any]]]) -> None:
        self._services = services
        self._offered = {
            service.interface: (plugin, service) for plugin, several in offered.items() for service in several
        }

    async def open_all(self, plugin: str, services: Sequence[Service[Any]]) -> None:
        for service in services:
            await self.open(plugin, service, ())

    async def open(self, plugin: str, service: Service[Any], path: tuple[type, ...]) -> None:
        if self._services.knows(service.interface):
            if self._services.origins[service.interface] == plugin:
                return
            self._services.offer(service.interface, None, plugin=plugin)  # raises: it is taken
        path = (*path, service.interface)
        for kind in needs_of(service.factory).values():
            if kind in path:
                names = " -> ".join(step.__name__ for step in (*path[path.index(kind) :], kind))
                raise ServiceError(f"services need each other: {names}")
            if kind in self._offered and not self._services.knows(kind):
                await self.open(*self._offered[kind], path)
        await self._services.enter(plugin, service)


def needs_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Give the parameters of ``function`` and their types; raise TypeError where one has none."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    for name in parameters:
        if name not in hints:
            raise TypeError(f"parameter {name} of {function.__qualname__} has no type")
    return {name: hints[name] for name in parameters}
