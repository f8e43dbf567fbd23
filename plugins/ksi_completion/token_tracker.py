"""What was used, by whom: a row for each call, written with the answer that it paid for."""

from typing import TYPE_CHECKING, Final

from ksi_common.clock import format_time
from ksi_common.events.completion import Usage
from ksi_daemon.plugin import Transaction

if TYPE_CHECKING:
    from ksi_completion.rows import Row

_INSERT: Final = (
    "INSERT INTO token_usage (request_id, attempt, session_id, agent_id, provider, model, day, "
    "prompt_tokens, completion_tokens, cached_tokens) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO NOTHING"
)


class TokenTracker:
    """Keep the ledger."""

    def account_in(self, tx: Transaction, row: "Row", usage: Usage, *, attempt: int, time_us: int) -> None:
        """Account for a call in the unit that ends it; the same attempt twice counts once."""
        tx.execute(
            _INSERT,
            (
                row.request_id,
                attempt,
                row.session_id,
                row.agent_id,
                row.provider,
                row.model,
                format_time(time_us)[:10],
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens,
            ),
        )
