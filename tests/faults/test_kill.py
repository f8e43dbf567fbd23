"""What was acknowledged survives kill -9, whenever it comes."""

import random
from asyncio import TaskGroup
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

import orjson
import pytest

from ksi_common.async_db import AsyncSQLiteDB
from tests.faults.twins import faulty
from tests.support.audit import Audit
from tests.support.daemon_process import DaemonProcess
from tests.support.pipeline import call_line, pipeline, publish_many
from tests.support.scale import scaled

ROUNDS = scaled(8, 100)
PUBLISHERS = 16
MOST = scaled(1000, 3000)
"""Events acknowledged in one round."""


class Publisher:
    """Publish under ids of its own; what has no answer when the daemon dies is published again."""

    def __init__(self, name: str, acknowledged: dict[str, int]) -> None:
        self.name = name
        self.sent = 0
        self._acknowledged = acknowledged
        self._unanswered: dict[str, bytes] = {}

    async def publish(self, daemon: DaemonProcess, number: int | None, kill_at: int) -> None:
        """Publish so many, or until the daemon is gone; kill it when ``kill_at`` are acknowledged in all."""

        def heard(answer: bytes) -> None:
            reply = orjson.loads(answer)
            assert reply["type"] == "reply", reply
            del self._unanswered[reply["id"]]
            self._acknowledged[reply["id"]] = reply["data"]["seq"]
            if len(self._acknowledged) == kill_at:
                daemon.kill_now()

        with suppress(ConnectionError):
            await pipeline(daemon.socket, islice(self._lines(), number), heard, window=16)

    def _lines(self) -> Iterator[bytes]:
        yield from tuple(self._unanswered.values())
        while True:
            ident = f"{self.name}-{self.sent}"
            told = {"event": "demo:told", "data": {"n": self.sent}, "event_id": ident}
            self._unanswered[ident] = call_line("event:publish", told, ident)
            self.sent += 1
            yield self._unanswered[ident]


async def kill_and_audit(daemon: DaemonProcess, rounds: int) -> int:
    """Kill a daemon ``rounds`` times and look at its log each time; give how much it acknowledged.

    Every other time it is killed at work, and every other time at the moment when it has acknowledged
    all that was asked: no later commit can make up for one that was owed.
    """
    draw = random.Random(5)
    acknowledged: dict[str, int] = {}
    publishers = [Publisher(f"p{number}", acknowledged) for number in range(PUBLISHERS)]
    audit = Audit(daemon.database)
    for number in range(rounds):
        each = draw.randint(1, MOST // PUBLISHERS) if number % 2 else None
        kill_at = len(acknowledged) + (each * PUBLISHERS if each else draw.randint(1, MOST))
        async with TaskGroup() as tasks:
            for publisher in publishers:
                tasks.create_task(publisher.publish(daemon, each, kill_at))
        await daemon.wait()
        await daemon.start()
        await audit.read_on()
        audit.expect(acknowledged)
    await audit.check_integrity()
    sent = {f"{publisher.name}-{n}" for publisher in publishers for n in range(publisher.sent)}
    assert {ident for ident in audit.seqs if ident.startswith("p")} <= sent
    return len(acknowledged)


@pytest.mark.slow
@pytest.mark.timeout(240 + 3 * ROUNDS)
async def test_no_acknowledged_event_is_lost_or_doubled_by_kills() -> None:
    async with DaemonProcess() as daemon:
        acknowledged = await kill_and_audit(daemon, ROUNDS)
    assert acknowledged >= ROUNDS


@pytest.mark.timeout(240)
async def test_a_daemon_that_acknowledges_before_it_commits_is_found_out() -> None:
    async with faulty("acknowledge_before_commit") as daemon:
        with pytest.raises(AssertionError, match="acknowledged events lost"):
            await kill_and_audit(daemon, 6)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("DELETE FROM log WHERE seq = 3", "seq 4 follows 2"),
        ("UPDATE log SET data = '{\"n\":9}' WHERE seq = 3", "says something else than its digest"),
        ("UPDATE log SET chain = zeroblob(32) WHERE seq = 3", "the chain breaks at 3"),
    ],
)
async def test_damage_to_the_log_is_found_out(damage: str, finding: str) -> None:
    async with DaemonProcess() as daemon:
        await publish_many(daemon.socket, "demo:told", 5)
        await daemon.stop()
        async with AsyncSQLiteDB(daemon.database) as database:
            await database.execute(damage)
        with pytest.raises(AssertionError, match=finding):
            await Audit(daemon.database).read_on()
