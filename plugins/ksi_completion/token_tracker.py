"""What was used, by whom: a row for each call, written with the answer or the failure that it paid for."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from ksi_common.clock import format_time
from ksi_common.events.completion import Usage
from ksi_common.events.token_usage import By, TokenUsage, UsageGroup, UsageReport, UsageSum
from ksi_daemon.plugin import Database, Transaction, parse_time

if TYPE_CHECKING:
    from ksi_completion.rows import Row

CallOutcome = Literal["answered", "failed", "stopped"]

_END_OF_TIME_US: Final = 2**62
_INSERT: Final = (
    "INSERT INTO token_usage (request_id, attempt, session_id, agent_id, provider, model, day, "
    "prompt_tokens, completion_tokens, cached_tokens, time_us, outcome, cache_creation_tokens, cost_usd) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_SUM: Final = (
    "count(*), count(*) FILTER (WHERE outcome != 'answered'), count(*) FILTER (WHERE cost_usd IS NULL), "
    "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(cached_tokens), 0), "
    "coalesce(sum(cache_creation_tokens), 0), sum(cost_usd)"
)
_WHERE: Final = (
    "FROM token_usage WHERE time_us >= :since AND time_us < :until "
    "AND (:session_id IS NULL OR session_id = :session_id) AND (:agent_id IS NULL OR agent_id = :agent_id) "
    "AND (:provider IS NULL OR provider = :provider) AND (:model IS NULL OR model = :model)"
)
_GROUPED: Final = "SELECT {column}, {sum} {where} GROUP BY 1 ORDER BY {order} LIMIT :limit"
_COLUMNS: Final[Mapping[By, str]] = {
    "session": "session_id",
    "agent": "coalesce(agent_id, '')",
    "provider": "provider",
    "model": "provider || '/' || model",
    "day": "day",
}
_MOST_FIRST: Final = "sum(prompt_tokens) + sum(completion_tokens) DESC, 1"

Accounted = Callable[["Row", Usage, str], None]
"""Hear of a call that is in the ledger, and of its day."""


class TokenTracker:
    """Keep the ledger. ``accounted`` is called for each call once it is on disk, in that order."""

    def __init__(self, database: Database, accounted: Accounted | None = None) -> None:
        self._database = database
        self._accounted = accounted

    def account_in(
        self,
        tx: Transaction,
        row: "Row",
        usage: Usage,
        *,
        attempt: int,
        time_us: int,
        outcome: CallOutcome = "answered",
    ) -> None:
        """Account for a call in the unit that ends it; the same attempt twice counts once."""
        day = format_time(time_us)[:10]
        of = (row.request_id, attempt, row.session_id, row.agent_id, row.provider, row.model, day)
        tokens = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        more = (time_us, outcome, usage.cache_creation_tokens, usage.cost_usd)
        is_new = tx.execute(_INSERT, (*of, *tokens, *more)).rowcount > 0
        if is_new and self._accounted is not None:
            hear = self._accounted
            tx.on_commit(lambda: hear(row, usage, day))

    async def usage(self, asked: TokenUsage) -> UsageReport:
        """Add up what was used, in all and by what was asked for, the most first; days in their order."""
        chosen: dict[str, Any] = {
            "since": 0 if asked.since is None else parse_time(asked.since),
            "until": _END_OF_TIME_US if asked.until is None else parse_time(asked.until),
            "session_id": asked.session_id,
            "agent_id": asked.agent_id,
            "provider": asked.provider,
            "model": asked.model,
        }
        (total,) = await self._database.read(f"SELECT {_SUM} {_WHERE}", chosen)
        groups = []
        if asked.by is not None:
            order = "1" if asked.by == "day" else _MOST_FIRST
            query = _GROUPED.format(column=_COLUMNS[asked.by], sum=_SUM, where=_WHERE, order=order)
            for key, *figures in await self._database.read(query, chosen | {"limit": asked.limit}):
                groups.append(UsageGroup(key=key, **_sums(figures)))
        return UsageReport(by=asked.by, total=UsageSum(**_sums(total)), groups=groups)


def _sums(figures: Any) -> dict[str, Any]:
    return dict(zip(UsageSum.model_fields, figures, strict=True))
