"""One bit of a file is another than it was: what it changes is named, and never delivered as right."""

import json
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from ksi_common.envelope import StoredEvent, event_context
from ksi_common.errors import DataLoss
from ksi_daemon.blobs import FileBlobs
from ksi_daemon.database import Database, Error, Transaction, log_rows
from ksi_daemon.eventlog import EventLog
from ksi_daemon.referrers import Referrers
from ksi_daemon.verification import Verifier
from tests.support.databases import Heard, envelope, opened, tell
from tests.support.scale import scaled

EVENTS = 300
FLIPS = scaled(40, 200)
LINES = "CREATE TABLE answers (name, path, offset, length, sha256)"
ANSWER = "INSERT INTO answers VALUES (?, ?, ?, ?, ?)"
ANSWERS = "SELECT name, path, offset, length, sha256 FROM answers"

Facts = tuple[object, ...]


@dataclass
class Reading:
    """What came of reading a whole log."""

    events: dict[int, Facts] = field(default_factory=dict)
    left_out: set[int] = field(default_factory=set)
    """Positions that the pages of the log named as damaged."""
    named: set[int] = field(default_factory=set)
    """Positions that the verification named."""
    owned: list[str] = field(default_factory=list)
    """Rows of plugins whose bytes the verification named."""
    wrong: list[str] = field(default_factory=list)
    """Ids under which another event was given."""


def facts(event: StoredEvent) -> Facts:
    return (
        event.event_id, event.event, event.data, event.stream, event.version, event.correlation_id,
        event.causation_id, event.actor, event.hop, event.time_us, event.kind,
    )  # fmt: skip


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """A closed home with events small and large, requests, and lines of answers."""
    made = tmp_path / "home"
    answers = made / "logs" / "responses"
    answers.mkdir(parents=True)
    async with opened(made, Heard()) as database:
        for number in range(EVENTS):
            data = json.dumps({"n": number, "text": "x" * (number % 400)}).encode()
            unit = tell(f"e{number}", f"demo:n{number % 7}", data, stream=f"s/{number % 5}")
            with event_context(envelope(event_id=f"r{number}", actor=f"agent-{number % 3}")):
                await (database.write(unit) if number % 10 == 0 else database.write_apart(unit))
        for number in range(4):
            await database.write(tell(f"large{number}", data=b'"%b"' % (b"%d" % number * 70_000)))
        await database.write(lambda tx: tx.execute(LINES))
        lines = [json.dumps({"answer": "y" * 500, "n": number}).encode() + b"\n" for number in range(20)]
        (answers / "s.jsonl").write_bytes(b"".join(lines))
        offset = 0
        for number, line in enumerate(lines):
            row = (f"a{number}", "logs/responses/s.jsonl", offset, len(line), sha256(line).hexdigest())
            await database.write(partial(Transaction.execute, sql=ANSWER, parameters=row))
            offset += len(line)
    return made


@asynccontextmanager
async def copied(home: Path, to: Path) -> AsyncIterator[Path]:
    shutil.copytree(home, to)
    try:
        yield to
    finally:
        shutil.rmtree(to)


async def read(home: Path) -> Reading:
    """Read everything: page by page, by id, and by the verification."""
    reading = Reading()
    async with opened(home, Heard()) as database:
        log = EventLog(database)
        await _read_pages(database, log, reading)
        for number in range(EVENTS):
            try:
                event = await log.get(f"e{number}")
            except DataLoss:
                continue
            if event is not None and event.event_id != f"e{number}":
                reading.wrong.append(f"e{number}")
        blobs = FileBlobs(home, readable=("blobs", "logs/responses"))
        referrers = Referrers(database)
        referrers.add("demo", ANSWERS)
        async for found in Verifier(database, blobs, referrers).verify(None, None, deep=True):
            for damage in found.damaged:
                reading.named.update(range(damage.seq, damage.seq + damage.count))
            reading.owned += [damaged.referred.name for damaged in found.references]
    return reading


async def _read_pages(database: Database, log: EventLog, reading: Reading) -> None:
    position, head = 0, database.head
    while position < head:
        page = await log.page(position, head, ("*",), None)
        reading.events.update({event.seq or 0: facts(event) for event in page.events})
        for damage in page.damaged:
            reading.left_out.update(range(damage.seq, damage.seq + damage.count))
        position = page.last


def flip(path: Path, chance: random.Random) -> str:
    """Turn over one bit; say which."""
    data = bytearray(path.read_bytes())
    at, bit = chance.randrange(len(data)), chance.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {at} of {path.name}"


async def after_flips(home: Path, base: Path, paths: Sequence[Path]) -> list[tuple[str, Reading | None]]:
    """Read copies of a home, each with one bit turned over; None: it could not be opened, and said so."""
    chance = random.Random(4)
    readings: list[tuple[str, Reading | None]] = []
    for number in range(FLIPS):
        async with copied(home, base / f"copy{number}") as copy:
            what = flip(copy / chance.choice(paths), chance)
            try:
                readings.append((what, await read(copy)))
            except Error:
                readings.append((what, None))
    return readings


@pytest.mark.slow
@pytest.mark.timeout(scaled(240, 600))
async def test_a_flip_in_the_database_is_named_and_never_delivered(home: Path, tmp_path: Path) -> None:
    whole = await read(home)
    assert (len(whole.events), whole.named, whole.owned, whole.wrong) == (EVENTS + 4, set(), [], [])
    readings = await after_flips(home, tmp_path, [Path("db/ksi.db")])
    changed = 0
    for what, reading in readings:
        if reading is None:
            changed += 1
            continue
        assert wrongly_delivered(whole, reading) == [], what
        assert reading.wrong == [], what
        lost = whole.events.keys() - reading.events.keys()
        assert lost <= reading.named, f"{what}: {sorted(lost - reading.named)} are gone, and not named"
        assert lost <= reading.left_out, f"{what}: a subscriber is not told of {sorted(lost)}"
        changed += bool(lost)
    assert changed >= FLIPS // 8, "the flips hit nothing"


@pytest.mark.slow
@pytest.mark.timeout(scaled(240, 600))
async def test_the_check_notices_a_log_that_delivers_what_it_finds(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: without the digest wrong data is delivered."""
    whole = await read(home)

    class Anything:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    monkeypatch.setattr(log_rows, "digest_of", lambda _: Anything())
    readings = await after_flips(home, tmp_path, [Path("db/ksi.db")])
    assert any(wrongly_delivered(whole, reading) for _, reading in readings if reading is not None)


def wrongly_delivered(whole: Reading, reading: Reading) -> list[int]:
    """List what is no event of the log, and true events in a place that is not theirs and not named."""
    true = list(whole.events.values())
    return [
        seq
        for seq, found in reading.events.items()
        if whole.events.get(seq) != found and not (found in true and seq in reading.named)
    ]


@pytest.mark.slow
@pytest.mark.timeout(scaled(240, 600))
async def test_a_flip_in_a_blob_or_an_answer_is_named(home: Path, tmp_path: Path) -> None:
    whole = await read(home)
    files = [path.relative_to(home) for path in (home / "blobs").glob("??/*")]
    files += [Path("logs/responses/s.jsonl")] * len(files)
    assert len(files) == 8
    for what, reading in await after_flips(home, tmp_path, files):
        assert reading is not None, what
        assert wrongly_delivered(whole, reading) == []
        lost = whole.events.keys() - reading.events.keys()
        named: tuple[Any, ...] = (len(reading.named), len(reading.owned))
        assert named == ((0, 1) if "jsonl" in what else (1, 0)), what
        assert lost == reading.named == reading.left_out, what
