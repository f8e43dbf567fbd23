"""Ctrl-C while an answer is made."""

import signal

import pytest

from ksi_client.chat.interrupts import TOGETHER_S, Interrupts
from ksi_common.errors import Cancelled, Unavailable
from ksi_daemon.testing import FakeClock


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_stops_and_the_second_leaves() -> None:
    clock = FakeClock()
    stops: list[str] = []
    with Interrupts(lambda: stops.append("stop"), clock=clock.monotonic) as interrupts:
        assert not interrupts.pressed
        press()
        assert (stops, interrupts.pressed) == (["stop"], True)
        clock.advance(TOGETHER_S)
        with pytest.raises(KeyboardInterrupt):
            press()
    assert stops == ["stop"]


def test_one_press_that_arrives_twice_counts_once() -> None:
    stops: list[str] = []
    with Interrupts(lambda: stops.append("stop"), clock=FakeClock().monotonic):
        press()
        press()
    assert stops == ["stop"]


def test_what_cannot_be_stopped_is_said_where_it_is_waited_for() -> None:
    def stop() -> None:
        raise Unavailable("KSI is not running", reason="daemon_not_running")

    with Interrupts(stop), pytest.raises(Cancelled, match="could not be stopped: KSI is not running"):
        press()


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    with Interrupts(lambda: None):
        pass
    with pytest.raises(KeyboardInterrupt):
        press()
