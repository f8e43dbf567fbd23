"""Blobs: large data as files, named by their content, on disk before a row can name them.

``blobs/2c/f24d…`` holds the bytes whose SHA-256 is 2cf24d…: the same content twice is one file. It is written
and synced under another name, renamed, and its folders are synced; only then is there a reference for a
unit of work to commit. Who reads gets the right bytes or DataLoss.
"""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import aiofiles

from ksi_common.errors import DataLoss, InvalidArgument, KSIError
from ksi_common.ids import new_id
from ksi_common.records import record
from ksi_common.references import OCTETS, Reference
from ksi_daemon import blob_files
from ksi_daemon.database.errors import StoreUnavailable

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncBufferedIOBase, AsyncBufferedReader

T = TypeVar("T")

CHUNK: Final = 256 * 1024
"""Bytes hashed at once: a fraction of a millisecond of the loop."""
MAX_BYTES: Final = 1024**3

_UNAVAILABLE: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM))
"""Says nothing of the bytes."""


@record
class BlobStatistics:
    """Figures since the start."""

    written: int
    bytes_written: int
    known: int
    """Puts of what was there already."""
    read: int
    bytes_read: int
    lost: int
    """Reads that found the bytes damaged or missing."""


class Blobs(Protocol):
    """Keep large data beside the database."""

    async def put(self, data: bytes | AsyncIterator[bytes], *, media: str = OCTETS) -> Reference:
        """Store ``data``; what the reference names is on disk, whole. The same twice is stored once.

        Raises StoreUnavailable where the disk does not take it, InvalidArgument (``too_large``).
        """
        ...

    async def read(self, reference: Reference) -> bytes:
        """Give the bytes; raise DataLoss (``reference_missing``, ``reference_corrupt``)."""
        ...

    def stream(self, reference: Reference) -> AsyncGenerator[bytes, None]:
        """Give the bytes in chunks, the last one only after all are found to be right; raise as ``read``."""
        ...


class FileBlobs:
    """The blobs of one home. ``readable``: folders below it whose files a reference may name."""

    def __init__(
        self, home: Path, *, readable: Sequence[str] = (blob_files.FOLDER,), max_bytes: int = MAX_BYTES
    ) -> None:
        self._home = home
        self._readable = tuple(f"{folder}/" for folder in readable)
        self._max_bytes = max_bytes
        self._written = self._bytes_written = self._known = 0
        self._read = self._bytes_read = self._lost = 0

    @property
    def statistics(self) -> BlobStatistics:
        """Give figures since the start."""
        return BlobStatistics(
            self._written, self._bytes_written, self._known, self._read, self._bytes_read, self._lost
        )

    async def prepare(self) -> None:
        """Make the folders, and remove what a crash has left half-written; once, before anything else."""
        await asyncio.to_thread(blob_files.prepare, self._home)

    async def put(self, data: bytes | AsyncIterator[bytes], *, media: str = OCTETS) -> Reference:
        """Store ``data``. Cancelled, it leaves a whole blob or none."""
        known = await self._find(data, media) if isinstance(data, bytes) else None
        if known is not None:
            self._known += 1
            return known
        name = new_id()
        try:
            sha256, length = await self._write_draft(name, data)
            await _disk(asyncio.to_thread(blob_files.publish_draft, self._home, name, sha256))
        except BaseException:
            with suppress(OSError):  # the next start removes it
                await asyncio.to_thread(blob_files.discard_draft, self._home, name)
            raise
        self._written += 1
        self._bytes_written += length
        return _reference(sha256, length, media)

    async def read(self, reference: Reference) -> bytes:
        """Give the bytes, checked."""
        return b"".join([chunk async for chunk in self.stream(reference)])

    async def stream(self, reference: Reference) -> AsyncGenerator[bytes, None]:
        """Give the bytes in chunks, the last one only after all are found to be right."""
        try:
            async with self._open(reference) as file, aclosing(_checked(file, reference)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except DataLoss:
            self._lost += 1
            raise
        self._read += 1
        self._bytes_read += reference.length

    async def _find(self, data: bytes, media: str) -> Reference | None:
        """Give the reference of what is stored already, if its bytes are what they should be."""
        digest = await asyncio.to_thread(hashlib.sha256, data)
        reference = _reference(digest.hexdigest(), len(data), media)
        try:
            async with self._open(reference) as file:
                async for _ in _checked(file, reference):
                    pass
        except DataLoss:
            return None
        if not await _disk(asyncio.to_thread(blob_files.touch, self._home, reference.sha256)):
            return None
        await _disk(asyncio.to_thread(blob_files.sync_folders, self._home, reference.sha256))
        return reference

    async def _write_draft(self, name: str, data: bytes | AsyncIterator[bytes]) -> tuple[str, int]:
        opening = aiofiles.open(name, "xb", opener=lambda name, _: blob_files.open_draft(self._home, name))
        draft = _Draft(await _disk(opening), self._max_bytes)
        try:
            if isinstance(data, bytes):
                await draft.add(data)
            else:
                async for chunk in data:
                    await draft.add(chunk)
            await draft.sync()
        except BaseException:
            with suppress(StoreUnavailable):  # closing writes the rest, which nobody wants any more
                await draft.close()
            raise
        await draft.close()
        return draft.digest.hexdigest(), draft.length

    @asynccontextmanager
    async def _open(self, reference: Reference) -> "AsyncIterator[AsyncBufferedReader]":
        if not reference.path.startswith(self._readable):
            raise InvalidArgument(f"{reference.path} is in no folder of references", reason="not_readable")
        opening = aiofiles.open(
            reference.path, "rb", opener=lambda path, _: blob_files.open_to_read(self._home, path)
        )
        try:
            async with opening as file:
                yield file
        except OSError as error:
            raise _loss(error, reference) from error


class _Draft:
    """A file on its way to become a blob."""

    def __init__(self, file: "AsyncBufferedIOBase", max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self.digest = hashlib.sha256()
        self.length = 0

    async def add(self, data: bytes) -> None:
        """Write and hash, by pieces; raise InvalidArgument past the limit."""
        self.length += len(data)
        if self.length > self._max_bytes:
            raise InvalidArgument(
                f"a blob has {self._max_bytes} bytes at most", reason="too_large", limit=self._max_bytes
            )
        for start in range(0, len(data), CHUNK):
            piece = memoryview(data)[start : start + CHUNK]
            self.digest.update(piece)
            await _disk(self._file.write(piece))

    async def sync(self) -> None:
        """Have all of it on disk."""
        await _disk(self._file.flush())
        await _disk(asyncio.to_thread(os.fdatasync, self._file.fileno()))

    async def close(self) -> None:
        """Close the file."""
        await _disk(self._file.close())


async def _checked(file: "AsyncBufferedReader", reference: Reference) -> AsyncGenerator[bytes, None]:
    """Yield what the reference names; the last chunk is held until all is known to be right."""
    digest, left = hashlib.sha256(), reference.length
    chunk = b""
    await file.seek(reference.offset)
    while left:
        chunk = await file.read(min(left, CHUNK))
        if not chunk:
            raise _corrupt(reference, f"{left} bytes are missing at its end")
        digest.update(chunk)
        left -= len(chunk)
        if left:
            yield chunk
    if digest.hexdigest() != reference.sha256:
        raise _corrupt(reference, "its bytes have another hash")
    if chunk:
        yield chunk


async def _disk(step: Awaitable[T]) -> T:
    try:
        return await step
    except OSError as error:
        hint = "free space on the disk of the blobs" if error.errno == errno.ENOSPC else None
        raise StoreUnavailable(
            f"cannot store a blob: {error}", reason="store_unavailable", hint=hint
        ) from error


def _reference(sha256: str, length: int, media: str) -> Reference:
    return Reference(path=blob_files.path_of(sha256), length=length, sha256=sha256, media=media)


def _loss(error: OSError, reference: Reference) -> KSIError:
    if isinstance(error, FileNotFoundError):
        return DataLoss(f"{reference.path} is missing", reason="reference_missing", path=reference.path)
    if error.errno in _UNAVAILABLE:
        return StoreUnavailable(f"cannot read {reference.path}: {error}", reason="store_unavailable")
    return _corrupt(reference, str(error))


def _corrupt(reference: Reference, why: str) -> DataLoss:
    return DataLoss(
        f"{reference.path} is not what was stored: {why}",
        reason="reference_corrupt",
        path=reference.path,
        offset=reference.offset,
        length=reference.length,
    )
