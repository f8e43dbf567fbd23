"""Write the log into a file: in pages, beside a daemon that runs, and on from where a file ends."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from ksi_common.async_db import AsyncSQLiteDB
from ksi_common.clock import Clock, format_time
from ksi_common.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound
from ksi_common.paths import Paths
from ksi_common.records import record
from ksi_daemon.database import Connection
from ksi_daemon.database.log_rows import DIGEST, Damage, DamagedRow, RemovedEvent, event_of, read_page
from ksi_daemon.database.log_writer import EMPTY_CHAIN
from ksi_daemon.replay.snapshots import Snapshot, check
from ksi_daemon.transfer.kept import kept_lines, rows_of, streams_of
from ksi_daemon.transfer.lines import FINISHED, STARTED, BadLine, line_of, mark, parse_line

PAGE: Final = 1000
_TAIL: Final = 4 * 1024 * 1024
"""Bytes at the end of a file in which its last whole line is looked for: longer than any line."""
_BEGINS: Final = b'{"specversion":"1.0","id":"'
"""How every line of an export does, also a torn one as far as it goes."""


@record
class Exported:
    """What a file holds."""

    lines: int
    """Events that this run has written."""
    seq: int
    """The last one."""


async def export(paths: Paths, file: Path, *, clock: Clock, progress: Callable[[int, int], None]) -> Exported:
    """Write the log of a home into ``file``, up to what is there now; ``progress``: seq, and the last one.

    A file that another run has left unfinished, with its last line torn, is gone on with; a finished one is
    refused. What is damaged in the log ends it with DataLoss: a file never lacks an event without a word.
    """
    if not paths.database.exists():
        raise NotFound(f"{paths.home} has no database", reason="no_database")
    async with AsyncSQLiteDB(paths.database, read_only=True) as database:
        facts = {row["name"]: row["value"] for row in await database.fetch("SELECT name, value FROM meta")}
        log_id, horizon = str(facts["log_id"]), int(facts.get("horizon", 0))
        head = (await database.fetch("SELECT coalesce(max(seq), ?) FROM log", (horizon,)))[0][0]
        snapshot = Snapshot(**orjson.loads(facts["snapshot"])) if "snapshot" in facts else None
        with file.open("ab+") as out:
            position = _resumed(out, log_id)
            if position is None or position < max(horizon, snapshot.seq if snapshot is not None else 0):
                out.truncate(0)
                position = horizon
                begins = bytes.fromhex(facts.get("horizon_chain", EMPTY_CHAIN.hex()))
                time = format_time(clock.time_us())
                out.write(mark(STARTED, log_id, horizon, begins, time))
                if horizon or snapshot is not None:
                    await _write_kept(out, paths, database, snapshot, log_id, time)
            lines = 0
            while position < head:
                page = await database.run(partial(_page, paths, log_id, position, head))
                out.writelines(page)
                lines += len(page)
                position += len(page)
                progress(position, head)
            rows = await database.fetch("SELECT chain FROM log WHERE seq = ?", (head,))
            ends = rows[0]["chain"] if rows else bytes.fromhex(facts.get("horizon_chain", EMPTY_CHAIN.hex()))
            out.write(mark(FINISHED, log_id, head, ends, format_time(clock.time_us())))
            out.flush()
            os.fsync(out.fileno())
    return Exported(lines, head)


async def _write_kept(
    out: BinaryIO, paths: Paths, database: AsyncSQLiteDB, snapshot: Snapshot | None, log_id: str, time: str
) -> None:
    """Write what stands for the events that retention has taken."""
    streams = await database.run(lambda log: list(streams_of(log)))

    def write(tables: Connection | None) -> None:
        rows = rows_of(tables) if tables is not None else ()
        seq = snapshot.seq if snapshot is not None else 0
        out.writelines(kept_lines(log_id, time, seq, chain(streams, rows)))

    if snapshot is None:
        write(None)
        return
    check(snapshot, paths.home)
    async with AsyncSQLiteDB(paths.home / snapshot.path, read_only=True) as tables:
        await tables.run(write)


def _page(paths: Paths, log_id: str, after: int, head: int, connection: Connection) -> list[bytes]:
    lines = []
    for row in read_page(connection, after, head, PAGE):
        if isinstance(row, Damage):
            raise _loss(row)
        try:
            event = event_of(row, paths.home)
        except DamagedRow as error:
            raise _loss(error.damage) from error
        has_data = event.kind == "notification" and not isinstance(event, RemovedEvent)
        lines.append(line_of(event, row[DIGEST], log_id, has_data=has_data))
    return lines


def _loss(damage: Damage) -> DataLoss:
    detail = f"the log is damaged at {damage.seq}: {damage.detail}"
    return DataLoss(detail, reason=damage.reason, seq=damage.seq)


def _resumed(out: BinaryIO, log_id: str) -> int | None:
    """Cut a torn last line off, and give the seq of the one before it; None: the file is to be begun."""
    size = out.seek(0, os.SEEK_END)
    start = max(size - _TAIL, 0)
    out.seek(start)
    tail = out.read()
    whole = tail.rfind(b"\n") + 1
    if not whole:
        if start or not _BEGINS.startswith(tail[: len(_BEGINS)]):
            raise FailedPrecondition("the file is no export: it has no lines", reason="no_export")
        return None
    last = _last_line(tail[tail.rfind(b"\n", 0, whole - 1) + 1 : whole])
    if last.get("source") != f"/ksi/{log_id}":
        raise FailedPrecondition("the file is of another log", reason="other_log")
    if last.get("type") == FINISHED:
        raise AlreadyExists("the file is a finished export", reason="finished")
    out.truncate(start + whole)  # not before it is known to be an export: it may be anybody's
    out.seek(0, os.SEEK_END)
    return int(last["ksiseq"]) if "ksikind" in last else None  # what comes before events is soon written anew


def _last_line(text: bytes) -> Mapping[str, Any]:
    try:
        return parse_line(text, number=0)
    except BadLine as error:
        raise FailedPrecondition(
            "the file is no export: its last line is none", reason="no_export"
        ) from error
