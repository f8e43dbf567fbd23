"""What an earlier daemon left open: answers that are on disk are adopted, the rest gets its turn again."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import structlog

from ksi_common.events.completion import CompletionRetrying, Proof
from ksi_completion.ending import Ending
from ksi_completion.outcomes import Outcome
from ksi_completion.responses import Responses
from ksi_completion.rows import OPEN, Row
from ksi_completion.session_manager import SessionManager
from ksi_daemon.plugin import Database, Transaction, event_context

log = structlog.get_logger()

_AGAIN = "UPDATE completions SET state = 'queued' WHERE request_id = ?"


class Recovery:
    """Bring what is open from the disk into the queue; once, before anyone can ask."""

    def __init__(
        self, *, database: Database, responses: Responses, sessions: SessionManager, ending: Ending
    ) -> None:
        self._database = database
        self._responses = responses
        self._sessions = sessions
        self._ending = ending

    async def recover(self, opened: Callable[[Row, int], None]) -> None:
        """Call ``opened`` for each completion that is still owed an end, in order of acceptance."""
        rows = [Row.of(row) for row in await self._database.read(OPEN)]
        sessions: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            sessions[row.session_id].append(row)
        ended = {
            request_id
            for session_id, waiting in sessions.items()
            for request_id in await self._adopt(session_id, waiting)
        }
        ahead: dict[str, int] = defaultdict(int)
        for row in rows:
            if row.request_id not in ended and not await self._stopped(row):
                await self._put_back(row)
                opened(row, ahead[row.session_id])
                ahead[row.session_id] += 1
        if rows:
            log.info("completion.recovered", open=len(rows), ended=len(rows) - sum(ahead.values()))

    async def _adopt(self, session_id: str, rows: Sequence[Row]) -> Sequence[str]:
        """End the completions whose line is whole in the file though no row names it."""
        known = {row.request_id: row for row in rows}
        adopted = []
        async with self._sessions.writing(session_id):
            end = await self._sessions.file_end(session_id)
            found = await self._responses.recover(session_id, end, known.keys())
            for line, written in found.adopted:
                row = known[line.request_id]
                with event_context(row.envelope()):
                    await self._ending.commit(row, line, written)
                adopted.append(line.request_id)
        if adopted:
            log.warning("completion.adopted", session_id=session_id, requests=adopted)
        return adopted

    async def _stopped(self, row: Row) -> bool:
        """End one that was to be cancelled when the daemon died: nothing of it survived that."""
        if not row.cancel_wanted:
            return False
        proof = Proof(how="recovered", elapsed_s=0.0)
        with event_context(row.envelope()):
            await self._ending.end(row, Outcome(attempt=row.attempts, duration_ms=0, proof=proof))
        return True

    async def _put_back(self, row: Row) -> None:
        if row.state != "running":
            return
        told = CompletionRetrying(
            request_id=row.request_id,
            session_id=row.session_id,
            attempt=row.attempts,
            delay_s=0.0,
            reason="daemon_restarted",
            message="the daemon ended while it was at work",
        )

        def put_back(tx: Transaction) -> None:
            tx.execute(_AGAIN, (row.request_id,))
            tx.tell(told, stream=f"completion/{row.request_id}")

        with event_context(row.envelope()):
            await self._database.write(put_back)
