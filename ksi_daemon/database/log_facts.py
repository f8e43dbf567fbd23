"""Facts of the log as a whole, kept in ``meta``: its id, where it begins, and what it has lost."""

import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from ksi_common.records import record
from ksi_daemon.database.head_file import Head, read_head

_VALUE: Final = "SELECT value FROM meta WHERE name = ?"
_KEEP: Final = "REPLACE INTO meta VALUES (?, ?)"
LOST_TAIL: Final = "lost_tail"


@record
class LostTail:
    """Events that were on disk once, and are not in the log any more."""

    first_missing: int
    missing: int
    """At least so many."""
    former_log_id: str
    """What the log was called until then: its cursors are told apart from those given since."""
    told: bool = False
    acknowledged: bool = False


@dataclass(slots=True)
class LogFacts:
    """What is known of the log; ``horizon`` moves while the daemon runs, on the loop."""

    log_id: str
    former_logs: Mapping[str, int] = field(default_factory=dict)
    """Names that the log had before it lost a tail, each with the last seq that it shares with this one."""
    horizon: int = 0
    """Retention has deleted everything up to this seq."""
    lost_tail: LostTail | None = None


def read_facts(connection: sqlite3.Connection, head_file: Path) -> LogFacts:
    """Read the facts, and find out whether the log is shorter than it was: then it gets another id."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('log_id', ?)", (secrets.token_hex(4),))
        facts = LogFacts(
            str(_value(connection, "log_id")),
            orjson.loads(_value(connection, "former_logs") or "{}"),
            int(_value(connection, "horizon") or 0),
            _lost(_value(connection, LOST_TAIL)),
        )
        head = read_head(head_file)
        if head is not None:
            _compare(connection, facts, head)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return facts


def keep_lost_tail(lost: LostTail) -> tuple[str, tuple[str, str]]:
    """Give the statement that stores what is known of a lost tail, and its parameters."""
    return _KEEP, (LOST_TAIL, orjson.dumps(asdict(lost)).decode())


def _compare(connection: sqlite3.Connection, facts: LogFacts, head: Head) -> None:
    row = connection.execute("SELECT max(seq) FROM log").fetchone()
    seq = int(row[0] or facts.horizon)
    same = head.log_id == facts.log_id
    # An empty log of another id: that it had begun at all is what was lost.
    begun_anew = not same and seq == 0 and head.log_id not in facts.former_logs
    if head.seq <= seq or not (same or begun_anew):
        return
    facts.lost_tail = LostTail(seq + 1, head.seq - seq, head.log_id)
    facts.former_logs = {**facts.former_logs, head.log_id: seq}
    facts.log_id = secrets.token_hex(4)
    connection.execute(_KEEP, ("log_id", facts.log_id))
    connection.execute(_KEEP, ("former_logs", orjson.dumps(facts.former_logs).decode()))
    connection.execute(*keep_lost_tail(facts.lost_tail))


def _lost(text: str | None) -> LostTail | None:
    return LostTail(**orjson.loads(text)) if text else None


def _value(connection: sqlite3.Connection, name: str) -> Any:
    row = connection.execute(_VALUE, (name,)).fetchone()
    return row[0] if row else None
