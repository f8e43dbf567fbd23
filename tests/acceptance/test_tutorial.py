"""docs/plugins/tutorial.md, followed to the letter by a stranger: files as shown, commands as shown."""

import re
import shlex

import pytest

from tests.support.stranger import ROOT, Stranger

PAGE = (ROOT / "docs" / "plugins" / "tutorial.md").read_text()
STEPS = re.findall(
    r"^`([\w/.]+)`:\n\n```python\n(.*?)^```$|^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)


@pytest.mark.timeout(600)
def test_the_tutorial_is_true(stranger: Stranger) -> None:
    place = stranger.folder
    stranger.run("ksi", "daemon", "start")
    for path, text, console in STEPS:
        if path:
            (place / path).write_text(text)
            continue
        for command, expected in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE):
            if command.startswith("cd "):
                place = place / command.removeprefix("cd ")
                continue
            said = stranger.run(*shlex.split(command), cwd=place, code=1 if "celcius" in command else 0)
            assert re.fullmatch(pattern(expected), words(said)), (command, said)


def test_it_has_steps_and_its_python_is_what_is_shown() -> None:
    files = [path for path, _, _ in STEPS if path]
    assert files == ["ksi_weather/events.py", "ksi_weather/handlers.py", "tests/test_weather.py"]
    assert sum("$ " in console for _, _, console in STEPS) >= 6


def pattern(expected: str) -> str:
    """Give what must be said: `…` stands for anything, also for nothing."""
    parts = [re.escape(words(part)) for part in expected.split("…")]
    return r"(?s)\s*" + r".*".join(parts) + r"\s*"


def words(text: str) -> str:
    """Part words by one space: columns are aligned on a terminal, and parted by tabs in a pipe."""
    return " ".join(text.split())
