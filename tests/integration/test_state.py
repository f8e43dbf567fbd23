"""``state:*``: what was stored is what is read, to the last digit, and nothing else."""

import asyncio
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ksi_common.events import state
from ksi_daemon.testing import RunningDaemon, running_daemon

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "one_as_float": 1.0,
    "minus_zero": -0.0,
    "tenth": 0.1,
    "long": 0.30000000000000004,
    "huge": 1e300,
    "largest": 1.7976931348623157e308,
    "tiny": 5e-324,
    "greatest_integer": 2**53 - 1,
    "least_integer": -(2**53) + 1,
    "number": 123,
    "number_as_text": "123",
    "null_as_text": "null",
    "true_as_text": "true",
    "json_as_text": '{"a":1}',
    "date_as_text": "2026-01-31T12:00:00Z",
    "empty_text": "",
    "blank": " ",
    "lines": "a\r\nb\n\tc\u2028d\u2029",
    "nul": "a\0b",
    "quotes": "\"'\\/`$(x)",
    "unicode": "Grüße, 世界, שלום, \U0001f9e0, e\u0301, \ufeff, \uffff",
    "empty_list": [],
    "empty_object": {},
    "list_of_null": [None],
    "mixed": [1, 1.0, "1", True, None, [], {}],
    "nested": {"a": [{"b": {"c": [[[None, {"": {" ": "é"}}]]]}}]},
    "odd_names": {"": 1, "a.b": 2, "a:b": 3, "é": 4, "\0": 5, "__proto__": 6, "type": 7},
    "order": {"z": 1, "a": 2, "m": {"y": 1, "b": 2}},
    "deep": None,
    "wide": list(range(5000)),
    "big": "é" * 150_000,
}
for _ in range(50):
    VALUES["deep"] = [VALUES["deep"]]

AWKWARD = (
    "a", "a:b", "b", ":", "a:", ":a", "a/b", "../a", "*", "a*", "%", "a%", "_", "'", '"', "é", "e\u0301",
    "A", " a", "a ", "a\0", "\0", "a\nb", "\U0001f9e0", "x" * 512,
)  # fmt: skip


def exactly(value: object) -> str:
    """Render what tells 1 from 1.0 and from True, and one order of names from another."""
    return json.dumps(value)


async def set_all(ksi: RunningDaemon, values: dict[str, Any], namespace: str = "global") -> None:
    async with ksi.connect() as wire:
        for key, value in values.items():
            data = {"namespace": namespace, "key": key, "value": value}
            answer = await wire.call("state:set", data)
            assert answer["data"] == {"status": "set", "namespace": namespace, "key": key}


async def get_all(ksi: RunningDaemon, keys: Any, namespace: str = "global") -> dict[str, Any]:
    async with ksi.connect() as wire:
        replies = [(await wire.call("state:get", {"namespace": namespace, "key": key})) for key in keys]
    return {reply["data"]["key"]: reply["data"]["value"] for reply in replies if reply["data"]["found"]}


async def listed(ksi: RunningDaemon, **question: Any) -> list[str]:
    reply = await ksi.call_raw("state:list", question)
    keys: list[str] = reply["keys"]
    return keys


# Values.


async def test_a_value_is_read_as_it_was_stored(ksi: RunningDaemon) -> None:
    await set_all(ksi, VALUES)
    assert exactly(await get_all(ksi, VALUES)) == exactly(VALUES)


async def test_a_value_is_told_as_it_was_stored(ksi: RunningDaemon) -> None:
    await set_all(ksi, VALUES)
    told = {data["key"]: data["value"] for data in ksi.emitted("state:changed")}
    assert exactly(told) == exactly(VALUES)


async def test_a_value_is_read_as_it_was_stored_by_the_next_daemon(tmp_path: Path) -> None:
    """From the file: what was at hand is gone."""
    async with running_daemon(home=tmp_path / "var") as ksi:
        await set_all(ksi, VALUES)
    async with running_daemon(home=tmp_path / "var") as ksi:
        assert exactly(await get_all(ksi, VALUES)) == exactly(VALUES)


async def test_a_stored_null_is_not_nothing(ksi: RunningDaemon) -> None:
    await set_all(ksi, {"null": None})
    there = await ksi.call_raw("state:get", {"key": "null"})
    nothing = await ksi.call_raw("state:get", {"key": "nothing"})
    assert (there["value"], there["found"]) == (None, True)
    assert (nothing["value"], nothing["found"]) == (None, False)
    assert await listed(ksi) == ["null"]


async def test_a_value_that_was_not_sent_is_not_null(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        error = (await wire.call("state:set", {"key": "a"}))["error"]
    assert error["code"] == "INVALID_ARGUMENT"
    assert await listed(ksi) == []


async def test_a_value_is_replaced_by_one_of_another_type(ksi: RunningDaemon) -> None:
    for value in (1, "1", 1.0, True, None, [1], {"a": 1}):
        await set_all(ksi, {"a": value})
        assert exactly(await get_all(ksi, ["a"])) == exactly({"a": value})
    assert await listed(ksi) == ["a"]


# Names.


async def test_keys_never_collide(ksi: RunningDaemon) -> None:
    values = {key: number for number, key in enumerate(AWKWARD)}
    await set_all(ksi, values)
    assert await get_all(ksi, AWKWARD) == values
    assert await listed(ksi) == sorted(AWKWARD)


async def test_namespace_and_key_never_collide(ksi: RunningDaemon) -> None:
    """However they might be joined: ``a`` + ``b:c`` is not ``a.b`` + ``c`` and so on."""
    pairs = [(n, k) for n in ("a", "a.b", "a-b", "a_b", "A") for k in ("b", "b:c", ".b", "c", "a", "a.b:c")]
    for number, (namespace, key) in enumerate(pairs):
        await set_all(ksi, {key: number}, namespace)
    found = [(await get_all(ksi, [key], namespace))[key] for namespace, key in pairs]
    assert found == list(range(len(pairs)))


@pytest.mark.parametrize("namespace", ["", "a:b", "a/b", "..", "a b", "é", "*", "a\n", "x" * 129])
async def test_what_is_no_name_is_no_namespace(ksi: RunningDaemon, namespace: str) -> None:
    async with ksi.connect() as wire:
        for asked in ("state:get", "state:delete"):
            error = (await wire.call(asked, {"namespace": namespace, "key": "a"}))["error"]
            assert error["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("key", ["", "x" * 513, 1, None])
async def test_what_is_no_key_is_refused(ksi: RunningDaemon, key: object) -> None:
    async with ksi.connect() as wire:
        error = (await wire.call("state:set", {"key": key, "value": 1}))["error"]
    assert error["code"] == "INVALID_ARGUMENT"


# Lists.


async def test_a_list_has_the_keys_of_its_namespace_in_order(ksi: RunningDaemon) -> None:
    await set_all(ksi, {"b": 1, "a": 1, "é": 1, "B": 1, "10": 1, "9": 1})
    await set_all(ksi, {"other": 1}, "elsewhere")
    assert await ksi.call_raw("state:list") == {
        "keys": ["10", "9", "B", "a", "b", "é"],
        "count": 6,
        "namespace": "global",
        "pattern": None,
        "next": None,
    }
    assert await listed(ksi, namespace="empty") == []


@pytest.mark.parametrize("limit", [1, 3, 7, 24, 25, 26])
async def test_a_list_by_pages_has_every_key_once(ksi: RunningDaemon, limit: int) -> None:
    await set_all(ksi, dict.fromkeys(AWKWARD))
    keys: list[str] = []
    after = None
    while True:
        page = await ksi.call_raw("state:list", {"after": after, "limit": limit})
        assert page["count"] == len(page["keys"]) <= limit
        keys += page["keys"]
        after = page["next"]
        if after is None:
            break
    assert keys == sorted(AWKWARD)


async def test_a_page_does_not_move_when_keys_before_it_go(ksi: RunningDaemon) -> None:
    await set_all(ksi, dict.fromkeys("abcdef"))
    page = await ksi.call_raw("state:list", {"limit": 3})
    await ksi.call_raw("state:delete", {"key": "a"})
    await set_all(ksi, {"aa": 1})
    assert await listed(ksi, after=page["next"]) == ["d", "e", "f"]


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*", ["User.2", "[x]", "a*b", "a?b", "ab", "user.1", "user.10", "user.2", "x", "x]"]),
        ("user.*", ["user.1", "user.10", "user.2"]),
        ("user.?", ["user.1", "user.2"]),
        ("*.2", ["User.2", "user.2"]),
        ("user.1", ["user.1"]),
        ("[x]", ["[x]"]),
        ("[*", ["[x]"]),
        ("[ux]*", []),
        ("*]", ["[x]", "x]"]),
        ("a?b", ["a*b", "a?b"]),
        ("user", []),
    ],
)
async def test_a_pattern_is_matched_as_in_a_shell_without_brackets(
    ksi: RunningDaemon, pattern: str, keys: list[str]
) -> None:
    names = ("user.1", "user.2", "user.10", "User.2", "[x]", "x", "x]", "a*b", "a?b", "ab")
    await set_all(ksi, dict.fromkeys(names))
    assert await listed(ksi, pattern=pattern) == keys


async def test_a_list_of_the_longest_keys_is_answered(ksi: RunningDaemon) -> None:
    """Lists page by bytes, too: what does not fit into an answer is on the next page."""
    keys = [f"{number:04}" + "\U0001f9e0" * 508 for number in range(1200)]
    async with asyncio.TaskGroup() as tasks:
        for key in keys:
            tasks.create_task(ksi.bus.call(state.Set(key=key, value=None)))
    found: list[str] = []
    after: str | None = None
    while True:
        page = await ksi.call_raw("state:list", {"limit": 10_000, "after": after})
        found += page["keys"]
        after = page["next"]
        if after is None:
            break
    assert found == keys


# Deletes.


async def test_what_is_deleted_is_not_found(ksi: RunningDaemon) -> None:
    await set_all(ksi, {"a": 1, "b": 2})
    first = await ksi.call_raw("state:delete", {"key": "a"})
    again = await ksi.call_raw("state:delete", {"key": "a"})
    assert (first["status"], again["status"]) == ("deleted", "not_found")
    assert await get_all(ksi, ["a", "b"]) == {"b": 2}
    assert await listed(ksi) == ["b"]


async def test_a_clear_takes_its_namespace_and_no_other(ksi: RunningDaemon) -> None:
    await set_all(ksi, {"a": 1, "b": 2}, "scratch")
    await set_all(ksi, {"a": 3}, "scratch.2")
    reply = await ksi.call_raw("state:clear", {"namespace": "scratch"})
    assert reply == {"status": "cleared", "namespace": "scratch", "keys_deleted": 2}
    assert await get_all(ksi, ["a", "b"], "scratch") == {}
    assert await get_all(ksi, ["a"], "scratch.2") == {"a": 3}


async def test_a_clear_says_which_namespace(ksi: RunningDaemon) -> None:
    await set_all(ksi, {"a": 1})
    async with ksi.connect() as wire:
        assert (await wire.call("state:clear"))["error"]["code"] == "INVALID_ARGUMENT"
    assert await listed(ksi) == ["a"]


# What is told.


async def test_what_changed_is_told_in_order(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:set", {"key": "a", "value": 1, "metadata": {"by": "test"}})
    await ksi.call_raw("state:set", {"key": "a", "value": 2})
    await ksi.call_raw("state:delete", {"key": "a"})
    await ksi.call_raw("state:delete", {"key": "a"})
    await ksi.call_raw("state:clear", {"namespace": "global"})
    place = {"namespace": "global", "key": "a"}
    assert [(told.event, json.loads(told.data)) for told in ksi.events("state:*")] == [
        ("state:changed", {**place, "value": 1, "metadata": {"by": "test"}}),
        ("state:changed", {**place, "value": 2, "metadata": None}),
        ("state:removed", place),
        ("state:cleared", {"namespace": "global", "keys_deleted": 0}),
    ]


async def test_what_is_rendered_by_hand_is_what_its_messages_say(ksi: RunningDaemon) -> None:
    wish = state.Set(key="a\n\u00fc", value={"deep": [1.5, None]}, namespace="other", metadata={"by": "me"})
    stored = await ksi.call_raw("state:set", wish.model_dump())
    assert stored == state.Stored(namespace=wish.namespace, key=wish.key).model_dump()
    changed = state.Changed(
        namespace=wish.namespace, key=wish.key, value=wish.value, metadata=wish.metadata
    ).model_dump()
    assert ksi.emitted("state:changed") == [changed]
    assert changed.keys() == state.Changed.model_fields.keys()


async def test_metadata_is_told_as_it_was_sent(ksi: RunningDaemon) -> None:
    for metadata in ({}, {"a": None}, None):
        await ksi.call_raw("state:set", {"key": "a", "value": 1, "metadata": metadata})
    assert [told["metadata"] for told in ksi.emitted("state:changed")] == [{}, {"a": None}, None]


# What is at hand, and what is stored.


async def test_who_was_answered_reads_what_they_wrote(ksi: RunningDaemon) -> None:
    async with ksi.connect() as one, ksi.connect() as other:
        for n in range(100):
            await one.call("state:set", {"key": "a", "value": n})
            assert (await other.call("state:get", {"key": "a"}))["data"]["value"] == n


async def test_a_read_never_goes_back_however_writes_and_reads_meet(ksi: RunningDaemon) -> None:
    """While a writer counts up, and another makes the daemon forget what it has at hand."""
    last = 300
    written = 0

    async def write() -> None:
        nonlocal written
        for n in range(1, last + 1):
            await ksi.bus.call(state.Set(key="a", value=n))
            written = n

    async def forget() -> None:
        while written < last:
            await ksi.bus.call(state.Clear(namespace="scratch"))

    async def read() -> None:
        seen = 0
        while seen < last:
            least = max(seen, written)
            value = (await ksi.bus.call(state.Get(key="a"))).value
            assert isinstance(value, int)
            assert least <= value <= last
            seen = value
            await asyncio.sleep(0)

    await ksi.bus.call(state.Set(key="a", value=0))
    async with asyncio.timeout(150), asyncio.TaskGroup() as tasks:
        for work in (write, forget, *[read] * 8):
            tasks.create_task(work())


async def test_a_deleted_value_does_not_come_back_from_a_read_under_way(ksi: RunningDaemon) -> None:
    for n in range(50):
        await ksi.bus.call(state.Set(key="a", value=n))
        await ksi.bus.call(state.Clear(namespace="scratch"))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(ksi.bus.call(state.Get(key="a")))
            tasks.create_task(ksi.bus.call(state.Delete(key="a")))
            for _ in range(4):
                tasks.create_task(ksi.bus.call(state.Get(key="a")))
        assert not (await ksi.bus.call(state.Get(key="a"))).found


async def test_more_than_can_be_at_hand_is_read_as_it_was_stored(ksi: RunningDaemon) -> None:
    texts = {f"k{number}": str(number) * 350_000 for number in range(10, 26)}
    await set_all(ksi, texts)
    for _ in range(2):
        assert await get_all(ksi, texts) == texts


async def test_writers_at_once_leave_the_value_of_the_last_one_told(ksi: RunningDaemon) -> None:
    numbers = count()

    async def write() -> None:
        for _ in range(25):
            await ksi.bus.call(state.Set(key="a", value=next(numbers)))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(write())
    told = ksi.emitted("state:changed")
    assert len(told) == 200
    assert await get_all(ksi, ["a"]) == {"a": told[-1]["value"]}
