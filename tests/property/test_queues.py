"""Queues against a model, and the log against the queues: what was told makes them again."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_common.clock import parse_time
from ksi_common.events.async_state import Sweep
from ksi_daemon.testing import FakeClock, RunningDaemon, running_daemon
from tests.support.scale import scaled

KEYS = ("a", "b")
pushes = st.tuples(
    st.just("push"), st.sampled_from(KEYS), st.none() | st.integers(0, 3).map(float), st.integers(0, 99)
)
others = st.tuples(
    st.sampled_from(["pop", "pop", "delete", "length", "read", "expire"]),
    st.sampled_from(KEYS),
    st.integers(0, 3).map(float),
    st.just(0),
)
ticks = st.tuples(st.just("tick"), st.just(""), st.integers(1, 3).map(float), st.just(0))
sweeps = st.tuples(st.just("sweep"), st.just(""), st.just(0.0), st.just(0))
steps = st.lists(pushes | others | ticks | sweeps, max_size=25)


@dataclass
class Model:
    """Lists of [value, expires]."""

    now: int
    queues: dict[str, list[list[Any]]] = field(default_factory=lambda: defaultdict(list))

    def live(self, key: str) -> list[Any]:
        self.queues[key] = [item for item in self.queues[key] if item[1] is None or item[1] > self.now]
        return [value for value, _ in self.queues[key]]

    def push(self, key: str, ttl: float | None, value: int) -> int:
        self.queues[key].append([value, None if ttl is None else self.now + int(ttl * 1e6)])
        return len(self.live(key)) + (ttl == 0)  # its position counts it, though its time is over

    def pop(self, key: str) -> tuple[Any, bool]:
        if not self.live(key):
            return None, False
        return self.queues[key].pop(0)[0], True

    def expire(self, key: str, ttl: float) -> int:
        count = len(self.live(key))
        at = self.now + int(ttl * 1e6)
        for item in self.queues[key]:
            item[1] = at if item[1] is None else min(at, item[1])
        return count


@pytest.mark.timeout(scaled(240, 600))
@settings(max_examples=scaled(15, 150))
@given(steps=steps)
async def test_queues_do_as_the_model_does_and_the_log_can_make_them_again(steps: Sequence[Any]) -> None:
    clock = FakeClock()
    model = Model(clock.time_us())
    async with running_daemon(clock=clock) as ksi:
        for action, key, seconds, value in steps:
            if action == "tick":
                clock.advance(seconds)
                model.now = clock.time_us()
            elif action == "sweep":
                await sweep(ksi)
            else:
                assert await done(ksi, action, key, seconds, value) == expected(
                    model, action, key, seconds, value
                )
        rows, told = await rows_and_told(ksi)
        assert replayed(told) == rows


Told = Sequence[tuple[str, dict[str, Any]]]
"""Names and data of events."""


async def rows_and_told(ksi: RunningDaemon) -> tuple["Rows", Told]:
    """Read both as of one moment: the timer may sweep at any."""
    while True:
        before = told_so_far(ksi)
        found = await ksi.daemon.database.write_apart(
            lambda tx: tx.execute("SELECT number, key, expires FROM queue_items").fetchall()
        )
        if len(told_so_far(ksi)) == len(before):
            return {number: (key, expires) for number, key, expires in found}, before


def told_so_far(ksi: RunningDaemon) -> Told:
    return [(event.event, json.loads(event.data)) for event in ksi.events("async_state:*")]


async def sweep(ksi: RunningDaemon) -> None:
    await ksi.bus.call(Sweep())


async def done(ksi: RunningDaemon, action: str, key: str, seconds: float | None, value: int) -> Any:
    match action:
        case "push":
            fields = {} if seconds is None else {"ttl_seconds": seconds}
            return (await ksi.call_raw("async_state:push", {"key": key, "data": value, **fields}))["position"]
        case "pop":
            popped = await ksi.call_raw("async_state:pop", {"key": key})
            return popped["data"], popped["found"]
        case "delete":
            return (await ksi.call_raw("async_state:delete", {"key": key}))["deleted"]
        case "length":
            return (await ksi.call_raw("async_state:queue_length", {"key": key}))["length"]
        case "read":
            return (await ksi.call_raw("async_state:get_queue", {"key": key}))["data"]
    return (await ksi.call_raw("async_state:expire_queue", {"key": key, "ttl_seconds": seconds}))["items"]


def expected(model: Model, action: str, key: str, seconds: float | None, value: int) -> Any:
    live = model.live(key)
    match action:
        case "push":
            return model.push(key, seconds, value)
        case "pop":
            return model.pop(key)
        case "delete":
            model.queues[key].clear()
            return len(live)
        case "length":
            return len(live)
        case "read":
            return live
    return model.expire(key, seconds or 0.0)


Rows = dict[int, tuple[str, int | None]]
"""Key and time by number."""


def replayed(told: Told) -> Rows:
    """Make the rows again from what was told, and nothing else."""
    rows: Rows = {}
    for name, data in told:
        APPLY[name.partition(":")[2]](rows, data)
    return rows


def pushed(rows: Rows, data: dict[str, Any]) -> None:
    expires = data["expires"]
    rows[data["number"]] = (data["key"], None if expires is None else parse_time(expires))


def popped(rows: Rows, data: dict[str, Any]) -> None:
    del rows[data["number"]]


def deleted(rows: Rows, data: dict[str, Any]) -> None:
    for number in [number for number, row in rows.items() if row[0] == data["key"]]:
        del rows[number]


def expired(rows: Rows, data: dict[str, Any]) -> None:
    for number in data["numbers"]:
        del rows[number]


def expiring(rows: Rows, data: dict[str, Any]) -> None:
    at = parse_time(data["expires"])
    for number, (key, expires) in rows.items():
        if key == data["key"] and number <= data["number"]:
            rows[number] = (key, at if expires is None else min(at, expires))


APPLY = {function.__name__: function for function in (pushed, popped, deleted, expired, expiring)}


def test_a_replay_that_misses_an_event_is_found_out() -> None:
    told = [
        ("async_state:pushed", {"number": 1, "key": "a", "expires": None}),
        ("async_state:popped", {"number": 1, "key": "a"}),
    ]
    assert replayed(told) == {}
    assert replayed(told[:1]) == {1: ("a", None)}
    with pytest.raises(KeyError):
        replayed(told[1:])
