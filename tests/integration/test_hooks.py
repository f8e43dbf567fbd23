"""Each hook does what its specification says; a hook without a test here fails the last one."""

import asyncio
import json
import os
import socket
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon import hookspecs
from ksi_daemon.database.errors import StoreUnavailable
from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.support.waiting import eventually

from .conftest import LogFile, WritePlugin

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "plugins"

HEAD = """
    import asyncio
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager
    from pathlib import Path
    from typing import Protocol
    from ksi_daemon.plugin import (
        Bus, Database, EventEnvelope, KSIError, Message, Middleware, NotFound, Notification, Replied, Request,
        Service, handler, hookimpl, subscriber,
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


async def test_hook_ksi_transports(tmp_path: Path) -> None:
    path = tmp_path / "second.sock"
    settings = {"plugins": {"second_socket": {"path": str(path)}}}
    async with running_daemon(plugins=[EXAMPLES / "second_socket.py"], settings=settings) as ksi:
        async with AsyncClient(path) as client:
            await client.call_raw("state:set", {"key": "a", "value": 1})
            assert (await client.call_raw("system:health", safe=True))["active_connections"] == 1
        assert (await ksi.call_raw("state:get", {"key": "a"}))["value"] == 1
        hooks = (await ksi.call_raw("plugin:inspect", {"plugin_name": "second_socket"}))["hooks"]
        assert set(hooks) == {"ksi_settings", "ksi_startup", "ksi_transports"}
    assert not path.exists()


async def test_a_transport_that_cannot_be_opened_switches_its_plugin_off(tmp_path: Path) -> None:
    settings = {"plugins": {"second_socket": {"path": str(tmp_path / "nowhere" / "x.sock")}}}
    async with running_daemon(plugins=[EXAMPLES / "second_socket.py"], settings=settings) as ksi:
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "second_socket"})
    assert details["status"] == "quarantined"
    assert "its transport cannot be opened: FileNotFoundError" in details["error"]


def web(port: int, folder: Path) -> dict[str, Any]:
    """Give the settings of the example that serves HTTP, with the token s3cret."""
    file = folder / "token"
    file.write_text("s3cret\n")
    return {"plugins": {"web": {"port": port, "token_file": str(file)}}}


async def test_hook_ksi_routes(unused_port: int, tmp_path: Path) -> None:
    settings = web(unused_port, tmp_path)
    async with running_daemon(plugins=[EXAMPLES / "web.py"], settings=settings) as ksi:
        await ksi.call_raw("state:set", {"key": "a", "value": 7})
        assert (await fetched(unused_port, "/state?key=a"))[1]["value"] == 7
        assert (await fetched(unused_port, "/health"))[1]["pid"] == os.getpid()
        assert (await fetched(unused_port, "/none"))[0] == 404
        status, error = await fetched(unused_port, "/state")
        assert (status, error["code"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("header", ["", "Origin: http://evil.example\r\n", "Authorization: Bearer \r\n"])
async def test_who_does_not_say_the_token_gets_nothing_over_http(
    unused_port: int, tmp_path: Path, header: str
) -> None:
    settings = web(unused_port, tmp_path)
    async with running_daemon(plugins=[EXAMPLES / "web.py"], settings=settings) as ksi:
        await ksi.call_raw("state:set", {"key": "a", "value": 7})
        status, body = await fetched(unused_port, "/state?key=a", header)
        assert (status, list(body)) == (401, ["message"])


async def fetched(
    port: int, path: str, header: str = "authorization: Bearer s3cret\r\n"
) -> tuple[int, dict[str, Any]]:
    async def is_there() -> bool:  # it begins to serve beside the daemon
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return False
        writer.write(b"GET /health HTTP/1.0\r\n")
        writer.close()
        return True

    await eventually(is_there)
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n{header}\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    return int(head.split()[1]), json.loads(body)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


async def test_hook_ksi_cli(write_plugin: WritePlugin) -> None:
    clash = """
    from ksi_daemon.plugin import Command, hookimpl

    @hookimpl
    def ksi_cli():
        return [Command("look-up", "state:get")]
    """
    unnamed = """
    from ksi_daemon.plugin import Command, hookimpl

    @hookimpl
    def ksi_cli():
        return [Command("look-down", "state:get", ["the key"])]
    """
    files = [EXAMPLES / "look_up.py", write_plugin(clash, "zclash"), write_plugin(unnamed, "zunnamed")]
    async with running_daemon(plugins=files) as ksi:
        assert (await ksi.call_raw("plugin:commands"))["commands"] == [
            {
                "name": "look-up",
                "event": "state:get",
                "arguments": ["key"],
                "required": ["key"],
                "summary": "Show what is stored under a key.",
                "plugin": "look_up",
            }
        ]
        refused = await ksi.call_raw("plugin:inspect", {"plugin_name": "zclash"})
        assert refused["error"] == "the command look-up is given by plugin look_up already"
        refused = await ksi.call_raw("plugin:inspect", {"plugin_name": "zunnamed"})
        assert "an argument is named as the field it is for, not 'the key'" in refused["error"]
        await ksi.call_raw("state:set", {"key": "a", "value": 7})
        shown = await run_ksi(ksi, "look-up", "a", "--json")
        assert json.loads(shown)["value"] == 7
        assert "Show what is stored under a key" in await run_ksi(ksi, "look-up", "--help")
        assert "Missing argument 'KEY'" in await run_ksi(ksi, "look-up")
        listed = await run_ksi(ksi, "help")
        assert "\nCommands of plugins:\n  look-up  Show what is stored under a key.\n" in listed
        assert "No such command 'look-upp'. Did you mean 'look-up'?" in await run_ksi(ksi, "look-upp")
        shown = await run_ksi(
            ksi, "--socket", str(ksi.paths.socket), "look-up", "a", "--json", KSI_SOCKET="/x"
        )
        assert json.loads(shown)["value"] == 7


async def run_ksi(ksi: RunningDaemon, *words: str, **environ: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES.parents[1] / "ksi"), *words,
        env={**os.environ, "KSI_SOCKET": str(ksi.paths.socket), **environ},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    return output.decode()


async def test_an_observer_may_wait_beside_the_events_and_cannot_alter_them(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    source = """
    gate = asyncio.Event()

    @hookimpl
    async def ksi_event_handled(envelope, code):
        if envelope.event != "probe:ask":
            return
        envelope.actor = "somebody else"
        await gate.wait()
        seen.append(envelope.data["word"])
        envelope.data["word"] = "changed"

    class Open(Request[Said], event="probe:open", safe=True):
        '''Open the gate.'''

    @handler
    async def open_(request: Open) -> Said:
        gate.set()
        return Said(text=" ".join(seen))

    @handler
    async def ask(request: Ask, envelope: EventEnvelope) -> Said:
        return Said(text=f"{request.word} {envelope.actor} {len(seen)}")
    """
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(HEAD + source)]) as ksi:
            for word in ("a", "b"):
                assert (await ksi.call_raw("probe:ask", {"word": word}))["text"] == f"{word} owner 0"
            await ksi.call_raw("probe:open")
            assert (await ksi.call_raw("probe:open"))["text"] == "a b"
    failed = log_file.lines("observer.failed")
    assert [line["plugin"] for line in failed] == ["probe", "probe"]
    assert "does not support item assignment" in failed[0]["error"]


async def test_an_observer_that_raises_is_named_with_its_place(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    source = """
    @hookimpl
    def ksi_event_handled(envelope):
        if envelope.event == "state:get":
            raise ValueError("oh")
    """
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(HEAD + source)]) as ksi:
            await ksi.call_raw("state:get", {"key": "a"})
            await ksi.call_raw("system:health")
    (line,) = log_file.lines("observer.failed")
    place = f"probe.py:{at_line(HEAD + source, 'raise ValueError')}"
    assert (line["plugin"], line["handled"]) == ("probe", "state:get")
    assert line["error"] == f"ValueError: oh ({place})"


@pytest.mark.parametrize("does", ["pass", "call_next(envelope, send)"])
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
async def test_a_layer_that_neither_answers_nor_goes_on_is_named_with_its_place(
    write_plugin: WritePlugin, log_file: LogFile, does: str
) -> None:
    source = f"""
    async def silent(envelope, send, call_next):
        if envelope.event.startswith("state:"):
            {does}
        else:
            await call_next(envelope, send)

    @hookimpl
    def ksi_middleware():
        return [silent]
    """
    plugin = write_plugin(HEAD + source)
    with log_file.written():
        async with running_daemon(plugins=[plugin], settings={"strict": False}) as ksi:
            error = await ksi.call_error("state:get", {"key": "a"})
            assert await ksi.call_raw("system:health")
    place = f"probe.py:{at_line(HEAD + source, 'async def silent')}"
    (line,) = log_file.lines("handler.crashed")
    says = "layer probe.silent neither answered state:get nor awaited call_next(envelope, send)"
    assert line["error"] == says
    assert error.message == f"plugin probe failed: {says} ({place})"
    assert error.hint == "the daemon is fine; tell the plugin's author"


async def test_a_wrong_reply_is_placed_at_the_handler_that_gave_it(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    source = """
    class Follow(Stream[Said], event="probe:follow"):
        '''Follow.'''

    class Take(Request[Said], event="probe:take"):
        '''Take.'''

    @handler
    async def ask(request: Ask) -> Said:
        return {"text": "a dict"}

    @handler
    async def follow(request: Follow) -> AsyncIterator[Said]:
        yield 1

    @handler
    def take(request: Take, tx: Transaction) -> Said:
        return None
    """
    text = HEAD.replace("Request,", "Request, Stream, Transaction,") + source
    says = []
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(text)], settings={"strict": False}) as ksi:
            for name in ("ask", "follow", "take"):
                says.append((await ksi.call_error(f"probe:{name}")).message)
    gave = {
        "ask": "returned dict, not Said",
        "follow": "gave int as an item",
        "take": "returned NoneType, not Said",
    }
    assert says == [
        f"plugin probe failed: the handler of probe:{name} {what} "
        f"(probe.py:{at_line(text, f'def {name}(') - 1})"
        for name, what in gave.items()
    ]
    assert [line["plugin"] for line in log_file.lines("handler.crashed")] == ["probe"] * 3


async def test_a_plugin_in_the_style_of_the_first_ksi_is_loaded_through_an_adapter() -> None:
    async with running_daemon(plugins=[EXAMPLES / "first_style.py"]) as ksi, ksi.connect() as wire:
        await wire.call("state:set", {"key": "name", "value": "Ada"})
        answer = await wire.call("first:greet", {}, correlation_id="c-1")
        assert answer["data"] == {"text": "Hello, Ada!", "correlation_id": "c-1"}
        assert (await wire.call("first:other"))["error"]["code"] == "NOT_FOUND"
        hooks = (await ksi.call_raw("plugin:inspect", {"plugin_name": "first_style"}))["hooks"]
    assert hooks == ["ksi_handle_event", "ksi_shutdown", "ksi_startup"]


async def test_the_other_hooks_of_the_first_ksi_are_asked_in_their_ways(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    source = f"""
    import asyncio
    import pluggy
    from pathlib import Path
    ksi_plugin = True
    hookimpl = pluggy.HookimplMarker("ksi")

    def note(text):
        with Path({str(trace)!r}).open("a") as file:
            file.write(text + " ")

    @hookimpl
    def ksi_startup(config):
        note("startup" + str(config))
        return {{"status": "ready"}}

    async def work():
        note("work")
        await asyncio.Event().wait()

    @hookimpl
    def ksi_ready():
        return {{"service": "old", "tasks": [{{"name": "work", "coroutine": work()}}]}}

    @hookimpl
    def ksi_handle_event(event_name, data):
        note(event_name)
        return {{"n": data["n"]}} if event_name == "old:ask" else None

    @hookimpl
    async def ksi_shutdown():
        note("shutdown")
    """
    settings: dict[str, Any] = {"plugins": {"old": {}}}
    async with running_daemon(plugins=[write_plugin(source, "old")], settings=settings) as ksi:
        assert await ksi.call_raw("old:ask", {"n": 3}) == {"n": 3}
    assert sorted(trace.read_text().split()) == sorted(["startup{}", "work", "old:ask", "shutdown"])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("[1]", "with list, not with an object"),
        ("{'a': {1}}", "is no JSON"),
        ("{1: 2}", "is no JSON"),
        ("{'a': [float('nan')]}", "is no JSON: it has a number nan"),
    ],
)
async def test_a_wrong_answer_of_a_hook_is_its_plugins(
    answer: str, why: str, write_plugin: WritePlugin, log_file: LogFile
) -> None:
    source = f"""
    from ksi_daemon.plugin import hookimpl

    @hookimpl
    async def ksi_handle_event(event):
        return {answer} if event == "legacy:ask" else None
    """
    settings: dict[str, Any] = {"strict": False}
    files = [write_plugin(source, "legacy")]
    with log_file.written():
        async with running_daemon(plugins=files, settings=settings) as ksi, ksi.connect() as wire:
            error = (await wire.call("legacy:ask"))["error"]
            plugins = (await ksi.call_raw("plugin:list"))["plugins"]
    assert error["message"].startswith("plugin legacy failed: legacy:ask was answered with ")
    assert why in error["message"]
    assert error["message"].endswith(" (legacy.py:3)")
    assert [plugin["failures"] for plugin in plugins if plugin["name"] == "legacy"] == [1]
    [crash] = log_file.lines("handler.crashed")
    assert why in crash["error"]


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


async def test_a_transport_that_cannot_be_closed_keeps_nobody_from_the_end(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    source = f"""
    from contextlib import asynccontextmanager
    from pathlib import Path
    from ksi_daemon.plugin import hookimpl

    @asynccontextmanager
    async def broken(gate):
        yield
        raise ValueError("no")

    @hookimpl
    def ksi_transports():
        return [broken]

    @hookimpl
    async def ksi_shutdown():
        Path({str(tmp_path / "ended")!r}).touch()
    """
    async with running_daemon(plugins=[write_plugin(source)]) as ksi:
        await ksi.call_raw("system:health")
    assert (tmp_path / "ended").exists()


async def test_a_full_disk_keeps_nobody_from_the_end(
    write_plugin: WritePlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"""
    from pathlib import Path
    from ksi_daemon.plugin import hookimpl

    @hookimpl
    async def ksi_shutdown():
        Path({str(tmp_path / "ended")!r}).touch()
    """

    async def full(notification: object) -> None:
        raise StoreUnavailable("the disk is full", reason="disk_full")

    async with running_daemon(plugins=[write_plugin(source)]) as ksi:
        monkeypatch.setattr(ksi.daemon.bus, "notify", full)
    assert (tmp_path / "ended").exists()


def at_line(source: str, part: str) -> int:
    """Give the line of a written plugin that has ``part``."""
    lines = textwrap.dedent(source).lstrip().splitlines()
    return next(number for number, line in enumerate(lines, 1) if part in line)
