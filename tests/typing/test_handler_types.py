"""What mypy says of handlers before they are loaded: an ignore that is not needed is an error."""

from collections.abc import AsyncIterator, Awaitable

from ksi_daemon.plugin import Answers, Message, Request, Stream, Transaction, Unit, handler


class Greeting(Message):
    text: str


class Warm(Greeting):
    degrees: int


class Greet(Request[Greeting], event="typing:greet"):
    name: str = "world"


class Follow(Stream[Greeting], event="typing:follow"):
    name: str = "world"


class Everybody(Request[Answers[Greeting]], event="typing:all", answers="all"):
    name: str = "world"


@handler
async def right(request: Greet) -> Greeting:
    return Greeting(text=request.name)


@handler
async def more_than_asked(request: Greet) -> Warm:
    return Warm(text=request.name, degrees=20)


@handler
def in_the_writer(request: Greet, tx: Transaction) -> Greeting:
    return Greeting(text=str(tx))


@handler
def now_or_later(request: Greet) -> Greeting | Unit[Greeting] | Awaitable[Greeting]:
    return Greeting(text=request.name)


@handler
async def one_of_all(request: Everybody) -> Greeting:
    return Greeting(text=request.name)


@handler
async def items(request: Follow) -> AsyncIterator[Greeting]:
    yield Greeting(text=request.name)


@handler  # type: ignore[ksi-handler]
async def text(request: Greet) -> str:
    return request.name


@handler  # type: ignore[ksi-handler]
def text_later(request: Greet) -> Greeting | Awaitable[str]:
    return Greeting(text=request.name)


@handler  # type: ignore[ksi-handler]
async def other_items(request: Follow) -> AsyncIterator[Message]:
    yield Greeting(text=request.name)


@handler
async def bare(request: Greet, bus) -> Greeting:  # type: ignore[no-untyped-def]
    return Greeting(text=f"{request.name} {bus}")


def test_the_events_that_are_typed_here_are_declared() -> None:
    assert [cls.__ksi__.kind for cls in (Greet, Follow, Everybody)] == ["request", "stream", "request"]
