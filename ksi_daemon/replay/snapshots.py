"""What tables were at a position of the log, kept to make them again without what came before."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ksi_common.errors import DataLoss
from ksi_common.paths import Paths
from ksi_common.records import record
from ksi_daemon.database.apart import apart, attach, copy_table

FOLDER: Final = "snapshots"
"""Below the home."""


@record
class Snapshot:
    """A file with the tables of plugins, as the log up to ``seq`` makes them."""

    seq: int
    path: str
    """Below the home."""
    length: int
    sha256: str


def keep(
    live: Paths, made: Paths, migrations: Mapping[str, Mapping[int, str]], tables: Sequence[str], seq: int
) -> Snapshot:
    """Copy tables of a sandbox into a file of the live home; on disk when this returns."""
    path = f"{FOLDER}/{seq}.db"
    target = live.home / path
    draft = target.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with apart(draft, migrations) as connection:
        attach(connection, made.database, "made")
        connection.execute("BEGIN")
        for table in tables:
            copy_table(connection, "made", table)
        connection.execute("COMMIT")
    with draft.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    draft.rename(target)
    for folder in (target.parent, live.home):  # the first one may be new
        _sync(folder)
    return Snapshot(seq, path, target.stat().st_size, digest)


def begin_with(snapshot: Snapshot, live: Paths, made: Paths) -> int:
    """Let a database begin as a copy of a snapshot; give its position. Raises DataLoss."""
    check(snapshot, live.home)
    made.database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copyfile(live.home / snapshot.path, made.database)
    return snapshot.seq


def check(snapshot: Snapshot, home: Path) -> None:
    """Raise DataLoss where the file of a snapshot is not what was stored."""
    try:
        with (home / snapshot.path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise _loss(snapshot, "is missing", "reference_missing") from None
    if digest != snapshot.sha256:
        raise _loss(snapshot, "is not what was stored", "reference_corrupt")


def remove_others(home: Path, kept: Snapshot) -> None:
    """Remove the snapshots that stand for less, and what a crash has left."""
    for file in (home / FOLDER).iterdir():
        if file != home / kept.path:
            file.unlink()


def _loss(snapshot: Snapshot, what: str, reason: str) -> DataLoss:
    return DataLoss(
        f"the snapshot {snapshot.path} {what}: the tables that it stood for cannot be made again",
        reason=reason,
        seq=snapshot.seq,
    )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
