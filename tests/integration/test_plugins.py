"""Plugins that cannot be loaded: one clear line each, and everything else runs."""

import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.testing import RunningDaemon, running_daemon

from .conftest import LogFile, WritePlugin

ROOT = Path(__file__).resolve().parents[2]
HELLO = ROOT / "examples" / "plugins" / "hello.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILTIN = ("system", *PROJECT["entry-points"]["ksi"])

IMPORTS = """
    from typing import Protocol
    from contextlib import asynccontextmanager
    from collections.abc import AsyncIterator
    from ksi_common.events import state
    from ksi_daemon.plugin import (
        Bus, Message, Notification, Request, Service, Stream, handler, hookimpl, subscriber
    )

    class Done(Message):
        pass

    class Ask(Request[Done], event="bad:ask"):
        '''Ask.'''

    class Follow(Stream[Done], event="bad:follow"):
        '''Follow.'''

    class Told(Notification, event="bad:told"):
        n: int = 0

    class Store(Protocol):
        pass

    class Cache(Protocol):
        pass

    class Absent(Protocol):
        pass
"""

REFUSED = {
    "a syntax error": ("def f(:\n    pass\n", "SyntaxError: invalid syntax (bad.py:1)"),
    "a wrong indent": ("x = 1\n  y = 2\n", "SyntaxError: unexpected indent (bad.py:2)"),
    "a missing import": (
        "import no_such_module\n",
        "ModuleNotFoundError: No module named 'no_such_module' (bad.py:1)",
    ),
    "a missing name": (
        "from ksi_daemon.plugin import handel\n",
        "ImportError: cannot import name 'handel' from 'ksi_daemon.plugin'",
    ),
    "an exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3 (bad.py:2)"),
    "an exit without a word": ("raise SystemExit\n", "SystemExit (bad.py:1)"),
    "an error of several lines": (
        "def f():\n    raise ValueError('first\\nsecond')\nf()\n",
        "ValueError: first (bad.py:2)",
    ),
    "bytes that are no text": ("x = '\udcff'\n", "SyntaxError: "),
    "a duplicate event": (
        IMPORTS
        + """
    @handler
    async def mine(request: state.Get) -> state.Found:
        return state.Found(value=1, found=True, namespace="x", key="y")
""",
        "state:get is handled by plugin state already",
    ),
    "the same event twice": (
        IMPORTS
        + """
    @handler
    async def one(request: Ask) -> Done:
        return Done()

    @handler
    async def two(request: Ask) -> Done:
        return Done()
""",
        "bad:ask is handled by plugin bad already",
    ),
    "a startup that raises": (
        IMPORTS
        + """
    @handler
    async def ask(request: Ask) -> Done:
        return Done()

    @hookimpl
    async def ksi_startup(bus, services):
        raise RuntimeError("no licence")  # here
""",
        "RuntimeError: no licence (bad.py:{line})",
    ),
    "a startup that exits": (
        IMPORTS
        + """
    @hookimpl
    async def ksi_startup(bus, services):
        raise SystemExit(2)  # here
""",
        "SystemExit: 2 (bad.py:{line})",
    ),
    "a reply of another type": (
        IMPORTS
        + """
    @handler
    async def ask(request: Ask) -> str:
        return "done"
""",
        "ask returns str, but bad:ask is answered with Done",
    ),
    "no reply type": (
        IMPORTS
        + """
    @handler
    async def ask(request: Ask):
        return Done()
""",
        "ask does not say what it returns",
    ),
    "a reply in place of items": (
        IMPORTS
        + """
    @handler
    async def follow(request: Follow) -> AsyncIterator[Told]:
        yield Told()
""",
        "follow returns AsyncIterator, but bad:follow is answered with AsyncIterator[Done]",
    ),
    "an unannotated event": (
        IMPORTS
        + """
    @handler
    async def ask(request) -> Done:
        return Done()
""",
        "ksi_file_bad.ask: the first parameter must be annotated with the class of an event",
    ),
    "no parameter": (
        IMPORTS
        + """
    @handler
    async def ask() -> Done:
        return Done()
""",
        "ksi_file_bad.ask: the first parameter must be annotated with the class of an event",
    ),
    "an unannotated service": (
        IMPORTS
        + """
    @handler
    async def ask(request: Ask, bus) -> Done:
        return Done()
""",
        "parameter bus of ask has no type",
    ),
    "an annotation of nothing": (
        IMPORTS
        + """
    @handler
    async def ask(request: Ask, bus: "Buss") -> Done:
        return Done()
""",
        "ksi_file_bad.ask: annotation not found at load: name 'Buss' is not defined",
    ),
    "an unknown service": (
        IMPORTS
        + """
    @handler
    async def ask(request: Ask, store: Absent) -> Done:
        return Done()
""",
        "ask takes store: Absent, but no plugin offers the service Absent; there are ",
    ),
    "a service cycle": (
        IMPORTS
        + """
    @asynccontextmanager
    async def make_store(cache: Cache) -> AsyncIterator[Store]:
        yield object()

    @asynccontextmanager
    async def make_cache(store: Store) -> AsyncIterator[Cache]:
        yield object()

    @hookimpl
    def ksi_services():
        return [Service(Store, make_store), Service(Cache, make_cache)]
""",
        "services need each other: Store -> Cache -> Store",
    ),
    "a service that is taken": (
        IMPORTS
        + """
    @asynccontextmanager
    async def make_bus() -> AsyncIterator[Bus]:
        yield object()

    @hookimpl
    def ksi_services():
        return [Service(Bus, make_bus)]
""",
        "service Bus is offered by plugin core already",
    ),
    "a service that cannot be opened": (
        IMPORTS
        + """
    @asynccontextmanager
    async def make_store() -> AsyncIterator[Store]:
        raise OSError("no disk")  # here
        yield

    @hookimpl
    def ksi_services():
        return [Service(Store, make_store)]
""",
        "OSError: no disk (bad.py:{line})",
    ),
    "a subscriber to a request": (
        IMPORTS
        + """
    @subscriber
    async def hear(request: Ask) -> None:
        pass
""",
        "hear takes a Ask; use @handler for it",
    ),
    "a handler of a notification": (
        IMPORTS
        + """
    @handler
    async def hear(told: Told) -> None:
        pass
""",
        "hear takes a Told; use @subscriber for it",
    ),
    "a stream without a yield": (
        IMPORTS
        + """
    @handler  # here
    async def follow(request: Follow) -> AsyncIterator[Done]:
        return [Done()]
""",
        "follow is no async generator, but bad:follow is a stream: write async def, and yield its items "
        "(bad.py:{line})",
    ),
    "a stream that is not async": (
        IMPORTS
        + """
    @handler  # here
    def follow(request: Follow) -> AsyncIterator[Done]:
        yield Done()
""",
        "follow is no async generator, but bad:follow is a stream: write async def, and yield its items "
        "(bad.py:{line})",
    ),
    "an unknown hook": (
        IMPORTS
        + """
    @hookimpl
    def ksi_start():
        pass
""",
        "there is no hook ksi_start; did you mean ksi_startup?",
    ),
    "bad hook arguments": (
        IMPORTS
        + """
    @hookimpl
    async def ksi_startup(bus, servises):
        pass
""",
        "hook ksi_startup has no parameter servises; it has bus, services",
    ),
    "a synchronous hook that raises": (
        IMPORTS
        + """
    @hookimpl
    def ksi_middleware():
        return [1 / 0]  # here
""",
        "ZeroDivisionError: division by zero (bad.py:{line})",
    ),
    "an async hook that declares": (
        IMPORTS
        + """
    @hookimpl
    async def ksi_handlers():
        return []
""",
        "hook ksi_handlers is called without await; ksi_handlers must not be async",
    ),
    "a hook of another name": (
        IMPORTS
        + """
    @hookimpl
    def startup():
        pass
""",
        "there is no hook startup",
    ),
    "a layer that cannot be called": (
        IMPORTS
        + """
    @hookimpl
    def ksi_middleware():
        return [5]
""",
        "middleware int must take (envelope, send, call_next)",
    ),
    "a layer of other parameters": (
        IMPORTS
        + """
    async def layer(envelope, send, next):
        await next(envelope, send)

    @hookimpl
    def ksi_middleware():
        return [layer]
""",
        "middleware layer must take (envelope, send, call_next)",
    ),
    "a migration that is no SQL": (
        IMPORTS
        + """
    @hookimpl
    def ksi_migrations():
        return {1: "CREATE TABEL x (y);"}
""",
        'OperationalError: migration 1: near "TABEL": syntax error',
    ),
    "migrations without numbers": (
        IMPORTS
        + """
    @hookimpl
    def ksi_migrations():
        return ["CREATE TABLE bad_x (y);"]
""",
        "ksi_migrations must give SQL by number, as {{1: 'CREATE TABLE …'}}, not ['CREATE TABLE bad_x (y);']",
    ),
    "a class where a service is wanted": (
        IMPORTS
        + """
    @hookimpl
    def ksi_services():
        return [Store]
""",
        "ksi_services must give a list of Service(interface, factory); <class 'ksi_file_bad.Store'> is none",
    ),
    "one thing where a list is wanted": (
        IMPORTS
        + """
    async def layer(envelope, send, call_next):
        await call_next(envelope, send)

    @hookimpl
    def ksi_middleware():
        return layer
""",
        "ksi_middleware must give a list of functions, not <function layer at ",
    ),
    "what makes a service, without its decorator": (
        IMPORTS
        + """
    async def make_store() -> AsyncIterator[Store]:  # here
        yield object()

    @hookimpl
    def ksi_services():
        return [Service(Store, make_store)]
""",
        "what makes the service Store is no async context manager: put @asynccontextmanager above it, "
        "and yield the service (bad.py:{line})",
    ),
    "what makes a service, without a yield": (
        IMPORTS
        + """
    @asynccontextmanager  # here
    async def make_store() -> AsyncIterator[Store]:
        return object()

    @hookimpl
    def ksi_services():
        return [Service(Store, make_store)]
""",
        "what makes the service Store is no async context manager: put @asynccontextmanager above it, "
        "and yield the service (bad.py:{line})",
    ),
    "an event name that is none": (
        IMPORTS
        + """
    class Wrong(Request[Done], event="Bad Name"):
        pass
""",
        "'Bad Name' is not an event name: namespace:name in snake case",
    ),
    "a class keyword that is none": (
        IMPORTS
        + """
    class Wrong(Request[Done], event="bad:wrong", save=True):
        pass
""",
        "save",
    ),
    "a reply that is no message": (
        IMPORTS
        + """
    class Wrong(Request[int], event="bad:wrong"):
        pass
""",
        "is no Message, so it cannot be a reply",
    ),
}  # fmt: skip

GOOD = """
    from ksi_daemon.plugin import Message, Request, handler

    class Fine(Message):
        pass

    class Ask(Request[Fine], event="good:ask"):
        '''Ask.'''

    @handler
    async def ask(request: Ask) -> Fine:
        return Fine()
"""


@pytest.mark.parametrize(("source", "says"), REFUSED.values(), ids=REFUSED)
async def test_a_plugin_that_cannot_be_loaded_is_refused_with_one_line(
    write_plugin: WritePlugin, log_file: LogFile, source: str, says: str
) -> None:
    bad = write_bad(write_plugin, source)
    says = says.format(line=line_of("# here", bad))
    with log_file.written():
        async with running_daemon(plugins=[bad, write_plugin(GOOD, "zgood")]) as ksi:
            assert await ksi.call_raw("good:ask") == {}
            assert await ksi.call_raw("state:set", {"key": "a", "value": 1})
            listed = await plugins(ksi)
            health = await ksi.call_raw("system:health")
            discovered = await ksi.call_raw("system:discover")
            hooks = await ksi.call_raw("plugin:hooks")
    assert listed["bad"]["status"] == "refused"
    assert says in listed["bad"]["error"]
    assert "\n" not in listed["bad"]["error"]
    assert listed["bad"]["events"] == 0
    others = {name: plugin["status"] for name, plugin in listed.items() if name != "bad"}
    assert others == dict.fromkeys((*BUILTIN, "zgood"), "loaded")
    (line,) = log_file.lines("plugin.refused")
    assert (line["plugin"], line["error"], line["level"]) == ("bad", listed["bad"]["error"], "error")
    assert "Traceback" not in log_file.path.read_text()
    assert health["checks"]["plugins"]["status"] == "degraded"
    assert health["checks"]["plugins"]["detail"]["not_loaded"] == ["bad"]
    assert "bad" not in discovered["namespaces"]
    assert "bad" not in discovered["notifications"]
    assert [hook["name"] for hook in hooks["hooks"] if "bad" in hook["plugins"]] == []


async def test_a_name_that_is_taken_is_refused_with_one_line(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(GOOD, "state")]) as ksi:
            assert await ksi.call_raw("state:set", {"key": "a", "value": 1})
            assert "good" not in (await ksi.call_raw("system:discover"))["namespaces"]
            (second,) = [each for name, each in (await plugins(ksi)).items() if name.startswith("state (")]
    assert (second["status"], second["error"]) == ("refused", "name taken by ksi_state")
    (line,) = log_file.lines("plugin.refused")
    assert line["plugin"] == "state"
    assert line["origin"].endswith("state.py")
    assert line["error"] == "name taken by ksi_state"


async def test_a_file_that_cannot_be_a_plugins_name_is_refused_with_one_line(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(GOOD, "My-Plugin")]) as ksi:
            assert "good" not in (await ksi.call_raw("system:discover"))["namespaces"]
            listed = (await plugins(ksi))["My-Plugin"]
    (line,) = log_file.lines("plugin.refused")
    assert (listed["status"], listed["error"]) == ("refused", line["error"])
    assert line["origin"].endswith("My-Plugin.py")
    assert "letters" in line["error"]


async def test_two_broken_plugins_are_refused_with_a_line_each(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    files = [write_plugin("import no_such\n", name) for name in ("one", "two")]
    with log_file.written():
        async with running_daemon(plugins=files) as ksi:
            listed = await plugins(ksi)
    assert [line["plugin"] for line in log_file.lines("plugin.refused")] == ["one", "two"]
    assert listed["one"]["status"] == listed["two"]["status"] == "refused"


async def test_a_plugin_that_serves_and_fails_is_quarantined_and_the_rest_runs(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    source = """
        import asyncio
        from ksi_daemon.plugin import Message, Notification, Request, handler, hookimpl

        class Tired(Message):
            pass

        class Ask(Request[Tired], event="tired:ask"):
            '''Ask.'''

        third = asyncio.Event()
        runs = []

        @hookimpl
        async def ksi_serve(bus, services):
            runs.append(1)
            if len(runs) == 3:
                third.set()
            raise OSError("no network")

        @handler
        async def ask(request: Ask) -> Tired:
            await third.wait()
            return Tired()
    """
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(source, "tired")]) as ksi:
            await ksi.call_raw("tired:ask")
            listed = await plugins(ksi)
            assert (await ksi.call_raw("system:health"))["checks"]["plugins"]["status"] == "degraded"
    assert listed["tired"]["status"] == "quarantined"
    assert "no network" in listed["tired"]["error"]
    assert len(log_file.lines("child.crashed")) == 3
    assert len(log_file.lines("plugin.quarantined")) == 1


async def test_only_the_plugins_that_are_asked_for_are_loaded(write_plugin: WritePlugin) -> None:
    files = [write_plugin(GOOD, "one"), write_plugin(GOOD.replace("good:", "other:"), "two")]
    async with running_daemon(plugins=files, settings={"load_plugins": "two"}) as ksi:
        assert set(await plugins(ksi)) == {*BUILTIN, "two"}


async def test_hello_in_ten_lines_is_loaded_answers_and_is_in_discovery() -> None:
    lines = [line for line in HELLO.read_text().splitlines() if line.strip()]
    assert len(lines) <= 14, "ten lines, and a docstring for each class"
    async with running_daemon(plugins=[HELLO]) as ksi:
        reply = await ksi.call_raw("hello:greet", {"name": "Ada"})
        default = await ksi.call_raw("hello:greet")
        described = (await ksi.call_raw("system:discover", {"namespace": "hello"}))["events"]["hello"]
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "hello"})
    assert reply == {"text": "Hello, Ada!"}
    assert default == {"text": "Hello, world!"}
    assert ksi.emitted("hello:greeted") == [{"name": "Ada"}, {"name": "world"}]
    assert [(event["event"], event["plugin"], event["summary"]) for event in described] == [
        ("hello:greet", "hello", "Say hello.")
    ]
    assert details["handlers"] == ["hello:greet"]
    assert details["origin"].endswith("hello.py")


async def test_the_events_that_a_refused_plugin_declares_may_be_told_by_others(
    write_plugin: WritePlugin,
) -> None:
    bad = write_bad(write_plugin, REFUSED["a startup that raises"][0])
    async with running_daemon(plugins=[bad]) as ksi:
        assert await ksi.call_raw("event:publish", {"event": "bad:told"})


def write_bad(write_plugin: WritePlugin, source: str) -> Path:
    path: Path = write_plugin("", "bad")
    path.write_bytes(textwrap.dedent(source).lstrip().encode(errors="surrogateescape"))
    return path


def line_of(mark: str, path: Path) -> int:
    lines = path.read_bytes().split(b"\n")
    return next((number for number, line in enumerate(lines, 1) if mark.encode() in line), 0)


async def plugins(ksi: RunningDaemon) -> Mapping[str, Mapping[str, Any]]:
    return {plugin["name"]: plugin for plugin in (await ksi.call_raw("plugin:list"))["plugins"]}
