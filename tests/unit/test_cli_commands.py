"""The commands against the fake: what they ask, what they write, what they exit with."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ksi_client.cli.failures import exit_code, four_lines
from ksi_client.cli.main import COMMANDS, run
from ksi_client.cli.options import Duration
from ksi_common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    KSIError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from ksi_common.events import event, state
from ksi_common.messages import Message
from tests.unit.test_client_fake import FakeDaemon, fake_in_thread

ROOT = Path(__file__).resolve().parents[2]
HEALTHY = {
    "status": "healthy",
    "version": "1.0",
    "pid": 4711,
    "uptime_s": 8100.5,
    "active_connections": 1,
    "checks": {"database": {"status": "healthy", "detail": {"head": 3}}},
}

Run = Callable[[Callable[[], Any]], Any]


def described(name: str, cls: type[Message], kind: str = "request") -> dict[str, Any]:
    schema = cls.model_json_schema()
    schema["properties"]["mode"] = {"enum": ["a", "b"], "type": "string"}
    return {
        "event": name,
        "kind": kind,
        "summary": "Do ``it``.",
        "description": "Do ``it``.",
        "plugin": "demo",
        "parameters": {
            "key": {"type": "string", "required": True, "default": None, "description": "Which."},
            "mode": {
                "type": "string",
                "required": False,
                "default": "a",
                "description": "",
                "allowed_values": ["a", "b"],
            },
        },
        "reply": {"properties": {"status": {}}} if kind == "request" else None,
        "schema": schema,
        "errors": ["NOT_FOUND"] if kind == "request" else [],
        "examples": [{"event": name, "data": {"key": "a b", "n": 1}}] if kind == "request" else [],
    }


@pytest.fixture
def fake() -> Iterator[tuple[FakeDaemon, Run]]:
    with fake_in_thread() as fake:
        yield fake


@pytest.fixture
def run_(fake: tuple[FakeDaemon, Run]) -> Run:
    return fake[1]


@pytest.fixture
def daemon(fake: tuple[FakeDaemon, Run], monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    daemon, _ = fake
    monkeypatch.setenv("KSI_SOCKET", str(daemon.path))
    help_ = {
        "state:set": described("state:set", state.Set),
        "state:get": described("state:get", state.Get),
        "event:subscribe": described("event:subscribe", event.Subscribe, "stream"),
        "demo:told": described("demo:told", state.Changed, "notification"),
    }

    def explain(data: Any) -> dict[str, Any]:
        if data["event"] not in help_:
            raise NotFound("unknown", reason="unknown_event")
        return help_[data["event"]]

    daemon.handlers |= {
        "system:health": lambda data: HEALTHY,
        "system:help": explain,
        "system:discover": lambda data: {
            "events": {"state": [help_["state:get"], help_["state:set"]]},
            "notifications": {"demo": [help_["demo:told"]]},
        },
    }
    return daemon


def ksi(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = run(argv)
    out, err = capsys.readouterr()
    return code, out, err


Capture = pytest.CaptureFixture[str]


def test_status_in_a_pipe_is_plain(daemon: FakeDaemon, capsys: Capture) -> None:
    code, out, _ = ksi(capsys, "status")
    assert code == 0
    assert out.splitlines()[:3] == ["status\thealthy", "version\t1.0", "pid\t4711"]


def test_status_as_a_table_fits_a_screen(daemon: FakeDaemon, capsys: Capture) -> None:
    assert ksi(capsys, "status", "-o", "table")[1].splitlines() == [
        "● healthy   pid 4711   up 2 h 15 m   v1.0   1 connected",
        "  database       healthy    head 3",
    ]


def test_status_as_json_is_the_reply(daemon: FakeDaemon, capsys: Capture) -> None:
    assert json.loads(ksi(capsys, "status", "--json")[1]) == HEALTHY
    assert json.loads(ksi(capsys, "--json", "status")[1]) == HEALTHY


def test_status_of_an_unhealthy_daemon_is_1(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.handlers["system:health"] = lambda data: {**HEALTHY, "status": "unhealthy"}
    assert ksi(capsys, "status")[0] == 1


def test_without_a_daemon_every_command_says_so_and_exits_3(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_SOCKET", "/nonexistent/d.sock")
    for argv in (["status"], ["call", "a:b"], ["send", "a:b"], ["sub", "a:*"], ["events", "ls"]):
        code, out, err = ksi(capsys, *argv)
        assert (code, out) == (3, "")
        assert err.splitlines() == [
            "KSI is not running: nothing listens at /nonexistent/d.sock",
            "  try: start it: python3 daemon_control.py start",
            "  UNAVAILABLE",
        ]


def test_details_without_a_reason_are_said_as_they_are(daemon: FakeDaemon, capsys: Capture) -> None:
    def fail(_: object) -> dict[str, object]:
        raise InternalError("plugin demo failed", plugin="demo")

    daemon.handlers["demo:hooked"] = fail
    assert ksi(capsys, "call", "demo:hooked")[2].splitlines()[1] == "  why: plugin demo"


def test_an_error_in_json_is_one_object_on_stdout(daemon: FakeDaemon, capsys: Capture) -> None:
    code, out, err = ksi(capsys, "call", "demo:absent", "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["error"]["code"] == "NOT_FOUND"


def test_a_usage_error_in_json_is_one_object_on_stdout(capsys: Capture) -> None:
    code, out, err = ksi(capsys, "sub", "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["error"]["details"] == {"reason": "usage"}


def test_a_command_that_is_nearly_right_is_guessed(capsys: Capture) -> None:
    code, _, err = ksi(capsys, "statsu")
    assert code == 2
    assert "Did you mean 'status'?" in err


@pytest.mark.parametrize(
    "argv", [["status", "--nonsense"], ["call"], ["call", "a:b", "color"], ["--nonsense"]]
)
def test_wrong_usage_is_2(argv: list[str], capsys: Capture) -> None:
    code, out, err = ksi(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: ksi")


def test_call_types_its_words_by_what_the_event_takes(daemon: FakeDaemon, capsys: Capture) -> None:
    assert ksi(capsys, "call", "state:set", "key=7", "value:=[1]") == (
        0,
        "status\tset\nnamespace\tglobal\nkey\t7\n",
        "",
    )
    assert daemon.values == {"7": [1]}


def test_call_reads_an_object_from_stdin(
    daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"key": "a", "value": 1}')))
    assert ksi(capsys, "call", "state:set", "-")[0] == 0
    assert daemon.values == {"a": 1}


def test_call_asks_for_an_event_that_nobody_describes(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.handlers["demo:hooked"] = lambda data: {"got": data}
    assert ksi(capsys, "call", "demo:hooked", "a=1", "-o", "jsonl")[1] == '{"got":{"a":"1"}}\n'


def test_call_shows_the_items_of_a_stream(daemon: FakeDaemon, run_: Run, capsys: Capture) -> None:
    run_(lambda: daemon.publish("demo:told", {"n": 1}))
    code, out, _ = ksi(
        capsys, "call", "event:subscribe", "patterns=demo:*", "start=beginning", "--timeout", "100ms"
    )
    assert code == 5
    assert json.loads(out)["data"] == {"n": 1}


def test_a_call_that_takes_too_long_is_5(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.silent.add("state:get")
    code, _, err = ksi(capsys, "call", "state:get", "key=a", "--timeout", "50ms")
    assert code == 5
    assert err.startswith("no answer to 'state:get' within 0.05 s")


def test_send_publishes(daemon: FakeDaemon, capsys: Capture) -> None:
    code, out, _ = ksi(capsys, "send", "demo:told", "n:=1", "text=x", "--id", "e1", "--json")
    assert (code, json.loads(out)["seq"]) == (0, 1)
    assert daemon.received[0].data == {
        "event": "demo:told",
        "data": {"n": 1, "text": "x"},
        "event_id": "e1",
    }
    ksi(capsys, "send", "demo:blinked", "--ephemeral")
    assert daemon.received[1].data == {"event": "demo:blinked", "data": {}, "ephemeral": True}


def test_sub_shows_events_in_each_format(daemon: FakeDaemon, run_: Run, capsys: Capture) -> None:
    run_(lambda: daemon.publish("demo:told", {"text": "\x1b[2J"}))
    argv = ["sub", "demo:*", "--from-beginning", "--count", "1", "-o"]
    assert ksi(capsys, *argv, "plain") == (
        0,
        '2026-01-01T00:00:00Z\tdemo:told\t{"text":"\\u001b[2J"}\n',
        "",
    )
    assert ksi(capsys, *argv, "table")[1] == '00:00:00Z  demo:told  {"text":"\\u001b[2J"}\n'
    shown = json.loads(ksi(capsys, *argv, "jsonl")[1])
    assert (shown["event"], shown["data"], shown["cursor"]) == ("demo:told", {"text": "\x1b[2J"}, "fake-1")


def test_sub_begins_where_it_is_told_to(daemon: FakeDaemon, run_: Run, capsys: Capture) -> None:
    for n in range(3):
        run_(lambda: daemon.publish("demo:told", {"n": n}))  # noqa: B023  (run at once)
    code, out, _ = ksi(capsys, "sub", "demo:*", "--cursor", "fake-2", "--count", "1", "--json")
    assert (code, json.loads(out)["data"]) == (0, {"n": 2})


def test_sub_says_where_events_are_missing(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.gap = {"reason": "other_log"}
    daemon.log.append({"event": "demo:told", "data": {}, "event_id": "e1"})
    code, out, err = ksi(capsys, "sub", "demo:*", "--count", "1", "--from-beginning")
    assert (code, out.count("\n")) == (0, 1)
    assert err == 'gap: events are missing here: {"reason":"other_log"}\n'
    _, out, err = ksi(capsys, "sub", "demo:*", "--count", "1", "--from-beginning", "--json")
    assert err == ""
    assert json.loads(out.splitlines()[0]) == {"type": "gap", "cursor": "fake-0", "reason": "other_log"}


def test_sub_begins_in_one_place_only(capsys: Capture) -> None:
    code, _, err = ksi(capsys, "sub", "a:*", "--since", "10m", "--from-beginning")
    assert code == 2
    assert "exclude each other" in err


def test_sub_that_ends_by_time_is_5(daemon: FakeDaemon, capsys: Capture) -> None:
    assert ksi(capsys, "sub", "demo:*", "--timeout", "50ms")[0] == 5


def test_since_is_a_time_or_how_long_ago(daemon: FakeDaemon, capsys: Capture) -> None:
    for since in ("2026-01-31T12:00:00Z", "10m"):
        ksi(capsys, "sub", "demo:*", "--since", since, "--timeout", "1ms")
    named, ago = (call.data["start"]["time"] for call in daemon.received)
    assert named == "2026-01-31T12:00:00.000000Z"
    assert len(ago) == len("2026-01-31T12:00:00.000000Z")


def test_since_refuses_what_is_no_time(capsys: Capture) -> None:
    assert (
        "'yesterday' is no time: write how long ago" in ksi(capsys, "sub", "a:*", "--since", "yesterday")[2]
    )
    for since in ("99999999d", "2026-99-01T00:00:00Z"):
        code, _, err = ksi(capsys, "sub", "a:*", "--since", since)
        assert code == 2
        assert "no calendar has" in err


def test_events_ls_lists_what_can_be_sent_and_what_is_told(daemon: FakeDaemon, capsys: Capture) -> None:
    assert ksi(capsys, "events", "ls")[1].splitlines() == [
        "state:get\trequest\tDo it.",
        "state:set\trequest\tDo it.",
        "demo:told\tnotification\tDo it.",
    ]
    assert len(ksi(capsys, "events", "ls", "-o", "jsonl")[1].splitlines()) == 3
    assert set(json.loads(ksi(capsys, "events", "ls", "state", "--json")[1])) == {"events", "notifications"}
    assert daemon.received[-1].data == {"namespace": "state"}


def test_a_file_that_cannot_be_written_is_said_in_a_line(
    daemon: FakeDaemon, capsys: Capture, tmp_path: Path
) -> None:
    daemon.handlers["system:discover"] = lambda data: {"events": {}, "notifications": {}, "total_events": 0}
    file = tmp_path / "nowhere" / "contract.json"
    code, out, err = ksi(capsys, "contract", "save", str(file))
    assert (code, out, err) == (1, "", f"ksi: {file}: No such file or directory\n")


def test_a_disk_that_is_full_is_said_in_a_line(daemon: FakeDaemon) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, ROOT / "ksi", "status"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "ksi: No space left on device\n")


@pytest.fixture
def found_by_namespace(daemon: FakeDaemon) -> None:
    everything = daemon.handlers["system:discover"]({})
    daemon.handlers["system:discover"] = lambda data: {
        group: {name: events for name, events in named.items() if data.get("namespace", name) == name}
        for group, named in everything.items()
    }


@pytest.mark.usefixtures("found_by_namespace")
def test_a_namespace_without_events_is_not_found_and_guessed(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "contract.json"
    for argv in (["events", "ls", "stat"], ["contract", "save", str(file), "--namespace", "stat"]):
        code, _, err = ksi(capsys, *argv)
        assert code == 1
        assert err.startswith("there are no events in 'stat'\n  why: no events\n  try: did you mean state?\n")
    assert not file.exists()
    assert "  try: ksi events ls\n" in ksi(capsys, "events", "ls", "zzz")[2]


@pytest.mark.usefixtures("found_by_namespace")
def test_help_guesses_commands_and_namespaces(capsys: Capture) -> None:
    assert "did you mean state or status?" in ksi(capsys, "help", "stat")[2]
    assert "Did you mean 'ls'?" in ksi(capsys, "help", "plugin", "list")[2]
    code, out, err = ksi(capsys, "help", "plugin", "ls", "x")
    assert (code, out) == (2, "")
    assert "No such command 'x'" in err


def test_data_that_is_refused_leads_to_the_explanation(daemon: FakeDaemon, capsys: Capture) -> None:
    code, _, err = ksi(capsys, "call", "state:set", "key=a", "value:=1", "other=\udc80")
    assert code == 1
    assert err.splitlines()[-2:] == ["  try: ksi events show state:set", "  INVALID_ARGUMENT"]


@pytest.mark.parametrize(
    ("hint", "lines"),
    [
        (
            "system:help {event: state:set} shows its fields",
            ["  try: ksi events show state:set", "  INVALID_ARGUMENT  correlation id c1"],
        ),
        (
            "system:discover lists what there is",
            [
                "  try: ksi events ls lists what there is   |   ksi events show state:set",
                "  INVALID_ARGUMENT  correlation id c1",
            ],
        ),
        (
            "did you mean b?",
            [
                "  try: did you mean b?   |   ksi events show state:set",
                "  INVALID_ARGUMENT  correlation id c1",
            ],
        ),
    ],
)
def test_what_is_to_be_done_can_be_typed(
    daemon: FakeDaemon, capsys: Capture, hint: str, lines: list[str]
) -> None:
    def refuse(_: object) -> dict[str, object]:
        raise InvalidArgument("m", hint=hint)

    daemon.handlers["state:set"] = refuse
    assert ksi(capsys, "call", "state:set")[2].splitlines()[1:] == lines


def test_a_format_that_the_environment_gets_wrong_is_wrong_usage(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_OUTPUT", "yaml")
    code, _, err = ksi(capsys, "status")
    assert code == 2
    assert "KSI_OUTPUT is 'yaml'; it may be one of table, json, jsonl, plain" in err


def test_events_show_explains_an_event(daemon: FakeDaemon, capsys: Capture) -> None:
    assert ksi(capsys, "events", "show", "state:get")[1].splitlines() == [
        "state:get  Do it.",
        "  a request of plugin demo",
        "  key   string, required  Which.",
        "  mode  a | b, default a",
        "  gives    {status}",
        "  errors   NOT_FOUND",
        "  example  ksi call state:get 'key=a b' n:=1",
    ]
    assert ksi(capsys, "events", "show", "demo:told")[1].splitlines()[-1] == "  follow  ksi sub demo:told"
    assert json.loads(ksi(capsys, "events", "show", "state:get", "--json")[1])["event"] == "state:get"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("m"), 1),
        (InvalidArgument("m"), 1),
        (Unavailable("m", reason="connection_lost"), 1),
        (Unavailable("m", reason="daemon_not_running"), 3),
        (PermissionDenied("m"), 4),
        (DeadlineExceeded("m"), 5),
        (ResourceExhausted("m"), 6),
        (ResourceExhausted("m", retryable=False), 1),
        (FailedPrecondition("m", reason="protocol_mismatch"), 7),
        (InternalError("m"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: KSIError, code: int) -> None:
    assert exit_code(error) == code


def test_an_error_is_told_in_four_lines_that_are_harmless() -> None:
    error = NotFound("no \x1b[2J", hint="did you mean b?", reason="unknown_event", nearest=["b"], n=2)
    error.add_note("correlation id c1")
    assert four_lines(error) == [
        "no \\x1b[2J",
        "  why: unknown event (n 2)",
        "  try: did you mean b?",
        "  NOT_FOUND  correlation id c1",
    ]
    assert four_lines(NotFound("m")) == ["m", "  NOT_FOUND"]


def test_what_does_not_pass_is_not_to_be_tried_again() -> None:
    assert four_lines(ResourceExhausted("m"))[1] == "  try: try again later"
    assert four_lines(ResourceExhausted("m", retryable=False)) == ["m", "  RESOURCE_EXHAUSTED"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("1.5", 1.5), ("500ms", 0.5), ("10s", 10), ("5m", 300), ("2h", 7200), ("1d", 86400)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "5w", "m", "1e3"])
def test_what_is_no_duration_is_refused(text: str, capsys: Capture) -> None:
    assert ksi(capsys, "status", f"--timeout={text}")[0] == 2


@pytest.mark.parametrize("group", [(), ("events",), ("plugin",), ("contract",)])
def test_help_says_of_each_command_what_it_does_in_a_whole_sentence(
    group: tuple[str, ...], capsys: Capture
) -> None:
    _, out, _ = ksi(capsys, *group, "--help")
    assert "..." not in out.partition("Commands:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_leads_with_examples(command: str, capsys: Capture) -> None:
    code, out, _ = ksi(capsys, command, "--help")
    assert code == 0
    assert f"\n  ksi {command}" in out.split("Options:")[0]


HEAVY = {"pydantic", "fastapi", "textual", "litellm", "rich", "asyncio", "logging", "ksi_common.messages"}


def modules_after(code: str, *argv: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)", *argv]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "argv", [["status"], ["call", "state:get", "key=a"], ["send", "a:b"], ["events", "ls"], ["--help"]]
)
def test_the_quick_paths_import_nothing_heavy(daemon: FakeDaemon, argv: list[str]) -> None:
    modules = modules_after("from ksi_client.cli.main import run; assert run(sys.argv[1:]) == 0", *argv)
    assert not modules & HEAVY


def test_importing_the_client_imports_nothing_heavy() -> None:
    assert not modules_after("import ksi_client; ksi_client.call_raw") & HEAVY


def test_the_launcher_runs_the_command(daemon: FakeDaemon) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "ksi", "status", "--json"], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["status"] == "healthy"


def test_a_reader_that_has_gone_ends_it_quietly(daemon: FakeDaemon, run_: Run) -> None:
    for n in range(3):
        run_(lambda: daemon.publish("demo:told", {"n": n}))  # noqa: B023  (run at once)
    with subprocess.Popen(
        [sys.executable, ROOT / "ksi", "sub", "demo:*", "--from-beginning"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        run_(lambda: daemon.publish("demo:told", {"n": 3}))
        assert process.wait(40) == 141
        assert process.stderr.read() == b""
