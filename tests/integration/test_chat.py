"""`chat.py` against a real daemon, as a person or a script runs it; a worker without a model answers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_client import call_raw
from ksi_common.paths import Paths
from tests.support.relay import Relay
from tests.support.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
CHAT = (sys.executable, str(ROOT / "chat.py"))
CONTROL = (sys.executable, str(ROOT / "daemon_control.py"))
PATIENCE_S = 60.0
pytestmark = pytest.mark.timeout(180)  # each test runs several programs
MODEL = "smollm2-135m-instruct"
INTRODUCTION = (
    f"{MODEL}, the small built-in model, answers (no key needed)."
    " Others: --provider / --model, see ./ksi events show completion:async"
)
KEYS = "(/help, Ctrl-C stops an answer, Ctrl-D leaves)"

SETTINGS = f"""
[plugins.completion]
worker = {json.dumps([sys.executable, "-I", str(ROOT / "tests/support/odd_worker.py")])}
session_queue = 1
"""

Completed = subprocess.CompletedProcess[str]


class Chats:
    """Runs of chat.py in a home of its own, whose daemon has a worker that does as it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = Paths(folder / "var")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
        self.environ["KSI_HOME"] = str(self.paths.home)
        (folder / "ksi.toml").write_text(SETTINGS)

    def __call__(self, *words: str, stdin: str = "", **environ: str) -> Completed:
        """Ask one question."""
        # A pipe that is closed late would be said to be waited for.
        fed: dict[str, Any] = {"input": stdin} if stdin else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            [*CHAT, *words],
            **fed,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def popen(self, *words: str, program: Sequence[str] = CHAT, **environ: str) -> subprocess.Popen[str]:
        """Begin to ask."""
        return subprocess.Popen(
            [*program, *words],
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def terminal(self, *words: str, **environ: str) -> Terminal:
        """Sit down at a terminal."""
        return Terminal([*CHAT, *words], {**self.environ, **environ})

    def talking(self, *words: str, **environ: str) -> Terminal:
        """Begin a conversation."""
        terminal = self.terminal(*words, **environ)
        terminal.expect("you ▸ ")
        return terminal

    def control(self, *words: str) -> Completed:
        """Run daemon_control.py."""
        return subprocess.run(
            [*CONTROL, *words],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def ask(self, event: str, **data: object) -> dict[str, Any]:
        """Ask the daemon itself."""
        return call_raw(event, data, socket=self.paths.socket)

    def kill(self) -> None:
        """Kill the daemon, which its supervisor starts again."""
        os.kill(self.ask("system:health")["pid"], signal.SIGKILL)

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Halt the daemon while the block runs: it answers nothing, and ends nothing."""
        pid = self.ask("system:health")["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def wait_stopped(self) -> None:
        """Wait until the last completion is cancelled, so that its worker's end is no other answer's."""
        self.ask("completion:cancel", request_id=self.accepted["request_id"])

    @property
    def accepted(self) -> dict[str, Any]:
        """The last completion that was accepted."""
        found = self.ask("event:query", patterns=["completion:accepted"], limit=1, reverse=True)
        told: dict[str, Any] = found["events"][0]["data"]
        return told

    @property
    def last_session(self) -> Path:
        """Where the last session is kept."""
        return self.paths.home / "state" / "last_session_id"


def made() -> Iterator[Chats]:
    folder = Path(tempfile.mkdtemp(prefix="ksi"))
    try:
        chats = Chats(folder)
        yield chats
        chats.control("stop", "--now")
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # of one that had to be killed something may yet end


@pytest.fixture
def stopped() -> Iterator[Chats]:
    """Give a home where nothing ran yet."""
    yield from made()


@pytest.fixture(scope="module")
def shared() -> Iterator[Chats]:
    yield from made()


@pytest.fixture
def chat(shared: Chats) -> Chats:
    """Give a home whose daemon runs, where something was asked before."""
    assert shared.control("start").returncode == 0
    if not shared.last_session.exists():
        assert shared("-p", "hello").returncode == 0
    return shared


# One question.


def test_stdout_has_the_answer_and_nothing_else(chat: Chats) -> None:
    done = chat("Event logs replay.")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Event logs replay.\n", "")
    assert chat("Event", "logs", "replay.").stdout == "Event logs replay.\n"
    assert chat("-p", "Event logs replay.").stdout == "Event logs replay.\n"


def test_what_is_piped_in_stands_below_the_question(chat: Chats) -> None:
    assert chat("-p", "write a commit message", stdin="-old\n+new\n").returncode == 0
    assert chat.accepted["messages"][-1]["content"] == "write a commit message\n\n-old\n+new"
    assert chat(stdin="hi\n").stdout == "hi\n"


def test_a_pipe_gets_no_half_of_an_answer(chat: Chats) -> None:
    done = chat("mode:die")
    assert (done.returncode, done.stdout) == (1, "")
    assert "chat: no answer: " in done.stderr


def test_json_is_one_object(chat: Chats) -> None:
    (line,) = chat("Event logs", "--output-format", "json").stdout.splitlines()
    answer = json.loads(line)
    assert answer.pop("request_id") == chat.accepted["request_id"]
    assert answer.pop("session_id") == chat.accepted["session_id"]
    assert answer.pop("duration_ms") >= 0
    assert answer == {
        "result": "Event logs",
        "provider": "embedded",
        "model": MODEL,
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "cached_tokens": 1,
            "cache_creation_tokens": 0,
            "cost_usd": None,
        },
        "is_error": False,
    }


def test_stream_json_is_a_line_for_each_step(chat: Chats) -> None:
    gate = chat.folder / "steps"
    with chat.popen(f"mode:gate {gate}", "--output-format", "stream-json") as process:
        assert process.stdout is not None
        steps = [json.loads(process.stdout.readline()) for _ in range(3)]
        gate.touch()
        steps += steps_of(process.stdout.read())
    assert [step["type"] for step in steps] == ["accepted", "started", "delta", "delta", "result"]
    assert [step["text"] for step in steps[2:]] == ["0 ", "1 2 3 ", "0 1 2 3 "]


def steps_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_failed_answer_says_why(chat: Chats) -> None:
    done = chat("mode:fail invalid")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["chat: no answer: a failure: invalid", "  why: as asked"]
    done = chat("mode:fail invalid", "--output-format", "json")
    assert (done.returncode, done.stderr) == (1, "")
    answer = json.loads(done.stdout)
    assert (answer["is_error"], answer["result"]) == (True, None)
    assert answer["error"] == {
        "message": "a failure: invalid",
        "details": {"reason": "as_asked"},
        "retryable": False,
    }


def test_a_full_queue_is_6_in_words_and_in_json(chat: Chats) -> None:
    with chat.popen("mode:hang", "--name", "busy", "--output-format", "stream-json") as process:
        wait_for(process, "delta")
        done = chat("-r", "busy", "hi")
        assert (done.returncode, done.stdout) == (6, "")
        assert "queue full" in done.stderr.splitlines()[1]
        done = chat("-r", "busy", "hi", "--output-format", "stream-json")
        (line,) = steps_of(done.stdout)
        assert (done.returncode, line["error"]["code"]) == (6, "RESOURCE_EXHAUSTED")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)


def test_wrong_usage_is_2_and_an_object_in_json(chat: Chats) -> None:
    for words in (["", "-p", "x"], ["-c", "-r", "known", "x"], ["--nonsense"], ["-r", "../x", "x"], [" "]):
        assert chat(*words).returncode == 2
    done = chat("--output-format", "json")
    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout)["error"]["details"] == {"reason": "usage"}


def test_what_was_wished_for_is_asked(chat: Chats) -> None:
    chat("hi", "--model", MODEL, "--provider", "embedded", "--system", "Be brief.", "--timeout", "20s")
    told = chat.accepted
    assert (told["model"], told["provider"], told["timeout_s"]) == (MODEL, "embedded", 20)
    assert told["messages"][0] == {"role": "system", "content": "Be brief.", "reference": None}
    done = chat("hi", "--model", "large")
    assert done.returncode == 1
    assert done.stderr.startswith('chat: no provider has the model "large"\n')


def test_a_provider_of_the_environment_that_the_daemon_did_not_start_with_is_said(stopped: Chats) -> None:
    started = stopped("hello", KSI_PROVIDER="mock")
    assert (started.returncode, started.stdout) == (0, "hello\n")
    assert "KSI_PROVIDER" not in started.stderr
    again = stopped("hello", KSI_PROVIDER="litellm")
    assert (again.returncode, again.stdout) == (0, "hello\n")
    assert "KSI_PROVIDER=litellm is read when the daemon starts, and this one ran already" in again.stderr
    # Who names a provider hears of that one alone.
    assert "KSI_PROVIDER" not in stopped("hello", "--provider", "mock", KSI_PROVIDER="litellm").stderr


def test_a_large_prompt_goes_by_a_file_that_is_gone_afterwards(chat: Chats) -> None:
    text = "many words " * 50_000
    done = chat("-p", "Sum up:", stdin=text)
    assert done.stdout == f"Sum up: {text.strip()}\n"
    folder = chat.paths.home / "lib" / "prompts"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []


def test_it_asks_without_a_stdin(chat: Chats) -> None:
    command = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *CHAT]
    run = subprocess.run([*command, "hi"], env=chat.environ, capture_output=True, check=False)
    assert (run.returncode, run.stdout) == (0, b"hi\n")
    assert subprocess.run(command, env=chat.environ, capture_output=True, check=False).returncode == 2


def test_a_reader_that_has_gone_ends_it_quietly(chat: Chats) -> None:
    with chat.popen("hi") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 141
        assert process.stderr.read() == ""


HEAVY = {"pydantic", "asyncio", "logging", "rich", "litellm", "ksi_common.messages", "readline"}


def test_a_question_is_asked_without_importing_anything_heavy(chat: Chats) -> None:
    code = "import sys; from ksi_client.chat.main import run; assert run(['hi']) == 0; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**chat.environ, "COVERAGE_PROCESS_START": ""},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


# Sessions.


def test_continue_goes_on_with_the_last_session(chat: Chats) -> None:
    chat("hi", "--name", "walk")
    assert chat.last_session.read_text() == "walk\n"
    assert chat.last_session.stat().st_mode & 0o777 == 0o600
    assert json.loads(chat("-c", "mode:history").stdout) == [
        ["user", "hi"],
        ["assistant", "hi"],
        ["user", "mode:history"],
    ]


def test_continue_where_there_was_no_session_says_so(chat: Chats) -> None:
    chat.last_session.unlink()
    done = chat("-c", "hi")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "chat: there is no session to go on with"


def test_resume_takes_a_session_that_there_is_and_guesses_one_that_there_is_not(chat: Chats) -> None:
    chat("hi", "--name", "river-bank")
    assert chat("-r", "river-bank", "hi").returncode == 0
    assert chat.accepted["session_id"] == "river-bank"
    done = chat("-r", "river-bnak", "hi")
    assert done.returncode == 1
    assert done.stderr.splitlines()[:3] == [
        "chat: there is no session 'river-bnak'",
        "  why: no session",
        "  try: did you mean river-bank?",
    ]


def test_a_new_session_takes_no_name_that_there_is(chat: Chats) -> None:
    chat("hi", "--session", "hill")
    done = chat("hi", "--session", "hill")
    assert done.returncode == 1
    assert "  try: go on with it: -r hill" in done.stderr.splitlines()


def test_what_cannot_be_kept_does_not_keep_from_talking(stopped: Chats) -> None:
    stopped.control("start")
    (stopped.paths.home / "state").write_text("no folder")
    with stopped.talking(NO_COLOR="1") as terminal:
        terminal.enter("hello")
        terminal.expect("-c will not find this session: ")
        terminal.expect(f"{MODEL} ▸ hello\n")
        terminal.expect("you ▸ ")
        terminal.type("\x04")
        assert terminal.wait() == 0


# The daemon comes and goes.


def test_a_daemon_that_is_not_there_is_started_and_that_is_said(stopped: Chats) -> None:
    done = stopped("Hello")
    assert (done.returncode, done.stdout) == (0, "Hello\n")
    pid = stopped.ask("system:health")["pid"]
    assert done.stderr.splitlines() == [f"KSI was not running; started it (pid {pid}).", INTRODUCTION]
    modes = {path.name: path.stat().st_mode & 0o077 for path in stopped.paths.home.rglob("*")}
    assert {name: mode for name, mode in modes.items() if mode} == {}
    again = stopped("Hello")
    assert (again.stdout, again.stderr) == ("Hello\n", "")


def test_with_no_start_it_is_left_alone(stopped: Chats) -> None:
    done = stopped("-p", "hi", "--no-start")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "chat: KSI is not running.\n  Start it:  python3 daemon_control.py start\n"
    done = stopped("-p", "hi", "--no-start", "--output-format", "json")
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["error"]["details"]["reason"] == "daemon_not_running"
    assert not stopped.paths.socket.exists()


def test_a_daemon_that_cannot_start_says_why(stopped: Chats) -> None:
    (stopped.folder / "ksi.toml").write_text("nonsense = 1\n")
    done = stopped("hi")
    assert done.returncode == 1
    assert done.stderr.startswith("chat: Could not start: ")
    assert "nonsense" in done.stderr


def test_the_answer_comes_though_the_daemon_is_killed_in_its_middle(stopped: Chats) -> None:
    stopped.control("start")
    gate = stopped.folder / "gate"
    with stopped.popen(f"mode:gate {gate}", "--output-format", "stream-json") as process:
        wait_for(process, "delta")
        stopped.kill()
        begun = wait_for(process, "started")
        gate.touch()
        assert process.stdout is not None
        out = process.stdout.read()
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err.splitlines()[1:]) == (0, ["connection lost, retrying…"])
    assert begun["attempt"] == 2
    steps = steps_of(out)
    deltas = [step["text"] for step in steps if step["type"] == "delta"]
    assert "".join(deltas) == steps[-1]["text"] == "0 1 2 3 "


def test_the_answer_is_read_to_its_end_though_the_daemon_is_restarted(stopped: Chats) -> None:
    stopped.control("start")
    gate = stopped.folder / "gate"
    with stopped.popen(f"mode:gate {gate}", "--output-format", "stream-json") as process:
        wait_for(process, "delta")
        with stopped.popen("restart", program=CONTROL) as restarting:
            assert restarting.stdout is not None
            assert restarting.stdout.read(8) == "Draining"
            gate.touch()
            assert restarting.wait(PATIENCE_S) == 0
        out, _ = process.communicate(timeout=PATIENCE_S)
    last = steps_of(out)[-1]
    assert (process.returncode, last["text"], last["attempt"]) == (0, "0 1 2 3 ", 1)


def test_on_a_terminal_a_new_attempt_begins_on_a_new_line(stopped: Chats) -> None:
    stopped.control("start")
    gate = stopped.folder / "gate"
    with stopped.terminal(f"mode:gate {gate}") as terminal:
        terminal.expect("0 ")
        stopped.kill()
        terminal.expect("attempt 2")
        gate.touch()
        assert terminal.wait() == 0
    assert terminal.text.splitlines() == [
        INTRODUCTION,
        "0 ",
        "connection lost, retrying…",
        "attempt 2: the text above is void",
        "0 1 2 3 ",
    ]


def test_after_a_cut_of_the_connection_the_answer_goes_on_where_it_was(chat: Chats) -> None:
    path, gate = chat.folder / "relay.sock", chat.folder / "cut"
    with Relay(path, chat.paths.socket) as relay:
        asked = (f"mode:gate {gate}", "--output-format", "stream-json")
        with chat.popen(*asked, KSI_SOCKET=str(path)) as process:
            wait_for(process, "delta")
            relay.cut()
            relay.wait_answered()
            gate.touch()
            out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, err) == (0, "connection lost, retrying…\n")
        steps = steps_of(out)
        assert {step["type"] for step in steps} == {"delta", "result"}
        assert "0 " + "".join(step["text"] for step in steps[:-1]) == steps[-1]["text"] == "0 1 2 3 "


# Ctrl-C and time.


def wait_for(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """Read steps to the next of that type, and give it."""
    assert process.stdout is not None
    step: dict[str, Any] = {"type": None}
    while step["type"] != kind:
        step = json.loads(process.stdout.readline())
    return step


def test_ctrl_c_cancels_the_only_question_and_is_130(chat: Chats) -> None:
    with chat.popen("mode:hang", "--output-format", "stream-json") as process:
        wait_for(process, "delta")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE_S)
    (last,) = steps_of(out)
    assert (process.returncode, last["type"]) == (130, "cancelled")
    assert chat.ask("completion:status", request_id=last["request_id"])["completion"]["state"] == "cancelled"


def test_a_second_ctrl_c_leaves_without_waiting(chat: Chats) -> None:
    with chat.terminal("mode:ignore_cancel", NO_COLOR="1") as terminal:
        terminal.expect(f"{INTRODUCTION}\n")
        terminal.expect_match("[0-9]")
        with chat.halted():
            terminal.type("\x03")
            terminal.expect("stopping… (Ctrl-C again leaves)")
            terminal.type("\x03")
            assert terminal.wait() == 130
    assert terminal.text.endswith("^C\n")
    chat.wait_stopped()


def test_ctrl_c_where_the_daemon_has_gone_leaves(stopped: Chats) -> None:
    stopped.control("start")
    with stopped.popen("mode:hang", "--output-format", "stream-json") as process:
        wait_for(process, "delta")
        stopped.control("stop", "--now")
        assert process.stderr is not None
        while process.stderr.readline() != "connection lost, retrying…\n":
            pass
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE_S)
    (last,) = steps_of(out)
    assert process.returncode == 130
    assert last["error"]["message"].startswith("the answer could not be stopped: KSI is not running")


def test_an_answer_that_takes_too_long_is_cancelled_and_is_5(chat: Chats) -> None:
    done = chat("mode:hang", "--timeout", "3s", "--output-format", "json")
    assert done.returncode == 5
    answer = json.loads(done.stdout)
    assert answer["error"]["message"] == "no answer within 3 s"
    told = chat.ask("completion:status", request_id=answer["request_id"])["completion"]
    assert told["state"] in ("cancelled", "failed")


def test_one_that_has_no_turn_in_time_is_cancelled_and_is_5(chat: Chats) -> None:
    with (
        chat.popen("mode:hang", "--output-format", "stream-json") as first,
        chat.popen("mode:hang", "--output-format", "stream-json") as second,
    ):
        wait_for(first, "delta")
        wait_for(second, "delta")
        done = chat("hello", "--timeout", "3s")
        assert done.returncode == 5
        assert "chat: no answer within 3 s" in done.stderr.splitlines()
        request = chat.accepted["request_id"]
        assert chat.ask("completion:status", request_id=request)["completion"]["state"] == "cancelled"
        for process in (first, second):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE_S)


# A conversation.


@pytest.mark.parametrize(("words", "provider"), [([], "embedded"), (["--provider", "other"], "other")])
def test_a_conversation_says_who_is_to_answer(chat: Chats, words: list[str], provider: str) -> None:
    with chat.talking(*words, NO_COLOR="1") as terminal:
        terminal.type("\x04")
        assert terminal.wait() == 0
    first, *rest = terminal.text.splitlines()
    assert re.fullmatch(f"KSI chat   session [a-z]+-[a-z]+   provider {provider}   {re.escape(KEYS)}", first)
    assert rest == ["you ▸ "]


def test_a_conversation(chat: Chats) -> None:
    with chat.talking("--name", "river-walk", NO_COLOR="1") as terminal:
        terminal.enter("Name three uses.")
        terminal.expect("3 tokens, ")
        terminal.expect("you ▸ ")
        terminal.type("\x04")
        assert terminal.wait() == 0
    lines = terminal.text.splitlines()
    assert re.fullmatch(r" +·  3 tokens, \d+\.\d s", lines.pop(4))
    assert lines == [
        f"KSI chat   session river-walk   provider embedded   {KEYS}",
        "you ▸ Name three uses.",
        INTRODUCTION,
        f"{MODEL} ▸ Name three uses.",
        "you ▸ ",
        "Saved. Go on later:  python3 chat.py -r river-walk",
    ]
    assert chat.last_session.read_text() == "river-walk\n"


def test_ctrl_c_stops_the_answer_and_not_the_conversation(chat: Chats) -> None:
    with chat.talking(NO_COLOR="1") as terminal:
        terminal.enter("mode:slow 1000 0.05")
        terminal.expect(f"{MODEL} ▸ 0 1 2 ")
        terminal.resize(24, 40)
        terminal.type("\x03")
        terminal.expect("\nstopped\nyou ▸ ")
        terminal.enter("And then?")
        terminal.expect(f"{MODEL} ▸ And then?\n")
        terminal.expect("you ▸ ")
        terminal.enter("/quit")
        assert terminal.wait() == 0


def test_ctrl_c_twice_at_the_prompt_leaves(chat: Chats) -> None:
    with chat.talking() as terminal:
        terminal.type("half a line\x03")
        terminal.expect("Ctrl-C again leaves, and so does Ctrl-D\nyou ▸ ")
        terminal.enter("hi")
        terminal.expect("1 token, ")
        terminal.expect("you ▸ ")
        terminal.type("\x03")
        terminal.expect("Ctrl-C again leaves, and so does Ctrl-D\nyou ▸ ")
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert "\nSaved. Go on later:" in terminal.text


def test_a_second_ctrl_c_while_an_answer_is_stopped_leaves_the_conversation(chat: Chats) -> None:
    with chat.talking() as terminal:
        terminal.enter("mode:ignore_cancel")
        terminal.expect_match(f"{MODEL} ▸ [0-9]")
        with chat.halted():
            terminal.type("\x03")
            terminal.expect("stopping… (Ctrl-C again leaves)")
            terminal.type("\x03")
            assert terminal.wait() == 130
    chat.wait_stopped()


def test_the_commands_of_a_conversation(chat: Chats) -> None:
    chat("hi", "--name", "commands")
    with chat.talking("-r", "commands") as terminal:
        terminal.enter("/modle")
        terminal.expect("There is no /modle. Did you mean /model?")
        terminal.enter("/model")
        terminal.expect("the provider's own choice")
        terminal.enter(f"/model {MODEL}")
        terminal.expect(f"The next answers come from {MODEL}.")
        terminal.enter("/retry")
        terminal.expect("Nothing was asked yet.")
        terminal.enter("hello")
        terminal.expect(f"{MODEL} ▸ hello\n")
        terminal.enter("/retry")
        terminal.expect(f"{MODEL} ▸ hello\n")
        terminal.enter("/sessions")
        terminal.expect("* commands ")
        terminal.enter("/help")
        terminal.expect("/quit          leave; so does Ctrl-D\n")
        terminal.enter(" /etc is a folder")
        terminal.expect(f"{MODEL} ▸ /etc is a folder\n")
        terminal.enter("/multi")
        for line in ("one", "", "two", "."):
            terminal.expect("… ")
            terminal.enter(line)
        terminal.expect(f"{MODEL} ▸ one two\n")
        terminal.expect("you ▸ ")
        assert chat.accepted["messages"][-1]["content"] == "one\n\ntwo"
        assert chat.accepted["session_id"] == "commands"
        terminal.enter("/multi")
        terminal.expect("… ")
        terminal.type("\x03")
        terminal.expect("you ▸ ")
        terminal.enter("/new")
        terminal.expect("session ")
        terminal.expect("you ▸ ")
        terminal.enter("bye")
        terminal.expect(f"{MODEL} ▸ bye\n")
        terminal.expect("you ▸ ")
        terminal.type("\x04")
        assert terminal.wait() == 0
    assert chat.accepted["session_id"] == chat.last_session.read_text().strip() != "commands"


def test_what_goes_wrong_does_not_end_a_conversation(chat: Chats) -> None:
    with chat.talking() as terminal:
        terminal.enter("/model large")
        terminal.enter("hello")
        terminal.expect('chat: no provider has the model "large"\n')
        terminal.enter(f"/model {MODEL}")
        terminal.enter("mode:fail invalid")
        terminal.expect("chat: no answer: a failure: invalid\n")
        terminal.enter("hello")
        terminal.expect(f"{MODEL} ▸ hello\n")
        terminal.enter("/quit")
        assert terminal.wait() == 0


def test_a_conversation_survives_a_stop_of_the_daemon(chat: Chats) -> None:
    with chat.talking() as terminal:
        chat.control("stop", "--now")
        terminal.enter("hello")
        terminal.expect("KSI was not running; started it (pid ")
        terminal.expect(f"{MODEL} ▸ hello\n")
        terminal.enter("/quit")
        assert terminal.wait() == 0


def test_history_is_kept_for_its_owner_alone(chat: Chats) -> None:
    with chat.talking() as terminal:
        terminal.enter("remember me")
        terminal.expect("2 tokens, ")
        terminal.enter("/quit")
        terminal.wait()
    history = chat.paths.home / "state" / "chat_history"
    assert history.read_text().splitlines()[-2:] == ["remember me", "/quit"]
    assert history.stat().st_mode & 0o777 == 0o600
    with chat.talking() as terminal:
        terminal.type("\x1b[A\x1b[A")
        terminal.expect("remember me")
        terminal.type("\x03")
        terminal.expect("leaves, and so does Ctrl-D\nyou ▸ ")
        terminal.type("\x04")
        assert terminal.wait() == 0


def test_commands_are_completed(chat: Chats) -> None:
    with chat.talking() as terminal:
        terminal.type("/qu\t\r")
        assert terminal.wait() == 0


def test_a_conversation_needs_a_terminal(chat: Chats) -> None:
    with chat.terminal("--output-format", "json") as terminal:
        assert terminal.wait() == 2


# What a model says is data.

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\u202eevil\u202c"


def test_a_terminal_is_shown_control_characters_and_never_sent_them(chat: Chats) -> None:
    with chat.terminal("-p", HOSTILE, NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
    assert "\\x1b]52;c;aGk=\\x07\\x1b[2J\\u202eevil\\u202c" in terminal.raw
    assert "\x1b" not in terminal.raw


def test_a_pipe_gets_what_the_model_said_and_json_has_no_control_character(chat: Chats) -> None:
    assert chat("-p", HOSTILE).stdout == HOSTILE + "\n"
    line = chat("-p", HOSTILE, "--output-format", "json").stdout
    assert json.loads(line)["result"] == HOSTILE
    assert not {"\x1b", "\x07", "\u202e"} & set(line)


def test_a_line_of_a_megabyte_is_shown_whole(chat: Chats) -> None:
    assert chat("mode:long 1000000").stdout == "x" * 1_000_000 + "\n"


@pytest.mark.parametrize(
    ("environ", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    ids=["terminal", "NO_COLOR", "dumb"],
)
def test_a_terminal_has_colours_unless_it_is_told_not_to(
    chat: Chats, environ: dict[str, str], colored: bool
) -> None:
    with chat.terminal("hi", **environ) as terminal:
        assert terminal.wait() == 0
    assert ("\x1b[2m" in terminal.raw) is colored


# The real model.


def test_the_built_in_model_answers_and_goes_on(stopped: Chats) -> None:
    (stopped.folder / "ksi.toml").unlink()
    assert "Paris" in stopped("What is the capital of France?").stdout
    assert "Rome" in stopped("-c", "And of Italy?").stdout
    (session,) = stopped.ask("conversation:list")["conversations"]
    assert session["session_id"] == stopped.last_session.read_text().strip()
    assert session["message_count"] == 4
    lines = (stopped.paths.home / session["path"]).read_text().splitlines()
    assert ["Paris" in lines[0], "Rome" in lines[1]] == [True, True]
    with stopped.talking("-c", NO_COLOR="1") as terminal:
        terminal.enter("Write a long story about a river.")
        terminal.expect_match(f"{MODEL} ▸ [A-Z]")
        terminal.type("\x03")
        terminal.expect("\nstopped\nyou ▸ ")
        terminal.type("\x04")
        assert terminal.wait() == 0
    (cancelled,) = stopped.ask("event:query", patterns=["completion:cancelled"])["events"]
    assert cancelled["data"]["proof"]["how"] == "confirmed"
