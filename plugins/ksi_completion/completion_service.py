"""The conductor: accepted completions get their turn, run beside each other, and end, each exactly once."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Final, Protocol

from ksi_common.events.completion import Accepted, Asked, CancelReply, Overview, Step
from ksi_completion.acceptance import Acceptance
from ksi_completion.ending import Ending, step_of
from ksi_completion.live import Live
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.queue_manager import Entry, QueueManager
from ksi_completion.responses import Responses
from ksi_completion.rows import ONE, Row
from ksi_completion.running import Run
from ksi_daemon.plugin import Database, DataLoss, NotFound, ResourceExhausted, Transaction, event_context

RETRY_AFTER_S: Final = 2.0

_WISH: Final = "UPDATE completions SET cancel_wanted = 1 WHERE request_id = ? AND sha256 IS NULL"


class MakeRun(Protocol):
    """Make the work on a completion whose turn it is."""

    def __call__(self, row: Row, live: Live) -> Run:
        """Make it; nothing begins yet."""
        ...


class CompletionService:
    """Accept, run, cancel and follow completions. ``serve`` runs them; everything else works without it."""

    def __init__(
        self,
        *,
        database: Database,
        acceptance: Acceptance,
        ending: Ending,
        providers: ProviderManager,
        responses: Responses,
        make_run: MakeRun,
        concurrency: int,
        limit: int,
    ) -> None:
        self._database = database
        self._acceptance = acceptance
        self._ending = ending
        self._providers = providers
        self._responses = responses
        self._make_run = make_run
        self._concurrency = concurrency
        self._limit = limit
        self._wake = asyncio.Event()
        self._queue = QueueManager(self._wake.set)
        self._live: dict[str, Live] = {}
        self._runs: dict[str, Run] = {}
        self._unwanted: set[str] = set()
        self._unbegun: list[Row] = []
        """Stopped while they waited: to be ended."""
        self._enders: set[asyncio.Task[None]] = set()
        """At work on them."""
        self._is_draining = False
        self._idle = asyncio.Event()

    async def accept(self, asked: Asked) -> Accepted:
        """Put a completion on disk and let it wait for its turn."""
        if len(self._queue) >= self._limit and not await self._is_known(asked.request_id):
            raise ResourceExhausted(
                f"{len(self._queue)} completions are open", reason="queue_full", retry_after_s=RETRY_AFTER_S
            )
        return await self._acceptance.accept(asked, opened=self.open)

    def open(self, row: Row, ahead: int) -> None:
        """Queue what is on disk; called in the order of acceptance."""
        accepted = Step(
            type="accepted",
            request_id=row.request_id,
            session_id=row.session_id,
            provider=row.provider,
            model=row.model,
            position=ahead,
        )
        self._live[row.request_id] = Live(accepted)
        self._queue.add(row.entry)

    async def stream(self, asked: Asked) -> AsyncGenerator[Step, None]:
        """Accept a completion, or find it, and follow it to its end."""
        accepted = await self.accept(asked)
        live = self._live.get(accepted.request_id)
        if live is None:
            yield await self._last_step(await self._row(accepted.request_id))
            return
        async with aclosing(live.follow()) as steps:
            async for step in steps:
                yield step

    async def cancel(self, request_id: str) -> CancelReply:
        """Stop a completion; return when it has ended, by this or otherwise. Raises NotFound."""
        row = await self._row(request_id)

        def wish(tx: Transaction) -> bool:
            return tx.execute(_WISH, (request_id,)).rowcount > 0

        if await self._database.write(wish) and (live := self._live.get(request_id)) is not None:
            self._stop(row)
            async for _ in live.follow():
                pass
        row = await self._row(request_id)
        if row.state != "cancelled":
            return CancelReply(status="too_late", request_id=request_id, state=row.state)
        proof = row.proof
        with suppress(DataLoss):  # its line names the processes, too
            proof = (await self._last_step(row)).proof
        return CancelReply(status="cancelled", request_id=request_id, state=row.state, proof=proof)

    async def status(self, request_id: str | None, *, include_response: bool) -> Overview:
        """Describe the queue, and one completion where it is asked for. Raises NotFound."""
        completion = None
        if request_id is not None:
            row = await self._row(request_id)
            response = None
            if include_response and row.reference is not None:
                response = (await self._responses.read(row.reference)).text
            position = self._queue.position(row.entry) if row.state == "queued" else None
            completion = row.completion(position=position, response=response)
        running = self._queue.running
        return Overview(
            active_count=len(running),
            queued_count=self._queue.queued,
            active_requests=[entry.request_id for entry in running],
            session_queues=self._queue.sessions(),
            completion=completion,
        )

    async def drain(self) -> None:
        """Begin nothing more; return when nothing is at work."""
        self._is_draining = True
        self._wake.set()
        await self._idle.wait()

    async def serve(self) -> None:
        """Give completions their turn for as long as the daemon runs."""
        await self._take_up_again()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                while self._unbegun:
                    row = self._unbegun.pop()
                    ender = tasks.create_task(self._run(row), name=f"end of completion {row.request_id}")
                    self._enders.add(ender)
                    ender.add_done_callback(self._note_end)
                while (entry := self._next()) is not None:
                    work = tasks.create_task(self._conduct(entry), name=f"completion {entry.request_id}")
                    # Not in `_conduct`: a task that is cancelled early enough runs nothing at all.
                    work.add_done_callback(partial(self._release, entry))
                await self._wake.wait()

    async def _take_up_again(self) -> None:
        """After a bug has ended ``serve``: what was at work gets its turn, or is stopped, again."""
        names = [name for name in self._live if name not in self._queue]
        self._unbegun.clear()
        for row in await self._rows_after_all_writes(names):
            if row.reference is not None:
                # It had its end, and only the last step was not told.
                last = await self._last_step(row)
                self._unwanted.discard(row.request_id)
                self._live.pop(row.request_id).step(last)
            elif row.request_id in self._unwanted:
                self._unbegun.append(row)
            else:
                self._queue.add(row.entry)

    async def _rows_after_all_writes(self, names: Sequence[str]) -> Sequence[Row]:
        """Read rows in the writer: an end that is under way, though nobody awaits it now, comes before."""

        def read(tx: Transaction) -> list[Row]:
            return [Row.of(tx.execute(ONE, (name,)).fetchone()) for name in names]

        return await self._database.write(read) if names else ()

    def _next(self) -> Entry | None:
        if self._is_draining:
            if not self._queue.running and not self._enders:
                self._idle.set()
            return None
        if len(self._queue.running) >= self._concurrency:
            return None
        entry = self._queue.next(self._providers.has_room)
        if entry is not None:
            self._providers.begin(entry.provider)
        return entry

    def _stop(self, row: Row) -> None:
        self._unwanted.add(row.request_id)
        if (run := self._runs.get(row.request_id)) is not None:
            run.cancel()
        elif self._queue.remove(row.request_id) is not None:
            self._unbegun.append(row)
            self._wake.set()
        # Else it is between the two, and is looked up among the unwanted when it gets to work.

    async def _conduct(self, entry: Entry) -> None:
        """Bring a completion whose turn it is to its end."""
        await self._run(await self._row(entry.request_id))

    def _note_end(self, ender: asyncio.Task[None]) -> None:
        self._enders.discard(ender)
        self._wake.set()

    def _release(self, entry: Entry, _: asyncio.Task[None]) -> None:
        self._providers.end(entry.provider)
        self._queue.done(entry)

    async def _run(self, row: Row) -> None:
        run = self._runs[row.request_id] = self._make_run(row, self._live[row.request_id])
        if row.request_id in self._unwanted:
            run.cancel()
        try:
            with event_context(row.envelope()):
                outcome = await run.outcome()
                last = await self._ending.end(row, outcome)
        finally:
            del self._runs[row.request_id]
        self._unwanted.discard(row.request_id)
        self._live.pop(row.request_id).step(last)

    async def _last_step(self, row: Row) -> Step:
        assert row.reference is not None
        return step_of(row, await self._responses.read(row.reference), row.reference)

    async def _is_known(self, request_id: str | None) -> bool:
        return request_id is not None and bool(await self._database.read(ONE, (request_id,)))

    async def _row(self, request_id: str) -> Row:
        rows = await self._database.read(ONE, (request_id,))
        if not rows:
            raise NotFound(f"there is no completion {request_id}", reason="unknown_request")
        return Row.of(rows[0])
