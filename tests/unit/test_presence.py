"""What was taken away, or replaced, is noticed; what changes within is not."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ksi_daemon.presence import Presence


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("")
    other.replace(path)


def move_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


@pytest.mark.parametrize("change", [remove, replace, move_the_folder])
async def test_a_path_that_is_not_what_it_was_is_noticed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "run" / "daemon.sock"
    path.parent.mkdir()
    path.write_text("")
    lost = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(Presence(path).watch(lost.set, every_s=0.001))
        await asyncio.sleep(0)
        path.write_text("more")
        await asyncio.sleep(0.01)
        assert not lost.is_set()
        change(path)
        await lost.wait()
