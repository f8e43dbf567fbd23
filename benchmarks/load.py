"""Keep N requests in flight on each of C connections and assert every reply.

Whatever depends on neither the clock nor the reply is prepared beforehand, and what is done per reply runs at
the speed of C: one split, one slice, one dict pop. The generator must not be the bottleneck of what it
measures.

    python benchmarks/load.py var/run/daemon.sock health --in-flight 64 --connections 16
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import orjson
import uvloop

from benchmarks.outcome import Outcome, Usage, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

KEYS = 1024
RING = 16_384
SAMPLE_EVERY = 512
PAYLOAD = {"text": "x" * 189}  # 200 bytes of JSON
HEAD = b'{"id":"'
ID = slice(len(HEAD), len(HEAD) + 8)
REPLY = b'"type":"reply"'


def _healthy(data: Any) -> bool:
    return bool(data["status"] == "healthy" and data["checks"])


def _logged(data: Any) -> bool:
    return bool(data["event_id"] and data["seq"] > 0)


def _stored(data: Any) -> bool:
    return bool(data["status"] == "set" and data["key"].startswith("k"))


def _found(data: Any) -> bool:
    return bool(data["found"] and data["value"] == PAYLOAD)


def _said(data: Any) -> bool:
    return bool(data["text"] == PAYLOAD["text"])


def _echoed(data: Any) -> bool:
    return bool(set(data) == {"x"})


@dataclass(frozen=True, slots=True)
class Kind:
    """Describe a request: its event, its data by number, and what its reply must hold."""

    event: str
    data: Callable[[int], object]
    holds: Callable[[Any], bool]

    def line(self, number: int) -> bytes:
        return orjson.dumps(self._frame(number), option=orjson.OPT_APPEND_NEWLINE)

    def _frame(self, number: int) -> Mapping[str, object]:
        frame: dict[str, object] = {"id": f"q{number:07d}", "event": self.event}
        data = self.data(number)
        return frame if data is None else frame | {"data": data}


@dataclass(frozen=True, slots=True)
class Echoed(Kind):
    """Describe a line that is its own reply, so that an echo server passes the same assertions."""

    def _frame(self, number: int) -> Mapping[str, object]:
        return {"id": f"q{number:07d}", "type": "reply", "data": self.data(number)}


KINDS: Mapping[str, Kind] = {
    "echo": Echoed("echo", lambda _: "x" * 157, _echoed),
    "health": Kind("system:health", lambda _: None, _healthy),
    "publish": Kind("event:publish", lambda _: {"event": "bench:told", "data": PAYLOAD}, _logged),
    "set": Kind("state:set", lambda n: {"key": f"k{n % KEYS}", "value": PAYLOAD}, _stored),
    "get": Kind("state:get", lambda n: {"key": f"k{n % KEYS}"}, _found),
    "here": Kind("here:say", lambda _: PAYLOAD, _said),
    "remote": Kind("echo:say", lambda _: PAYLOAD, _said),
}
KINDS_MIXED = ("health", "publish", "set", "get")


class LoadFailedError(Exception):
    """Say which reply was not what its request must be answered by."""


class Ring:
    """Hold request lines rendered beforehand, each with the id it must be answered under.

    An id comes again after RING requests of its connection: long after its first use was answered.
    """

    def __init__(self, kinds: Sequence[Kind], size: int = RING) -> None:
        self.kinds = kinds
        self.size = size
        self.lines = [kinds[number % len(kinds)].line(number) for number in range(size)]
        self.ids = [line[ID] for line in self.lines]

    def holds(self, line: bytes) -> bool:
        """Parse a reply in full and compare it with what its request must be answered by."""
        frame = orjson.loads(line)
        kind = self.kinds[int(frame["id"][1:]) % len(self.kinds)]
        return frame["type"] == "reply" and kind.holds(frame["data"])


@dataclass(slots=True)
class Tally:
    """Count what all connections of a run answered, and say when to stop."""

    limit: int | None
    sent: int = 0
    stopped: bool = False
    finished: list[tuple[int, list[int]]] = field(default_factory=list)
    began: Usage = field(default_factory=Usage)

    def allowance(self, wanted: int) -> int:
        """Return how many of the wanted requests may be sent now, and count them as sent."""
        if self.stopped:
            return 0
        if self.limit is not None:
            wanted = min(wanted, self.limit - self.sent)
        self.sent += wanted
        return wanted

    def outcome(self, start_ns: int, stop_ns: int) -> Outcome:
        """Summarize the replies that came between the two moments."""
        busy = self.began.busy()
        within = [(now, starts) for now, starts in self.finished if start_ns <= now <= stop_ns]
        took = sorted(chain.from_iterable([now - start for start in starts] for now, starts in within))
        if not took:
            raise LoadFailedError("no reply came in the measured time")
        seconds = (stop_ns - start_ns) / 1e9
        handled = sum(len(starts) for _, starts in self.finished)
        p50, p99 = percentile(took, 0.5) / 1e3, percentile(took, 0.99) / 1e3
        return Outcome(len(took) / seconds, p50, p99, handled, busy)


class Caller(asyncio.Protocol):
    """Keep one connection full of requests; `done` is set when the last reply was seen."""

    def __init__(self, ring: Ring, tally: Tally, in_flight: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ring = ring
        self._tally = tally
        self._in_flight = in_flight
        self._position = 0
        self._pending: dict[bytes, int] = {}
        self._rest = b""
        self._until_sample = 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def start(self) -> None:
        self._send(self._in_flight, time.perf_counter_ns())

    def data_received(self, chunk: bytes) -> None:
        now = time.perf_counter_ns()
        text = self._rest + chunk
        lines = text.split(b"\n")
        self._rest = lines.pop()
        if not lines:
            return
        try:
            self._check(lines, text)
            # DESIGN puts the id first in every reply, where a slice finds it.
            starts = list(map(self._pending.pop, [line[ID] for line in lines]))
        except KeyError as unknown:
            self._fail(f"reply to no live request {unknown}, among {lines[0][:300]!r}")
            return
        self._tally.finished.append((now, starts))
        self._send(len(lines), now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost with {len(self._pending)} in flight: {exc}")

    def _check(self, lines: list[bytes], text: bytes) -> None:
        """Assert that each line is a reply, and parse one in SAMPLE_EVERY of them in full."""
        if text.count(REPLY, 0, len(text) - len(self._rest)) != len(lines):
            wrong = next((line for line in lines if line.count(REPLY) != 1), b"")
            self._fail(f"not a reply: {wrong[:400]!r}")
        self._until_sample -= len(lines)
        if self._until_sample <= 0:
            self._until_sample = SAMPLE_EVERY
            if not self._ring.holds(lines[-1]):
                self._fail(f"wrong reply: {lines[-1][:400]!r}")

    def _send(self, wanted: int, now: int) -> None:
        count = self._tally.allowance(wanted)
        if count:
            if self._position + count > self._ring.size:
                self._position = 0
            part = slice(self._position, self._position + count)
            self._position += count
            self._pending.update(dict.fromkeys(self._ring.ids[part], now))
            self._transport.write(b"".join(self._ring.lines[part]))
        elif not self._pending and not self.done.done():
            self.done.set_result(None)

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(LoadFailedError(reason))


@dataclass(frozen=True, slots=True)
class Plan:
    """Say how much load to make: `requests` in all where given, `seconds` otherwise."""

    connections: int = 1
    in_flight: int = 1
    seconds: float = 1.0
    warm_up_s: float = 0.2
    requests: int | None = None


async def run(socket: str, ring: Ring, plan: Plan) -> Outcome:
    """Put the planned load on a socket and return what came back."""
    loop = asyncio.get_running_loop()
    tally = Tally(plan.requests)
    callers = []
    for _ in range(plan.connections):
        _, caller = await loop.create_unix_connection(lambda: Caller(ring, tally, plan.in_flight), socket)
        callers.append(caller)
    start = time.perf_counter_ns()
    for caller in callers:
        caller.start()
    stop = await _last_reply(callers, tally, plan)
    if plan.requests is None:
        start += int(plan.warm_up_s * 1e9)
    return tally.outcome(start, stop)


async def _last_reply(callers: Sequence[Caller], tally: Tally, plan: Plan) -> int:
    """Wait until all is answered; return when the sending stopped, in nanoseconds."""
    stop = 0

    def end() -> None:
        nonlocal stop
        tally.stopped = True
        stop = time.perf_counter_ns()

    if plan.requests is None:
        asyncio.get_running_loop().call_later(plan.warm_up_s + plan.seconds, end)
    for caller in callers:
        await caller.done
    return stop or time.perf_counter_ns()


def ring_of(kind: str) -> Ring:
    """Render the ring of one kind, or of the kinds that change and read in turn (`mixed`)."""
    return Ring([KINDS[name] for name in (KINDS_MIXED if kind == "mixed" else (kind,))])


async def _prepared_run(socket: str, kind: str, plan: Plan) -> Outcome:
    if kind in {"get", "mixed"}:  # what is read must be there
        await run(socket, Ring([KINDS["set"]], KEYS), Plan(in_flight=64, requests=KEYS))
    return await run(socket, ring_of(kind), plan)


def main() -> None:
    """Run one load and print its outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("kind", choices=[*KINDS, "mixed"])
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--requests", type=int)
    options = parser.parse_args()
    plan = Plan(options.connections, options.in_flight, options.seconds, requests=options.requests)
    try:
        print(uvloop.run(_prepared_run(options.socket, options.kind, plan)).to_json())
    except (LoadFailedError, OSError) as failure:
        raise SystemExit(f"load failed: {failure}") from None


if __name__ == "__main__":
    main()
