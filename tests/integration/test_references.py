"""Large data of events lies beside the database, named by its content; readers get it whole, or DATA_LOSS."""

import asyncio
import json
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.referrers import Referrers
from ksi_daemon.testing import PATIENCE_S, RunningDaemon, Wire
from tests.support.databases import rows

LARGE = {"text": "x" * 100_000}
BYTES = json.dumps(LARGE, separators=(",", ":")).encode()


async def publish(ksi: RunningDaemon, data: dict[str, Any] = LARGE, **fields: Any) -> str:
    published = await ksi.call_raw("event:publish", {"event": "demo:told", "data": data, **fields})
    return str(published["event_id"])


def reference(ksi: RunningDaemon, event_id: str) -> dict[str, Any]:
    sql = f"SELECT reference FROM log WHERE event_id = '{event_id}' AND data IS NULL"
    found = rows(ksi.paths.database, sql)
    assert len(found) == 1, "its data is in the row"
    parsed: dict[str, Any] = json.loads(found[0][0])
    return parsed


def blob(ksi: RunningDaemon, event_id: str) -> Path:
    return ksi.paths.home / str(reference(ksi, event_id)["path"])


async def follow(wire: Wire, **start: Any) -> list[dict[str, Any]]:
    """Follow demo:told from the beginning until caught up."""
    wire.send(
        {"event": "event:subscribe", "data": {"patterns": ["demo:told"], "start": "beginning"}, "id": "s"}
    )
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1]["type"] != "caught_up":
        frames.append(await wire.receive())
    return frames[:-1]


async def stream(wire: Wire, event: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask for a stream; give all of its frames."""
    wire.send({"event": event, "data": data, "id": "f"})
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1]["type"] == "item":
        frames.append(await wire.receive())
    return frames


async def test_large_data_is_a_blob_and_comes_back_everywhere(ksi: RunningDaemon) -> None:
    async with ksi.connect() as live:
        live.send({"event": "event:subscribe", "data": {"patterns": ["demo:told"]}, "id": "l"})
        assert (await live.receive())["type"] == "caught_up"
        event_id = await publish(ksi, stream="demo/1")
        assert (await live.receive())["data"]["data"] == LARGE
    assert blob(ksi, event_id).read_bytes() == BYTES
    assert (await ksi.call_raw("event:get", {"event_id": event_id}))["data"] == LARGE
    assert (await ksi.call_raw("event:read", {"stream": "demo/1"}))["events"][0]["data"] == LARGE
    assert (await ksi.call_raw("event:query", {"patterns": ["demo:*"]}))["events"][0]["data"] == LARGE
    async with ksi.connect() as wire:
        assert [frame["data"]["data"] for frame in await follow(wire)] == [LARGE]


async def test_small_data_is_in_the_row(ksi: RunningDaemon) -> None:
    await publish(ksi, {"n": 1}, event_id="small")
    assert rows(ksi.paths.database, "SELECT data, reference FROM log WHERE event_id = 'small'") == [
        ('{"n":1}', None)
    ]


async def test_the_same_large_event_is_stored_once_and_another_is_refused(ksi: RunningDaemon) -> None:
    await publish(ksi, event_id="one")
    again = await ksi.call_raw("event:publish", {"event": "demo:told", "data": LARGE, "event_id": "one"})
    assert again["deduplicated"]
    async with ksi.connect() as wire:
        other = {"text": "y" * 100_000}
        refused = await wire.call("event:publish", {"event": "demo:told", "data": other, "event_id": "one"})
        assert refused["error"]["details"]["reason"] == "id_reused"


async def test_large_events_of_one_append_are_blobs_each(ksi: RunningDaemon) -> None:
    events = [{"event": "demo:told", "data": {"text": str(n) * 70_000}} for n in range(3)]
    appended = await ksi.call_raw(
        "event:append", {"stream": "demo/2", "events": [*events, {"event": "demo:x"}]}
    )
    paths = {blob(ksi, event_id) for event_id in appended["event_ids"][:3]}
    assert len(paths) == 3
    read = await ksi.call_raw("event:read", {"stream": "demo/2"})
    assert [event["data"] for event in read["events"]] == [*(event["data"] for event in events), {}]


@pytest.mark.parametrize("reason", ["reference_missing", "reference_corrupt"])
async def test_damaged_bytes_are_data_loss_for_that_event_alone(ksi: RunningDaemon, reason: str) -> None:
    await publish(ksi, {"n": 1}, event_id="before", stream="demo/3")
    event_id = await publish(ksi, event_id="large", stream="demo/3")
    await publish(ksi, {"n": 2}, event_id="after", stream="demo/3")
    harm(blob(ksi, event_id), reason)
    async with ksi.connect() as wire:
        lost = await wire.call("event:get", {"event_id": "large"})
        assert (lost["error"]["code"], lost["error"]["details"]["reason"]) == ("DATA_LOSS", reason)
        for page in (
            await ksi.call_raw("event:read", {"stream": "demo/3"}),
            await ksi.call_raw("event:query", {"stream": "demo/3", "reverse": False}),
        ):
            assert [event["event_id"] for event in page["events"]] == ["before", "after"]
            assert [(damaged["event_id"], damaged["reason"]) for damaged in page["damaged"]] == [
                ("large", reason)
            ]
        frames = await follow(wire)
        assert [frame["data"]["event_id"] for frame in frames if frame["type"] == "item"] == [
            "before",
            "after",
        ]
        assert [(f["reason"], f["event_id"], f["why"]) for f in frames if f["type"] == "gap"] == [
            ("corrupt", "large", reason)
        ]
        shallow = await stream(wire, "event:verify", {})
        assert [frame["data"]["damaged"] for frame in shallow[:-1]] == [[], []]
        deep = await stream(wire, "event:verify", {"deep": True})
        named = [damaged for frame in deep[:-1] for damaged in frame["data"]["damaged"]]
        assert [(damaged["event_id"], damaged["reason"]) for damaged in named] == [("large", reason)]
        assert deep[-2]["data"]["done"]


async def test_a_blob_is_read_in_part_or_whole(ksi: RunningDaemon) -> None:
    named = reference(ksi, await publish(ksi))
    async with ksi.connect() as wire:
        *chunks, end = await stream(wire, "blob:read", {"reference": named})
        assert end["type"] == "end"
        assert b"".join(b64decode(chunk["data"]["data"]) for chunk in chunks) == BYTES
        *chunks, end = await stream(wire, "blob:read", {"reference": named, "offset": 5, "limit": 7})
        assert b"".join(b64decode(chunk["data"]["data"]) for chunk in chunks) == BYTES[5:12]
        assert chunks[0]["data"]["offset"] == 5
    stat = await ksi.call_raw("blob:stat", {"reference": named})
    assert (stat["found"], stat["intact"], stat["length"]) == (True, True, len(BYTES))


async def test_a_damaged_blob_is_not_read(ksi: RunningDaemon) -> None:
    event_id = await publish(ksi)
    named = reference(ksi, event_id)
    harm(blob(ksi, event_id), "reference_corrupt")
    async with ksi.connect() as wire:
        frames = await stream(wire, "blob:read", {"reference": named})
        assert (frames[-1]["error"]["code"], len(frames)) == ("DATA_LOSS", 1)
    stat = await ksi.call_raw("blob:stat", {"reference": named})
    assert (stat["found"], stat["intact"], stat["reason"]) == (True, False, "reference_corrupt")


async def test_files_that_are_no_blobs_are_not_read(ksi: RunningDaemon) -> None:
    secret = ksi.paths.database.read_bytes()
    named = {"path": "db/ksi.db", "length": len(secret), "sha256": sha256(secret).hexdigest()}
    async with ksi.connect() as wire:
        refused = (await stream(wire, "blob:read", {"reference": named}))[-1]
        assert refused["error"]["details"]["reason"] == "not_readable"


def harm(path: Path, reason: str) -> None:
    if reason == "reference_missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


async def test_what_a_plugin_refers_to_is_verified_too(ksi: RunningDaemon) -> None:
    event_id = await publish(ksi, event_id="large")
    named = reference(ksi, event_id)
    sql = f"SELECT 'thing', '{named['path']}', 0, {named['length']}, '{named['sha256']}'"
    ksi.daemon.services.get(Referrers).add("demo", sql)
    harm(blob(ksi, event_id), "reference_corrupt")
    async with asyncio.timeout(PATIENCE_S), ksi.connect() as wire:
        deep = await stream(wire, "event:verify", {"deep": True})
        named_so = [damaged for frame in deep[:-1] for damaged in frame["data"]["damaged"]]
        assert [(damaged["owner"], damaged["name"]) for damaged in named_so] == [
            (None, None),
            ("demo", "thing"),
        ]
