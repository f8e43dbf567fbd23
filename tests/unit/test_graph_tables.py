"""What reads the graph sees one commit, and hears what went wrong itself."""

import sqlite3  # noqa: TID251 -- only SQLite itself ends a transaction
from collections.abc import Iterator

import pytest

from ksi_graph.tables import snapshot


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:", isolation_level=None)
    yield made
    assert not made.in_transaction
    made.close()


def test_a_snapshot_is_one_transaction(connection: sqlite3.Connection) -> None:
    with snapshot(connection):
        assert connection.in_transaction


@pytest.mark.parametrize("statement", ["SELECT 1", "ROLLBACK"])
def test_an_error_within_a_snapshot_is_the_one_that_is_raised(
    connection: sqlite3.Connection, statement: str
) -> None:
    """SQLite rolls back by itself at an I/O error: that there was nothing to commit took its place."""
    with pytest.raises(MemoryError):
        _fail(connection, statement)


def _fail(connection: sqlite3.Connection, statement: str) -> None:
    with snapshot(connection):
        connection.execute(statement)
        raise MemoryError
