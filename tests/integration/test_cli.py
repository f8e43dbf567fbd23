"""`ksi` against the real daemon, as a person or a script runs it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ksi_client import call_raw
from tests.integration.test_client import PATIENCE_S, RealDaemon, real_daemon

KSI = Path(__file__).resolve().parents[2] / "ksi"

Ksi = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.timeout(240)  # each test runs several programs


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    with real_daemon() as daemon:
        yield daemon


def environment(daemon: RealDaemon) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
    return {**environ, "KSI_HOME": str(daemon.home)}


@pytest.fixture
def ksi(daemon: RealDaemon) -> Ksi:
    def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, KSI, *argv],
            input=stdin,
            env=environment(daemon),
            check=False,
            capture_output=True,
            text=True,
        )

    return run


def test_status(ksi: Ksi) -> None:
    health = json.loads(ksi("status", "--json").stdout)
    assert (health["status"], health["active_connections"]) == ("healthy", 1)
    assert ksi("status", "-o", "table").stdout.startswith("● healthy   pid ")


def test_a_value_is_stored_and_read_with_its_type(ksi: Ksi) -> None:
    assert ksi("call", "state:set", "key=n", "value:=123").stdout.startswith("status\tset\n")
    assert json.loads(ksi("call", "state:get", "key=n", "--json").stdout)["value"] == 123
    ksi("call", "state:set", "-", stdin='{"key": "t", "value": "123"}')
    assert json.loads(ksi("call", "state:get", "key=t", "--json").stdout)["value"] == "123"


def test_a_field_that_is_nearly_right_is_guessed(ksi: Ksi) -> None:
    done = ksi("call", "state:get", "ky=n")
    assert done.returncode == 1
    what, why, hint, code = done.stderr.splitlines()
    assert what == 'state:get has no field "ky"'
    assert why == "  why: unknown field (field ky)"
    assert hint == '  try: did you mean "key"?   |   ksi events show state:get'
    assert code.startswith("  INVALID_ARGUMENT  correlation id ")


def test_an_event_that_is_nearly_right_is_guessed(ksi: Ksi) -> None:
    assert "did you mean state:get" in ksi("call", "state:gett").stderr
    assert ksi("events", "show", "state:gett").returncode == 1


def test_what_a_plugin_declares_cannot_be_sent(ksi: Ksi) -> None:
    done = ksi("send", "state:changed", "key=a", "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["code"] == "PERMISSION_DENIED"


def test_what_is_sent_is_followed(ksi: Ksi) -> None:
    cursor = json.loads(ksi("send", "demo:told", "n:=1", "--json").stdout)["cursor"]
    ksi("send", "demo:told", "n:=2")
    told = json.loads(ksi("sub", "demo:*", "--cursor", cursor, "--count", "1", "-o", "jsonl").stdout)
    assert (told["event"], told["data"]) == ("demo:told", {"n": 2})
    assert len(ksi("sub", "demo:*", "--since", "1h", "--count", "2").stdout.splitlines()) == 2


def test_words_are_typed_by_the_event(ksi: Ksi) -> None:
    ksi("send", "typed:told")
    done = ksi("call", "event:query", "patterns=typed:told", "limit=5", "reverse=false", "--json")
    assert json.loads(done.stdout)["count"] == 1


def test_every_example_that_is_shown_can_be_run(ksi: Ksi, daemon: RealDaemon) -> None:
    for name in ("state:set", "state:get", "event:publish", "system:help"):
        explained = ksi("events", "show", name).stdout.splitlines()
        (example,) = [line.split(None, 1)[1] for line in explained if line.startswith("  example")]
        done = subprocess.run(
            ["sh", "-c", example.replace("ksi", f"{sys.executable} {KSI}", 1)],
            env=environment(daemon),
            check=False,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr


def test_an_event_is_explained_whole(ksi: Ksi) -> None:
    explained = ksi("events", "show", "plugin:serve").stdout
    assert '  The daemon sends {"type":"call","id":"d1"' in explained
    assert "  a stream of plugin system\n  The daemon sends" in explained


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (
            "plugin:serve",
            [
                "events         array of object, required          What it handles.",
                "  event        string, required                   Its name.",
                "  summary      string, default empty              What it does, for people.",
            ],
        ),
        ("event:append", ["  data            object, optional                          What it says."]),
        ("completion:async", ["  role               system | user | assistant, required"]),
    ],
)
def test_the_fields_of_objects_that_are_lists_or_fields_are_explained(
    ksi: Ksi, event: str, fields: list[str]
) -> None:
    explained = ksi("events", "show", event).stdout.splitlines()
    for field in fields:
        assert f"  {field}" in explained


def test_events_are_listed_as_they_can_be_sent(ksi: Ksi) -> None:
    listed = _names(ksi("events", "ls").stdout)
    assert {"system:health", "state:set", "event:subscribe", "state:changed"} <= set(listed)
    assert all(name.startswith("state:") for name in _names(ksi("events", "ls", "state").stdout))


def test_help_is_of_commands_and_events(ksi: Ksi) -> None:
    everything = ksi("help").stdout
    assert "  sub       Follow events" in everything
    assert "state:set\trequest\tStore one value" in everything
    assert ksi("help", "sub").stdout == ksi("sub", "--help").stdout
    assert ksi("help", "plugin", "new").stdout == ksi("plugin", "new", "--help").stdout
    assert ksi("help", "state:set").stdout == ksi("events", "show", "state:set").stdout
    assert ksi("help", "state").stdout == ksi("events", "ls", "state").stdout
    assert "state:set" in json.dumps(json.loads(ksi("help", "--json").stdout)["events"])
    assert ksi("help", "plugin", "nope").returncode == 2
    unknown = ksi("help", "state:sett")
    assert (unknown.returncode, "did you mean state:set" in unknown.stderr) == (1, True)


def test_help_of_a_daemon_that_does_not_run_is_that_of_the_commands(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
    helped = subprocess.run(
        [sys.executable, KSI, "help"],
        env={**environ, "KSI_HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert helped.returncode == 0, helped.stderr
    assert "Commands:" in helped.stdout
    assert "KSI is not running" in helped.stdout
    assert "start it" in helped.stdout


def test_a_subscription_ends_with_130_when_it_is_interrupted_and_survives_a_restart() -> None:
    with (
        real_daemon() as daemon,
        subprocess.Popen(
            [sys.executable, KSI, "sub", "demo:*", "--from-beginning", "-o", "jsonl"],
            env=environment(daemon),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as following,
    ):
        assert following.stdout is not None
        assert following.stderr is not None
        try:
            for n in range(3):
                publish(daemon, n)
                assert json.loads(following.stdout.readline())["data"] == {"n": n}
                daemon.restart()
            publish(daemon, 3)
            assert json.loads(following.stdout.readline())["data"] == {"n": 3}
            following.send_signal(signal.SIGINT)
            assert following.wait(PATIENCE_S) == 130
            assert following.stderr.read().strip() == ""
        finally:
            following.kill()


def publish(daemon: RealDaemon, n: int) -> None:
    told = {"event": "demo:told", "data": {"n": n}}
    call_raw("event:publish", told, socket=daemon.socket, connect_timeout_s=PATIENCE_S)


def _names(text: str) -> list[str]:
    return [line.split("\t")[0] for line in text.splitlines()]


def test_the_log_is_replayed_and_is_what_is_live(ksi: Ksi) -> None:
    ksi("call", "state:set", "key=n", "value:=123")
    done = ksi("replay")
    assert (done.returncode, "state.state is the same: " in done.stdout) == (0, True)
    last = json.loads(ksi("replay", "--json").stdout)
    assert {table["difference"] for table in last["tables"]} == {None}


def test_the_log_is_exported_once_and_not_into_a_home_that_has_one(ksi: Ksi, tmp_path: Path) -> None:
    file = str(tmp_path / "log.jsonl")
    done = json.loads(ksi("export", file, "--json").stdout)
    assert done["lines"] == done["seq"] > 0
    again = ksi("export", file)
    assert (again.returncode, again.stderr) == (1, "ksi export: the file is a finished export\n")
    there = ksi("import", file)
    assert (there.returncode, "ksi import: another KSI" in there.stderr) == (1, True)
    asked = ksi("export", file, "--json")
    assert (asked.returncode, asked.stderr) == (1, "")
    assert json.loads(asked.stdout)["error"]["message"] == "the file is a finished export"
    nowhere = ksi("export", f"{file}/log.jsonl")
    assert nowhere.stderr == f"ksi export: {file}/log.jsonl: Not a directory\n"
