"""``state:entity:*`` and ``state:relationship:*`` as clients have them."""

import asyncio
import json
from base64 import urlsafe_b64encode as b64encode
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from ksi_common.events import graph
from ksi_daemon.testing import PATIENCE_S, RunningDaemon, Wire
from tests.support.databases import looking
from tests.support.graph_model import contents, replayed

VALUES: dict[str, Any] = {
    "null": None, "yes": True, "no": False, "one": 1, "one_as_float": 1.0, "one_as_text": "1",
    "minus_zero": -0.0, "long": 0.30000000000000004, "huge": 1.7976931348623157e308, "tiny": 5e-324,
    "greatest": 2**53 - 1, "empty": "", "nul": "a\0b", "unicode": "Grüße, 世界, \U0001f9e0, e\u0301, \uffff",
    "address.city": "Paris", "long_text": "é" * 65_536,
}  # fmt: skip


@pytest.fixture
async def wire(ksi: RunningDaemon) -> AsyncIterator[Wire]:
    async with ksi.connect() as wire:
        yield wire


async def ask(wire: Wire, event: str, **data: Any) -> dict[str, Any]:
    """Ask, and give the reply's data; ``from_`` stands for ``from``."""
    answer = await wire.call(f"state:{event}", {name.rstrip("_"): value for name, value in data.items()})
    assert answer["type"] == "reply", answer
    reply: dict[str, Any] = answer["data"]
    return reply


async def refused(wire: Wire, event: str, **data: Any) -> dict[str, Any]:
    answer = await wire.call(f"state:{event}", {name.rstrip("_"): value for name, value in data.items()})
    error: dict[str, Any] = answer["error"]
    return error


async def a_small_graph(wire: Wire) -> None:
    """alice knows bob, bob knows carol, carol knows alice; bob owns a hammer."""
    people = [{"type": "person", "id": name} for name in ("alice", "bob", "carol")]
    await ask(wire, "entity:bulk_create", entities=[*people, {"type": "tool", "id": "hammer"}])
    for source, target in (("alice", "bob"), ("bob", "carol"), ("carol", "alice")):
        await ask(wire, "relationship:create", type="knows", from_=source, to=target)
    await ask(wire, "relationship:create", type="owns", from_="bob", to="hammer", properties={"since": 2020})


async def test_values_come_back_as_they_went_in(wire: Wire, ksi: RunningDaemon) -> None:
    await ask(wire, "entity:create", type="thing", id="t", properties=VALUES)
    found = (await ask(wire, "entity:get", id="t"))["properties"]
    assert json.dumps(found) == json.dumps(dict(sorted(VALUES.items())))
    (created,) = ksi.emitted("state:entity:created")
    assert json.dumps(created["properties"]) == json.dumps(VALUES)


async def test_an_entity_without_an_id_gets_one(wire: Wire) -> None:
    first = await ask(wire, "entity:create", type="thing")
    second = await ask(wire, "entity:bulk_create", entities=[{"type": "thing"}, {"type": "thing"}])
    ids = [first["id"], *second["ids"]]
    assert len(set(ids)) == 3
    page = await ask(wire, "entity:query")
    assert [entity["id"] for entity in page["entities"]] == ids


@pytest.mark.parametrize(
    ("value", "said"),
    [({"city": "Paris"}, "address.city"), (["a"], "make a list's members entities"), ([], "one value")],
)
async def test_a_nested_value_is_refused_and_told_what_to_do(wire: Wire, value: object, said: str) -> None:
    error = await refused(wire, "entity:create", type="thing", properties={"p": value})
    assert (error["code"], error["details"]["field"]) == ("INVALID_ARGUMENT", "properties.p")
    assert said in error["message"]


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", ".a", "x" * 129, "é", "a\0"])
async def test_names_are_checked(wire: Wire, name: str) -> None:
    for fields in ({"type": name}, {"type": "t", "id": name}, {"type": "t", "properties": {name: 1}}):
        assert (await refused(wire, "entity:create", **fields))["code"] == "INVALID_ARGUMENT"
    assert (await refused(wire, "relationship:create", type=name, from_="a", to="b"))[
        "code"
    ] == "INVALID_ARGUMENT"


async def test_parameters_are_as_discovery_says(wire: Wire) -> None:
    error = await refused(wire, "relationship:query", from__="a", source="a")
    assert (error["details"]["reason"], error["details"]["field"]) == ("unknown_field", "source")
    answer = await wire.call("state:relationship:query", {"from_": "a"})
    assert answer["error"]["hint"] == 'did you mean "from"?'
    error = await refused(wire, "entity:query", where={"age": {"gt2": 1}})
    assert (error["details"]["reason"], error["details"]["field"]) == (
        "unknown_field", "where.age.gt2",
    )  # fmt: skip


async def test_what_is_not_there_is_not_found_and_near_names_are_given(wire: Wire) -> None:
    await a_small_graph(wire)
    for event, data in (
        ("entity:get", {"id": "alise"}),
        ("entity:update", {"id": "alise"}),
        ("entity:delete", {"id": "alise"}),
        ("relationship:create", {"type": "knows", "from_": "alise", "to": "bob"}),
        ("relationship:query", {"from_": "alise"}),
        ("graph:traverse", {"start": "alise"}),
    ):
        error = await refused(wire, event, **data)
        assert (error["code"], error["details"]["nearest"]) == ("NOT_FOUND", ["alice"]), event
        assert error["hint"] == "did you mean 'alice'?"
    error = await refused(wire, "relationship:delete", type="nows", from_="alice", to="bob")
    assert (error["code"], error["details"]["nearest"]) == ("NOT_FOUND", ["knows"])


async def test_an_entity_and_a_relationship_exist_once(wire: Wire) -> None:
    await a_small_graph(wire)
    error = await refused(wire, "entity:create", type="other", id="alice")
    assert (error["code"], error["details"]["reason"]) == ("ALREADY_EXISTS", "entity_exists")
    error = await refused(wire, "relationship:create", type="knows", from_="alice", to="bob")
    assert (error["code"], error["details"]["reason"]) == ("ALREADY_EXISTS", "relationship_exists")


async def test_of_two_who_change_the_same_version_one_is_refused(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:entity:create", {"type": "thing", "id": "t"})

    async def change(value: int) -> dict[str, Any]:
        data = {"id": "t", "properties": {"p": value}, "expected_version": 1}
        async with ksi.connect() as wire:
            return await wire.call("state:entity:update", data)

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        changes = [tasks.create_task(change(value)) for value in (1, 2)]
    answers = sorted((task.result() for task in changes), key=lambda answer: str(answer["type"]))
    error, reply = answers[0]["error"], answers[1]["data"]
    assert (reply["status"], reply["version"]) == ("updated", 2)
    assert (error["code"], error["details"]) == (
        "FAILED_PRECONDITION", {"reason": "wrong_version", "expected": 1, "actual": 2},
    )  # fmt: skip
    async with ksi.connect() as wire:
        error = await refused(wire, "entity:delete", id="t", expected_version=1)
        assert error["details"]["reason"] == "wrong_version"
        await ask(wire, "entity:delete", id="t", expected_version=2)


async def test_each_change_is_told_and_what_changes_nothing_is_not(wire: Wire, ksi: RunningDaemon) -> None:
    await a_small_graph(wire)
    await ask(wire, "entity:update", id="bob", properties={"age": 30, "on": True})
    await ask(wire, "entity:update", id="bob", properties={"age": 31, "on": True}, remove=["on2"])
    same = await ask(wire, "entity:update", id="bob", properties={"age": 31}, remove=["nothing"])
    await ask(wire, "entity:update", id="bob", properties={"age": 31.0}, remove=["on"])
    await ask(wire, "relationship:delete", type="knows", from_="carol", to="alice")
    gone = await ask(wire, "entity:delete", id="bob")
    assert (same["status"], same["version"]) == ("unchanged", 3)
    assert gone["relationships_deleted"] == 3
    assert ksi.emitted("state:entity:updated") == [
        {"id": "bob", "type": "person", "version": 2, "properties": {"age": 30, "on": True}, "removed": []},
        {"id": "bob", "type": "person", "version": 3, "properties": {"age": 31}, "removed": []},
        {"id": "bob", "type": "person", "version": 4, "properties": {"age": 31.0}, "removed": ["on"]},
    ]
    assert [event.event.removeprefix("state:") for event in ksi.events("state:*")][-5:] == [
        "relationship:deleted", "relationship:deleted", "relationship:deleted", "relationship:deleted",
        "entity:deleted",
    ]  # fmt: skip
    assert ksi.emitted("state:relationship:deleted")[1:] == [
        {"type": "knows", "from": "alice", "to": "bob"},
        {"type": "knows", "from": "bob", "to": "carol"},
        {"type": "owns", "from": "bob", "to": "hammer"},
    ]
    assert (await ask(wire, "relationship:query"))["relationships"] == []


async def test_what_was_told_carries_the_ids_of_what_asked_for_it(wire: Wire, ksi: RunningDaemon) -> None:
    await wire.call("state:entity:create", {"type": "thing"}, correlation_id="c-1")
    (told,) = ksi.events("state:entity:created")
    assert told.correlation_id == "c-1"
    assert told.causation_id is not None


async def test_a_retry_under_its_key_creates_nothing_more(wire: Wire, ksi: RunningDaemon) -> None:
    entity = {"type": "thing"}
    answers = [await wire.call("state:entity:create", entity, idempotency_key="k") for _ in range(2)]
    assert answers[0]["data"] == answers[1]["data"]
    assert len(ksi.events("state:entity:created")) == 1


async def test_told_events_of_the_graph_cannot_be_forged(wire: Wire) -> None:
    data = {"event": "state:entity:created", "data": {"id": "a", "type": "t", "properties": {}}}
    assert (await wire.call("event:publish", data))["error"]["code"] == "PERMISSION_DENIED"


async def test_a_bulk_is_created_as_a_whole_or_not_at_all(wire: Wire, ksi: RunningDaemon) -> None:
    many = [{"type": "thing", "id": f"t{number}", "properties": {"n": number}} for number in range(1000)]
    reply = await ask(wire, "entity:bulk_create", entities=many)
    assert (reply["count"], reply["ids"][-1]) == (1000, "t999")
    assert len(ksi.events("state:entity:created")) == 1000
    for last in ({"type": "thing", "id": "t5"}, {"type": "thing", "id": "new-0"}):
        new = [{"type": "thing", "id": f"new-{number}"} for number in range(3)]
        error = await refused(wire, "entity:bulk_create", entities=[*new, last])
        assert (error["code"], error["details"]["id"]) == ("ALREADY_EXISTS", last["id"])
    assert (await ask(wire, "aggregate:count"))["total"] == 1000
    assert len(ksi.events("state:entity:created")) == 1000
    error = await refused(wire, "entity:bulk_create", entities=[{"type": "thing"}] * 1001)
    assert (error["code"], error["details"]["field"]) == ("INVALID_ARGUMENT", "entities")


async def test_more_properties_than_a_unit_has_time_for_are_refused(wire: Wire) -> None:
    entity = {"type": "thing", "properties": {f"p{number}": number for number in range(51)}}
    error = await refused(wire, "entity:bulk_create", entities=[entity] * 100)
    assert (error["code"], error["details"]["limit"]) == ("RESOURCE_EXHAUSTED", 5000)
    assert not error["retryable"]


async def test_an_entity_cannot_grow_beyond_what_a_reply_takes(wire: Wire) -> None:
    await ask(wire, "entity:create", type="thing", id="t")
    for number in range(7):
        await ask(wire, "entity:update", id="t", properties={f"p{number}": "x" * 65_536})
    for properties in ({"p8": "x" * 65_536}, {f"q{number}": 1 for number in range(250)}):
        error = await refused(wire, "entity:update", id="t", properties=properties)
        assert error["code"] == "RESOURCE_EXHAUSTED"
    assert (await ask(wire, "entity:get", id="t"))["version"] == 8


async def test_pages_are_cut_by_bytes_and_lose_nothing(wire: Wire) -> None:
    for number in range(40):
        properties = {"text": "x" * 60_000, "n": number}
        await ask(wire, "entity:create", type="thing", id=f"t{number}", properties=properties)
    seen: list[int] = []
    cursor: str | None = None
    pages = 0
    while cursor is not None or not pages:
        page = await ask(wire, "entity:query", order_by="n", limit=100, cursor=cursor)
        assert page["count"] < 40
        seen += [entity["properties"]["n"] for entity in page["entities"]]
        cursor, pages = page["next"], pages + 1
    assert seen == list(range(40))
    assert pages > 1


@pytest.mark.parametrize("cursor", ["", "x", "e30", "bnVsbA", "WzFd", "W251bGwsMSxudWxsLG51bGxd"])
async def test_what_is_no_cursor_is_refused(wire: Wire, cursor: str) -> None:
    for event in ("entity:query", "relationship:query"):
        error = await refused(wire, event, cursor=cursor)
        assert (error["code"], error["details"]["reason"]) == ("INVALID_ARGUMENT", "bad_cursor")


async def test_a_cursor_of_a_number_that_no_row_has_is_refused(wire: Wire) -> None:
    """It was a bug of the plugin, though anybody can write such a cursor."""
    written = orjson.dumps(["n ASC", 1, "number", 2**64 - 1])
    error = await refused(wire, "entity:query", order_by="n", cursor=b64encode(written).decode().rstrip("="))
    assert (error["code"], error["details"]["reason"]) == ("INVALID_ARGUMENT", "bad_cursor")


async def test_a_cursor_of_another_order_is_refused(wire: Wire) -> None:
    await a_small_graph(wire)
    page = await ask(wire, "entity:query", limit=1)
    for order in ({"order_by": "age"}, {"descending": True}):
        error = await refused(wire, "entity:query", cursor=page["next"], **order)
        assert error["details"]["reason"] == "bad_cursor"


async def test_what_is_created_while_pages_are_read_comes_and_what_goes_is_not_missed_twice(
    wire: Wire,
) -> None:
    await a_small_graph(wire)
    first = await ask(wire, "entity:query", limit=2)
    await ask(wire, "entity:delete", id="bob")
    await ask(wire, "entity:create", type="tool", id="saw")
    rest = await ask(wire, "entity:query", cursor=first["next"])
    assert [entity["id"] for entity in rest["entities"]] == ["carol", "hammer", "saw"]


async def test_a_circle_is_walked_once_and_each_path_is_a_shortest(wire: Wire) -> None:
    await a_small_graph(wire)
    reached = await ask(wire, "graph:traverse", start="alice", depth=10, paths=True, properties=True)
    assert [(one["id"], one["type"], one["depth"]) for one in reached["entities"]] == [
        ("bob", "person", 1), ("carol", "person", 2), ("hammer", "tool", 2),
    ]  # fmt: skip
    assert reached["entities"][2]["path"] == [
        {"type": "knows", "from": "alice", "to": "bob"}, {"type": "owns", "from": "bob", "to": "hammer"},
    ]  # fmt: skip
    assert (reached["count"], reached["truncated"]) == (3, False)


async def test_a_traversal_goes_the_way_and_by_the_types_that_are_asked_for(wire: Wire) -> None:
    await a_small_graph(wire)

    async def reach(**data: Any) -> list[str]:
        found = await ask(wire, "graph:traverse", **data)
        return [one["id"] for one in found["entities"]]

    assert await reach(start="hammer") == []
    assert await reach(start="hammer", direction="incoming", depth=2) == ["bob", "alice"]
    assert await reach(start="alice", direction="both") == ["bob", "carol"]
    assert await reach(start="bob", types=["owns"], depth=3) == ["hammer"]
    assert await reach(start="bob", types=["owns", "knows"]) == ["carol", "hammer"]
    error = await refused(wire, "graph:traverse", start="alice", depth=11)
    assert error["details"]["field"] == "depth"


async def test_a_traversal_ends_at_its_limit_and_says_so(wire: Wire) -> None:
    await a_small_graph(wire)
    reached = await ask(wire, "graph:traverse", start="alice", depth=3, limit=2)
    assert (reached["count"], reached["truncated"]) == (2, True)
    whole = await ask(wire, "graph:traverse", start="alice", depth=3, limit=3)
    assert (whole["count"], whole["truncated"]) == (3, False)


async def test_entities_and_relationships_are_counted_in_groups(wire: Wire) -> None:
    await a_small_graph(wire)
    assert await ask(wire, "aggregate:count", group_by="type") == {
        "total": 4, "groups": [{"value": "person", "count": 3}, {"value": "tool", "count": 1}],
        "without": 0, "more_groups": False,
    }  # fmt: skip
    counted = await ask(wire, "aggregate:count", target="relationships", group_by={"property": "since"})
    assert counted == {
        "total": 4, "groups": [{"value": 2020, "count": 1}], "without": 3, "more_groups": False,
    }  # fmt: skip


async def test_an_entity_with_too_many_relationships_is_not_deleted_half(wire: Wire) -> None:
    await ask(wire, "entity:create", type="thing", id="hub")
    many = [{"type": "thing", "id": f"t{number}"} for number in range(501)]
    await ask(wire, "entity:bulk_create", entities=many)
    for number in range(501):
        data = {"type": "has", "from": "hub", "to": f"t{number}"}
        wire.send({"event": "state:relationship:create", "data": data, "id": f"r{number}"})
        if number % 100 == 99 or number == 500:
            for _ in range(number % 100 + 1):
                assert (await wire.receive())["type"] == "reply"
    error = await refused(wire, "entity:delete", id="hub")
    assert (error["code"], error["details"]["reason"]) == ("FAILED_PRECONDITION", "too_many_relationships")
    await ask(wire, "relationship:delete", type="has", from_="hub", to="t7")
    assert (await ask(wire, "entity:delete", id="hub"))["relationships_deleted"] == 500


async def test_the_tables_can_be_made_again_from_what_was_told(wire: Wire, ksi: RunningDaemon) -> None:
    await a_small_graph(wire)
    await ask(wire, "entity:update", id="bob", properties=VALUES | {"long_text": "short"})
    await ask(wire, "entity:update", id="bob", properties={"one": 2}, remove=["null", "yes"])
    await ask(wire, "entity:delete", id="hammer")
    await ask(wire, "entity:create", type="tool", id="hammer")
    with looking(ksi.paths.database) as connection:
        live = contents(connection)
    told = ksi.events("state:*")
    assert replayed(told) == live
    assert replayed(told[:-1]) != live  # the twin: what lacks a change is found out
    assert {graph.told(event.event, json.loads(event.data)) is None for event in told} == {False}


async def test_a_page_ends_by_the_bytes_of_its_json(ksi: RunningDaemon) -> None:
    for _ in range(6):
        text = {"text": "\x01" * 65_000}  # six bytes each in JSON
        await ksi.call_raw("state:entity:create", {"type": "note", "properties": text})
    found = await ksi.call_raw("state:entity:query", {"type": "note"})
    assert (found["count"], found["next"] is not None) == (2, True)
