"""However often the daemon is killed, its graph is what its log makes again, and nothing owed is missing."""

import random
from asyncio import TaskGroup
from collections.abc import Iterator
from contextlib import suppress

import orjson
import pytest

from ksi_common.async_db import AsyncSQLiteDB
from tests.support.daemon_process import DaemonProcess
from tests.support.databases import looking, rows
from tests.support.graph_model import Contents, contents, replayed_log
from tests.support.pipeline import call_line, expect_reply, pipeline
from tests.support.scale import scaled

ROUNDS = scaled(4, 50)
CLIENTS = 4
MOST = scaled(300, 1500)
"""Answers of one round, before the kill."""


class Changer:
    """Change a graph at random, in a corner of its own; remember what was acknowledged."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.draw = random.Random(seed)
        self.sent = 0
        self.created: set[str] = set()
        """Entities whose creation was acknowledged."""
        self.deleted: set[str] = set()
        """Entities whose deletion was sent: they may be gone, whatever was heard of it."""

    def lines(self) -> Iterator[bytes]:
        while True:
            self.sent += 1
            event, data = self._next()
            yield call_line(f"state:{event}", data, f"{event}/{data.get('id', '')}/{self.sent}")

    def heard(self, ident: str) -> None:
        event, entity, _ = ident.split("/")
        if event == "entity:create":
            self.created.add(entity)

    def _next(self) -> tuple[str, dict[str, object]]:
        draw = self.draw
        known = f"{self.name}-{draw.randint(1, self.sent)}"
        other = f"{self.name}-{draw.randint(1, self.sent)}"
        choice = draw.random()
        if choice < 0.5:
            properties = {"n": self.sent, "text": "x" * draw.randint(0, 50), "half": draw.random()}
            return "entity:create", {"type": "t", "id": f"{self.name}-{self.sent}", "properties": properties}
        if choice < 0.7:
            return "entity:update", {"id": known, "properties": {"n": -self.sent}, "remove": ["text"]}
        if choice < 0.95:
            return "relationship:create", {"type": "r", "from": known, "to": other, "properties": {"w": 0.5}}
        self.deleted.add(known)
        return "entity:delete", {"id": known}


async def change(changer: Changer, daemon: DaemonProcess, kill_after: list[int]) -> None:
    """Change until the daemon is gone; kill it when all together have heard so much."""

    def heard(answer: bytes) -> None:
        reply = orjson.loads(answer)
        if reply["type"] == "reply":
            changer.heard(reply["id"])
        kill_after[0] -= 1
        if kill_after[0] == 0:
            daemon.kill_now()

    with suppress(ConnectionError):
        await pipeline(daemon.socket, changer.lines(), heard, window=16)


@pytest.mark.timeout(scaled(240, 1200))
async def test_the_graph_of_a_killed_daemon_is_what_its_log_makes_again() -> None:
    draw = random.Random(11)
    changers = [Changer(f"c{number}", number) for number in range(CLIENTS)]
    async with DaemonProcess() as daemon:
        for _ in range(ROUNDS):
            kill_after = [draw.randint(MOST // 3, MOST)]
            async with TaskGroup() as tasks:
                for changer in changers:
                    tasks.create_task(change(changer, daemon, kill_after))
            await daemon.wait()
            assert replayed_log(daemon.database) == live(daemon)
            there = {ident for (ident,) in rows(daemon.database, "SELECT id FROM entities")}
            owed = {ident for changer in changers for ident in changer.created - changer.deleted}
            assert owed <= there
            await daemon.start()
        assert live(daemon)["relationship_properties"]
        assert sum(len(changer.deleted) for changer in changers) > 0
        assert await daemon.stop() == 0


async def test_a_row_that_the_log_does_not_make_is_found_out() -> None:
    """The twin: the comparison fails where one property of one entity is another."""
    async with DaemonProcess() as daemon:
        entity = {"type": "t", "id": "a", "properties": {"n": 1}}
        await pipeline(daemon.socket, [call_line("state:entity:create", entity)], expect_reply)
        assert await daemon.stop() == 0
        assert replayed_log(daemon.database) == live(daemon)
        async with AsyncSQLiteDB(daemon.database) as database:
            await database.execute("UPDATE entity_properties SET value = 1.0")
        assert replayed_log(daemon.database) != live(daemon)


def live(daemon: DaemonProcess) -> Contents:
    with looking(daemon.database) as connection:
        return contents(connection)
