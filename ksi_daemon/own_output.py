"""What a program of ours says on stdout, where plugins run that may print, too."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson

Say = Callable[[object], None]
"""Write a value as a line of JSON."""


@contextmanager
def own_output() -> Iterator[Say]:
    """Keep stdout for our lines: what plugins, their children and their last words print goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as stdout:
        os.dup2(2, 1)

        def say(value: object) -> None:
            stdout.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
            stdout.flush()

        yield say
