"""What is given up later is said once to each client: beside the answer, in the log, in discovery."""

import warnings
from collections.abc import AsyncIterator

import pytest

from ksi_client import AsyncClient
from ksi_client.cli.main import run
from ksi_daemon.testing import RunningDaemon, running_daemon

from .conftest import LogFile, WritePlugin

SOURCE = """
    from ksi_daemon.plugin import Message, Request, handler, renamed_from

    class Said(Message):
        word: str

    class Old(Request[Said], event="probe:old", deprecated="send probe:ask"):
        '''Ask, as one did.'''

    class Ask(Request[Said], event="probe:ask"):
        '''Ask.'''
        purpose: str = renamed_from("task", "purpose", "none")

    class Plain(Request[Said], event="probe:plain"):
        '''Ask for something that stays.'''

    @handler
    async def old(request: Old) -> Said:
        return Said(word="old")

    @handler
    def ask(request: Ask) -> Said:
        return Said(word=request.purpose)

    @handler
    async def plain(request: Plain) -> Said:
        return Said(word="plain")
"""
OLD = "probe:old is deprecated: send probe:ask"
TASK = "field task of probe:ask is deprecated: say purpose"


@pytest.fixture
async def probe(write_plugin: WritePlugin) -> AsyncIterator[RunningDaemon]:
    async with running_daemon(plugins=[write_plugin(SOURCE)]) as ksi:
        yield ksi


async def test_each_connection_is_told_once_of_an_event(probe: RunningDaemon) -> None:
    for _ in range(2):
        async with probe.connect() as wire:
            assert (await wire.call("probe:old"))["warnings"] == [OLD]
            assert "warnings" not in await wire.call("probe:old")
            assert "warnings" not in await wire.call("probe:plain")


async def test_the_old_name_of_a_field_is_told_of_and_the_new_one_is_not(probe: RunningDaemon) -> None:
    async with probe.connect() as wire:
        assert "warnings" not in await wire.call("probe:ask", {"purpose": "a"})
        answer = await wire.call("probe:ask", {"task": "b"})
    assert (answer["data"], answer["warnings"]) == ({"word": "b"}, [TASK])


async def test_the_log_has_each_once_for_a_client(log_file: LogFile, write_plugin: WritePlugin) -> None:
    with log_file.written():
        async with running_daemon(plugins=[write_plugin(SOURCE)]) as ksi, ksi.connect() as wire:
            for _ in range(3):
                await wire.call("probe:old")
    assert [(line["level"], line["warning"]) for line in log_file.lines("event.deprecated")] == [
        ("warning", OLD)
    ]


async def test_a_python_client_warns(probe: RunningDaemon) -> None:
    async with AsyncClient(probe.paths.socket) as ksi:
        with pytest.warns(FutureWarning, match="probe:old is deprecated: send probe:ask"):
            await ksi.call_raw("probe:old")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await ksi.call_raw("probe:old")


async def test_the_command_line_says_it_on_stderr(
    probe: RunningDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # is put back afterwards
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code = await asyncio.to_thread(run, ["call", "probe:old", "--socket", str(probe.paths.socket)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, f"warning: {OLD}\n")
    assert "word\told" in out.splitlines()  # among what the daemon logs


async def test_discovery_and_help_say_so(probe: RunningDaemon) -> None:
    described = await probe.call_raw("system:help", {"event": "probe:old"})
    assert described["deprecated"] == "send probe:ask"
    assert (await probe.call_raw("system:discover"))["format"] == 1
