"""A row that refers to a file may itself be damaged: it is named, and those beside it are looked at."""

import asyncio
import threading
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from ksi_common.errors import DataLoss
from ksi_common.references import Reference
from ksi_daemon import referrers
from ksi_daemon.blobs import FileBlobs
from ksi_daemon.database import Database, Transaction
from ksi_daemon.database.log_writer import CLAIM_CHECKED, reference_to
from ksi_daemon.referrers import Referrers
from ksi_daemon.verification import Verifier
from tests.support.databases import Heard, opened, tell

LINE = b"an answer\n"
RIGHT = ("logs/responses/s.jsonl", 0, len(LINE), sha256(LINE).hexdigest())
TABLE = "CREATE TABLE answers (name, path, offset, length, sha256)"
INSERT = "INSERT INTO answers VALUES (?, CAST(? AS TEXT), ?, ?, CAST(? AS TEXT))"
ANSWERS = "SELECT name, path, offset, length, sha256 FROM answers"


async def named(home: Path, rows: Sequence[tuple[Any, ...]]) -> list[tuple[object, str]]:
    """Verify a home with these rows; give the names and reasons of what is damaged."""
    (home / "logs" / "responses").mkdir(parents=True)
    (home / "logs" / "responses" / "s.jsonl").write_bytes(LINE)
    async with opened(home, Heard()) as database:
        await database.write(lambda tx: tx.execute(TABLE))
        for row in rows:
            await database.write(partial(Transaction.execute, sql=INSERT, parameters=row))
        referring = Referrers(database)
        referring.add("demo", ANSWERS)
        blobs = FileBlobs(home, readable=("blobs", "logs/responses"))
        found = [one async for one in Verifier(database, blobs, referring).verify(None, None, deep=True)]
    return [(each.referred.name, each.reason) for one in found for each in one.references]


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"logs/responses/\xff.jsonl"),
        (0, "logs/../../secret"),
        (0, "mogs/responses/s.jsonl"),
        (0, None),
        (1, -1),
        (1, None),
        (2, "many"),
        (2, 2**60),
        (3, "48" * 31 + "4u"),
        (3, b"\xff" * 64),
        (3, None),
    ],
)
async def test_a_damaged_row_is_named_and_the_others_are_right(
    tmp_path: Path, at: int, value: object
) -> None:
    damaged = (*RIGHT[:at], value, *RIGHT[at + 1 :])
    rows = [("a", *RIGHT), ("b", *damaged), ("c", *RIGHT)]
    assert await named(tmp_path, rows) == [("b", "reference_corrupt")]


@pytest.mark.parametrize("name", [None, 7, b"\xff"], ids=["none", "number", "no text"])
async def test_a_row_whose_name_is_damaged_is_looked_at(tmp_path: Path, name: object) -> None:
    rows = [("a", *RIGHT), (name, *RIGHT[:3], "0" * 64)]
    assert await named(tmp_path, rows) == [(name, "reference_corrupt")]


async def test_pages_go_on_after_a_damaged_row_at_the_end_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referrers, "_PAGE", 2)
    damaged = ("b", b"logs/responses/\xff.jsonl", *RIGHT[1:])
    rows = [("a", *RIGHT), damaged, ("c", *RIGHT), ("d", *RIGHT[:3], "0" * 64)]
    assert set(await named(tmp_path, rows)) == {("b", "reference_corrupt"), ("d", "reference_corrupt")}


async def test_a_page_without_any_key_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers, "_PAGE", 2)
    rows = [(None, *RIGHT[:3], "0" * 64), (None, *RIGHT[:3], "1" * 64), ("a", *RIGHT)]
    with pytest.raises(DataLoss, match="too many rows of demo"):
        await named(tmp_path, rows)


async def test_rows_may_be_named_by_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers, "_PAGE", 2)
    rows = [*[(number, *RIGHT) for number in range(5)], (5, *RIGHT[:3], "0" * 64)]
    assert await named(tmp_path, rows) == [(5, "reference_corrupt")]


def test_a_reference_of_a_row_says_what_of_it_is_damaged() -> None:
    assert Reference.stored(*RIGHT).length == len(LINE)
    with pytest.raises(DataLoss, match="its sha256") as loss:
        Reference.stored(*RIGHT[:3], "none")
    assert loss.value.details["reason"] == "reference_corrupt"


DATA = b'"%s"' % (b"x" * CLAIM_CHECKED)


async def damaged(database: Database, *, deep: bool) -> list[tuple[int, str]]:
    """Verify the log; give the positions and reasons of what is damaged."""
    verifier = Verifier(database, FileBlobs(database.home), Referrers(database))
    found = [one async for one in verifier.verify(None, None, deep=deep)]
    return [(each.seq, each.reason) for one in found for each in one.damaged]


@pytest.mark.parametrize("lost", ["length", "sha256"])
async def test_a_reference_of_the_log_that_lacks_something_is_named(tmp_path: Path, lost: str) -> None:
    reference = orjson.loads(reference_to(DATA))
    del reference[lost]
    change = "UPDATE log SET reference = ? WHERE seq = 1"
    async with opened(tmp_path, Heard()) as database:
        await database.write(tell(data=DATA))
        await database.write(tell())
        assert await damaged(database, deep=True) == []
        await database.write(lambda tx: tx.execute(change, (orjson.dumps(reference).decode(),)))
        assert await damaged(database, deep=True) == [(1, "event_corrupt")]


@pytest.mark.parametrize("deep", [False, True])
async def test_a_reference_of_the_log_that_is_no_text_is_named(tmp_path: Path, *, deep: bool) -> None:
    async with opened(tmp_path, Heard()) as database:
        await database.write(tell(data=DATA))
        await database.write(tell())
        await database.write(lambda tx: tx.execute("UPDATE log SET reference = x'00' WHERE seq = 1"))
        assert await damaged(database, deep=deep) == [(1, "event_corrupt")]


async def test_what_is_not_committed_yet_is_not_missing(tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(tx: Transaction) -> None:
        tx.tell_raw("demo:told", b"{}")
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(5)

    async with opened(tmp_path, Heard()) as database, asyncio.timeout(30):
        await database.write(tell())
        writing = database.write(slow)
        await begun.wait()
        try:
            assert database.head == 1
            assert await damaged(database, deep=False) == []
        finally:
            go_on.set()
        await writing
        assert database.head == 2
