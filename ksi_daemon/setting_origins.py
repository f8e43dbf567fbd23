"""Find where a setting comes from: asked only once it is wrong, so that its message can name the place."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

PREFIX: Final = "KSI_"
DELIMITER: Final = "__"

Key = Sequence[str | int]


def origin_of(key: Key, files: Sequence[Path]) -> str:
    """Say by which file or variable ``key`` is set, or the table that it is missing from; "": by none.

    ``files``: the weakest first; the environment is over them.
    """
    sources = [*_variables(key), *_trees(files)]
    # What is missing stands nowhere, but its table may. A plugin's begins below "plugins".
    least = 2 if "plugins" in key[:1] else 1
    for path in (key, key[:-1]):
        if len(path) >= least:
            for name, tree in sources:
                if _sets(tree, path):
                    return f" (in {name})"
    return ""


def no_json(tables: Sequence[str]) -> Sequence[str]:
    """List the variables that should be JSON, and are not: a whole table, or a list in one."""
    named = [name for name in os.environ if name.upper().startswith(PREFIX)]
    return [name for name in named if _parts(name)[0] in tables and _is_no_json(name)]


def _variables(key: Key) -> Iterator[tuple[str, Any]]:
    """Give what the environment says of the key: the longer the name, the stronger."""
    words = [str(part) for part in key]
    for length in range(len(words), 0, -1):
        for name in os.environ:
            if name.upper().startswith(PREFIX) and _parts(name) == [word.lower() for word in words[:length]]:
                tree: Any = os.environ[name]
                with suppress(orjson.JSONDecodeError):
                    tree = orjson.loads(tree)
                for word in reversed(words[:length]):
                    tree = {word: tree}
                yield f"the environment's {name}", tree


def _trees(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    import tomllib  # noqa: PLC0415 -- half a megabyte that a daemon without a mistake does not need

    for file in reversed(files):
        with suppress(OSError, ValueError):
            yield str(file), tomllib.loads(file.read_text("utf-8"))


def _sets(tree: Any, path: Key) -> bool:
    """Tell whether a source has the value; one that is no table decides about all that is below it."""
    for part in path:
        if not isinstance(tree, Mapping):
            return True
        if part not in tree:
            return False
        tree = tree[part]
    return True


def _parts(variable: str) -> list[str]:
    return variable[len(PREFIX) :].lower().split(DELIMITER)


def _is_no_json(variable: str) -> bool:
    text = os.environ[variable]
    if DELIMITER in variable and not text.startswith("["):
        return False  # one value of a table
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return True
    return False
