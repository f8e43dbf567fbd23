"""What a misspelt name may have been meant to be."""

from collections.abc import Iterable, Sequence


def nearest(word: str, names: Iterable[str], *, limit: int = 1) -> list[str]:
    """Give the names that are most like a word, the nearest first; none where none is like it."""
    from difflib import get_close_matches  # noqa: PLC0415 -- for mistakes only

    return get_close_matches(word[:MAX_WORD], list(names), n=limit)


def guess(names: Sequence[str], otherwise: str) -> str:
    """Give a hint of what was meant, or of where to look."""
    return f"did you mean {' or '.join(names)}?" if names else otherwise


MAX_WORD = 128
"""Characters that are looked at: comparing is quadratic."""
