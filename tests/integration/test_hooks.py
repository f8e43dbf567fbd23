"""Each hook does what its specification says; a hook without a test here fails the last one."""

import sys
from pathlib import Path

from ksi_daemon import hookspecs
from ksi_daemon.testing import RunningDaemon, running_daemon

from .conftest import LogFile, WritePlugin

HEAD = """
    import asyncio
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager
    from pathlib import Path
    from typing import Protocol
    from ksi_daemon.plugin import (
        Bus, Database, KSIError, Message, Middleware, NotFound, Notification, Replied, Request, Service,
        handler, hookimpl, subscriber,
    )

    class Said(Message):
        text: str

    class Ask(Request[Said], event="probe:ask", safe=True):
        '''Ask.'''
        word: str = "word"

    class Spoken(Notification, event="probe:spoken"):
        word: str

    seen = []
"""

ANSWER = """
    @handler
    async def ask(request: Ask) -> Said:
        return Said(text=" ".join(seen))
"""


async def test_hook_ksi_handlers(write_plugin: WritePlugin) -> None:
    source = """
    def made(greeting):
        @handler
        async def ask(request: Ask, bus: Bus) -> Said:
            await bus.notify(Spoken(word=request.word))
            return Said(text=f"{greeting} {request.word}")
        return ask

    heard = asyncio.Event()

    def hearing():
        @subscriber
        async def hear(spoken: Spoken) -> None:
            seen.append(spoken.word)
            heard.set()
        return hear

    class Wait(Request[Said], event="probe:wait", safe=True):
        '''Wait until something was heard.'''

    @handler
    async def wait(request: Wait) -> Said:
        await heard.wait()
        return Said(text=" ".join(seen))

    @hookimpl
    def ksi_handlers():
        return [made("good"), hearing()]
    """
    async with running_daemon(plugins=[write_plugin(HEAD + source)]) as ksi:
        assert await ksi.call_raw("probe:ask", {"word": "day"}) == {"text": "good day"}
        assert await ksi.call_raw("probe:wait") == {"text": "day"}
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
    assert details["handlers"] == ["probe:ask", "probe:wait"]
    assert len(details["subscribers"]) == 1


async def test_hook_ksi_services(write_plugin: WritePlugin, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    source = f"""
    class Counter(Protocol):
        def next(self) -> int: ...

    class Real:
        def __init__(self, database):
            self.database, self.count = database, 0

        def next(self):
            self.count += 1
            return self.count

    @asynccontextmanager
    async def counter(database: Database) -> AsyncIterator[Counter]:
        yield Real(database)
        Path({str(closed)!r}).write_text("closed")

    @hookimpl
    def ksi_services():
        return [Service(Counter, counter)]

    @handler
    async def ask(request: Ask, counter: Counter) -> Said:
        return Said(text=f"{{counter.next()}} {{counter.database is not None}}")
    """
    async with running_daemon(plugins=[write_plugin(HEAD + source)]) as ksi:
        answers = [(await ksi.call_raw("probe:ask"))["text"] for _ in range(2)]
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
        assert not closed.exists()
    assert answers == ["1 True", "2 True"]
    assert details["services"] == ["Counter"]
    assert closed.read_text() == "closed"


async def test_hook_ksi_settings(write_plugin: WritePlugin) -> None:
    source = """
    class Words(BaseModel):
        greeting: str = "good"

    @hookimpl
    def ksi_settings():
        return Words

    @handler
    async def ask(request: Ask, words: Words) -> Said:
        return Said(text=f"{words.greeting} {request.word}")
    """
    file = write_plugin("    from pydantic import BaseModel\n" + HEAD + source)
    table = {"plugins": {"probe": {"greeting": "fine"}}}
    async with running_daemon(plugins=[file], settings=table) as ksi:
        assert await ksi.call_raw("probe:ask", {"word": "day"}) == {"text": "fine day"}
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
    assert details["hooks"] == ["ksi_settings"]


async def test_hook_ksi_middleware(write_plugin: WritePlugin) -> None:
    source = """
    def layer(name):
        async def around(envelope, send, call_next):
            if envelope.event == "probe:ask":
                seen.append(f"{name} in")
            await call_next(envelope, send)
            if envelope.event == "probe:ask":
                seen.append(f"{name} out")
        return around

    async def replace(envelope, send, call_next):
        async def send_other(outcome):
            if isinstance(outcome, Replied) and envelope.event == "probe:ask":
                outcome = Replied(Said(text=outcome.value.text + "!"))
            await send(outcome)
        await call_next(envelope, send_other)

    @hookimpl
    def ksi_middleware():
        return [layer("outer"), layer("inner"), replace]
    """
    async with running_daemon(plugins=[write_plugin(HEAD + source + ANSWER)]) as ksi:
        assert await ksi.call_raw("probe:ask") == {"text": "outer in inner in!"}
        second = await ksi.call_raw("probe:ask")
    assert second == {"text": "outer in inner in inner out outer out outer in inner in!"}


async def test_hook_ksi_migrations(write_plugin: WritePlugin, tmp_path: Path) -> None:
    scripts = {1: "CREATE TABLE probe_words (word TEXT NOT NULL);"}
    source = """
    class Keep(Request[Said], event="probe:keep"):
        '''Keep a word.'''
        word: str

    @handler
    async def keep(request: Keep, database: Database) -> Said:
        row = (request.word,)
        await database.write(lambda tx: tx.execute("INSERT INTO probe_words (word) VALUES (?)", row))
        return Said(text=request.word)

    @handler
    async def ask(request: Ask, database: Database) -> Said:
        rows = await database.read("SELECT word FROM probe_words ORDER BY word")
        return Said(text=" ".join(str(row[0]) for row in rows))

    @hookimpl
    def ksi_migrations():
        return SCRIPTS
    """
    home = tmp_path / "kept" / "var"

    def plugin() -> Path:
        return write_plugin(f"{HEAD}\n    SCRIPTS = {scripts}\n{source}")

    async with running_daemon(home=home, plugins=[plugin()]) as ksi:
        await ksi.call_raw("probe:keep", {"word": "one"})
    scripts[2] = (
        "ALTER TABLE probe_words ADD COLUMN size INTEGER;\nUPDATE probe_words SET word = word || '+';"
    )
    async with running_daemon(home=home, plugins=[plugin()]) as ksi:
        await ksi.call_raw("probe:keep", {"word": "two"})
        assert await ksi.call_raw("probe:ask") == {"text": "one+ two"}


async def test_hook_ksi_startup(write_plugin: WritePlugin) -> None:
    source = """
    @hookimpl
    async def ksi_startup(bus, services):
        services.get(Database)
        await bus.notify(Spoken(word="ready"))
        seen.append("started")
    """
    async with running_daemon(plugins=[write_plugin(HEAD + source + ANSWER)]) as ksi:
        assert await ksi.call_raw("probe:ask") == {"text": "started"}
        logged = await ksi.call_raw("event:query", {"patterns": ["probe:*"]})
    assert [event["data"] for event in logged["events"]] == [{"word": "ready"}]


async def test_hook_ksi_serve(write_plugin: WritePlugin, log_file: LogFile) -> None:
    source = """
    again = asyncio.Event()

    @hookimpl
    async def ksi_serve(bus, services):
        seen.append("run")
        if len(seen) == 1:
            raise OSError("first")
        again.set()
        await asyncio.Event().wait()

    @handler
    async def ask(request: Ask) -> Said:
        await again.wait()
        return Said(text=" ".join(seen))
    """
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(HEAD + source)]) as ksi:
            assert await ksi.call_raw("probe:ask") == {"text": "run run"}
            details = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
    assert (details["status"], details["hooks"]) == ("loaded", ["ksi_serve"])
    assert len(log_file.lines("child.crashed")) == 1


async def test_hook_ksi_drain(write_plugin: WritePlugin, tmp_path: Path, log_file: LogFile) -> None:
    seen = tmp_path / "seen"
    finishes = f"""
    @hookimpl
    async def ksi_drain(services, grace_s):
        await asyncio.sleep(0)
        Path({str(seen)!r}).write_text(f"finished within {{grace_s:g}}, with {{type(services).__name__}}")
    """
    never_ends = """
    @hookimpl
    async def ksi_drain():
        await asyncio.Event().wait()
    """
    raises = """
    @hookimpl
    async def ksi_drain():
        raise ValueError("cannot")
    """
    plugins = {"finishes": finishes, "never": never_ends, "raises": raises}
    files = [
        write_plugin(HEAD.replace("probe:", f"{name}:") + source, name) for name, source in plugins.items()
    ]
    with log_file.written():
        async with running_daemon(plugins=files) as ksi:
            await ksi.call_raw("system:shutdown", {"grace_s": 0.2})
    assert seen.read_text() == "finished within 0.2, with Services"
    assert [line["plugin"] for line in log_file.lines("plugin.broken_off")] == ["never"]
    assert [line["plugin"] for line in log_file.lines("plugin.not_drained")] == ["raises"]


async def test_hook_ksi_shutdown(write_plugin: WritePlugin, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    source = f"""
    @hookimpl
    async def ksi_shutdown():
        with Path({str(ended)!r}).open("a") as file:
            file.write(__name__.removeprefix("ksi_file_") + " ")
    """
    names = ("first", "second", "third")
    files = [write_plugin(HEAD.replace("probe:", f"{name}:") + source, name) for name in names]
    async with running_daemon(plugins=files):
        assert not ended.exists()
    assert ended.read_text() == "third second first "


async def test_hook_ksi_handle_event(write_plugin: WritePlugin) -> None:
    legacy = """
    from ksi_daemon.plugin import NotFound, hookimpl

    @hookimpl
    async def ksi_handle_event(event, data, context):
        if event == "legacy:ping":
            return {"by": "legacy", "data": data, "correlation_id": context.correlation_id}
        if event == "legacy:absent":
            raise NotFound("there is none")
        return None
    """
    fallback = """
    from ksi_daemon.plugin import hookimpl

    @hookimpl
    async def ksi_handle_event(event, data):
        return {"by": "fallback"} if event.startswith("legacy:") else None
    """
    # The last to be loaded is asked first, as pluggy has it; single files are loaded by name.
    files = [write_plugin(fallback, "fallback"), write_plugin(legacy, "legacy")]
    async with running_daemon(plugins=files) as ksi, ksi.connect() as wire:
        ping = await wire.call("legacy:ping", {"n": 1}, correlation_id="c-1")
        other = await wire.call("legacy:other")
        absent = await wire.call("legacy:absent")
        nobody = await wire.call("unknown:event")
        declared = await wire.call("state:get", {"key": "a"})
    assert ping["data"] == {"by": "legacy", "data": {"n": 1}, "correlation_id": "c-1"}
    assert other["data"] == {"by": "fallback"}
    assert (absent["error"]["code"], absent["error"]["message"]) == ("NOT_FOUND", "there is none")
    assert nobody["error"]["details"]["reason"] == "unknown_event"
    assert declared["data"]["found"] is False


async def test_hook_ksi_event_handled(write_plugin: WritePlugin) -> None:
    source = """
    @hookimpl
    def ksi_event_handled(envelope, took_s, code):
        assert took_s >= 0
        seen.append(f"{envelope.event}={code}")
    """
    short = """
    from ksi_daemon.plugin import hookimpl

    @hookimpl
    def ksi_event_handled(code):
        assert code
    """
    files = [write_plugin(HEAD + source + ANSWER), write_plugin(short, "short")]
    async with running_daemon(plugins=files) as ksi, ksi.connect() as wire:
        await wire.call("state:get", {"key": "a"})
        await wire.call("plugin:inspect", {"plugin_name": "nobody"})
        await wire.call("state:gett")
        seen = (await wire.call("probe:ask"))["data"]["text"].split()
    assert seen == ["state:get=OK", "plugin:inspect=NOT_FOUND", "state:gett=NOT_FOUND"]


def test_each_hook_has_a_test() -> None:
    hooks = {f"test_hook_{name}" for name in vars(hookspecs) if name.startswith("ksi_")}
    tests = {name for name in vars(sys.modules[__name__]) if name.startswith("test_hook_")}
    assert tests == hooks


async def test_hooks_are_listed_with_those_who_implement_them(ksi: RunningDaemon) -> None:
    hooks = (await ksi.call_raw("plugin:hooks"))["hooks"]
    assert sorted(hook["name"] for hook in hooks) == sorted(
        name for name in vars(hookspecs) if name.startswith("ksi_")
    )
    by_name = {hook["name"]: hook for hook in hooks}
    assert by_name["ksi_handle_event"]["parameters"] == ["event", "data", "context"]
    assert {"state", "completion"} <= set(by_name["ksi_migrations"]["plugins"])
