"""The manager of providers, without a daemon."""

from pathlib import Path

import pytest

from ksi_common.clock import SystemClock
from ksi_completion.circuit_breakers import CircuitBreakers
from ksi_completion.provider_manager import ProviderManager
from ksi_completion.providers.mock import MockProvider, MockSettings
from tests.support.databases import Heard, opened


class Closing(MockProvider):
    """One that notes that it is closed, and may fail."""

    def __init__(self, name: str, *, fails: bool = False) -> None:
        super().__init__(MockSettings())
        self.name = name
        self.fails = fails
        self.is_closed = False

    async def close(self) -> None:
        """Note it."""
        self.is_closed = True
        if self.fails:
            raise ValueError(self.name)


async def test_one_that_cannot_be_closed_keeps_no_other_from_it(tmp_path: Path) -> None:
    providers = [Closing("a"), Closing("b", fails=True), Closing("c")]
    async with opened(tmp_path, Heard()) as database:
        manager = ProviderManager(providers, CircuitBreakers(database, SystemClock(), failures=1, open_s=1))
        with pytest.raises(ValueError, match="b"):
            await manager.close()
    assert all(provider.is_closed for provider in providers)
