"""What an event is: a class, declared once, from which every face of it is made.

    class Get(Request[Found], event="state:get", safe=True):
        '''Read one value.'''
        key: Key

Three kinds: Request (one handler, one reply), Stream (one handler, many items, an end) and
Notification (any number of subscribers, no reply).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from ksi_common.errors import KSIError
from ksi_common.records import record

Kind = Literal["request", "stream", "notification"]

EVENT_PATTERN = r"^[a-z][a-z0-9_]*(:[a-z][a-z0-9_]*)+$"
MAX_EVENT_NAME = 128

_EVENT = re.compile(EVENT_PATTERN)
_BEGINNING = re.compile(r"^([a-z][a-z0-9_]*(:[a-z][a-z0-9_]*)*:?)?\*$")


def is_event_name(name: str) -> bool:
    """Tell whether ``name`` is ``namespace:name(:name)*`` in snake case, 128 characters at most."""
    return len(name) <= MAX_EVENT_NAME and _EVENT.fullmatch(name) is not None


def is_event_pattern(pattern: str) -> bool:
    """Tell whether ``pattern`` is an event name or a beginning of one followed by ``*``."""
    return is_event_name(pattern) or (
        len(pattern) <= MAX_EVENT_NAME and _BEGINNING.fullmatch(pattern) is not None
    )


def matches(pattern: str, event: str) -> bool:
    """Tell whether ``event`` is meant by ``pattern``: the same name, or its beginning before ``*``."""
    return event.startswith(pattern[:-1]) if pattern.endswith("*") else event == pattern


@record
class EventSpec:
    """What a class declares of its event."""

    name: str
    kind: Kind
    reply: type["Message"] | None
    """The reply of a Request, an item of a Stream, nothing of a Notification."""
    safe: bool = False
    """It changes nothing: not logged, may be retried freely, GET over HTTP."""
    idempotent: bool = False
    """Doing it twice is doing it once."""
    ephemeral: bool = False
    """A Notification that is never stored."""
    recorded: bool = True
    """A Request that is not safe leaves a row in the log."""
    permission: str | None = None
    expose: bool = True
    """It may be asked for from outside the daemon."""
    raises: tuple[type[KSIError], ...] = ()
    formerly: tuple[str, ...] = ()
    """Old names of a Notification: who follows one of them gets it, too."""
    answers: Literal["one", "all", "race"] = "one"
    version: int = 1
    deprecated: str | None = None
    """It will be removed in the next major version; what to do in its place."""

    @property
    def namespace(self) -> str:
        """The part before the first colon."""
        return self.name.partition(":")[0]


class Message(BaseModel):
    """A value on the wire. Frozen; fields that it does not know are ignored, so that senders may grow."""

    # JSON has no NaN: pydantic would write null in its place.
    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, allow_inf_nan=False, defer_build=True
    )

    __ksi__: ClassVar[EventSpec]


R_co = TypeVar("R_co", bound=Message, covariant=True)
M = TypeVar("M", bound=Message)


@dataclass(slots=True, eq=False)
class Rendered(Generic[M]):
    """A message as JSON, where to make it would cost more than all else; ``data`` is believed."""

    message: type[M]
    data: bytes


def _replies_named(cls: type) -> Sequence[Any]:
    """Give what a class says in its own line: ``R`` of ``Request[R]``."""
    named = [(get_origin(base), base) for base in vars(cls).get("__orig_bases__", ())]
    return [get_args(base)[0] for kind, base in named if isinstance(kind, type) and issubclass(kind, Message)]


class _Event(Message):
    """What the three kinds share: the class keywords become ``__ksi__``."""

    __kind__: ClassVar[Kind]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__()
        for reply in _replies_named(cls):
            if not (isinstance(reply, type) and issubclass(reply, Message)):
                raise TypeError(f"{cls.__name__}: {reply!r} is no Message, so it cannot be a reply")

    def __class_getitem__(cls, typevar_values: Any) -> Any:
        """Name the reply, and no more: pydantic would make a model of each, 20 kB that nobody asks for."""
        return GenericAlias(cls, typevar_values)

    @classmethod
    def __pydantic_init_subclass__(cls, *, event: str | None = None, **keywords: Any) -> None:
        super().__pydantic_init_subclass__()
        if event is None:
            if keywords:
                raise TypeError(f"{cls.__name__} has class keywords {sorted(keywords)} but no event= name")
            return
        if not is_event_name(event):
            raise TypeError(f"{cls.__name__}: {event!r} is not an event name: namespace:name in snake case")
        keywords["raises"] = tuple(keywords.get("raises", ()))
        keywords["formerly"] = tuple(keywords.get("formerly", ()))
        cls.__ksi__ = EventSpec(name=event, kind=cls.__kind__, reply=_reply_of(cls), **keywords)


class Request(_Event, Generic[R_co]):
    """Ask for one reply ``R``. Class keywords: those of EventSpec. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")
    __kind__: ClassVar[Kind] = "request"


class Stream(_Event, Generic[R_co]):
    """Ask for any number of items ``R``, then an end. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")
    __kind__: ClassVar[Kind] = "stream"


class Notification(_Event):
    """Tell what happened, to any number of subscribers. Stored before it is told, unless ``ephemeral``."""

    __kind__: ClassVar[Kind] = "notification"


def renamed_from(old: str, new: str, default: Any = ..., **field: Any) -> Any:
    """Declare a field that is also read under its deprecated name ``old``.

    ``purpose: str | None = renamed_from("task", "purpose", None)``. What is sent has the new name only.
    """
    return Field(
        default,
        validation_alias=AliasChoices(new, old),
        serialization_alias=new,
        json_schema_extra={"deprecated_alias": old},
        **field,
    )


def accepted_names(cls: type[BaseModel]) -> Sequence[str]:
    """List the names that fields of ``cls`` are read by, without the deprecated ones."""
    return [public_name(name, info) for name, info in cls.model_fields.items()]


def public_name(name: str, info: FieldInfo) -> str:
    """Give the name that a field has on the wire."""
    return info.serialization_alias or info.alias or name


def spec_of(cls: type[BaseModel]) -> EventSpec:
    """Give what ``cls`` declares; raise TypeError where it declares no event."""
    spec: EventSpec | None = getattr(cls, "__ksi__", None)
    if spec is None and issubclass(cls, type):
        raise TypeError("this is the class of an event: make a message of it, such as Get(key=…)")
    if spec is None:
        raise TypeError(f"{cls.__qualname__} declares no event: class X(Request[Y], event='ns:verb')")
    return spec


def _reply_of(cls: type[BaseModel]) -> type[Message] | None:
    for base in cls.__mro__:
        for reply in _replies_named(base):
            return cast("type[Message]", reply)
    if issubclass(cls, Notification):
        return None
    raise TypeError(f"{cls.__name__} does not say what it is answered with: Request[Reply] or Stream[Item]")
