"""What one call takes of the budgets that hold for it, while nobody knows yet what it will have used."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ksi_common.events.budget import BudgetExceeded, BudgetKey
from ksi_common.records import record
from ksi_completion.rows import Row

CHARACTERS_PER_TOKEN: Final = 4
"""An estimate, until the provider has counted."""

_USED: Final = (
    "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0), coalesce(sum(cost_usd), 0.0) "
    "FROM token_usage"
)


@record
class Limit:
    """A budget, as it is set."""

    key: BudgetKey
    tokens: int | None
    cost_usd: float | None
    by: Literal["settings", "request"] = "request"


@record
class Account:
    """What is counted together: the calls of a session, an agent, or all; of a day, or ever."""

    session_id: str | None = None
    agent_id: str | None = None
    day: str | None = None

    def query(self) -> tuple[str, Sequence[str]]:
        """Give the query for what the ledger has of it: tokens and dollars."""
        fields = {"session_id": self.session_id, "agent_id": self.agent_id, "day": self.day}
        given = {name: value for name, value in fields.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given)
        return f"{_USED} WHERE {where}" if where else _USED, list(given.values())


@dataclass(slots=True)
class Spent:
    """What is used, and what is reserved."""

    tokens: int = 0
    cost_usd: float = 0.0
    reserved: int = 0


class OverBudget(Exception):
    """A call does not fit. ``told`` says into what, and is to be told."""

    def __init__(self, told: BudgetExceeded) -> None:
        super().__init__(told.name)
        self.told = told


@dataclass(slots=True)
class Reservation:
    """What one call may take of the budgets that hold for it; given back with ``Budgets.give_back``."""

    row: Row
    held: Sequence[tuple[Limit, Spent]] = ()
    tokens: int = 0
    """That were taken; also when they are given back."""
    _promised: int = field(default=0)

    def take(self, tokens: int, *, phase: Literal["before", "during"]) -> None:
        """Take so many tokens more; raise OverBudget, having taken nothing."""
        for limit, spent in self.held:
            if is_over(limit, spent, tokens):
                raise OverBudget(self._told(limit, spent, tokens, phase))
        for _, spent in self.held:
            spent.reserved += tokens
        self.tokens += tokens

    def grow(self, characters: int) -> None:
        """Hear that the answer has so many characters more; raise OverBudget."""
        if self.held:
            self._promised += characters
            tokens, self._promised = divmod(self._promised, CHARACTERS_PER_TOKEN)
            if tokens:
                self.take(tokens, phase="during")

    def _told(self, limit: Limit, spent: Spent, tokens: int, phase: Any) -> BudgetExceeded:
        return BudgetExceeded(
            name=limit.key.name,
            tokens=limit.tokens,
            cost_usd=limit.cost_usd,
            used_tokens=spent.tokens,
            used_cost_usd=spent.cost_usd,
            wanted_tokens=spent.reserved + tokens,
            phase=phase,
            request_id=self.row.request_id,
            session_id=self.row.session_id,
            agent_id=self.row.agent_id,
        )


def is_over(limit: Limit, spent: Spent, tokens: int) -> bool:
    """Tell whether so many tokens more do not fit; where all is used, none do."""
    if limit.tokens is not None:
        wanted = spent.tokens + spent.reserved + tokens
        if wanted > limit.tokens or spent.tokens >= limit.tokens:
            return True
    return limit.cost_usd is not None and spent.cost_usd >= limit.cost_usd
