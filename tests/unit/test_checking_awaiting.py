"""A forgotten await is found where it is certain, and nowhere else."""

import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from ksi_daemon.checking.awaiting import unawaited
from ksi_daemon.checking.findings import Finding

HEAD = """\
import asyncio
import functools
from ksi_daemon.plugin import Bus, Database, LocalBus, Timers

async def later(): ...

async def many():
    yield 1

def plain(): ...

"""
FOUND = {
    "a service": ("async def f(bus: Bus):\n    bus.notify(1)", "bus.notify(…)"),
    "the bus of the process": ("async def f(bus: LocalBus):\n    bus.ask('a:b', {})", "bus.ask(…)"),
    "a query": ("async def f(*, database: Database):\n    database.read('')", "database.read(…)"),
    "a type in quotes": ("async def f(timers: 'Timers'):\n    timers.cancel('a')", "timers.cancel(…)"),
    "a function of the module": ("async def f():\n    if 1:\n        later()", "later(…)"),
    "a function of another one": ("async def f():\n    asyncio.sleep(1)", "asyncio.sleep(…)"),
    "a function within": ("async def f():\n    async def g(): ...\n    g()", "g(…)"),
    "a service of the function around": (
        "async def f(bus: Bus):\n    async def g():\n        bus.call(1)\n    await g()",
        "bus.call(…)",
    ),
    "a method": (
        "class C:\n    async def a(self): ...\n    async def b(self):\n        self.a()",
        "self.a(…)",
    ),
    "a field": (
        "class C:\n    bus: Bus\n    async def f(self):\n        self.bus.call(1)",
        "self.bus.call(…)",
    ),
    "in a match": ("async def f():\n    match 1:\n        case 1:\n            later()", "later(…)"),
    "in a try": ("async def f():\n    try: ...\n    except OSError:\n        later()", "later(…)"),
}
LEFT = {
    "awaited": "async def f(bus: Bus):\n    await bus.notify(1)",
    "kept": "async def f(bus: Bus):\n    work = bus.call(1)\n    await work",
    "handed on": "async def f(group):\n    group.create_task(later())",
    "returned": "def f(bus: Bus):\n    return bus.call(1)",
    "what is at work without an await": "async def f(database: Database):\n    database.write(print)",
    "a function that is none of ours": "async def f():\n    plain()\n    many()",
    "no type": "async def f(bus):\n    bus.notify(1)",
    "a type that may be another": "async def f(bus: Bus | None):\n    bus.notify(1)",
    "a type that is none": "async def f(bus: 'no ('):\n    bus.notify(1)",
    "a parameter bound anew": "async def f(bus: Bus, other):\n    bus = other\n    bus.notify(1)",
    "a loop's": "async def f(ones):\n    for later in ones:\n        later()",
    "an import's": "async def f():\n    from os import getpid as later\n    later()",
    "an error's": "async def f():\n    try: ...\n    except OSError as later:\n        later()",
    "a match's": "async def f(a):\n    match a:\n        case [*later]:\n            later()",
    "a parameter's": "async def f(later):\n    later()",
    "a class within": "async def f():\n    class later: ...\n    later()",
    "one of two": (
        "async def f():\n    if 1:\n        async def g(): ...\n    else:\n        def g(): ...\n    g()"
    ),
    "decorated": "async def f():\n    @functools.cache\n    async def g(): ...\n    g()",
    "a generator within": "async def f():\n    async def g():\n        yield 1\n    g()",
    "an item's": "async def f(ones):\n    ones[0].later()",
    "a class of the same name": (
        "class C:\n    async def a(self): ...\n"
        "class D:\n    class C:\n        def b(self):\n            self.a()"
    ),
    "a static method": (
        "class C:\n    async def a(self): ...\n    @staticmethod\n    def b(c):\n        c.a()"
    ),
}


def found_in(folder: Path, source: str) -> list[Finding]:
    path = folder / "probe.py"
    path.write_text(HEAD + textwrap.dedent(source) + "\n")
    spec = spec_from_file_location("probe", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(unawaited(module))


@pytest.mark.parametrize(("source", "call"), FOUND.values(), ids=FOUND)
def test_a_coroutine_that_nobody_awaits_is_found(tmp_path: Path, source: str, call: str) -> None:
    (finding,) = found_in(tmp_path, source)
    assert finding.level == "problem"
    assert finding.text == f"{call} is not awaited: it never runs"
    line = next(
        n for n, text in enumerate((HEAD + source).split("\n"), 1) if text.strip().startswith(call[:-2])
    )
    assert finding.place == f"probe.py:{line}"
    assert finding.hint == f"write: await {call}"


@pytest.mark.parametrize("source", LEFT.values(), ids=LEFT)
def test_what_is_not_certain_is_left_alone(tmp_path: Path, source: str) -> None:
    assert found_in(tmp_path, source) == []


def test_a_function_that_cannot_await_is_to_be_made_async(tmp_path: Path) -> None:
    (finding,) = found_in(tmp_path, "def hear(bus: Bus):\n    bus.notify(1)")
    assert finding.hint == "make hear an `async def`, and write: await bus.notify(…)"
