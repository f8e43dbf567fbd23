"""docs/reference is what the code declares, and says all of it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pluggy
import pytest

from ksi_common.errors import ERRORS
from ksi_daemon import hookspecs
from ksi_daemon.settings import setting_names

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"


def test_the_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_that_is_old_is_found_out_and_named(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    monkeypatch.setattr(generate, "pages", lambda: {"events.md": "new\n", "errors.md": "same\n"})
    (tmp_path / "events.md").write_text("old\n")
    (tmp_path / "errors.md").write_text("same\n")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert capsys.readouterr().err == "not up to date: events.md; run python docs/reference/generate.py\n"
    assert (tmp_path / "events.md").read_text() == "old\n"
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert (tmp_path / "events.md").read_text() == "new\n"


def test_each_hook_has_its_signature_as_a_heading() -> None:
    manager = pluggy.PluginManager("ksi")
    manager.add_hookspecs(hookspecs)
    signatures = []
    for name in vars(hookspecs):
        if name.startswith("ksi_"):
            spec = getattr(manager.hook, name).spec
            signatures.append(f"{name}({', '.join(spec.argnames)})")
    assert headings("hooks.md", 2) == signatures


def test_each_error_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)`", (FOLDER / "errors.md").read_text(), re.MULTILINE) == list(ERRORS)


def test_each_setting_is_in_the_table_and_described() -> None:
    rows = re.findall(
        r"^\| `([\w.]+)` \| `(\w+)` \| `.*` \| (.*) \|$",
        (FOLDER / "settings.md").read_text(),
        re.MULTILINE,
    )
    assert [name for name, _, _ in rows] == setting_names()
    assert [name for name, _, description in rows if not description] == []


def test_each_field_that_is_sent_is_described() -> None:
    text = (FOLDER / "events.md").read_text()
    sent = re.findall(r"^\| `(\w+)` \| (?:[^|\\]|\\\|)+ \| (?:required|`.*`) \|(.*)\|$", text, re.MULTILINE)
    assert len(sent) > 30
    assert [name for name, description in sent if not description.strip()] == []


def test_events_name_their_classes_and_each_object_has_a_section() -> None:
    text = (FOLDER / "events.md").read_text()
    assert "request, safe (changes nothing); plugin `completion`, class `completion_status.Status`" in text
    assert "| `reference` | object [`Reference`](#referencesreference) |" in text
    anchors = [
        heading.lower().translate({ord(":"): None, ord("."): None}) for heading in headings("events.md", 3)
    ]
    assert sorted(set(re.findall(r"\]\(#(\w+)\)", text)) - {"objects"} - set(anchors)) == []


def headings(page: str, level: int) -> list[str]:
    return re.findall(rf"^{'#' * level} (.+)$", (FOLDER / page).read_text(), re.MULTILINE)


@pytest.fixture
def generate() -> ModuleType:
    """The generator, as a module."""
    spec = importlib.util.spec_from_file_location("generate_reference", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
