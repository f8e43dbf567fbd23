"""What a plugin is written with. Public: it changes by addition within a version of ``ksi_api``.

from ksi_daemon.plugin import Message, Request, handler

class Greeting(Message):
    text: str

class Greet(Request[Greeting], event="hello:greet"):
    '''Say hello.'''
    name: str = "world"

@handler
async def greet(request: Greet) -> Greeting:
    return Greeting(text=f"Hello, {request.name}!")
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from pydantic import Field, JsonValue

from ksi_common.answers import Answer, Answers
from ksi_common.async_db import AsyncSQLiteDB
from ksi_common.bus import Bus, Delivered
from ksi_common.clock import Clock, format_time, parse_time
from ksi_common.envelope import (
    EventEnvelope,
    EventMetadata,
    StoredEvent,
    current_envelope,
    event_context,
)
from ksi_common.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    KSIError,
    NotFound,
    OperationalError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from ksi_common.ids import is_name, new_id
from ksi_common.messages import Message, Notification, Rendered, Request, Stream, matches, renamed_from
from ksi_common.references import Reference
from ksi_daemon.blobs import Blobs
from ksi_daemon.bus import LocalBus
from ksi_daemon.catalog import Catalog
from ksi_daemon.consumers import Consumers, ConsumerState, Refusal, Wish
from ksi_daemon.consumers.wishes import key_of as consumer_key
from ksi_daemon.contributions import Command, HttpRoute, HttpRoutes
from ksi_daemon.cursors import parse_cursor
from ksi_daemon.database import Database, Telling, Transaction, Unit
from ksi_daemon.database.migrations import scripts
from ksi_daemon.dead_letters import DatabaseDeadLetters, DeadLetter, DeadLetters
from ksi_daemon.eventlog import Damage, EventLog, LogQuery, RemovedEvent
from ksi_daemon.health import HealthChecks
from ksi_daemon.hookspecs import Transport, hookimpl
from ksi_daemon.hub import Hub
from ksi_daemon.layers import Layer, layer
from ksi_daemon.leases import Lease, LeaseHeld, LeaseLost, Leases
from ksi_daemon.marks import DURABLE, HANDLER, KSI_API, SUBSCRIBER, Durable
from ksi_daemon.outcomes import Ended, Endpoint, Failed, Middleware, Outcome, Replied, Send, Yielded
from ksi_daemon.processes import Child, ChildWatcher, Exit, Process, Processes, Reaped
from ksi_daemon.projections import (
    Aggregates,
    Loaded,
    Projection,
    Projections,
    Rows,
    Tables,
    projection,
    rebuilder,
    table_projection,
)
from ksi_daemon.ready_layers import (
    auth_check,
    cache,
    chain,
    dedupe,
    rate_limit,
    retry,
    timeout,
    validate,
    when,
)
from ksi_daemon.referrers import Referrers
from ksi_daemon.replay import Replays, ReplayStep
from ksi_daemon.retention import Retention
from ksi_daemon.services import Service, Services
from ksi_daemon.settings import Seconds, Settings
from ksi_daemon.subscriptions import Interest, Sink, Subscriptions
from ksi_daemon.timer_rows import Timer
from ksi_daemon.timers import Timers
from ksi_daemon.upcasting import upcaster
from ksi_daemon.verification import Verified, Verifier

F = TypeVar("F", bound=Callable[..., Any])


def handler(function: F) -> F:
    """Handle the Request or Stream that the first parameter is annotated with.

    Further parameters are services, resolved by type at load, or EventEnvelope, EventMetadata.
    A Request's handler returns its reply; a Stream's is an async generator. Where a unit of work gives the
    reply itself (``return await database.write(unit)``), a retry under the same idempotency key gets that
    reply even if the daemon dies before it is sent. Raise an OperationalError for what is expected; anything
    else is a bug, and logged.

    What is declared of a plain function says where it runs. One that takes a Transaction, as its second
    parameter, is the unit of work of its request: see ``Database.write``. One that returns
    ``Unit[Reply]``, ``Telling[Reply]`` or ``Awaitable[Reply]``, or may do so, runs on the loop at once and
    must not block.
    Any other runs in a thread.
    """
    setattr(function, HANDLER, True)
    return function


@overload
def subscriber(function: F) -> F: ...


@overload
def subscriber(
    *,
    durable: bool,
    start: Literal["now", "beginning"] = "now",
    max_attempts: int = 5,
    retry_s: float = 1.0,
) -> Callable[[F], F]: ...


def subscriber(
    function: F | None = None,
    *,
    durable: bool = False,
    start: Literal["now", "beginning"] = "now",
    max_attempts: int = 5,
    retry_s: float = 1.0,
) -> F | Callable[[F], F]:
    """Hear the Notification that the first parameter is annotated with; parameters as for ``handler``.

    Events come one after another, in the order of the log; other subscribers are not held up. What it
    raises is logged and counted, and the next event is given.

    ``@subscriber(durable=True)`` has a cursor of its own, named plugin.function, and hears after a crash or
    a restart what it has not done: the first time from ``start`` on. Its one ``database.write`` moves the
    cursor too, so that its effect is there once; where it writes nothing it may be given its last events
    again. What it raises is tried again after ``retry_s`` seconds, doubled each time, and becomes a dead
    letter after ``max_attempts``; the next event waits until then.
    """

    def mark(marked: F) -> F:
        setattr(marked, SUBSCRIBER, True)
        if durable:
            setattr(marked, DURABLE, Durable(start, max_attempts, retry_s))
        return marked

    return mark if function is None else mark(function)


__all__ = [
    "KSI_API",
    "Aggregates",
    "AlreadyExists",
    "Answer",
    "Answers",
    "AsyncSQLiteDB",
    "Blobs",
    "Bus",
    "Cancelled",
    "Catalog",
    "Child",
    "ChildWatcher",
    "Clock",
    "Command",
    "ConsumerState",
    "Consumers",
    "Damage",
    "DataLoss",
    "Database",
    "DatabaseDeadLetters",
    "DeadLetter",
    "DeadLetters",
    "DeadlineExceeded",
    "Delivered",
    "Ended",
    "Endpoint",
    "EventEnvelope",
    "EventLog",
    "EventMetadata",
    "Exit",
    "Failed",
    "FailedPrecondition",
    "Field",
    "HealthChecks",
    "HttpRoute",
    "HttpRoutes",
    "Hub",
    "Interest",
    "InvalidArgument",
    "JsonValue",
    "KSIError",
    "Layer",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "Leases",
    "Loaded",
    "LocalBus",
    "LogQuery",
    "Message",
    "Middleware",
    "NotFound",
    "Notification",
    "OperationalError",
    "Outcome",
    "PermissionDenied",
    "Process",
    "Processes",
    "Projection",
    "Projections",
    "Reaped",
    "Reference",
    "Referrers",
    "Refusal",
    "RemovedEvent",
    "Rendered",
    "ReplayStep",
    "Replays",
    "Replied",
    "Request",
    "ResourceExhausted",
    "Retention",
    "Rows",
    "Seconds",
    "Send",
    "Service",
    "Services",
    "Settings",
    "Sink",
    "StoredEvent",
    "Stream",
    "Subscriptions",
    "Tables",
    "Telling",
    "Timer",
    "Timers",
    "Transaction",
    "Transport",
    "Unavailable",
    "Unimplemented",
    "Unit",
    "Verified",
    "Verifier",
    "Wish",
    "Yielded",
    "auth_check",
    "cache",
    "chain",
    "consumer_key",
    "current_envelope",
    "dedupe",
    "event_context",
    "format_time",
    "handler",
    "hookimpl",
    "is_name",
    "layer",
    "matches",
    "new_id",
    "parse_cursor",
    "parse_time",
    "projection",
    "rate_limit",
    "rebuilder",
    "renamed_from",
    "retry",
    "scripts",
    "subscriber",
    "table_projection",
    "timeout",
    "upcaster",
    "validate",
    "when",
]
