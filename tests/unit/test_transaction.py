"""What a unit tells has the ids, the cause and the limits that it should have."""

import asyncio

import pytest
from pydantic import Field

from ksi_common.envelope import StoredEvent, event_context
from ksi_common.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from ksi_common.messages import Notification, Rendered
from ksi_daemon.database import Database, Transaction
from ksi_daemon.database.transaction import MAX_EVENT_DATA, MAX_HOPS
from ksi_daemon.event_versions import version_of
from tests.support.databases import Heard, envelope, group, rows, tell


class Told(Notification, event="demo:told"):
    n: int
    kind_: str = Field("k", alias="kind")


class Grown(Notification, event="demo:grown", version=2):
    n: int


class Passing(Notification, event="demo:passing", ephemeral=True):
    pass


async def test_a_declared_event_is_told_under_its_name_on_the_wire(database: Database) -> None:
    told = await database.write(lambda tx: tx.tell(Told(n=1), stream="s/1"))
    assert (told.event, told.data) == ("demo:told", b'{"n":1,"kind":"k"}')
    assert (told.stream, told.version, told.seq, told.kind) == ("s/1", 1, 1, "notification")


async def test_an_event_that_is_json_already_is_told_as_it_is(database: Database) -> None:
    told = await database.write(lambda tx: tx.tell(Rendered(Told, b'{"n":1}'), stream="s/1"))
    assert (told.event, told.data, told.version) == ("demo:told", b'{"n":1}', 1)


@pytest.mark.parametrize("grown", [Grown(n=1), Rendered(Grown, b'{"n":1}')])
async def test_an_event_says_of_which_version_it_is(
    database: Database, grown: Grown | Rendered[Notification]
) -> None:
    told = await database.write(lambda tx: tx.tell(grown))
    assert version_of(told.data) == 2


@pytest.mark.parametrize("passing", [Passing(), Rendered(Passing, b"{}")])
async def test_an_ephemeral_event_is_not_told_in_a_commit(
    database: Database, passing: Passing | Rendered[Notification]
) -> None:
    with pytest.raises(InvalidArgument, match=r"demo:passing is ephemeral: tell it with bus\.notify"):
        await database.write(lambda tx: tx.tell(passing))


async def test_data_has_a_limit(database: Database) -> None:
    await database.write(tell("fits", data=b'"%b"' % (b"x" * (MAX_EVENT_DATA - 2))))
    with pytest.raises(InvalidArgument) as refused:
        await database.write(tell("large", data=b'"%b"' % (b"x" * (MAX_EVENT_DATA - 1))))
    assert refused.value.details == {"reason": "too_large", "limit": MAX_EVENT_DATA}


async def test_what_a_request_told_has_it_as_its_cause(database: Database) -> None:
    with event_context(envelope(causation_id="e0", hop=3, actor="agent-7")):
        told = await database.write(tell())
    assert told.correlation_id == "c1"
    assert told.causation_id == "request-1"
    assert (told.actor, told.hop) == ("agent-7", 4)


async def test_an_event_that_is_the_request_itself_has_its_id_and_cause(database: Database) -> None:
    def unit(tx: Transaction) -> list[StoredEvent]:
        return [tell(cause=False)(tx), tell(cause=False)(tx), tell("own", cause=False)(tx)]

    asked = envelope(event_id="r", causation_id="e0", hop=3)
    asked.to_record = False
    with event_context(asked):
        first, second, own = await database.write(unit)
    assert [first.event_id, own.event_id] == ["r", "own"]
    assert second.event_id not in ("r", "own")
    assert {(told.causation_id, told.hop) for told in (first, second, own)} == {("e0", 3)}


async def test_what_nobody_asked_for_correlates_with_itself(database: Database) -> None:
    def unit(tx: Transaction) -> list[StoredEvent]:
        return [tell()(tx), tell()(tx)]

    first, second = await database.write(unit)
    assert first.correlation_id == second.correlation_id == first.event_id
    assert (first.causation_id, first.actor, first.hop) == (None, "system", 0)
    (other,) = await group(database, tell())
    assert other.correlation_id == other.event_id


async def test_a_chain_of_events_ends(database: Database) -> None:
    with event_context(envelope(hop=MAX_HOPS - 1)):
        told = await database.write(tell())
    assert told.hop == MAX_HOPS
    with event_context(envelope(event_id="r2", hop=MAX_HOPS)), pytest.raises(FailedPrecondition) as refused:
        await database.write(tell())
    assert refused.value.details == {"reason": "too_many_hops", "limit": MAX_HOPS}
    assert "demo:told is 33 events away from its origin" in refused.value.message


async def test_correlation_is_that_of_the_call_and_not_of_the_thread(database: Database) -> None:
    with event_context(envelope()):
        future = database.write(tell())
    assert (await future).correlation_id == "c1"


async def test_a_unit_sees_for_which_event_it_works(database: Database) -> None:
    with event_context(envelope()) as asked:
        assert await database.write(lambda tx: tx.envelope) is asked
    assert await database.write(lambda tx: tx.envelope) is None


@pytest.mark.parametrize("together", [True, False])
async def test_the_same_event_twice_is_stored_and_told_once(
    database: Database, heard: Heard, together: bool
) -> None:
    units = [tell("same", stream="s"), tell("same", stream="s", expected_version=0)]
    if together:
        first, second = await group(database, *units)
    else:
        first, second = [await database.write(unit) for unit in units]
    assert first.seq == second.seq == 1
    assert second.version == 1
    assert heard.ids == ["same"]
    assert rows(database.path, "SELECT event_id FROM log") == [("same",)]


@pytest.mark.parametrize("together", [True, False])
async def test_an_id_for_other_content_is_refused(database: Database, together: bool) -> None:
    units = [tell("same"), tell("same", data=b'{"n":2}')]
    if together:
        results = await group(database, *units)
    else:
        results = [(await group(database, unit))[0] for unit in units]
    assert isinstance(results[0], StoredEvent)
    assert isinstance(results[1], AlreadyExists)


async def test_an_id_that_was_made_here_can_be_taken_by_nobody(database: Database) -> None:
    """Also within one group, where the rows are not in the table yet."""
    made: list[str] = []

    def telling(tx: Transaction) -> None:
        made.append(tell(data=b'{"n":1}')(tx).event_id)

    def taking(tx: Transaction) -> StoredEvent:
        told: StoredEvent = tell(made[-1])(tx)
        return told

    results = await group(database, telling, taking)
    assert results[0] is None
    assert isinstance(results[1], AlreadyExists)
    assert rows(database.path, "SELECT count(*) FROM log") == [(1,)]


async def test_the_first_of_two_who_expect_the_same_version_wins(database: Database, heard: Heard) -> None:
    units = [tell(name, stream="s", expected_version=0) for name in "ab"]
    first, second = await group(database, *units)
    assert first.version == 1
    assert isinstance(second, FailedPrecondition)
    assert second.details == {"reason": "wrong_version", "expected": 0, "actual": 1}
    assert heard.ids == ["a"]


async def test_a_unit_sees_the_versions_that_it_makes(database: Database) -> None:
    def unit(tx: Transaction) -> list[int]:
        versions = [tx.version("s")]
        for _ in range(2):
            tell(stream="s")(tx)
            versions.append(tx.version("s"))
        return versions

    assert await database.write(unit) == [0, 1, 2]


async def test_a_unit_that_is_refused_takes_no_version(database: Database) -> None:
    def unit(tx: Transaction) -> None:
        tell(stream="s")(tx)
        raise ValueError

    failed, told = await group(database, unit, tell(stream="s", expected_version="none"))
    assert isinstance(failed, ValueError)
    assert told.version == 1


async def test_handlers_write_at_the_same_time_in_contexts_of_their_own(database: Database) -> None:
    async def handle(number: int) -> StoredEvent:
        with event_context(envelope(event_id=f"r{number}")):
            told: StoredEvent = await database.write(tell())
            return told

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(handle(number)) for number in range(10)]
    assert [task.result().causation_id for task in running] == [f"r{number}" for number in range(10)]
