"""What a handler's work gives, on its way out through the middleware."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import KSIError
from ksi_common.messages import Message, Rendered
from ksi_daemon.database import Unit


@dataclass(slots=True, eq=False)
class Replied:
    """The one answer of a request."""

    value: Message | Rendered[Any] | Mapping[str, Any]


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

Reply = Message | Rendered[Any]


def is_reply(value: object, wanted: type[Message]) -> bool:
    """Tell whether a handler's value is a reply of the type that it declares."""
    if type(value) is Rendered:
        return value.message is wanted or issubclass(value.message, wanted)
    return isinstance(value, wanted)


class Later(ABC):
    """A reply that comes by a callback: there is nothing to await."""

    __slots__ = ()

    @abstractmethod
    def begin(self, done: Callable[[Rendered[Any] | None, KSIError | None], None]) -> None:
        """Set to work; ``done`` is called once, on the loop, with the reply or the error."""

    @abstractmethod
    def cancel(self) -> None:
        """Stop: ``done`` is not called any more."""


Begin = Callable[[EventEnvelope], Replied | Unit[Reply] | Awaitable[Reply] | Later]
"""A handler that does not wait: its reply, the unit that gives it, or what it is to be had from later."""


class Middleware(Protocol):
    """A layer around an endpoint: the same shape for requests and streams."""

    def __call__(self, envelope: EventEnvelope, send: Send, call_next: Endpoint) -> Awaitable[None]:
        """Do something, ``await call_next(envelope, send)``, do something more."""
        ...
