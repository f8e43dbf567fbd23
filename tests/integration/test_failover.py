"""Several models behind one name: who is asked, who instead, and what is said of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ksi_daemon.testing import FakeClock, RunningDaemon, running_daemon

from .conftest import LogFile

Step = dict[str, Any]


def table(candidates: Sequence[str] = ("mock/down", "mock/up"), **settings: Any) -> dict[str, Any]:
    return {
        "plugins": {
            "completion": {"models": {"any": list(candidates)}, "model": "any", "mock": {}, **settings}
        }
    }


async def ask(ksi: RunningDaemon, prompt: str = "hello", **asked: Any) -> list[Step]:
    """Ask for a stream, and give its steps."""
    steps = []
    async with ksi.connect() as wire:
        wire.send({"event": "completion:stream", "data": {"prompt": prompt, **asked}, "id": "ask"})
        while (frame := await wire.receive())["type"] == "item":
            steps.append(frame["data"])
    assert frame["type"] == "end", frame
    return steps


async def breakers(ksi: RunningDaemon) -> Mapping[str, str]:
    """Tell the state of each breaker of the mock provider, by model."""
    status = await ksi.call_raw("completion:provider_status", {"provider": "mock"})
    return {breaker["model"]: breaker["state"] for breaker in status["providers"][0]["breakers"]}


async def test_a_model_that_fails_is_left_alone_after_five_and_probed_later() -> None:
    clock = FakeClock()
    down = {"outages": {"down": 6}}
    async with running_daemon(settings=table(mock=down, breaker_open_s=10), clock=clock) as ksi:
        for _ in range(5):
            steps = await ask(ksi)
            assert [step["type"] for step in steps] == [
                "accepted", "started", "failover", "started", "delta", "result",
            ]  # fmt: skip
            assert (steps[2]["model"], steps[2]["reason"], steps[-1]["model"]) == ("up", "outage", "up")
        assert await breakers(ksi) == {"down": "open"}

        # Open: nobody asks it.
        steps = await ask(ksi)
        assert [step["type"] for step in steps] == ["accepted", "failover", "started", "delta", "result"]
        assert (steps[1]["reason"], steps[-1]["attempt"]) == ("breaker_open", 1)

        # Half open: the probe fails, and it is left alone for twice as long.
        clock.advance(10.5)
        assert await breakers(ksi) == {"down": "half_open"}
        assert [step["type"] for step in await ask(ksi)].count("failover") == 1
        clock.advance(10.5)
        assert await breakers(ksi) == {"down": "open"}

        # The next probe is answered.
        clock.advance(10.5)
        assert (await ask(ksi))[-1]["model"] == "down"
        assert await breakers(ksi) == {}
        changes = ksi.emitted("completion:breaker_changed")
        assert [(change["state"], change["open_s"]) for change in changes] == [
            ("open", 10), ("open", 20), ("closed", None),
        ]  # fmt: skip
        failovers = ksi.emitted("completion:failover")
        assert [(told["from_model"], told["model"], told["reason"]) for told in failovers] == [
            *[("down", "up", "outage")] * 5, ("down", "up", "breaker_open"), ("down", "up", "outage"),
        ]  # fmt: skip


async def test_an_open_breaker_is_known_after_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "var"
    settings = table(mock={"outages": {"down": 5}}, breaker_open_s=300)
    async with running_daemon(home=home, settings=settings) as ksi:
        for _ in range(5):
            await ask(ksi)
    async with running_daemon(home=home, settings=settings) as ksi:
        assert await breakers(ksi) == {"down": "open"}
        assert (await ask(ksi))[-1]["attempt"] == 1
        health = await ksi.call_raw("system:health")
        assert health["checks"]["providers"]["detail"]["left_alone"] == ["mock/down"]


async def test_a_model_of_its_own_waits_until_it_may_be_asked_again() -> None:
    settings = table(["mock/down"], mock={"outages": {"down": 2}}, breaker_failures=2, breaker_open_s=0.2)
    async with running_daemon(settings=settings) as ksi:
        steps = await ask(ksi)
        assert steps[-1]["type"] == "result"
        assert "failover" not in [step["type"] for step in steps]


async def test_what_is_wrong_with_the_request_is_asked_of_nobody_else() -> None:
    settings = table(mock={"failure_rate": 1, "failure_kind": "invalid"})
    async with running_daemon(settings=settings) as ksi:
        steps = await ask(ksi)
        assert [step["type"] for step in steps] == ["accepted", "started", "failed"]
        assert await breakers(ksi) == {}


async def test_a_provider_that_is_not_there_is_passed_over_and_the_row_says_who_answered() -> None:
    settings = table(["replay/any", "mock/up"])
    async with running_daemon(settings=settings) as ksi:
        steps = await ask(ksi)
        assert (steps[0]["provider"], steps[-1]["provider"]) == ("mock", "mock")
    settings = table(["mock/down", "mock/up"], mock={"outages": {"down": 1}})
    async with running_daemon(settings=settings) as ksi:
        last = (await ask(ksi))[-1]
        status = await ksi.call_raw("completion:status", {"request_id": last["request_id"]})
        assert (status["completion"]["model"], status["completion"]["attempts"]) == ("up", 2)
        (told,) = ksi.emitted("completion:result")
        assert told["model"] == "up"


async def test_the_provider_of_a_run_takes_the_place_of_every_alias() -> None:
    settings = table(["embedded/smollm2-135m-instruct"], provider="mock")
    async with running_daemon(settings=settings) as ksi:
        assert (await ask(ksi, model="any"))[-1]["provider"] == "mock"


async def test_an_alias_of_a_provider_that_is_none_is_refused_by_name(log_file: LogFile) -> None:
    with log_file.written():
        async with running_daemon(settings=table(["mokc/down"])):
            pass
    (refused,) = log_file.lines("plugin.refused")
    assert 'models.any: there is no provider "mokc"' in refused["error"]


async def test_a_default_provider_that_is_none_is_refused_by_name(log_file: LogFile) -> None:
    with log_file.written():
        async with running_daemon(settings={"plugins": {"completion": {"provider": "mokc"}}}):
            pass
    (refused,) = log_file.lines("plugin.refused")
    assert 'provider (or KSI_PROVIDER): there is no provider "mokc"' in refused["error"]


async def test_an_alias_of_a_model_that_its_provider_lacks_is_refused_by_name(log_file: LogFile) -> None:
    with log_file.written():
        async with running_daemon(settings=table(["embedded/smollm"])):
            pass
    (refused,) = log_file.lines("plugin.refused")
    assert 'models.any: embedded has no model "smollm"' in refused["error"]
    # What is not set up is another matter.
    async with running_daemon(settings=table(["litellm/gpt", "mock/up"])) as ksi:
        assert (await ask(ksi))[-1]["model"] == "up"


async def test_the_room_of_a_provider_is_kept_over_a_failover() -> None:
    """One answer at once of each: what fails over waits for room, and gives back what it held."""
    settings = table(mock={"concurrency": 1, "outages": {"down": 8}}, breaker_failures=1, breaker_open_s=300)
    async with running_daemon(settings=settings) as ksi:
        for _ in range(3):
            assert (await ask(ksi))[-1]["type"] == "result"
        status = await ksi.call_raw("completion:provider_status", {"provider": "mock"})
        assert status["providers"][0]["working"] == 0
