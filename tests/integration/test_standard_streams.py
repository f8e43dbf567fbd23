"""Programs and daemon where stdin, stdout or stderr is closed, or takes no character beyond ASCII."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksi_common.paths import Paths
from ksi_daemon.lock import home_lock

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
NOT_RUNNING = 3
HOME_LOCKED = 4


def run(line: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's line in a home where no daemon runs; ``PYTHON`` is the one of these tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=ROOT,
        env={**inherited, "KSI_HOME": str(home), "PYTHON": sys.executable, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "words", ["ksi call system:health", "chat.py --no-start -p hi", "daemon_control.py status"]
)
def test_a_stream_that_is_closed_changes_no_code(words: str, stream: str, tmp_path: Path) -> None:
    done = run(f"$PYTHON {words} {stream}", tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (NOT_RUNNING, False)


@pytest.mark.parametrize("stream", ["2>&-", "<&- >&- 2>&-"])
def test_a_daemon_whose_stderr_is_closed_ends_with_its_code(stream: str, tmp_path: Path) -> None:
    with home_lock(Paths(tmp_path)):
        assert run(f"$PYTHON -m ksi_daemon {stream}", tmp_path).returncode == HOME_LOCKED


def test_what_cannot_be_written_is_a_question_mark(tmp_path: Path) -> None:
    done = run("$PYTHON daemon_control.py status", tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (NOT_RUNNING, "")
    assert done.stdout.startswith("? KSI is not running.")
