"""What docs/seeds.md calls `here` is here: its place, its programs, its events and its tests."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """One row of the table."""

    feature: str
    places: list[str]
    command: str
    state: str


def rows() -> list[Row]:
    """Parse every table of the page; an escaped bar belongs to its cell."""
    parsed = []
    for line in (ROOT / "docs/seeds.md").read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and not cells[0].startswith(("system or", "---")):
            feature, places, command, state = cells
            parsed.append(Row(feature, re.findall(r"`([^`]+)`", places), command.strip("`"), state))
    return parsed


ROWS = rows()
HERE = [row for row in ROWS if re.match(r"here\b", row.state)]


def test_every_row_has_a_known_state() -> None:
    assert [row for row in ROWS if not re.match(r'(here|core|later|otherwise)\b|"[A-Z]', row.state)] == []


def test_the_places_of_what_is_here_exist() -> None:
    assert [row for row in HERE if not row.places] == []
    assert [(row.feature, place) for row in HERE for place in row.places if not (ROOT / place).exists()] == []


def test_the_programs_that_show_what_is_here_exist() -> None:
    assert [row for row in HERE if not row.command] == []
    named = [(row.feature, program) for row in HERE for program in programs(row.command)]
    assert [(feature, program) for feature, program in named if not (ROOT / program).exists()] == []


def test_the_events_that_show_what_is_here_are_declared() -> None:
    declared = declared_events()
    named = [(row.feature, event) for row in HERE for event in events(row.command)]
    assert [(feature, event) for feature, event in named if event not in declared] == []


def test_the_fields_that_the_calls_give_are_of_their_events() -> None:
    """But in the row that shows a refusal."""
    shown = [row for row in ROWS if not row.feature.startswith("Input validation")]
    named = [(row.feature, *call) for row in shown for call in calls(row.command)]
    assert len(named) > 20
    assert [(feature, event, field) for feature, event, field in named if field not in fields(event)] == []


def test_the_tests_that_show_what_is_here_are_found() -> None:
    assert [(row.feature, row.command) for row in HERE if not selects_tests(row.command)] == []


def programs(command: str) -> list[str]:
    """Name the programs of this repository that a command runs."""
    return re.findall(r"(?:python3 |^\./)([\w./]+)", command)


def events(command: str) -> list[str]:
    """Name the events that a command calls or looks at."""
    return re.findall(r"(?:ksi call|events show) ([\w:]+)", command)


def calls(command: str) -> list[tuple[str, str]]:
    """Name the events that a command calls, each with every field that it gives."""
    found = re.findall(r"ksi call ([\w:]+)((?: \w+:?='[^']*'| \w+:?=\S+)*)", command)
    return [(event, field) for event, given in found for field in re.findall(r" (\w+):?=", given)]


def fields(event: str) -> list[str]:
    """Name the fields of an event, by its page."""
    page = (ROOT / "docs/reference/events.md").read_text().partition(f"\n### {event}\n")[2]
    return re.findall(r"^\| `(\w+)`", page.partition("\n### ")[0].partition("| Reply |")[0], re.MULTILINE)


def declared_events() -> set[str]:
    """Name the events that some class declares."""
    sources = [path for folder in ("ksi_common", "plugins") for path in (ROOT / folder).rglob("*.py")]
    return {name for path in sources for name in re.findall(r'event="([\w:]+)"', path.read_text())}


def selects_tests(command: str) -> bool:
    """Tell whether a run of the tests would find any."""
    given = re.search(r"run_tests\.py(?: --all)? (tests/\S+)(?: -k (\w+))?", command)
    if given is None:
        return True
    root, word = ROOT / given[1], given[2] or ""
    files = [root] if root.suffix else root.rglob("test_*.py")
    return any(word in path.stem or re.search(rf"def test_\w*{word}", path.read_text()) for path in files)
