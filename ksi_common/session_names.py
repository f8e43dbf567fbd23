"""Names for sessions that people can say and type: brave-otter, or brave-otter-7f3a where that is taken."""

import secrets
from collections.abc import Sequence
from functools import cache
from pathlib import Path


def candidates() -> Sequence[str]:
    """Give a few names, the plainest first; the last cannot be taken."""
    name = "-".join(secrets.choice(words) for words in _words())
    return name, f"{name}-{secrets.token_hex(2)}", f"{name}-{secrets.token_hex(8)}"


@cache
def _words() -> Sequence[Sequence[str]]:
    """Read the words: a line of first ones, a line of second ones."""
    lines = Path(__file__).with_name("session_words.txt").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines]
