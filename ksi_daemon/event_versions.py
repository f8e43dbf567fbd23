"""Which version of its class an event was told with: written into its data, where that is not the first.

What is told of a class whose version is above 1 has ``"$version"`` as the last field of its data: nothing is
stored, and nothing is paid, for a class that has had one version only.
"""

from typing import Final

FIELD: Final = "$version"
_STAMP: Final = b'"$version":'
_LONGEST: Final = 24
"""Bytes of the stamp, its number and the brace after it, at most."""


def stamped(data: bytes, version: int) -> bytes:
    """Write the version into the JSON object that is about to be stored."""
    comma = b"," if len(data) > len(b"{}") else b""
    return b"%b%b%b%d}" % (data[:-1], comma, _STAMP, version)


def version_of(data: bytes) -> int:
    """Give the version that stored data are of."""
    place = data.rfind(_STAMP, -_LONGEST)
    if place < 0:
        return 1
    number = data[place + len(_STAMP) : -1]
    return int(number) if number.isdigit() and data.endswith(b"}") else 1
