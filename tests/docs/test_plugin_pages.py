"""docs/plugins is true: the plugin of each guide is checked, its tests pass, the reference has all."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser

from ksi_daemon import plugin

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = ROOT / "docs" / "plugins"
GUIDES: Final = sorted(
    path.stem for path in PAGES.glob("*.md") if path.stem not in {"README", "tutorial", "reference"}
)
MODULES: Final[Mapping[str, str]] = {"state": "state_guide"}
"""A plugin cannot be called as a built-in one is."""


def blocks(page: str, language: str) -> list[str]:
    """Give the blocks of a page, by sybil."""
    parser = CodeBlockParser(language, evaluator=lambda _: None)
    document = Document.parse(str(PAGES / f"{page}.md"), parser)
    return [str(example.parsed) for example in document.examples()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins of the guides, as files, and their tests beside them."""
    made = tmp_path_factory.mktemp("guides")
    for guide in GUIDES:
        name = MODULES.get(guide, guide)
        python = blocks(guide, "python")
        tests = [block for block in python if "async def test_" in block]
        source = [block for block in python if block not in tests]
        assert len(source) == 1, guide
        assert tests, guide
        (made / f"{name}.py").write_text(source[0])
        (made / f"test_{name}.py").write_text("\n\n".join(tests))
    (made / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    return made


@pytest.mark.timeout(600)
def test_the_tests_of_the_guides_pass(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", folder],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert len(list(folder.glob("test_*.py"))) == len(GUIDES)


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if guide != "remote"])
def test_the_plugin_of_a_guide_is_one_that_the_check_likes(folder: Path, guide: str) -> None:
    name = MODULES.get(guide, guide)
    done = subprocess.run(
        [sys.executable, "-c", "from ksi_client.cli.main import main; main()", "plugin", "check",
         "--strict", f"{name}.py"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ["settings", "testing"])
def test_the_toml_is_some(page: str) -> None:
    assert [tomllib.loads(block) for block in blocks(page, "toml")]


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, PAGES / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_has_fields_what_is_awaited_and_whole_defaults() -> None:
    text = (PAGES / "reference.md").read_text()
    command = text.partition("### `Command`\n")[2].partition("###")[0]
    assert "- `arguments: Sequence[str] = ()`\n" in command
    assert "- `async call_raw(event: str" in text
    assert "- `async with connect(*, patience_s: float = 30.0)" in text
    assert "- `send(frame: " in text


def test_everything_that_may_be_imported_is_in_the_reference() -> None:
    text = (PAGES / "reference.md").read_text()
    documented = set(re.findall(r"^### `(\w+)", text, re.MULTILINE))
    assert set(plugin.__all__) - documented == set()


def test_every_page_is_reached_from_the_first_one() -> None:
    first = (PAGES / "README.md").read_text()
    assert {path.name for path in PAGES.glob("*.md")} - set(re.findall(r"\((\w+\.md)\)", first)) == {
        "README.md"
    }
