"""The log is read by position, by stream, by id and by question, page by page."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from ksi_common.bus import Delivered
from ksi_common.envelope import StoredEvent, event_context
from ksi_daemon import eventlog
from ksi_daemon.database import Database, Transaction
from ksi_daemon.eventlog import REPLY_BYTES, Damage, EventLog, LogQuery
from ksi_daemon.testing import FakeClock
from tests.support.databases import Heard, envelope, opened, tell

FAR = 10**16 - 1
"""The position of the highest cursor that there can be."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_000_000)


@pytest.fixture
async def database(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Database]:
    async with opened(tmp_path, Heard(), clock=clock) as made:
        yield made


@pytest.fixture
def log(database: Database) -> EventLog:
    return EventLog(database)


@pytest.fixture
async def told(database: Database, clock: FakeClock) -> None:
    """Tell, a second apart: a:b in s, x:y, a:c in s with the request that asked for it, a:b in t."""
    await database.write(tell("1", "a:b", b'{"n":1}', stream="s"))
    clock.advance(1)
    await database.write(tell("2", "x:y"))
    clock.advance(1)
    with event_context(envelope("do:it", event_id="r", actor="agent-7")):
        await database.write(tell("4", "a:c", stream="s"))
    clock.advance(1)
    await database.write(tell("5", "a:b", stream="t"))


def spoil(tx: Transaction, change: str, seq: int) -> None:
    tx.execute(f"UPDATE log SET {change} WHERE seq = ?", (seq,))


def ids(events: Sequence[StoredEvent]) -> list[str]:
    return [event.event_id for event in events]


@pytest.mark.usefixtures("told")
async def test_an_event_is_found_by_its_id(log: EventLog) -> None:
    event = await log.get("4")
    assert event is not None
    assert (event.event, event.data, event.seq) == ("a:c", b"{}", 4)
    assert (event.stream, event.version) == ("s", 2)
    assert (event.correlation_id, event.causation_id, event.actor) == ("c1", "r", "agent-7")
    assert (event.kind, event.hop, event.time_us) == ("notification", 1, 3_000_000)
    assert await log.get("none") is None


@pytest.mark.usefixtures("told")
async def test_a_request_has_no_data(log: EventLog) -> None:
    request = await log.get("r")
    assert request is not None
    assert (request.kind, request.event, request.data) == ("request", "do:it", b"null")


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("after", "until", "patterns", "stream", "expected"),
    [
        (0, 5, ["*"], None, ["1", "2", "4", "5"]),
        (1, 5, ["*"], None, ["2", "4", "5"]),
        (0, 2, ["*"], None, ["1", "2"]),
        (0, 5, ["a:*"], None, ["1", "4", "5"]),
        (0, 5, ["a:b", "x:*"], None, ["1", "2", "5"]),
        (0, 5, ["*"], "s", ["1", "4"]),
        (0, 5, ["a:c"], "s", ["4"]),
        (0, 5, ["do:*"], None, []),
        (5, 5, ["*"], None, []),
    ],
)
async def test_a_page_has_the_notifications_that_match(
    log: EventLog, after: int, until: int, patterns: list[str], stream: str | None, expected: list[str]
) -> None:
    page = await log.page(after, until, patterns, stream)
    assert (ids(page.events), page.last) == (expected, until)


@pytest.mark.usefixtures("told")
async def test_a_page_ends_at_its_limit_of_rows(log: EventLog) -> None:
    first = await log.page(0, 5, ["a:*"], None, limit=3)
    second = await log.page(first.last, 5, ["a:*"], None, limit=3)
    assert (ids(first.events), first.last) == (["1"], 3)
    assert (ids(second.events), second.last) == (["4", "5"], 5)


@pytest.mark.usefixtures("told")
async def test_a_page_ends_at_its_limit_of_bytes(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "PAGE_BYTES", 8)
    pages = []
    last = 0
    while last < 5:
        page = await log.page(last, 5, ["*"], None)
        pages.append(ids(page.events))
        assert page.last > last
        last = page.last
    assert pages == [["1", "2"], ["4", "5"]]


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["1", "4"]),
        ({"backwards": True}, ["4", "1"]),
        ({"from_version": 2}, ["4"]),
        ({"from_version": 3}, []),
        ({"from_version": 1, "backwards": True}, ["1"]),
        ({"limit": 1}, ["1"]),
        ({"limit": 1, "backwards": True}, ["4"]),
    ],
)
async def test_a_stream_is_read_either_way(
    log: EventLog, options: dict[str, Any], expected: list[str]
) -> None:
    given: dict[str, Any] = {"from_version": None, "backwards": False, "limit": 100, **options}
    assert ids((await log.stream("s", **given)).events) == expected


async def five(database: Database) -> None:
    for number in range(1, 6):
        await database.write(tell(str(number), "a:b", stream="s"))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_a_stream_is_read_on_over_what_is_damaged(
    log: EventLog, database: Database, limit: int, backwards: bool
) -> None:
    """Also where a page has nothing else, at either end."""
    await five(database)
    for seq in (1, 2, 5):
        await database.write(lambda tx, seq=seq: spoil(tx, "data = '{}!'", seq))  # type: ignore[misc]
    found: list[str] = []
    damaged: list[Damage] = []
    following: int | None = None
    while True:
        page = await log.stream(
            "s", from_version=following, backwards=backwards, limit=limit, damaged=damaged
        )
        found += ids(page.events)
        following = page.next_version
        if following is None:
            break
    assert found == (["4", "3"] if backwards else ["3", "4"])
    assert {damage.seq for damage in damaged} == {1, 2, 5}


@pytest.mark.parametrize(
    ("gone", "options", "expected", "missing"),
    [
        ((3,), {}, ["1", "2", "4", "5"], ["version 3 of s is not there"]),
        ((2, 3), {}, ["1", "4", "5"], ["versions 2 to 3 of s are not there"]),
        ((1,), {}, ["2", "3", "4", "5"], ["version 1 of s is not there"]),
        ((3,), {"from_version": 3}, ["4", "5"], ["version 3 of s is not there"]),
        ((3,), {"from_version": 4}, ["4", "5"], []),
        ((3,), {"backwards": True}, ["5", "4", "2", "1"], ["version 3 of s is not there"]),
        ((3,), {"backwards": True, "from_version": 3}, ["2", "1"], ["version 3 of s is not there"]),
        ((1, 2), {"backwards": True}, ["5", "4", "3"], ["versions 1 to 2 of s are not there"]),
        ((1, 2), {"backwards": True, "limit": 3}, ["5", "4", "3"], []),
        ((), {"backwards": True, "from_version": 9}, ["5", "4", "3", "2", "1"], []),
        ((), {"from_version": 6}, [], []),
    ],
)
async def test_a_version_that_is_not_there_is_named(
    log: EventLog,
    database: Database,
    gone: Sequence[int],
    options: dict[str, Any],
    expected: list[str],
    missing: list[str],
) -> None:
    await five(database)
    for seq in gone:
        await database.write(lambda tx, seq=seq: tx.execute("DELETE FROM log WHERE seq = ?", (seq,)).rowcount)  # type: ignore[misc]
    damaged: list[Damage] = []
    given: dict[str, Any] = {"from_version": None, "backwards": False, "limit": 100, **options}
    page = await log.stream("s", damaged=damaged, **given)
    assert ids(page.events) == expected
    assert [(damage.reason, damage.detail) for damage in damaged] == [
        ("event_missing", each) for each in missing
    ]


async def test_versions_that_retention_has_deleted_are_not_missing(log: EventLog, database: Database) -> None:
    await five(database)

    def compact(tx: Transaction) -> None:
        tx.execute("INSERT INTO compacted_streams VALUES ('s', 2)")
        tx.execute("DELETE FROM log WHERE seq <= 2")

    await database.write(compact)
    damaged: list[Damage] = []
    for backwards in (False, True):
        page = await log.stream("s", from_version=None, backwards=backwards, limit=9, damaged=damaged)
        assert len(page.events) == 3
    assert damaged == []
    assert await log.compacted("s") == 2


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (LogQuery(), ["5", "4", "r", "2", "1"]),
        (LogQuery(reverse=False), ["1", "2", "r", "4", "5"]),
        (LogQuery(limit=2), ["5", "4"]),
        (LogQuery(after=4), ["r", "2", "1"]),
        (LogQuery(after=4, reverse=False), ["5"]),
        (LogQuery(patterns=["a:b"]), ["5", "1"]),
        (LogQuery(patterns=["a:*"]), ["5", "4", "1"]),
        (LogQuery(patterns=["a*", "do:it"]), ["5", "4", "r", "1"]),
        (LogQuery(patterns=["*"], kind="request"), ["r"]),
        (LogQuery(kind="notification"), ["5", "4", "2", "1"]),
        (LogQuery(stream="s"), ["4", "1"]),
        (LogQuery(correlation_id="c1"), ["4", "r"]),
        (LogQuery(actor="agent-7"), ["4", "r"]),
        (LogQuery(since_us=2_000_000), ["5", "4", "r", "2"]),
        (LogQuery(until_us=2_000_000), ["1"]),
        (LogQuery(since_us=2_000_000, until_us=3_000_000), ["2"]),
        (LogQuery(actor="agent-7", kind="notification", patterns=["a:*", "x:*"]), ["4"]),
        (LogQuery(actor="nobody"), []),
    ],
)
async def test_the_log_answers_questions(log: EventLog, query: LogQuery, expected: list[str]) -> None:
    assert ids((await log.query(query))[0]) == expected


@pytest.mark.usefixtures("told")
async def test_what_is_damaged_is_named_once_however_far_beyond_the_end_it_is_asked_from(
    log: EventLog, database: Database
) -> None:
    await database.write(lambda tx: spoil(tx, "actor = CAST(x'ff' AS TEXT)", 5))
    damaged: list[Damage] = []
    async with asyncio.timeout(30):
        events, more = await log.query(LogQuery(after=FAR), damaged=damaged)
    assert ids(events) == ["4", "r", "2", "1"]
    assert [each.seq for each in damaged] == [5]
    assert not more


async def test_an_underscore_in_a_pattern_means_itself(log: EventLog, database: Database) -> None:
    for event in ("a:b_c", "a:bxc"):
        await database.write(tell(event, event))
    assert ids((await log.query(LogQuery(patterns=["a:b_*"])))[0]) == ["a:b_c"]
    assert ids((await log.page(0, 2, ["a:b_*"], None)).events) == ["a:b_c"]


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("time_us", "position"),
    [(0, 0), (1_000_000, 0), (1_000_001, 1), (3_000_000, 2), (4_000_000, 4), (4_000_001, 5)],
)
async def test_a_time_is_the_position_before_the_first_event_at_or_after_it(
    log: EventLog, time_us: int, position: int
) -> None:
    assert await log.position_at(time_us) == position


async def test_in_an_empty_log_every_time_is_its_beginning(log: EventLog) -> None:
    assert await log.position_at(7) == 0


async def test_a_cursor_names_the_log_and_the_position(log: EventLog, database: Database) -> None:
    assert log.log_id == database.log_id
    assert log.cursor(7) == f"{database.log_id}-7"


async def test_a_reply_ends_where_it_has_bytes_enough_and_says_that_there_is_more(
    log: EventLog, database: Database
) -> None:
    data = b'{"text":"' + b"x" * (REPLY_BYTES // 3) + b'"}'
    for number in range(5):
        await database.write(lambda tx, number=number: tx.tell_raw("a:b", data, event_id=str(number)))  # type: ignore[misc]
    events, more = await log.query(LogQuery(reverse=False))
    assert (ids(events), more) == (["0", "1"], True)
    events, more = await log.query(LogQuery(reverse=False, after=4))
    assert (ids(events), more) == (["4"], False)


@pytest.mark.parametrize(
    "data", [b'{"at":1763826071123456789}', b'{"a":' * 70 + b"1" + b"}" * 70], ids=["nanoseconds", "deep"]
)
async def test_what_a_plugin_has_told_is_given_whatever_a_client_might_not_send(
    database: Database, log: EventLog, data: bytes
) -> None:
    """Its event could be read by nobody: the limits of what clients send were held against it."""
    await database.write(tell("1", "a:b", data))
    stored = await log.get("1")
    assert stored is not None
    assert log.as_reply(stored).data == orjson.loads(data)
    assert Delivered.of(stored, "c-1").data == orjson.loads(data)
