"""The hooks. Synchronous ones declare, at load; asynchronous ones are awaited by the relay.

pluggy declares, the router dispatches: a hook that is called per event costs nothing where nobody
implements it, and one attribute look-up where somebody does.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pluggy
from pydantic import BaseModel

from ksi_common.bus import Bus
from ksi_common.envelope import EventEnvelope
from ksi_daemon.contributions import Command, HttpRoute
from ksi_daemon.outcomes import Middleware
from ksi_daemon.services import Service, Services

Transport = Callable[[Callable[[], asyncio.Protocol]], AbstractAsyncContextManager[object]]

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
def ksi_transports() -> Sequence[Transport]:  # type: ignore[empty-body]
    """Give further ways in: each takes what makes a connection, and is open while the daemon serves.

    What it takes is the ``protocol_factory`` of ``loop.create_server`` and its kin: whoever connects speaks
    the wire of the socket. It is the owner who comes this way: let in nobody else.
    """


@hookspec
def ksi_routes() -> Sequence[HttpRoute]:  # type: ignore[empty-body]
    """Give paths of HTTP that are answered by events, for whichever plugin serves HTTP."""


@hookspec
def ksi_cli() -> Sequence[Command]:  # type: ignore[empty-body]
    """Give commands of ``ksi`` that send events; the command line imports nothing of the plugin."""


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
    """See each event after its answer: seconds it took, and its error code or "OK".

    It may be async: then it runs beside everything else, 256 at once. The envelope is a copy: nothing that is
    done to it changes anything.
    """
