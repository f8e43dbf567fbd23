"""The session, with no I/O at all: bytes in, bytes out."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_client.exchanges import (
    MAX_BUFFERED_BYTES,
    MAX_LOSSES,
    Consumption,
    Exchange,
    Feed,
    Question,
    Subscription,
)
from ksi_client.session import MAX_IN_FLIGHT, Session
from ksi_common.errors import FailedPrecondition, ResourceExhausted, Unavailable
from ksi_common.frames import Call
from ksi_common.strict_json import dumps, loads


@pytest.fixture
def session() -> Session:
    session = Session()
    session.connected()
    return session


def sent(session: Session) -> list[dict[str, Any]]:
    return [loads(line) for line in session.data_to_send().splitlines()]


def line(**frame: Any) -> bytes:
    return dumps(frame) + b"\n"


def item(ident: int, n: int, size: int = 0) -> bytes:
    return line(id=ident, type="item", cursor=f"c{n}", data={"n": n, "fill": "x" * size})


def filling(ident: int) -> bytes:
    """Give items that fill a buffer."""
    return b"".join(item(ident, n, MAX_BUFFERED_BYTES // 8) for n in range(8))


def health(*, safe: bool = False) -> Question:
    return Question(Call("system:health", {}, timeout_s=1.0), resend=safe)


ASKED = "2026-01-31T12:00:00.000000Z"


def subscription() -> Subscription:
    return Subscription(Call("event:subscribe", {"patterns": ["a:*"], "start": "now"}), asked=ASKED)


def test_a_request_is_a_line_with_an_id(session: Session) -> None:
    session.start(health())
    assert session.data_to_send() == b'{"id":1,"event":"system:health","data":{},"timeout_s":1.0}\n'
    assert session.data_to_send() == b""


def test_nothing_is_sent_without_a_connection() -> None:
    session = Session()
    session.start(health())
    assert session.data_to_send() == b""
    session.connected()
    assert len(sent(session)) == 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_split_of_the_bytes_gives_the_same_answers(cuts: list[int]) -> None:
    session = Session()
    session.connected()
    first, second = health(), health()
    session.start(first)
    session.start(second)
    data = line(id=2, type="reply", event="system:health", data={"n": 2}) + line(
        id=1, type="reply", event="system:health", data={"n": 1}
    )
    for size in [*cuts, len(data)]:
        session.receive(data[:size])
        data = data[size:]
    assert (first.result(), second.result()) == ({"n": 1}, {"n": 2})


def test_a_cancelled_request_holds_its_place_until_the_daemon_ends_it(session: Session) -> None:
    questions = [health() for _ in range(MAX_IN_FLIGHT + 1)]
    for question in questions:
        session.start(question)
    assert len(sent(session)) == MAX_IN_FLIGHT
    session.cancel(questions[0])
    assert sent(session) == [{"type": "cancel", "id": 1}]
    session.receive(line(id=1, type="error", error={"code": "CANCELLED", "message": "m"}))
    assert [frame["id"] for frame in sent(session)] == [MAX_IN_FLIGHT + 1]


def test_streams_do_not_count_among_the_requests_in_flight(session: Session) -> None:
    for _ in range(MAX_IN_FLIGHT + 1):
        session.start(Feed(Call("demo:stream", {})))
    session.start(health())
    assert len(sent(session)) == MAX_IN_FLIGHT + 2


def test_a_request_cancelled_while_it_waits_is_never_sent() -> None:
    session = Session()
    question = health()
    session.start(question)
    session.cancel(question)
    session.connected()
    assert session.data_to_send() == b""
    assert session.idle


def test_after_a_lost_connection_safe_requests_go_first_and_in_order(session: Session) -> None:
    for exchange in (health(safe=True), subscription(), health(safe=True)):
        session.start(exchange)
    session.lost()
    session.start(Question(Call("demo:later", {})))
    sent(session)
    session.connected()
    assert [frame["event"] for frame in sent(session)] == [
        "system:health",
        "event:subscribe",
        "system:health",
        "demo:later",
    ]


def test_a_request_that_loses_every_connection_is_given_up(session: Session) -> None:
    question, feed = health(safe=True), subscription()
    session.start(question)
    session.start(feed)
    for _ in range(MAX_LOSSES):
        session.lost()
        session.connected()
        assert len(sent(session)) == 2
    session.lost()
    session.connected()
    assert [frame["event"] for frame in sent(session)] == ["event:subscribe"]
    with pytest.raises(Unavailable, match="connection lost"):
        question.result()


def test_a_connection_that_is_refused_is_no_loss_of_its_request(session: Session) -> None:
    question = health(safe=True)
    session.start(question)
    for _ in range(MAX_LOSSES + 1):
        refusal = {"code": "UNAVAILABLE", "message": "full", "retryable": True}
        session.receive(line(id=None, type="error", error=refusal))
        session.lost()
        session.connected()
        assert [frame["event"] for frame in sent(session)] == ["system:health"]
    assert not question.done


def test_answers_to_a_connection_that_is_gone_are_not_mistaken(session: Session) -> None:
    question = health(safe=True)
    session.start(question)
    session.lost()
    session.connected()
    session.receive(line(id=1, type="reply", event="system:health", data={}))
    assert not question.done
    session.receive(line(id=2, type="reply", event="system:health", data={}))
    assert question.done


def test_a_safe_request_that_a_stopping_daemon_refused_waits_for_the_next(session: Session) -> None:
    question, feed = health(safe=True), subscription()
    session.start(question)
    session.start(feed)
    error = {"code": "UNAVAILABLE", "message": "stopping", "details": {"reason": "shutting_down"}}
    session.receive(line(id=1, type="error", error=error) + line(id=2, type="error", error=error))
    assert session.statistics().held_back == 2
    sent(session)
    session.lost()
    session.connected()
    assert len(sent(session)) == 2


@pytest.mark.parametrize("make", [lambda: health(safe=True), subscription])
def test_what_is_cancelled_while_it_waits_for_the_next_daemon_is_not_sent(
    session: Session, make: Callable[[], Exchange]
) -> None:
    exchange = make()
    session.start(exchange)
    error = {"code": "UNAVAILABLE", "message": "stopping", "details": {"reason": "shutting_down"}}
    session.receive(line(id=1, type="error", error=error))
    session.cancel(exchange)
    assert session.idle
    session.lost()
    session.connected()
    assert session.data_to_send() == b""


@pytest.mark.parametrize("kind", [Subscription, Consumption])
@pytest.mark.parametrize(("start", "again"), [("now", {"time": ASKED}), ("beginning", "beginning")])
def test_what_has_no_cursor_yet_begins_where_it_was_asked_to(
    session: Session, kind: type[Subscription | Consumption], start: str, again: object
) -> None:
    """The second "now" would be after what this client told since, which the daemon may have stored."""
    session.start(kind(Call("event:subscribe", {"patterns": ["a:*"], "start": start}), asked=ASKED))
    assert sent(session)[0]["data"]["start"] == start
    session.lost()
    session.connected()
    assert sent(session)[0]["data"]["start"] == again


def test_a_subscription_pauses_by_bytes_and_resumes_after_the_last_that_it_kept(session: Session) -> None:
    feed = subscription()
    session.start(feed)
    sent(session)
    size = MAX_BUFFERED_BYTES // 10
    for n in range(15):
        session.receive(item(1, n, size))
    assert sent(session) == [{"type": "cancel", "id": 1}]
    assert [session.pop(feed) is not None for _ in range(5)] == [True] * 5
    assert sent(session) == []
    assert session.pop(feed) is not None
    (resumed,) = sent(session)
    assert (resumed["id"], resumed["data"]["start"]) == (2, {"cursor": "c9"})


def test_a_subscription_cancelled_while_paused_is_not_resumed(session: Session) -> None:
    feed = subscription()
    session.start(feed)
    session.receive(filling(1))
    assert session.statistics().paused == 1
    sent(session)
    session.cancel(feed)
    assert session.statistics().paused == 0
    assert session.data_to_send() == b""
    assert all(session.pop(feed) for _ in range(8))
    assert session.data_to_send() == b""


def test_a_subscription_given_up_while_paused_is_read_to_its_end_and_not_resumed(session: Session) -> None:
    feed = subscription()
    session.start(feed)
    session.receive(filling(1))
    session.lost()
    session.fail(Unavailable("gone"))
    assert all(session.pop(feed) for _ in range(8))
    assert session.pop(feed) is None
    assert session.idle


def test_a_stream_that_overflows_gives_what_it_has_and_then_an_error(session: Session) -> None:
    feed = Feed(Call("demo:stream", {}))
    session.start(feed)
    session.receive(filling(1))
    assert all(session.pop(feed) for _ in range(8))
    assert session.pop(feed) is None
    assert isinstance(feed.error, ResourceExhausted)


def test_giving_up_fails_everything_that_waits(session: Session) -> None:
    paused, question, held = subscription(), health(), Question(Call("demo:held", {}))
    session.start(paused)
    session.receive(filling(1))
    session.start(question)
    session.lost()
    session.start(held)
    session.fail(Unavailable("gone"))
    assert isinstance(paused.error, Unavailable)
    assert isinstance(question.error, Unavailable)
    assert isinstance(held.error, Unavailable)
    assert session.idle


@pytest.mark.parametrize(
    "data",
    [
        b"x\n",
        b"[]\n",
        b'{"id":1,"type":"reply"}\n',
        b'{"id":1,"type":"error","error":null}\n',
        b"\xff\n",
        b"x" * (2 * 1024 * 1024 + 1),
    ],
)
def test_bytes_that_are_not_the_protocol_are_refused(session: Session, data: bytes) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        session.receive(data)
    assert caught.value.details["reason"] == "protocol_mismatch"


def test_a_refusal_is_the_last_that_a_connection_says(session: Session) -> None:
    session.start(health())
    refusal = line(id=None, type="error", error={"code": "PERMISSION_DENIED", "message": "not you"})
    session.receive(refusal)
    assert session.refusal is not None
    session.receive(line(id=1, type="reply", event="system:health", data={}))
    assert session.refusal is None
