"""One worker process, from its start until nothing of it is left."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Final

import structlog
from pydantic import ValidationError

from ksi_common.records import record
from ksi_common.strict_json import dumps
from ksi_completion.providers.interface import FailureClass, Job, ProviderFailure
from ksi_completion.providers.worker_generation import WorkerGeneration
from ksi_completion.providers.worker_reports import REPORT, Ready
from ksi_daemon.plugin import JsonValue, OperationalError, Process, Processes, Unavailable

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""Of an order, as of a report."""

READ_BYTES: Final = 1024 * 1024

EXIT_S: Final = 2.0
"""How long a worker that has closed its stdout may take to end."""

LAST_WORDS_BYTES: Final = 4096
"""How much of a worker's stderr is kept."""

log = structlog.get_logger()


@record
class WorkerSettings:
    """How a worker is run. ``argv``, ``env``: of its process, and nothing else is passed on."""

    argv: Sequence[str]
    env: Mapping[str, str]
    purpose: str
    """Its name in logs and messages."""
    start_timeout_s: float = 30.0
    """From the start of the process until it can be asked."""
    confirm_s: float = 2.0
    """How long it may take to confirm a cancel before it is killed."""
    grace_s: float = 0.3
    """From SIGTERM to SIGKILL. It has nothing to save."""
    idle_s: float = 600.0
    """How long it is kept without work."""


class Worker:
    """A process that makes any number of answers at once. ``is_open``: it may be asked, now or soon."""

    def __init__(self, processes: Processes, settings: WorkerSettings) -> None:
        self.is_open = True
        self.settled = asyncio.Event()
        """It can be asked, or never will be."""
        self.gone = asyncio.Event()
        """Nothing of it is left."""
        self._processes = processes
        self._settings = settings
        self._process: Process | None = None
        self._generations: dict[str, WorkerGeneration] = {}
        self._ids = map(str, count(1))
        self._received = bytearray()
        self._last_words = b""
        self._failure = ProviderFailure("the daemon is stopping", reason="stopping")
        self._left: ProviderFailure | None = None
        self._pids_gone: Sequence[int] = ()

    @property
    def pid(self) -> int | None:
        """Of its process; None where there is none."""
        return self._process.pid if self._process and not self.gone.is_set() else None

    @property
    def generations(self) -> int:
        """How many answers are under way."""
        return len(self._generations)

    async def run(self) -> None:
        """Start the process and hear it until nothing of it is left. Cancelling stops it."""
        try:
            self._failure = await self._live()
        except Exception as error:
            # Raised on, it would end the tasks of all workers, and whoever asked for the first of them.
            log.exception("worker.bug", purpose=self._settings.purpose)
            self._failure = ProviderFailure(f"{type(error).__name__}: see the log", reason="bug")

    def end(self) -> None:
        """Let what waits for it fail; to be called when `run` has ended, or never began."""
        self.is_open = False
        self.settled.set()
        self.gone.set()
        for generation in self._generations.values():
            generation.fail(self._failure, self._pids_gone)
        self._generations.clear()

    async def begin(self, job: Job, options: Mapping[str, JsonValue]) -> WorkerGeneration:
        """Ask for an answer. Raises ProviderFailure; cancelling it leaves nothing at work."""
        if not self.is_open:
            await self.gone.wait()
            raise self._failure
        ident = next(self._ids)
        line = _order(ident, job, options)
        generation = self._generations[ident] = WorkerGeneration(lambda: self._cancel(ident))
        try:
            await self._send(line)
        except asyncio.CancelledError:
            await generation.cancel()
            raise
        return generation

    async def _send(self, line: bytes) -> None:
        assert self._process is not None
        try:
            self._process.stdin.write(line)
            await self._process.stdin.drain()
        except Unavailable:
            # It does not listen any more: what it was asked fails with its end.
            await self._kill()

    async def _cancel(self, ident: str) -> None:
        generation = self._generations.get(ident)
        if generation is None:  # it has ended
            return
        try:
            async with asyncio.timeout(self._settings.confirm_s):
                await self._send(dumps({"do": "cancel", "id": ident}) + b"\n")
                await generation.ended.wait()
        except TimeoutError:
            log.warning("worker.killed", purpose=self._settings.purpose, after_s=self._settings.confirm_s)
            await self._kill()

    async def _kill(self) -> None:
        """End the process and wait until nothing of it is left."""
        self.is_open = False
        await self._stop()
        await self.gone.wait()
        if self._left:
            raise self._left

    async def _live(self) -> ProviderFailure:
        """Run the process; give the reason why it is no more."""
        settings = self._settings
        try:
            process = await self._processes.start(settings.argv, env=settings.env, purpose=settings.purpose)
        except OperationalError as error:
            kind: FailureClass = "transient" if error.retryable else "not_deployed"
            return ProviderFailure(error.message, reason="not_started", kind=kind)
        self._process = process
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_last_words(process.stderr))
            try:
                fault = await self._hear(process.stdout)
                if fault is None:
                    await self._let_end(process)
            finally:
                self.is_open = False
                end = await self._stop()
        failure = self._left or fault or self._death(end)
        log.info("worker.ended", purpose=settings.purpose, end=end, reason=failure.reason)
        return failure

    async def _let_end(self, process: Process) -> None:
        """Wait a little for a process that has closed its stdout: it is ending, with an exit code."""
        self.is_open = False
        with suppress(TimeoutError, OperationalError):
            async with asyncio.timeout(EXIT_S):
                await process.wait()

    async def _stop(self) -> str:
        """End the process; say how it ended."""
        assert self._process is not None
        try:
            stopped = await self._process.stop(grace_s=self._settings.grace_s)
        except OperationalError as error:
            # Something is stuck in the kernel. `Processes` has logged it, and its next start tries again.
            self._left = ProviderFailure(error.message, reason="processes_left", kind="unknown_outcome")
            return "not at all"
        self._pids_gone = stopped.pids_gone
        if stopped.exit.signal is not None:
            return f"signal {stopped.exit.signal}"
        # None where the runner was killed, which alone could have seen it.
        return "unseen" if stopped.exit.code is None else f"exit code {stopped.exit.code}"

    async def _hear(self, stdout: asyncio.StreamReader) -> ProviderFailure | None:
        """Take reports; give the reason to end the process, None where it has ended itself."""
        limit_s = self._settings.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while not self.settled.is_set():
                    if not await self._hear_some(stdout):
                        return None
            while await self._hear_or_idle(stdout):
                pass
        except TimeoutError:
            return ProviderFailure(f"the model was not ready within {limit_s:g} s", reason="not_ready")
        except ProviderFailure as fault:
            return fault
        return None

    async def _hear_or_idle(self, stdout: asyncio.StreamReader) -> bool:
        limit_s = self._settings.idle_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._hear_some(stdout)
        except TimeoutError:
            if self._generations:
                return True
            raise ProviderFailure(f"nothing to do for {limit_s:g} s", reason="idle") from None

    async def _hear_some(self, stdout: asyncio.StreamReader) -> bool:
        """Take what comes next; False at the end."""
        chunk = await stdout.read(READ_BYTES)
        self._received += chunk
        if b"\n" in chunk:
            *lines, self._received = self._received.split(b"\n")
            for line in lines:
                self._take(line)
        if len(self._received) > MAX_LINE_BYTES:
            raise self._garbled(f"a line of more than {MAX_LINE_BYTES} bytes")
        return bool(chunk)

    def _take(self, line: bytes | bytearray) -> None:
        try:
            report = REPORT.validate_json(line)
        except ValidationError:
            # Not chained: it would quote the line, which may be what was asked.
            raise self._garbled("a line that is no report") from None
        if isinstance(report, Ready):
            self.settled.set()
            log.info("worker.ready", purpose=self._settings.purpose, pid=self.pid)
        elif report.id is None:
            raise report.failure()
        elif generation := self._generations.get(report.id):
            generation.take(report)
            if generation.ended.is_set():
                del self._generations[report.id]

    def _garbled(self, what: str) -> ProviderFailure:
        return ProviderFailure(f"worker {self._settings.purpose!r} wrote {what}", reason="worker_garbled")

    def _death(self, end: str) -> ProviderFailure:
        last_line = self._last_words.decode(errors="replace").strip().rpartition("\n")[2]
        message = f"worker {self._settings.purpose!r} ended ({end})" + f": {last_line}" * bool(last_line)
        if not self.settled.is_set() and end.startswith("exit"):
            return ProviderFailure(message, reason="not_started", kind="not_deployed")
        return ProviderFailure(message, reason="worker_died")

    async def _keep_last_words(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(READ_BYTES):
            self._last_words = (self._last_words + chunk)[-LAST_WORDS_BYTES:]
            words = chunk[-LAST_WORDS_BYTES:].decode(errors="replace")
            log.debug("worker.said", purpose=self._settings.purpose, words=words)


def _order(ident: str, job: Job, options: Mapping[str, JsonValue]) -> bytes:
    """Render an order. Raises ProviderFailure where it is longer than a worker reads."""
    line = dumps(
        {
            "do": "complete",
            "id": ident,
            "messages": [{"role": message.role, "content": message.content} for message in job.messages],
            "model": job.model,
            "system": job.system,
            "max_tokens": job.max_tokens,
            "tools": job.tools,
            "response_schema": job.response_schema,
            "options": options,
        }
    )
    if len(line) >= MAX_LINE_BYTES:
        message = f"the conversation has {len(line)} bytes, of at most {MAX_LINE_BYTES}"
        raise ProviderFailure(message, reason="too_large", kind="invalid")
    return line + b"\n"
