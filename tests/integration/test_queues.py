"""``async_state:*`` over the socket: first in, first out, once each, and for as long as was said."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ksi_common.events.async_state import MAX_ITEMS
from ksi_common.events.state import Get
from ksi_daemon.testing import PATIENCE_S, FakeClock, RunningDaemon, Wire, running_daemon

VALUES: list[Any] = [None, True, 0, -0.0, 1.5, 2**53, "", "123", "ü\u0000", [], {}, {"a": [None, {"b": 1}]}]


async def push(wire: Wire, value: Any, key: str = "q", **fields: Any) -> int:
    reply = await wire.call("async_state:push", {"key": key, "data": value, **fields})
    assert reply["type"] == "reply", reply
    return int(reply["data"]["position"])


async def pop(wire: Wire, key: str = "q", **fields: Any) -> dict[str, Any]:
    data: dict[str, Any] = (await wire.call("async_state:pop", {"key": key, **fields}))["data"]
    return data


async def test_values_come_out_in_the_order_pushed_and_exactly_as_they_were(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        assert [await push(wire, value) for value in VALUES] == list(range(1, len(VALUES) + 1))
        queue = (await wire.call("async_state:get_queue", {"key": "q"}))["data"]
        popped = [await pop(wire) for _ in VALUES]
        assert repr(queue["data"]) == repr(VALUES)
        assert repr([item["data"] for item in popped]) == repr(VALUES)
        assert {(item["status"], item["found"]) for item in popped} == {("popped", True)}
        assert await pop(wire) == {
            "status": "empty", "data": None, "found": False, "namespace": "global", "key": "q",
        }  # fmt: skip


async def test_queues_and_namespaces_are_apart(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for namespace, key in (("a", "b.c"), ("a.b", "c"), ("a", "b")):
            await push(wire, [namespace, key], key, namespace=namespace)
        assert (await wire.call("async_state:get_keys", {"namespace": "a"}))["data"]["keys"] == ["b", "b.c"]
        assert (await pop(wire, "c", namespace="a.b"))["data"] == ["a.b", "c"]
        assert (await pop(wire, "c", namespace="a.b"))["found"] is False
        assert (await pop(wire, "b", namespace="a"))["data"] == ["a", "b"]


async def test_competing_clients_get_each_value_once_and_in_order(ksi: RunningDaemon) -> None:
    count, clients = 200, 4
    async with ksi.connect() as wire:
        for value in range(count):
            await push(wire, value)
    taken: list[list[int]] = []

    async def take() -> None:
        mine: list[int] = []
        taken.append(mine)
        async with ksi.connect() as wire:
            while (popped := await pop(wire))["found"]:
                mine.append(popped["data"])

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(take())
    assert sorted(value for mine in taken for value in mine) == list(range(count))
    assert all(mine == sorted(mine) for mine in taken)


async def test_what_has_expired_is_given_to_nobody_even_before_it_is_removed() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi, ksi.connect() as wire:
        await push(wire, "short", ttl_seconds=10)
        await push(wire, "long", ttl_seconds=1000)
        await push(wire, "never")
        clock.advance(10)
        assert (await wire.call("async_state:queue_length", {"key": "q"}))["data"]["length"] == 2
        assert (await wire.call("async_state:get_queue", {"key": "q"}))["data"]["data"] == ["long", "never"]
        assert await push(wire, "last", ttl_seconds=0) == 3
        assert [(await pop(wire))["data"] for _ in range(2)] == ["long", "never"]
        assert (await pop(wire))["found"] is False
        assert (await wire.call("async_state:get_keys"))["data"]["keys"] == []


async def test_what_has_expired_is_removed_by_itself_and_told() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi, ksi.connect() as wire, asyncio.timeout(PATIENCE_S):
        expired = ksi.bus.subscribe("async_state:expired")
        await push(wire, "b", "two", ttl_seconds=20)
        await push(wire, "a", "one", ttl_seconds=10)
        await push(wire, "c", "two", ttl_seconds=30)
        clock.advance(25)
        await wake(ksi)
        told = [(await anext(expired)) for _ in range(2)]
        assert [(event.data["key"], event.data["numbers"]) for event in told] == [("one", [2]), ("two", [1])]
        assert {event.actor for event in told} == {"system"}
        assert len(ksi.emitted("async_state:pushed")) == 3
        clock.advance(10)
        await wake(ksi)
        last = await anext(expired)
        assert last.data["numbers"] == [3]
        assert last.correlation_id not in {event.correlation_id for event in told}
        assert await ksi.daemon.database.read("SELECT * FROM queue_items") == []
        assert ksi.daemon.timers.statistics.failed == 0


async def wake(ksi: RunningDaemon) -> None:
    """Have the timers look at a clock that has jumped: a timer that is due does."""
    await ksi.daemon.timers.schedule("wake", Get(key="none"), due_us=0)


async def test_a_queue_can_be_given_a_time_and_what_comes_later_stays() -> None:
    clock = FakeClock()
    async with running_daemon(clock=clock) as ksi, ksi.connect() as wire:
        await push(wire, "sooner", ttl_seconds=5)
        await push(wire, "never")
        reply = await wire.call("async_state:expire_queue", {"key": "q", "ttl_seconds": 60})
        await push(wire, "later")
        assert reply["data"]["items"] == 2
        clock.advance(5)
        assert (await wire.call("async_state:get_queue", {"key": "q"}))["data"]["data"] == ["never", "later"]
        clock.advance(55)
        assert (await wire.call("async_state:get_queue", {"key": "q"}))["data"]["data"] == ["later"]
        (told,) = ksi.emitted("async_state:expiring")
        assert told["number"] == 2


async def test_a_queue_is_deleted_with_all_that_is_in_it(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for value in range(3):
            await push(wire, value)
        await push(wire, 1, "other")
        assert (await wire.call("async_state:delete", {"key": "q"}))["data"]["deleted"] == 3
        assert (await wire.call("async_state:delete", {"key": "q"}))["data"]["deleted"] == 0
        assert (await wire.call("async_state:get_keys"))["data"]["keys"] == ["other"]
    assert [told["deleted"] for told in ksi.emitted("async_state:deleted")] == [3]


async def test_a_full_queue_refuses_and_is_as_it_was(ksi: RunningDaemon) -> None:
    await ksi.daemon.database.write_apart(
        lambda tx: tx.execute(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) "
            "INSERT INTO queue_items (namespace, key, value) SELECT 'global', 'q', '0' FROM n",
            (MAX_ITEMS,),
        )
    )
    async with ksi.connect() as wire:
        refused = await wire.call("async_state:push", {"key": "q", "data": 1})
        assert (refused["error"]["code"], refused["error"]["details"]["reason"]) == (
            "RESOURCE_EXHAUSTED", "queue_full",
        )  # fmt: skip
        assert await push(wire, 1, "other") == 1
        await pop(wire)
        assert await push(wire, 1) == MAX_ITEMS


async def test_pages_of_a_queue_and_of_keys_give_everything_once(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for value in range(7):
            await push(wire, value, f"k{value}")
            await push(wire, value)
        values: list[Any] = []
        keys: list[str] = []
        page: dict[str, Any] = {"next": 0}
        while page["next"] is not None:
            query = {"key": "q", "limit": 3, "after": page["next"]}
            page = (await wire.call("async_state:get_queue", query))["data"]
            values += page["data"]
        page = {"next": None, "keys": None}
        while page["keys"] is None or page["next"] is not None:
            page = (await wire.call("async_state:get_keys", {"limit": 3, "after": page["next"]}))["data"]
            keys += page["keys"]
    assert values == list(range(7))
    assert keys == [*(f"k{n}" for n in range(7)), "q"]


async def test_a_page_ends_where_it_has_bytes_enough(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for _ in range(3):
            await push(wire, "x" * 700_000)
        first = (await wire.call("async_state:get_queue", {"key": "q"}))["data"]
        assert (first["count"], first["next"]) == (1, 1)


async def test_queues_are_there_after_a_restart_and_times_go_on(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running_daemon(home=tmp_path / "var", clock=clock) as ksi, ksi.connect() as wire:
        await push(wire, "stays")
        await push(wire, "goes", ttl_seconds=10)
    clock.advance(20)
    async with running_daemon(home=tmp_path / "var", clock=clock) as ksi, ksi.connect() as wire:
        expired = ksi.bus.subscribe("async_state:expired", start="beginning")
        async with asyncio.timeout(PATIENCE_S):
            assert (await anext(aiter(expired))).data["numbers"] == [2]
        assert (await pop(wire))["data"] == "stays"
        assert (await pop(wire))["found"] is False


@pytest.mark.parametrize("fields", [{"ttl_seconds": -1}, {"ttl_seconds": 1e12}, {"key": ""}, {"data": None}])
async def test_what_is_no_request_is_refused(ksi: RunningDaemon, fields: dict[str, Any]) -> None:
    data = {"key": "q", **fields}
    async with ksi.connect() as wire:
        if fields == {"data": None}:
            assert await push(wire, None) == 1
        else:
            answer = await wire.call("async_state:push", {"data": 1, **data})
            assert answer["error"]["code"] == "INVALID_ARGUMENT"


async def test_the_sweep_is_nothing_that_clients_can_ask(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        assert (await wire.call("async_state:sweep"))["error"]["code"] == "NOT_FOUND"


async def test_the_last_output_of_a_session_is_kept(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        nothing = await wire.call("state:session:get", {"session_id": "s"})
        assert nothing["data"] == {"session_id": "s", "output": None, "found": False}
        for output in ({"text": "Paris"}, None):
            await wire.call("state:session:update", {"session_id": "s", "output": output})
            found = (await wire.call("state:session:get", {"session_id": "s"}))["data"]
            assert found == {"session_id": "s", "output": output, "found": True}
    assert [told["namespace"] for told in ksi.emitted("state:changed")] == ["session"] * 2
