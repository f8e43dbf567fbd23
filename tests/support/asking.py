"""What tests of completions ask of a daemon whose answers are the mock's."""

from typing import Any

from ksi_daemon.testing import RunningDaemon

Frame = dict[str, Any]


def table(**settings: Any) -> dict[str, Any]:
    """Give settings of a daemon in which the mock answers: the prompt again."""
    return {"plugins": {"completion": {"provider": "mock", **settings}}}


async def ask(ksi: RunningDaemon, prompt: str, **asked: Any) -> Frame:
    """Ask for a stream, and give its last step."""
    step: Frame = {}
    async with ksi.connect() as wire:
        wire.send({"event": "completion:stream", "data": {"prompt": prompt, **asked}, "id": "ask"})
        while (frame := await wire.receive())["type"] == "item":
            step = frame["data"]
    assert frame["type"] == "end", frame
    return step


async def until(ksi: RunningDaemon, pattern: str, count: int = 1) -> list[Frame]:
    """Wait until so many events of a name were told."""
    async with ksi.connect() as wire:
        wire.send(
            {"event": "event:subscribe", "data": {"patterns": [pattern], "start": "beginning"}, "id": "u"}
        )
        seen: list[Frame] = []
        while len(seen) < count:
            frame = await wire.receive()
            if frame["type"] == "item":
                seen.append(frame["data"]["data"])
    return seen
