"""Handlers that do wrong, each in its way; nobody else is to feel it."""

import asyncio
import time
from typing import Any

from ksi_daemon.plugin import Bus, Message, Notification, Request, handler, subscriber

_leaked: list[Any] = []


class Done(Message):
    """It was done."""

    text: str = ""


class Nothing(Request[Done], event="trouble:none"):
    """Do what is right."""


class Raise(Request[Done], event="trouble:raise"):
    """Raise."""


class Recur(Request[Done], event="trouble:recur"):
    """Call itself."""


class Nonsense(Request[Done], event="trouble:nonsense"):
    """Answer with what is no answer."""


class Large(Request[Done], event="trouble:large"):
    """Answer with more than may be."""


class Hang(Request[Done], event="trouble:hang"):
    """Wait for ever."""


class Deaf(Request[Done], event="trouble:deaf"):
    """Wait, and refuse to be cancelled."""


class Leak(Request[Done], event="trouble:leak"):
    """Leave a task and 100 kB behind."""


class Storm(Request[Done], event="trouble:storm"):
    """Tell what makes it tell again."""


class Sleep(Request[Done], event="trouble:sleep"):
    """Hold a thread."""


class Echoed(Notification, event="trouble:echoed"):
    """Told for each of them that is heard."""


@handler
async def do_right(_: Nothing) -> Done:
    """Do what is right."""
    return Done()


@handler
async def fail(_: Raise) -> Done:
    """Raise."""
    raise ValueError("as it does")


@handler
async def recur(request: Recur) -> Done:
    """Call itself."""
    return await recur(request)


@handler
async def answer_nonsense(_: Nonsense) -> Done:
    """Answer with what is no answer."""
    nonsense: Any = {1: {2}}
    return nonsense  # type: ignore[no-any-return]


@handler
async def answer_much(_: Large) -> Done:
    """Answer with more than may be."""
    return Done(text="x" * 20_000_000)


@handler
async def hang(_: Hang) -> Done:
    """Wait for ever."""
    await asyncio.Event().wait()
    return Done()


@handler
async def stay(_: Deaf) -> Done:
    """Wait, and refuse to be cancelled."""
    for _again in range(3):
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            continue
    return Done()


@handler
async def leak(_: Leak) -> Done:
    """Leave a task and 100 kB behind."""
    _leaked.append((asyncio.create_task(asyncio.sleep(3600)), bytearray(100_000)))
    return Done()


@handler
async def storm(_: Storm, bus: Bus) -> Done:
    """Tell what makes it tell again."""
    await bus.notify(Echoed())
    return Done()


@subscriber
async def tell_again(_: Echoed, bus: Bus) -> None:
    """Tell it again, until the limit of hops."""
    await bus.notify(Echoed())


@handler
def hold_thread(_: Sleep) -> Done:
    """Hold a thread."""
    time.sleep(0.1)
    return Done()
