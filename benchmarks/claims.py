"""What the spine must show: a case, the case it is held against, and the ratio at least."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """Name one thing that is measured: who answers, and how many ask how much at once."""

    subject: str
    shape: str

    def __str__(self) -> str:
        return f"{self.subject} {self.shape}"


@dataclass(frozen=True, slots=True)
class Claim:
    """Hold the rate of a case against that of another; `at_least` is None where it only informs."""

    title: str
    case: Case
    against: Case
    at_least: float | None
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """Hold a measured value of the daemon against a fixed one."""

    title: str
    bound: float
    aim: float
    unit: str
    at_least: bool = False  # otherwise at most

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


# Connections x in flight on each of them.
SHAPES = {"1x1": (1, 1), "1x64": (1, 64), "16x16": (16, 16), "64x1": (64, 1)}
FANOUTS = {"to 100": 100, "to 1000": 1000}

REQUESTS = ("echo", "nats", "nats_inbox", "health", "publish", "set", "get")
STORES = ("floor", "jetstream", "valkey", "valkey_raw")
TITLES = {
    "echo": "raw uvloop echo",
    "nats": "NATS core request/reply",
    "nats_inbox": "NATS core, one inbox callback",
    "floor": "durable floor: SQLite, nothing else",
    "jetstream": "JetStream, sync always",
    "valkey": "Valkey XADD, fsync always",
    "valkey_raw": "the same, raw RESP client",
    "health": "KSI `system:health`",
    "publish": "KSI `event:publish`, 200 B",
    "set": "KSI `state:set`",
    "get": "KSI `state:get`",
    "ksi_fanout": "KSI ephemeral fan-out",
    "nats_fanout": "NATS core fan-out",
}

CASES = (
    *(Case(subject, shape) for shape in ("1x1", "1x64", "16x16") for subject in REQUESTS),
    *(Case(subject, shape) for shape in ("1x1", "1x64") for subject in STORES),
    *(Case(subject, "64x1") for subject in ("echo", "health")),
    *(Case(subject, shape) for shape in FANOUTS for subject in ("ksi_fanout", "nats_fanout")),
)


def _claim(title: str, shape: str, pair: tuple[str, str], *bounds: float) -> Claim:
    return Claim(title, Case(pair[0], shape), Case(pair[1], shape), *(bounds or (None,)))


CLAIMS = (
    _claim("`system:health`, 1 in flight, one core: of the raw echo", "1x1", ("health", "echo"), 0.45, 0.60),
    _claim("`system:health`, 64 clients: of the raw echo", "64x1", ("health", "echo"), 0.35, 0.50),
    _claim("`system:health`, 64 in flight: NATS core", "1x64", ("health", "nats"), 2.0, 3.5),
    _claim("durable request, 64 in flight: NATS core", "1x64", ("publish", "nats"), 1.1, 1.7),
    _claim("durable request, 64 in flight: JetStream always", "1x64", ("publish", "jetstream"), 9.0, 14.0),
    _claim("durable request, 64 in flight: Valkey always", "1x64", ("publish", "valkey"), 1.8, 3.0),
    _claim("durable request, 1 in flight: Valkey always", "1x1", ("publish", "valkey"), 1.0, 1.15),
    _claim("`state:set`, 64 in flight: of a durable request", "1x64", ("set", "publish"), 0.5),
    _claim("`state:get`, 64 in flight: of `system:health`", "1x64", ("get", "health"), 0.5),
    _claim("`state:set`, 1 in flight: of a durable request", "1x1", ("set", "publish"), 0.5),
    _claim("`state:get`, 1 in flight: of `system:health`", "1x1", ("get", "health"), 0.5),
    _claim("fan-out to 100 in bursts: NATS core", "to 100", ("ksi_fanout", "nats_fanout"), 2.0, 4.0),
    _claim("fan-out to 1,000 in bursts: NATS core", "to 1000", ("ksi_fanout", "nats_fanout"), 5.0, 14.0),
    _claim("`system:health`, 64 in flight: NATS by callback", "1x64", ("health", "nats_inbox")),
    _claim("durable request, 64 in flight: NATS by callback", "1x64", ("publish", "nats_inbox")),
    _claim("durable request, 64 in flight: of the durable floor", "1x64", ("publish", "floor")),
    _claim("durable request, 1 in flight: of the durable floor", "1x1", ("publish", "floor")),
    _claim("the durable floor, 64 in flight: NATS core", "1x64", ("floor", "nats")),
    _claim("the durable floor, 64 in flight: JetStream always", "1x64", ("floor", "jetstream")),
    _claim("the durable floor, 64 in flight: Valkey always", "1x64", ("floor", "valkey")),
    _claim("the durable floor, 1 in flight: Valkey always", "1x1", ("floor", "valkey")),
    _claim("durable request, 64 in flight: Valkey, raw client", "1x64", ("publish", "valkey_raw")),
    _claim("durable request, 1 in flight: Valkey, raw client", "1x1", ("publish", "valkey_raw")),
)

FIRST_ANSWER = Bound("process start to first answer", 0.5, 0.25, "s")
IDLE = Bound("idle daemon", 60, 45, "MB")
CATCH_UP = Bound("catch-up of a subscriber", 100_000, 300_000, "events/s", at_least=True)
GROWTH = Bound("growth over the second half of 1,000,000 requests", 1.0, 0.2, "MB")
BOUNDS = (FIRST_ANSWER, IDLE, CATCH_UP, GROWTH)
