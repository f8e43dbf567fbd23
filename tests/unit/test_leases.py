"""Leases over a real database: one holder, a token that only grows, and a fence within the unit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ksi_common.errors import FailedPrecondition, InvalidArgument
from ksi_daemon.database import Database, Transaction
from ksi_daemon.leases import DatabaseLeases, Lease, LeaseHeld, LeaseLost, LeaseStatistics


class FakeClock:
    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000

    def time_us(self) -> int:
        return self.now_us

    def monotonic(self) -> float:
        return self.now_us / 1e6

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@asynccontextmanager
async def opened(folder: Path, clock: FakeClock) -> AsyncIterator[Database]:
    database = Database(
        folder / "ksi.db",
        backups=folder / "backups",
        clock=clock,
        published=lambda *_: None,
        failed=lambda error: None,
    )
    async with database:
        database.start()
        yield database


@pytest.fixture
async def database(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Database]:
    async with opened(tmp_path, clock) as database:
        yield database


@pytest.fixture
def leases(database: Database, clock: FakeClock) -> DatabaseLeases:
    return DatabaseLeases(database, clock)


async def test_a_free_lease_is_given_with_its_first_token(leases: DatabaseLeases, clock: FakeClock) -> None:
    lease = await leases.acquire("session/a", "worker-1", 30)
    assert lease == Lease("session/a", "worker-1", 1, clock.now_us + 30_000_000)


async def test_another_owner_is_refused_and_told_who_has_it_and_how_long(
    leases: DatabaseLeases, clock: FakeClock
) -> None:
    await leases.acquire("session/a", "worker-1", 30)
    clock.advance(10)
    with pytest.raises(LeaseHeld) as refused:
        await leases.acquire("session/a", "worker-2", 30)
    assert isinstance(refused.value, FailedPrecondition)
    assert refused.value.details == {"reason": "lease_held", "holder": "worker-1", "retry_after_s": 20.0}
    assert refused.value.retryable


async def test_leases_of_other_names_are_free(leases: DatabaseLeases) -> None:
    await leases.acquire("session/a", "worker-1", 30)
    assert (await leases.acquire("session/b", "worker-2", 30)).token == 1


async def test_of_many_who_ask_at_once_one_gets_it(leases: DatabaseLeases) -> None:
    async def ask(owner: str) -> str | None:
        try:
            return (await leases.acquire("session/a", owner, 30)).owner
        except LeaseHeld:
            return None

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(f"worker-{n}")) for n in range(50)]
    assert [task.result() for task in tasks if task.result()] == ["worker-0"]


async def test_an_expired_lease_is_taken_over_with_a_higher_token(
    leases: DatabaseLeases, clock: FakeClock
) -> None:
    await leases.acquire("session/a", "worker-1", 30)
    clock.advance(30)
    lease = await leases.acquire("session/a", "worker-2", 30)
    assert (lease.owner, lease.token) == ("worker-2", 2)
    assert leases.statistics == LeaseStatistics(acquired=2, taken_over=1, released=0)


async def test_the_same_owner_gets_a_new_token_and_loses_the_earlier_one(leases: DatabaseLeases) -> None:
    first = await leases.acquire("session/a", "worker-1", 30)
    second = await leases.acquire("session/a", "worker-1", 30)
    assert (first.token, second.token) == (1, 2)
    with pytest.raises(LeaseLost):
        await leases.renew(first, 30)
    assert leases.statistics.taken_over == 0


async def test_a_released_lease_is_free_at_once_and_its_token_still_grows(leases: DatabaseLeases) -> None:
    assert await leases.release(await leases.acquire("session/a", "worker-1", 3600))
    assert (await leases.acquire("session/a", "worker-2", 30)).token == 2


async def test_releasing_twice_or_what_is_lost_changes_nothing(
    leases: DatabaseLeases, clock: FakeClock
) -> None:
    old = await leases.acquire("session/a", "worker-1", 30)
    clock.advance(31)
    new = await leases.acquire("session/a", "worker-2", 30)
    assert not await leases.release(old)
    assert await leases.release(new)
    assert not await leases.release(new)
    assert leases.statistics.released == 1


async def test_renewing_keeps_the_token_and_puts_the_end_off(
    leases: DatabaseLeases, clock: FakeClock
) -> None:
    lease = await leases.acquire("session/a", "worker-1", 30)
    clock.advance(20)
    renewed = await leases.renew(lease, 30)
    assert renewed == Lease("session/a", "worker-1", 1, clock.now_us + 30_000_000)
    clock.advance(20)
    with pytest.raises(LeaseHeld):
        await leases.acquire("session/a", "worker-2", 30)


async def test_what_expired_and_was_not_taken_can_be_renewed(
    leases: DatabaseLeases, clock: FakeClock
) -> None:
    lease = await leases.acquire("session/a", "worker-1", 30)
    clock.advance(100)
    assert (await leases.renew(lease, 30)).token == 1


@pytest.mark.parametrize("lost", ["released", "taken over"])
async def test_what_is_lost_cannot_be_renewed(leases: DatabaseLeases, clock: FakeClock, lost: str) -> None:
    lease = await leases.acquire("session/a", "worker-1", 30)
    if lost == "released":
        await leases.release(lease)
    else:
        clock.advance(31)
        await leases.acquire("session/a", "worker-2", 30)
    with pytest.raises(LeaseLost) as error:
        await leases.renew(lease, 30)
    assert error.value.details["reason"] == "lease_lost"


async def test_the_token_grows_across_restarts(tmp_path: Path, clock: FakeClock) -> None:
    async with opened(tmp_path, clock) as database:
        await DatabaseLeases(database, clock).acquire("session/a", "worker-1", 30)
    async with opened(tmp_path, clock) as database:
        leases = DatabaseLeases(database, clock)
        with pytest.raises(LeaseHeld):
            await leases.acquire("session/a", "worker-2", 30)
        clock.advance(31)
        assert (await leases.acquire("session/a", "worker-2", 30)).token == 2


async def test_a_stale_holder_cannot_write(
    database: Database, leases: DatabaseLeases, clock: FakeClock
) -> None:
    stale = await leases.acquire("session/a", "worker-1", 30)
    clock.advance(31)
    await leases.acquire("session/a", "worker-2", 30)

    def write(tx: Transaction) -> None:
        tx.execute("INSERT INTO meta VALUES ('written', 'by a stale holder')")
        leases.check_in(tx, stale)

    with pytest.raises(LeaseLost) as error:
        await database.write(write)
    assert error.value.details == {
        "reason": "lease_lost",
        "holder": "worker-2",
        "token": 1,
        "current": 2,
    }
    assert await database.read("SELECT value FROM meta WHERE name = 'written'") == []


async def test_the_holder_can_write_even_after_the_end_while_nobody_took_it(
    database: Database, leases: DatabaseLeases, clock: FakeClock
) -> None:
    lease = await leases.acquire("session/a", "worker-1", 30)
    clock.advance(31)
    await database.write(lambda tx: leases.check_in(tx, lease))


async def test_a_lease_taken_in_a_unit_that_fails_was_never_taken(
    database: Database, leases: DatabaseLeases
) -> None:
    def fail(tx: Transaction) -> None:
        leases.acquire_in(tx, "session/a", "worker-1", 30)
        raise FailedPrecondition("no")

    with pytest.raises(FailedPrecondition, match="no"):
        await database.write(fail)
    assert leases.statistics.acquired == 0
    assert (await leases.acquire("session/a", "worker-2", 30)).token == 1


async def test_a_lease_is_taken_and_given_back_with_what_the_unit_does(
    database: Database, leases: DatabaseLeases
) -> None:
    lease = await database.write(lambda tx: leases.acquire_in(tx, "session/a", "worker-1", 30))
    assert await database.write(lambda tx: leases.release_in(tx, lease))


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan")])
async def test_a_lease_for_no_time_is_refused(leases: DatabaseLeases, ttl_s: float) -> None:
    with pytest.raises(InvalidArgument):
        await leases.acquire("session/a", "worker-1", ttl_s)
