"""One question of a chat is asked until it has its end, or an error that says why there is none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_client.chat.asking import Asking
from ksi_client.chat.prompt import Prompt
from ksi_common.errors import DeadlineExceeded
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


def _nothing() -> None:
    """Say nothing."""
