"""Fixtures that several modules share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_daemon.database import Database
from tests.support.databases import Heard, opened


@pytest.fixture
def heard() -> Heard:
    """Give what the database of this test published."""
    return Heard()


@pytest.fixture
async def database(tmp_path: Path, heard: Heard) -> AsyncIterator[Database]:
    """Give a database that writes, in a file of its own."""
    async with opened(tmp_path, heard) as made:
        yield made
