"""What fails is restarted, ever later; what fails again and again is given up."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from ksi_daemon.supervisor import (
    DELAYS_S,
    MAX_FAILURES,
    WINDOW_S,
    GaveUp,
    attempt,
    attempt_async,
    supervise,
)


class Time:
    """Sleeps take no time, but pass it: the loop's clock goes on by as much as was slept, and ``between``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, between: float = 0.0) -> None:
        self.slept: list[float] = []
        self._passed = 0.0
        self._between = between
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self._passed)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._passed += seconds + self._between


class Failing:
    """Raises as often as it is told, then returns."""

    def __init__(self, times: int, error: BaseException | None = None) -> None:
        self.runs = 0
        self._times = times
        self._error = error or OSError("no disk")

    async def __call__(self) -> None:
        self.runs += 1
        if self.runs <= self._times:
            raise self._error


def unexpected(name: str, error: BaseException) -> NoReturn:
    raise AssertionError(f"{name} was quarantined: {error}")


async def supervised(run: Callable[[], Awaitable[None]], time: Time, **options: object) -> None:
    with capture_logs():
        await supervise("child", run, sleep=time.sleep, **{"quarantine": unexpected, **options})  # type: ignore[arg-type]


async def test_what_returns_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    time, run = Time(monkeypatch), Failing(0)
    await supervised(run, time)
    assert (run.runs, time.slept) == (1, [])


async def test_what_raises_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Failing(2)
    await supervised(run, Time(monkeypatch))
    assert run.runs == 3


async def test_what_exits_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Failing(1, SystemExit(3))
    await supervised(run, Time(monkeypatch))
    assert run.runs == 2


async def test_it_is_restarted_soon_and_then_later_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    await supervised(Failing(2), time)
    for slept, delay in zip(time.slept, DELAYS_S, strict=True):
        assert delay / 2 <= slept <= delay


async def test_the_delay_begins_anew_after_a_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch, between=WINDOW_S)
    await supervised(Failing(10), time)
    assert len(time.slept) == 10
    assert max(time.slept) <= DELAYS_S[0]


async def test_the_third_failure_within_a_minute_quarantines(monkeypatch: pytest.MonkeyPatch) -> None:
    run, error = Failing(99, failure := OSError("no disk")), []
    await supervised(run, Time(monkeypatch), quarantine=lambda name, raised: error.append((name, raised)))
    assert error == [("child", failure)]
    assert run.runs == MAX_FAILURES


BOTH = BaseExceptionGroup("two", [OSError("taken"), ValueError("wrong")])
TAKEN = OSError("taken")


@pytest.mark.parametrize(
    ("raised", "named"), [(BaseExceptionGroup("a", [BaseExceptionGroup("b", [TAKEN])]), TAKEN), (BOTH, BOTH)]
)
async def test_the_one_error_of_a_task_group_is_named_in_its_place(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, named: BaseException
) -> None:
    told: list[BaseException] = []
    await supervised(Failing(99, raised), Time(monkeypatch), quarantine=lambda _, error: told.append(error))
    assert told == [named]


async def test_failures_that_are_rare_enough_do_not_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Failing(20)
    await supervised(run, Time(monkeypatch, between=WINDOW_S / 2))
    assert run.runs == 21


async def test_what_cannot_be_done_without_is_given_up_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GaveUp, match="child failed 3 times within 60 s") as gave_up:
        await supervised(Failing(99), Time(monkeypatch), quarantine=None)
    assert isinstance(gave_up.value.__cause__, OSError)


async def test_each_crash_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as lines:
        await supervise("child", Failing(2), sleep=Time(monkeypatch).sleep)
    assert [(line["event"], line["child"], line["error"]) for line in lines] == [
        ("child.crashed", "child", "OSError('no disk')")
    ] * 2


async def test_a_child_that_is_cancelled_is_not_restarted() -> None:
    begun = asyncio.Event()
    runs = []

    async def wait() -> None:
        runs.append(1)
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(supervise("child", wait))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert runs == [1]


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def action() -> NoReturn:
        raise error

    return action


def raising_async(error: BaseException) -> Callable[[], Awaitable[NoReturn]]:
    async def action() -> NoReturn:
        raise error

    return action


def test_an_attempt_gives_what_was_returned() -> None:
    assert attempt(lambda: 5) == 5


@pytest.mark.parametrize("error", [ValueError("oh"), SystemExit(3), GeneratorExit()])
def test_an_attempt_gives_what_was_raised(error: BaseException) -> None:
    assert attempt(raising(error)) is error


def test_ctrl_c_passes_an_attempt() -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(raising(KeyboardInterrupt()))


async def test_an_async_attempt_gives_what_was_returned() -> None:
    async def action() -> int:
        return 5

    assert await attempt_async(action) == 5


@pytest.mark.parametrize("error", [ValueError("oh"), SystemExit(3), asyncio.CancelledError()])
async def test_an_async_attempt_gives_what_was_raised(error: BaseException) -> None:
    """Also a CancelledError that nobody asked for."""
    assert await attempt_async(raising_async(error)) is error


async def test_ctrl_c_passes_an_async_attempt() -> None:
    with pytest.raises(KeyboardInterrupt):
        await attempt_async(raising_async(KeyboardInterrupt()))


async def test_what_is_raised_by_a_call_that_never_came_to_await_is_given() -> None:
    error = ValueError("oh")
    assert await attempt_async(raising(error)) is error
