"""Whatever part of the log is indexed, a question gets the answer that looking at every row would give."""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_common.envelope import StoredEvent, event_context
from ksi_common.messages import matches
from ksi_daemon import log_search
from ksi_daemon.database import Database, log_index
from ksi_daemon.database.log_index import LogIndex
from ksi_daemon.eventlog import EventLog, LogQuery
from ksi_daemon.testing import FakeClock
from tests.support.databases import Heard, envelope, opened, tell
from tests.support.waiting import eventually

NAMES = ("a:b", "a:c", "a:bb", "x:y")
ACTORS = ("owner", "agent-1", "agent-2")
START_US = 1_000_000
BEFORE = log_index.BLOCK - 20
"""The seq of the first event."""

told = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(ACTORS),
        st.sampled_from(("c1", "c2", "c3")),
        st.sampled_from((None, "s", "t")),
        st.integers(-3, 3),
    ),
    max_size=40,
)
times = st.none() | st.integers(START_US - 20_000_000, START_US + 60_000_000)
queries = st.builds(
    LogQuery,
    patterns=st.lists(st.sampled_from((*NAMES, "a:*", "a:b*", "x*", "*", "no:*")), max_size=3),
    stream=st.none() | st.sampled_from(("s", "t", "none")),
    correlation_id=st.none() | st.sampled_from(("c1", "c2")),
    actor=st.none() | st.sampled_from(ACTORS),
    kind=st.none() | st.sampled_from(("notification", "request")),
    since_us=times,
    until_us=times,
    after=st.none() | st.integers(BEFORE - 3, BEFORE + 90),
    reverse=st.booleans(),
    limit=st.integers(1, 7) | st.just(100),
)


def answer(events: Sequence[StoredEvent], query: LogQuery) -> list[int | None]:
    """Look at every row."""
    found = [event for event in events if _fits(event, query)]
    return [event.seq for event in (found[::-1] if query.reverse else found)][: query.limit]


def _fits(event: StoredEvent, query: LogQuery) -> bool:
    seq = event.seq or 0
    beyond = query.after is None or (seq < query.after if query.reverse else seq > query.after)
    return (
        beyond
        and (not query.patterns or any(matches(pattern, event.event) for pattern in query.patterns))
        and query.stream in {None, event.stream}
        and query.correlation_id in {None, event.correlation_id}
        and query.actor in {None, event.actor}
        and query.kind in {None, event.kind}
        and (query.since_us is None or event.time_us >= query.since_us)
        and (query.until_us is None or event.time_us < query.until_us)
    )


async def told_log(
    database: Database, clock: FakeClock, rows: Sequence[tuple[str, str, str, str | None, int]]
) -> None:
    """Tell events and leave rows of requests on both sides of the border of a block; the clock jumps."""
    await database.write(tell("first", "x:first"))
    await database.write_apart(lambda tx: tx.execute("UPDATE log SET seq = ?", (BEFORE,)))
    database._writer._log.seq = BEFORE
    writes: list[asyncio.Future[object]] = []
    for number, (name, actor, correlation, stream, seconds) in enumerate(rows):
        asking = envelope("do:it", event_id=f"r{number}", actor=actor)
        if seconds:  # what is handed over together is one commit, of one time
            if writes:
                await asyncio.wait(writes)
            clock.jump(seconds)
        with event_context(replace(asking, correlation_id=correlation)):
            writes.append(database.write(tell(f"e{number}", name, stream=stream)))
    for write in writes:
        await write


@settings(max_examples=40, deadline=None)
@given(
    rows=told,
    indexed=st.integers(BEFORE, BEFORE + 90),
    some=st.lists(queries, min_size=1, max_size=12),
    data=st.data(),
)
def test_an_index_changes_no_answer(
    rows: list[tuple[str, str, str, str | None, int]], indexed: int, some: list[LogQuery], data: st.DataObject
) -> None:
    async def check(folder: Path) -> None:
        heard = Heard()
        async with asyncio.timeout(60), opened(folder, heard, clock=FakeClock(START_US)) as database:
            await told_log(database, database._clock, rows)  # type: ignore[arg-type]  # the FakeClock above
            log = EventLog(database)
            everything = (await log.query(LogQuery(reverse=False, limit=10_000)))[0]
            await fill(database, min(indexed, database._writer.head))
            for query in some:
                found = (await log.query(query))[0]
                assert [event.seq for event in found] == answer(everything, query), query
                await check_pages(log, everything, query)
            time_us = data.draw(st.integers(START_US - 30_000_000, START_US + 60_000_000))
            later = [event.seq for event in everything if event.time_us >= time_us]
            assert await log.position_at(time_us) == ((later[0] or 0) - 1 if later else database._writer.head)

    folder = Path(tempfile.mkdtemp(prefix="ksi"))
    try:
        asyncio.run(check(folder))
    finally:
        shutil.rmtree(folder)


async def check_pages(log: EventLog, everything: Sequence[StoredEvent], query: LogQuery) -> None:
    """Read on from the last of each page: together they are the answer without a limit."""
    seqs: list[int | None] = []
    page = query
    while found := (await log.query(page))[0]:
        seqs += [event.seq for event in found]
        page = replace(page, after=found[-1].seq)
    assert seqs == answer(everything, replace(query, limit=10_000)), query


async def fill(database: Database, until: int) -> None:
    """Index the rows up to a position, in slices of a few."""

    def unit() -> None:
        index = LogIndex(database._writer._connection)
        while index.indexed_to < until:
            index.fill(until if index.indexed_to < BEFORE else min(until, index.indexed_to + 7))

    await asyncio.to_thread(unit)


@pytest.mark.parametrize("merged", [0, 128])
async def test_names_are_merged_or_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: int
) -> None:
    monkeypatch.setattr(log_search, "_MERGED", merged)
    async with opened(tmp_path, Heard()) as database:
        for number in range(20):
            await database.write(tell(f"e{number}", f"a:n{number % 6}"))
        await fill(database, 15)
        found, _ = await EventLog(database).query(LogQuery(patterns=["a:n1", "a:n2", "a:n*"], limit=18))
        assert [event.seq for event in found] == list(range(20, 2, -1))


async def test_the_writer_indexes_what_is_worthwhile_when_it_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_index, "WORTHWHILE", 10)
    async with opened(tmp_path, Heard()) as database:
        for number in range(30):
            await database.write(tell(str(number)))
    async with opened(tmp_path, Heard()) as database:

        async def all_indexed() -> bool:
            return await indexed_to(database) == 30

        await eventually(all_indexed)


async def test_a_busy_writer_indexes_when_too_much_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_index, "OVERDUE", 20)
    async with opened(tmp_path, Heard()) as database:
        for number in range(21):
            await database.write(tell(str(number)))
        await database.write(tell("last"))
        assert await indexed_to(database) >= 20


async def indexed_to(database: Database) -> int:
    return int((await database.read(log_index.INDEXED_TO))[0][0])


async def test_a_slice_that_fails_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path, Heard()) as database:
        for number in range(5):
            await database.write(tell(str(number)))
        connection = database._writer._connection

        def refuse() -> int:
            index = LogIndex(connection)
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
            connection.execute(
                "CREATE TEMP TRIGGER no BEFORE INSERT ON log_actors BEGIN SELECT RAISE(FAIL, 'no'); END"
            )
            with pytest.raises(Exception, match="no"):
                index.fill(5)
            assert not index.wanted(10**9)
            return index.indexed_to

        assert await asyncio.to_thread(refuse) == 0
        assert await database.read("SELECT * FROM log_names") == []
