"""The prompt: what is said on the command line and what is piped in; in a file where it is large."""

import os
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from ksi_common.errors import FailedPrecondition, InvalidArgument

MAX_INLINE: Final = 256 * 1024
"""Bytes of JSON that go over the socket; more goes through a file."""
MAX_BYTES: Final = 32 * 1024 * 1024
"""Of what is piped in: the daemon takes no larger file."""
QUIET_S: Final = 2.0


def read_piped(stdin: BinaryIO, *, waiting: Callable[[], None], quiet_s: float = QUIET_S) -> str:
    """Read all of stdin; ``waiting`` is called where nothing comes for ``quiet_s``. What is no UTF-8 is �."""
    try:
        os.set_blocking(stdin.fileno(), True)  # whoever began this may have left it otherwise
        if not select.select([stdin], [], [], quiet_s)[0]:
            waiting()
        piped = stdin.read(MAX_BYTES + 1)
    except OSError as error:
        raise FailedPrecondition(f"cannot read stdin: {error.strerror}", reason="no_stdin") from error
    if len(piped) > MAX_BYTES:
        raise InvalidArgument(
            f"stdin has more than {MAX_BYTES // 1024**2} MiB", reason="too_large", limit=MAX_BYTES
        )
    return piped.decode(errors="replace").rstrip("\n")


def joined(prompt: str | None, piped: str) -> str:
    """Give the prompt, and below it what was piped in."""
    return "\n\n".join(part for part in (prompt or "", piped) if part.strip())


class Prompt:
    """A prompt that can be sent, again and again; ``folder``: where one that is large becomes a file."""

    def __init__(self, text: str, folder: Path, name: str) -> None:
        self._text = text
        self._path = folder / f"chat-{name}.txt"
        self._is_large = len(orjson.dumps(text)) > MAX_INLINE

    @contextmanager
    def fields(self) -> Iterator[Mapping[str, str]]:
        """Give the fields of a request, which hold while this lasts."""
        if not self._is_large:
            yield {"prompt": self._text}
            return
        try:
            self._write()
            yield {"prompt_file": str(self._path)}
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the file, if there is one: the daemon has read it."""
        if self._is_large:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor)
                file.write(self._text.encode())
        except OSError as error:
            raise FailedPrecondition(
                f"cannot write {self._path}: {error.strerror}", reason="no_file"
            ) from error
