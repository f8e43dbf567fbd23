"""Paths in settings: the daemon's working folder is nobody's to rely on."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def _whole(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path} is not a whole path: one from / that has no ..")
    return path


def _secret(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("this is no whole path, one from / that has no ..; a key itself never stands here")
    return path


WholePath = Annotated[Path, AfterValidator(_whole)]
"""One from / that has no .."""

KeyFile = Annotated[Path, AfterValidator(_secret)]
"""The same; what somebody took for the place of a key is not repeated."""
