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
from ksi_daemon.testing import RunningDaemon, running_daemon

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


async def items(ksi: RunningDaemon, event: str) -> list[dict[str, Any]]:
    """Give what a stream gives."""
    found = []
    async with ksi.connect() as wire:
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
