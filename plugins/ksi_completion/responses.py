"""The durable answers: one line of the session's file for each completion that ended.

No other module knows the format:

    {"ksi": {"request_id": …, "session_id": …, "provider": …, "model": …, "timestamp": …, "duration_ms": …,
             "attempt": …, "outcome": "result" | "failed" | "cancelled", "client_id": …,
             "provider_session": …, "resume_at": …},
     "response": {…} | null, "error": {…}, "proof": {…}}

A row names a line by a reference. A line is written and synced before the commit of its row; what follows the
last line that a row names is thus of a crash, or of a commit that failed.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from errno import ENOSPC
from functools import cache, partial
from pathlib import Path
from typing import Final, Literal, Self, TypeVar

import orjson
import structlog
from pydantic import TypeAdapter, ValidationError

from ksi_common.events.completion import Failure, Proof, Usage
from ksi_common.records import record
from ksi_completion.batches import Batches
from ksi_completion.response_files import PARTS, ResponseFile, ResponseFolder
from ksi_daemon.plugin import (
    Blobs,
    DataLoss,
    InvalidArgument,
    JsonValue,
    KSIError,
    Reference,
    Unavailable,
    is_name,
)

T = TypeVar("T")

log = structlog.get_logger()

LINES: Final = "application/jsonl"
SYNCS: Final = 8
"""Files of answers that are synced at once; where there are more, each thread has a share of them."""
MAX_LINE_BYTES: Final = 16 * 1024 * 1024

_BESIDE: Final = ("response", "error", "proof", "usage")
"""Fields that stand beside ``ksi``."""


@record(kw_only=True)
class Line:
    """How a completion ended: with a ``response`` of its provider, an ``error`` or a ``proof``."""

    request_id: str
    session_id: str = ""
    """Empty in files of the first KSI, which had neither this, nor ``model``, ``attempt`` and ``outcome``."""
    provider: str
    model: str = ""
    timestamp: str
    """When it ended; RFC 3339."""
    duration_ms: int
    attempt: int = 1
    failures: int | None = None
    """Attempts that a provider failed; None in files of before."""
    outcome: Literal["result", "failed", "cancelled"] = "result"
    client_id: str | None = None
    """The agent that it is for."""
    provider_session: str | None = None
    """The provider's own id of the session, and, in ``resume_at``, of this turn."""
    resume_at: str | None = None
    response: Mapping[str, JsonValue] | None = None
    error: Failure | None = None
    proof: Proof | None = None
    usage: Usage | None = None
    """Of an attempt that failed, and cost something all the same."""

    def __post_init__(self) -> None:
        told = {"result": self.response, "failed": self.error, "cancelled": self.proof}
        wanted = {"result": "a response", "failed": "an error", "cancelled": "a proof"}[self.outcome]
        if told[self.outcome] is None:
            raise ValueError(f"a line of the outcome {self.outcome} has {wanted}")

    @property
    def text(self) -> str:
        """The answer in words; empty where there is none."""
        return text_of(self.response)

    def to_bytes(self) -> bytes:
        """Give the line with its end; raise InvalidArgument (``not_json``). NaN becomes null."""
        about = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _BESIDE}
        for name in ("failures", "client_id", "provider_session", "resume_at"):
            if about[name] is None:
                del about[name]
        line = {"ksi": about, "response": None if self.response is None else dict(self.response)}
        line |= {"error": self.error.model_dump()} if self.error else {}
        line |= {"proof": self.proof.model_dump()} if self.proof else {}
        line |= {"usage": self.usage.model_dump()} if self.usage else {}
        try:
            return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:
            raise InvalidArgument(
                f"the answer to {self.request_id} is no JSON: {error}", reason="not_json"
            ) from error

    @staticmethod
    def parse(data: bytes) -> "Line":
        """Read a line; raise DataLoss (``line_malformed``) where it is none."""
        if not data.endswith(b"\n"):
            raise _malformed("it has no end")
        try:
            line = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise _malformed(str(error)) from None
        if not isinstance(line, dict) or not isinstance(line.get("ksi"), dict):
            raise _malformed('it has no object "ksi"')
        try:
            return _adapter().validate_python(line["ksi"] | {name: line.get(name) for name in _BESIDE})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _malformed(f"{place}: {first['msg']}" if place else first["msg"]) from None


@cache
def _adapter() -> TypeAdapter[Line]:
    """Make it at the first use: what is rarely read costs an idle daemon nothing."""
    return TypeAdapter(Line)


@record
class Written:
    """A line that stands in its file; one that was found there is not on disk before ``sync``."""

    reference: Reference
    file: ResponseFile
    lost_bytes: int = 0
    """How many bytes that rows name are not there any more: the file was found too short."""

    @property
    def end(self) -> int:
        """Where the line ends in its file."""
        return self.reference.offset + self.reference.length

    def sync(self) -> None:
        """Have it on disk: for ``Transaction.before_commit``. Blocks; may be called again.

        After OSError the line must be stored again, with the same ``at``.
        """
        self.file.sync()


@record
class Recovered:
    """What was found after the last line of a session that a row names."""

    adopted: Sequence[tuple[Line, Written]] = ()
    """Whole lines of open requests, in order; each is to have its row."""
    torn_bytes: int = 0
    """What followed them, and was moved to the torn file."""
    lost_bytes: int = 0
    """How many bytes that rows name are not there any more."""


@record
class _Storing:
    """A line that is to be stored."""

    path: str
    line: Line
    at: int


class Responses:
    """Write, read and recover answers; used with ``async with``.

    The files are written in one thread, in the order asked: what a cancelled call has begun is done before
    the next call begins. What is to be stored while the thread is busy is its next piece of work, all of it.
    """

    def __init__(self, home: Path, blobs: Blobs) -> None:
        self._folder = ResponseFolder(home)
        self._blobs = blobs

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ksi-responses")
        self._syncing = ThreadPoolExecutor(SYNCS, thread_name_prefix="ksi-sync")
        self._storing: Batches[_Storing, Written] = Batches(self._thread, self._store_all)
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._thread.shutdown)
        await loop.run_in_executor(None, self._syncing.shutdown)

    def store(self, session_id: str, line: Line, *, at: int) -> "asyncio.Future[Written]":
        """Have a line on disk after the last one of the session that a row names, which ends ``at``.

        Between this and the commit, or refusal, of its row nothing else may be stored in the session.
        What stood beyond ``at`` is moved to ``{session_id}.jsonl.torn``. Where the file is shorter than
        that, the answers that are lost give DataLoss, and the line follows what there is: a new answer is
        not refused for an old one. Raises Unavailable (``store_unavailable``) where the disk does not
        take it, InvalidArgument (``not_a_name``, ``not_json``, ``too_large``) where no disk would.
        Cancelled, it leaves a line that no row names, or none.
        """
        return self._storing.put(_Storing(path_of(session_id), line, at))

    async def read(self, reference: Reference) -> Line:
        """Give a line; raise DataLoss (``reference_missing``, ``reference_corrupt``)."""
        return Line.parse(await self._blobs.read(reference))

    async def recover(self, session_id: str, end: int, open_requests: AbstractSet[str]) -> Recovered:
        """Look at what follows ``end``, where the last line of a session ends that a row names.

        Whole lines of open requests are adopted, each request once; the first byte that is none of these,
        and all that follow, are moved to the torn file. Never raises for the state of the file: where it
        cannot be read nothing is adopted, and where it cannot be cut the next append does it.
        """
        return await self._run(partial(self._recover, path_of(session_id), end, session_id, open_requests))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _store_all(self, batch: "Sequence[_Storing]") -> "Sequence[Written | Exception]":
        """Append all lines, then sync their files; what goes wrong is the matter of its line."""
        try:
            with self._folder.entered(make=True) as folder:
                outcomes = [
                    _attempt(partial(self._append, folder, item.path, item.line, item.at)) for item in batch
                ]
        except OSError as error:
            return [_unavailable(error) for _ in batch]
        if len(batch) > 1:
            # Beside each other: what a file system has to do for one it does for all that wait with it.
            threads = min(SYNCS, len(outcomes))
            shares = [outcomes[first::threads] for first in range(threads)]
            for first, synced in enumerate(self._syncing.map(_all_synced, shares)):
                outcomes[first::threads] = synced
        else:
            outcomes = [_synced(outcome) for outcome in outcomes]
        self._folder.point_to(_name(batch[-1].path))
        return outcomes

    def _append(self, folder: int, path: str, line: Line, at: int) -> Written:
        data = line.to_bytes()
        if len(data) > MAX_LINE_BYTES:
            raise InvalidArgument(
                f"the answer to {line.request_id} has {len(data)} bytes",
                reason="too_large",
                limit=MAX_LINE_BYTES,
            )
        file = self._folder.open(folder, _name(path), make=True)
        offset, torn_bytes = file.settle(at, data)
        file.append(data)
        written = Written(_reference(path, offset, data), file, at - offset)
        _report(path, torn_bytes, written.lost_bytes)
        return written

    def _recover(self, path: str, end: int, session_id: str, open_requests: AbstractSet[str]) -> Recovered:
        adopted: list[tuple[Line, Written]] = []
        try:
            with self._folder.entered() as folder:
                file = self._folder.open(folder, _name(path), make=False)
            size, position, wanted = file.size, end, set(open_requests)
            for data in file.lines(end, max_bytes=MAX_LINE_BYTES):
                line = _parse_or_none(data)
                if line is None or line.session_id != session_id or line.request_id not in wanted:
                    break
                wanted.remove(line.request_id)
                adopted.append((line, Written(_reference(path, position, data), file)))
                position += len(data)
            recovered = Recovered(tuple(adopted), max(size - position, 0), max(end - size, 0))
            if recovered.torn_bytes:
                file.cut(position)
        except FileNotFoundError:
            recovered = Recovered(lost_bytes=end)
        except OSError as error:
            log.warning("responses.not_recovered", path=path, error=str(error))
            return Recovered(tuple(adopted))
        _report(path, recovered.torn_bytes, recovered.lost_bytes)
        return recovered


def path_of(session_id: str) -> str:
    """Give the path, below the home, of a session's file; raise InvalidArgument for what names none."""
    if not is_name(session_id):
        raise InvalidArgument(f"{session_id!r} is no name of a session", reason="not_a_name")
    return "/".join((*PARTS, f"{session_id}.jsonl"))


def text_of(response: Mapping[str, JsonValue] | None) -> str:
    """Give the words of what a provider gave: ``result``, or the first choice's message; else nothing."""
    match response:
        case {"result": str(text)} | {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
    return ""


def _attempt(work: Callable[[], T]) -> T | Exception:
    """Do a part of a batch; what goes wrong with it is no matter of the others."""
    try:
        return work()
    except OSError as error:
        return _unavailable(error)
    except (KSIError, ValueError, TypeError) as error:
        return error


def _all_synced(outcomes: Sequence[Written | Exception]) -> Sequence[Written | Exception]:
    return [_synced(outcome) for outcome in outcomes]


def _synced(written: Written | Exception) -> Written | Exception:
    if isinstance(written, Exception):
        return written
    try:
        written.sync()
    except OSError as error:
        return _unavailable(error)
    return written


def _unavailable(error: OSError) -> Unavailable:
    hint = "free space on the disk of the answers" if error.errno == ENOSPC else None
    unavailable = Unavailable(f"cannot store an answer: {error}", reason="store_unavailable", hint=hint)
    unavailable.__cause__ = error
    return unavailable


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _reference(path: str, offset: int, data: bytes) -> Reference:
    digest = hashlib.sha256(data).hexdigest()
    return Reference(path=path, offset=offset, length=len(data), sha256=digest, media=LINES)


def _parse_or_none(data: bytes) -> Line | None:
    if not data.startswith(b"{"):  # what is before the line is none of ours
        return None
    try:
        return Line.parse(data)
    except DataLoss:
        return None


def _malformed(why: str) -> DataLoss:
    return DataLoss(f"not a line of an answer: {why}", reason="line_malformed")


def _report(path: str, torn_bytes: int, lost_bytes: int) -> None:
    if torn_bytes:
        log.warning("responses.cut", path=path, torn_bytes=torn_bytes)
    if lost_bytes:
        log.error("responses.lost", path=path, lost_bytes=lost_bytes)
