"""Where a plugin's layers stand: a stage, and the events that they are for.

@layer(stage="validate", namespaces=["weather"])
async def known_city(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
    ...
    await call_next(envelope, send)

From the outside in: those that validate, and refuse; those that do something before, and may change what is
asked; those that do something after, and are the first to see the answer. In a stage they stand in the order
in which their plugins were loaded.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, get_args

from ksi_common.envelope import EventEnvelope
from ksi_common.errors import FailedPrecondition
from ksi_common.messages import is_event_pattern, matches
from ksi_common.records import record
from ksi_daemon.explaining import PluginBug
from ksi_daemon.outcomes import Endpoint, Middleware, Outcome, Send

Stage = Literal["validate", "before", "after"]
STAGES: Final[Sequence[Stage]] = get_args(Stage)


class LayerError(FailedPrecondition):
    """A layer is declared wrongly; the message says how."""


@record
class Layer:
    """A layer and where it stands. It is called as the layer is."""

    call: Middleware
    stage: Stage = "before"
    events: Sequence[str] = ("*",)
    """Patterns of the events that it is for."""
    plugin: str = ""

    def __call__(self, envelope: EventEnvelope, send: Send, call_next: Endpoint) -> Awaitable[None]:
        """Do what the layer does."""
        return self.call(envelope, send, call_next)

    @property
    def name(self) -> str:
        """Name it, as people are told."""
        return f"{self.plugin}.{name_of(self.call)}"

    def is_for(self, event: str) -> bool:
        """Tell whether an event goes through it."""
        return any(matches(pattern, event) for pattern in self.events)


def layer(
    *, stage: Stage = "before", namespaces: Sequence[str] = (), events: Sequence[str] = ()
) -> Callable[[Middleware], Layer]:
    """Say where a layer stands. ``events``: patterns. Without either it is for all events."""
    if isinstance(namespaces, str) or isinstance(events, str):
        raise LayerError('namespaces and events are lists: namespaces=["weather"]')
    if stage not in STAGES:
        raise LayerError(f"there is no stage {stage!r}; there are {', '.join(STAGES)}")
    patterns = (*(f"{namespace}:*" for namespace in namespaces), *events) or ("*",)
    for pattern in patterns:
        if not is_event_pattern(pattern):
            raise LayerError(f"{pattern!r} is no pattern of events: a name, or the beginning of one and '*'")
    return lambda call: Layer(call, stage, patterns)


def layer_of(given: object, plugin: str) -> Layer:
    """Take what a plugin gives as a layer; raise LayerError where it cannot be one."""
    staged = given if isinstance(given, Layer) else None
    call = given if staged is None else staged.call
    try:
        inspect.signature(call).bind(None, None, call_next=None)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise LayerError(f"middleware {name_of(call)} must take (envelope, send, call_next)") from error
    if staged is None:
        return Layer(call, plugin=plugin)  # type: ignore[arg-type]  # its signature fits
    return Layer(staged.call, staged.stage, staged.events, plugin)


def answering(each: Layer, call: Middleware) -> Middleware:
    """Have ``call`` go on or answer, as ``each`` must: where it does neither, that is said of it."""

    async def watched(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        passed = False

        async def go_on(envelope: EventEnvelope, send: Send) -> None:
            nonlocal passed
            passed = True
            await call_next(envelope, send)

        async def answer(outcome: Outcome) -> None:
            nonlocal passed
            passed = True
            await send(outcome)

        await call(envelope, answer, go_on)
        if not passed:
            raise PluginBug(
                f"layer {each.name} neither answered {envelope.event} nor awaited call_next(envelope, send)",
                each.call,
            )

    return watched


def in_order(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Give layers from the outside in."""
    return sorted(layers, key=lambda each: STAGES.index(each.stage))


def name_of(call: object) -> str:
    """Name a function, or an object that is called."""
    return str(getattr(call, "__name__", type(call).__name__))


def only_for(each: Layer) -> Middleware:
    """Make of a layer one that passes on what it is not for: where the event is known at run time only."""

    async def limited(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        if each.is_for(envelope.event):
            await each.call(envelope, send, call_next)
        else:
            await call_next(envelope, send)

    return limited
