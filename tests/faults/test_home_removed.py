"""A daemon whose home was taken away ends by itself; one whose database was, takes nothing more."""

import shutil

import pytest

from ksi_client import AsyncClient
from ksi_common.errors import Unavailable
from ksi_common.events import state, system
from tests.support.daemon_process import DaemonProcess
from tests.support.waiting import eventually


@pytest.mark.timeout(120)
async def test_a_daemon_without_a_home_ends() -> None:
    async with DaemonProcess() as daemon:
        # In one step: what the daemon makes meanwhile would keep a folder from being removed.
        shutil.rmtree(daemon.home.rename(daemon.base / "gone"))
        assert await daemon.wait() == 0
        daemon.home.mkdir()


@pytest.mark.timeout(120)
async def test_a_daemon_whose_socket_was_removed_ends_and_the_next_one_serves() -> None:
    async with DaemonProcess() as daemon:
        daemon.socket.unlink()
        assert await daemon.wait() == 0
        await daemon.start()
        assert daemon.socket.is_socket()


@pytest.mark.timeout(120)
async def test_a_daemon_whose_home_was_moved_takes_nothing_of_the_one_in_its_place() -> None:
    """As by whoever puts a backup back, and has not stopped the daemon first."""
    second = DaemonProcess()
    async with DaemonProcess() as first:
        first.home.rename(first.base / "moved")
        second.home, second.socket, second.database = first.home, first.socket, first.database
        second.environ["KSI_HOME"] = str(first.home)
        async with second:
            assert await first.wait() == 0
            assert "its home was moved or removed" in first.stderr.read_text()
            assert second.socket.is_socket()
            async with AsyncClient(second.socket) as ksi:
                await ksi.call(state.Set(key="color", value="green"))
            await second.kill()
            await second.start()
            async with AsyncClient(second.socket) as ksi:
                assert (await ksi.call(state.Get(key="color"))).found


@pytest.mark.timeout(120)
async def test_nothing_is_stored_in_a_database_that_was_taken_away_until_it_is_back() -> None:
    async with DaemonProcess() as daemon, AsyncClient(daemon.socket) as ksi:

        async def refused() -> bool:
            try:
                await ksi.call(state.Set(key="color", value="green"))
            except Unavailable as error:
                return "was moved, removed or replaced" in error.message
            return False

        async def ill() -> bool:
            check = (await ksi.call(system.Health())).checks.database
            return check.status == "unhealthy" and "replaced" in str(check.detail["error"])

        away = daemon.database.rename(daemon.base / "away.db")
        shutil.copy(daemon.base / "away.db", daemon.database)  # another file in its place is not it
        await eventually(refused)
        assert (await ksi.call(state.Get(key="size"))).found is False
        await eventually(ill)
        away.rename(daemon.database)
        await ksi.call(state.Set(key="size", value="large"))
        await daemon.kill()
        await daemon.start()
        assert (await ksi.call(state.Get(key="size"))).found
