"""The hooks. Synchronous ones declare, at load; asynchronous ones are awaited by the relay.

pluggy declares, the router dispatches: a hook that is called per event costs nothing where nobody
implements it, and one attribute look-up where somebody does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy
from pydantic import BaseModel

from ksi_common.bus import Bus
from ksi_common.envelope import EventEnvelope
from ksi_daemon.outcomes import Middleware
from ksi_daemon.services import Service, Services

hookspec = pluggy.HookspecMarker("ksi")
hookimpl = pluggy.HookimplMarker("ksi")


@hookspec
def ksi_handlers() -> Sequence[Callable[..., Any]]:  # type: ignore[empty-body]  # a declaration
    """Give handlers and subscribers that are made at load; decorated ones in the module need no hook."""


@hookspec
def ksi_services() -> Sequence[Service[Any]]:  # type: ignore[empty-body]
    """Give services: interfaces that handlers of any plugin may take as parameters."""


@hookspec
def ksi_settings() -> type[BaseModel]:  # type: ignore[empty-body]
    """Give the model of the plugin's table ``[plugins.NAME]``; handlers take it by its type."""


@hookspec
def ksi_middleware() -> Sequence[Middleware]:  # type: ignore[empty-body]
    """Give layers around handlers, outermost first; they stand inside the daemon's own.

    ``layer(stage=..., namespaces=[...])`` says where one stands and what it is for; without it a layer stands
    before every handler. Events that a layer is not for do not pay for it.
    """


@hookspec
def ksi_migrations() -> Mapping[int, str]:  # type: ignore[empty-body]
    """Give the SQL scripts of the plugin's tables by number: applied in order, forward only."""


@hookspec
async def ksi_startup(bus: Bus, services: Services) -> None:
    """Prepare, before anyone can ask. One that raises refuses its plugin."""


@hookspec
async def ksi_serve(bus: Bus, services: Services) -> None:
    """Run as long as the daemon; restarted with back-off, quarantined after 3 failures in 60 s."""


@hookspec
async def ksi_drain(services: Services, grace_s: float) -> None:
    """Begin nothing new, and return when nothing is at work; broken off after ``grace_s`` seconds."""


@hookspec
async def ksi_shutdown() -> None:
    """Clean up, after the last event was handled; in reverse order of start."""


@hookspec
async def ksi_handle_event(event: str, data: Mapping[str, Any], context: EventEnvelope) -> Any:
    """Answer an event that no class declares, with an object; None passes it on to the next plugin.

    The plugin loaded last is asked first, as pluggy does.
    """


@hookspec
def ksi_event_handled(envelope: EventEnvelope, took_s: float, code: str) -> None:
    """See each event after its answer: seconds it took, and its error code or "OK". Must not wait."""
