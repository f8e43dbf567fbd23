"""What plugin authors test with does what it says: each part is shown to fail where it should."""

import json
from pathlib import Path

import pytest

from ksi_common.errors import InvalidArgument
from ksi_common.events import state
from ksi_daemon.testing import FakeClock, Recording, RunningDaemon, running_daemon
from ksi_daemon.testing.recording import load_recording

from .conftest import WritePlugin

pytest_plugins = ["pytester"]

CLOCKED = """
    from ksi_daemon.plugin import Clock, Message, Request, handler

    class Time(Message):
        us: int

    class Tell(Request[Time], event="probe:time", safe=True):
        '''Tell the time.'''

    @handler
    async def tell(request: Tell, clock: Clock) -> Time:
        return Time(us=clock.time_us())
"""


async def test_what_was_not_committed_is_gone_after_a_crash(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:set", {"key": "color", "value": "green"})
    first, answers = ksi.daemon, []
    async with ksi.crash("before_commit", "state:set"):
        answers.append(await ksi.call_raw("state:set", {"key": "color", "value": "red"}))
    assert answers == []
    assert ksi.daemon is not first
    assert (await ksi.call_raw("state:get", {"key": "color"}))["value"] == "green"


async def test_what_was_committed_is_there_after_a_crash_though_nobody_was_told(ksi: RunningDaemon) -> None:
    answers = []
    async with ksi.crash("after_commit", "state:set"):
        answers.append(await ksi.call_raw("state:set", {"key": "color", "value": "red"}))
    assert answers == []
    assert (await ksi.call_raw("state:get", {"key": "color"}))["value"] == "red"
    assert ksi.emitted("state:changed") == []
    assert [told["recovered"] for told in ksi.emitted("system:started")] == [False, True]


async def test_a_crash_that_nothing_leads_to_fails_the_test(ksi: RunningDaemon) -> None:
    with pytest.raises(AssertionError, match="no unit of work of queue:\\* was before_commit"):
        async with ksi.crash("before_commit", "queue:*", patience_s=0.1):
            await ksi.call_raw("state:set", {"key": "color", "value": "red"})
    await ksi.call_raw("state:set", {"key": "color", "value": "blue"})


async def test_other_failures_within_the_block_are_not_hidden(ksi: RunningDaemon) -> None:
    with pytest.raises(ZeroDivisionError):
        async with ksi.crash("before_commit", "state:set"):
            _ = 1 / 0


async def test_a_crash_of_what_follows_from_the_block_is_waited_for(write_plugin: WritePlugin) -> None:
    source = """
    from ksi_common.events import state
    from ksi_daemon.plugin import Database, Notification, Transaction, subscriber

    class Copied(Notification, event="probe:copied"):
        "A change was heard."

    @subscriber(durable=True, start="beginning")
    async def copy(told: state.Changed, database: Database) -> None:
        def unit(tx: Transaction) -> None:
            tx.tell(Copied())

        await database.write(unit)
    """
    async with running_daemon(plugins=[write_plugin(source)]) as ksi:
        first = ksi.daemon
        async with ksi.crash("before_commit", "state:changed"):
            await ksi.bus.notify(state.Changed(namespace="global", key="color", value="red"))
        assert ksi.daemon is not first
        assert await ksi.wait_emitted("probe:copied") == [{}]


async def test_what_waits_in_a_handler_is_ended_by_a_crash(write_plugin: WritePlugin) -> None:
    source = """
    import asyncio
    from ksi_common.events import state
    from ksi_daemon.plugin import Bus, Message, Request, handler

    class Done(Message):
        pass

    class Work(Request[Done], event="probe:work"):
        '''Write, and go on.'''

    went_on = []

    @handler
    async def work(request: Work, bus: Bus) -> Done:
        await bus.call(state.Set(key="a", value=1))
        went_on.append(True)
        return Done()

    class Look(Request[Done], event="probe:look", safe=True):
        '''Fail where it went on.'''

    @handler
    async def look(request: Look) -> Done:
        assert not went_on
        return Done()
    """
    async with running_daemon(plugins=[write_plugin(source)]) as ksi:
        async with ksi.crash("after_commit", "state:set"):
            await ksi.call_raw("probe:work")
        assert (await ksi.call_raw("state:get", {"key": "a"}))["value"] == 1
        await ksi.call_raw("probe:look")


async def test_a_restart_keeps_what_is_stored_and_what_was_heard(ksi: RunningDaemon) -> None:
    await ksi.call_raw("state:set", {"key": "color", "value": "green"})
    await ksi.restart()
    assert (await ksi.call_raw("state:get", {"key": "color"}))["value"] == "green"
    assert len(ksi.emitted("state:changed")) == 1
    assert ksi.emitted("system:stopping")[0]["reason"] == "test"


async def test_an_error_that_is_wanted_is_given(ksi: RunningDaemon) -> None:
    error = await ksi.call_error("state:get", {"kye": "color"})
    assert isinstance(error, InvalidArgument)
    with pytest.raises(AssertionError):
        await ksi.call_error("state:get", {"key": "color"})


async def test_what_is_not_told_in_time_is_said_with_what_was(
    ksi: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksi_daemon.testing.running.PATIENCE_S", 0.01)
    with pytest.raises(AssertionError, match="state:changed was told 0 times, not 1; told were"):
        await ksi.wait_emitted("state:changed")


async def test_a_recording_is_replayed_as_it_was(ksi: RunningDaemon, tmp_path: Path) -> None:
    path = tmp_path / "colors.jsonl"
    with ksi.record(path):
        await ksi.call_raw("state:set", {"key": "color", "value": "green"})
        await ksi.call_error("state:get", {"kye": "color"})
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["event"], [event for event, _ in first["told"]]) == ("state:set", ["state:changed"])
    assert second["error"] == "INVALID_ARGUMENT"
    async with running_daemon() as another:
        await another.replay(path)


async def test_a_replay_says_all_that_is_not_as_it_was(ksi: RunningDaemon) -> None:
    with ksi.record() as recording:
        await ksi.call_raw("state:set", {"key": "color", "value": "green"})
        await ksi.call_raw("state:get", {"key": "color"})
    changed: Recording = recording
    changed.exchanges[0].told[0][1]["value"] = "red"  # type: ignore[index]  # JSON, as it was read
    assert changed.exchanges[1].reply is not None
    changed.exchanges[1] = type(changed.exchanges[1])("state:get", {"key": "color"}, reply={"value": "red"})
    with pytest.raises(AssertionError) as raised:
        await ksi.replay(changed, ignoring=["revision"])
    assert '1. state:set: told.1.data.value was "red", is "green"' in str(raised.value)
    assert '2. state:get: reply.value was "red", is "green"' in str(raised.value)
    assert "reply.found was absent, is true" in str(raised.value)


async def test_an_export_is_told_again(ksi: RunningDaemon, tmp_path: Path) -> None:
    line = {"specversion": "1.0", "type": "state:changed", "ksikind": "notification", "data": {"key": "a"}}
    other = {**line, "type": "queue:pushed"}
    request = {**line, "ksikind": "request"}
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (line, other, request)))
    assert await ksi.tell_again(path, "state:*") == 1
    assert ksi.emitted("state:*") == [{"key": "a"}]


async def test_a_recording_survives_its_file(tmp_path: Path, ksi: RunningDaemon) -> None:
    with ksi.record(tmp_path / "a.jsonl") as kept:
        await ksi.call_raw("state:set", {"key": "ключ", "value": None})
    read = load_recording(tmp_path / "a.jsonl")
    for exchange in kept.exchanges:
        exchange.correlation_id = ""
    assert read == kept


async def test_the_clock_of_a_test_is_the_daemons(ksi_clock: FakeClock, write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(CLOCKED)], clock=ksi_clock) as ksi:
        before = (await ksi.call_raw("probe:time"))["us"]
        ksi_clock.advance(3600)
        assert (await ksi.call_raw("probe:time"))["us"] == before + 3_600_000_000


@pytest.mark.ksi(settings={"load_plugins": "state", "limits": {"in_flight": 7}})
async def test_a_mark_sets_settings(ksi: RunningDaemon) -> None:
    assert (await ksi.call_raw("system:info"))["limits"]["in_flight"] == 7


async def test_typed_requests_go_by_the_bus(ksi: RunningDaemon) -> None:
    await ksi.bus.call(state.Set(key="color", value="green"))
    assert (await ksi.bus.call(state.Get(key="color"))).value == "green"


def test_the_fixture_serves_a_file_beside_the_test_with_the_clock_of_the_test(
    pytester: pytest.Pytester,
) -> None:
    import textwrap

    pytester.makepyfile(probe=textwrap.dedent(CLOCKED))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.ksi(plugins=["probe.py"])
        @pytest.mark.asyncio
        async def test_time(ksi, ksi_clock):
            assert (await ksi.call_raw("probe:time"))["us"] == ksi_clock.time_us()
        """
    )
    pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_without_pytest_asyncio_the_fixture_says_what_to_install(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import sys; assert 'pytest_asyncio' not in sys.modules")
    pytester.makepyfile("def test_it(ksi): pass")
    pytester.makepyfile(pytest_asyncio="raise ImportError('absent')")
    outcome = pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:cacheprovider", "-rf")
    outcome.assert_outcomes(errors=1)
    assert "pip install 'ksi[test]'" in outcome.stdout.str()
