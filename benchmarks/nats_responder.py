"""Answer NATS requests with what they brought, through nats-py: the other end of the core request/reply.

python benchmarks/nats_responder.py nats://127.0.0.1:4222
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import nats
import uvloop

from benchmarks.peer_load import SUBJECT

if TYPE_CHECKING:
    from nats.aio.msg import Msg


async def serve(address: str) -> None:
    """Answer until the process is ended; say on standard output when it begins."""
    connection = await nats.connect(address)

    async def answer(message: Msg) -> None:
        await connection.publish(message.reply, message.data)

    await connection.subscribe(SUBJECT, cb=answer)
    await connection.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
