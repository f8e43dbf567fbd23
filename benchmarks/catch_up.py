"""Subscribe from the beginning of the log and count the events until so many came.

python benchmarks/catch_up.py var/run/daemon.sock --events 200000
"""

from __future__ import annotations

import argparse
import socket
import time

from benchmarks.load import LoadFailedError
from benchmarks.outcome import Outcome, Usage

SUBSCRIBE = '{"id":"s","event":"event:subscribe","data":{"patterns":["%s"],"start":"beginning"}}\n'
CAUGHT_UP = b'"type":"caught_up"'
ITEM = b'"type":"item"'


def measure(address: str, events: int, pattern: str) -> Outcome:
    """Read `events` items as fast as they come; an item is a line, and every line must be one."""
    began = Usage()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        start = time.perf_counter()
        connection.sendall((SUBSCRIBE % pattern).encode())
        read_lines(connection, events)
        took_s = time.perf_counter() - start
    busy = began.busy()
    return Outcome(events / took_s, took_s * 1e6, took_s * 1e6, events, busy)


def read_lines(connection: socket.socket, events: int) -> None:
    """Read until `events` items came."""
    seen, rest = 0, b""
    while seen < events:
        chunk = connection.recv(1 << 18)
        text = rest + chunk
        whole = text.rfind(b"\n") + 1
        rest = text[whole:]
        items = text.count(ITEM, 0, whole)
        marks = text.count(CAUGHT_UP, 0, whole)
        if not chunk or items + marks != text.count(b"\n", 0, whole):
            raise LoadFailedError(f"after {seen} items: {text[:400]!r}")
        seen += items


def main() -> None:
    """Catch up once and print the outcome as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--pattern", default="bench:told", help="of the events' names")
    options = parser.parse_args()
    try:
        print(measure(options.address, options.events, options.pattern).to_json())
    except (LoadFailedError, OSError) as failure:
        raise SystemExit(f"catch-up failed: {failure}") from None


if __name__ == "__main__":
    main()
