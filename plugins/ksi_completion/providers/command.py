"""Answers from programs that are run once for each, and say what happens in JSON, one object a line."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import field
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from orjson import loads

from ksi_common.events.completion import Usage
from ksi_common.records import record
from ksi_completion.providers.generation import FedGeneration
from ksi_completion.providers.interface import Answer, FailureClass, ProviderFailure, cancelled
from ksi_daemon.plugin import OperationalError, Process, Processes, Unavailable

MAX_ARGUMENT_BYTES: Final = 128 * 1024
"""Of one argument of a program; Linux's limit, less by one."""
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
READ_BYTES: Final = 1024 * 1024
LAST_WORDS_BYTES: Final = 4096
"""How much of a program's stderr is kept."""

EXIT_S: Final = 2.0
"""How long a program may stay after its last word."""

log = structlog.get_logger()


class Reading(Protocol):
    """What understands one program's lines."""

    def take(self, line: Mapping[str, Any]) -> str:
        """Hear an object; give the text that it adds. Raises ProviderFailure to end the program at once."""
        ...

    @property
    def is_whole(self) -> bool:
        """The last word was said: the program may end."""
        ...

    @property
    def is_enough(self) -> bool:
        """There is an answer, and the program would go on with it: it is to be interrupted."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What it has cost so far, as far as it was said."""
        ...

    def conclude(self, how: "Ended") -> Answer:
        """Give the answer, after the program's end. Raises ProviderFailure where there is none."""
        ...


@record
class Ended:
    """How a program ended. ``words``: the end of what it wrote to stderr; ``noise``: lines without JSON."""

    code: int | None
    signal: int | None
    words: str
    noise: str = ""

    def __str__(self) -> str:
        how = f"exit code {self.code}" if self.code is not None else f"signal {self.signal}"
        last_line = (self.words.strip() or self.noise.strip()).rpartition("\n")[2]
        return how + f": {last_line}" * bool(last_line)


@record
class Invocation:
    """One run of a program. ``env``: all of its environment; ``cwd`` is made where it is missing."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    purpose: str
    stdin: bytes = field(repr=False)
    files: Mapping[Path, bytes] = field(default_factory=dict, repr=False)
    """What it is to read, written for it alone and removed at its end."""
    grace_s: float = 2.4
    """From SIGINT, over SIGTERM at half of it, to SIGKILL."""


def parsed(line: bytes) -> Any:
    """Read a line of JSON; None where it is none. What is no text, as half a surrogate pair, becomes "?"."""
    try:
        return loads(line)
    except ValueError:
        pass
    try:
        return loads(json.dumps(json.loads(line), ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None


class Commands:
    """The programs of one provider that run. A run ends with everything that it has started."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._runs: dict[asyncio.Task[None], FedGeneration] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._is_closed = False

    async def start(self, invocation: Invocation, reading: Reading) -> FedGeneration:
        """Run a program. Raises ProviderFailure; cancelling it leaves nothing at work."""
        if self._is_closed:
            raise ProviderFailure("the daemon is stopping", reason="stopping")
        if self._tasks is None:
            # Entered by who comes first, left by `close`: between them there need be no task of its own.
            self._tasks = asyncio.TaskGroup()
            await self._tasks.__aenter__()
        process = await self._launch(invocation)
        run = _Run(process, invocation, reading)
        name, context = f"command {invocation.purpose}", Context()
        task = self._tasks.create_task(run.serve(), name=name, context=context)
        self._runs[task] = run.generation
        # Not in the task: one that is cancelled early enough runs nothing at all.
        task.add_done_callback(self._note_end)
        return run.generation

    async def close(self) -> None:
        """End all; their answers fail. May be called twice."""
        self._is_closed = True
        for task in self._runs:
            task.cancel()
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            await tasks.__aexit__(None, None, None)

    async def _launch(self, invocation: Invocation) -> Process:
        is_started = False
        prepared = asyncio.get_running_loop().run_in_executor(None, _prepare, invocation)
        try:
            # Shielded: a thread cannot be broken off, and what it writes is removed once it has.
            await asyncio.shield(prepared)
            process = await self._processes.start(
                invocation.argv, env=invocation.env, cwd=invocation.cwd, purpose=invocation.purpose
            )
            is_started = True
        except OperationalError as error:
            kind: FailureClass = "transient" if error.retryable else "not_deployed"
            raise ProviderFailure(error.message, reason="not_started", kind=kind) from error
        except OSError as error:
            message = f"cannot write {error.filename}: {error.strerror}"
            raise ProviderFailure(message, reason="not_started") from error
        finally:
            if not is_started and prepared.done():
                _clear(invocation)
            elif not is_started:
                prepared.add_done_callback(lambda done: _clear_after(done, invocation))
        return process

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._runs.pop(task).end(ProviderFailure("the daemon is stopping", reason="stopping"))


def _prepare(invocation: Invocation) -> None:
    for folder in {invocation.cwd, *(path.parent for path in invocation.files)}:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, content in invocation.files.items():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)


def _clear_after(prepared: asyncio.Future[None], invocation: Invocation) -> None:
    if not prepared.cancelled():
        prepared.exception()  # of nobody's concern: who asked has gone
    _clear(invocation)


def _clear(invocation: Invocation) -> None:
    for path in invocation.files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # no reason to lose an answer
            log.warning("command.file_left", purpose=invocation.purpose, path=str(path), error=error.strerror)


class _Run:
    """One process from its first line to the proof of its end."""

    def __init__(self, process: Process, invocation: Invocation, reading: Reading) -> None:
        self.generation = FedGeneration(self._stop)
        self._process = process
        self._invocation = invocation
        self._reading = reading
        self._words = b""
        self._noise = b""
        self._left: ProviderFailure | None = None

    async def serve(self) -> None:
        """Hear the process until nothing of it is left. Cancelling stops it."""
        pids: Sequence[int] = ()
        outcome: Answer | ProviderFailure = ProviderFailure("the daemon is stopping", reason="stopping")
        try:
            outcome = await self._converse()
        except Exception as error:
            # Raised on, it would end the answers of all other runs.
            log.exception("command.bug", purpose=self._invocation.purpose)
            outcome = ProviderFailure(f"{type(error).__name__}: see the log", reason="bug")
        finally:
            pids = await self._end_process(grace_s=self._invocation.grace_s)
            _clear(self._invocation)
            self.generation.end(self._left or outcome, pids if self.generation.is_unwanted else None)

    async def _converse(self) -> Answer | ProviderFailure:
        fault: ProviderFailure | None = None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_words())
            tasks.create_task(self._ask())
            try:
                await self._hear()
                await self._let_exit()
            except ProviderFailure as error:
                fault = error
            # Its streams end with it, and so do the tasks.
            await self._end_process(grace_s=self._invocation.grace_s)
        if self.generation.is_unwanted:
            return cancelled(self._reading.usage)
        return fault or self._conclusion(await self._ended())

    def _conclusion(self, ended: Ended) -> Answer | ProviderFailure:
        try:
            return self._reading.conclude(ended)
        except ProviderFailure as failure:
            return failure

    async def _ask(self) -> None:
        # What does not read its stdin says more by its end than by this.
        with suppress(Unavailable):
            self._process.stdin.write(self._invocation.stdin)
            await self._process.stdin.drain()
        self._process.stdin.close()

    async def _hear(self) -> None:
        """Take lines until the last word, or the end of them."""
        received = bytearray()
        is_interrupted = False
        while not self._reading.is_whole and (chunk := await self._process.stdout.read(READ_BYTES)):
            received += chunk
            if b"\n" in chunk:
                *lines, received = received.split(b"\n")
                for line in lines:
                    self._take(bytes(line))
            if self._reading.is_enough and not is_interrupted:
                is_interrupted = True
                self._process.interrupt()
            if len(received) > MAX_LINE_BYTES:
                message = f"{self._invocation.purpose} wrote a line of more than {MAX_LINE_BYTES} bytes"
                raise ProviderFailure(message, reason="garbled")
        if not self._reading.is_whole and received:
            self._take(bytes(received))

    def _take(self, line: bytes) -> None:
        said = parsed(line)
        if not isinstance(said, dict):
            # Programs print; what they say in JSON is the answer.
            self._noise = (self._noise + line + b"\n")[-LAST_WORDS_BYTES:]
        elif text := self._reading.take(said):
            self.generation.feed(text)

    async def _let_exit(self) -> None:
        """Wait a little for its end; output that it still has is not needed."""
        try:
            async with asyncio.timeout(EXIT_S):
                while await self._process.stdout.read(READ_BYTES):
                    pass
                await self._process.wait()
        except TimeoutError:
            log.warning("command.stayed", purpose=self._invocation.purpose, after_s=EXIT_S)
        except OperationalError as error:
            self._note_left(error)

    async def _ended(self) -> Ended:
        words, noise = (kept.decode(errors="replace") for kept in (self._words, self._noise))
        if self._left:
            return Ended(None, None, words, noise)
        how = await self._process.wait()
        return Ended(how.code, how.signal, words, noise)

    async def _stop(self) -> None:
        """Climb the ladder; return when nothing is left."""
        await self._end_process(grace_s=self._invocation.grace_s)
        await self.generation.ended.wait()
        if self._left:
            raise self._left

    async def _end_process(self, *, grace_s: float) -> Sequence[int]:
        try:
            stopped = await self._process.stop(grace_s=grace_s, interrupt_first=True)
        except OperationalError as error:
            self._note_left(error)
            return ()
        return stopped.pids_gone

    def _note_left(self, error: OperationalError) -> None:
        # Something is stuck in the kernel. `Processes` has logged it, and its next start tries again.
        self._left = ProviderFailure(error.message, reason="processes_left", kind="unknown_outcome")

    async def _keep_words(self) -> None:
        while chunk := await self._process.stderr.read(READ_BYTES):
            self._words = (self._words + chunk)[-LAST_WORDS_BYTES:]
