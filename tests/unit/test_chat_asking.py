"""One question of a chat is asked until it has its end, or an error that says why there is none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_client.chat import asking as module
from ksi_client.chat.asking import Asking
from ksi_client.chat.prompt import Prompt
from ksi_common.errors import DeadlineExceeded, KSIError, NotFound, Unavailable
from tests.unit.test_client_fake import fake_in_thread


@pytest.mark.parametrize(
    ("timeout_s", "said"), [(None, "the queue is slow"), (30.0, "no answer within 30 s")]
)
def test_a_deadline_is_told_whoever_set_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float | None, said: str
) -> None:
    """Without a --timeout, a deadline of the daemon's own was a traceback of TypeError."""

    def late(_: Mapping[str, Any]) -> Any:
        raise DeadlineExceeded("the queue is slow")

    with fake_in_thread() as (daemon, _):
        daemon.handlers["completion:stream"] = late
        monkeypatch.setenv("KSI_SOCKET", str(daemon.path))
        prompt = Prompt("hi", tmp_path, "r1")
        asking = Asking("r1", prompt, {}, timeout_s=timeout_s, lost=_nothing, slow=_nothing)
        with pytest.raises(DeadlineExceeded, match=said):
            list(asking.steps())


def test_a_daemon_that_refuses_again_and_again_is_said_to_be_gone_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    refusals: list[KSIError] = [Unavailable("not now", reason="shutting_down") for _ in range(3)]

    def refuse(_: Mapping[str, Any]) -> Any:
        raise refusals.pop() if refusals else NotFound("it has ended")

    monkeypatch.setattr(module, "RETRY_S", 0)
    with fake_in_thread() as (daemon, _):
        daemon.handlers["completion:stream"] = refuse
        monkeypatch.setenv("KSI_SOCKET", str(daemon.path))
        prompt = Prompt("hi", tmp_path, "r1")
        asking = Asking("r1", prompt, {}, timeout_s=None, lost=lambda: said.append("lost"), slow=_nothing)
        with pytest.raises(NotFound):
            list(asking.steps())
    assert (said, refusals) == (["lost"], [])


def _nothing() -> None:
    """Say nothing."""
