"""With a hundred plugins an event executes what it executes with five: counted in instructions, not timed."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from ksi_daemon.testing import Wire, running_daemon

from .conftest import WritePlugin

SOURCE: Final = """
    from ksi_daemon.plugin import Bus, Message, Notification, Request, handler, hookimpl, layer, subscriber

    class Said(Message):
        text: str

    class Ask(Request[Said], event="{name}:ask", safe=True):
        '''Ask.'''
        word: str = ""

    class Keep(Request[Said], event="{name}:keep"):
        '''Ask, and leave a row.'''

    class Told(Notification, event="{name}:told"):
        n: int = 0

    @handler
    async def ask(request: Ask) -> Said:
        return Said(text=request.word)

    @handler
    async def keep(request: Keep, bus: Bus) -> Said:
        return Said(text="kept")

    @subscriber
    async def hear(told: Told) -> None:
        pass

    @layer(namespaces=["{name}"])
    async def around(envelope, send, call_next):
        await call_next(envelope, send)

    @hookimpl
    def ksi_middleware():
        return [around]
"""
ROOT: Final = Path(__file__).resolve().parents[2]
PREFIXES: Final = (str(ROOT / "ksi_daemon"), str(ROOT / "ksi_common"))
ASKED: Final = 20


class Counter:
    """Counts the instructions that our own code executes, and that of the plugin that is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Counter":
        self._before: Any = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        del event, argument
        name = frame.f_code.co_filename
        if not (name.startswith(PREFIXES) or name.endswith("probe.py")) or "watchdog" in name:
            return None
        frame.f_trace_opcodes = True
        return self._executed

    def _executed(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        del frame, argument
        self.count += event == "opcode"
        return self._executed


async def instructions(write_plugin: WritePlugin, plugins: int, event: str) -> int:
    """Ask an event again and again in a daemon of so many plugins; give those of one."""
    others = [f"other{number}" for number in range(plugins - 1)]
    files = [write_plugin(SOURCE.replace("{name}", name), name) for name in ("probe", *others)]
    async with running_daemon(plugins=files) as ksi, ksi.connect() as wire:
        assert len(ksi.daemon.assembly.loaded) >= plugins
        for _ in range(ASKED):  # what is made at the first use is made
            assert (await wire.call(event))["type"] == "reply"
        return await fewest(wire, event)


async def fewest(wire: Wire, event: str) -> int:
    """Give the instructions of one request. What timers do meanwhile is in some of them, not in all."""
    counts = []
    for _ in range(ASKED):
        with Counter() as counter:
            await wire.call(event)
        counts.append(counter.count)
    return min(counts)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("event", ["probe:ask", "probe:keep", "system:health"])
async def test_with_a_hundred_plugins_an_event_executes_what_it_does_with_five(
    write_plugin: WritePlugin, event: str
) -> None:
    few = await instructions(write_plugin, 5, event)
    many = await instructions(write_plugin, 100, event)
    assert few > 100
    assert abs(many - few) / few < 0.01, (few, many)


async def test_the_counter_sees_a_layer_that_is_everybodys(write_plugin: WritePlugin) -> None:
    """The twin: what each event does pay for is more than the limit."""
    without = await instructions(write_plugin, 1, "probe:ask")
    everybodys = write_plugin(SOURCE.replace("{name}", "probe").replace('namespaces=["probe"]', ""), "probe")
    async with running_daemon(plugins=[everybodys]) as ksi, ksi.connect() as wire:
        for _ in range(ASKED):
            await wire.call("system:health")
        with_layer = await fewest(wire, "system:health")
        route = ksi.daemon.catalog.routes["system:health"]
        assert route.begin is None
    plain = await instructions(write_plugin, 1, "system:health")
    assert with_layer > plain * 1.05
    assert without > 100
