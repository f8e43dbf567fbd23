"""`daemon_control.py` with the real daemon: every sentence of what it promises to do."""

import json
import os
import shutil
import signal
import socket
import sqlite3  # noqa: TID251 -- to make the database one of a newer KSI
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from ksi_client import call_raw
from ksi_client.control import stopping
from ksi_client.control.processes import Process
from ksi_client.control.standing import look, read_supervisor
from ksi_client.programs import of_checkout
from ksi_common.paths import Paths
from tests.faults.test_group_faults import can_mount

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
pytestmark = pytest.mark.timeout(180)  # each test runs several programs

SLOW = '''\
"""A request that is answered once somebody writes into a pipe."""

from ksi_daemon.plugin import Message, Request, handler


class Line(Message):
    """What was written."""

    text: str


class Read(Request[Line], event="slow:read"):
    """Wait for a line."""

    path: str


@handler
def read(request: Read) -> Line:
    """Read all that comes."""
    with open(request.path) as pipe:
        return Line(text=pipe.read())
'''

GATE = '''\
"""A layer before every event, for nobody has said which it is for."""

from ksi_daemon.plugin import PermissionDenied, hookimpl


async def nobody(envelope, send, call_next):
    """Refuse."""
    raise PermissionDenied("nobody may")


@hookimpl
def ksi_middleware():
    """Give it."""
    return [nobody]
'''

Completed = subprocess.CompletedProcess[str]


class Control:
    """The command line, with a home of its own; ``folder`` is where its settings and plugins are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = Paths(folder / "var")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
        self.environ["KSI_HOME"] = str(self.paths.home)

    def __call__(self, *words: str) -> Completed:
        """Run one command to its end."""
        with self.popen(*words) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
            return Completed(words, process.returncode, out, err)

    def popen(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        """Begin a command."""
        return subprocess.Popen(
            [sys.executable, ROOT / "daemon_control.py", *words],
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, *words: str) -> dict[str, Any]:
        """Run one command and read its answer."""
        answer: dict[str, Any] = json.loads(self(*words, "--json").stdout)
        return answer

    def ask(self, event: str, data: dict[str, object] | None = None) -> dict[str, Any]:
        """Ask the daemon itself."""
        return call_raw(event, data, socket=self.paths.socket)

    @property
    def pid(self) -> int:
        """The daemon that answers."""
        return int(self.ask("system:health")["pid"])

    @property
    def supervisor_pid(self) -> int:
        """The supervisor that runs."""
        record = read_supervisor(self.paths)
        assert record is not None
        assert record.alive
        return record.pid

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process and wait for its end."""
        with Process(pid) as process:
            process.send(number)
            assert process.wait(PATIENCE_S)

    def kill_all(self) -> int:
        """Kill supervisor and daemon, as a power loss would; give the daemon's pid."""
        pid = self.pid
        self.kill(self.supervisor_pid)
        self.kill(pid)
        return pid

    def add_plugin(self, name: str, text: str) -> None:
        """Drop a single-file plugin in."""
        (self.folder / "plugins").mkdir(exist_ok=True)
        (self.folder / "plugins" / f"{name}.py").write_text(text)


@pytest.fixture
def control() -> Iterator[Control]:
    folder = Path(tempfile.mkdtemp(prefix="ksi"))
    control = Control(folder)
    yield control
    control("stop", "--now")
    shutil.rmtree(folder, ignore_errors=True)  # of one that had to be killed something may yet end


def logged(following: subprocess.Popen[str], event: str) -> datetime:
    """Wait until something is logged; give the moment."""
    assert following.stdout is not None
    line: dict[str, str] = next(line for line in map(json.loads, following.stdout) if line["event"] == event)
    return datetime.fromisoformat(line["timestamp"])


def next_logged(following: subprocess.Popen[str]) -> str:
    """Give what is logged next, but for what is said of a loop that a busy machine holds."""
    assert following.stdout is not None
    names: Iterator[str] = (json.loads(line)["event"] for line in following.stdout)
    return next(name for name in names if not name.startswith("loop."))


@contextmanager
def running_request(control: Control, pipe: Path) -> Iterator[socket.socket]:
    """Have a request in the middle of its work, that ends when something is written into the pipe."""
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(control.paths.socket))
        slow = {"event": "slow:read", "id": "slow", "data": {"path": str(pipe)}}
        sock.sendall(json.dumps(slow).encode() + b"\n" + b'{"event":"system:health","id":"after"}\n')
        # Requests are dispatched in the order sent: the answer to the second means that the first runs.
        assert json.loads(sock.recv(65536))["id"] == "after"
        yield sock


MODELS = "  models    embedded (no key needed)"
"""What follows it depends on what this machine has."""
BUILT_IN = sorted([*(point.name for point in entry_points(group="ksi")), "system"])

# start


def test_start_returns_once_the_daemon_answers_and_says_where_things_are(control: Control) -> None:
    started = control("start")
    assert (started.returncode, started.stderr) == (0, "")
    lines = started.stdout.splitlines()
    assert lines[0].startswith("Starting KSI ")
    assert lines[1] == f"  socket    {control.paths.socket}   (only you can open it)"
    assert lines[2] == f"  data      {control.paths.home}   log  {control.paths.log}"
    assert lines[3] == f"  plugins   {len(BUILT_IN)} loaded ({', '.join(BUILT_IN)})"
    assert lines[4].startswith(MODELS)
    assert lines[5].startswith("Ready in ")
    assert f"pid {control.pid}." in lines[5]


def test_what_it_makes_is_its_owners_alone(control: Control) -> None:
    control("start")
    modes = {path.name: path.stat().st_mode & 0o077 for path in control.paths.home.rglob("*")}
    assert {name: mode for name, mode in modes.items() if mode} == {}


def test_a_second_start_says_so_and_leaves_the_first_alone(control: Control) -> None:
    control("start")
    pid, socket_file = control.pid, control.paths.socket.stat().st_ino
    again = control("start")
    assert again.returncode == 0
    assert again.stdout.startswith(f"KSI is already running (pid {pid}, up ")
    assert control.json("start") | {"uptime_s": 0} == {"status": "already_running", "pid": pid, "uptime_s": 0}
    assert control.paths.socket.stat().st_ino == socket_file


def test_a_start_after_kill_9_clears_up_and_says_what_was_recovered(control: Control) -> None:
    control("start")
    control.ask("state:set", {"key": "kept", "value": 1})
    died = control.kill_all()
    started = control("start")
    assert started.returncode == 0
    assert f"A KSI that ran as pid {died} died without cleaning up" in started.stdout
    assert "Recovered: its pid file and socket were replaced; the log has " in started.stdout
    assert control.ask("state:get", {"key": "kept"})["value"] == 1
    assert control.paths.pid_file.read_text() == f"{control.pid}\n"


def test_of_twenty_starters_one_serves_and_the_others_say_so(control: Control) -> None:
    starters = [control.popen("start", "--json", "--timeout", "60") for _ in range(20)]
    said = []
    for starter in starters:
        out, err = starter.communicate(timeout=PATIENCE_S)
        assert (starter.returncode, err) == (0, "")
        said.append(json.loads(out))
    assert sorted(answer["status"] for answer in said) == ["already_running"] * 19 + ["started"]
    assert {answer["pid"] for answer in said} == {control.pid}


def test_a_daemon_started_past_it_does_not_take_the_socket(control: Control) -> None:
    control("start")
    pid, socket_file = control.pid, control.paths.socket.stat().st_ino
    second = subprocess.run(
        [sys.executable, "-m", "ksi_daemon"], env=control.environ, capture_output=True, text=True, check=False
    )
    assert second.returncode == 4
    assert f"another KSI (pid {pid})" in second.stderr
    assert (control.pid, control.paths.socket.stat().st_ino) == (pid, socket_file)


def test_a_daemon_that_cannot_start_gives_the_reason_and_the_last_log_lines(control: Control) -> None:
    control("start")
    control("stop")
    (control.folder / "ksi.toml").write_text("limits.drian_s = 1\n")
    failed = control("start")
    assert (failed.returncode, failed.stdout) == (1, "")
    reason, hint, heading, *logged = failed.stderr.splitlines()
    config = control.folder / "ksi.toml"
    assert reason == f'Could not start: there is no setting "limits.drian_s" (in {config})'
    assert hint == '  did you mean "limits.drain_s"?'
    assert heading == f"Last lines of {control.paths.log}:"
    assert "daemon.stopped" in logged[-1]
    assert len(logged) <= 15


def test_a_database_of_a_newer_ksi_is_left_alone(control: Control) -> None:
    control("start")
    control("stop")
    with closing(sqlite3.connect(control.paths.database)) as database, database:
        database.execute("UPDATE schema_versions SET version = 99 WHERE component = 'core'")
    failed = control("start")
    assert failed.returncode == 7
    assert failed.stderr.startswith("Could not start: the database has schema 99 of core")


def test_a_home_that_is_no_folder_is_named(control: Control) -> None:
    control.paths.home.write_text("")
    failed = control("start")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"daemon_control: cannot use {control.paths.home}: it is no folder\n")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_not_removed_to_make_room_for_one(control: Control, kind: str) -> None:
    path = control.paths.socket
    path.parent.mkdir(parents=True, mode=0o700)
    match kind:
        case "file":
            path.write_text("mine")
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(control.folder / "nowhere")
    failed = control("start")
    assert failed.returncode == 1
    assert f"{path} exists and is no socket" in failed.stderr
    assert os.path.lexists(path)


def test_a_daemon_that_is_not_ready_in_time_is_stopped(control: Control) -> None:
    control.add_plugin("sleepy", "import signal\nsignal.pause()\n")
    failed = control("start", "--timeout", "5")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Could not start: it was not ready within 5 s, and was stopped")
    assert " while it ran plugin sleepy\n  Start without plugins: " in failed.stderr
    assert "start --safe-mode" in failed.stderr
    assert look(control.paths).state in {"stopped", "dead"}


def test_a_daemon_that_is_stopped_while_it_starts_is_said_to_be(control: Control) -> None:
    ending = "os.kill(os.getppid(), signal.SIGTERM)"
    control.add_plugin("stopper", f"import os, signal\n{ending}\nsignal.pause()\n")
    failed = control("start")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Could not start: it was stopped before it was ready\n")


def test_a_start_with_too_few_files_to_take_a_connection_is_refused(control: Control) -> None:
    failed = subprocess.run(
        ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", sys.executable, ROOT / "daemon_control.py", "start"],
        env=control.environ, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert failed.returncode == 1
    assert failed.stderr.startswith("Could not start: it may have 100 files open, and needs more than 128\n")
    assert look(control.paths).state == "stopped"


ON_A_FULL_DISK = """\
mount -t tmpfs -o size=64k,mode=700 ksi "$KSI_HOME" && {first}
cat /dev/zero > "$KSI_HOME/filler" 2> "$KSI_HOME/said"
exec "$@"
"""
ROOM_FOR_A_WORD = (
    'mkdir -p -m 700 "$KSI_HOME/logs/daemon" && printf %4070s > "$KSI_HOME/logs/daemon/output.log"'
)


@pytest.mark.root
@pytest.mark.skipif(not can_mount(), reason="only root mounts a small disk")
@pytest.mark.parametrize("first", ["true", ROOM_FOR_A_WORD], ids=["no room", "room for a word"])
def test_a_start_on_a_full_disk_says_that_it_is_full(control: Control, first: str) -> None:
    control.paths.home.mkdir()
    command = ["unshare", "-m", "sh", "-c", ON_A_FULL_DISK.replace("{first}", first), "sh"]
    failed = subprocess.run(
        [*command, sys.executable, ROOT / "daemon_control.py", "start"],
        env=control.environ, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"Could not start: the disk that {control.paths.home} is on is full\n")


def test_a_home_with_a_long_path_gets_its_socket_elsewhere_and_status_says_so(control: Control) -> None:
    home = str(control.folder / ("long" * 30))
    runtime = {"XDG_RUNTIME_DIR": str(control.folder)}
    control.environ |= runtime
    assert control("start", "--home", home).returncode == 0
    said = control("status", "--home", home)
    told = control.json("status", "--home", home)
    assert control("stop", "--home", home).returncode == 0
    assert (
        f"  socket    {told['socket']}   (moved: its path under the data folder would be too long)"
        in said.stdout.splitlines()
    )
    assert told["socket_moved"]
    assert told["socket"].startswith(str(control.folder / "ksi-"))


def test_foreground_is_the_daemon_itself(control: Control) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE_S)
        manager.bind("")
        address = "@" + manager.getsockname()[1:].decode()
        with control.popen("start", "--foreground", NOTIFY_SOCKET=address) as process:
            assert manager.recv(4096).startswith(b"READY=1\n")
            assert control.pid == process.pid
            assert "already running" in control("start", "--foreground").stdout
            process.terminate()
            _, echoed = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0
            assert "daemon.ready" in echoed


# crashes


def test_after_a_segmentation_fault_it_is_back_with_all_it_had(control: Control) -> None:
    control("start")
    control.ask("state:set", {"key": "kept", "value": 1})
    pid = control.pid
    control.kill(pid, signal.SIGSEGV)
    assert "already running" in control("start").stdout
    assert control.pid != pid
    assert control.ask("state:get", {"key": "kept"})["value"] == 1
    assert "  restarts  1 after a crash, the last by SIGSEGV" in control("status").stdout.splitlines()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGSEGV)", "os._exit(1)"])
def test_a_plugin_that_ends_the_process_is_left_out_when_it_starts_again(control: Control, end: str) -> None:
    control.add_plugin("boom", f"import os, signal\n{end}\n")
    started = control("start", "--timeout", "60")
    assert started.returncode == 0
    assert "boom is quarantined: it was running when the process crashed" in started.stdout
    assert "boom quarantined" in control("status").stdout


def test_a_crash_loop_ends_loudly(control: Control) -> None:
    traceless = "os.unlink(os.environ['KSI_HOME'] + '/run/breadcrumb')"
    crash = "os.kill(os.getpid(), signal.SIGSEGV)"
    control.add_plugin("boom", f"import os, signal\n{traceless}\n{crash}\n")
    failed = control("start", "--timeout", "60")
    assert failed.returncode == 1
    assert failed.stderr.startswith(
        "Could not start: the daemon crashed 5 times in 5 minutes, the last time by SIGSEGV\n"
    )
    assert "daemon.given_up" in failed.stderr.splitlines()[-1]
    status = control("status")
    assert status.returncode == 1
    assert status.stdout.startswith("○ KSI is not running: the daemon crashed 5 times in 5 minutes")
    (control.folder / "plugins" / "boom.py").unlink()
    started = control("start")
    assert started.returncode == 0
    assert "The KSI before was given up: the daemon crashed 5 times" in started.stdout


def test_the_daemon_serves_on_without_its_supervisor_and_can_be_stopped(control: Control) -> None:
    control("start")
    pid = control.pid
    control.kill(control.supervisor_pid)
    assert control.pid == pid
    assert control.paths.pid_file.read_text() == f"{pid}\n"
    assert control("stop").returncode == 0
    assert look(control.paths).pid is None
    assert control("status").returncode == 3  # it has ended well, and did not die


def test_stop_in_the_middle_of_a_restart_leaves_nothing(control: Control) -> None:
    control("start")
    with Process(control.supervisor_pid) as supervisor:
        control.kill(control.pid, signal.SIGSEGV)
        assert control("stop").returncode == 0
        assert supervisor.wait(0)
    assert look(control.paths).state in {"stopped", "dead"}


# stop


def test_stop_stops_daemon_and_supervisor_and_clears_up(control: Control) -> None:
    control("start")
    pid = control.pid
    with Process(pid) as daemon, Process(control.supervisor_pid) as supervisor:
        stopped = control("stop")
        assert stopped.returncode == 0
        assert daemon.wait(0)
        assert supervisor.wait(0)
    assert stopped.stdout.startswith(
        "Draining: no new work, 30 s for what runs (Ctrl-C ends it now) ... done\n"
    )
    assert f"Stopped KSI (pid {pid}, ran for " in stopped.stdout
    assert look(control.paths).state == "stopped"


def test_stop_where_nothing_runs_is_no_failure(control: Control) -> None:
    stopped = control("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "KSI is not running.\n")
    assert control.json("stop") == {"status": "not_running"}


def test_stop_lets_running_work_end(control: Control) -> None:
    control.add_plugin("slow", SLOW)
    control("start")
    pipe = control.folder / "pipe"
    with running_request(control, pipe) as client, control.popen("stop") as stopping:
        assert stopping.stdout is not None
        assert stopping.stdout.read(8) == "Draining"
        pipe.write_text("the answer")
        assert json.loads(client.recv(65536))["data"] == {"text": "the answer"}
        assert stopping.wait(PATIENCE_S) == 0
        assert stopping.stdout.read().splitlines()[0].endswith("... done")


def test_stop_now_gives_up_running_work(control: Control) -> None:
    control.add_plugin("slow", SLOW)
    control("start")
    with running_request(control, control.folder / "pipe"):
        assert control.json("stop", "--now")["status"] == "stopped"


def test_ctrl_c_ends_the_drain(control: Control) -> None:
    control.add_plugin("slow", SLOW)
    control("start")
    with running_request(control, control.folder / "pipe"), control.popen("stop") as stopping:
        assert stopping.stdout is not None
        assert stopping.stdout.read(8) == "Draining"
        stopping.send_signal(signal.SIGINT)
        assert stopping.wait(PATIENCE_S) == 0
        out = stopping.stdout.read()
        assert out.splitlines()[0].endswith("... killed")
        assert "It was killed; what it had acknowledged is kept." in out
    assert look(control.paths).state == "dead"


def test_a_daemon_that_hangs_is_ended_all_the_same(control: Control) -> None:
    control("start")
    with Process(control.pid) as daemon:
        daemon.send(signal.SIGSTOP)
        assert control.json("stop", "--now") == {"status": "stopped", "pid": daemon.pid, "killed": True}
        assert daemon.wait(0)


def test_a_supervisor_that_does_not_end_is_named_and_how_to_end_it(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("SUPERVISOR_S", "DRAIN_S", "MARGIN_S"):
        monkeypatch.setattr(stopping, limit, 0.1)
    control("start")
    with Process(control.supervisor_pid) as supervisor:
        supervisor.send(signal.SIGSTOP)
        stopped = stopping.stop(control.paths)
        supervisor.send(signal.SIGCONT)
        assert (stopped.code, stopped.text.splitlines()) == (
            1,
            [
                f"Not stopped: the supervisor (pid {supervisor.pid}) does not end.",
                f"  End it: kill -KILL {supervisor.pid}",
            ],
        )
        assert supervisor.wait(PATIENCE_S)


def test_a_thread_that_a_plugin_leaves_does_not_keep_the_daemon(control: Control) -> None:
    control.add_plugin(
        "threading_one", "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    )
    control("start")
    assert control.json("stop")["killed"] is False


def test_a_start_during_the_drain_waits_for_its_end(control: Control) -> None:
    control.add_plugin("slow", SLOW)
    control("start")
    pid, pipe = control.pid, control.folder / "pipe"
    with running_request(control, pipe), control.popen("stop") as stopping:
        assert stopping.stdout is not None
        assert stopping.stdout.read(8) == "Draining"
        with control.popen("start") as starting:
            pipe.write_text("")
            out, err = starting.communicate(timeout=PATIENCE_S)
            assert (starting.returncode, err) == (0, "")
        stopping.communicate(timeout=PATIENCE_S)
    assert "Ready in" in out
    assert control.pid != pid


def test_sigterm_to_a_daemon_ends_its_supervisor_too(control: Control) -> None:
    control("start")
    with Process(control.pid) as daemon, Process(control.supervisor_pid) as supervisor:
        daemon.send(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S)
        assert supervisor.wait(PATIENCE_S)


def test_a_pid_file_that_names_another_program_harms_nobody(control: Control) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        control.paths.run.mkdir(parents=True, mode=0o700)
        for path in (control.paths.pid_file, control.paths.lock):
            path.write_text(f"{bystander.pid}\n")
        (control.paths.run / "supervisor.json").write_text(
            json.dumps(
                {"pid": bystander.pid, "restarts": 0, "last_exit": None, "suspects": [], "gave_up": None}
            )
        )
        assert control("status").returncode == 1
        assert "KSI is not running." in control("stop").stdout
        assert control("start").returncode == 0
        assert control("stop").returncode == 0
        assert bystander.poll() is None
        bystander.communicate(b"\n")


# restart


def test_restart_starts_another_daemon_with_the_same_data(control: Control) -> None:
    control("start")
    control.ask("state:set", {"key": "kept", "value": 1})
    pid = control.pid
    restarted = control("restart")
    assert restarted.returncode == 0
    assert f"Stopped KSI (pid {pid}, " in restarted.stdout
    assert "Ready in " in restarted.stdout
    assert control.pid != pid
    assert control.ask("state:get", {"key": "kept"})["value"] == 1


def test_restart_with_settings_that_are_wrong_stops_nothing(control: Control) -> None:
    control("start")
    pid = control.pid
    (control.folder / "ksi.toml").write_text("[limits]\ndrain_s = -1\n")
    refused = control("restart")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Not restarted: setting limits.drain_s: ")
    assert refused.stderr.endswith(f"The KSI that runs (pid {pid}) was left as it is.\n")
    assert control.pid == pid


def test_restart_names_plugins_that_will_not_load_and_goes_on(control: Control) -> None:
    control("start")
    control.add_plugin("broken", "import nothing_of_that_name\n")
    restarted = control("restart")
    assert restarted.returncode == 0
    assert "plugin broken" in restarted.stdout
    assert "broken is refused: ModuleNotFoundError" in restarted.stdout


def test_restart_where_nothing_runs_starts(control: Control) -> None:
    assert control("restart").returncode == 0
    assert control("health").returncode == 0


# status and health


def test_status_and_health_of_a_running_daemon(control: Control) -> None:
    control("start")
    status, health = control("status"), control("health")
    assert (status.returncode, health.returncode) == (0, 0)
    assert status.stdout.startswith(f"● running   pid {control.pid}   up ")
    assert f"  plugins   {len(BUILT_IN)} ok" in status.stdout.splitlines()
    assert "  work      0 running, 0 waiting" in status.stdout.splitlines()
    assert any(line.startswith(MODELS) for line in status.stdout.splitlines())
    assert status.stdout.endswith("  alarms    none\n")
    assert health.stdout.startswith("ok  live, db ")
    assert health.stdout.count("\n") == 1


def test_status_in_json_has_what_a_script_asks_for(control: Control) -> None:
    control("start")
    told = control.json("status")
    assert (told["state"], told["pid"], told["clients"]) == ("running", control.pid, 1)
    assert told["socket"] == str(control.paths.socket)
    assert told["plugins"][0] == {"name": BUILT_IN[0], "status": "loaded", "error": None}
    assert told["work"] == {"running": 0, "waiting": 0}
    assert told["supervisor"]["pid"] == control.supervisor_pid
    assert control.json("health")["status"] == "healthy"


def test_a_plugin_that_is_out_is_an_alarm_but_no_failure(control: Control) -> None:
    control.add_plugin("broken", "1 +\n")
    control("start")
    status, health = control("status"), control("health")
    assert (status.returncode, health.returncode) == (0, 0)
    loaded = len(BUILT_IN)
    alarm = f"plugins degraded (loaded {loaded}, not_loaded: broken)"
    assert f"  alarms    {alarm}" in status.stdout.splitlines()
    assert f"{loaded} ok; broken refused: SyntaxError" in status.stdout
    assert health.stdout.startswith(f"degraded  live, {alarm}, db ")


def test_status_and_health_where_nothing_runs(control: Control) -> None:
    status, health = control("status"), control("health")
    assert (status.returncode, health.returncode) == (3, 3)
    assert status.stdout.startswith("○ KSI is not running. Start it: python3 daemon_control.py start\n")
    assert control.json("health") == {"status": "not_running"}


def test_status_of_a_daemon_that_died_names_it(control: Control) -> None:
    control("start")
    pid = control.kill_all()
    status = control("status")
    assert status.returncode == 1
    assert f"it ran as pid {pid} and died without cleaning up" in status.stdout
    assert control("health").returncode == 3
    assert "It died without cleaning up" in control("stop").stdout


def test_a_daemon_that_does_not_answer_is_neither_up_nor_down(control: Control) -> None:
    control("start")
    pid = control.pid
    os.kill(pid, signal.SIGSTOP)
    status, health, start = control("status"), control("health"), control("start", "--timeout", "0.1")
    os.kill(pid, signal.SIGCONT)
    assert (status.returncode, health.returncode, start.returncode) == (4, 1, 4)
    assert f"KSI (pid {pid}) does not answer" in status.stdout
    assert start.stderr.startswith(
        f"Another KSI (pid {pid}) uses {control.paths.home} and does not answer.\n"
    )
    assert control.pid == pid


def test_a_daemon_whose_plugin_refuses_everything_is_named_and_can_be_stopped(control: Control) -> None:
    control.add_plugin("gate", GATE)
    started = control("start")
    pid = look(control.paths).pid
    assert started.returncode == 1
    assert f"Started KSI (pid {pid}), but it does not say how it fares: nobody may.\n" in started.stderr
    status, again = control("status"), control("start")
    assert (status.returncode, again.returncode) == (4, 4)
    assert f"KSI (pid {pid}) runs, but does not say how it fares: nobody may.\n" in status.stdout
    assert f"Another KSI (pid {pid}) uses {control.paths.home} and answers only: nobody may." in again.stderr
    stopped = control("stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert f"Stopped KSI (pid {pid})." in stopped.stdout
    assert look(control.paths).state == "stopped"


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="takes another user to listen")
def test_another_users_socket_is_not_talked_to(control: Control) -> None:
    control.paths.run.mkdir(parents=True)
    for folder in (control.folder, control.paths.home, control.paths.run):
        folder.chmod(0o777)
    program = (
        "import os, socket, sys; os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print('listening', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, control.paths.socket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"listening\n"
        for command, code in (("status", 4), ("health", 4), ("start", 4), ("stop", 4)):
            refused = control(command)
            assert refused.returncode == code
            assert "belongs to uid 65534" in refused.stdout + refused.stderr
        stranger.communicate(b"")


# logs


def test_logs_are_rendered_for_people_and_raw_for_programs(control: Control) -> None:
    control("start")
    control("stop")
    rendered = control("logs").stdout.splitlines()
    assert any("info     daemon.ready socket=" in line for line in rendered)
    raw = [json.loads(line) for line in control("logs", "--json").stdout.splitlines()]
    assert [line["event"] for line in raw][-1] == "daemon.stopped"
    assert len(control("logs", "--lines", "1").stdout.splitlines()) == 1
    assert control("logs", "--level", "error").stdout == ""
    assert len(control("logs", "--since", "10m").stdout.splitlines()) == len(rendered)


def test_logs_follow_the_daemon_into_its_next_file(control: Control) -> None:
    control("start")
    with control.popen("logs", "--follow", "--json") as following:
        logged(following, "daemon.ready")
        control("stop")
        assert next_logged(following) == "daemon.stopping"
        assert next_logged(following) == "daemon.stopped"
        control.paths.log.rename(control.paths.log.with_suffix(".jsonl.1"))
        control("start")
        assert next_logged(following) == "daemon.starting"
        following.send_signal(signal.SIGINT)
        assert following.wait(PATIENCE_S) == 130


def test_help_begins_with_what_it_is_for(control: Control) -> None:
    helped = control("--help")
    assert helped.returncode == 0
    assert "python3 daemon_control.py start" in helped.stdout
    assert control("fly").returncode == 2
    assert (
        "'recently' is neither like 10m nor like 2026-01-31T12:00"
        in control("logs", "--since", "recently").stderr
    )


@pytest.mark.parametrize(
    "words", [("start", "--timeout", "-1"), ("start", "--timeout", "nan"), ("logs", "-n-3")]
)
def test_a_number_that_makes_no_sense_is_wrong_usage(control: Control, words: tuple[str, ...]) -> None:
    done = control(*words)
    assert done.returncode == 2
    assert "is no number of" in done.stderr


def test_a_disk_that_is_full_is_said_in_a_line(control: Control) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, ROOT / "daemon_control.py", "status"],
            env=control.environ, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "daemon_control: No space left on device\n")


def test_a_changed_level_of_the_log_is_in_force_at_once_and_the_rest_is_named(control: Control) -> None:
    control("start")
    assert control("reload").stdout == "No setting has changed.\n"
    control.paths.config.write_text("[log]\nlevel = 'debug'\nrequests = true\n[limits]\nin_flight = 7\n")
    restart = f"python3 {of_checkout('daemon_control.py')} restart"
    at_next_start = f"At the next start: limits.in_flight. Start anew: {restart}\n"
    assert control("reload").stdout == f"In force now: log.level, log.requests.\n{at_next_start}"
    with control.popen("logs", "--follow", "--json") as following:
        control.ask("state:get", {"key": "seen"})
        logged(following, "event.handled")
        following.terminate()
    assert control("reload").stdout == at_next_start


def test_settings_that_are_wrong_are_refused_and_what_was_in_force_stays(control: Control) -> None:
    control("start")
    control.paths.config.write_text("[log]\nlevle = 'debug'\n")
    done = control("reload")
    where = f"(in {control.paths.config})"
    said = f'daemon_control: there is no setting "log.levle" {where}\n  did you mean "log.level"?\n'
    assert (done.returncode, done.stderr) == (1, said)
    with control.popen("logs", "--follow", "--json") as following:
        os.kill(control.pid, signal.SIGHUP)
        logged(following, "settings.refused")
        control.paths.config.write_text("[log]\nlevel = 'debug'\n")
        os.kill(control.supervisor_pid, signal.SIGHUP)
        logged(following, "settings.reloaded")
        following.terminate()
    assert control.ask("config:reload")["changed"] == []


def test_a_hang_up_while_it_starts_ends_nothing(control: Control) -> None:
    control.add_plugin("hung", "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\n")
    assert control("start").returncode == 0
    status = control("status").stdout
    assert "quarantined" not in status
    assert "after a crash" not in status


def test_wrong_usage_is_an_object_in_json_too(control: Control) -> None:
    for words in (("--json", "strat"), ("logs", "-n", "x", "--json")):
        wrong = control(*words)
        error = json.loads(wrong.stdout)["error"]
        assert (wrong.returncode, wrong.stderr) == (2, "")
        assert (error["code"], error["details"]) == ("INVALID_ARGUMENT", {"reason": "usage"})
    told = control("strat")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.splitlines()[-1].startswith("daemon_control.py: error: argument COMMAND: ")


def test_what_is_to_be_tried_reaches_the_home_that_was_named(control: Control) -> None:
    program = f"python3 {of_checkout('daemon_control.py')}"
    other = control.folder / "an other"
    named = f"{program} --home '{other}'"
    assert control("status", "--home", str(other)).stdout.splitlines()[0].endswith(f"Start it: {named} start")
    own = control("status", "--home", str(control.paths.home)).stdout.splitlines()[0]
    assert own.endswith(f"Start it: {program} start")
    started = control("start", "--home", str(other))
    assert control("stop", "--home", str(other)).returncode == 0
    chat, ksi, stop = started.stdout.splitlines()[-1].partition("Try: ")[2].split("   |   ")
    assert chat == f"KSI_HOME='{other}' python3 {of_checkout('chat.py')}"
    assert ksi.startswith(f"KSI_HOME='{other}' ")
    assert ksi.endswith("/ksi events ls")
    assert stop == f"{named} stop"


def test_where_there_is_no_log_that_is_said(control: Control) -> None:
    told = control("logs")
    assert (told.returncode, told.stdout) == (0, "")
    assert told.stderr == f"There is no log yet: {control.paths.log}\n"


def test_without_a_daemon_there_is_nothing_to_reload(control: Control) -> None:
    done = control("reload")
    assert (done.returncode, done.stderr) == (3, "KSI is not running; its next start reads the settings.\n")
    assert control.json("reload") == {"status": "not_running"}
