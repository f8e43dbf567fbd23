"""What a message tells people to type works where they are."""

from pathlib import Path

import pytest

from ksi_client.programs import control, of_checkout

ROOT = Path(__file__).resolve().parents[2]


def test_in_the_checkout_a_program_is_named_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert control("stop") == "python3 daemon_control.py stop"


def test_elsewhere_it_is_named_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert control("stop") == f"python3 {ROOT}/daemon_control.py stop"


def test_it_is_named_by_its_path_where_the_working_directory_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert of_checkout("chat.py") == f"{ROOT}/chat.py"


def test_a_program_that_a_checkout_does_not_have_is_none() -> None:
    assert of_checkout("absent.py") is None
