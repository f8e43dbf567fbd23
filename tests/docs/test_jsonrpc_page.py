"""docs/jsonrpc.md is true: what it sends is answered as it says, and its table is the code's."""

import asyncio
import re
from pathlib import Path

from ksi_common.jsonrpc import CODES, MAX_BATCH
from ksi_daemon.testing import PATIENCE_S, RunningDaemon

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "jsonrpc.md").read_text()
LINES = re.findall(r"^(->|<-) (.*)$", PAGE, re.MULTILINE)


async def test_what_it_sends_is_answered_as_it_says(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for direction, text in LINES:
            if direction == "->":
                wire.send(text.encode() + b"\n")
                continue
            async with asyncio.timeout(PATIENCE_S):
                line = (await wire.reader.readline()).decode().rstrip("\n")
            assert re.fullmatch(".*".join(map(re.escape, text.split("…"))), line), (text, line)
    assert len(LINES) > 12


def test_its_table_has_every_code() -> None:
    rows = {code: int(number) for number, code in re.findall(r"^\| (-\d+) \| (\w+)", PAGE, re.MULTILINE)}
    assert rows == CODES
    assert f"at most {MAX_BATCH} calls" in PAGE
