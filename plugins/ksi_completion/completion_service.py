"""What is asked of completions: accept, follow, cancel, hold, look."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from ksi_common.clock import Clock
from ksi_common.events.completion import Accepted, Asked, CancelReply, Step
from ksi_common.events.completion_parts import Pause
from ksi_common.events.completion_queue import (
    Cleared,
    Paused,
    PauseQueue,
    ResumeQueue,
    Retries,
    SessionState,
)
from ksi_common.events.completion_status import Overview
from ksi_common.events.conversation import ConversationForked, Fork, Forked
from ksi_completion.acceptance import Acceptance
from ksi_completion.conductor import Conductor
from ksi_completion.dead_completions import DeadCompletions, SetAside
from ksi_completion.ending import Ending
from ksi_completion.next_tries import NextTries
from ksi_completion.open_completions import OpenCompletions
from ksi_completion.pauses import Pauses, scope_of
from ksi_completion.queue_manager import MAX_LISTED
from ksi_completion.rows import ONE, Row, StoredMessage
from ksi_completion.session_manager import SessionManager
from ksi_completion.storing import Storing
from ksi_daemon.plugin import Database, DataLoss, NotFound, ResourceExhausted, Transaction

RETRY_AFTER_S: Final = 2.0
PATIENCE_S: Final = 2.5
"""How long a cancel waits for an end that is on its way to the disk."""

_WISH: Final = "UPDATE completions SET cancel_wanted = 1 WHERE request_id = ? AND sha256 IS NULL"


class CompletionService:
    """Accept, follow, hold and cancel completions; the conductor runs them."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        acceptance: Acceptance,
        conductor: Conductor,
        opened: OpenCompletions,
        ending: Ending,
        sessions: SessionManager,
        tries: NextTries,
        storing: Storing,
        dead: DeadCompletions,
        limit: int,
    ) -> None:
        self._database = database
        self._clock = clock
        self._acceptance = acceptance
        self._conductor = conductor
        self._opened = opened
        self._ending = ending
        self._sessions = sessions
        self._tries = tries
        self._storing = storing
        self._dead = dead
        self._limit = limit
        self._queue = opened.queue
        self.pauses = Pauses(database, clock, opened.queue, opened.tell_paused)
        self._entering: set[object] = set()
        """On their way into the queue: they have their places."""

    async def recover(self) -> None:
        """Take up what an earlier daemon left open; once, before anyone can ask."""
        await self.pauses.load()
        await self._conductor.recover()

    async def serve(self) -> None:
        """Give completions their turn for as long as the daemon runs."""
        await self._conductor.serve()

    async def drain(self) -> None:
        """Begin nothing more; return when nothing is at work."""
        await self._conductor.drain()

    async def accept(self, asked: Asked) -> Accepted:
        """Put a completion on disk and let it wait for its turn."""
        if len(self._opened) + len(self._entering) >= self._limit and not await self._is_known(
            asked.request_id
        ):
            raise ResourceExhausted(
                f"queue full ({len(self._opened)} of {self._limit} completions)",
                reason="queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        place = object()
        self._entering.add(place)

        def opened(row: Row, ahead: int, prompt: Sequence[StoredMessage]) -> None:
            self._entering.discard(place)
            self._opened.enter(row, ahead, prompt)

        try:
            # The unit gives the reply: under an idempotency key it commits with the completion.
            entered = self._database.write(await self._acceptance.prepare(asked, opened=opened))
        except BaseException:
            self._entering.discard(place)
            raise
        # Not when the await ends: cancelled, it leaves the unit to be done.
        entered.add_done_callback(partial(self._note_entered, place))
        return await asyncio.shield(entered)

    async def stream(self, asked: Asked) -> AsyncGenerator[Step, None]:
        """Accept a completion, or find it, and follow it to its end."""
        accepted = await self.accept(asked)
        row = self._opened.row(accepted.request_id) or await self._row(accepted.request_id)
        async with aclosing(self._follow(row)) as steps:
            async for step in steps:
                yield step

    async def cancel(self, request_id: str) -> CancelReply:
        """Stop a completion; return when it has ended, by this or otherwise. Raises NotFound."""
        row = await self._row(request_id)
        if await self._database.write(_wish(request_id)):
            self._conductor.stop(row)
            await self._wait_ended(row)
        row = await self._row(request_id)
        if row.state != "cancelled":
            return CancelReply(status="too_late", request_id=request_id, state=row.state)
        return CancelReply(status="cancelled", request_id=request_id, state=row.state, proof=row.proof)

    async def clear(self, session_id: str) -> Cleared:
        """End what is queued in a session as cancelled; return when it has ended. Raises NotFound."""
        await self._sessions.find(session_id)
        running, waiting = self._queue.session(session_id)
        names = [entry.request_id for entry in waiting]

        def wish(tx: Transaction) -> list[Row]:
            rows = [Row.of(tx.execute(ONE, (name,)).fetchone()) for name in names]
            return [row for row in rows if tx.execute(_WISH, (row.request_id,)).rowcount]

        stopped = await self._database.write(wish)
        for row in stopped:
            self._conductor.stop(row)
        for row in stopped:
            await self._wait_ended(row)
        ended = [row.request_id for row in stopped if (await self._row(row.request_id)).state == "cancelled"]
        return Cleared(
            session_id=session_id, cancelled=ended, running=running.request_id if running else None
        )

    async def pause(self, asked: PauseQueue) -> Paused:
        """Begin nothing of what is named."""
        scope, name = scope_of(asked)
        changed = await self._database.write(lambda tx: self.pauses.pause_in(tx, scope, name))
        return Paused(changed=changed, paused=self.pauses.listed())

    async def resume(self, asked: ResumeQueue) -> Paused:
        """Begin again what is named."""
        scope, name = scope_of(asked)
        changed = await self._database.write(lambda tx: self.pauses.resume_in(tx, scope, name))
        return Paused(changed=changed, paused=self.pauses.listed())

    async def fork(self, asked: Fork) -> Forked:
        """Begin a session that goes on from another. Raises NotFound, AlreadyExists."""
        parent = asked.session_id

        def fork(tx: Transaction) -> Forked:
            name, request_id, messages = self._sessions.fork_in(
                tx, parent, asked.new_session_id, after=asked.request_id, time_us=self._clock.time_us()
            )
            tx.tell(ConversationForked(session_id=name, forked_from=parent, request_id=request_id))
            return Forked(session_id=name, forked_from=parent, request_id=request_id, messages=messages)

        return await self._database.write(fork)

    async def status(self, request_id: str | None, *, include_response: bool) -> Overview:
        """Describe the queue, and one completion where it is asked for. Raises NotFound."""
        completion = None
        if request_id is not None:
            row = await self._row(request_id)
            response = None
            if include_response and row.reference is not None:
                response = (await self._ending.last_step(row)).text
            if row.state == "running" and self._opened.is_waiting(request_id):
                row = replace(row, state="queued")  # what was at work was the daemon before
            position = self._queue.position(row.entry) if row.state == "queued" else None
            is_ending = self._opened.is_ending(request_id)
            completion = row.completion(position=position, response=response, is_ending=is_ending)
        running = self._queue.running
        return Overview(
            active_count=len(running),
            queued_count=self._queue.queued,
            retrying_count=self._queue.delayed,
            unstored=list(self._storing.unstored()),
            dead=list(self._dead.names)[:MAX_LISTED],
            paused=self.pauses.listed(),
            active_requests=[entry.request_id for entry in running],
            session_queues=self._queue.sessions(),
            completion=completion,
        )

    async def session_status(self, session_id: str) -> SessionState:
        """Describe a session. Raises NotFound."""
        session = await self._sessions.find(session_id)
        running, waiting = self._queue.session(session_id)
        return SessionState(
            session_id=session_id,
            active=running is not None,
            running=running.request_id if running else None,
            queued=len(waiting),
            has_queue=running is not None or bool(waiting),
            requests=[entry.request_id for entry in waiting][:MAX_LISTED],
            paused=self._pauses_of(session_id),
            provider=session.provider,
            model=session.model,
            provider_session=session.provider_session,
            forked_from=session.forked_from,
        )

    async def retry_status(self, session_id: str | None) -> Retries:
        """Describe what waits for its next try."""
        return await self._tries.status(session_id)

    def _pauses_of(self, session_id: str) -> list[Pause]:
        return self.pauses.listed(("queue", ""), ("session", session_id))

    async def _follow(self, row: Row) -> AsyncGenerator[Step, None]:
        live = self._opened.live(row)
        if live is None:
            row = await self._row(row.request_id)
            if row.reference is None:
                raise SetAside(f"completion {row.request_id} is set aside", reason="completion_dead")
            yield await self._ending.last_step(row)
            return
        async with aclosing(live.follow(self._held(row.request_id))) as steps:
            async for step in steps:
                yield step

    def _held(self, request_id: str) -> Step | None:
        """Give the step that says why a completion does not begin, where that is a pause."""
        one = self._opened.get(request_id)
        if one is None or not self._opened.is_waiting(request_id):
            return None
        pauses = self.pauses.listed(*one.entry.scopes)
        return Step.model_validate({"type": "paused", **one.paused(pauses[0])}) if pauses else None

    async def _wait_ended(self, row: Row) -> None:
        """Wait for an end; not for one that the disk does not take."""
        try:
            async with asyncio.timeout(None) as patience, aclosing(self._follow(row)) as steps:
                with self._losing(patience, row.request_id):
                    async for _ in steps:
                        pass
        except TimeoutError:
            return
        except (DataLoss, SetAside):
            return

    @contextmanager
    def _losing(self, patience: asyncio.Timeout, request_id: str) -> Iterator[None]:
        """Let it end ``PATIENCE_S`` after it is known what comes of a completion."""

        def lose() -> None:
            if not patience.expired():
                patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)

        one = self._opened.get(request_id)
        if one is None:
            yield
            return
        if one.is_ending:
            lose()
        one.on_ending.add(lose)
        try:
            yield
        finally:
            one.on_ending.discard(lose)

    def _note_entered(self, place: object, entered: "asyncio.Future[Accepted]") -> None:
        self._entering.discard(place)
        if not entered.cancelled():
            entered.exception()  # told by who awaits it, or by nobody

    async def _is_known(self, request_id: str | None) -> bool:
        return request_id is not None and bool(await self._database.read(ONE, (request_id,)))

    async def _row(self, request_id: str) -> Row:
        rows = await self._database.read(ONE, (request_id,))
        if not rows:
            raise NotFound(f"there is no completion {request_id}", reason="unknown_request")
        return Row.of(rows[0])


def _wish(request_id: str) -> Callable[[Transaction], bool]:
    return lambda tx: tx.execute(_WISH, (request_id,)).rowcount > 0
