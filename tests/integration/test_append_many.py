"""``event:append_many``: events of several streams are appended all or none, and once."""

from typing import Any

from ksi_daemon.testing import RunningDaemon


async def append(ksi: RunningDaemon, stream: str, *numbers: int) -> None:
    events = [{"event": "demo:told", "data": {"n": n}} for n in numbers]
    await ksi.call_raw("event:append", {"stream": stream, "events": events})


async def refused(ksi: RunningDaemon, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Ask what is refused; give the code and the details."""
    async with ksi.connect() as wire:
        answer = await wire.call("event:append_many", data)
    assert answer["type"] == "error", answer
    return answer["error"]["code"], answer["error"].get("details", {})


def many(*appends: dict[str, Any]) -> dict[str, Any]:
    return {"appends": list(appends)}


def told(*ids: str, **data: Any) -> list[dict[str, Any]]:
    return [{"event": "demo:told", "data": data, "event_id": ident} for ident in ids]


async def versions(ksi: RunningDaemon, *streams: str) -> list[int]:
    return [(await ksi.call_raw("event:read", {"stream": stream}))["count"] for stream in streams]


async def test_an_append_to_several_streams_is_all_or_none(ksi: RunningDaemon) -> None:
    await append(ksi, "demo/2", 1)
    first = {"stream": "demo/1", "events": told("a", "b"), "expected_version": "none"}
    second = {"stream": "demo/2", "events": told("c"), "expected_version": 2}
    code, details = await refused(ksi, many(first, second))
    assert (code, details["reason"], details["actual"]) == ("FAILED_PRECONDITION", "wrong_version", 1)
    assert await versions(ksi, "demo/1", "demo/2") == [0, 1]
    reply = await ksi.call_raw("event:append_many", many(first, {**second, "expected_version": 1}))
    assert reply["appended"] == [
        {"stream": "demo/1", "version": 2, "event_ids": ["a", "b"]},
        {"stream": "demo/2", "version": 2, "event_ids": ["c"]},
    ]
    assert await versions(ksi, "demo/1", "demo/2") == [2, 2]


async def test_an_append_is_known_by_its_ids_before_its_expected_version_is_looked_at(
    ksi: RunningDaemon,
) -> None:
    appends = many(
        {"stream": "demo/1", "events": told("a", "b"), "expected_version": 0},
        {"stream": "demo/2", "events": told("c"), "expected_version": 0},
    )
    first = await ksi.call_raw("event:append_many", appends)
    await append(ksi, "demo/1", 1, 2, 3)
    await append(ksi, "demo/2", 1)
    again = await ksi.call_raw("event:append_many", appends)
    assert again == {**first, "deduplicated": True}
    assert await versions(ksi, "demo/1", "demo/2") == [5, 2]


async def test_an_event_id_with_other_content_takes_the_whole_append_back(ksi: RunningDaemon) -> None:
    await ksi.call_raw("event:append_many", many({"stream": "demo/1", "events": told("a", n=1)}))
    for other in (
        {"stream": "demo/1", "events": told("a", n=2)},
        {"stream": "demo/3", "events": told("a", n=1)},
    ):
        data = many({"stream": "demo/2", "events": told("b")}, other)
        code, details = await refused(ksi, data)
        assert (code, details["reason"]) == ("ALREADY_EXISTS", "id_reused")
    assert await versions(ksi, "demo/1", "demo/2", "demo/3") == [1, 0, 0]


async def test_an_append_to_several_streams_names_each_once_and_stays_in_its_bound(
    ksi: RunningDaemon,
) -> None:
    entry = {"stream": "demo/1", "events": [{"event": "demo:told"}] * 501}
    _, details = await refused(ksi, many(entry, entry))
    assert details["reason"] == "stream_repeated"
    _, details = await refused(ksi, many(entry, {**entry, "stream": "demo/2"}))
    assert (details["reason"], details["limit"]) == ("too_many", 1000)
    forged = {"stream": "demo/2", "events": [{"event": "state:changed"}]}
    code, _ = await refused(ksi, many(entry, forged))
    assert code == "PERMISSION_DENIED"
