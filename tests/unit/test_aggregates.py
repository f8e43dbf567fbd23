"""A stream is folded from its last snapshot on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_common.errors import DataLoss, FailedPrecondition
from ksi_common.messages import Message, Notification
from ksi_daemon.database import Database, Transaction
from ksi_daemon.eventlog import EventLog
from ksi_daemon.projections import Aggregates
from tests.support.databases import Heard, opened, writable

folded: list[int] = []
"""What ``account`` was given, by every load; emptied by each test."""


class Paid(Notification, event="bank:paid"):
    amount: int


class Closed(Notification, event="bank:closed"):
    pass


class Account(Message):
    balance: int = 0
    open: bool = True


def account(state: Account, event: Paid | Closed) -> Account:
    if isinstance(event, Closed):
        return Account(balance=state.balance, open=False)
    folded.append(event.amount)
    return Account(balance=state.balance + event.amount, open=state.open)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    folded.clear()
    async with opened(tmp_path, Heard()) as made:
        yield made


@pytest.fixture
def aggregates(database: Database) -> Aggregates:
    return Aggregates(database, EventLog(database))


async def pay(database: Database, *amounts: int, stream: str = "account/1") -> None:
    def unit(tx: Transaction) -> None:
        for amount in amounts:
            tx.tell(Paid(amount=amount), stream=stream)

    await database.write(unit)


async def test_a_stream_is_folded(database: Database, aggregates: Aggregates) -> None:
    await pay(database, 1, 2)
    await pay(database, 40, stream="account/2")
    await database.write(lambda tx: tx.tell_raw("other:event", b"{}", stream="account/1"))
    await database.write(lambda tx: tx.tell(Closed(), stream="account/1"))
    loaded = await aggregates.load(account, "account/1")
    assert (loaded.state, loaded.version) == (Account(balance=3, open=False), 4)


async def test_a_stream_that_has_nothing_is_as_it_begins(aggregates: Aggregates) -> None:
    loaded = await aggregates.load(account, "account/9")
    assert (loaded.state, loaded.version) == (Account(), 0)


async def test_the_version_loaded_is_the_one_to_expect(database: Database, aggregates: Aggregates) -> None:
    await pay(database, 1)
    loaded = await aggregates.load(account, "account/1")
    await pay(database, 1)
    with pytest.raises(FailedPrecondition):
        await database.write(
            lambda tx: tx.tell(Paid(amount=1), stream="account/1", expected_version=loaded.version)
        )


async def test_from_a_snapshot_only_what_came_since_is_folded(
    database: Database, aggregates: Aggregates
) -> None:
    await pay(database, *range(10))
    await aggregates.load(account, "account/1", snapshot_every=10)
    folded.clear()
    await pay(database, 5)
    loaded = await aggregates.load(account, "account/1", snapshot_every=10)
    assert (loaded.state.balance, loaded.version, folded) == (50, 11, [5])


async def test_a_stream_is_loaded_where_no_snapshot_of_it_can_be_stored(
    database: Database, aggregates: Aggregates
) -> None:
    await pay(database, *range(10))
    writable(database, is_so=False)
    assert (await aggregates.load(account, "account/1", snapshot_every=10)).version == 10
    writable(database, is_so=True)
    folded.clear()
    assert (await aggregates.load(account, "account/1", snapshot_every=10)).version == 10
    assert len(folded) == 10


async def test_a_snapshot_of_other_code_is_not_used(database: Database, aggregates: Aggregates) -> None:
    await pay(database, 1, 2)
    await aggregates.load(account, "account/1", snapshot_every=1)
    folded.clear()
    await aggregates.load(account, "account/1", version=2, snapshot_every=1)
    assert folded == [1, 2]


async def test_a_stream_of_many_pages_is_folded_whole(database: Database, aggregates: Aggregates) -> None:
    await pay(database, *[1] * 2500)
    loaded = await aggregates.load(account, "account/1")
    assert (loaded.state.balance, loaded.version) == (2500, 2500)


async def test_a_stream_without_its_beginning_is_refused(database: Database, aggregates: Aggregates) -> None:
    await pay(database, 1, 2, 3)

    def compact(tx: Transaction) -> None:
        tx.execute("DELETE FROM log WHERE version = 1")
        tx.execute("INSERT INTO compacted_streams VALUES ('account/1', 1)")

    await database.write(compact)
    with pytest.raises(DataLoss, match="lost its versions up to 1"):
        await aggregates.load(account, "account/1")


@pytest.mark.parametrize("version", [1, 2])
async def test_a_stream_that_has_lost_a_row_is_refused(
    database: Database, aggregates: Aggregates, version: int
) -> None:
    await pay(database, 1, 2, 3)
    await database.write(lambda tx: tx.execute("DELETE FROM log WHERE version = ?", (version,)).rowcount)
    with pytest.raises(DataLoss, match=f"version {version} of account/1 is not there"):
        await aggregates.load(account, "account/1")
