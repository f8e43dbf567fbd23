"""Keep what runs running: restart with back-off, and give up on what fails again and again."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import structlog

log = structlog.get_logger()

A = TypeVar("A")
T = TypeVar("T")

MAX_FAILURES: Final = 3
WINDOW_S: Final = 60.0
DELAYS_S: Final = (0.1, 3.0)
"""After the first failure within the window, and after the second: what is busy has time to be free again."""


class GaveUp(Exception):
    """A child failed ``MAX_FAILURES`` times within ``WINDOW_S`` seconds."""


async def supervise(
    name: str,
    run: Callable[[], Awaitable[None]],
    *,
    quarantine: Callable[[str, BaseException], None] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Run ``run`` until it returns. One that raises is restarted, soon and then later, with jitter.

    After the third failure within 60 s ``quarantine`` is told, and this returns; where there is none, the
    child is one that the daemon cannot do without: GaveUp is raised.
    """
    failures: deque[float] = deque(maxlen=MAX_FAILURES)
    loop = asyncio.get_running_loop()
    while (error := await attempt_async(run)) is not None:
        failures.append(loop.time())
        log.error("child.crashed", child=name, error=repr(sole(error)), exc_info=error)
        if len(failures) == MAX_FAILURES and failures[-1] - failures[0] < WINDOW_S:
            if quarantine is None:
                raise GaveUp(f"{name} failed {MAX_FAILURES} times within {WINDOW_S:.0f} s") from error
            quarantine(name, sole(error))
            return
        recent = sum(loop.time() - moment < WINDOW_S for moment in failures)
        await sleep(DELAYS_S[recent - 1] * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter is no secret


def sole(error: BaseException) -> BaseException:
    """Give the one error of a group that has no other, as a TaskGroup's often is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def for_each(ones: Iterable[A], do: Callable[[A], object]) -> None:
    """Do it for all of them, in order; then raise what came of those that raised: they stop no other."""
    errors: list[BaseException] = []
    for one in ones:
        try:
            do(one)
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else BaseExceptionGroup("several raised", errors)


def attempt(action: Callable[[], T]) -> T | BaseException:
    """Run foreign code that may do anything (``sys.exit`` at import); give what it returned or raised."""
    try:
        return action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error


async def attempt_async(action: Callable[[], Awaitable[T]]) -> T | BaseException:
    """Await foreign code that may do anything; give what it returned or raised; cancellation passes."""
    try:
        return await action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return error
