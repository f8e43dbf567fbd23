"""The hub joins the events of a turn, renders them once, and gives each tap exactly those it asked for."""

from typing import Any

import pytest

from ksi_common.envelope import StoredEvent
from ksi_common.strict_json import loads
from ksi_daemon.hub import Batch, Channel, Hub


class Tap:
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)

    @property
    def ids(self) -> list[list[str]]:
        return [[event.event_id for event in batch.events] for batch in self.batches]

    @property
    def heads(self) -> list[int]:
        return [batch.head for batch in self.batches]


class Turn:
    """What is to run at the end of the turn of the loop."""

    def __init__(self) -> None:
        self.due: list[Any] = []

    def call_soon(self, function: Any) -> None:
        self.due.append(function)

    def end(self) -> None:
        due, self.due = self.due, []
        for function in due:
            function()


@pytest.fixture
def turn() -> Turn:
    return Turn()


@pytest.fixture
def hub(turn: Turn) -> Hub:
    made = Hub(turn.call_soon)
    made.log_id = "log"
    return made


def event(
    event_id: str, name: str = "a:b", *, stream: str | None = None, seq: int | None = None
) -> StoredEvent:
    return StoredEvent(name, b'{"n":1}', event_id, "c", "d", "owner", 0, 0, seq=seq, stream=stream, version=1)


def durable(seq: int, name: str = "a:b", **facts: Any) -> StoredEvent:
    return event(str(seq), name, seq=seq, **facts)


def frames(batch: Batch, ident: bytes = b"1") -> list[Any]:
    return [loads(line) for line in batch.lines(ident).splitlines()]


def cursors(batch: Batch) -> list[str]:
    return [frame["cursor"] for frame in frames(batch)]


def test_events_of_one_turn_are_one_batch(hub: Hub, turn: Turn) -> None:
    tap = Tap()
    hub.attach(tap, ["a:*"], None)
    hub.publish([durable(1), durable(2)], 2)
    hub.publish([durable(3)], 3)
    assert tap.ids == []
    turn.end()
    hub.publish([durable(4)], 4)
    turn.end()
    assert (tap.ids, tap.heads) == ([["1", "2", "3"], ["4"]], [3, 4])


def test_the_end_of_a_turn_is_asked_for_once(hub: Hub, turn: Turn) -> None:
    for pattern in ("a:*", "*"):
        hub.attach(Tap(), [pattern], None)
    hub.publish([durable(1), durable(2)], 2)
    assert len(turn.due) == 1


def test_a_tap_gets_what_its_patterns_match(hub: Hub, turn: Turn) -> None:
    taps = {pattern: Tap() for pattern in ("*", "a:*", "a:b", "x:y")}
    for pattern, tap in taps.items():
        hub.attach(tap, [pattern], None)
    both = Tap()
    hub.attach(both, ["a:b", "x:*", "x:y"], None)
    hub.publish([durable(1), durable(2, "a:c"), durable(3, "x:y")], 3)
    turn.end()
    assert {pattern: tap.ids for pattern, tap in taps.items()} == {
        "*": [["1", "2", "3"]],
        "a:*": [["1", "2"]],
        "a:b": [["1"]],
        "x:y": [["3"]],
    }
    assert both.ids == [["1", "3"]]


def test_a_tap_may_ask_for_one_stream(hub: Hub, turn: Turn) -> None:
    tap = Tap()
    hub.attach(tap, ["*"], "s/1")
    hub.publish([durable(1, stream="s/1"), durable(2, stream="s/2"), durable(3)], 3)
    turn.end()
    assert (tap.ids, tap.heads) == ([["1"]], [3])


def test_nothing_is_delivered_where_nothing_matches(hub: Hub, turn: Turn) -> None:
    tap = Tap()
    hub.attach(tap, ["x:*"], None)
    hub.publish([durable(1)], 1)
    turn.end()
    assert tap.batches == []
    assert hub.head == 1


def test_the_head_moves_without_listeners_too(hub: Hub) -> None:
    hub.publish([durable(1)], 1)
    assert hub.head == 1


def test_a_new_tap_gets_what_is_published_from_then_on(hub: Hub, turn: Turn) -> None:
    first, second, third = Tap(), Tap(), Tap()
    hub.attach(first, ["a:*"], None)
    hub.publish([durable(1)], 1)
    hub.attach(second, ["a:*"], None)
    hub.attach(third, ["*"], None)
    hub.publish([durable(2)], 2)
    turn.end()
    assert first.ids == [["1"], ["2"]]
    assert second.ids == third.ids == [["2"]]


def test_a_settled_channel_has_everything_up_to_the_head(hub: Hub, turn: Turn) -> None:
    tap, other = Tap(), Tap()
    channel = hub.attach(tap, ["a:*"], None)
    hub.attach(other, ["*"], None)
    hub.publish([durable(1)], 1)
    hub.settle(channel)
    hub.settle(channel)
    assert (tap.ids, tap.heads, other.ids) == ([["1"]], [1], [])
    hub.publish([durable(2)], 2)
    turn.end()
    assert (tap.ids, tap.heads) == ([["1"], ["2"]], [1, 2])
    assert other.ids == [["1", "2"]]


def test_a_detached_tap_gets_nothing_more(hub: Hub, turn: Turn) -> None:
    tap, other = Tap(), Tap()
    channel = hub.attach(tap, ["a:*"], None)
    hub.attach(other, ["a:*"], None)
    counted = [hub.subscriptions]
    hub.publish([durable(1)], 1)
    hub.detach(tap, channel)
    hub.detach(tap, channel)
    turn.end()
    assert (tap.ids, other.ids) == ([], [["1"]])
    assert [*counted, hub.subscriptions] == [2, 1]


def test_the_last_tap_takes_its_channel_along(hub: Hub, turn: Turn) -> None:
    tap, later = Tap(), Tap()
    channel = hub.attach(tap, ["a:*"], None)
    hub.publish([durable(1)], 1)
    hub.detach(tap, channel)
    hub.attach(later, ["a:*"], None)
    hub.detach(tap, channel)
    hub.publish([durable(2)], 2)
    turn.end()
    assert (tap.ids, later.ids, hub.subscriptions) == ([], [["2"]], 1)


def test_a_tap_may_leave_while_it_is_served(hub: Hub, turn: Turn) -> None:
    class Leaving(Tap):
        channel: Channel

        def deliver(self, batch: Batch) -> None:
            super().deliver(batch)
            hub.detach(self, self.channel)

    leaving, other = Leaving(), Tap()
    leaving.channel = hub.attach(leaving, ["a:*"], None)
    hub.attach(other, ["a:*"], None)
    for seq in (1, 2):
        hub.publish([durable(seq)], seq)
        turn.end()
    assert (leaving.ids, other.ids) == ([["1"]], [["1"], ["2"]])


def test_a_tap_that_raises_keeps_nothing_from_the_others(hub: Hub, turn: Turn) -> None:
    class Broken(Tap):
        def deliver(self, batch: Batch) -> None:
            raise ValueError(batch.head)

    same, other = Tap(), Tap()
    hub.attach(Broken(), ["a:*"], None)
    hub.attach(same, ["a:*"], None)
    hub.attach(other, ["a:b"], None)
    for seq in (1, 2):
        hub.publish([durable(seq)], seq)
        with pytest.raises(ValueError, match=f"^{seq}$"):
            turn.end()
    assert same.ids == other.ids == [["1"], ["2"]]


def test_deliveries_are_counted(hub: Hub, turn: Turn) -> None:
    for _ in range(3):
        hub.attach(Tap(), ["a:*"], None)
    hub.publish([durable(1), durable(2)], 2)
    turn.end()
    assert hub.delivered == 6


class Counting(str):
    """An event name that counts how often it is compared with a pattern."""

    __slots__ = ()
    comparisons = 0

    def startswith(self, *arguments: Any) -> bool:
        Counting.comparisons += 1
        return super().startswith(*arguments)


@pytest.mark.parametrize("pattern", ["a:*", "x:*"])
def test_whether_a_name_matches_is_decided_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(Counting, "comparisons", 0)
    hub.attach(Tap(), [pattern], None)
    for seq in range(1, 10):
        hub.publish([durable(seq, Counting("a:b"))], seq)
    assert Counting.comparisons == 1


def test_what_is_remembered_of_names_has_a_bound(hub: Hub, turn: Turn) -> None:
    tap = Tap()
    hub.attach(tap, ["a:*"], None)
    for seq in range(1, 10_003):
        hub.publish([durable(seq, f"a:b{seq}")], seq)
    turn.end()
    assert len(hub._routes) <= 10_000
    assert len(tap.batches[0].events) == 10_002


def test_an_item_is_rendered_as_the_wire_has_it() -> None:
    assert frames(Batch([durable(7, stream="s/1")], 9, "log"), b'"x"') == [
        {
            "id": "x",
            "type": "item",
            "cursor": "log-7",
            "data": {
                "event": "a:b",
                "data": {"n": 1},
                "event_id": "7",
                "stream": "s/1",
                "version": 1,
                "correlation_id": "c",
                "causation_id": "d",
                "actor": "owner",
                "time": "1970-01-01T00:00:00.000000Z",
            },
        }
    ]


def test_an_event_is_rendered_once_for_all() -> None:
    told = durable(1)
    one, other = Batch([told], 1, "log"), Batch([told], 1, "log")
    assert one.lines(b"1") is one.lines(b"1")
    line = told.line
    assert one.lines(b"2") == other.lines(b"2")
    assert told.line is line


def test_the_size_of_a_batch_is_that_of_its_data() -> None:
    assert Batch([durable(1), durable(2)], 2, "log").size == 2 * len(b'{"n":1}')


def test_resuming_after_an_ephemeral_event_skips_nothing(hub: Hub, turn: Turn) -> None:
    """What was published after it in the same turn has a position beyond its own."""
    tap = Tap()
    hub.attach(tap, ["a:*"], None)
    hub.publish([durable(1)], 1)
    hub.publish([event("passing")], hub.head)
    hub.publish([durable(2), durable(3)], 3)
    hub.publish([event("passing too")], hub.head)
    turn.end()
    assert cursors(tap.batches[0]) == ["log-1", "log-1", "log-2", "log-3", "log-3"]


def test_the_position_of_an_ephemeral_event_is_the_same_for_all(hub: Hub, turn: Turn) -> None:
    early, late = Tap(), Tap()
    channel = hub.attach(early, ["a:*"], None)
    hub.attach(late, ["*"], None)
    hub.publish([event("passing")], hub.head)
    hub.settle(channel)
    hub.publish([durable(1)], 1)
    turn.end()
    assert cursors(late.batches[0]) == ["log-0", "log-1"]
    assert cursors(early.batches[0]) == ["log-0"]
