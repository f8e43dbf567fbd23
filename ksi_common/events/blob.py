"""``blob:*``: read the large data that events and answers refer to."""

from typing import Annotated

from pydantic import Field

from ksi_common.errors import DataLoss, InvalidArgument
from ksi_common.messages import Message, Request, Stream
from ksi_common.references import Reference

_EXAMPLE = {
    "path": "blobs/e3/b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "length": 0,
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
}


class Chunk(Message):
    """A part of the bytes, in order."""

    offset: int
    """Of its first byte, within what the reference names."""
    data: str
    """Base64."""


class Read(Stream[Chunk], event="blob:read", safe=True, raises=(DataLoss, InvalidArgument)):
    """Read what a reference names; the last chunk comes only when all bytes are found to be right."""

    reference: Reference = Field(description="As an event, a row or an answer has it.", examples=[_EXAMPLE])
    offset: Annotated[int, Field(ge=0)] = Field(0, description="Where to begin, within what is named.")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="Bytes at most; default: all.")


class Stat(Message):
    """What is there of what a reference names."""

    found: bool
    """There is such a file."""
    intact: bool
    """Its bytes are those that the reference names."""
    length: int
    """Bytes that the reference names."""
    reason: str | None = None
    """reference_missing or reference_corrupt, where they are not."""


class GetStat(Request[Stat], event="blob:stat", safe=True, raises=(InvalidArgument,)):
    """Tell whether what a reference names is there, and right."""

    reference: Reference = Field(description="As an event, a row or an answer has it.", examples=[_EXAMPLE])
