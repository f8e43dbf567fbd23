"""``completion:*`` of the providers: which can be used, and which are left alone for a while."""

from typing import Literal

from pydantic import Field

from ksi_common.errors import NotFound
from ksi_common.events.types import Name
from ksi_common.messages import Message, Notification, Request

BreakerState = Literal["closed", "open", "half_open"]
"""Of what guards a model that fails: calls pass; none does; one is let through, and decides."""


class BreakerStatus(Message):
    """A model that has failed since it last answered."""

    model: str
    state: BreakerState
    failures: int
    """In a row."""
    retry_after_s: float
    """For how long it is left alone."""
    reason: str
    """Of the last failure."""
    message: str


class ProviderStatus(Message):
    """What a provider can do now."""

    provider: str
    missing: str | None
    """Why it cannot be used, and what to do about it."""
    is_default: bool
    on_request: bool
    """It answers only what names it."""
    models: list[str]
    """The first is its default."""
    concurrency: int
    """Answers that it makes at once."""
    working: int
    """Answers that it makes now."""
    breakers: list[BreakerStatus]


class ProvidersStatus(Message):
    """The providers in order of preference."""

    providers: list[ProviderStatus]
    aliases: dict[str, list[str]]
    """Names that stand for models of providers, the first choice first."""


class ProvidersOf(
    Request[ProvidersStatus], event="completion:provider_status", safe=True, raises=(NotFound,)
):
    """Tell which providers can be used, what they are doing, and which are left alone."""

    provider: Name | None = Field(None, description="Which one; default: all.", examples=["embedded"])


class CompletionFailover(Notification, event="completion:failover"):
    """Another provider or model is asked from now on, of those that an alias names."""

    request_id: str
    session_id: str
    attempt: int
    """The last one of the model before."""
    provider: str
    model: str
    from_provider: str
    from_model: str
    reason: str
    message: str


class CompletionBreakerChanged(Notification, event="completion:breaker_changed"):
    """A model of a provider is left alone for ``open_s`` seconds, or may be asked again."""

    provider: str
    model: str
    state: BreakerState
    failures: int
    """In a row."""
    open_s: float | None = None
    reason: str | None = None
    """Of the last failure."""
    message: str | None = None
