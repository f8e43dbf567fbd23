"""Blobs in real files: whole and on disk before they are named, and never the wrong bytes."""

import asyncio
import errno
import hashlib
import os
import resource
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ksi_common.errors import DataLoss, InvalidArgument
from ksi_common.references import Reference
from ksi_daemon import blob_files
from ksi_daemon.blobs import CHUNK, FileBlobs
from ksi_daemon.database.claims import store_blob
from ksi_daemon.database.errors import StoreUnavailable

LARGE = bytes(range(256)) * (2 * CHUNK // 256) + b"and a bit"


@pytest.fixture
async def blobs(tmp_path: Path) -> FileBlobs:
    blobs = FileBlobs(tmp_path)
    await blobs.prepare()
    return blobs


async def chunks_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def stored_files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize("data", [b"", b"hello", LARGE])
async def test_what_is_put_is_read(blobs: FileBlobs, tmp_path: Path, data: bytes) -> None:
    reference = await blobs.put(data, media="text/plain")
    digest = hashlib.sha256(data).hexdigest()
    path = f"blobs/{digest[:2]}/{digest[2:]}"
    assert reference == Reference(path=path, offset=0, length=len(data), sha256=digest, media="text/plain")
    assert await blobs.read(reference) == data
    assert stored_files(tmp_path) == [path]
    assert (tmp_path / path).stat().st_mode & 0o777 == 0o600


async def test_what_comes_in_chunks_is_the_same_blob(blobs: FileBlobs, tmp_path: Path) -> None:
    streamed = await blobs.put(chunks_of(LARGE[:10], b"", LARGE[10:]))
    assert streamed == await blobs.put(LARGE)
    assert stored_files(tmp_path) == [streamed.path]
    assert b"".join([chunk async for chunk in blobs.stream(streamed)]) == LARGE


async def test_the_same_content_twice_is_one_file_written_once(blobs: FileBlobs, tmp_path: Path) -> None:
    first = await blobs.put(b"hello")
    inode = (tmp_path / first.path).stat().st_ino
    assert await blobs.put(b"hello") == first
    assert (tmp_path / first.path).stat().st_ino == inode
    assert (blobs.statistics.written, blobs.statistics.known) == (1, 1)


async def test_many_at_once_with_the_same_content_are_one_file(blobs: FileBlobs, tmp_path: Path) -> None:
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(blobs.put(b"hello")) for _ in range(20)]
    assert stored_files(tmp_path) == [tasks[0].result().path]
    assert await blobs.read(tasks[0].result()) == b"hello"


async def test_a_part_of_a_blob_is_read_by_its_own_hash(blobs: FileBlobs) -> None:
    whole = await blobs.put(LARGE)
    part = LARGE[300:900]
    digest = hashlib.sha256(part).hexdigest()
    assert await blobs.read(Reference(path=whole.path, offset=300, length=600, sha256=digest)) == part


async def test_blobs_outlive_their_store(blobs: FileBlobs, tmp_path: Path) -> None:
    reference = await blobs.put(LARGE)
    again = FileBlobs(tmp_path)
    await again.prepare()
    assert await again.read(reference) == LARGE


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("position", [0, len(LARGE) - 1])
async def test_one_flipped_bit_is_data_loss(blobs: FileBlobs, tmp_path: Path, position: int) -> None:
    reference = await blobs.put(LARGE)
    flip_bit(tmp_path / reference.path, position)
    with pytest.raises(DataLoss) as loss:
        await blobs.read(reference)
    assert loss.value.details["reason"] == "reference_corrupt"
    assert loss.value.details["path"] == reference.path
    assert (blobs.statistics.read, blobs.statistics.lost) == (0, 1)


async def test_a_streamed_read_does_not_give_the_last_chunk_of_what_is_damaged(
    blobs: FileBlobs, tmp_path: Path
) -> None:
    reference = await blobs.put(LARGE)
    flip_bit(tmp_path / reference.path, 0)
    given = 0
    with pytest.raises(DataLoss):  # noqa: PT012 -- how much came before is the point
        async for chunk in blobs.stream(reference):
            given += len(chunk)
    assert given == 2 * CHUNK


async def test_a_blob_of_one_chunk_is_checked_before_a_byte_is_given(
    blobs: FileBlobs, tmp_path: Path
) -> None:
    reference = await blobs.put(b"hello")
    flip_bit(tmp_path / reference.path, 0)
    with pytest.raises(DataLoss):
        await anext(blobs.stream(reference))


async def test_a_file_cut_short_is_data_loss(blobs: FileBlobs, tmp_path: Path) -> None:
    reference = await blobs.put(b"hello")
    os.truncate(tmp_path / reference.path, 4)
    with pytest.raises(DataLoss, match="1 bytes are missing") as loss:
        await blobs.read(reference)
    assert loss.value.details["reason"] == "reference_corrupt"


async def test_a_missing_file_is_said_to_be_missing(blobs: FileBlobs, tmp_path: Path) -> None:
    reference = await blobs.put(b"hello")
    (tmp_path / reference.path).unlink()
    with pytest.raises(DataLoss) as loss:
        await blobs.read(reference)
    assert loss.value.details["reason"] == "reference_missing"


async def test_putting_what_is_damaged_again_heals_it(blobs: FileBlobs, tmp_path: Path) -> None:
    reference = await blobs.put(LARGE)
    flip_bit(tmp_path / reference.path, 7)
    assert await blobs.put(LARGE) == reference
    assert await blobs.read(reference) == LARGE
    assert blobs.statistics.lost == 0


async def test_a_reader_may_stop_half_way(blobs: FileBlobs) -> None:
    reference = await blobs.put(LARGE)
    async with aclosing(blobs.stream(reference)) as chunks:
        assert await anext(chunks) == LARGE[:CHUNK]
    assert blobs.statistics.read == 0


async def test_no_link_is_followed_to_a_file(blobs: FileBlobs, tmp_path: Path) -> None:
    reference = await blobs.put(b"hello")
    (tmp_path / reference.path).rename(tmp_path / "elsewhere")
    (tmp_path / reference.path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataLoss) as loss:
        await blobs.read(reference)
    assert loss.value.details["reason"] == "reference_corrupt"


async def test_no_link_is_followed_to_a_folder(blobs: FileBlobs, tmp_path: Path) -> None:
    reference = await blobs.put(b"hello")
    folder = (tmp_path / reference.path).parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataLoss):
        await blobs.read(reference)
    with pytest.raises(StoreUnavailable):
        await blobs.put(b"hello")


@pytest.mark.parametrize("what", ["pipe", "folder"])
async def test_what_is_no_regular_file_is_not_read(blobs: FileBlobs, tmp_path: Path, what: str) -> None:
    reference = await blobs.put(b"hello")
    path = tmp_path / reference.path
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    async with asyncio.timeout(30):
        with pytest.raises(DataLoss) as loss:
            await blobs.read(reference)
    assert loss.value.details["reason"] == "reference_corrupt"


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "blobs/../secret", "blobs//x", "blobs/.drafts/x", "", "blobs/x\0"]
)
def test_a_reference_cannot_leave_the_home(path: str) -> None:
    with pytest.raises(ValidationError):
        Reference(path=path, length=1, sha256="0" * 64)


async def test_a_reference_names_files_of_readable_folders_only(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_bytes(b"hello")
    digest = hashlib.sha256(b"hello").hexdigest()
    reference = Reference(path="secrets/token", length=5, sha256=digest)
    with pytest.raises(InvalidArgument) as refused:
        await FileBlobs(tmp_path).read(reference)
    assert refused.value.details["reason"] == "not_readable"
    assert await FileBlobs(tmp_path, readable=("blobs", "secrets")).read(reference) == b"hello"


async def test_too_much_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path, max_bytes=10)
    await blobs.prepare()
    with pytest.raises(InvalidArgument) as refused:
        await blobs.put(chunks_of(b"12345", b"67890", b"!"))
    assert refused.value.details == {"reason": "too_large", "limit": 10}
    assert stored_files(tmp_path) == []


async def test_a_source_that_fails_leaves_nothing(blobs: FileBlobs, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put(broken())
    assert stored_files(tmp_path) == []


async def test_a_put_that_is_cancelled_leaves_nothing(blobs: FileBlobs, tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"half"
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(blobs.put(stuck()))
        await begun.wait()
        assert len(stored_files(tmp_path)) == 1
        task.cancel()
    assert stored_files(tmp_path) == []


async def test_a_put_that_is_cancelled_ends_cancelled_where_the_disk_is_full(
    blobs: FileBlobs, tmp_path: Path
) -> None:
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"not written before the file is closed"
        begun.set()
        await asyncio.Event().wait()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with asyncio.timeout(30):
        task = asyncio.get_running_loop().create_task(blobs.put(stuck()))
        await begun.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as a full disk: no write succeeds
        try:
            task.cancel()
            await asyncio.wait([task])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert task.cancelled()
    assert stored_files(tmp_path) == []


async def test_what_a_crash_left_half_written_is_gone_after_the_next_start(tmp_path: Path) -> None:
    blob_files.prepare(tmp_path)
    os.close(blob_files.open_draft(tmp_path, "half"))
    assert len(stored_files(tmp_path)) == 1
    await FileBlobs(tmp_path).prepare()
    assert stored_files(tmp_path) == []


def test_who_stores_what_is_being_collected_is_told_that_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob_files.prepare(tmp_path)
    store_blob(tmp_path, b"hello")
    digest = hashlib.sha256(b"hello").hexdigest()
    os.utime(tmp_path / blob_files.path_of(digest), (0, 0))
    found: list[bool] = []
    again = threading.Thread(target=lambda: found.append(blob_files.touch(tmp_path, digest)))
    look = os.stat

    def look_and_let_another_store(name: str, **options: Any) -> os.stat_result:
        result = look(name, **options)
        if "dir_fd" in options:
            again.start()
            again.join(0.2)  # it waits; a net for where it does not
        return result

    monkeypatch.setattr(os, "stat", look_and_let_another_store)
    assert blob_files.collect(tmp_path, (), before_s=1.0) == (1, 5)
    again.join()
    assert found == [False]


@pytest.mark.parametrize("by", ["blobs", "claim"])
async def test_what_is_collected_while_it_is_stored_again_is_written_anew(
    blobs: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    reference = await blobs.put(b"hello")
    touch = blob_files.touch

    def collected_first(home: Path, sha256: str) -> bool:
        (tmp_path / reference.path).unlink()
        return touch(home, sha256)

    monkeypatch.setattr(blob_files, "touch", collected_first)
    if by == "blobs":
        assert await blobs.put(b"hello") == reference
    else:
        store_blob(tmp_path, b"hello")
    assert await blobs.read(reference) == b"hello"


async def test_a_disk_that_does_not_take_it_is_said_to_be_unavailable(
    blobs: FileBlobs, tmp_path: Path
) -> None:
    (tmp_path / "blobs" / ".drafts").rmdir()
    with pytest.raises(StoreUnavailable) as unavailable:
        await blobs.put(b"hello")
    assert unavailable.value.details["reason"] == "store_unavailable"
    assert unavailable.value.retryable


async def test_bytes_and_names_are_synced_before_the_reference_is_given(
    blobs: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of T1's promise: data, then rename, then the folders that hold the name."""
    steps: list[str] = []
    where = tmp_path / "blobs"

    def watched(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **keywords: object) -> object:
            descriptor = args[0] if isinstance(args[0], int) else None
            place = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(where) if descriptor else ""
            steps.append(f"{name} {place}")
            return real(*args, **keywords)

        monkeypatch.setattr(os, name, call)

    for name in ("fdatasync", "rename", "fsync"):
        watched(name)
    reference = await blobs.put(b"hello")
    assert steps[0].startswith("fdatasync .drafts/")
    assert steps[1:] == ["rename ", f"fsync {reference.sha256[:2]}", "fsync ."]


async def test_a_disk_that_refuses_to_sync_gives_no_reference(
    blobs: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(StoreUnavailable) as unavailable:
        await blobs.put(b"hello")
    assert unavailable.value.hint is not None
    assert stored_files(tmp_path) == []
