"""Completions and children as processes: how they are, for whom they work, what they used."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from ksi_daemon.runner import boot_id
from ksi_daemon.testing import RunningDaemon, Wire, running_daemon

ODD_WORKER = [sys.executable, str(Path(__file__).parents[1] / "support" / "odd_worker.py")]


def table(**settings: Any) -> dict[str, Any]:
    return {"plugins": {"completion": {"mock": {}, "worker": ODD_WORKER, **settings}}}


async def ask(wire: Wire, prompt: str, **asked: Any) -> dict[str, Any]:
    """Ask for a stream, and give its last step."""
    step: dict[str, Any] = {}
    wire.send({"event": "completion:stream", "data": {"prompt": prompt, **asked}, "id": "ask"})
    while (frame := await wire.receive())["type"] == "item":
        step = frame["data"]
    assert frame["type"] == "end", frame
    return step


async def listed(ksi: RunningDaemon, **asked: Any) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = (await ksi.call_raw("process:list", asked))["processes"]
    return found


async def test_a_completion_is_a_process_with_all_that_is_known_of_it() -> None:
    mock = {"usd_per_million_tokens": 1_000_000.0}
    async with running_daemon(settings=table(mock=mock)) as ksi, ksi.connect() as wire:
        about = {"session_id": "s1", "agent_id": "ada", "workflow_id": "w1", "purpose": "a test"}
        await ask(wire, "hello world!", provider="mock", request_id="r1", **about)
        (row,) = await listed(ksi, workflow_id="w1")
        assert row == await ksi.call_raw("process:get", {"process_id": "completion/r1"})
        expected = {
            **about,
            "process_id": "completion/r1",
            "kind": "completion",
            "status": "completed",
            "request_id": "r1",
            "provider": "mock",
            "model": "mock",
            "prompt": "hello world!",
            "retry_count": 0,
            "max_retries": 2,
            "error": None,
            "tokens": 6,
            "cost_usd": 6.0,
        }
        assert {name: row[name] for name in expected} == expected
        assert row["response_reference"]["path"].endswith("s1.jsonl")
        assert row["accepted"] <= row["started"] <= row["ended"]
        assert await listed(ksi, agent_id="bob") == []


async def test_every_state_is_found_by_its_name() -> None:
    mock = {"failure_rate": 1, "failure_kind": "invalid"}
    async with running_daemon(settings=table(mock=mock)) as ksi, ksi.connect() as wire:
        await ask(wire, "fails", provider="mock")
        await ask(wire, "echo: is answered", provider="embedded")
        await ksi.call_raw("completion:pause", {"session_id": "paused"})
        await ksi.call_raw("completion:async", {"prompt": "waits", "session_id": "paused"})
        states = {
            "failed": "fails",
            "completed": "echo: is answered",
            "pending": "waits",
        }
        for status, prompt in states.items():
            (row,) = await listed(ksi, status=status)
            assert (row["prompt"], row["status"]) == (prompt, status)
        assert "was to fail" in (await listed(ksi, status="failed"))[0]["error"]
        assert (await ksi.call_raw("process:list", {"limit": 1}))["total"] == 3


async def test_a_child_is_a_row_from_its_start_to_its_end(tmp_path: Path) -> None:
    home = tmp_path / "var"
    async with running_daemon(home=home, settings=table()) as ksi, ksi.connect() as wire:
        await ask(wire, "echo: hi", provider="embedded")
        (child,) = await listed(ksi, kind="child")
        assert (child["status"], child["purpose"], child["ended"]) == ("running", "embedded model", None)
        assert psutil.Process(child["pid"]).is_running()
        assert child["boot_id"] == boot_id()
    async with running_daemon(home=home, settings=table()) as ksi:
        (child,) = await listed(ksi, kind="child")
        assert child["status"] in {"completed", "failed"}
        assert child["ended"] is not None
        assert child == await ksi.call_raw("process:get", {"process_id": child["process_id"]})


async def test_a_process_that_is_none_is_said() -> None:
    async with running_daemon(settings=table()) as ksi, ksi.connect() as wire:
        refused = await wire.call("process:get", {"process_id": "child/7"})
        assert refused["error"]["details"]["reason"] == "unknown_process"
