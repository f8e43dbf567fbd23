"""A plugin whose requests say what they are to do, so that a test can have each way to end."""

import asyncio
from typing import Literal

from ksi_daemon.plugin import (
    Database,
    Message,
    NotFound,
    Notification,
    Request,
    Transaction,
    Unavailable,
    handler,
)

Way = Literal[
    "later",
    "unit",
    "nothing",
    "refuse",
    "busy",
    "refuse_after",
    "odd_after",
    "busy_after",
    "bug_after",
    "wrong",
]

ODD = "file: \udcff"
"""As a name is that is no UTF-8."""
calls: list[str] = []
"""What handlers were asked, each time they ran."""
held: dict[str, asyncio.Event] = {}
"""Places, "before" and "after" the write, where handlers wait until the event is set."""
reached: asyncio.Queue[str] = asyncio.Queue()
"""Places that were held, as handlers came to them."""


class Done(Message):
    """How many there are now."""

    number: int


class Counted(Notification, event="keyed:counted"):
    """It took effect."""

    ident: str


class Do(Request[Done], event="keyed:do"):
    """Take effect, in a way."""

    ident: str
    way: Way = "later"


class DoAgain(Request[Done], event="keyed:do_again", idempotent=True):
    """Take effect; doing it twice is doing it once."""

    ident: str
    way: Way = "later"


@handler
async def do(request: Do, database: Database) -> Done:
    """Do it."""
    done = await _do(request, database)
    if request.way == "wrong":
        return {"number": 1}  # type: ignore[return-value]  # as plugins without a type checker do
    return done


@handler
async def do_again(request: DoAgain, database: Database) -> Done:
    """Do it, perhaps again."""
    return await _do(request, database)


async def _do(request: Do | DoAgain, database: Database) -> Done:
    calls.append(request.ident)
    await _pass("before")
    match request.way:
        case "nothing":
            return Done(number=len(calls))
        case "refuse":
            raise NotFound("there is no such thing")
        case "busy":
            raise Unavailable("not now")
    if request.way == "unit":
        return await database.write(lambda tx: Done(number=_count(tx, request.ident)))
    number = await database.write(lambda tx: _count(tx, request.ident))
    await _pass("after")
    match request.way:
        case "refuse_after" | "odd_after" as way:
            raise NotFound(f"{number} is no such {'thing' if way == 'refuse_after' else ODD}")
        case "busy_after":
            raise Unavailable("not now")
        case "bug_after":
            raise ZeroDivisionError
    return Done(number=number)


def _count(tx: Transaction, ident: str) -> int:
    return tx.tell(Counted(ident=ident), stream="keyed/counted").version or 0


async def _pass(place: str) -> None:
    event = held.get(place)
    if event is not None:
        reached.put_nowait(place)
        await event.wait()
