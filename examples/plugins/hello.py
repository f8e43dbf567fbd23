"""Say hello: a whole plugin. Drop it into plugins/ and start the daemon."""

from ksi_daemon.plugin import Bus, Message, Notification, Request, handler


class Greeting(Message):
    text: str


class Greeted(Notification, event="hello:greeted"):
    name: str


class Greet(Request[Greeting], event="hello:greet"):
    """Say hello."""

    name: str = "world"


@handler
async def greet(request: Greet, bus: Bus) -> Greeting:
    await bus.notify(Greeted(name=request.name))
    return Greeting(text=f"Hello, {request.name}!")
