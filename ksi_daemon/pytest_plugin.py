"""The fixtures that come with KSI. Every pytest beside it imports this, so it imports little.

async def test_hello(ksi): ...                                        # a daemon with what is installed
@pytest.mark.ksi(plugins=["hello.py"], settings={"log": {...}})       # files of the test's folder
async def test_later(ksi, ksi_clock): ksi_clock.advance(3600)         # its time is yours
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ksi_daemon.testing import FakeClock, RunningDaemon

MARK = "ksi(plugins=[...], settings={...}): files that the daemon of `ksi` loads, and its settings"

try:
    from pytest_asyncio import fixture
except ImportError:  # a test that asks for it is told what to install

    @pytest.fixture
    def ksi() -> None:
        """Say what is missing."""
        pytest.fail("the ksi fixture needs pytest-asyncio: pip install 'ksi[test]'", pytrace=False)

else:

    @fixture
    async def ksi(request: pytest.FixtureRequest) -> "AsyncIterator[RunningDaemon]":  # type: ignore[misc]  # the same name: one of them is
        """A daemon with the plugins that are installed, strict, in a home of its own."""
        from ksi_daemon.testing import running_daemon  # noqa: PLC0415 -- the daemon is imported here only

        plugins, settings = _wishes(request)
        clock = request.getfixturevalue("ksi_clock") if "ksi_clock" in request.fixturenames else None
        async with running_daemon(plugins=plugins, settings=settings, clock=clock) as running:
            yield running


@pytest.fixture
def ksi_clock() -> "FakeClock":
    """A clock that stands still until it is moved; the daemon of ``ksi`` goes by it."""
    from ksi_daemon.testing.clock import FakeClock  # noqa: PLC0415 -- see above

    return FakeClock()


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", MARK)


def _wishes(request: pytest.FixtureRequest) -> tuple[Sequence[Path], dict[str, Any]]:
    """Read the marks of a test, its class and its module; what is nearest holds for settings."""
    plugins: list[Path] = []
    settings: dict[str, Any] = {}
    for mark in request.node.iter_markers("ksi"):
        plugins += [Path(request.path).parent / plugin for plugin in mark.kwargs.get("plugins", ())]
        settings = {**mark.kwargs.get("settings", {}), **settings}
    return plugins, settings
