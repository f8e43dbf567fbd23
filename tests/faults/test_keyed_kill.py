"""A client that asks each keyed request several times, through kills: each effect once, and one answer."""

import random
from asyncio import Event, TaskGroup
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from ksi_client import AsyncClient
from ksi_common.errors import FailedPrecondition
from tests.faults.twins import faulty
from tests.support import keyed
from tests.support.audit import Audit
from tests.support.daemon_process import DaemonProcess
from tests.support.scale import scaled

PLUGIN = Path(keyed.__file__).read_text()
KILLS = scaled(3, 20)
ASKERS = 16
ENOUGH_KILLS = 10
"""Of which one at least comes between the tries of a request, or a commit and its answer."""
BETWEEN = 150
"""Requests answered between two kills, at most."""

Answers = list[int | None]
"""The number that each try was answered with; None: it was done, and the answer was lost in a kill."""


class Asker:
    """Ask request after request, each one to three times, at once or one after another."""

    def __init__(self, seed: int, idents: Iterator[int]) -> None:
        self.answers: dict[str, Answers] = {}
        self._draw = random.Random(seed)
        self._idents = idents

    async def ask(self, client: AsyncClient) -> None:
        """Ask one request."""
        ident = f"r{next(self._idents)}"
        way = self._draw.choice(("unit", "later"))
        answers = self.answers[ident] = []
        tries = self._draw.randint(1, 3)
        if self._draw.random() < 0.5:
            async with TaskGroup() as tasks:
                for _ in range(tries):
                    tasks.create_task(self._try(client, ident, way, answers))
        else:
            for _ in range(tries):
                await self._try(client, ident, way, answers)

    async def _try(self, client: AsyncClient, ident: str, way: str, answers: Answers) -> None:
        """Ask; the client asks again by itself where the daemon dies."""
        try:
            reply = await client.call_raw("keyed:do", {"ident": ident, "way": way}, key=ident, timeout_s=120)
        except FailedPrecondition as error:
            if (error.details["reason"], way) != ("outcome_unknown", "later"):
                raise AssertionError("an answer that the unit gave was lost") from error
            answers.append(None)
        else:
            answers.append(reply["number"])


async def retry_and_audit(daemon: DaemonProcess, kills: int) -> int:
    """Kill a daemon so many times while askers ask; check what they got; give how much that was."""
    daemon.add_plugin("keyed", PLUGIN)
    draw, idents, answered = random.Random(7), count(), Counter[str]()
    askers = [Asker(number, idents) for number in range(ASKERS)]
    enough, due = Event(), Event()
    kill_at = draw.randint(ASKERS, BETWEEN)

    async def work(asker: Asker, client: AsyncClient) -> None:
        while not enough.is_set():
            await asker.ask(client)
            answered["all"] += 1
            if answered["all"] >= kill_at:
                due.set()

    async with daemon:
        async with AsyncClient(daemon.socket, connect_timeout_s=120) as client, TaskGroup() as tasks:
            for asker in askers:
                tasks.create_task(work(asker, client))
            for _ in range(kills):
                await due.wait()
                await daemon.kill()
                due.clear()
                kill_at = answered["all"] + draw.randint(ASKERS, BETWEEN)
                await daemon.start()
            await due.wait()
            enough.set()
        return await check(daemon, {ident: one for asker in askers for ident, one in asker.answers.items()})


async def check(daemon: DaemonProcess, answers: dict[str, Answers]) -> int:
    """Check that each request took effect once and had one answer; give how many there were."""
    events = await Audit(daemon.database).read_on()
    effects = Counter(_ident(event.data) for event in events if event.event == "keyed:counted")
    assert effects == dict.fromkeys(answers, 1), "not each effect is there once"
    numbers = [set(one) - {None} for one in answers.values()]
    assert all(len(one) <= 1 for one in numbers), "tries of one request had several answers"
    assert len(set().union(*numbers)) == sum(map(len, numbers)), "two requests had the same answer"
    return len(answers)


def _ident(data: bytes) -> str:
    return str(keyed.Counted.model_validate_json(data).ident)


@pytest.mark.slow
@pytest.mark.timeout(240 + 10 * KILLS)
async def test_each_keyed_request_takes_effect_once_through_retries_and_kills() -> None:
    assert await retry_and_audit(DaemonProcess(), KILLS) > KILLS


@pytest.mark.timeout(240)
async def test_a_daemon_that_forgets_keys_is_found_out() -> None:
    with pytest.raises(AssertionError, match="not each effect is there once"):
        await retry_and_audit(faulty("forget_keys"), 1)


@pytest.mark.timeout(240)
async def test_a_daemon_that_forgets_answers_is_found_out() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await retry_and_audit(faulty("forget_answers"), ENOUGH_KILLS)
    assert caught.group_contains(AssertionError, match="an answer that the unit gave was lost")
