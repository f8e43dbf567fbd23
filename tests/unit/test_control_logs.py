"""The log is read from its end, filtered, and written for people."""

import io
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ksi_client.control.logs import BLOCK, Wanted, appended, last_lines, parse, parse_since, read, render

NOON = "2026-01-31T12:00:00.123456Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ksi.jsonl"


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def write(path: Path, *events: str, level: str = "info", minute: int = 0) -> None:
    with path.open("a") as file:
        for event in events:
            line = {"event": event, "level": level, "timestamp": f"2026-01-31T12:{minute:02}:00.000000Z"}
            file.write(json.dumps(line) + "\n")


def events(path: Path, wanted: Wanted) -> list[str]:
    return [line["event"] for line in read(path, wanted)]


def test_there_may_be_no_log_yet(path: Path) -> None:
    assert read(path, Wanted()) == []


def test_the_last_lines_come_oldest_first(path: Path) -> None:
    write(path, "a", "b", "c")
    assert events(path, Wanted(lines=2)) == ["b", "c"]
    assert events(path, Wanted()) == ["a", "b", "c"]
    assert events(path, Wanted(lines=0)) == []


@pytest.mark.parametrize("length", [BLOCK - 30, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_lines_longer_than_a_block_are_read_whole(path: Path, length: int) -> None:
    write(path, "a", "x" * length, "b")
    assert [len(event) for event in events(path, Wanted())] == [1, length, 1]


def test_rotated_files_are_read_on(path: Path) -> None:
    write(path.with_name("ksi.jsonl.2"), "a")
    write(path.with_name("ksi.jsonl.1"), "b", "c")
    write(path, "d")
    assert events(path, Wanted()) == ["a", "b", "c", "d"]
    assert events(path, Wanted(lines=2)) == ["c", "d"]


def test_only_the_level_asked_for_and_graver_ones_are_shown(path: Path) -> None:
    write(path, "fine")
    write(path, "bad", level="error")
    write(path, "worse", level="critical")
    assert events(path, Wanted(level="error")) == ["bad", "worse"]
    assert events(path, Wanted(level="error", lines=1)) == ["worse"]


def test_a_line_of_no_known_level_is_always_shown(path: Path) -> None:
    path.write_text("Segmentation fault\n[1]\n")
    assert events(path, Wanted(level="critical")) == ["Segmentation fault", "[1]"]


def test_lines_before_the_time_asked_for_are_not_shown(path: Path) -> None:
    write(path, "early", minute=1)
    write(path, "late", "latest", minute=3)
    assert events(path, Wanted(since="2026-01-31T12:02:00.000000Z")) == ["late", "latest"]


def test_a_line_that_is_still_being_written_is_not_lost(path: Path) -> None:
    write(path, "a")
    end = path.stat().st_size
    with path.open("a") as file:
        file.write('{"event": "b')
    assert [line["event"] for line in read(path, Wanted(), end=end)] == ["a"]


@pytest.mark.usefixtures("utc")
def test_a_line_for_people_has_time_level_event_and_fields() -> None:
    line = {
        "event": "plugin.refused",
        "level": "error",
        "timestamp": NOON,
        "plugin": "a b",
        "n": 1,
        "on": None,
    }
    assert render(line) == '2026-01-31 12:00:00.123 error    plugin.refused plugin="a b" n=1 on=null'


@pytest.mark.usefixtures("utc")
def test_a_traceback_stands_below_its_line() -> None:
    line = {"event": "x", "level": "error", "timestamp": NOON, "exception": "Traceback\n  here", "code": "A"}
    assert render(line) == "2026-01-31 12:00:00.123 error    x code=A\nTraceback\n  here"


def test_the_short_form_leaves_tracebacks_out(path: Path) -> None:
    path.write_text(json.dumps({"event": "x", "exception": "Traceback"}) + "\n")
    (line,) = last_lines(path, 5)
    assert line.split() == ["x"]


def test_a_line_without_a_time_is_rendered_all_the_same() -> None:
    assert render(parse(b"Fatal Python error")).strip() == "Fatal Python error"
    assert render({"event": "x", "timestamp": "yesterday"}).split() == ["yesterday", "x"]


def test_since_takes_a_time_span_or_a_moment() -> None:
    ago = datetime.fromisoformat(parse_since("10m"))
    assert 599 < (datetime.now(UTC) - ago).total_seconds() < 660
    assert parse_since("2026-01-31T13:00:00+01:00") == "2026-01-31T12:00:00.000000Z"


@pytest.mark.usefixtures("utc")
def test_a_moment_without_an_offset_is_local() -> None:
    assert parse_since("2026-01-31T12:00") == "2026-01-31T12:00:00.000000Z"


@pytest.mark.parametrize("text", ["999999d", "99999999999d"])
def test_since_refuses_what_no_calendar_has(text: str) -> None:
    with pytest.raises(ValueError, match="no calendar"):
        parse_since(text)


def test_since_refuses_what_is_neither() -> None:
    with pytest.raises(ValueError, match="Invalid isoformat"):
        parse_since("recently")


class Rotated(io.FileIO):
    """A log that is found at its end, and gets one more line and a successor before anybody looks again."""

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        log = Path(str(self.name))
        if not found and not log.with_suffix(".1").exists():
            with log.open("ab") as daemon:
                daemon.write(b'{"event":"last.of_the_old"}\n')
            log.rename(log.with_suffix(".1"))
            log.write_bytes(b'{"event":"first.of_the_new"}\n')
        return found


def test_the_last_lines_of_a_log_that_is_rotated_are_followed_too(path: Path) -> None:
    path.write_bytes(b'{"event":"here.already"}\n')
    lines = appended(path, Rotated(path))
    events: list[str] = []
    while "first.of_the_new" not in events:
        events.append(parse(next(lines))["event"])
    lines.close()
    assert events == ["here.already", "last.of_the_old", "first.of_the_new"]
