"""Sessions: the last one of this home, whether there is one of a name, a name for a new one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ksi_client.raw import call_raw
from ksi_common.errors import AlreadyExists, NotFound
from ksi_common.guessing import nearest
from ksi_common.ids import is_name
from ksi_common.session_names import candidates

LISTED: Final = 100


class LastSession:
    """The session that was talked in last, kept in ``state/last_session_id``."""

    def __init__(self, home: Path) -> None:
        self._path = home / "state" / "last_session_id"

    @property
    def exists(self) -> bool:
        """Tell whether anything was ever asked in this home."""
        return self._path.exists()

    def read(self) -> str:
        """Give it; raise NotFound where there is none."""
        try:
            name = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            name = ""
        if not is_name(name):
            raise NotFound(
                "there is no session to go on with",
                hint="leave -c out to begin one, or name one: -r SESSION",
                reason="no_last_session",
            )
        return name

    def write(self, name: str) -> None:
        """Keep it: who reads meanwhile gets the one before or this one. Raises OSError."""
        made = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.write_text(name + "\n", encoding="utf-8")
        made.replace(self._path)


def is_there(name: str) -> bool:
    """Tell whether there is a session of that name."""
    try:
        call_raw("conversation:get", {"session_id": name, "limit": 1})
    except NotFound:
        return False
    return True


def known(name: str) -> str:
    """Give the name of a session that there is; raise NotFound that names the nearest."""
    if not is_there(name):
        near = nearest(name, latest(LISTED))
        raise NotFound(
            f"there is no session {name!r}",
            hint=f"did you mean {near[0]}?" if near else "begin one: python3 chat.py --name NAME",
            reason="no_session",
        )
    return name


def fresh(name: str | None = None) -> str:
    """Give the name of a session that there is not yet: this one, or one made up."""
    if name is None:
        free, *others = candidates()
        return next((other for other in (free, *others) if not is_there(other)), free)
    if is_there(name):
        raise AlreadyExists(
            f"there is a session {name!r} already", hint=f"go on with it: -r {name}", reason="session_exists"
        )
    return name


def latest(limit: int) -> Sequence[str]:
    """Name the sessions that were active last."""
    listed = call_raw("conversation:list", {"limit": limit})["conversations"]
    return [conversation["session_id"] for conversation in listed]
