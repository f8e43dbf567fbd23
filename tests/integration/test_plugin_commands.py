"""`ksi plugin ls|show|trace|enable|disable|uninstall|new|test` and `ksi contract`, as a user has them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ksi_client.cli.main import run
from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.support.waiting import eventually

from .conftest import LogFile, WritePlugin

GREETER = """
    from ksi_daemon.plugin import Bus, Message, Notification, Request, handler

    class Greeting(Message):
        text: str

    class Greeted(Notification, event="greeter:greeted"):
        name: str

    class Greet(Request[Greeting], event="greeter:greet"):
        '''Say hello.'''
        name: str = "world"

    class Look(Request[Greeting], event="greeter:look", safe=True):
        '''Change nothing.'''

    @handler
    async def greet(request: Greet, bus: Bus) -> Greeting:
        await bus.notify(Greeted(name=request.name))
        return Greeting(text=f"Hello, {request.name}!")

    @handler
    async def look(request: Look) -> Greeting:
        return Greeting(text="")
"""
Said = tuple[int, str, str]
Ksi = Callable[..., Coroutine[Any, Any, Said]]


@pytest.fixture
async def greeter(write_plugin: WritePlugin, log_file: LogFile) -> AsyncIterator[RunningDaemon]:
    """A daemon whose log, which may tell of a busy machine, is not in what commands write."""
    plugins = [write_plugin(GREETER, "greeter"), write_plugin("1 / 0\n", "broken")]
    with log_file.written():
        async with running_daemon(plugins=plugins) as ksi:
            yield ksi


@pytest.fixture
def ksi(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ksi:
    """Run a command line in a home of its own; give code, stdout, stderr."""
    monkeypatch.setenv("KSI_HOME", str(tmp_path / "home" / "var"))
    monkeypatch.chdir(tmp_path)

    async def command(*words: str) -> Said:
        capsys.readouterr()
        code = await asyncio.to_thread(run, words)
        out, err = capsys.readouterr()
        return code, out, err

    return command


async def test_ls_lists_the_refused_ones_with_the_reason(greeter: RunningDaemon, ksi: Ksi) -> None:
    _, out, _ = await ksi("plugin", "ls", "--socket", str(greeter.paths.socket))
    rows = {line.split("\t")[0]: line.split("\t")[2:] for line in out.splitlines() if "\t" in line}
    assert rows["greeter"] == ["loaded", "2", str(greeter.paths.plugins / "greeter.py")]
    assert rows["broken"] == ["refused", "0", "ZeroDivisionError: division by zero (broken.py:1)"]
    _, out, _ = await ksi("plugin", "ls", "-o", "jsonl", "--socket", str(greeter.paths.socket))
    assert {"greeter", "state"} <= {json.loads(line)["name"] for line in out.splitlines()}


async def test_show_tells_what_a_plugin_contributes(greeter: RunningDaemon, ksi: Ksi) -> None:
    _, out, _ = await ksi("plugin", "show", "greeter", "--socket", str(greeter.paths.socket))
    assert "answers  greeter:greet\n           greeter:look\n" in out
    assert "tells    greeter:greeted" in out
    _, out, _ = await ksi("plugin", "show", "broken", "--socket", str(greeter.paths.socket))
    assert "why   ZeroDivisionError" in out
    code, _, err = await ksi("plugin", "show", "nobody", "--socket", str(greeter.paths.socket))
    assert (code, "there is no plugin" in err) == (1, True)


async def test_trace_shows_what_is_answered_and_told_as_it_happens(greeter: RunningDaemon) -> None:
    async with greeter.connect() as tracing, greeter.connect() as asking:
        tracing.send({"event": "plugin:trace", "data": {"plugin_name": "greeter"}, "id": "t"})
        assert (await tracing.receive())["data"]["kind"] == "began"
        await asking.call("greeter:greet", {"name": "Ada"})
        await asking.call("greeter:look")
        await asking.call("greeter:greet", {"nme": "Ada"})
        await asking.call("state:get", {"key": "a"})  # another plugin's
        shown = [(await tracing.receive())["data"] for _ in range(4)]
        brief = [(each["kind"], each["event"], each["code"], each["data"]) for each in shown]
        assert sorted(brief, key=str) == [
            ("answered", "greeter:greet", "INVALID_ARGUMENT", {"nme": "Ada"}),
            ("answered", "greeter:greet", "OK", {"name": "Ada"}),
            ("answered", "greeter:look", "OK", {}),
            ("told", "greeter:greeted", None, {"name": "Ada"}),
        ]
        assert len(greeter.daemon.assembly.observers) == 1
        tracing.send({"type": "cancel", "id": "t"})
        assert (await tracing.receive())["type"] == "error"
    assert greeter.daemon.assembly.observers == []


async def test_what_is_too_large_or_too_much_is_not_shown(greeter: RunningDaemon) -> None:
    from ksi_daemon.tracing import MAX_WAITING, _Tap

    async with greeter.connect() as tracing:
        tracing.send({"event": "plugin:trace", "data": {"plugin_name": "greeter"}, "id": "t"})
        await tracing.receive()
        await greeter.call_raw("greeter:greet", {"name": "x" * 5000})
        data = [(await tracing.receive())["data"]["data"] for _ in range(2)]
    assert all(list(each) == ["…"] for each in data)
    tap = _Tap(frozenset(), greeter.daemon.clock)
    for number in range(MAX_WAITING + 3):
        tap._put(kind="told", event="a:b", data={"n": number}, time="", correlation_id="")
    first = await tap.take()
    assert (first.missed, first.data) == (3, {"n": 3})


async def test_the_command_traces_and_stops_after_a_count(greeter: RunningDaemon, ksi: Ksi) -> None:
    socket = str(greeter.paths.socket)

    async def followed() -> bool:
        return bool(greeter.daemon.assembly.observers)

    async with asyncio.TaskGroup() as tasks:
        tracing = tasks.create_task(ksi("plugin", "trace", "greeter", "--count", "1", "--socket", socket))
        await eventually(followed)
        await greeter.call_raw("greeter:look")
        code, out, _ = await tracing
    assert code == 0
    assert "greeter:look" in out


async def test_disabling_keeps_what_people_wrote(ksi: Ksi, tmp_path: Path) -> None:
    file = tmp_path / "home" / "ksi.toml"
    file.parent.mkdir()
    before = "# mine\n[limits]\nin_flight = 100  # few\n\n[plugins.state]\nroom = 3 # of mine\n"
    file.write_text(before)
    file.chmod(0o640)
    code, out, _ = await ksi("plugin", "disable", "state")
    assert (code, "state is off from the next start on" in out) == (0, True)
    assert file.read_text() == before + "enabled = false\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert "off already" in (await ksi("plugin", "disable", "state"))[1]
    await ksi("plugin", "enable", "state")
    assert file.read_text() == before
    assert "on already" in (await ksi("plugin", "enable", "state"))[1]


async def test_disabling_makes_the_file_and_enabling_leaves_no_table(ksi: Ksi, tmp_path: Path) -> None:
    await ksi("plugin", "disable", "state")
    file = tmp_path / "home" / "ksi.toml"
    assert file.read_text() == "[plugins.state]\nenabled = false\n"
    assert file.stat().st_mode & 0o777 == 0o600
    await ksi("plugin", "enable", "state")
    assert file.read_text().strip() == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("disable", "sate"), "did you mean state?"),
        (("disable", "system"), "system is the daemon itself"),
        (("uninstall", "state"), "state is a part of KSI"),
        (("uninstall", "nobody"), "no package of this environment has a plugin 'nobody'"),
        (("new", "My-Plugin"), "ksi plugin new my_plugin"),
        (("new", "class"), "the word is taken"),
        (("new", "state"), "there is a plugin 'state' in this environment already: it is of ksi"),
        (("check", "nowhere"), "nowhere\n  why: no plugin"),
        (("test", "empty"), "names no plugin: KSI finds packages by their entry points only"),
        (("test", "broken"), "is no TOML"),
        (("test", "untested"), "there are no tests in"),
        (("new", "weather", "--to", "empty"), "empty is there already, and not empty"),
    ],
)
async def test_what_cannot_be_done_is_said(
    ksi: Ksi, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    entry = '[project]\nname = "a"\n[project.entry-points.ksi]\na = "a"\n'
    for name, text in {"empty": "[project]\n", "broken": "[project\n", "untested": entry}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(text)
    code, _, err = await ksi("plugin", *words)
    assert (code, said in err) == (1, True), err


async def test_a_broken_settings_file_is_left_as_it_is(ksi: Ksi, tmp_path: Path) -> None:
    file = tmp_path / "home" / "ksi.toml"
    file.parent.mkdir()
    file.write_text("[limits\n")
    code, _, err = await ksi("plugin", "disable", "state")
    assert (code, "is no TOML" in err) == (1, True)
    assert file.read_text() == "[limits\n"


async def test_a_contract_is_saved_and_compared(greeter: RunningDaemon, ksi: Ksi, tmp_path: Path) -> None:
    socket = ("--socket", str(greeter.paths.socket))
    await ksi("contract", "save", "now.json", "--namespace", "greeter", *socket)
    assert await ksi("contract", "diff", "now.json", *socket) == (0, "No change.\n", "")
    then = json.loads((tmp_path / "now.json").read_text())
    greet = then["events"]["greeter"][0]
    greet["schema"]["properties"]["title"] = {"type": "string"}
    del greet["schema"]["properties"]["name"]
    (tmp_path / "then.json").write_text(json.dumps(then))
    code, out, _ = await ksi("contract", "diff", "then.json", "now.json")
    assert (code, out.splitlines()) == (
        1,
        [
            "✗ greeter:greet: title is gone",
            "+ greeter:greet: name is new",
            "1 of 2 break clients: that takes a new major version.",
        ],
    )
    code, out, _ = await ksi("contract", "diff", "then.json", *socket, "-o", "jsonl")
    assert (code, json.loads(out.splitlines()[0])["kind"]) == (1, "breaking")
    (tmp_path / "then.json").write_text("[]")
    assert "is no discovery document" in (await ksi("contract", "diff", "then.json", "now.json"))[2]
