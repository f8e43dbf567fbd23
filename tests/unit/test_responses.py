"""Answers in real files: one line each, named by a row, whole or cut."""

import asyncio
import errno
import gc
import hashlib
import os
import resource
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from ksi_common.errors import DataLoss, InvalidArgument, Unavailable
from ksi_common.events.completion import Failure, Proof, Usage
from ksi_common.references import Reference
from ksi_completion.responses import MAX_LINE_BYTES, Line, Recovered, Responses, Written, text_of
from ksi_daemon.blobs import FileBlobs
from ksi_daemon.database import Database, Transaction, Unit
from tests.support.databases import rows

RESULT = Line(
    request_id="r1",
    session_id="s",
    provider="embedded",
    model="small",
    timestamp="2026-01-31T12:00:00.000000Z",
    duration_ms=1200,
    attempt=2,
    response={"result": "Paris, über alles", "usage": {"completion_tokens": 3}, "nothing": None},
)


def line(request_id: str = "r1", **facts: Any) -> Line:
    return replace(RESULT, request_id=request_id, **facts)


@pytest.fixture
async def responses(tmp_path: Path) -> AsyncIterator[Responses]:
    async with Responses(tmp_path, FileBlobs(tmp_path, readable=("logs/responses",))) as made:
        yield made


def naming(written: Written) -> Unit[None]:
    """Make a unit whose row names a line."""

    def unit(tx: Transaction) -> None:
        tx.before_commit(written.reference.path, written.sync)
        tx.execute("INSERT OR REPLACE INTO things VALUES (?)", (written.reference.sha256,))

    return unit


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def times_open(path: Path) -> int:
    return sum(1 for each in Path("/proc/self/fd").iterdir() if os.path.realpath(each) == str(path))


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def file_of(home: Path, name: str = "s.jsonl") -> Path:
    return home / "logs" / "responses" / name


async def put(responses: Responses, *lines: Line, session_id: str = "s") -> list[Reference]:
    """Write lines that rows come to name."""
    references: list[Reference] = []
    at = 0
    for each in lines:
        written = await responses.store(session_id, each, at=at)
        references.append(written.reference)
        at = written.end
    return references


def test_a_line_of_a_result_is_the_format_that_users_know() -> None:
    data = line(client_id="agent-7").to_bytes()
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert orjson.loads(data) == {
        "ksi": {
            "request_id": "r1",
            "session_id": "s",
            "provider": "embedded",
            "model": "small",
            "timestamp": "2026-01-31T12:00:00.000000Z",
            "duration_ms": 1200,
            "attempt": 2,
            "outcome": "result",
            "client_id": "agent-7",
        },
        "response": {"result": "Paris, über alles", "usage": {"completion_tokens": 3}, "nothing": None},
    }
    assert "über".encode() in data


@pytest.mark.parametrize(
    "ended",
    [
        RESULT,
        line(outcome="failed", response=None, error=Failure(reason="stalled", message="no output")),
        line(outcome="cancelled", response=None, proof=Proof(how="killed", elapsed_s=0.5, pids_gone=[7])),
        line(
            outcome="failed",
            response=None,
            error=Failure(reason="mocked", message="no luck"),
            failures=3,
            usage=Usage(prompt_tokens=7, cost_usd=0.5),
        ),
    ],
    ids=["result", "failed", "cancelled", "failed and paid for"],
)
def test_what_is_written_is_read(ended: Line) -> None:
    assert Line.parse(ended.to_bytes()) == ended


def test_the_outcome_alone_tells_what_else_a_line_has() -> None:
    failed = line(outcome="failed", response=None, error=Failure(reason="stalled", message="no output"))
    written = orjson.loads(failed.to_bytes())
    assert written["response"] is None
    assert written["error"] == {"reason": "stalled", "message": "no output", "retryable": False}
    assert "proof" not in written
    assert "client_id" not in written["ksi"]
    for outcome in ("result", "failed", "cancelled"):
        with pytest.raises(ValueError, match=f"a line of the outcome {outcome} has a"):
            line(outcome=outcome, response=None)


def test_a_line_of_the_first_ksi_is_a_result() -> None:
    ksi = {"provider": "claude", "request_id": "r", "timestamp": "t", "duration_ms": 7, "client_id": "c"}
    old = Line.parse(orjson.dumps({"ksi": ksi, "response": {"result": "hi"}}) + b"\n")
    assert (old.request_id, old.provider, old.client_id, old.outcome) == ("r", "claude", "c", "result")
    assert (old.session_id, old.model, old.attempt, old.text) == ("", "", 1, "hi")


def test_a_field_of_a_later_version_is_passed_over() -> None:
    later = orjson.loads(RESULT.to_bytes())
    later["ksi"]["mood"] = later["mood"] = "good"
    assert Line.parse(orjson.dumps(later) + b"\n") == RESULT


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it has no end"),
        (RESULT.to_bytes()[:-1], "it has no end"),
        (b"\n", "not a line of an answer"),
        (b"\0" * 9 + b"\n", "not a line of an answer"),
        (b"[]\n", 'it has no object "ksi"'),
        (b'{"ksi":7}\n', 'it has no object "ksi"'),
        (b'{"ksi":{}}\n', "request_id: Field required"),
        (RESULT.to_bytes().replace(b'result"', b'outcome"', 1), "outcome: Input should be"),
        (RESULT.to_bytes().replace(b"1200", b'"x"'), "duration_ms: Input should be a valid integer"),
        (orjson.dumps({"ksi": orjson.loads(RESULT.to_bytes())["ksi"]}) + b"\n", "has a response"),
        (RESULT.to_bytes() * 2, "not a line of an answer"),
    ],
)
def test_what_is_no_line_is_refused_with_the_place(data: bytes, why: str) -> None:
    with pytest.raises(DataLoss) as refused:
        Line.parse(data)
    assert refused.value.details == {"reason": "line_malformed"}
    assert why in refused.value.message


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(InvalidArgument) as refused:
        line(response={"result": "\ud800"}).to_bytes()
    assert refused.value.details == {"reason": "not_json"}
    assert orjson.loads(line(response={"result": float("nan")}).to_bytes())["response"] == {"result": None}


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ({"result": "hi", "choices": []}, "hi"),
        ({"choices": [{"message": {"role": "assistant", "content": "hi"}}, {"message": {}}]}, "hi"),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"choices": []}, ""),
        ({"result": None}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_the_words_of_an_answer_are_found_where_its_provider_puts_them(
    response: Mapping[str, Any] | None, text: str
) -> None:
    assert text_of(response) == text


async def test_what_is_appended_is_read_by_its_reference(responses: Responses, tmp_path: Path) -> None:
    first, second = await put(responses, line("r1"), line("r2"))
    assert file_of(tmp_path).read_bytes() == line("r1").to_bytes() + line("r2").to_bytes()
    assert second == Reference(
        path="logs/responses/s.jsonl",
        offset=first.length,
        length=len(line("r2").to_bytes()),
        sha256=hashlib.sha256(line("r2").to_bytes()).hexdigest(),
        media="application/jsonl",
    )
    assert [await responses.read(each) for each in (first, second)] == [line("r1"), line("r2")]


async def test_only_the_owner_can_look(responses: Responses, tmp_path: Path) -> None:
    await put(responses, line())
    await responses.store("s", line("r2"), at=0)
    folder = file_of(tmp_path).parent
    assert [each.stat().st_mode & 0o777 for each in (folder.parent, folder)] == [0o700, 0o700]
    files = sorted(folder.iterdir())
    assert [each.name for each in files] == ["latest.jsonl", "s.jsonl", "s.jsonl.torn"]
    assert {each.stat().st_mode & 0o777 for each in files} == {0o600}


@pytest.mark.parametrize("name", ["", "..", "../s", "a/b", "s\0", "%2e%2e/x\n", ".s", "s" * 129, "‥"])
async def test_no_name_leaves_the_folder(responses: Responses, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await responses.store(name, line(), at=0)
    assert refused.value.details == {"reason": "not_a_name"}
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "linked", ["logs", "logs/responses", "logs/responses/s.jsonl", "logs/responses/s.jsonl.torn"]
)
async def test_no_link_is_followed(responses: Responses, tmp_path: Path, linked: str) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "file").write_bytes(b"kept\n")
    place = tmp_path / linked
    place.parent.mkdir(parents=True, exist_ok=True)
    if linked.endswith(".torn"):
        file_of(tmp_path).write_bytes(b"torn")
    place.symlink_to(outside / "file" if ".jsonl" in linked else outside)
    with pytest.raises(Unavailable) as refused:
        await responses.store("s", line(), at=0)
    assert refused.value.details == {"reason": "store_unavailable"}
    assert {each.name: each.read_bytes() for each in outside.iterdir()} == {"file": b"kept\n"}
    assert await responses.recover("s", 0, {"r1"}) == Recovered()


async def test_a_pipe_in_the_place_of_a_file_is_refused(responses: Responses, tmp_path: Path) -> None:
    file_of(tmp_path).parent.mkdir(parents=True)
    os.mkfifo(file_of(tmp_path))
    with pytest.raises(Unavailable, match="not a regular file"):
        await responses.store("s", line(), at=0)


@pytest.mark.parametrize("refuses", ["to be opened", "to be synced"])
async def test_a_file_that_refuses_is_no_matter_of_the_answers_beside_it(
    responses: Responses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    bad, good = file_of(tmp_path, "bad.jsonl"), file_of(tmp_path, "good.jsonl")
    bad.parent.mkdir(parents=True)
    synced = os.fdatasync

    def sync(descriptor: int) -> None:
        if os.path.realpath(f"/proc/self/fd/{descriptor}") == str(bad.resolve()):
            raise OSError(errno.EIO, "the disk is broken")
        synced(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync)
    if refuses == "to be opened":
        os.mkfifo(bad)
    refused = responses.store("bad", line(session_id="bad"), at=0)
    stored = responses.store("good", line(session_id="good"), at=0)
    with pytest.raises(Unavailable) as error:
        await refused
    assert error.value.details["reason"] == "store_unavailable"
    assert good.read_bytes() == line(session_id="good").to_bytes()
    assert (await stored).end == good.stat().st_size


async def test_a_line_that_no_row_came_to_name_makes_room(responses: Responses, tmp_path: Path) -> None:
    (first,) = await put(responses, line("r1"))
    await responses.store("s", line("lost"), at=first.length)
    written = await responses.store("s", line("r2"), at=first.length)
    assert written.reference.offset == first.length
    assert file_of(tmp_path).read_bytes() == line("r1").to_bytes() + line("r2").to_bytes()
    assert file_of(tmp_path, "s.jsonl.torn").read_bytes() == line("lost").to_bytes()


async def test_the_same_line_again_takes_its_own_place(responses: Responses, tmp_path: Path) -> None:
    """Else a disk that refuses commits would fill the torn file with one answer."""
    first, again = [await responses.store("s", line(), at=0) for _ in range(2)]
    assert first.reference == again.reference
    assert file_of(tmp_path).read_bytes() == line().to_bytes()
    assert not file_of(tmp_path, "s.jsonl.torn").exists()


async def test_the_place_of_a_line_is_where_a_line_ends_though_bytes_are_lost(
    responses: Responses, tmp_path: Path
) -> None:
    """New answers are stored and read; those that are lost give DataLoss, and no wrong text."""
    first, second = await put(responses, line("r1"), line("r2"))
    file_of(tmp_path).write_bytes(file_of(tmp_path).read_bytes()[: first.length + 10])
    end = second.offset + second.length
    written = await responses.store("s", line("r3"), at=end)
    assert (written.reference.offset, written.lost_bytes) == (first.length, second.length)
    assert file_of(tmp_path).read_bytes() == line("r1").to_bytes() + line("r3").to_bytes()
    assert file_of(tmp_path, "s.jsonl.torn").read_bytes() == line("r2").to_bytes()[:10] + b"\n"
    assert await responses.read(first) == line("r1")
    assert await responses.read(written.reference) == line("r3")
    with pytest.raises(DataLoss) as lost:
        await responses.read(second.model_copy(update={"length": second.length + 5}))
    assert lost.value.details["reason"] == "reference_corrupt"


async def test_a_file_that_is_gone_is_begun_anew(responses: Responses, tmp_path: Path) -> None:
    (first,) = await put(responses, line("r1"))
    file_of(tmp_path).unlink()
    with pytest.raises(DataLoss) as lost:
        await responses.read(first)
    assert lost.value.details["reason"] == "reference_missing"
    written = await responses.store("s", line("r2"), at=first.length)
    assert (written.reference.offset, written.lost_bytes) == (0, first.length)
    with pytest.raises(DataLoss) as lost:
        await responses.read(first)
    assert lost.value.details["reason"] == "reference_corrupt"


async def test_a_line_whose_end_is_damaged_does_not_run_into_the_next(
    responses: Responses, tmp_path: Path
) -> None:
    first, second = await put(responses, line("r1"), line("r2"))
    damaged = file_of(tmp_path).read_bytes()[:-20] + bytes(20)
    file_of(tmp_path).write_bytes(damaged)
    written = await responses.store("s", line("r3"), at=len(damaged))
    assert written.reference.offset == first.length == len(damaged) - second.length
    assert file_of(tmp_path).read_bytes() == line("r1").to_bytes() + line("r3").to_bytes()
    assert file_of(tmp_path, "s.jsonl.torn").read_bytes() == damaged[first.length :] + b"\n"


async def test_large_lines_are_cut_whole(responses: Responses, tmp_path: Path) -> None:
    large = line("large", response={"result": "x" * 1_000_000})
    (first,) = await put(responses, line("r1"))
    await responses.store("s", large, at=first.length)
    file_of(tmp_path).write_bytes(file_of(tmp_path).read_bytes()[:-1])
    written = await responses.store("s", line("r2"), at=first.length + len(large.to_bytes()))
    assert written.reference.offset == first.length
    assert file_of(tmp_path, "s.jsonl.torn").read_bytes() == large.to_bytes()


async def test_an_answer_has_a_limit(responses: Responses) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await responses.store("s", line(response={"result": "x" * MAX_LINE_BYTES}), at=0)
    assert refused.value.details == {"reason": "too_large", "limit": MAX_LINE_BYTES}


async def test_a_line_that_does_not_fit_leaves_no_part_of_it(responses: Responses, tmp_path: Path) -> None:
    (first,) = await put(responses, line("r1"))
    with largest_file(first.length + 10), pytest.raises(Unavailable) as refused:
        await responses.store("s", line("r2"), at=first.length)
    assert refused.value.details == {"reason": "store_unavailable"}
    assert file_of(tmp_path).read_bytes() == line("r1").to_bytes()


async def test_what_is_beyond_is_not_cut_where_it_cannot_be_kept(
    responses: Responses, tmp_path: Path
) -> None:
    (first,) = await put(responses, line("r1"))
    await responses.store("s", line("lost", response={"result": "x" * 100_000}), at=first.length)
    before = file_of(tmp_path).read_bytes()
    with largest_file(50_000):
        with pytest.raises(Unavailable):
            await responses.store("s", line("r2"), at=first.length)
        assert await responses.recover("s", first.length, OPEN) == Recovered()
    assert file_of(tmp_path).read_bytes() == before


async def test_a_file_that_is_removed_before_it_is_on_disk_is_not_taken_for_stored(
    responses: Responses, database: Database, tmp_path: Path
) -> None:
    file_of(tmp_path).parent.mkdir(parents=True)
    file_of(tmp_path).write_bytes(line().to_bytes())
    recovered = await responses.recover("s", 0, {"r1"})
    ((_, written),) = recovered.adopted
    file_of(tmp_path).unlink()
    for _ in range(2):  # nor when asked again: the system forgets that a sync failed
        with pytest.raises(Unavailable):
            await database.write(naming(written))
    again = await responses.store("s", line(), at=0)
    await database.write(naming(again))
    assert rows(database.path, "SELECT x FROM things") == [(again.reference.sha256,)]


async def test_a_line_may_be_named_by_a_second_unit_where_the_first_failed(
    responses: Responses, database: Database
) -> None:
    def failing(tx: Transaction) -> None:
        naming(written)(tx)
        tx.execute("SELEKT")

    written = await responses.store("s", line(), at=0)
    with pytest.raises(Exception, match="syntax error"):
        await database.write(failing)
    for _ in range(2):
        await database.write(naming(written))


async def test_a_file_is_closed_once_it_is_on_disk_or_dropped(responses: Responses, tmp_path: Path) -> None:
    await put(responses, line("r1"))
    assert times_open(file_of(tmp_path)) == 0
    once, again = [await responses.recover("s", 0, {"r1"}) for _ in range(2)]
    assert times_open(file_of(tmp_path)) == 2
    ((_, written),) = once.adopted
    written.sync()
    assert times_open(file_of(tmp_path)) == 1
    del again
    await responses.recover("other", 0, OPEN)  # the thread has let go of what it gave
    gc.collect()
    assert times_open(file_of(tmp_path)) == 0


async def test_a_cancelled_store_leaves_what_the_next_one_settles(
    responses: Responses, tmp_path: Path
) -> None:
    storing = responses.store("s", line("cancelled"), at=0)
    await asyncio.sleep(0)
    storing.cancel()
    written = await responses.store("s", line("r1"), at=0)
    assert written.reference.offset == 0
    assert file_of(tmp_path).read_bytes() == line("r1").to_bytes()


async def test_latest_is_a_link_to_the_file_of_the_newest_session(
    responses: Responses, tmp_path: Path
) -> None:
    for session in ("a", "b", "b", "a"):
        await responses.store(session, line(), at=0)
        assert file_of(tmp_path, "latest.jsonl").readlink() == Path(f"{session}.jsonl")
    assert sorted(each.name for each in file_of(tmp_path).parent.iterdir()) == [
        "a.jsonl",
        "b.jsonl",
        "latest.jsonl",
    ]


async def test_a_draft_of_the_link_that_a_crash_has_left_is_no_hindrance(
    responses: Responses, tmp_path: Path
) -> None:
    await responses.store("a", line(), at=0)
    file_of(tmp_path, ".latest.jsonl").symlink_to("nowhere")
    await responses.store("b", line(), at=0)
    assert file_of(tmp_path, "latest.jsonl").readlink() == Path("b.jsonl")


async def test_a_session_may_be_called_latest(responses: Responses, tmp_path: Path) -> None:
    await responses.store("a", line(), at=0)
    (reference,) = await put(responses, line(session_id="latest"), session_id="latest")
    await responses.store("b", line(), at=0)
    assert await responses.read(reference) == line(session_id="latest")
    assert file_of(tmp_path, "a.jsonl").read_bytes() == line().to_bytes()
    assert not file_of(tmp_path, "latest.jsonl").is_symlink()


WHOLE = [line("r1"), line("r2"), line("r3")]
OPEN = {"r2", "r3"}
TOO_LARGE = line("r2", response={"result": "x" * MAX_LINE_BYTES}).to_bytes()
R1, R2, R3 = (each.to_bytes() for each in WHOLE)


@pytest.mark.parametrize(
    ("tail", "adopted", "torn"),
    [
        (b"", [], b""),
        (R2, ["r2"], b""),
        (R2 + R3, ["r2", "r3"], b""),
        (R3 + R2, ["r3", "r2"], b""),
        (R2 + R3[:-1], ["r2"], R3[:-1]),
        (R2 + R3[:40], ["r2"], R3[:40]),
        (R2 + bytes(40), ["r2"], bytes(40)),
        (bytes(40) + b"\n" + R2, [], bytes(40) + b"\n" + R2),
        (R2 + R2, ["r2"], R2),
        (R2 + R1 + R3, ["r2"], R1 + R3),
        (R2 + b"\n" + R3, ["r2"], b"\n" + R3),
        (b"rubbish\n", [], b"rubbish\n"),
        (line("r2", session_id="other").to_bytes(), [], line("r2", session_id="other").to_bytes()),
        (TOO_LARGE, [], TOO_LARGE),
    ],
    ids=[
        "nothing",
        "a whole line",
        "whole lines",
        "whole lines in another order",
        "no end of the line",
        "half a line",
        "zeros after a line",
        "zeros before a line",
        "a line twice",
        "a line of an ended request",
        "an empty line",
        "rubbish",
        "a line of another session",
        "a line over the limit",
    ],
)
async def test_a_tail_is_adopted_or_cut(
    responses: Responses, tmp_path: Path, tail: bytes, adopted: list[str], torn: bytes
) -> None:
    (first,) = await put(responses, line("r1"))
    with file_of(tmp_path).open("ab") as file:
        file.write(tail)
    recovered = await responses.recover("s", first.length, OPEN)
    assert [each.request_id for each, _ in recovered.adopted] == adopted
    assert (recovered.torn_bytes, recovered.lost_bytes) == (len(torn), 0)
    kept = file_of(tmp_path, "s.jsonl.torn")
    assert (kept.read_bytes() if kept.exists() else b"").rstrip(b"\n") == torn.rstrip(b"\n")
    end = first.length
    for each, written in recovered.adopted:
        written.sync()
        assert await responses.read(written.reference) == each
        assert written.reference.offset == end
        end = written.end
    assert file_of(tmp_path).stat().st_size == end
    assert await responses.recover("s", end, OPEN) == Recovered()


@pytest.mark.parametrize("left", [None, 0, 10])
async def test_a_file_that_is_short_of_what_rows_name_is_reported(
    responses: Responses, tmp_path: Path, left: int | None
) -> None:
    (first,) = await put(responses, line("r1"))
    if left is None:
        file_of(tmp_path).unlink()
    else:
        os.truncate(file_of(tmp_path), left)
    assert await responses.recover("s", first.length, OPEN) == Recovered(
        lost_bytes=first.length - (left or 0)
    )


async def test_a_session_without_a_file_has_nothing_to_recover(responses: Responses, tmp_path: Path) -> None:
    assert await responses.recover("s", 0, OPEN) == Recovered()
    assert names_in(tmp_path) == []
