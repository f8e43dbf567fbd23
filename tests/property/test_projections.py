"""Whatever the history, and wherever the process ends: what a projection has is what the log makes."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_common.clock import SystemClock
from ksi_common.events.state import Changed, NamespaceCleared, Removed
from ksi_common.messages import Message, Notification
from ksi_daemon.catalog import Catalog
from ksi_daemon.database import Database
from ksi_daemon.eventlog import EventLog
from ksi_daemon.hub import Hub
from ksi_daemon.projections import Projections, Rows, projection, table_projection
from ksi_daemon.projections.declaration import declaration_of
from ksi_daemon.testing import PATIENCE_S
from tests.support.databases import Heard, opened
from tests.support.scale import scaled
from tests.support.waiting import eventually

Names = st.sampled_from(("a", "b", "c"))
events = st.one_of(
    st.builds(Changed, namespace=Names, key=Names, value=st.integers(0, 9)),
    st.builds(Removed, namespace=Names, key=Names),
    st.builds(NamespaceCleared, namespace=Names, keys_deleted=st.just(0)),
)
steps = st.one_of(
    st.lists(events, min_size=1, max_size=30),
    st.sampled_from(("kill", "rebuild", "next_version")),
)
"""What is told together; or what happens to the process."""


class Count(Message):
    events: int = 0
    last: str = ""


def _count(state: Count, event: Changed | Removed | NamespaceCleared) -> Count:
    return Count(events=state.events + 1, last=event.namespace)


def _values(rows: Rows, event: Changed | Removed | NamespaceCleared) -> None:
    match event:
        case Changed():
            rows.put(namespace=event.namespace, key=event.key, value=event.value)
        case Removed():
            rows.delete(namespace=event.namespace, key=event.key)
        case NamespaceCleared():
            rows.delete(namespace=event.namespace)


COLUMNS = "namespace TEXT, key TEXT, value INTEGER, PRIMARY KEY (namespace, key)"


class Process:
    """A process that dies and comes back: its database stays, its memory does not."""

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub
        self._running: list[asyncio.Task[None]] = []

    async def start(self, version: int, tasks: asyncio.TaskGroup) -> None:
        self.projections = Projections(
            self._database, EventLog(self._database), self._hub, SystemClock(), Catalog()
        )
        declare = (
            projection(version=version, name="count"),
            table_projection(COLUMNS, version=version, name="values"),
        )
        marked = declare[0](_count), declare[1](_values)
        self.projections.take(declaration_of(function, "test") for function in marked)
        self._running = [tasks.create_task(each.run()) for each in self.projections.all]

    async def kill(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.wait(self._running)

    async def rebuilt(self) -> bool:
        return not any(each.shadow for each in self.projections.all)

    async def caught_up(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            for each in self.projections.all:
                await each.wait_for(self._hub.head)


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[Process, Database, Hub]]:
    hub = Hub(asyncio.get_running_loop().call_soon)
    async with opened(folder, Heard(), published=hub.publish) as database:
        yield Process(database, hub), database, hub


async def tell(database: Database, told: Sequence[Notification]) -> None:
    def unit(tx: Any) -> None:
        for event in told:
            tx.tell(event)

    await database.write(unit)


def expected(history: Sequence[Notification]) -> tuple[Mapping[tuple[str, str], int], int]:
    """Fold a history with nothing of ours."""
    rows: dict[tuple[str, str], Any] = {}
    for event in history:
        match event:
            case Changed():
                rows[event.namespace, event.key] = event.value
            case Removed():
                rows.pop((event.namespace, event.key), None)
            case NamespaceCleared():
                rows = {key: value for key, value in rows.items() if key[0] != event.namespace}
    return rows, len(history)


async def seen(projections: Projections) -> tuple[Mapping[tuple[str, str], int], int]:
    """Read what readers see."""
    rows = await projections.rows(_values, "SELECT namespace, key, value FROM {table}")
    count = await projections.document(_count)
    return {(row["namespace"], row["key"]): row["value"] for row in rows}, count.events if count else 0


async def live_through(folder: Path, history: Sequence[Sequence[Notification] | str]) -> None:
    told: list[Notification] = []
    version = 1
    async with process(folder) as (life, database, _), asyncio.TaskGroup() as tasks:
        await life.start(version, tasks)
        for step in history:
            if step == "rebuild":
                for each in life.projections.all:
                    await each.rebuild()
            elif isinstance(step, str):
                await life.kill()
                version += step == "next_version"
                await life.start(version, tasks)
            else:
                await tell(database, step)
                told += step
        await life.caught_up()
        for _ in range(2):  # the second time with nothing in memory
            await eventually(life.rebuilt)
            assert await seen(life.projections) == expected(told)
            assert {each.live.version for each in life.projections.all if each.live} == {version}
            await life.kill()
            await life.start(version, tasks)
            await life.caught_up()
        await life.kill()


@settings(max_examples=scaled(40, 500))
@given(history=st.lists(steps, max_size=12))
def test_any_history_with_kills_and_rebuilds_is_what_the_log_makes(
    history: Sequence[Sequence[Notification] | str],
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ksi-"))
    try:
        asyncio.run(live_through(folder, history))
    finally:
        shutil.rmtree(folder)


def test_twin_a_checkpoint_that_does_not_commit_with_the_state_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the state of a batch commits and its checkpoint is lost, events count twice, and it is seen."""
    monkeypatch.setattr("ksi_daemon.projections.folding.checkpoint", lambda *_: None)
    history: list[Sequence[Notification] | str] = [[Changed(namespace="a", key="a", value=1)], "kill"]
    with pytest.raises(BaseExceptionGroup) as found:
        asyncio.run(live_through(tmp_path, history))
    assert found.group_contains(AssertionError)
