"""Many requests at once: all answered, each exactly once, dispatched in the order sent."""

import asyncio
import collections
import json
from typing import Any

import pytest

from ksi_daemon.testing import RunningDaemon, Wire, running_daemon

from .conftest import WritePlugin

GATE = """
    import asyncio
    from collections.abc import AsyncIterator
    from ksi_daemon.plugin import Message, Request, Stream, handler

    gate = asyncio.Event()
    seen = []

    class Turn(Message):
        seen: list[int]

    class Wait(Request[Turn], event="gate:wait", safe=True):
        '''Wait until the gate opens.'''
        n: int = 0

    class Open(Request[Turn], event="gate:open", safe=True):
        '''Open the gate; tell in which order handlers began.'''

    class Watch(Stream[Turn], event="gate:watch", safe=True):
        '''Wait until the gate opens, as a stream.'''

    @handler
    async def wait(request: Wait) -> Turn:
        seen.append(request.n)
        await gate.wait()
        return Turn(seen=[request.n])

    @handler
    async def open_(request: Open) -> Turn:
        gate.set()
        return Turn(seen=seen)

    @handler
    async def watch(request: Watch) -> AsyncIterator[Turn]:
        await gate.wait()
        yield Turn(seen=[])
"""


async def answers(wire: Wire, count: int) -> list[dict[str, Any]]:
    return [await wire.receive() for _ in range(count)]


async def test_64_requests_in_one_piece_are_each_answered_once(ksi: RunningDaemon) -> None:
    lines = [{"event": "state:set", "id": n, "data": {"key": f"k{n}", "value": n}} for n in range(64)]
    async with ksi.connect() as wire:
        wire.send(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        frames = await answers(wire, 64)
        last = await wire.call("state:list", {"limit": 100})
    assert sorted(frame["id"] for frame in frames) == list(range(64))
    assert {frame["type"] for frame in frames} == {"reply"}
    assert last["data"]["count"] == 64


async def test_requests_begin_in_the_order_sent(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(GATE, "gate")]) as ksi, ksi.connect() as wire:
        for n in range(100):
            wire.send({"event": "gate:wait", "id": n, "data": {"n": n}})
        opened = await wire.call("gate:open")
        frames = await answers(wire, 100)
    assert opened["data"]["seen"] == list(range(100))
    assert sorted(frame["id"] for frame in frames) == list(range(100))


async def test_a_request_may_end_before_one_sent_earlier(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(GATE, "gate")]) as ksi, ksi.connect() as wire:
        wire.send({"event": "gate:wait", "id": "slow"})
        assert (await wire.call("system:info"))["type"] == "reply"
        wire.send({"event": "gate:open", "id": "open"})
        assert {frame["id"] for frame in await answers(wire, 2)} == {"slow", "open"}


async def test_16_connections_with_16_in_flight_each_get_their_own_answers(ksi: RunningDaemon) -> None:
    async def ask(client: int) -> None:
        async with ksi.connect() as wire:
            for turn in range(4):
                for n in range(16):
                    data = {"key": f"{client}-{turn}-{n}", "value": [client, turn, n]}
                    wire.send({"event": "state:set", "id": n, "data": data})
                frames = await answers(wire, 16)
                assert sorted(frame["id"] for frame in frames) == list(range(16))
                assert {frame["data"]["key"] for frame in frames} == {
                    f"{client}-{turn}-{n}" for n in range(16)
                }

    async with asyncio.TaskGroup() as tasks:
        for client in range(16):
            tasks.create_task(ask(client))
    listed = await ksi.call_raw("state:list", {"limit": 10_000})
    assert listed["count"] == 16 * 4 * 16


async def test_1000_connections_at_once_are_each_answered_once(ksi: RunningDaemon) -> None:
    async with asyncio.timeout(150), asyncio.TaskGroup() as tasks:
        lines = [tasks.create_task(_ask_alone(ksi, n)) for n in range(1000)]
    frames = [json.loads(line.result()) for line in lines]
    assert [frame["id"] for frame in frames] == list(range(1000))
    assert len({frame["correlation_id"] for frame in frames}) == 1000


async def _ask_alone(ksi: RunningDaemon, n: int) -> bytes:
    reader, writer = await asyncio.open_unix_connection(ksi.paths.socket)
    writer.write(b'{"event":"system:info","id":%d}\n' % n)
    line = await reader.readline()
    writer.close()
    assert await reader.read() == b""
    return line


async def test_a_connection_over_the_limit_is_told_so() -> None:
    async with running_daemon(settings={"limits": {"connections": 2}}) as ksi:
        async with ksi.connect() as first, ksi.connect() as second:
            await first.call("system:info")
            await second.call("system:info")
            async with ksi.connect() as third:
                frame = await third.receive()
                await third.wait_closed()
            assert frame["error"]["code"] == "RESOURCE_EXHAUSTED"
            assert frame["error"]["details"]["retry_after_s"] > 0
            assert (await first.call("system:info"))["type"] == "reply"
        async with ksi.connect() as later:
            assert (await later.call("system:info"))["type"] == "reply"


async def test_the_129th_request_in_flight_is_refused_at_once(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(GATE, "gate")]) as ksi, ksi.connect() as wire:
        for n in range(130):
            wire.send({"event": "gate:wait", "id": n, "data": {"n": n}})
        refused = await answers(wire, 2)
        assert [frame["id"] for frame in refused] == [128, 129]
        for frame in refused:
            assert frame["error"]["code"] == "RESOURCE_EXHAUSTED"
            assert frame["error"]["retryable"] is True
            assert frame["error"]["details"] == {"reason": "in_flight", "limit": 128, "retry_after_s": 0.05}
        async with ksi.connect() as other:
            await other.call("gate:open")
        assert sorted(frame["id"] for frame in await answers(wire, 128)) == list(range(128))
        assert (await wire.call("system:info"))["type"] == "reply"


async def test_a_cancel_is_read_where_a_request_would_be_refused(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(GATE, "gate")]) as ksi, ksi.connect() as wire:
        for n in range(128):
            wire.send({"event": "gate:wait", "id": n})
        assert (await wire.call("system:info"))["error"]["code"] == "RESOURCE_EXHAUSTED"
        wire.send({"type": "cancel", "id": 5})
        cancelled = await wire.receive()
        assert (cancelled["id"], cancelled["error"]["code"]) == (5, "CANCELLED")
        assert (await wire.call("gate:open"))["type"] == "reply"


async def test_streams_have_a_limit_of_their_own(write_plugin: WritePlugin) -> None:
    limits = {"streams": 3, "in_flight": 2}
    plugins = [write_plugin(GATE, "gate")]
    async with running_daemon(plugins=plugins, settings={"limits": limits}) as ksi, ksi.connect() as wire:
        for n in range(4):
            wire.send({"event": "gate:watch", "id": n})
        refused = await wire.receive()
        assert (refused["id"], refused["error"]["code"]) == (3, "RESOURCE_EXHAUSTED")
        assert refused["error"]["details"]["retry_after_s"] > 0
        assert (await wire.call("gate:open"))["type"] == "reply"
        frames = collections.Counter((frame["id"], frame["type"]) for frame in await answers(wire, 6))
    assert frames == {(n, kind): 1 for n in range(3) for kind in ("item", "end")}


async def test_an_id_in_use_is_refused_and_free_again_after_the_answer(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(GATE, "gate")]) as ksi, ksi.connect() as wire:
        wire.send({"event": "gate:wait", "id": "a"})
        wire.send({"event": "system:info", "id": "a"})
        refused = await wire.receive()
        assert refused["error"]["code"] == "ALREADY_EXISTS"
        assert refused["error"]["details"] == {"reason": "id_in_use"}
        wire.send({"event": "gate:open", "id": "b"})
        assert {frame["id"] for frame in await answers(wire, 2)} == {"a", "b"}
        assert (await wire.call("system:info", id="a"))["type"] == "reply"


async def test_the_text_1_and_the_number_1_are_two_ids(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(GATE, "gate")]) as ksi, ksi.connect() as wire:
        wire.send({"event": "gate:wait", "id": 1})
        wire.send({"event": "gate:wait", "id": "1"})
        await wire.call("gate:open")
        assert [frame["id"] for frame in await answers(wire, 2)] == [1, "1"]


async def test_a_client_that_goes_leaves_its_requests_to_end(write_plugin: WritePlugin) -> None:
    plugins = [write_plugin(GATE, "gate")]
    async with running_daemon(plugins=plugins) as ksi:
        async with ksi.connect() as gone:
            gone.send(b'{"event":"state:set","data":{"key":"left","value":1}}\n' * 10)
            await gone.receive()
        async with ksi.connect() as wire:
            found = await wire.call("state:get", {"key": "left"})
    assert found["data"]["value"] == 1


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_however_the_bytes_are_cut_the_answers_are_the_same(ksi: RunningDaemon, size: int) -> None:
    text = b"".join(
        b'{"event":"state:get","id":%d,"data":{"key":"k\xc3\xbc%d"}}\n' % (n, n) for n in range(20)
    )
    async with ksi.connect() as wire:
        for start in range(0, len(text), size):
            wire.send(text[start : start + size])
            await asyncio.sleep(0)
        frames = await answers(wire, 20)
    assert {frame["id"]: frame["data"]["key"] for frame in frames} == {n: f"kü{n}" for n in range(20)}
