"""The mock provider behind a daemon: on request only, or for a whole run."""

from typing import Any

import pytest

from ksi_daemon.testing import RunningDaemon, running_daemon


def table(**settings: Any) -> dict[str, Any]:
    return {"plugins": {"completion": settings}}


async def last_step(ksi: RunningDaemon, **asked: Any) -> dict[str, Any]:
    """Ask for a stream, and give its last step."""
    async with ksi.connect() as wire:
        wire.send({"event": "completion:stream", "data": {"prompt": "hello", **asked}, "id": "ask"})
        step: dict[str, Any] = {}
        while (frame := await wire.receive())["type"] == "item":
            step = frame["data"]
    assert frame["type"] == "end", frame
    return step


async def test_nobody_gets_a_made_up_answer_that_was_not_allowed() -> None:
    async with running_daemon() as ksi:
        async with ksi.connect() as wire:
            refused = await wire.call("completion:async", {"prompt": "hello", "provider": "mock"})
        assert refused["error"]["details"]["reason"] == "provider_missing"
        assert "KSI_PROVIDER=mock" in refused["error"]["message"]
        health = await ksi.call_raw("system:health")
        assert "mock" not in health["checks"]["providers"]["detail"]


async def test_a_table_of_settings_allows_it_to_those_who_name_it() -> None:
    async with running_daemon(settings=table(mock={"answer": "made up"})) as ksi:
        step = await last_step(ksi, provider="mock")
        assert (step["type"], step["text"], step["provider"]) == ("result", "made up", "mock")
        accepted = await ksi.call_raw("completion:async", {"prompt": "hello"})
        assert accepted["provider"] == "embedded"
        await ksi.call_raw("completion:cancel", {"request_id": accepted["request_id"]})


async def test_the_environment_chooses_it_for_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_PROVIDER", "mock")
    async with running_daemon() as ksi:
        step = await last_step(ksi)
        assert (step["text"], step["provider"], step["model"]) == ("hello", "mock", "mock")
        health = await ksi.call_raw("system:health")
        assert health["checks"]["providers"]["detail"]["usable"][0] == "mock"
