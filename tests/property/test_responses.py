"""Whatever a crash leaves of a session's file, each answer that a row names is there, once and alone."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_common.errors import DataLoss
from ksi_common.events.completion import Failure, Proof
from ksi_common.references import Reference
from ksi_completion.responses import Line, Responses
from ksi_daemon.blobs import FileBlobs

words = st.text(st.characters(codec="utf-8"), max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
).filter(lambda value: "inf" not in repr(value))
failures = st.builds(Failure, reason=words, message=words, retryable=st.booleans())
proofs = st.builds(
    Proof, how=st.sampled_from(["killed", "recovered"]), elapsed_s=st.floats(0, 9), pids_gone=st.just([7])
)


def lines(request_ids: st.SearchStrategy[str]) -> st.SearchStrategy[Line]:
    """Make lines of session ``s``, of each outcome."""
    common = {
        "request_id": request_ids,
        "session_id": st.just("s"),
        "provider": words,
        "model": words,
        "timestamp": words,
        "duration_ms": st.integers(0, 10**6),
        "attempt": st.integers(1, 9),
        "client_id": st.none() | words,
    }
    return (
        st.builds(Line, **common, response=st.dictionaries(words, values, max_size=3))
        | st.builds(Line, **common, outcome=st.just("failed"), error=failures)
        | st.builds(Line, **common, outcome=st.just("cancelled"), proof=proofs)
    )


ENDED = "ended"
"""The request of a line that a row names already."""
OPEN = ("r0", "r1", "r2", "r3")
open_lines = lines(st.sampled_from(OPEN))
rubbish = (
    st.binary(min_size=1, max_size=20)
    | st.just(bytes(64))
    | st.tuples(open_lines, st.integers(1, 120)).map(lambda pair: pair[0].to_bytes()[: -pair[1]])
    | lines(st.just(ENDED)).map(Line.to_bytes)
)
tails = st.lists(open_lines | rubbish, max_size=6)


def play(scene: Callable[[Path, Responses], Awaitable[None]]) -> None:
    """Run a scene in a home of its own."""

    async def run() -> None:
        async with Responses(home, FileBlobs(home, readable=("logs/responses",))) as responses:
            await scene(home, responses)

    # What is on disk is not the question here, and a busy disk takes its time to sync.
    home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        asyncio.run(run())
    finally:
        shutil.rmtree(home)


def file_of(home: Path) -> Path:
    return home / "logs" / "responses" / "s.jsonl"


def leave(home: Path, data: bytes) -> None:
    """Write what a crash leaves at the end of the file."""
    file_of(home).parent.mkdir(parents=True, exist_ok=True)
    with file_of(home).open("ab") as file:
        file.write(data)


def torn_of(home: Path) -> bytes:
    torn = file_of(home).with_suffix(".jsonl.torn")
    return torn.read_bytes() if torn.exists() else b""


def expected(pieces: Sequence[Line | bytes], wanted: set[str]) -> list[Line]:
    """Say what of a tail is to be adopted, by another way than the module's."""
    adopted: list[Line] = []
    for piece in pieces:
        if isinstance(piece, bytes) or piece.request_id not in wanted:
            break
        wanted = wanted - {piece.request_id}
        adopted.append(piece)
    return adopted


def in_bytes(piece: Line | bytes) -> bytes:
    return piece if isinstance(piece, bytes) else piece.to_bytes()


async def write(responses: Responses, named: Sequence[Line]) -> tuple[list[Reference], int]:
    """Write lines that rows name; give their references, and where the last one ends."""
    references: list[Reference] = []
    end = 0
    for line in named:
        written = await responses.store("s", line, at=end)
        references.append(written.reference)
        end = written.end
    return references, end


@given(lines(words))
def test_a_line_is_read_as_it_was_written(line: Line) -> None:
    assert Line.parse(line.to_bytes()) == line
    assert line.to_bytes().count(b"\n") == 1


@given(lines(words), st.data())
def test_no_part_of_a_line_is_taken_for_one(line: Line, data: st.DataObject) -> None:
    whole = line.to_bytes()
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for torn in (part, part + b"\n"):
        if torn.rstrip(b"\n") != whole.rstrip(b"\n"):
            with pytest.raises(DataLoss):
                Line.parse(torn)


@given(st.lists(lines(st.just(ENDED)), max_size=2), tails, lines(st.just("next")))
def test_of_a_tail_the_whole_lines_of_open_requests_are_adopted_and_the_rest_is_cut(
    named: list[Line], tail: list[Line | bytes], after: Line
) -> None:
    async def scene(home: Path, responses: Responses) -> None:
        references, end = await write(responses, named)
        file = file_of(home)
        left = b"".join(map(in_bytes, tail))
        leave(home, left)

        recovered = await responses.recover("s", end, set(OPEN))

        adopted = expected(tail, set(OPEN))
        assert [line for line, _ in recovered.adopted] == adopted
        kept = b"".join(line.to_bytes() for line in adopted)
        assert file.read_bytes()[end:] == kept
        assert torn_of(home).removesuffix(b"\n") == left.removeprefix(kept).removesuffix(b"\n")
        assert recovered.torn_bytes == len(left) - len(kept)

        written = await responses.store("s", after, at=end + len(kept))
        names = [*references, *(each.reference for _, each in recovered.adopted), written.reference]
        assert [await responses.read(name) for name in names] == [*named, *adopted, after]
        assert file.read_bytes() == b"".join(line.to_bytes() for line in [*named, *adopted, after])

    play(scene)


@given(st.lists(lines(st.just(ENDED)), min_size=1, max_size=4), lines(st.just("next")), st.data())
def test_a_file_that_is_too_short_keeps_its_whole_lines_and_takes_new_ones(
    named: list[Line], after: Line, data: st.DataObject
) -> None:
    async def scene(home: Path, responses: Responses) -> None:
        references, end = await write(responses, named)
        size = data.draw(st.integers(0, end - 1))
        with file_of(home).open("ab") as file:
            file.truncate(size)
        whole = [name for name in references if name.offset + name.length <= size]

        recovered = await responses.recover("s", end, set(OPEN))
        assert (recovered.adopted, recovered.lost_bytes) == ((), end - size)
        written = await responses.store("s", after, at=end)

        assert written.reference.offset == sum(name.length for name in whole)
        assert [await responses.read(name) for name in whole] == named[: len(whole)]
        assert await responses.read(written.reference) == after
        for name, line in zip(references[len(whole) :], named[len(whole) :], strict=True):
            if name.sha256 != written.reference.sha256:  # else the same line stands where it stood
                with pytest.raises(DataLoss):
                    await responses.read(name)
            else:
                assert await responses.read(name) == line == after

    play(scene)


Step = tuple[str, Line | bytes]

steps = st.lists(
    st.tuples(st.sampled_from(["commit", "lose"]), open_lines)
    | st.tuples(st.just("crash"), open_lines | rubbish),
    max_size=12,
)


@given(steps)
def test_through_crashes_and_lost_commits_each_answer_is_there_once(played: list[Step]) -> None:
    async def scene(home: Path, responses: Responses) -> None:
        named: list[tuple[Line, Reference]] = []
        end = 0

        def still_open() -> set[str]:
            return set(OPEN) - {line.request_id for line, _ in named}

        for what, piece in played:
            if what == "crash":
                leave(home, in_bytes(piece))
                for line, written in (await responses.recover("s", end, still_open())).adopted:
                    named.append((line, written.reference))
                    end = written.end
            elif isinstance(piece, Line) and piece.request_id in still_open():
                written = await responses.store("s", piece, at=end)
                if what == "commit":
                    named.append((piece, written.reference))
                    end = written.end
            content = file_of(home).read_bytes()[:end] if end else b""
            assert content == b"".join(line.to_bytes() for line, _ in named)
            assert [await responses.read(name) for _, name in named] == [line for line, _ in named]

    play(scene)
