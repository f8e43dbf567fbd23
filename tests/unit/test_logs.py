"""The log is lines of JSON that know their event, keep secrets, and stop nobody."""

import asyncio
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from ksi_common.envelope import EventEnvelope, event_context
from ksi_daemon.logs import logging_to
from ksi_daemon.settings import LogSettings
from ksi_daemon.threads import Threads
from tests.support.waiting import eventually

ENVELOPE = EventEnvelope("demo:ask", {}, "event-1", "correlation-1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "ksi.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(path: Path, log: Callable[[], object], **settings: Any) -> list[dict[str, Any]]:
    """Give the lines that ``log`` leaves, once all are written."""
    with logging_to(path, LogSettings(**settings)):
        log()
    return lines(path)


def by_structlog(message: str, **fields: Any) -> None:
    structlog.get_logger().info(message, **fields)


def by_logging(message: str, **fields: Any) -> None:
    logging.getLogger("theirs").info(message, extra=fields)


both = pytest.mark.parametrize("log", [by_structlog, by_logging])


@both
def test_a_line_is_a_json_object_with_time_and_level(path: Path, log: Callable[..., None]) -> None:
    (line,) = logged(path, lambda: log("plugin.loaded", plugin="shop"))
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "plugin.loaded", "level": "info", "plugin": "shop"}


@both
def test_a_line_in_a_handler_has_its_ids_unasked(path: Path, log: Callable[..., None]) -> None:
    def handle() -> None:
        with event_context(ENVELOPE):
            log("shop.opened")

    (line,) = logged(path, handle)
    assert (line["correlation_id"], line["event_id"]) == ("correlation-1", "event-1")
    assert line["request"] == "demo:ask"


@both
def test_a_line_outside_of_handlers_has_no_correlation_id(path: Path, log: Callable[..., None]) -> None:
    (line,) = logged(path, lambda: log("shop.opened"))
    assert "correlation_id" not in line


def test_a_line_has_the_trace_of_its_event(path: Path) -> None:
    traced = EventEnvelope("demo:ask", {}, "e", "c", traceparent="00-1-2-01")

    def handle() -> None:
        with event_context(traced):
            by_structlog("shop.opened")

    (line,) = logged(path, handle)
    assert line["traceparent"] == "00-1-2-01"


def test_an_id_that_is_given_stands(path: Path) -> None:
    def handle() -> None:
        with event_context(ENVELOPE):
            by_structlog("shop.opened", correlation_id="mine")

    (line,) = logged(path, handle)
    assert line["correlation_id"] == "mine"


@both
async def test_a_line_from_a_handlers_thread_has_its_ids_unasked(
    path: Path, log: Callable[..., None]
) -> None:
    with logging_to(path, LogSettings()), event_context(ENVELOPE):
        await Threads().run(lambda: log("shop.opened"))
    (line,) = lines(path)
    assert line["correlation_id"] == "correlation-1"


async def test_lines_of_concurrent_handlers_have_each_their_own_ids(path: Path) -> None:
    async def handle(name: str) -> None:
        with event_context(EventEnvelope("demo:ask", {}, name, name)):
            await asyncio.sleep(0)
            by_structlog("shop.opened", handler=name)

    with logging_to(path, LogSettings()):
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(handle(name))
    assert {line["handler"]: line["correlation_id"] for line in lines(path)} == {"a": "a", "b": "b", "c": "c"}


@both
@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "ANTHROPIC_API_KEY", "apikey", "secret", "client_secret", "password"),
        *("Authorization", "token", "access_token", "credentials"),
    ],
)
def test_a_secret_is_not_written(path: Path, log: Callable[..., None], name: str) -> None:
    (line,) = logged(path, lambda: log("shop.opened", **{name: "sk-1234"}))
    assert line[name] == "[redacted]"
    assert "sk-1234" not in path.read_text()


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "token_count", "key"])
def test_what_only_looks_like_a_secret_is_written(path: Path, name: str) -> None:
    (line,) = logged(path, lambda: by_structlog("shop.opened", **{name: 5}))
    assert line[name] == 5


def test_a_traceback_is_part_of_its_line(path: Path) -> None:
    def fail() -> None:
        try:
            int("oh")
        except ValueError:
            logging.getLogger("theirs").exception("shop.burnt")

    (line,) = logged(path, fail)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("'oh'")


def test_arguments_of_a_message_are_filled_in(path: Path) -> None:
    (line,) = logged(path, lambda: logging.getLogger("theirs").info("%s of %d", "one", 2))
    assert line["event"] == "one of 2"


def test_what_is_no_json_is_written_as_text(path: Path) -> None:
    (line,) = logged(path, lambda: by_structlog("shop.opened", where=Path("/a")))
    assert line["where"] == "/a"


def test_letters_of_all_scripts_are_written_as_they_are(path: Path) -> None:
    logged(path, lambda: by_structlog("shop.opened", name="Дом 家"))
    assert "Дом 家" in path.read_text()


def test_a_lone_surrogate_loses_no_line(path: Path) -> None:
    (line,) = logged(path, lambda: by_structlog("shop.opened", name="\ud800"))
    assert line["event"] == "shop.opened"


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_lines_below_the_level_are_not_written(path: Path, level: str, written: list[str]) -> None:
    def log() -> None:
        for name in ("debug", "info", "warning", "error"):
            getattr(structlog.get_logger(), name)("a.line")

    assert [line["level"] for line in logged(path, log, level=level)] == written


@pytest.mark.parametrize("name", ["asyncio", "aiosqlite"])
def test_what_libraries_say_in_detail_is_not_written(path: Path, name: str) -> None:
    level = logging.getLogger(name).level
    assert logged(path, lambda: logging.getLogger(name).debug("chatter"), level="debug") == []
    logging.getLogger(name).setLevel(level)


def test_a_full_file_is_rotated_and_few_are_kept(path: Path) -> None:
    def log() -> None:
        for number in range(30):
            by_structlog("a.line", number=number, text="x" * 20_000)

    logged(path, log, max_bytes=64 * 1024, files=2)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "ksi.jsonl",
        "ksi.jsonl.1",
        "ksi.jsonl.2",
    ]
    assert lines(path)[-1]["number"] == 29
    assert all(file.stat().st_size <= 64 * 1024 for file in path.parent.iterdir())


async def test_where_the_file_is_taken_away_a_new_one_is_begun(path: Path) -> None:
    async def is_written() -> bool:
        return bool(lines(path))

    taken = path.with_suffix(".taken")
    with logging_to(path, LogSettings()):
        by_logging("before")
        await eventually(is_written)
        await asyncio.to_thread(path.rename, taken)
        by_logging("after")
    assert [line["event"] for file in (taken, path) for line in lines(file)] == ["before", "after"]


def test_lines_are_appended_to_those_of_the_run_before(path: Path) -> None:
    logged(path, lambda: by_structlog("first.run"))
    written = logged(path, lambda: by_structlog("second.run"))
    assert [line["event"] for line in written] == ["first.run", "second.run"]


def test_an_echo_goes_to_stderr_as_well(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(path, LogSettings(), echo=True):
        by_structlog("shop.opened")
    assert json.loads(capsys.readouterr().err) == lines(path)[0]


def test_without_an_echo_nothing_is_said_elsewhere(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(path, lambda: by_structlog("shop.opened"))
    assert capsys.readouterr() == ("", "")


def test_logging_is_afterwards_as_it_was_before(path: Path) -> None:
    root = logging.getLogger()
    before = root.level, root.handlers[:], structlog.is_configured()
    with logging_to(path, LogSettings(level="debug")):
        assert root.level == logging.DEBUG
    assert (root.level, root.handlers[:], structlog.is_configured()) == before


def test_logging_is_restored_after_an_error(path: Path) -> None:
    before = logging.getLogger().handlers[:]
    with pytest.raises(ValueError, match="oh"), logging_to(path, LogSettings()):
        raise ValueError("oh")
    assert logging.getLogger().handlers == before


def test_the_folder_is_made_for_its_owner_only(path: Path) -> None:
    logged(path, lambda: None)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_python_warns_of_is_a_line(path: Path) -> None:
    async def forgotten() -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        (line,) = logged(path, lambda: forgotten() and None)
    assert (line["event"], line["level"]) == ("python.warning", "warning")
    assert line["warning"] == f"RuntimeWarning: coroutine '{forgotten.__qualname__}' was never awaited"
    assert line["where"].startswith(f"{__file__}:")


async def test_a_path_that_cannot_be_looked_at_for_a_while_stops_no_later_line(path: Path) -> None:
    """The error ended the thread that writes: nothing was written any more, and all lines were kept."""
    folder, away = path.parent, path.parent.with_name("away")

    async def written() -> bool:
        return len(lines(away / path.name)) == 2

    with logging_to(path, LogSettings()):
        by_structlog("first")
        folder.rename(away)
        folder.write_text("a file in the place of the folder")
        by_structlog("second")
        await eventually(written, patience_s=5)
        folder.unlink()
        away.rename(folder)
        by_structlog("third")
    assert [line["event"] for line in lines(path)] == ["first", "second", "third"]


def lost(path: Path) -> int:
    """Count the lines that are said to be lost, and those of the same kind that are there."""
    found = lines(path) if path.exists() else ()
    return sum(line.get("lines", line["event"] == "lost") for line in found)


async def test_lines_that_cannot_be_written_are_counted_and_said_once(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ""

    async def is_said() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return bool(said)

    async def is_counted() -> bool:
        return lost(path) == 3

    await asyncio.to_thread(path.parent.mkdir, parents=True)
    await asyncio.to_thread(path.symlink_to, "/dev/full")
    with logging_to(path, LogSettings()):
        for number in range(3):
            by_structlog("lost", number=number)
        await eventually(is_said)
        await asyncio.to_thread(path.unlink)
        by_structlog("written")
        await eventually(is_counted)
    said += capsys.readouterr().err
    assert said == f"{path} cannot be written: No space left on device; log lines are lost\n"
