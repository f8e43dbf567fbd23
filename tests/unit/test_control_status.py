"""The status of a daemon that is not well is said all the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_client.control.status import status
from ksi_client.control.wording import Exit
from ksi_common.paths import Paths
from tests.unit.test_client_fake import fake_in_thread

HEALTH: dict[str, Any] = {
    "status": "unhealthy",
    "version": "1.0",
    "pid": 4711,
    "uptime_s": 12.0,
    "active_connections": 1,
    "checks": {
        "database": {"status": "unhealthy", "detail": {"error": "no answer within 2 s"}},
        "providers": {"status": "healthy", "detail": {"configured": 0}},
    },
}


def test_a_database_that_does_not_answer_is_an_alarm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_in_thread() as (daemon, _):
        monkeypatch.setenv("KSI_SOCKET", str(daemon.path))
        daemon.handlers["system:health"] = lambda data: HEALTH
        outcome = status(Paths(tmp_path))
    assert outcome.code == Exit.OK
    assert "  events    not known" in outcome.text.splitlines()
    assert "database unhealthy (error no answer within 2 s)" in outcome.text


@pytest.mark.parametrize(("last_exit", "how"), [(None, ""), ("SIGSEGV", " (SIGSEGV)")])
def test_a_crash_is_said_to_be_one_before_it_is_known_how(
    tmp_path: Path, last_exit: str | None, how: str
) -> None:
    """Its socket is gone already, and its process still ends."""
    paths = Paths(tmp_path)
    paths.run.mkdir()
    program = "import sys; print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", program, "ksi_daemon.process_supervisor", str(paths.home)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        try:
            assert supervisor.stdout.readline()  # until then its words are not to be read
            state: dict[str, Any] = {
                "pid": supervisor.pid, "restarts": 0, "last_exit": last_exit, "suspects": [], "gave_up": None
            }  # fmt: skip
            (paths.run / "supervisor.json").write_text(json.dumps(state))
            said = status(paths).text
        finally:
            supervisor.kill()
    assert f"KSI has crashed{how}; its supervisor (pid {supervisor.pid}) will start it again." in said
