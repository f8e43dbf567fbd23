"""The status of a daemon that is not well is said all the same."""

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
