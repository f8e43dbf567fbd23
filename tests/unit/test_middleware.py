"""The layers around a handler: each does its one thing, in a fixed order."""

import asyncio
import fractions
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest
from structlog.testing import capture_logs

from ksi_common.envelope import EventEnvelope, current_envelope
from ksi_common.errors import DeadlineExceeded, KSIError, NotFound, PermissionDenied
from ksi_common.messages import EventSpec, Message
from ksi_daemon.explaining import PluginBug
from ksi_daemon.middleware import compose
from ksi_daemon.middleware.correlation import correlation
from ksi_daemon.middleware.deadline import TICK_S, Deadline, DeadlineWheel
from ksi_daemon.middleware.errors import FRAMES, RECURSIVE_FRAMES, Errors, ReportedError
from ksi_daemon.middleware.observation import Observation, Observer
from ksi_daemon.middleware.permissions import permissions
from ksi_daemon.outcomes import Ended, Endpoint, Failed, Middleware, Outcome, Replied, Send, Yielded

ASK = EventSpec("demo:ask", "request", Message)
FOLLOW = EventSpec("demo:follow", "stream", Message)


class Sent:
    """Takes outcomes as a connection does, and keeps them."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    async def __call__(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    @property
    def error(self) -> KSIError:
        (outcome,) = self.outcomes
        assert isinstance(outcome, Failed)
        return outcome.error


class Client:
    """Awaits the answer elsewhere, as an exchange does."""

    connection: object = None

    def __init__(self) -> None:
        self.abandoned = asyncio.Event()

    def abandon(self) -> None:
        self.abandoned.set()


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def blamed() -> list[str]:
    return []


@pytest.fixture
def blame(blamed: list[str]) -> Callable[[str], str]:
    def blame(event: str) -> str:
        blamed.append(event)
        return "shop"

    return blame


@pytest.fixture
async def client() -> Client:
    return Client()


def envelope(spec: EventSpec | None = ASK, **facts: Any) -> EventEnvelope:
    made = EventEnvelope(spec.name if spec else "demo:unknown", {}, "e1", "c1", **facts)
    made.spec = spec
    return made


def raising(error: BaseException) -> Endpoint:
    async def endpoint(_: EventEnvelope, __: Send) -> None:
        raise error

    return endpoint


async def turn() -> None:
    """Let what was put off to the next turn of the loop run."""
    await asyncio.sleep(0)


async def answering(_: EventEnvelope, send: Send) -> None:
    await send(Replied({"n": 1}))


def layer(name: str, passed: list[str]) -> Middleware:
    async def note(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        passed.append(f"{name} in")
        await call_next(envelope, send)
        passed.append(f"{name} out")

    return note


async def test_the_first_layer_is_the_outermost(sent: Sent) -> None:
    passed: list[str] = []
    await compose([layer("a", passed), layer("b", passed)], answering)(envelope(), sent)
    assert passed == ["a in", "b in", "b out", "a out"]


async def test_no_layers_leave_the_endpoint_as_it_is() -> None:
    assert compose([], answering) is answering


async def test_a_layer_that_does_not_go_on_keeps_the_event_from_the_handler(sent: Sent) -> None:
    async def shut(envelope: EventEnvelope, send: Send, call_next: Endpoint) -> None:
        await send(Ended())

    await compose([shut], answering)(envelope(), sent)
    assert [type(outcome) for outcome in sent.outcomes] == [Ended]


async def test_the_envelope_is_current_while_it_is_handled(sent: Sent) -> None:
    seen: list[EventEnvelope | None] = []

    async def look(_: EventEnvelope, __: Send) -> None:
        seen.append(current_envelope())

    handled = envelope()
    await correlation(handled, sent, look)
    assert seen == [handled]


async def test_the_envelope_before_is_current_again_afterwards(sent: Sent) -> None:
    seen: list[EventEnvelope | None] = []
    inner = envelope()

    async def ask_further(_: EventEnvelope, send: Send) -> None:
        await correlation(inner, send, answering)
        seen.append(current_envelope())

    outer = envelope()
    await correlation(outer, sent, ask_further)
    assert seen == [outer]
    assert current_envelope() is None


async def test_no_envelope_is_current_after_an_error(sent: Sent) -> None:
    with pytest.raises(ValueError, match="oh"):
        await correlation(envelope(), sent, raising(ValueError("oh")))
    assert current_envelope() is None


GUARDED = EventSpec("demo:ask", "request", Message, permission="demo.ask")


async def test_the_owner_may_send_what_needs_a_permission(sent: Sent) -> None:
    await permissions(envelope(GUARDED), sent, answering)
    assert len(sent.outcomes) == 1


async def test_another_actor_may_not_send_what_needs_a_permission(sent: Sent) -> None:
    with pytest.raises(PermissionDenied, match="agent:1 may not send demo:ask") as refused:
        await permissions(envelope(GUARDED, actor="agent:1"), sent, answering)
    assert refused.value.details == {"permission": "demo.ask"}
    assert sent.outcomes == []


@pytest.mark.parametrize("spec", [ASK, None], ids=["declared", "undeclared"])
async def test_anybody_may_send_what_needs_no_permission(sent: Sent, spec: EventSpec | None) -> None:
    await permissions(envelope(spec, actor="agent:1"), sent, answering)
    assert len(sent.outcomes) == 1


async def test_each_handled_event_is_counted(sent: Sent) -> None:
    observation = Observation(log_requests=False)
    for _ in range(3):
        await observation(envelope(), sent, answering)
    figures = observation.statistics["demo:ask"]
    assert (figures.handled, figures.failed) == (3, 0)
    assert figures.seconds > 0


async def test_an_event_that_raises_is_counted_as_failed(sent: Sent) -> None:
    observation = Observation(log_requests=False)
    with pytest.raises(NotFound):
        await observation(envelope(), sent, raising(NotFound("gone")))
    figures = observation.statistics["demo:ask"]
    assert (figures.handled, figures.failed) == (1, 1)


async def test_names_that_nobody_declares_are_not_kept(sent: Sent) -> None:
    observation = Observation(log_requests=False)
    await observation(envelope(None), sent, answering)
    assert observation.statistics == {}


async def test_an_observer_sees_an_event_after_its_answer(sent: Sent) -> None:
    answered: list[int] = []
    observation = Observation(log_requests=False, observers=[lambda *_: answered.append(len(sent.outcomes))])
    await observation(envelope(), sent, answering)
    await turn()
    assert answered == [1]


async def fail_by_answer(_: EventEnvelope, send: Send) -> None:
    await send(Failed(NotFound("gone")))


@pytest.mark.parametrize(
    ("endpoint", "code"),
    [
        (answering, "OK"),
        (fail_by_answer, "NOT_FOUND"),
        (raising(NotFound("gone")), "NOT_FOUND"),
        (raising(ValueError("oh")), "INTERNAL"),
    ],
    ids=["answered", "answered with an error", "raised", "a bug"],
)
async def test_an_observer_is_told_the_code(sent: Sent, endpoint: Endpoint, code: str) -> None:
    seen: list[str] = []
    observation = Observation(log_requests=False, observers=[lambda _, __, code: seen.append(code)])
    with suppress(NotFound, ValueError):
        await observation(envelope(), sent, endpoint)
    await turn()
    assert seen == [code]
    assert observation.statistics["demo:ask"].failed == (code != "OK")


async def test_a_line_per_request_is_logged_where_asked_for(sent: Sent) -> None:
    with capture_logs() as lines:
        await Observation(log_requests=True)(envelope(), sent, answering)
        await turn()
    (line,) = lines
    assert (line["event"], line["handled"], line["outcome"]) == ("event.handled", "demo:ask", "OK")
    assert line["took_ms"] >= 0


async def test_no_line_per_request_is_logged_where_not_asked_for(sent: Sent) -> None:
    with capture_logs() as lines:
        await Observation(log_requests=False)(envelope(), sent, answering)
        await turn()
    assert lines == []


async def test_an_observer_sees_an_error_after_it_was_answered(
    sent: Sent, blame: Callable[[str], str]
) -> None:
    answered: list[int] = []
    observation = Observation(log_requests=False, observers=[lambda *_: answered.append(len(sent.outcomes))])
    await compose([Errors(blame), observation], raising(NotFound("gone")))(envelope(), sent)
    await turn()
    assert answered == [1]


async def test_an_observer_that_raises_harms_neither_the_request_nor_other_observers(sent: Sent) -> None:
    def broken(*_: object) -> None:
        raise ValueError("oh")

    seen: list[str] = []
    observers: list[Observer] = [broken, lambda _, __, code: seen.append(code)]
    with capture_logs() as lines:
        await Observation(log_requests=False, observers=observers)(envelope(), sent, answering)
        await turn()
    assert len(sent.outcomes) == 1
    assert seen == ["OK"]
    assert [(line["event"], line["handled"]) for line in lines] == [("observer.failed", "demo:ask")]


async def test_an_observer_that_is_taken_out_sees_no_more(sent: Sent) -> None:
    seen: list[str] = []
    observers: list[Observer] = [lambda _, __, code: seen.append(code)]
    observation = Observation(log_requests=False, observers=observers)
    observers.clear()
    await observation(envelope(), sent, answering)
    await turn()
    assert seen == []


@pytest.mark.parametrize(
    ("deadline", "code"), [(0.0, "DEADLINE_EXCEEDED"), (None, "CANCELLED"), (float("inf"), "CANCELLED")]
)
async def test_an_observer_is_told_whether_a_cancelled_event_was_late(
    sent: Sent, deadline: float | None, code: str
) -> None:
    seen: list[str] = []
    observation = Observation(log_requests=False, observers=[lambda _, __, code: seen.append(code)])
    with pytest.raises(asyncio.CancelledError):
        await observation(envelope(deadline=deadline), sent, raising(asyncio.CancelledError()))
    await turn()
    assert seen == [code]


async def never(_: EventEnvelope, __: Send) -> None:
    await asyncio.Event().wait()


async def until_abandoned(envelope: EventEnvelope, _: Send) -> None:
    assert isinstance(envelope.caller, Client)
    await envelope.caller.abandoned.wait()


def noting(seen: list[float | None]) -> Endpoint:
    async def endpoint(envelope: EventEnvelope, _: Send) -> None:
        seen.append(envelope.deadline)

    return endpoint


@pytest.mark.parametrize(
    ("default_s", "timeout_s"), [(0.01, None), (3600.0, 0.01)], ids=["by default", "by the caller"]
)
async def test_a_client_is_abandoned_at_its_deadline(
    sent: Sent, client: Client, default_s: float, timeout_s: float | None
) -> None:
    asked = envelope(caller=client, timeout_s=timeout_s)
    async with asyncio.timeout(5):
        await Deadline(default_s)(asked, sent, until_abandoned)
    assert asked.deadline is not None
    assert monotonic() >= asked.deadline


async def test_a_client_that_was_answered_is_not_abandoned(sent: Sent) -> None:
    deadline, early, late = Deadline(0.01), Client(), Client()
    await deadline(envelope(caller=early), sent, answering)
    async with asyncio.timeout(5):
        await deadline(envelope(caller=late), sent, until_abandoned)
    assert not early.abandoned.is_set()


async def test_the_wheel_turns_on_for_later_deadlines(sent: Sent, client: Client) -> None:
    deadline, later = Deadline(0.01), Client()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(deadline(envelope(caller=client), sent, until_abandoned))
        slow = envelope(caller=later, timeout_s=TICK_S * 2.5)
        group.create_task(deadline(slow, sent, until_abandoned))
        await client.abandoned.wait()
        assert slow.deadline is not None
        assert not later.abandoned.is_set() or monotonic() >= slow.deadline


async def test_the_wheel_turns_on_whatever_one_of_the_late_does(client: Client) -> None:
    class Raising(Client):
        def abandon(self) -> None:
            raise ValueError("not today")

    class Leaving(Client):
        def abandon(self) -> None:
            slot.pop(self)
            super().abandon()

    errors: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    wheel, leaving = DeadlineWheel(), Leaving()
    wheel.add(0.0, Raising())
    slot = wheel.add(0.0, leaving)
    async with asyncio.timeout(5):
        await leaving.abandoned.wait()
        wheel.add(0.0, client)
        await client.abandoned.wait()
    assert [str(error) for error in errors] == ["not today"]


async def test_a_stream_has_no_deadline_by_default(sent: Sent, client: Client) -> None:
    seen: list[float | None] = []
    await Deadline(0.01)(envelope(FOLLOW, caller=client), sent, noting(seen))
    assert seen == [None]


async def test_a_stream_has_the_deadline_that_its_caller_gives(sent: Sent, client: Client) -> None:
    async with asyncio.timeout(5):
        await Deadline(3600)(envelope(FOLLOW, caller=client, timeout_s=0.01), sent, until_abandoned)
    assert client.abandoned.is_set()


async def test_an_undeclared_event_has_the_default_deadline(sent: Sent, client: Client) -> None:
    async with asyncio.timeout(5):
        await Deadline(0.01)(envelope(None, caller=client), sent, until_abandoned)
    assert client.abandoned.is_set()


async def test_a_nested_deadline_is_not_later_than_the_one_around_it(sent: Sent) -> None:
    seen: list[float | None] = []
    around = monotonic() + 20
    await Deadline(30)(envelope(deadline=around, timeout_s=60), sent, noting(seen))
    assert seen == [around]


async def test_a_nested_deadline_may_be_earlier_than_the_one_around_it(sent: Sent) -> None:
    seen: list[float | None] = []
    around = monotonic() + 60
    await Deadline(30)(envelope(deadline=around, timeout_s=1), sent, noting(seen))
    assert seen[0] is not None
    assert seen[0] < around


async def test_a_call_within_the_process_ends_in_the_time_it_gives(sent: Sent) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineExceeded, match="demo:ask took too long"):
            await Deadline(3600)(envelope(timeout_s=0.01), sent, never)


async def test_a_timeout_of_the_handler_itself_stays_what_it_is(sent: Sent) -> None:
    with pytest.raises(TimeoutError, match="its own"):
        await Deadline(3600)(envelope(timeout_s=60), sent, raising(TimeoutError("its own")))


async def test_a_call_within_the_process_that_none_asked_for_has_the_default_deadline(sent: Sent) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineExceeded):
            await Deadline(0.01)(envelope(), sent, never)


async def test_a_call_within_the_process_that_gives_no_time_has_its_callers(sent: Sent) -> None:
    outer = Deadline(3600)
    inner = envelope()

    async def ask_further(envelope: EventEnvelope, send: Send) -> None:
        inner.deadline = envelope.deadline
        await outer(inner, send, never)

    asked = envelope(timeout_s=0.01)
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineExceeded, match="demo:ask took too long"):
            await outer(asked, sent, ask_further)
    assert inner.deadline == asked.deadline


async def test_an_answer_passes_unchanged(sent: Sent, blame: Callable[[str], str]) -> None:
    await Errors(blame)(envelope(), sent, answering)
    assert [type(outcome) for outcome in sent.outcomes] == [Replied]


async def test_an_operational_error_is_answered_as_it_is(
    sent: Sent, blame: Callable[[str], str], blamed: list[str]
) -> None:
    error = NotFound("no such thing")
    with capture_logs() as lines:
        await Errors(blame, strict=True)(envelope(), sent, raising(error))
    assert sent.error is error
    assert (lines, blamed) == ([], [])


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("oh"),
        SystemExit(3),
        KeyboardInterrupt(),
        RecursionError(),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
    ids=lambda bug: type(bug).__name__,
)
async def test_a_bug_is_answered_as_internal_and_harms_nobody(
    sent: Sent, blame: Callable[[str], str], blamed: list[str], bug: BaseException
) -> None:
    with capture_logs():
        await Errors(blame)(envelope(), sent, raising(bug))
    assert sent.error.code == "INTERNAL"
    assert type(bug).__name__ in sent.error.message
    assert sent.error.details == {"plugin": "shop"}
    assert blamed == ["demo:ask"]


async def test_a_bug_is_logged_with_its_traceback(sent: Sent, blame: Callable[[str], str]) -> None:
    with capture_logs() as lines:
        await Errors(blame)(envelope(), sent, raising(ValueError("oh")))
    (line,) = lines
    assert (line["event"], line["handled"], line["plugin"]) == ("handler.crashed", "demo:ask", "shop")
    assert line["error"] == "ValueError: oh"
    assert line["exception"].startswith("Traceback")


async def test_of_a_recursion_that_goes_too_deep_the_last_frames_are_logged(
    sent: Sent, blame: Callable[[str], str]
) -> None:
    async def recur(envelope: EventEnvelope, send: Send) -> None:
        await recur(envelope, send)

    with capture_logs() as lines:
        await Errors(blame)(envelope(), sent, recur)
    (line,) = lines
    assert line["where"].startswith("test_middleware.py:")
    assert f"[Previous line repeated {RECURSIVE_FRAMES - 3} more times]" in line["exception"]


async def test_of_a_deep_traceback_the_last_frames_are_logged(
    sent: Sent, blame: Callable[[str], str]
) -> None:
    def descend(depth: int) -> None:
        if depth == 0:
            raise ValueError("deep down")
        descend(depth - 1)

    async def call(envelope: EventEnvelope, send: Send) -> None:
        del envelope, send
        descend(100)

    with capture_logs() as lines:
        await Errors(blame)(envelope(), sent, call)
    (line,) = lines
    assert f"[Previous line repeated {FRAMES - 1 - 3} more times]" in line["exception"]
    assert line["exception"].endswith("ValueError: deep down\n")


async def test_a_long_message_of_a_bug_is_cut(sent: Sent, blame: Callable[[str], str]) -> None:
    with capture_logs() as lines:
        await Errors(blame)(envelope(), sent, raising(ValueError("o" * 10_000)))
    assert len(lines[0]["error"]) == 500
    assert len(sent.error.message) < 500


async def test_the_answer_to_a_bug_does_not_say_what_the_error_says(
    sent: Sent, blame: Callable[[str], str]
) -> None:
    with capture_logs():
        await Errors(blame)(envelope(), sent, raising(ValueError("sk-secret")))
    assert "sk-secret" not in str(sent.error.to_wire())


async def test_what_ksi_says_of_a_plugin_is_answered_in_these_words(
    sent: Sent, blame: Callable[[str], str]
) -> None:
    """Where a traceback leads to it, at the line it leads to."""
    with capture_logs() as lines:
        await Errors(blame)(envelope(), sent, raising(PluginBug("demo:ask has two units")))
    assert lines[0]["error"] == "demo:ask has two units"
    assert sent.error.message.startswith("plugin shop failed: demo:ask has two units (test_middleware.py:")


async def test_a_strict_daemon_raises_a_bug_on(sent: Sent, blame: Callable[[str], str]) -> None:
    with capture_logs(), pytest.raises(ValueError, match="oh"):
        await Errors(blame, strict=True)(envelope(), sent, raising(ValueError("oh")))
    assert sent.outcomes == []


async def test_a_bug_that_is_reported_is_not_logged_again(
    sent: Sent, blame: Callable[[str], str], blamed: list[str]
) -> None:
    errors = Errors(blame)
    with capture_logs() as lines:
        await errors(envelope(), sent, raising(ValueError("oh")))
        reported = sent.error
        await errors(envelope(), sent, raising(reported))
    assert isinstance(reported, ReportedError)
    assert len(lines) == 1
    assert blamed == ["demo:ask"]


async def test_a_cancellation_that_was_asked_for_is_answered_and_passes(
    sent: Sent, blame: Callable[[str], str]
) -> None:
    begun = asyncio.Event()

    async def wait(_: EventEnvelope, __: Send) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(_awaited(Errors(blame)(envelope(), sent, wait)))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert sent.error.code == "CANCELLED"


async def _awaited(work: Awaitable[None]) -> None:
    await work


def foreign(source: str, **names: Any) -> Any:
    """Give ``made`` of code that lies in a file of somebody else's."""
    scope: dict[str, Any] = dict(names)
    exec(compile(source, "/somewhere/else/theirs.py", "exec"), scope)
    return scope["made"]


async def test_the_place_named_is_that_of_foreign_code(sent: Sent, blame: Callable[[str], str]) -> None:
    made = foreign("async def made(envelope, send):\n    raise ValueError\n")
    with capture_logs() as lines:
        await Errors(blame)(envelope(), sent, made)
    assert lines[0]["where"] == "theirs.py:2"
    assert "(theirs.py:2)" in sent.error.message


async def test_the_place_named_is_foreign_though_the_error_is_of_our_code(
    sent: Sent, blame: Callable[[str], str]
) -> None:
    source = "async def made(envelope, send):\n    compose(1, 2)\n"
    with capture_logs() as lines:
        await Errors(blame)(envelope(), sent, foreign(source, compose=compose))
    assert lines[0]["where"] == "theirs.py:2"


async def test_the_place_named_is_the_plugins_though_a_library_that_it_called_raised(
    sent: Sent, blame: Callable[[str], str]
) -> None:
    errors = Errors(blame, owner_of=lambda file: "shop" if file.endswith("theirs.py") else None)
    source = "async def made(envelope, send):\n    fractions.Fraction(1, 0)\n"
    with capture_logs() as lines:
        await errors(envelope(), sent, foreign(source, fractions=fractions))
    assert lines[0]["where"] == "theirs.py:2"
    assert "(theirs.py:2)" in sent.error.message


def test_the_place_named_is_that_of_the_cause_where_only_that_is_foreign(
    blame: Callable[[str], str],
) -> None:
    cause = _caught(foreign("def made():\n    raise ValueError\n"))
    error = RuntimeError("a handler raised")
    error.__cause__ = cause
    errors = Errors(blame)
    with capture_logs() as lines:
        errors.answer(envelope(), error)
    assert lines[0]["where"] == "theirs.py:2"


def test_an_error_that_was_never_raised_has_no_place(blame: Callable[[str], str]) -> None:
    with capture_logs() as lines:
        Errors(blame).answer(envelope(), ValueError())
    assert lines[0]["where"] == "unknown"


def _caught(action: Callable[[], None]) -> BaseException:
    try:
        action()
    except ValueError as error:
        return error
    raise AssertionError("it did not raise")


async def test_items_pass_an_observed_stream(sent: Sent) -> None:
    async def stream(_: EventEnvelope, send: Send) -> None:
        await send(Yielded(Message()))
        await send(Ended())

    await Observation(log_requests=False, observers=[lambda *_: None])(envelope(FOLLOW), sent, stream)
    assert [type(outcome) for outcome in sent.outcomes] == [Yielded, Ended]
