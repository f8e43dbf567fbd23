"""What can be asked of hello, and what it tells."""

from ksi_daemon.plugin import Field, Message, Notification, Request


class Greeting(Message):
    """The answer to a hello."""

    text: str = Field(description="Words for people.")


class Hello(Request[Greeting], event="hello:hello"):
    """Say hello to somebody."""

    name: str = Field("world", description="To whom.", examples=["Ada"])


class Greeted(Notification, event="hello:greeted"):
    """Somebody was greeted."""

    name: str = Field(description="Who.")
