"""Say in one line what is wrong with a plugin, and where."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksi_common.errors import InternalError, KSIError

_NOT_ITS_OWN = frozenset(("importlib", "ksi_common", "ksi_daemon", "pluggy", "pydantic"))
"""Folders of code that a plugin's error only passes through."""


class PluginBug(InternalError):
    """What a plugin did wrong, in words of KSI: its callers may read them, for they have none of its data.

    ``function``: the one that did it, where it has returned, and no traceback leads to it. ``plugin``: whose
    it is, where that cannot be told from its file or the event.
    """

    def __init__(
        self, message: str, function: Callable[..., Any] | None = None, *, plugin: str | None = None
    ) -> None:
        super().__init__(message)
        self.place = None if function is None else _written(function)
        self.plugin = plugin


def explain(error: BaseException) -> str:
    """Say in one line what is wrong with a plugin, and where."""
    if isinstance(error, KSIError):
        return error.message
    if isinstance(error, SyntaxError) and error.filename:
        return f"SyntaxError: {error.msg} ({Path(error.filename).name}:{error.lineno})"
    said = str(error)
    text = f"{type(error).__name__}: {said}".splitlines()[0][:300] if said else type(error).__name__
    place = _place(error)
    return f"{text} ({place})" if place else text


def place_of(function: Callable[..., Any]) -> str:
    """Say where a function is written."""
    file, line = _written(function)
    return f" ({Path(file).name}:{line})" if file else ""


def _written(function: Callable[..., Any]) -> tuple[str, int]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return ("", 0) if code is None else (code.co_filename, code.co_firstlineno)


def _place(error: BaseException) -> str | None:
    traceback = error.__traceback__
    place = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "frozen" not in code.co_filename and _NOT_ITS_OWN.isdisjoint(Path(code.co_filename).parts):
            place = f"{Path(code.co_filename).name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place
