"""Streams and keys of the real daemon, held against a model, with kills wherever they may come."""

import asyncio
import socket
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from ksi_client import RawClient
from ksi_common.errors import KSIError
from tests.faults.twins import faulty
from tests.support.daemon_process import DaemonProcess
from tests.support.scale import scaled
from tests.support.stream_model import Entry, Model, Refused

STREAMS = st.sampled_from(["a", "b", "c"])
EXPECTED = st.sampled_from(["any", "any", "none", "exists", 0, 1, 2, 3])
EVENTS = st.lists(st.tuples(st.sampled_from("pqrstuvwxyz"), st.integers(0, 1)), min_size=1, max_size=3)
ENTRIES = st.lists(st.tuples(STREAMS, EXPECTED, EVENTS), min_size=1, max_size=2, unique_by=lambda one: one[0])
KEYS = st.sampled_from(["k1", "k2", "k3"])


class Streams(RuleBasedStateMachine):
    """Ask the model and the daemon the same. Each example has names of its own in the one log."""

    daemon: ClassVar[DaemonProcess]
    run: ClassVar[Callable[..., Any]]
    kills_each: ClassVar[int]
    """In one example; each takes the most of a second."""
    examples: ClassVar = count()

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.prefix = f"x{next(self.examples)}"
        self.kills = 0
        self.client = RawClient(self.daemon.socket, connect_timeout_s=60)
        self.unknown: set[str] = set()
        """Keys whose answers were lost in a kill."""

    @initialize()
    def open(self) -> None:
        self.client.__enter__()

    def teardown(self) -> None:
        self.client.close()

    @rule(entries=ENTRIES)
    def append(self, entries: list[Entry]) -> None:
        self.expect(lambda: self.model.append(entries), lambda: self.ask(self.request(entries)))

    @rule(entries=ENTRIES, key=KEYS)
    def append_under_a_key(self, entries: list[Entry], key: str) -> None:
        if key not in self.unknown:
            request = self.request(entries)
            self.expect(lambda: self.model.append_once(key, entries), lambda: self.ask(request, key))

    @precondition(lambda self: self.kills < self.kills_each)
    @rule(entries=ENTRIES)
    def append_through_a_kill(self, entries: list[Entry]) -> None:
        """Whether it was done before the kill or not: asked again it is there once."""
        request = self.request(entries)
        self.send_and_kill(request)
        self.expect(lambda: self.model.append(entries), lambda: self.ask(request), again=True)

    @precondition(lambda self: self.kills < self.kills_each)
    @rule(entries=ENTRIES, key=KEYS)
    def append_under_a_key_through_a_kill(self, entries: list[Entry], key: str) -> None:
        if key in self.unknown:
            return
        request = self.request(entries)
        self.send_and_kill(request, key)
        self.expect(lambda: self.model.append_once(key, entries), lambda: self.ask(request, key, lost=True))

    @rule(
        stream=STREAMS, begin=st.none() | st.integers(1, 6), backwards=st.booleans(), limit=st.integers(1, 4)
    )
    def read(self, stream: str, begin: int | None, backwards: bool, limit: int) -> None:
        expected = self.model.read(stream, begin, backwards=backwards, limit=limit)
        direction = "backwards" if backwards else "forwards"
        asked = {"stream": self.stream(stream), "direction": direction, "limit": limit}
        reply = self.client.call_raw("event:read", asked | ({"from_version": begin} if begin else {}))
        assert [self.told(event) for event in reply["events"]] == expected

    @invariant()
    def nothing_else_is_there(self) -> None:
        for stream in "abc":
            reply = self.client.call_raw("event:read", {"stream": self.stream(stream)}, safe=True)
            found = [self.told(event)[1] for event in reply["events"]]
            assert found == self.model.streams.get(stream, [])

    def expect(self, model: Callable[[], Any], daemon: Callable[[], Any], *, again: bool = False) -> None:
        """Have both answer alike; ``again``: it may be that the daemon had it already."""
        try:
            expected = model()
        except Refused as refused:
            expected = str(refused)
        actual = daemon()
        if actual is not None and again and isinstance(expected, dict):
            expected, actual = ({**one, "deduplicated": None} for one in (expected, actual))
        assert actual in (None, expected)

    def ask(self, request: dict[str, Any], key: str | None = None, *, lost: bool = False) -> Any:
        """Ask the daemon; None where it says that the answer is ``lost``."""
        try:
            reply = self.client.call_raw("event:append_many", request, key=key and f"{self.prefix}-{key}")
        except KSIError as error:
            reason = error.details["reason"]
            if reason != "outcome_unknown" or not lost or key is None:
                return reason
            self.unknown.add(key)
            return None
        for one in reply["appended"]:
            one["stream"] = one["stream"].rpartition("/")[2]
            one["event_ids"] = [ident.rpartition("-")[2] for ident in one["event_ids"]]
        return {name: reply[name] for name in ("appended", "deduplicated")}

    def send_and_kill(self, request: dict[str, Any], key: str | None = None) -> None:
        """Send a request, and kill the daemon wherever it then is with it."""
        self.kills += 1
        frame: dict[str, Any] = {"event": "event:append_many", "data": request}
        if key is not None:
            frame["idempotency_key"] = f"{self.prefix}-{key}"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.daemon.socket))
            sock.sendall(orjson.dumps(frame) + b"\n")
            if self.kills % 2:
                sock.recv(1)  # it has been done, and the answer is on its way
            self.run(self.daemon.kill())
        self.run(self.daemon.start())

    def request(self, entries: list[Entry]) -> dict[str, Any]:
        """Render an append."""
        return {
            "appends": [
                {
                    "stream": self.stream(stream),
                    "expected_version": expected,
                    "events": [
                        {"event": "demo:told", "event_id": f"{self.prefix}-{ident}", "data": {"n": number}}
                        for ident, number in events
                    ],
                }
                for stream, expected, events in entries
            ]
        }

    def stream(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def told(self, event: dict[str, Any]) -> tuple[int, tuple[str, int]]:
        return event["version"], (event["event_id"].rpartition("-")[2], event["data"]["n"])


def hold_against_the_model(daemon: DaemonProcess, *, examples: int, kills_each: int) -> None:
    """Run examples against one daemon."""
    Streams.kills_each = kills_each
    with asyncio.Runner() as runner:
        runner.run(daemon.__aenter__())
        try:
            Streams.daemon, Streams.run = daemon, staticmethod(runner.run)
            run_machine(
                Streams,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=40,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],  # to shrink would take hundreds of kills
                    derandomize=kills_each == 0,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(daemon.__aexit__())


@pytest.mark.slow
@pytest.mark.timeout(240 + 20 * scaled(3, 100))
def test_streams_and_keys_do_what_the_model_does_through_kills() -> None:
    hold_against_the_model(DaemonProcess(), examples=scaled(3, 100), kills_each=3)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", ["forget_keys", "look_at_the_version_first"])
def test_a_daemon_that_does_otherwise_is_found_out(fault: str) -> None:
    with pytest.raises(AssertionError):
        hold_against_the_model(faulty(fault), examples=30, kills_each=0)
