"""Make a home of an export: every line is looked at before anything is written; then tables are rebuilt."""

import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final

import orjson

from ksi_common.clock import Clock
from ksi_common.errors import AlreadyExists, InvalidArgument
from ksi_common.paths import Paths
from ksi_common.records import record
from ksi_daemon.daemon import Daemon
from ksi_daemon.database import Connection, Database, Transaction
from ksi_daemon.database.apart import apart
from ksi_daemon.database.log_writer import KINDS
from ksi_daemon.projections.rebuilders import declared_by
from ksi_daemon.replay.rebuilding import Rebuilding
from ksi_daemon.replay.snapshots import Snapshot, keep
from ksi_daemon.transfer.kept import SEQUENCE, Kept, KeptReader
from ksi_daemon.transfer.lines import FINISHED, STARTED, BadLine, Line, event_in, mark_in, parse_line

FOLDER: Final = "importing"
"""Of the home: what is not finished yet, and gone on with."""
_AT_ONCE: Final = 500
_COLUMNS: Final = (
    "seq, event_id, kind, name, stream, version, correlation_id, causation_id, actor, node, origin_id, hop, "
    "time, data, reference, digest, chain"
)
_INSERT: Final = f"INSERT INTO log ({_COLUMNS}) VALUES ({', '.join('?' * 17)})"  # noqa: S608
_REMOVED: Final = '{"path":null}'

Progress = Callable[[int, int], None]


@record
class Export:
    """What the lines of a file come to."""

    log_id: str
    after: int
    """The seq before its first event."""
    chain: bytes
    """The chain there."""
    head: int
    kept: Kept
    """What stands for the events that retention had taken."""


@record
class Imported:
    """What came of an import."""

    export: Export
    missing: int
    """Events that tables could not be made of: retention had taken them, and no snapshot stands for them."""


def check(file: Path) -> Export:
    """Look at every line; raise BadLine with the number of the first that is wrong, or missing."""
    ((_, made),) = deque(_lines(file), maxlen=1)
    assert made is not None  # it comes last, or BadLine was raised
    return made


async def import_(paths: Paths, daemon: Daemon, file: Path, *, clock: Clock, progress: Progress) -> Imported:
    """Make the log of ``file`` that of a home without one: the same ids, order, versions, times and chain.

    ``daemon``: with its plugins loaded; they say how their tables are made of the log. The home's lock is
    held. A run that was killed is gone on with by the next one.
    """
    if paths.database.exists():
        raise AlreadyExists(f"{paths.home} has a database already", reason="not_empty", hint="set KSI_HOME")
    export = check(file)
    folder = paths.home / FOLDER
    _begin(folder, export)
    migrations = {plugin.name: daemon.relay.migrations(plugin.name) for plugin in daemon.assembly.loaded}
    async with _database(folder, clock) as database:
        for plugin, scripts in migrations.items():
            database.migrate(plugin, scripts)
        database.start()
        await _insert(database, export, file, progress)
    made = Paths(folder)
    tables = [table for each in declared_by(daemon.assembly.loaded)[0] for table in each.tables]
    with apart(made.database, migrations, lasting=True) as connection:
        _put_kept(connection, export, tables)
        if export.kept.seq:
            _keep_snapshot(connection, keep(paths, made, migrations, tables, export.kept.seq))
        work = _rebuild(connection, folder, export, daemon)
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "db").rename(paths.home / "db")
    shutil.rmtree(folder, ignore_errors=True)
    return Imported(export, work.missing)


def _begin(folder: Path, export: Export) -> None:
    """Go on only with what a run has left of the same export: rows of another one are none of this log."""
    named = folder / "export"
    name = f"{export.log_id} {export.after} {export.head}"
    if folder.exists() and not (named.exists() and named.read_text() == name):
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    named.write_text(name)


def _database(folder: Path, clock: Clock) -> Database:
    # The record of how far the log had come is of a run that ended; this one begins where its rows end.
    shutil.rmtree(folder / "run", ignore_errors=True)
    return Database(
        folder / "db" / "ksi.db",
        backups=folder / "backups",
        clock=clock,
        published=lambda _events, _head: None,
        failed=lambda _error: None,
    )


async def _insert(database: Database, export: Export, file: Path, progress: Progress) -> None:
    done = max(database.head, export.after)
    chain = export.chain
    rows = (line for line, _ in _lines(file) if line is not None)
    while some := list(islice(rows, _AT_ONCE)):
        values = []
        for line in some:
            chain = _next(chain, line)
            if (line.event.seq or 0) > done:
                values.append(_row(line, chain))
        if values:
            await database.write_apart(lambda tx, values=values: [tx.execute(_INSERT, row) for row in values])  # type: ignore[misc]
        progress(some[-1].event.seq or 0, export.head)

    def facts(tx: Transaction) -> None:
        former = orjson.dumps({export.log_id: export.head}).decode()
        tx.execute("REPLACE INTO meta VALUES ('former_logs', ?)", (former,))
        if export.after:
            tx.execute(
                "REPLACE INTO meta VALUES ('horizon', ?), ('horizon_chain', ?)",
                (export.after, export.chain.hex()),
            )

        for stream, version in export.kept.streams:
            tx.execute("REPLACE INTO compacted_streams VALUES (?, ?)", (stream, version))

    await database.write_apart(facts)


def _put_kept(connection: Connection, export: Export, tables: Collection[str]) -> None:
    """Let tables be what was kept, whatever a former run has done."""
    connection.execute("BEGIN")
    for table in (*tables, SEQUENCE):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 -- tables of plugins
    for table, columns in export.kept.rows:
        if table == SEQUENCE:  # rows have left another number there
            connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (columns.get("name"),))
        if table in tables or (table == SEQUENCE and columns.get("name") in tables):
            _put(connection, table, columns)
    connection.execute("COMMIT")


def _keep_snapshot(connection: Connection, snapshot: Snapshot) -> None:
    """Let the tables that were kept stand for the events before them here, too."""
    text = orjson.dumps(asdict(snapshot)).decode()
    connection.execute("REPLACE INTO meta VALUES ('snapshot', ?)", (text,))


def _rebuild(connection: Connection, home: Path, export: Export, daemon: Daemon) -> Rebuilding:
    """Make tables of what was kept and of the log."""
    rebuilders, upcast = declared_by(daemon.assembly.loaded)
    connection.execute("BEGIN")
    work = Rebuilding(connection, home, rebuilders, upcast, begin=export.kept.seq, horizon=export.after)
    while work.position < export.head:
        work.advance(export.head)
        connection.execute("COMMIT")
        connection.execute("BEGIN")
    connection.execute("COMMIT")
    return work


def _put(connection: Connection, table: str, columns: Mapping[str, object]) -> None:
    known = {row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    if not columns.keys() <= known:
        unknown = sorted(columns.keys() - known)
        raise InvalidArgument(f"table {table} has no {', '.join(unknown)} here", reason="other_schema")
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values()))  # noqa: S608


def _lines(file: Path) -> Iterator[tuple[Line | None, Export | None]]:
    """Yield the events of a file, each as it should be; in the end what they come to."""
    with file.open("rb") as lines:
        number = 1
        first = parse_line(next(lines, b""), number)
        if first["type"] != STARTED:
            raise BadLine(number, f"an export begins with {STARTED}")
        after, start = mark_in(first, number)
        seq, chain = after, start
        kept = KeptReader()
        for text in lines:
            number += 1
            attributes = parse_line(text, number)
            if seq == after and kept.take(attributes, number):
                continue
            if attributes["type"] == FINISHED:
                ends = mark_in(attributes, number)
                if ends != (seq, chain):
                    raise BadLine(number, f"the export ends at {ends[0]}, the lines at {seq}")
                if next(lines, None) is not None:
                    raise BadLine(number + 1, "there is something after the end")
                log_id = str(attributes.get("source")).rpartition("/")[2]
                yield None, Export(log_id, after, start, seq, kept.kept)
                return
            line = event_in(attributes, text, number)
            if line.event.seq != seq + 1:
                raise BadLine(number, f"seq {line.event.seq} follows {seq}")
            seq += 1
            chain = _next(chain, line)
            yield line, None
        raise BadLine(number + 1, f"the file ends without {FINISHED}: it is cut short")


def _next(chain: bytes, line: Line) -> bytes:
    return sha256(chain + (line.event.seq or 0).to_bytes(8) + line.digest).digest()


def _row(line: Line, chain: bytes) -> tuple[object, ...]:
    event = line.event
    told = event.kind == "notification"
    return (
        event.seq,
        event.event_id,
        KINDS.index(event.kind),
        event.event,
        event.stream,
        event.version,
        event.correlation_id,
        event.causation_id,
        event.actor,
        None,
        None,
        event.hop,
        event.time_us,
        event.data.decode() if line.has_data else None,
        _REMOVED if told and not line.has_data else None,
        line.digest,
        chain,
    )
