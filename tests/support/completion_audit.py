"""Whether every accepted completion has ended once: in the log, in its row and in its session's file."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ksi_common.async_db import AsyncSQLiteDB

ENDS = ("completion:result", "completion:failed", "completion:cancelled")


async def check_completions(home: Path, accepted: Collection[str]) -> Mapping[str, str]:
    """Compare what a stopped daemon left with what it accepted; give the outcome of each.

    Raises AssertionError that names the request.
    """
    async with AsyncSQLiteDB(home / "db" / "ksi.db", read_only=True) as database:
        told = await database.fetch(
            "SELECT name, data FROM log WHERE kind = 0 AND name IN (?, ?, ?) ORDER BY seq", ENDS
        )
        rows = await database.fetch("SELECT * FROM completions ORDER BY number")
        files = await database.fetch("SELECT session_id, file_end FROM completion_sessions")
    ends = Counter(json.loads(event["data"])["request_id"] for event in told)
    lines = _lines(home / "logs" / "responses", dict(map(tuple, files)))
    states = {row["request_id"]: row["state"] for row in rows}
    for request in accepted:
        assert ends[request] == 1, f"{request} has {ends[request]} last events"
        assert len(lines[request]) == 1, f"{request} has {len(lines[request])} lines"
        assert states[request] in {"completed", "failed", "cancelled"}, f"{request} is {states[request]}"
    assert set(ends) == set(states) == set(lines), "something that nobody asked has ended"
    for event in told:
        _check_reference(home, json.loads(event["data"]))
    _check_order([json.loads(event["data"]) for event in told], [row["request_id"] for row in rows])
    return states


async def check_calls(home: Path, *, kills: int) -> None:
    """Compare how often providers were asked with what was paid for; each failure has to have cost something.

    Raises AssertionError that names the request.
    """
    async with AsyncSQLiteDB(home / "db" / "ksi.db", read_only=True) as database:
        rows = await database.fetch("SELECT * FROM completions")
        ledger = await database.fetch("SELECT request_id, completion_tokens FROM token_usage")
    paid = Counter(entry["request_id"] for entry in ledger)
    for row in rows:
        request, known = row["request_id"], row["failures"] + (row["state"] == "completed")
        assert paid[request] == known, (
            f"{request} was asked for {known} times, and paid for {paid[request]} times"
        )
        assert row["attempts"] <= known + kills, f"{request} had {row['attempts']} attempts"
    said = sum(row["completion_tokens"] or 0 for row in rows)
    counted = sum(entry["completion_tokens"] for entry in ledger)
    assert counted == said, f"the ledger has {counted} tokens, the answers {said}"


def _lines(folder: Path, ends: Mapping[str, int]) -> Mapping[str, list[dict[str, Any]]]:
    """Read the answers. Behind the last that a row names, a crash may have left what is none."""
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in folder.glob("*.jsonl"):
        if not path.is_symlink():
            content, end = path.read_bytes(), ends[path.stem]
            beyond = [text for text in content[end:].splitlines() if b'"outcome"' in text]
            for text in [*content[:end].splitlines(), *beyond]:
                line = json.loads(text)
                lines[line["ksi"]["request_id"]].append(line)
    return lines


def _check_reference(home: Path, told: Mapping[str, Any]) -> None:
    reference = told["reference"]
    content = (home / reference["path"]).read_bytes()
    line = content[reference["offset"] : reference["offset"] + reference["length"]]
    request = told["request_id"]
    assert hashlib.sha256(line).hexdigest() == reference["sha256"], f"{request} refers to other bytes"
    assert json.loads(line)["ksi"]["request_id"] == request, f"{request} refers to another's line"


def _check_order(told: list[dict[str, Any]], accepted: list[str]) -> None:
    """In a session, what was not cancelled ends in the order of acceptance."""
    order = {request: number for number, request in enumerate(accepted)}
    last: dict[str, int] = {}
    for event in told:
        if "proof" not in event:
            number = order[event["request_id"]]
            assert number > last.get(event["session_id"], -1), f"{event['request_id']} is out of its order"
            last[event["session_id"]] = number
