"""Blobs, as clients have them."""

from base64 import b64encode
from collections.abc import AsyncIterator

from ksi_common.events.blob import Chunk, GetStat, Read, Stat
from ksi_daemon.plugin import Blobs, DataLoss, handler


@handler
async def read_blob(request: Read, blobs: Blobs) -> AsyncIterator[Chunk]:
    """Read all of it, whatever part is wanted: the hash is of the whole."""
    end = request.reference.length if request.limit is None else request.offset + request.limit
    position = 0
    async for data in blobs.stream(request.reference):
        wanted = data[max(0, request.offset - position) : max(0, end - position)]
        if wanted:
            yield Chunk(offset=max(position, request.offset), data=b64encode(wanted).decode())
        position += len(data)


@handler
async def stat_blob(request: GetStat, blobs: Blobs) -> Stat:
    """Read all of it: nothing else shows that it is right."""
    length = request.reference.length
    try:
        async for _ in blobs.stream(request.reference):
            pass
    except DataLoss as error:
        reason = str(error.details["reason"])
        return Stat(found=reason != "reference_missing", intact=False, length=length, reason=reason)
    return Stat(found=True, intact=True, length=length)
