"""What a handler's work gives, on its way out through the middleware."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import KSIError
from ksi_common.messages import Message


@dataclass(slots=True, eq=False)
class Replied:
    """The one answer of a request."""

    value: Message | Mapping[str, Any]


@dataclass(slots=True, eq=False)
class Yielded:
    """One item of a stream."""

    value: Message


@dataclass(slots=True, eq=False)
class Ended:
    """A stream's end."""


@dataclass(slots=True, eq=False)
class Failed:
    """The error that takes the place of what was asked for."""

    error: KSIError


Outcome = Replied | Yielded | Ended | Failed

Send = Callable[[Outcome], Awaitable[None]]
"""Take an outcome; waits while the caller cannot take more."""

Endpoint = Callable[[EventEnvelope, Send], Awaitable[None]]
"""The rest of the way to the handler. Sends any number of items and at most one terminal outcome."""


class Middleware(Protocol):
    """A layer around an endpoint: the same shape for requests and streams."""

    def __call__(self, envelope: EventEnvelope, send: Send, call_next: Endpoint) -> Awaitable[None]:
        """Do something, ``await call_next(envelope, send)``, do something more."""
        ...
