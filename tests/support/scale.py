"""How much of a heavy test is run: ``KSI_TEST_SCALE=full`` is what is promised, anything else less of it."""

import os
from typing import Final

FULL: Final = os.environ.get("KSI_TEST_SCALE") == "full"


def scaled(quick: int, full: int) -> int:
    """Give the count for this run."""
    return full if FULL else quick
