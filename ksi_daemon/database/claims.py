"""Claim check: large data of events as blobs, on disk before the row that refers to them commits."""

import errno
import os
from hashlib import sha256
from pathlib import Path

from ksi_common.ids import new_id
from ksi_daemon import blob_files


def store_blob(home: Path, data: bytes) -> None:
    """Have the blob with this content on disk, whole and named; blocks; raise OSError.

    What is there already is read: were it damaged, the new event would be, too.
    """
    digest = sha256(data).hexdigest()
    if _is_there(home, digest, data) and blob_files.touch(home, digest):
        blob_files.sync_folders(home, digest)
        return
    name = new_id()
    draft = blob_files.open_draft(home, name)
    try:
        with os.fdopen(draft, "wb", buffering=0) as file:
            _write(file.fileno(), data)
            os.fdatasync(file.fileno())
        blob_files.publish_draft(home, name, digest)
    except BaseException:
        blob_files.discard_draft(home, name)
        raise


def _is_there(home: Path, digest: str, data: bytes) -> bool:
    try:
        with os.fdopen(blob_files.open_to_read(home, blob_files.path_of(digest)), "rb") as file:
            return file.read(len(data) + 1) == data
    except FileNotFoundError:
        return False


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        written = os.write(descriptor, left)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        left = left[written:]
