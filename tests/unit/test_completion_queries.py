"""What each accept and each start ask of the completions reads what is open, not all that ever was."""

import re
import sqlite3  # noqa: TID251 -- only SQLite itself says how it would search
from collections.abc import Iterator
from contextlib import closing

import pytest

from ksi_completion import acceptance, completion_service, rows, session_manager
from ksi_daemon.database.migrations import scripts

ASKED = {
    "a start": rows.OPEN,
    "the first look at a session": rows.OPEN_OF_SESSION,
    "an accept": session_manager._ENTER,
    "a place in the queue": acceptance._AHEAD,
}


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for script in scripts("ksi_completion").values():
            connection.executescript(script)
        yield connection


def plan(database: sqlite3.Connection, sql: str) -> str:
    count = len(set(re.findall(r"\?\d+", sql))) or sql.count("?")
    steps = database.execute(f"EXPLAIN QUERY PLAN {sql}", ["1"] * count)
    return "; ".join(step[3] for step in steps)


@pytest.mark.parametrize("sql", ASKED.values(), ids=ASKED)
def test_only_open_completions_are_read(database: sqlite3.Connection, sql: str) -> None:
    assert "INDEX completions_open" in plan(database, sql)
    assert "completions_by_session" not in plan(database, sql)


def test_a_query_that_reads_a_whole_session_is_found_out(database: sqlite3.Connection) -> None:
    """The twin: left to itself, SQLite counts what is open by reading all that the session ever had."""
    left_to_itself = session_manager._ENTER.replace("INDEXED BY completions_open ", "")
    assert "completions_by_session" in plan(database, left_to_itself)


def test_a_wish_to_stop_finds_its_completion_by_its_name(database: sqlite3.Connection) -> None:
    assert "request_id=?" in plan(database, completion_service._WISH)
