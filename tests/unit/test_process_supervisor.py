"""The process above the daemon, with daemons that serve, crash or hang as they are told to."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.process_supervisor import CRASHES_ALLOWED, CrashHistory, describe_exit
from tests.support.waiting import eventually

PATIENCE_S = 60.0

DAEMON = """\
import faulthandler, os, pathlib, signal, sys, time
from ksi_daemon.notify import notify, watchdog

run = pathlib.Path(os.environ["KSI_HOME"], "run")
runs = pathlib.Path(os.environ["KSI_HOME"], "runs")
number = len(runs.read_text()) if runs.exists() else 0
runs.write_text("x" * (number + 1))
acts = sys.argv[1:]
for act in acts[min(number, len(acts) - 1)].split(","):
    verb, _, word = act.partition(":")
    if verb == "exit":
        os._exit(int(word))
    if verb == "die":
        faulthandler.disable()
        os.kill(os.getpid(), getattr(signal, word))
    if verb == "crumb":
        (run / "breadcrumb").write_text(word)
    if verb == "torn":
        (run / "breadcrumb").write_bytes(b"new\\0\\0name of before".ljust(128, b"\\0"))
    if verb == "print":
        print(word, flush=True)
    if verb == "suspects":
        print("suspects", os.environ.get("KSI_CRASHED_PLUGIN"), flush=True)
    if verb == "hang":
        watchdog()
        signal.pause()
    if verb == "feed":
        watchdog()
    if verb == "deaf":
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
    if verb == "serve":
        signal.signal(signal.SIGTERM, lambda *_: (print("stopped", flush=True), os._exit(0)))
        signal.signal(signal.SIGHUP, lambda *_: print("reloaded", flush=True))
        notify("READY=1")
        print("serving", os.getpid(), flush=True)
        while True:
            signal.pause()
    if verb == "ready":
        notify("READY=1")
"""


class Supervised:
    """A supervisor as a process, and what it and its daemons print."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.script = home / "daemon.py"
        self.script.write_text(DAEMON)
        self.process: subprocess.Popen[str] | None = None

    def start(self, *acts: str, options: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> None:
        """Let the daemon do ``acts[0]`` when it first runs, ``acts[1]`` when it runs again, and so on."""
        words = [str(self.home), *options, "--", sys.executable, str(self.script), *acts]
        self._popen(["-m", "ksi_daemon.process_supervisor", *words], pass_fds)

    def start_with_watchdog(self, watchdog_s: float, *acts: str, last_chance_s: float = 0.1) -> None:
        """Supervise in the same way, with less patience."""
        program = (
            "import sys; from ksi_daemon.process_supervisor import Supervisor;"
            f"sys.exit(Supervisor(sys.argv[1], sys.argv[2:], "
            f"watchdog_s={watchdog_s}, last_chance_s={last_chance_s}).run())"
        )
        self._popen(["-c", program, str(self.home), sys.executable, str(self.script), *acts], ())

    def _popen(self, words: Sequence[str], pass_fds: Sequence[int]) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )

    @property
    def running(self) -> subprocess.Popen[str]:
        assert self.process is not None
        return self.process

    def line(self) -> str:
        """Give the next line that a daemon printed."""
        assert self.running.stdout is not None
        return self.running.stdout.readline().rstrip("\n")

    def ends(self) -> tuple[int, str]:
        """Wait for the end; give the exit code and what was printed to stderr."""
        _, errors = self.running.communicate(timeout=PATIENCE_S)
        return self.running.returncode, errors

    def record_of(self, daemon_pid: int) -> dict[str, Any]:
        """Give the record that names this daemon; it is written a moment after the daemon has begun."""

        async def is_written() -> bool:
            return bool(self.record()["daemon_pid"] == daemon_pid)

        asyncio.run(eventually(is_written))
        return self.record()

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.home / "run" / "supervisor.json").read_text())
        return record

    def log(self) -> list[dict[str, Any]]:
        path = self.home / "logs" / "daemon" / "ksi.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    with tempfile.TemporaryDirectory(prefix="ksi") as folder:
        supervised = Supervised(Path(folder))
        yield supervised
        if supervised.process is not None:
            supervised.process.terminate()  # not killed, or its daemon would go on and hold the pipes
            supervised.process.communicate(timeout=PATIENCE_S)


def serving_pid(line: str) -> int:
    word, _, pid = line.partition(" ")
    assert word == "serving"
    return int(pid)


def test_the_wait_after_crashes_doubles_and_the_fifth_in_five_minutes_is_the_last() -> None:
    history = CrashHistory()
    delays = [history.delay_after_crash(float(second), lived_s=0.0) for second in range(CRASHES_ALLOWED)]
    assert delays == [0.1, 0.2, 0.4, 0.8, None]


def test_crashes_that_lie_further_apart_are_never_too_many_and_wait_a_minute_at_most() -> None:
    history = CrashHistory()
    delays = [history.delay_after_crash(100.0 * number, lived_s=59.0) for number in range(20)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 60.0


def test_the_wait_is_short_again_after_a_stable_minute() -> None:
    history = CrashHistory()
    history.delay_after_crash(0.0, lived_s=0.0)
    history.delay_after_crash(1.0, lived_s=0.0)
    assert history.delay_after_crash(100.0, lived_s=60.0) == 0.1
    assert history.delay_after_crash(101.0, lived_s=1.0) == 0.2


@pytest.mark.parametrize(
    ("status", "text"), [(3, "exit code 3"), (-signal.SIGSEGV, "SIGSEGV"), (-63, "signal 63")]
)
def test_an_exit_has_a_name(status: int, text: str) -> None:
    assert describe_exit(status) == text


@pytest.mark.parametrize("code", [0, 1, 4, 7])
def test_a_daemon_that_ends_for_a_reason_is_not_started_again(supervised: Supervised, code: int) -> None:
    supervised.start(f"exit:{code}")
    assert supervised.ends() == (code, "")
    assert (supervised.home / "runs").read_text() == "x"
    assert not (supervised.home / "run" / "supervisor.json").exists()


@pytest.mark.parametrize("crash", ["ready,die:SIGSEGV", "die:SIGKILL", "exit:3", "ready,exit:1"])
def test_a_daemon_that_crashes_is_started_again(supervised: Supervised, crash: str) -> None:
    supervised.start(crash, "serve")
    pid = serving_pid(supervised.line())
    assert supervised.record_of(pid)["restarts"] == 1
    assert [line["event"] for line in supervised.log()] == ["daemon.crashed"]


def test_the_record_names_both_processes_and_the_last_exit(supervised: Supervised) -> None:
    supervised.start("ready,die:SIGSEGV", "serve")
    pid = serving_pid(supervised.line())
    record = supervised.record_of(pid)
    assert (record["pid"], record["daemon_pid"]) == (supervised.running.pid, pid)
    assert (record["last_exit"], record["gave_up"]) == ("SIGSEGV", None)


def test_a_crash_loop_ends_loudly(supervised: Supervised) -> None:
    supervised.start("die:SIGSEGV")
    assert supervised.ends() == (
        1,
        "KSI was given up: the daemon crashed 5 times in 5 minutes, the last time by SIGSEGV\n",
    )
    assert (supervised.home / "runs").read_text() == "xxxxx"
    assert supervised.log()[-1]["event"] == "daemon.given_up"
    assert supervised.log()[-1]["level"] == "critical"
    assert supervised.record()["gave_up"] == "the daemon crashed 5 times in 5 minutes"


def test_sigterm_stops_the_daemon_and_waits_for_it(supervised: Supervised) -> None:
    supervised.start("serve")
    pid = serving_pid(supervised.line())
    supervised.running.terminate()
    assert supervised.line() == "stopped"
    assert supervised.ends() == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (supervised.home / "run" / "supervisor.json").exists()


def test_sigterm_while_it_waits_to_start_again_ends_it(supervised: Supervised) -> None:
    supervised.start("die:SIGSEGV", "die:SIGSEGV", "die:SIGSEGV", "print:last,die:SIGSEGV", "serve")
    assert supervised.line() == "last"
    supervised.running.terminate()
    assert supervised.ends() == (0, "")


def test_sigterm_of_the_daemon_before_it_listens_for_it_is_no_crash(supervised: Supervised) -> None:
    supervised.start("die:SIGTERM")
    assert supervised.ends() == (0, "")
    assert supervised.log() == []


ASKED_TO_STOP_AT_THE_LAST_MOMENT = """\
import os, signal, sys
from ksi_daemon.process_supervisor import main

def ask(frame, kind, _):
    if kind == "call" and frame.f_code.co_name == "_spawn":
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGTERM)

sys.setprofile(ask)
sys.exit(main([sys.argv[1], "--", sys.executable, "-c", "import signal; signal.pause()"]))
"""


def test_sigterm_just_before_the_daemon_is_started_stops_it(tmp_path: Path) -> None:
    command = (sys.executable, "-c", ASKED_TO_STOP_AT_THE_LAST_MOMENT, str(tmp_path))
    assert subprocess.run(command, timeout=PATIENCE_S, check=False).returncode == 0


def test_sighup_is_passed_on_and_stops_nothing(supervised: Supervised) -> None:
    supervised.start("serve")
    serving_pid(supervised.line())
    supervised.running.send_signal(signal.SIGHUP)
    assert supervised.line() == "reloaded"
    supervised.running.terminate()
    assert supervised.line() == "stopped"


def test_the_daemon_outlives_a_supervisor_that_is_killed(supervised: Supervised) -> None:
    supervised.start("serve")
    pid = serving_pid(supervised.line())
    supervised.running.kill()
    supervised.running.wait(PATIENCE_S)
    os.kill(pid, signal.SIGTERM)
    assert supervised.line() == "stopped"


def test_readiness_is_told_once_however_often_the_daemon_starts(supervised: Supervised) -> None:
    reading, writing = os.pipe()
    supervised.start("ready,die:SIGSEGV", "serve", options=("--ready-fd", str(writing)), pass_fds=(writing,))
    os.close(writing)
    serving_pid(supervised.line())
    with os.fdopen(reading, "rb") as told:
        assert told.read() == b"READY=1\n"


def test_a_daemon_that_never_serves_leaves_the_ready_pipe_empty(supervised: Supervised) -> None:
    reading, writing = os.pipe()
    supervised.start("exit:1", options=("--ready-fd", str(writing)), pass_fds=(writing,))
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        assert told.read() == b""


def test_a_starter_that_has_gone_away_is_no_error(supervised: Supervised) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    supervised.start("serve", options=("--ready-fd", str(writing)), pass_fds=(writing,))
    os.close(writing)
    serving_pid(supervised.line())
    supervised.running.terminate()
    assert supervised.line() == "stopped"
    assert supervised.ends() == (0, "")


def test_the_plugin_that_was_running_at_a_crash_is_named_to_every_later_daemon(
    supervised: Supervised,
) -> None:
    supervised.start(
        "crumb:weather,die:SIGSEGV",
        "suspects,crumb:news,ready,exit:1",
        "suspects,die:SIGKILL",
        "suspects,serve",
    )
    assert supervised.line() == "suspects weather"
    assert supervised.line() == "suspects weather,news"
    assert supervised.line() == "suspects weather,news"
    assert not (supervised.home / "run" / "breadcrumb").exists()


def test_a_breadcrumb_that_was_half_written_does_not_end_the_supervision(supervised: Supervised) -> None:
    supervised.start("torn,die:SIGSEGV", "suspects,serve")
    assert supervised.line() == "suspects new"


def test_a_plugin_that_ends_the_process_while_it_is_loaded_is_a_crash(supervised: Supervised) -> None:
    supervised.start("crumb:rude,exit:1", "suspects,serve")
    assert supervised.line() == "suspects rude"


def test_without_a_breadcrumb_nobody_is_suspected(supervised: Supervised) -> None:
    supervised.start("die:SIGKILL", "suspects,serve")
    assert supervised.line() == "suspects None"


def test_a_daemon_that_stops_feeding_the_watchdog_is_ended_and_started_again(
    supervised: Supervised,
) -> None:
    supervised.start_with_watchdog(0.2, "hang", "serve")
    serving_pid(supervised.line())
    assert [line["event"] for line in supervised.log()] == ["daemon.stuck", "daemon.crashed"]
    assert supervised.record()["last_exit"] == "SIGABRT"


@pytest.mark.parametrize("way", ["deaf,hang", "feed,die:SIGSTOP"])
def test_a_stuck_daemon_that_does_not_end_by_sigabrt_is_killed_and_its_plugin_suspected(
    supervised: Supervised, way: str
) -> None:
    supervised.start_with_watchdog(0.2, f"crumb:rude,{way}", "suspects,serve")
    assert supervised.line() == "suspects rude"
    serving_pid(supervised.line())
    assert [line["event"] for line in supervised.log()] == ["daemon.stuck", "daemon.crashed"]
    assert supervised.record()["last_exit"] == "SIGKILL"


def test_a_daemon_that_stood_still_together_with_its_supervisor_goes_on(supervised: Supervised) -> None:
    supervised.start_with_watchdog(0.2, "feed,serve", "exit:0", last_chance_s=PATIENCE_S)
    pid = serving_pid(supervised.line())
    both = (supervised.running.pid, pid)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in both:
            os.kill(process, number)
        over = time.monotonic() + 0.3

        async def is_over(over: float = over) -> bool:
            return time.monotonic() > over

        asyncio.run(eventually(is_over))
    supervised.running.send_signal(signal.SIGHUP)
    assert supervised.line() == "reloaded"
    assert supervised.log() == []


def test_a_daemon_that_cannot_be_spawned_is_tried_again_and_given_up_loudly(tmp_path: Path) -> None:
    words = [str(tmp_path), "--", str(tmp_path / "nothing")]
    command = [sys.executable, "-m", "ksi_daemon.process_supervisor", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (
        1,
        "KSI was given up: the daemon crashed 5 times in 5 minutes, the last time by exit code 127\n",
    )


def test_it_leaves_the_record_of_another_that_has_a_home_in_its_place(supervised: Supervised) -> None:
    supervised.start("serve")
    pid = serving_pid(supervised.line())
    record = supervised.home / "run" / "supervisor.json"
    other = {**supervised.record_of(pid), "pid": os.getpid()}
    record.write_text(json.dumps(other))
    supervised.running.terminate()
    assert supervised.line() == "stopped"
    assert supervised.ends() == (0, "")
    assert supervised.record() == other


def test_a_daemon_that_never_fed_the_watchdog_is_left_alone(supervised: Supervised) -> None:
    supervised.start_with_watchdog(0.0, "serve")
    serving_pid(supervised.line())
    supervised.running.send_signal(signal.SIGHUP)
    assert supervised.line() == "reloaded"


def test_a_folder_that_cannot_be_written_to_does_not_end_the_supervision(supervised: Supervised) -> None:
    (supervised.home / "run").write_text("no folder")
    (supervised.home / "logs").write_text("no folder")
    supervised.start("exit:3", "serve")
    serving_pid(supervised.line())


def test_output_that_has_grown_large_is_emptied(supervised: Supervised) -> None:
    output = supervised.home / "output.log"
    with output.open("ab") as file:
        file.write(b"x" * (4 * 1024 * 1024 + 1))
        words = [str(supervised.home), "--", sys.executable, str(supervised.script), "print:kept,exit:0"]
        done = subprocess.run(
            [sys.executable, "-m", "ksi_daemon.process_supervisor", *words],
            stdout=file,
            stderr=file,
            check=False,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 0
    assert output.stat().st_size < 100


def test_it_stays_under_12_mb(supervised: Supervised) -> None:
    supervised.start("serve")
    serving_pid(supervised.line())
    status = Path(f"/proc/{supervised.running.pid}/status").read_text()
    (resident_kb,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident_kb < 12 * 1024


def test_who_is_told_to_end_as_it_ends_leaves_with_the_code_of_the_daemon(tmp_path: Path) -> None:
    """A start that waits for it would say that it failed, and said nothing."""
    program = """
import os, signal, sys
from ksi_daemon.process_supervisor import main

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

sys.late = Late()
sys.exit(main([sys.argv[1], "--", "true"]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=PATIENCE_S)
    assert done.returncode == 0
