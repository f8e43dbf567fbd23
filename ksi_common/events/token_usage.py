"""``completion:token_usage``: what models were paid, by whom."""

from typing import Annotated, Literal

from pydantic import Field

from ksi_common.events.completion import ModelName
from ksi_common.events.types import Dollars, Name, Time
from ksi_common.messages import Message, Request

By = Literal["session", "agent", "provider", "model", "day"]


class UsageSum(Message):
    """Calls added up; those that failed, or were stopped, and had used something are among them."""

    calls: int
    failed_calls: int
    unpriced_calls: int
    """Those whose price nobody knows."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Of the prompts, what was not computed again."""
    cache_creation_tokens: int
    cost_usd: Dollars | None
    """None where nobody knows a price."""


class UsageGroup(UsageSum):
    """The calls of one session, agent ('' of none), provider, model (provider/model) or day."""

    key: str


class UsageReport(Message):
    """``groups``: the most tokens first, days in their order."""

    by: By | None
    total: UsageSum
    groups: list[UsageGroup]


class TokenUsage(Request[UsageReport], event="completion:token_usage", safe=True):
    """Add up the tokens and the cost of calls."""

    by: By | None = Field(None, description="What to tell apart; days are UTC's.", examples=["model"])
    since: Time | None = Field(None, description="Calls that ended at this time or later.")
    until: Time | None = Field(None, description="Calls that ended before this time.")
    session_id: Name | None = Field(None, description="Of this session.")
    agent_id: Name | None = Field(None, description="Of this agent.")
    provider: Name | None = Field(None, description="Of this provider.")
    model: ModelName | None = Field(None, description="Of models of this name.")
    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(1000, description="Groups at most.")
