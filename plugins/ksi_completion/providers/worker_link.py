"""Answers from a worker that is started when it is needed, shared, kept warm, and replaced when it dies."""

import asyncio
from collections.abc import Mapping
from contextvars import Context

from ksi_common.records import record
from ksi_completion.providers.interface import Job, ProviderFailure
from ksi_completion.providers.worker import Worker, WorkerSettings
from ksi_completion.providers.worker_generation import WorkerGeneration
from ksi_daemon.plugin import JsonValue, Processes


@record
class WorkerStatistics:
    """``pid``: of the worker, where one runs; ``started``: workers, ever; ``generations``: under way."""

    pid: int | None
    started: int
    generations: int


class WorkerLink:
    """At most one worker at a time, for all who ask."""

    def __init__(self, processes: Processes, settings: WorkerSettings) -> None:
        self._processes = processes
        self._settings = settings
        self._worker: Worker | None = None
        self._runs: set[asyncio.Task[None]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._is_closed = False
        self._started_count = 0

    async def start(self, job: Job, options: Mapping[str, JsonValue] | None = None) -> WorkerGeneration:
        """Ask for an answer, of a new worker where there is none. ``options``: for this kind of worker.

        Raises ProviderFailure. Cancelling it leaves nothing at work but a worker that may have been started.
        """
        if self._is_closed:
            raise ProviderFailure("the daemon is stopping", reason="stopping")
        if self._tasks is None:
            # Entered by who comes first, left by `close`: between them there need be no task of its own.
            self._tasks = asyncio.TaskGroup()
            await self._tasks.__aenter__()
        worker = self._worker
        if worker is None or not worker.is_open:
            worker = self._launch(self._tasks, previous=worker)
        await worker.settled.wait()
        return await worker.begin(job, options or {})

    async def close(self) -> None:
        """End the worker; its answers fail. May be called twice."""
        self._is_closed = True
        for run in self._runs:
            run.cancel()
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            await tasks.__aexit__(None, None, None)

    def statistics(self) -> WorkerStatistics:
        """Say what runs."""
        worker = self._worker
        return WorkerStatistics(
            pid=worker.pid if worker else None,
            started=self._started_count,
            generations=worker.generations if worker else 0,
        )

    def _launch(self, tasks: asyncio.TaskGroup, *, previous: Worker | None) -> Worker:
        worker = self._worker = Worker(self._processes, self._settings)
        self._started_count += 1
        # In a context of its own: it is not part of the request that happened to come first.
        name, context = f"worker {self._settings.purpose}", Context()
        run = tasks.create_task(_run(worker, previous), name=name, context=context)
        self._runs.add(run)
        # Not in `_run`: a task that is cancelled early enough runs nothing at all.
        run.add_done_callback(lambda run: self._note_end(run, worker))
        return worker

    def _note_end(self, run: asyncio.Task[None], worker: Worker) -> None:
        self._runs.discard(run)
        worker.end()


async def _run(worker: Worker, previous: Worker | None) -> None:
    if previous is not None:
        # It may be dying yet, and two models need twice the memory.
        await previous.gone.wait()
    await worker.run()
