"""``budget:*``: how many tokens and how much money sessions, agents or all of them may use."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ksi_common.errors import FailedPrecondition, NotFound
from ksi_common.events.completion import Tokens
from ksi_common.events.types import Dollars, Name
from ksi_common.messages import Message, Notification, Request

Scope = Literal["session", "agent", "all"]
Per = Literal["ever", "day"]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]

EACH = "*"
"""The subject of a budget that each session, or agent, has for itself."""


class BudgetKey(Message):
    """What names a budget. Days are UTC's."""

    scope: Scope = Field("session", description="Whose calls count: a session's, an agent's, or all.")
    subject: Name | Literal["*"] = Field(
        EACH, description="Which session or agent; '*': each for itself, but for those with one of their own."
    )
    per: Per = Field("ever", description="In all, or on each day.")

    @property
    def name(self) -> str:
        """Its name: scope/subject/per."""
        return f"{self.scope}/{self.subject}/{self.per}"

    @model_validator(mode="after")
    def _is_of_somebody(self) -> Self:
        if self.scope == "all" and self.subject != EACH:
            raise ValueError("a budget of all has no subject")
        return self


class Limits(Message):
    """What may be used."""

    tokens: Tokens | None = Field(None, description="Of prompts and answers together.", examples=[100_000])
    cost_usd: Money | None = Field(None, description="In dollars, where the provider's price is known.")

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.tokens is None and self.cost_usd is None:
            raise ValueError("give tokens, or cost_usd, or both")
        return self


class Budget(Message):
    """A budget and how much of it is used, by its subject or the one that was asked for."""

    name: str
    scope: Scope
    subject: str
    per: Per
    tokens: int | None
    cost_usd: float | None
    used_tokens: int
    used_cost_usd: Dollars
    reserved_tokens: int
    """By calls that are at work."""
    is_exceeded: bool
    """Nothing more begins under it."""
    by: Literal["settings", "request"]
    """Who set it."""


class SetBudget(BudgetKey, Limits, Request[Budget], event="budget:set", idempotent=True):
    """Set a budget, or change it. What it had stopped goes on where it was, if there is enough now."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"subject": "s1", "tokens": 100_000}]})


class GetBudget(BudgetKey, Request[Budget], event="budget:get", safe=True, raises=(NotFound,)):
    """Tell what a budget is, and how much of it is used."""


class Budgets(Message):
    """All budgets."""

    budgets: list[Budget]


class ListBudgets(Request[Budgets], event="budget:list", safe=True):
    """List the budgets; with a session or an agent, those that hold for it, and what it has used."""

    session_id: Name | None = Field(None, description="This session's.")
    agent_id: Name | None = Field(None, description="This agent's.")


class Removed(Message):
    """``removed``: there was one. One of the settings holds again where it was only overridden."""

    name: str
    removed: bool


class RemoveBudget(
    BudgetKey, Request[Removed], event="budget:remove", idempotent=True, raises=(FailedPrecondition,)
):
    """Remove a budget that was set by request; what it had stopped goes on."""


class BudgetChanged(Notification, event="budget:changed"):
    """A budget was set."""

    name: str
    tokens: int | None
    cost_usd: float | None


class BudgetRemoved(Notification, event="budget:removed"):
    """A budget that was set holds no more."""

    name: str


class BudgetExceeded(Notification, event="budget:exceeded"):
    """A completion does not fit into a budget: its session is paused until there is more of it."""

    name: str
    tokens: int | None
    cost_usd: float | None
    used_tokens: int
    """By calls that have ended."""
    used_cost_usd: Dollars
    wanted_tokens: int
    """By this completion and those at work; estimated."""
    phase: Literal["before", "during"]
    """Before the call was made, or while it was, which stopped it."""
    request_id: str
    session_id: str
    agent_id: str | None = None
