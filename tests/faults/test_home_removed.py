"""A daemon whose home was taken away ends by itself, and with it the supervisor above it."""

import shutil

import pytest

from tests.support.daemon_process import DaemonProcess


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
