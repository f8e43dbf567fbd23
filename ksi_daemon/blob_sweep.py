"""Remove the blobs that nothing names any more."""

import asyncio
from typing import Final

import structlog

from ksi_daemon import blob_files
from ksi_daemon.database import Database
from ksi_daemon.referrers import Referrers

log = structlog.get_logger()

LOOK: Final = 5_000
"""Rows looked at in one hop to a reader."""
GRACE_S: Final = 3600.0
"""A blob that no row names is left for so long: its row may be on its way."""

REFERENCE: Final = "iif(json_valid(reference), reference, '{}')"
"""A reference of the log, as SQL: one that is damaged ends no sweep."""
_REFERRED: Final = (
    f"SELECT seq, json_valid(reference), json_extract({REFERENCE}, '$.path'), "  # noqa: S608
    f"json_extract({REFERENCE}, '$.sha256') FROM log WHERE seq > ? AND seq <= ? AND reference IS NOT NULL"
)


async def remove_unnamed(database: Database, referrers: Referrers, now_us: int) -> tuple[int, int]:
    """Remove the blobs that no row of the log, and of no plugin, names; give how many, and their bytes.

    Where some of what names them cannot be read, all are kept.
    """
    silent = await referrers.silent()
    if silent:
        log.warning("retention.blobs_kept", not_loaded=silent)
        return 0, 0
    known: set[str] = set()
    async for referred in referrers.all():
        # By its hash, too: of a damaged row one of them may be right.
        known.update((referred.path, blob_files.path_of(str(referred.sha256))))
    position = database.facts.horizon
    while position < database.head:
        until = position + LOOK
        for seq, is_readable, path, digest in await database.read(_REFERRED, (position, until)):
            if not is_readable:
                log.warning("retention.blobs_kept", damaged=seq)
                return 0, 0
            if path is not None:  # by its hash, too, as above
                known.update((str(path), blob_files.path_of(str(digest))))
        position = until
    return await asyncio.to_thread(blob_files.collect, database.home, known, now_us / 1e6 - GRACE_S)
