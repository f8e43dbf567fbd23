"""Which call decides whether a model that failed is asked again."""

from collections.abc import Callable
from typing import Any, cast

from ksi_completion.circuit_breakers import PROBE_S, Candidate, CircuitBreakers
from ksi_completion.providers.interface import ProviderFailure
from ksi_daemon.plugin import Database, Transaction
from ksi_daemon.testing import FakeClock

MODEL = Candidate("mock", "down")
FAILURE = ProviderFailure("no", reason="test")


class Nowhere:
    """A database that keeps nothing."""

    async def write(self, unit: Callable[[Transaction], Any]) -> None:
        """Do nothing."""


async def test_a_call_that_had_begun_before_does_not_decide_for_the_probe() -> None:
    clock = FakeClock()
    breakers = CircuitBreakers(cast("Database", Nowhere()), clock, failures=1, open_s=10)
    first, late, later, probe = object(), object(), object(), object()
    for call in (first, late, later):
        assert breakers.enter(MODEL, call) == 0
    await breakers.failed(MODEL, first, FAILURE)
    clock.advance(11)
    assert breakers.enter(MODEL, probe) == 0
    breakers.left(MODEL, late)
    await breakers.failed(MODEL, later, FAILURE)
    assert breakers.enter(MODEL, object()) == PROBE_S  # the probe is at work yet
    await breakers.failed(MODEL, probe, FAILURE)
    assert breakers.enter(MODEL, object()) == 20


async def test_a_clock_that_is_set_back_leaves_nobody_alone_for_longer() -> None:
    """No call passed before the clock was again where it had been."""
    clock = FakeClock()
    breakers = CircuitBreakers(cast("Database", Nowhere()), clock, failures=1, open_s=10)
    await breakers.failed(MODEL, object(), FAILURE)
    clock.jump(-3600)
    assert breakers.enter(MODEL, object()) == 10
    clock.advance(11)
    assert breakers.enter(MODEL, object()) == 0
