"""The clock of tests: nothing comes before it is moved there, and a fraction of a second is not lost."""

from ksi_daemon.testing import FakeClock


def test_an_alarm_rings_once_when_the_clock_is_there() -> None:
    clock, rung = FakeClock(), []
    clock.call_later(0.57, lambda: rung.append("a"))
    clock.advance(0.5)
    assert rung == []
    clock.advance(0.07)
    clock.advance(60)
    assert rung == ["a"]


def test_an_alarm_that_was_cancelled_does_not_ring() -> None:
    clock, rung = FakeClock(), []
    later = clock.call_later(2, lambda: rung.append("later"))
    clock.call_later(1, later.cancel)
    clock.advance(3)
    assert rung == []


def test_a_jump_of_the_wall_clock_rings_nothing() -> None:
    clock, rung = FakeClock(), []
    clock.call_later(1, lambda: rung.append("a"))
    clock.jump(3600)
    assert rung == []


def test_a_fraction_of_a_second_moves_the_wall_clock_by_all_of_it() -> None:
    clock = FakeClock(0)
    clock.advance(0.57)
    clock.jump(-0.29)
    assert clock.time_us() == 280_000
