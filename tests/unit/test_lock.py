"""One daemon to a home, whatever became of the one before."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ksi_common.errors import FailedPrecondition
from ksi_common.paths import Paths
from ksi_daemon.lock import HomeLocked, home_lock

HOLD = """
import sys
from pathlib import Path
from ksi_common.paths import Paths
from ksi_daemon.lock import home_lock

with home_lock(Paths(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "var")


@contextmanager
def holder(paths: Paths) -> Iterator["subprocess.Popen[str]"]:
    """Run another process that holds the home."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(paths.home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_holder_is_refused_with_the_pid_of_the_first(paths: Paths) -> None:
    with holder(paths) as first:
        with pytest.raises(HomeLocked) as refused, home_lock(paths):
            pass
        assert refused.value.message == f"another KSI (pid {first.pid}) uses {paths.home}"
        assert refused.value.details == {"reason": "home_locked", "pid": str(first.pid)}


def test_a_refused_holder_takes_nothing_from_the_first(paths: Paths) -> None:
    with holder(paths) as first:
        for _ in range(2):
            with pytest.raises(HomeLocked), home_lock(paths):
                pass
        assert paths.pid_file.read_text() == f"{first.pid}\n"


def test_a_holder_that_says_no_pid_is_unknown(paths: Paths) -> None:
    with holder(paths):
        paths.lock.write_text("")
        with pytest.raises(HomeLocked, match=r"pid unknown"), home_lock(paths):
            pass


def test_the_home_is_free_after_the_block(paths: Paths) -> None:
    for _ in range(2):
        with home_lock(paths) as recovered:
            assert recovered is False


def test_the_home_is_free_after_an_error_in_the_block(paths: Paths) -> None:
    with pytest.raises(ValueError, match="oh"), home_lock(paths):
        raise ValueError("oh")
    with home_lock(paths) as recovered:
        assert recovered is False


def test_the_home_of_a_process_that_was_killed_is_recovered(paths: Paths) -> None:
    with holder(paths) as first:
        first.kill()
        first.wait(30)
        with home_lock(paths) as recovered:
            assert recovered is True


def test_the_lock_ends_with_its_process(paths: Paths) -> None:
    with holder(paths) as first:
        assert first.stdin is not None
        first.stdin.close()
        first.wait(30)
        with home_lock(paths) as recovered:
            assert recovered is False


def test_the_pid_file_names_the_holder_for_as_long_as_it_holds(paths: Paths) -> None:
    with home_lock(paths):
        assert paths.pid_file.read_text() == f"{os.getpid()}\n"
    assert not paths.pid_file.exists()


def test_the_home_is_for_its_owner_only(paths: Paths) -> None:
    with home_lock(paths):
        modes = [path.stat().st_mode & 0o777 for path in (paths.home, paths.run, paths.lock)]
    assert modes == [0o700, 0o700, 0o600]


def test_a_home_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "var"
    with pytest.raises(FailedPrecondition, match="Not a directory") as refused, home_lock(Paths(home)):
        pass
    assert str(home) in refused.value.message
    assert refused.value.hint == "set KSI_HOME"


def test_children_do_not_keep_the_lock(paths: Paths) -> None:
    with home_lock(paths):
        child = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
    try:
        assert child.stdout is not None
        child.stdout.readline()  # it runs: the kernel lets the parent go on before exec has closed the files
        with home_lock(paths):
            assert child.poll() is None
    finally:
        child.kill()
        child.communicate(timeout=30)


def test_a_disk_without_room_for_the_pid_is_a_refusal(paths: Paths) -> None:
    paths.run.mkdir(parents=True)
    paths.pid_file.symlink_to("/dev/full")
    with pytest.raises(FailedPrecondition, match="No space left on device"), home_lock(paths):
        pass


FORK = """
import os, signal, sys
from pathlib import Path
from ksi_common.paths import Paths
from ksi_daemon.lock import home_lock

with home_lock(Paths(Path(sys.argv[1]))):
    if not os.fork():
        print(os.getpid(), flush=True)
    signal.pause()
"""


def test_a_process_that_was_forked_off_does_not_hold_the_home(paths: Paths) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORK, str(paths.home)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        with pytest.raises(HomeLocked), home_lock(paths):
            pass
        process.kill()
        process.wait()
        try:
            with home_lock(paths) as recovered:
                assert recovered is True
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_home_whose_path_is_no_text_is_refused(tmp_path: Path) -> None:
    """Whatever names a file of it would fail at its answer."""
    home = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    with pytest.raises(FailedPrecondition, match=r"is no UTF-8: .*\\xff"), home_lock(Paths(home)):
        pass
    assert not home.exists()
