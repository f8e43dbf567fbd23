"""Health is that of the worst part, looked at once a second at most; a part that is stuck says so."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_common.events.system import Check, Checks, Status
from ksi_daemon import health as module
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.database import Database
from ksi_daemon.eventlog import EventLog
from ksi_daemon.health import FRESH_S, MAX_SAID, Health
from ksi_daemon.hub import Hub
from ksi_daemon.lifecycle import Lifecycle
from ksi_daemon.projections import Projections
from ksi_daemon.settings import Limits, Settings
from ksi_daemon.subscriptions import Subscriptions
from ksi_daemon.testing import FakeClock

Make = Callable[..., Health]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(plugins={"shop": Plugin("shop", "shop.py")})


@pytest.fixture
async def make(database: Database, clock: FakeClock, catalog: Catalog) -> Make:
    """Give what makes the health of a daemon."""
    hub = Hub(asyncio.get_running_loop().call_soon)
    hub.log_id = database.log_id
    log = EventLog(database)
    subscriptions = Subscriptions(hub, log)
    projections = Projections(database, log, hub, clock, catalog)

    def make(**limits: Any) -> Health:
        settings = Settings(limits=Limits(**limits))
        return Health(database, subscriptions, catalog, projections, settings, clock)

    return make


def answering(answer: Awaitable[Any]) -> Callable[..., Awaitable[Any]]:
    async def read(*_: object) -> Any:
        return await answer

    return read


async def test_what_a_plugin_says_of_itself_is_part_of_the_health_of_plugins(
    make: Make, clock: FakeClock
) -> None:
    health = make()
    said: list[Status] = ["healthy"]
    health.watch("shop", lambda: Check(status=said[-1], detail={"open": 1}))
    found = (await health.checks()).plugins
    assert found.status == "healthy"
    assert found.detail["watched"] == {"shop": {"status": "healthy", "detail": {"open": 1}}}
    said.append("unhealthy")
    assert (await health.checks()).plugins.status == "healthy"  # it is asked once a second
    clock.advance(FRESH_S + 0.1)
    assert (await health.checks()).plugins.status == "unhealthy"


@pytest.mark.parametrize(
    ("watch", "error"),
    [
        (lambda: Check(status="healthy", detail={"rate": 1 // 0}), "ZeroDivisionError"),
        (lambda: None, "None"),
        (lambda: {"": Check(status="healthy")}["x" * 10_000], "KeyError"),
    ],
    ids=["raises", "gives no check", "says much"],
)
async def test_a_plugin_that_fails_to_say_how_it_is_is_unhealthy(
    make: Make, watch: Callable[[], Check], error: str
) -> None:
    health = make()
    health.watch("shop", watch)
    found = (await health.checks()).plugins
    assert found.status == "unhealthy"
    assert error in str(found.detail["watched"])[:MAX_SAID]
    assert len(str(found.detail["watched"])) < 2 * MAX_SAID


async def test_a_plugin_that_does_not_run_is_not_asked(make: Make, catalog: Catalog) -> None:
    health = make()
    health.watch("shop", lambda: Check(status="unhealthy"))
    catalog.plugins["shop"].status = "quarantined"
    found = (await health.checks()).plugins
    assert (found.status, "watched" in found.detail) == ("degraded", False)


async def test_a_daemon_whose_parts_are_well_is_healthy(make: Make) -> None:
    checks = await make(disk_free_bytes=0).checks()
    statuses = {name: check["status"] for name, check in checks.model_dump().items()}
    assert statuses == dict.fromkeys(
        ("database", "disk_space", "message_queue", "plugins", "providers"), "healthy"
    )


async def test_checks_are_kept_for_a_second(make: Make, clock: FakeClock) -> None:
    health = make()
    first = await health.checks()
    clock.advance(FRESH_S)
    assert await health.checks() is first


async def test_checks_older_than_a_second_are_made_anew(make: Make, clock: FakeClock) -> None:
    health = make()
    first = await health.checks()
    clock.advance(FRESH_S + 0.01)
    assert await health.checks() is not first


async def test_who_asks_while_checks_are_made_gets_those(make: Make) -> None:
    health = make()
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(health.checks()) for _ in range(10)]
    assert len({id(task.result()) for task in asked}) == 1


async def test_a_full_disk_degrades(make: Make) -> None:
    check = (await make(disk_free_bytes=2**53).checks()).disk_space
    assert check.status == "degraded"
    assert check.detail["free_bytes"] > 0  # type: ignore[operator]


async def test_a_disk_that_does_not_answer_is_unhealthy(
    make: Make, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "path", Path("/nowhere/at/all"))
    check = (await make().checks()).disk_space
    assert check.status == "unhealthy"
    assert "No such file" in str(check.detail["error"])


async def test_a_stuck_database_is_unhealthy(
    make: Make, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    monkeypatch.setattr(database, "read", answering(asyncio.Event().wait()))
    check = (await make().checks()).database
    assert check == Check(status="unhealthy", detail={"error": "no answer within 0.01 s"})


async def test_a_long_queue_degrades(make: Make, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        waiting = 10_000

    monkeypatch.setattr(type(database), "statistics", Waiting())
    assert (await make().checks()).message_queue.status == "degraded"


@pytest.mark.parametrize("status", ["refused", "quarantined"])
async def test_a_plugin_that_is_not_loaded_degrades_and_is_named(
    make: Make, catalog: Catalog, status: Any
) -> None:
    catalog.plugins["room"] = Plugin("room", "room.py", status=status)
    check = (await make().checks()).plugins
    assert check == Check(status="degraded", detail={"loaded": 1, "not_loaded": ["room"]})


def checks(**statuses: Status) -> Checks:
    parts = ("database", "disk_space", "message_queue", "plugins", "providers")
    return Checks(**{part: Check(status=statuses.get(part, "healthy")) for part in parts})


@pytest.fixture
async def lifecycle() -> Lifecycle:
    return Lifecycle("1.0", 0, 0, asyncio.get_running_loop().create_future())


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (checks(), "healthy"),
        (checks(disk_space="degraded"), "degraded"),
        (checks(disk_space="degraded", database="unhealthy"), "unhealthy"),
        (checks(disk_space="unhealthy", database="degraded"), "unhealthy"),
        (checks(providers="unhealthy"), "unhealthy"),
    ],
)
async def test_the_status_is_that_of_the_worst_part(
    make: Make, lifecycle: Lifecycle, made: Checks, status: Status
) -> None:
    assert make().summary(made, lifecycle, 1.0, 0).status == status


async def test_the_summary_says_who_answers(make: Make, lifecycle: Lifecycle) -> None:
    summary = make().summary(checks(), lifecycle, 2.5, 3)
    assert (summary.version, summary.pid) == ("1.0", os.getpid())
    assert (summary.uptime_s, summary.active_connections) == (2.5, 3)


async def test_a_summary_in_which_nothing_changed_is_given_again(make: Make, lifecycle: Lifecycle) -> None:
    health, made = make(), checks()
    first = health.summary(made, lifecycle, 1.0, 0)
    assert health.summary(made, lifecycle, 1.0, 0) is first


@pytest.mark.parametrize(
    "facts", [(checks(plugins="degraded"), 1.0, 0), (checks(), 1.1, 0), (checks(), 1.0, 1)]
)
async def test_a_summary_in_which_something_changed_is_made_anew(
    make: Make, lifecycle: Lifecycle, facts: tuple[Checks, float, int]
) -> None:
    health = make()
    health.summary(checks(), lifecycle, 1.0, 0)
    made, uptime_s, connections = facts
    summary = health.summary(made, lifecycle, uptime_s, connections)
    assert (summary.checks, summary.uptime_s, summary.active_connections) == facts
