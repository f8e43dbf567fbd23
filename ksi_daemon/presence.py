"""A daemon that nobody can reach any more ends: its socket, or its whole home, was taken away."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

LOOK_S: Final = 5.0


class Presence:
    """What stands at a path now, to be compared with what stands there later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first = _identity(path)

    @property
    def lasts(self) -> bool:
        """Look whether it is still there."""
        return _identity(self._path) == self._first

    async def watch(self, lost: Callable[[], None], *, every_s: float = LOOK_S) -> None:
        """Call ``lost`` when it is not there any more, or something else is."""
        while self.lasts:  # noqa: ASYNC110 - a folder tells nobody that it goes
            await asyncio.sleep(every_s)
        lost()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
