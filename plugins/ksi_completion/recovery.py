"""What an earlier daemon left open: answers that are on disk are adopted, the rest gets its turn again.

At the start nothing is done but to read what is open, one query however many sessions that are. A session is
looked at when the first of it has its turn, or is stopped.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from ksi_common.events.completion import Step
from ksi_completion.ending import Ending
from ksi_completion.next_tries import NextTries, Setback
from ksi_completion.queue_manager import Entry
from ksi_completion.responses import Responses
from ksi_completion.rows import OPEN, OPEN_OF_SESSION, Row
from ksi_completion.session_manager import SessionManager
from ksi_daemon.plugin import Database, Processes, event_context

log = structlog.get_logger()

RESTARTED: Final = Setback(reason="daemon_restarted", message="the daemon ended while it was at work")
"""It counts as no failure, and is tried at once."""

OpenEntry = tuple[Entry, int | None, bool]
"""What waits; when it is to be tried; whether it is to be stopped."""


class Recovery:
    """Bring what is open from the disk into the queue, and mend sessions before they go on."""

    def __init__(
        self,
        *,
        database: Database,
        responses: Responses,
        sessions: SessionManager,
        ending: Ending,
        tries: NextTries,
        processes: Processes,
    ) -> None:
        self._database = database
        self._responses = responses
        self._sessions = sessions
        self._ending = ending
        self._tries = tries
        self._processes = processes
        self._unseen: set[str] = set()
        """Sessions that had something open when the daemon before ended, and that nobody has looked at."""

    async def open_entries(self) -> Sequence[OpenEntry]:
        """Give what is owed an end, in order of acceptance; once, before anyone can ask."""
        found: list[OpenEntry] = []
        for *named, next_try_us, cancel_wanted in await self._database.read(OPEN):
            found.append((Entry(*named), next_try_us, bool(cancel_wanted)))
        self._unseen = {entry.session_id for entry, *_ in found}
        if found:
            log.info("completion.recovering", open=len(found), sessions=len(self._unseen))
        return found

    async def mend(self, session_id: str) -> dict[str, Step | Row]:
        """Look at a session once: adopt the answers of it that are whole in its file, and no row names.

        Gives the last steps of the completions that have thus ended, and the rows of those that were at work.
        """
        if session_id not in self._unseen:
            return {}
        mended: dict[str, Step | Row] = {}
        async with self._sessions.writing(session_id):
            if session_id not in self._unseen:
                return {}
            # Here: whoever looked before and was broken off may have ended some.
            rows = [Row.of(row) for row in await self._database.read(OPEN_OF_SESSION, (session_id,))]
            known = {row.request_id: row for row in rows}
            session = await self._sessions.find(session_id)
            found = await self._responses.recover(session_id, session.file_end, known.keys())
            for line, written in found.adopted:
                row = known.pop(line.request_id)
                with event_context(row.envelope()):
                    mended[row.request_id] = await self._ending.commit(row, line, written)
            if mended:
                log.warning("completion.adopted", session_id=session_id, requests=list(mended))
            mended |= await self._take_up(session_id, known.values())
            # Only now: who comes before that waits, and who comes after a failure does the rest.
            self._unseen.discard(session_id)
        return mended

    async def _take_up(self, session_id: str, rows: Iterable[Row]) -> dict[str, Row]:
        """Note of those that were at work that they are tried again; give their rows as they are then."""
        if not any(reaped.pids_left for reaped in self._processes.reaped):
            # Nothing of the daemon before is alive: who had the session is gone.
            await self._database.write_apart(lambda tx: self._sessions.revoke_in(tx, session_id))
        taken = {}
        for row in rows:
            if row.state == "running" and not row.cancel_wanted:
                with event_context(row.envelope()):
                    taken[row.request_id] = await self._tries.note(row, RESTARTED)
        return taken
