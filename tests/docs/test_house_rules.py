"""The pages and the layout keep the rules that CONTRIBUTING.md states."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("ksi_common", "ksi_client", "ksi_daemon", "plugins")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def files(pattern: str, *folders: str) -> Iterator[Path]:
    """Yield the project's own files, not those of environments, caches and running daemons."""
    for folder in folders or (".",):
        for path in sorted((ROOT / folder).rglob(pattern)):
            parts = path.relative_to(ROOT).parts
            if parts[0] != "var" and not any(part.startswith(".") and part != ".ci" for part in parts[:-1]):
                yield path


PAGES = list(files("*.md"))
DECISIONS = list(files("*.md", "docs/decisions"))
MODULES = list(files("*.py", *SOURCES))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Name the headings of a page as GitHub does."""
    text = FENCED.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue  # another site: nothing to look at without a network
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("decision", DECISIONS, ids=name_of)
def test_a_decision_is_one_page_of_five_parts(decision: Path) -> None:
    text = decision.read_text()
    assert text.count("\n") <= 60
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "The question",
        "The decision",
        "Why",
        "What else was considered",
        "What it costs",
    ]


def test_decisions_are_numbered_without_a_gap_and_titled_by_their_number() -> None:
    numbers = [decision.name[:4] for decision in DECISIONS]
    assert numbers == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]
    for number, decision in zip(numbers, DECISIONS, strict=True):
        assert decision.read_text().startswith(f"# {number}. ")


def test_the_changelog_opens_with_the_compatibility_policy() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Compatibility policy", "Unreleased"]


def test_contributing_states_all_forty_rules_in_order() -> None:
    rules = re.findall(r"^ ?(\d+)\. ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert [int(rule) for rule in rules] == list(range(1, 41))


def test_each_promise_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\*\*.*) \| (.+) \|$", (ROOT / "docs/promises.md").read_text(), re.MULTILINE)
    named = {promise: re.findall(r"`(tests/[^`]+)`", tests) for promise, tests in rows}
    assert len(named) > 50
    assert [promise for promise, tests in named.items() if not tests] == []
    assert [path for tests in named.values() for path in tests if not (ROOT / path).exists()] == []


def test_modules_are_short() -> None:
    limits = {
        name_of(module): 150 if name_of(module) == "ksi_daemon/router.py" else 400 for module in MODULES
    }
    lengths = {name_of(module): module.read_text().count("\n") for module in MODULES}
    assert {name: length for name, length in lengths.items() if length > limits[name]} == {}


def test_modules_are_named_for_the_one_thing_in_them() -> None:
    vague = re.compile(r"(utils?|helpers?|misc|base_.*|.*_v\d+|enhanced_.*|new_.*|.*_manager)$")
    named_so = [module for module in MODULES if vague.match(module.stem)]
    assert [module for module in named_so if "ksi_completion" not in module.parts] == []


def test_nothing_is_left_to_do_without_an_issue() -> None:
    left = re.compile(r"\b(TODO|FIXME|XXX)\b(?!.*issue)")
    assert [name_of(module) for module in MODULES if left.search(module.read_text())] == []
