"""The log goes into a file and comes out of it as it was; a file that is not whole is refused at its line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_common.async_db import AsyncSQLiteDB
from ksi_common.clock import format_time
from ksi_daemon.testing import FakeClock, RunningDaemon, running_daemon

Rows = list[tuple[Any, ...]]


def transfer(action: str, file: Path, home: Path) -> list[dict[str, Any]]:
    """Run it as `ksi` does; give what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "ksi_daemon.transfer", action, file],
        env={**os.environ, "KSI_HOME": str(home)},
        capture_output=True,
        check=False,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == (1 if "error" in said[-1] else 0), done.stderr.decode()
    return said


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """A home with a log: requests, streams, odd values, and one event that is a blob."""
    home = tmp_path / "old"
    async with running_daemon(home=home) as ksi:
        for number, value in enumerate([1e22, -0.0, {"a": ',"data":{'}, "}", None, "\u2028"]):
            await ksi.call_raw("state:set", {"key": f"k{number}", "value": value})
        await ksi.call_raw("state:delete", {"key": "k0"})
        told = [{"event": "demo:told", "data": {"n": n}} for n in range(3)]
        await ksi.call_raw("event:append", {"stream": "demo/1", "events": told})
        await ksi.call_raw("event:publish", {"event": "demo:large", "data": {"text": "x" * 100_000}})
    return home


async def test_what_is_imported_is_what_was_exported(home: Path, tmp_path: Path) -> None:
    file, new = tmp_path / "log.jsonl", tmp_path / "new"
    (exported,) = transfer("export", file, home)
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert len(lines) == exported["done"]["lines"] + 2
    assert {line["specversion"] for line in lines} == {"1.0"}
    before = (home / "db" / "ksi.db").stat().st_mtime_ns
    transfer("import", file, new)
    assert (home / "db" / "ksi.db").stat().st_mtime_ns == before
    async with running_daemon(home=new) as ksi:
        assert (await ksi.call_raw("state:get", {"key": "k2"}))["value"] == {"a": ',"data":{'}
        assert (await ksi.call_raw("state:get", {"key": "k0"}))["found"] is False
        large = await ksi.call_raw("event:query", {"patterns": ["demo:large"]})
        assert len(large["events"][0]["data"]["text"]) == 100_000
        appended = await ksi.call_raw(
            "event:append", {"stream": "demo/1", "events": [{"event": "demo:told"}]}
        )
        assert appended["version"] == 4
        assert [found for step in await items(ksi, "event:verify") for found in step["damaged"]] == []
        *_, last = await items(ksi, "event:replay")
        assert {table["difference"] for table in last["tables"]} == {None}
    old, made = facts_of_file(lines), await facts_of_home(new)
    assert made[: len(old)] == old


async def test_a_log_that_is_damaged_is_not_exported_and_the_position_is_said(
    home: Path, tmp_path: Path
) -> None:
    (home / "blobs").rename(tmp_path / "elsewhere")
    (said,) = transfer("export", tmp_path / "log.jsonl", home)
    assert said["error"]["code"] == "DATA_LOSS"
    assert said["error"]["details"]["reason"] == "reference_missing"


async def items(ksi: RunningDaemon, event: str) -> list[dict[str, Any]]:
    """Give what a stream gives."""
    found = []
    async with ksi.connect(patience_s=60) as wire:
        wire.send({"event": event, "id": "s"})
        while (frame := await wire.receive())["type"] == "item":
            found.append(frame["data"])
    assert frame["type"] == "end", frame
    return found


def facts_of_file(lines: list[dict[str, Any]]) -> Rows:
    return [
        (int(e["ksiseq"]), e["id"], e["type"], e.get("subject"), e.get("ksiversion"), e["time"])
        for e in lines[1:-1]
    ]


async def facts_of_home(home: Path) -> Rows:
    rows = []
    async with AsyncSQLiteDB(home / "db" / "ksi.db", read_only=True) as database:
        for row in await database.fetch("SELECT * FROM log ORDER BY seq"):
            version = None if row["version"] is None else str(row["version"])
            rows.append(
                (row["seq"], row["event_id"], row["name"], row["stream"], version, format_time(row["time"]))
            )
    return rows


async def test_an_export_that_was_broken_off_is_gone_on_with(home: Path, tmp_path: Path) -> None:
    whole, file = tmp_path / "whole.jsonl", tmp_path / "log.jsonl"
    transfer("export", whole, home)
    lines = whole.read_bytes().splitlines(keepends=True)
    for torn in (b"".join(lines[:5]) + lines[5][:20], b"".join(lines[:-1]), lines[0][:9], b""):
        file.write_bytes(torn)
        transfer("export", file, home)
        again = file.read_bytes().splitlines(keepends=True)
        assert again[1:-1] == lines[1:-1]
    (said,) = transfer("export", file, home)
    assert said["error"]["details"]["reason"] == "finished"


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (7, lambda lines: [*lines[:6], lines[6][:-30]], "the file ends within it"),
        (8, lambda lines: lines[:7], "it is cut short"),
        (1, lambda lines: [], "the file ends within it"),
        (1, lambda lines: lines[1:], "an export begins with"),
        (5, lambda lines: lines[:4] + lines[5:], "seq 5 follows 3"),
        (4, lambda lines: [*lines[:3], b"{]\n", *lines[4:]], "it is no JSON"),
        (4, lambda lines: [*lines[:3], b"[1]\n", *lines[4:]], "it is no CloudEvent"),
        (2, lambda lines: [lines[0], lines[1].replace(b'"ksiactor"', b'"other"'), *lines[2:]], "no ksiactor"),
        (2, lambda lines: [lines[0], lines[1].replace(b"system", b"nobody"), *lines[2:]], "its digest"),
    ],
)
async def test_what_is_not_whole_is_refused_at_its_line(
    home: Path, tmp_path: Path, number: int, change: Any, words: str
) -> None:
    file, new = tmp_path / "log.jsonl", tmp_path / "new"
    transfer("export", file, home)
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    (said,) = transfer("import", file, new)
    assert (said["error"]["details"]["line"], words in said["error"]["message"]) == (number, True), said
    assert not (new / "db").exists()


async def test_only_an_empty_home_is_imported_into(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    transfer("export", file, home)
    (said,) = transfer("import", file, home)
    assert said["error"]["details"]["reason"] == "not_empty"
    async with running_daemon(home=home):
        (said,) = transfer("import", file, home)
        assert said["error"]["details"]["reason"] == "home_locked"
    (said,) = transfer("export", tmp_path / "none.jsonl", tmp_path / "nothing")
    assert said["error"]["code"] == "NOT_FOUND"


async def test_an_export_behind_a_horizon_carries_what_stands_for_the_rest(tmp_path: Path) -> None:
    """Streams go on at their versions, and tables are what they were, though no event says so any more."""
    home, file, new = tmp_path / "old", tmp_path / "log.jsonl", tmp_path / "new"
    clock = FakeClock()
    settings = {"retention": {"max_age_days": 1, "stubs_max_age_days": 1}}
    async with running_daemon(home=home, clock=clock, settings=settings) as ksi:
        told = [{"event": "demo:told", "data": {"n": n}} for n in range(3)]
        await ksi.call_raw("event:append", {"stream": "demo/1", "events": told})
        await change(ksi)
        clock.advance(5 * 86_400)
        await ksi.call_raw("state:set", {"key": "young", "value": 1})
        async with ksi.connect(patience_s=60) as wire:
            assert (await wire.call("event:sweep"))["data"]["compacted"] > 10
        live = await tables_of(ksi)
    (exported,) = transfer("export", file, home)
    lines = file.read_bytes().splitlines(keepends=True)
    assert {b"ksi:export:stream", b"ksi:export:row"} <= {json.loads(line)["type"].encode() for line in lines}
    assert exported["done"]["lines"] < 10
    for number, words in ((2, "does not follow"), (len(lines) - exported["done"]["lines"] - 1, "is missing")):
        cut = tmp_path / f"cut{number}.jsonl"
        cut.write_bytes(b"".join(lines[: number - 1] + lines[number:]))
        (said,) = transfer("import", cut, tmp_path / "none")
        assert (said["error"]["details"]["line"], words in said["error"]["message"]) == (number, True), said
    (imported,) = transfer("import", file, new)
    assert imported["done"]["missing"] == 0
    async with running_daemon(home=new) as ksi:
        assert await tables_of(ksi) == live
        appended = await ksi.call_raw(
            "event:append", {"stream": "demo/1", "events": [{"event": "demo:told"}]}
        )
        assert appended["version"] == 4
        *_, last = await items(ksi, "event:replay")
        assert {table["difference"] for table in last["tables"]} == {None}
    transfer("export", tmp_path / "again.jsonl", new)
    (imported,) = transfer("import", tmp_path / "again.jsonl", tmp_path / "newer")
    assert imported["done"]["missing"] == 0
    async with running_daemon(home=tmp_path / "newer") as ksi:
        assert await tables_of(ksi) == live


async def test_an_import_that_is_killed_is_gone_on_with(tmp_path: Path) -> None:
    home, file, new = tmp_path / "old", tmp_path / "log.jsonl", tmp_path / "new"
    async with running_daemon(home=home) as ksi:
        await change(ksi)
        told = [{"event": "demo:told", "data": {"n": n}} for n in range(1000)]
        for number in range(5):
            await ksi.call_raw("event:append", {"stream": f"demo/{number}", "events": told})
        live = await tables_of(ksi)
    transfer("export", file, home)
    for words in (1, 3):  # it is killed at its first word of how far it is, and at its third
        kill_import(file, new, words)
        assert not (new / "db").exists()
    transfer("import", file, new)
    assert not (new / "importing").exists()
    old = facts_of_file([json.loads(line) for line in file.read_bytes().splitlines()])
    assert await facts_of_home(new) == old
    async with running_daemon(home=new) as ksi:
        assert await tables_of(ksi) == live


UNENDING = """
import sys, threading
from contextlib import contextmanager
from ksi_daemon.transfer import __main__ as transfer

own_output, words = transfer.own_output, int(sys.argv.pop(1))

@contextmanager
def own_output_so_often():
    with own_output() as say:
        def say_so_often(said):
            global words
            if not words:
                threading.Event().wait()
            words -= 1
            say(said)
        yield say_so_often

transfer.own_output = own_output_so_often
transfer.main()
"""
"""Goes on after so many words as far as to the next, and waits there."""


def kill_import(file: Path, home: Path, words: int) -> None:
    """Begin to import, and kill that when it has said so often how far it is; it does not come to its end."""
    with subprocess.Popen(
        [sys.executable, "-c", UNENDING, str(words), "import", file],
        env={**os.environ, "KSI_HOME": str(home)},
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        for _ in range(words):
            assert "position" in json.loads(worker.stdout.readline())
        worker.kill()


async def change(ksi: RunningDaemon) -> None:
    """Have some rows in every table that is made of the log."""
    await ksi.call_raw("state:set", {"key": "k", "value": {"x": [1.5, None]}})
    for ident in ("a", "b", "c"):
        await ksi.call_raw("state:entity:create", {"type": "t", "id": ident, "properties": {"n": 1e22}})
    await ksi.call_raw("state:entity:delete", {"id": "c"})
    await ksi.call_raw("state:relationship:create", {"type": "r", "from": "a", "to": "b"})
    for number in range(3):
        await ksi.call_raw("async_state:push", {"key": "q", "data": number})
    await ksi.call_raw("async_state:pop", {"key": "q"})


async def tables_of(ksi: RunningDaemon) -> dict[str, Rows]:
    """Give every table that is made of the log, and the last numbers that they gave."""
    made: dict[str, Rows] = {}
    tables = [table for each in ksi.daemon.assembly.rebuilders for table in each.tables]
    for table in (*tables, "sqlite_sequence"):
        rows = await ksi.daemon.database.read(f"SELECT * FROM {table} ORDER BY 1, 2")
        made[table] = [tuple(row) for row in rows if table != "sqlite_sequence" or row[0] in tables]
    return made


@pytest.mark.parametrize("text", [b"one line of somebody's", b"a line\nand the last", b"x" * 5_000_000])
async def test_a_file_that_is_no_export_is_refused_and_left_as_it_is(
    home: Path, tmp_path: Path, text: bytes
) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(text)
    (said,) = transfer("export", file, home)
    assert said["error"]["details"]["reason"] == "no_export"
    assert file.read_bytes() == text


@pytest.mark.parametrize(
    "line",
    [
        b'{"specversion":"1.0"}',
        b'{"specversion":"1.0","type":"ksi:export:started"}',
        b'{"specversion":"1.0","type":"ksi:export:started","ksiseq":"x","ksichain":""}',
    ],
)
async def test_a_first_line_that_is_none_is_refused_by_its_number(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(line + b"\n")
    (said,) = transfer("import", file, tmp_path / "new")
    assert said["error"]["details"]["line"] == 1


async def test_an_event_of_an_unknown_kind_is_refused_by_its_number(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    transfer("export", file, home)
    lines = file.read_bytes().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if b'"request"' in line)
    lines[number] = json.dumps(json.loads(lines[number]) | {"ksikind": "other"}).encode() + b"\n"
    file.write_bytes(b"".join(lines))
    (said,) = transfer("import", file, tmp_path / "new")
    assert said["error"]["details"]["line"] == number + 1


async def test_an_import_does_not_go_on_with_what_one_of_another_log_has_left(
    home: Path, tmp_path: Path
) -> None:
    other, file, new = tmp_path / "other.jsonl", tmp_path / "log.jsonl", tmp_path / "new"
    async with running_daemon(home=tmp_path / "another") as ksi:
        told = [{"event": "demo:told", "data": {"n": n}} for n in range(1000)]
        for number in range(3):
            await ksi.call_raw("event:append", {"stream": f"demo/{number}", "events": told})
    transfer("export", other, tmp_path / "another")
    transfer("export", file, home)
    kill_import(other, new, 1)
    transfer("import", file, new)
    assert await facts_of_home(new) == facts_of_file(
        [json.loads(line) for line in file.read_bytes().splitlines()]
    )


async def test_retention_sweeps_a_log_that_was_imported_without_some_of_its_data(tmp_path: Path) -> None:
    home, file, new = tmp_path / "old", tmp_path / "log.jsonl", tmp_path / "new"
    clock = FakeClock()
    settings = {"retention": {"max_age_days": 2, "stubs_max_age_days": 10}}
    async with running_daemon(home=home, clock=clock, settings=settings) as ksi:
        await ksi.call_raw("event:publish", {"event": "demo:told", "data": {"n": 1}})
        clock.advance(3 * 86_400)
        await ksi.call_raw("event:publish", {"event": "demo:told", "data": {"n": 2}})
        assert (await ksi.call_raw("event:sweep"))["removed"] > 0
    transfer("export", file, home)
    transfer("import", file, new)
    clock.advance(4 * 86_400)
    async with running_daemon(home=new, clock=clock, settings=settings) as ksi:
        assert (await ksi.call_raw("event:sweep"))["removed"] > 0
        clock.advance(8 * 86_400)
        assert (await ksi.call_raw("event:sweep"))["compacted"] > 0


async def test_a_chain_that_is_none_is_no_end_of_verifying_from_there(home: Path) -> None:
    async with running_daemon(home=home) as ksi:
        await ksi.daemon.database.write_apart(
            lambda tx: tx.execute("UPDATE log SET chain = 'text' WHERE seq = 3").rowcount
        )
        async with ksi.connect() as wire:
            wire.send({"event": "event:verify", "data": {"from_seq": 4}, "id": "v"})
            while (frame := await wire.receive())["type"] == "item":
                assert frame["data"]["damaged"] == []
            assert frame["type"] == "end"
