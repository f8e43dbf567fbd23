"""Put on a peer the load that load.py puts on KSI: the same payload, the same shapes, the replies asserted.

    python benchmarks/peer_load.py nats nats://127.0.0.1:4222 --in-flight 64

`nats`, `jetstream` and `valkey` are the peers through the client libraries that their users use. `nats_inbox`
publishes to a callback on an inbox of its own instead of awaiting `request()`, and `valkey_raw` writes RESP
rendered beforehand: what is left of a peer when its Python client costs as little as can be.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import nats
import orjson
import uvloop
import valkey.asyncio

from benchmarks.load import KINDS, PAYLOAD, LoadFailedError, Plan, Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
    from contextlib import AbstractAsyncContextManager

    from nats.aio.msg import Msg

    from benchmarks.outcome import Outcome

    Ask = Callable[[], Awaitable[None]]
    Work = Callable[[str, Tally, int, asyncio.Barrier], Coroutine[None, None, None]]

SUBJECT = "bench.ask"
STREAM_SUBJECT = "bench.told"
LINE = KINDS["echo"].line(0)
STORED = orjson.dumps(PAYLOAD)


@asynccontextmanager
async def _nats_request(address: str) -> AsyncIterator[Ask]:
    async with await nats.connect(address) as connection:

        async def ask() -> None:
            reply = await connection.request(SUBJECT, LINE, timeout=10)
            _expect(reply.data == LINE, reply.data)

        yield ask


@asynccontextmanager
async def _jetstream_publish(address: str) -> AsyncIterator[Ask]:
    async with await nats.connect(address) as connection:
        stream = connection.jetstream()
        await stream.add_stream(name="bench", subjects=[STREAM_SUBJECT])

        async def ask() -> None:
            acknowledged = await stream.publish(STREAM_SUBJECT, STORED, timeout=10)
            _expect(acknowledged.stream == "bench" and acknowledged.seq > 0, acknowledged)

        yield ask


def _expect(held: object, reply: object) -> None:
    if not held:
        raise LoadFailedError(f"wrong reply: {reply!r:.400}")


def _awaited(connect: Callable[[str], AbstractAsyncContextManager[Ask]]) -> Work:
    """Make the work of `in_flight` coroutines that each ask and wait, ask and wait."""

    async def work(address: str, tally: Tally, in_flight: int, begin: asyncio.Barrier) -> None:
        async with connect(address) as ask, asyncio.TaskGroup() as group:
            await begin.wait()
            for _ in range(in_flight):
                group.create_task(_ask_on(ask, tally))

    return work


async def _ask_on(ask: Ask, tally: Tally) -> None:
    while tally.allowance(1):
        start = time.perf_counter_ns()
        await ask()
        tally.finished.append((time.perf_counter_ns(), [start]))


async def _nats_inbox(address: str, tally: Tally, in_flight: int, begin: asyncio.Barrier) -> None:
    """Publish with an inbox to answer to; the callback of the inbox publishes the next."""
    done = asyncio.get_running_loop().create_future()
    started: dict[str, int] = {}
    async with await nats.connect(address) as connection:
        inbox = connection.new_inbox()

        async def ask(number: str) -> None:
            if tally.allowance(1):
                started[number] = time.perf_counter_ns()
                await connection.publish(SUBJECT, LINE, reply=f"{inbox}.{number}")
            elif not started and not done.done():
                done.set_result(None)

        async def answered(message: Msg) -> None:
            number = message.subject.rpartition(".")[2]
            if message.data != LINE:
                done.set_exception(LoadFailedError(f"wrong reply: {message.data!r:.400}"))
            tally.finished.append((time.perf_counter_ns(), [started.pop(number)]))
            await ask(number)

        await connection.subscribe(f"{inbox}.*", cb=answered)
        await begin.wait()
        for number in range(in_flight):
            await ask(str(number))
        await done


async def _valkey(address: str, tally: Tally, in_flight: int, begin: asyncio.Barrier) -> None:
    """Send `in_flight` commands as one pipeline, which is how the library keeps several in flight."""
    async with valkey.asyncio.Valkey(unix_socket_path=address) as client:
        await client.ping()
        await begin.wait()
        while count := tally.allowance(in_flight):
            start = time.perf_counter_ns()
            pipeline = client.pipeline(transaction=False)
            for _ in range(count):
                pipeline.xadd("bench", {"data": STORED})
            entries = await pipeline.execute()
            _expect(len(entries) == count and all(b"-" in entry for entry in entries), entries)
            tally.finished.append((time.perf_counter_ns(), [start] * count))


class RawValkey(asyncio.Protocol):
    """Keep a Valkey connection full of XADD commands; replies come in the order of the commands."""

    def __init__(self, tally: Tally) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tally = tally
        self._sent: deque[int] = deque()
        self._rest = b""
        self._command = _resp(b"XADD", b"bench", b"*", b"data", STORED)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, wanted: int) -> None:
        count = self._tally.allowance(wanted)
        if count:
            self._sent.extend([time.perf_counter_ns()] * count)
            self._transport.write(self._command * count)
        elif not self._sent and not self.done.done():
            self.done.set_result(None)

    def data_received(self, chunk: bytes) -> None:
        now = time.perf_counter_ns()
        parts = (self._rest + chunk).split(b"\r\n")
        count = (len(parts) - 1) // 2  # a reply is a length and an entry id
        self._rest = b"\r\n".join(parts[2 * count :])
        if not all(b"-" in entry for entry in parts[1 : 2 * count : 2]):
            self.done.set_exception(LoadFailedError(f"wrong reply: {chunk!r:.400}"))
            return
        self._tally.finished.append((now, [self._sent.popleft() for _ in range(count)]))
        self.send(count)


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


async def _valkey_raw(address: str, tally: Tally, in_flight: int, begin: asyncio.Barrier) -> None:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(lambda: RawValkey(tally), address)
    await begin.wait()
    connection.send(in_flight)
    await connection.done


WORKS: Mapping[str, Work] = {
    "nats": _awaited(_nats_request),
    "nats_inbox": _nats_inbox,
    "jetstream": _awaited(_jetstream_publish),
    "valkey": _valkey,
    "valkey_raw": _valkey_raw,
}


async def run(work: Work, address: str, plan: Plan) -> Outcome:
    """Put the planned load on a peer and return what came back."""
    tally = Tally(None)
    begin = asyncio.Barrier(plan.connections + 1)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        for _ in range(plan.connections):
            group.create_task(work(address, tally, plan.in_flight, begin))
        await begin.wait()
        start = time.perf_counter_ns() + int(plan.warm_up_s * 1e9)
        stop = start + int(plan.seconds * 1e9)
        loop.call_later(plan.warm_up_s + plan.seconds, setattr, tally, "stopped", True)
    return tally.outcome(start, stop)


def main() -> None:
    """Run one load and print its outcome as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=list(WORKS))
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    plan = Plan(options.connections, options.in_flight, options.seconds)
    print(uvloop.run(run(WORKS[options.peer], options.address, plan)).to_json())


if __name__ == "__main__":
    main()
