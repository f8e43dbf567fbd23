"""What hello does."""

from ksi_daemon.plugin import Bus, handler

from .events import Greeted, Greeting, Hello


@handler
async def hello(request: Hello, bus: Bus) -> Greeting:
    """Greet, and tell everybody who follows."""
    await bus.notify(Greeted(name=request.name))
    return Greeting(text=f"Hello, {request.name}!")
