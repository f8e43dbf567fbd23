"""Answer `event:publish` once its row is on disk, and do nothing else: what a durable request costs at least.

As in KSI, one loop hands what a turn brought to one writer thread, whatever waits there is one commit, SQLite
is in WAL and syncs each commit, and ids are unique by an index. But nothing is validated, limited, watched,
digested or told to anyone, and there is one kind of request.

    python benchmarks/durable_floor.py /tmp/floor.sock /tmp/floor.db
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import time
from itertools import count
from queue import SimpleQueue
from typing import cast

import orjson
import uvloop

Job = tuple["Floor", bytes, str, str, str]
"""Who asks, the id of the frame, the id of the event, its name, its data."""

TABLE = (
    "CREATE TABLE log (seq INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, "
    "correlation_id TEXT NOT NULL, actor TEXT NOT NULL, time INTEGER NOT NULL, data TEXT NOT NULL)"
)
ROWS_AT_ONCE = 64
REPLY = (
    b'{"id":%b,"type":"reply","event":"event:publish","data":{"event_id":"%b","seq":%d,"cursor":"log-%d",'
    b'"deduplicated":false},"correlation_id":"%b"}\n'
)


class Writer(threading.Thread):
    """Write what waits, sync it, answer it."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._loop = loop
        self._seq = 0
        self._waiting: list[Job] = []
        """Of all clients, until the end of the turn."""
        self._queue: SimpleQueue[list[Job]] = SimpleQueue()
        self.numbers = count(1)

    def submit(self, job: Job) -> None:
        """Take a job along with what else this turn of the loop brings."""
        if not self._waiting:
            self._loop.call_soon(self._hand_over)
        self._waiting.append(job)

    def _hand_over(self) -> None:
        jobs, self._waiting = self._waiting, []
        self._queue.put(jobs)

    def run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", TABLE):
            connection.execute(statement)
        while True:
            jobs = self._queue.get()
            while not self._queue.empty():
                jobs += self._queue.get()
            first = self._seq
            connection.execute("BEGIN IMMEDIATE")
            for start in range(0, len(jobs), ROWS_AT_ONCE):
                self._insert(connection, jobs[start : start + ROWS_AT_ONCE])
            connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(answer, jobs, first)

    def _insert(self, connection: sqlite3.Connection, jobs: list[Job]) -> None:
        now = time.time_ns() // 1000
        values: list[object] = []
        for _, _, event_id, name, data in jobs:
            self._seq += 1
            values += (self._seq, event_id, name, event_id, "owner", now, data)
        connection.execute("INSERT INTO log VALUES " + ",".join(["(?,?,?,?,?,?,?)"] * len(jobs)), values)


class Floor(asyncio.Protocol):
    """A client."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._rest = b""
        self.out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, chunk: bytes) -> None:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            frame = orjson.loads(line)
            asked = frame["data"]
            event_id = f"019aa7c4b3d1f2e6{next(self._writer.numbers):010x}"
            data = orjson.dumps(asked["data"]).decode()
            self._writer.submit((self, orjson.dumps(frame["id"]), event_id, asked["event"], data))

    def flush(self) -> None:
        self._transport.write(b"".join(self.out))
        self.out.clear()


def answer(jobs: list[Job], seq: int) -> None:
    """Answer a group that is on disk, whose first row follows ``seq``: one write for each client."""
    clients = set()
    for client, ident, event_id, _, _ in jobs:
        seq += 1
        encoded = event_id.encode()
        client.out.append(REPLY % (ident, encoded, seq, seq, encoded))
        clients.add(client)
    for client in clients:
        client.flush()


async def serve(socket: str, database: str) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    writer = Writer(database, loop)
    writer.start()
    server = await loop.create_unix_server(lambda: Floor(writer), socket)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
