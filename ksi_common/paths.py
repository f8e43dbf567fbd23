"""Where things are. ``$KSI_HOME`` is var/: run, db, logs, state, lib, secrets, backups, blobs."""

import os
from pathlib import Path
from typing import Final

from ksi_common.records import record

MAX_SOCKET_PATH: Final = 100
"""Bytes; the system allows 107, of which a longer name of a temporary twin may need some."""


@record
class Paths:
    """The files and folders of one daemon."""

    home: Path

    @property
    def run(self) -> Path:
        """What lasts as long as the daemon: socket, pid, lock."""
        return self.home / "run"

    @property
    def socket(self) -> Path:
        """The Unix socket; elsewhere where the path here would be too long for the system."""
        override = os.environ.get("KSI_SOCKET")
        if override:
            return Path(override)
        path = self.run / "daemon.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        import hashlib  # noqa: PLC0415 -- seldom needed, and a tenth of the start of a quick command

        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return runtime_dir() / f"ksi-{digest}.sock"

    @property
    def pid_file(self) -> Path:
        """Holds the daemon's process id."""
        return self.run / "ksi_daemon.pid"

    @property
    def lock(self) -> Path:
        """Locked by the one daemon of this home."""
        return self.run / "lock"

    @property
    def breadcrumb(self) -> Path:
        """Names the plugin whose code is running where a crash of the process is likely."""
        return self.run / "breadcrumb"

    @property
    def database(self) -> Path:
        """The one database."""
        return self.home / "db" / "ksi.db"

    @property
    def backups(self) -> Path:
        """Copies made before migrations, and by wish."""
        return self.home / "backups"

    @property
    def log(self) -> Path:
        """The daemon's log, JSON lines."""
        return self.home / "logs" / "daemon" / "ksi.jsonl"

    @property
    def blobs(self) -> Path:
        """Content-addressed files."""
        return self.home / "blobs"

    @property
    def plugins(self) -> Path:
        """Single-file plugins beside the home."""
        return self.home.parent / "plugins"

    @property
    def config(self) -> Path:
        """The settings of this home."""
        return self.home.parent / "ksi.toml"


def checkout() -> Path | None:
    """Give the checkout that KSI runs from; None where it was installed as any package is."""
    folder = Path(__file__).resolve().parent.parent
    return folder if (folder / "pyproject.toml").exists() else None


def default_home() -> Path:
    """Give ``$KSI_HOME``, or var/ of the checkout, or ksi/var among the user's data where installed."""
    named = os.environ.get("KSI_HOME")
    if named:
        return Path(named).absolute()
    folder = checkout()
    if folder is not None:
        return folder / "var"
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "ksi" / "var"  # ksi.toml and plugins/ stand beside a home, in a folder of our own


def stranger(path: Path) -> int | None:
    """Give the uid of a file's or link's owner; None: this user, root, or the owner of KSI's code.

    What stands beside a home may be in a folder that others write to, such as /tmp.
    """
    owner = path.lstat().st_uid
    return None if owner in (os.getuid(), 0, Path(__file__).stat().st_uid) else owner


def runtime_dir() -> Path:
    """Give a directory for sockets that only this user can enter; made where it is missing."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    if named:
        return Path(named)
    import tempfile  # noqa: PLC0415 -- as above

    path = Path(tempfile.gettempdir()) / f"ksi-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if found.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user; set XDG_RUNTIME_DIR")
    if found.st_mode & 0o077:  # a link's mode has these bits, too
        raise PermissionError(f"others can enter {path}; give it mode 0700, or set XDG_RUNTIME_DIR")
    return path
