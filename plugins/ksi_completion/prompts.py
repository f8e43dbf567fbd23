"""From what was asked to the messages that a model gets: inline, or from a file of a folder of prompts."""

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ksi_common.events.completion import Asked, ChatMessage
from ksi_daemon.plugin import InvalidArgument, NotFound, PermissionDenied

MAX_FILE_BYTES: Final = 32 * 1024 * 1024

_ENTER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
# A named pipe would be waited for without O_NONBLOCK.
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Prompts:
    """Read prompts. ``roots``: the folders that a ``prompt_file`` may be in, or below."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.absolute() for root in roots]

    async def messages(self, asked: Asked) -> list[ChatMessage]:
        """Give the messages of one request, the system's first.

        Raises InvalidArgument, NotFound or PermissionDenied for a file that cannot be taken.
        """
        if asked.messages is not None:
            said = list(asked.messages)
        elif asked.prompt is not None:
            said = [ChatMessage(role="user", content=asked.prompt)]
        else:
            said = [await asyncio.to_thread(self._read, asked.prompt_file or "")]
        if asked.system is not None:
            said.insert(0, ChatMessage(role="system", content=asked.system))
        return said

    def _read(self, name: str) -> ChatMessage:
        root, parts = self._locate(name)
        try:
            content = _read_below(root, parts)
        except FileNotFoundError:
            raise NotFound(f"there is no file {name}", reason="no_prompt_file") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise PermissionDenied(
                    f"{name} is, or goes through, a link", reason="prompt_file_link"
                ) from None
            raise PermissionDenied(
                f"cannot read {name}: {error.strerror}", reason="prompt_file_unreadable"
            ) from error
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"{name} is not UTF-8 at byte {error.start}", reason="prompt_file_encoding"
            ) from None
        if not text.strip():
            raise InvalidArgument(f"{name} is empty", reason="empty_prompt")
        # Larger than a field of a request may be: it never travels in one.
        return ChatMessage.model_construct(role="user", content=text)

    def _locate(self, name: str) -> tuple[Path, list[str]]:
        """Find the root that a name is below; a relative one is below the first."""
        path = Path(name)
        if "\0" not in name and ".." not in path.parts:
            whole = path if path.is_absolute() else self._roots[0] / path
            for root in self._roots:
                if whole.is_relative_to(root) and whole != root:
                    return root, list(whole.relative_to(root).parts)
        raise PermissionDenied(
            f"{name} is in no folder of prompts",
            reason="prompt_file_outside",
            hint=f"put it in {self._roots[0]}, or set plugins.completion.prompt_roots",
        )


def is_whole(prompt: Sequence[ChatMessage]) -> bool:
    """Tell whether a prompt is a whole conversation, rather than the next word of one."""
    return len(prompt) > 1 and sum(message.role != "system" for message in prompt) > 1


def _read_below(root: Path, parts: Sequence[str]) -> bytes:
    """Read a regular file, through no link below ``root``."""
    folder = os.open(root, _ENTER & ~os.O_NOFOLLOW)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _ENTER, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(parts[-1], _READ, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionDenied(f"{parts[-1]} is not a regular file", reason="prompt_file_special")
        if status.st_size > MAX_FILE_BYTES:
            raise InvalidArgument(
                f"{parts[-1]} has {status.st_size} bytes", reason="too_large", limit=MAX_FILE_BYTES
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
