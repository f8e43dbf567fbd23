"""What is made of a session that an earlier daemon left open, where two look at it at once."""

import asyncio
from collections.abc import Sequence
from dataclasses import astuple
from types import SimpleNamespace
from typing import Any

from ksi_common.events.completion import Step
from ksi_completion.recovery import Recovery
from ksi_completion.responses import Recovered
from ksi_completion.rows import OPEN, Row
from ksi_completion.running import guarded
from ksi_completion.session_manager import Session
from ksi_daemon.plugin import Unavailable

ROW = Row(1, "r1", "s", "running", "", "mock", "m", None, 1.0, None, None, None, "e", "c", "a", 0, 0)


class Left:
    """Of a daemon that died: one completion at work, whose answer is in the file. It stands for all parts."""

    def __init__(self) -> None:
        self.reaped: Sequence[Any] = ()
        self.noted: list[str] = []
        self._is_open = True
        self._lock = asyncio.Lock()
        self._refusals = iter([Unavailable("the disk is full", reason="store_unavailable")])

    async def read(self, query: str, _: Any = ()) -> Sequence[Any]:
        if query == OPEN:
            return [(1, "r1", "s", "mock", 0, None, 0)]
        found = [astuple(ROW)] if self._is_open else []
        await asyncio.sleep(0)
        return found

    async def write_apart(self, _: Any) -> None:
        for refusal in self._refusals:
            raise refusal

    def writing(self, _: str) -> asyncio.Lock:
        return self._lock

    async def find(self, _: str) -> Session:
        return Session()

    async def recover(self, *_: Any) -> Recovered:
        line: Any = SimpleNamespace(request_id="r1")
        written: Any = None
        return Recovered(adopted=((line, written),) if self._is_open else ())

    async def commit(self, *_: Any) -> Step:
        await asyncio.sleep(0)
        self._is_open = False
        return Step(type="result", request_id="r1", session_id="s")

    async def note(self, row: Row, _: Any) -> Row:
        self.noted.append(row.request_id)
        return row


async def test_what_one_who_was_broken_off_has_ended_is_not_taken_up_by_the_next() -> None:
    """It was told that it is tried again, behind its result, and its provider was asked once more."""
    left: Any = Left()
    recovery = Recovery(database=left, responses=left, sessions=left, ending=left, tries=left, processes=left)
    await recovery.open_entries()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(guarded(recovery.mend("s")))
        second = tasks.create_task(recovery.mend("s"))
    assert isinstance(first.result(), Unavailable)
    assert (second.result(), left.noted) == ({}, [])
