"""A handler that says again what it is told."""

from ksi_daemon.plugin import Message, Request, handler


class Said(Message):
    """What was said."""

    text: str


class Say(Request[Said], event="here:say", safe=True):
    """Say it again."""

    text: str


@handler
async def say(request: Say) -> Said:
    """Say it again."""
    return Said(text=request.text)
