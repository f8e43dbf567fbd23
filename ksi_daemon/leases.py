"""Leases: one at a time may do a thing, and one who has lost the right without knowing cannot write.

The token is the fence. It grows by one with every acquisition of a name, for ever; who writes on the strength
of a lease checks it in the same unit of work, so that between check and write nothing fits.
"""

from typing import Final, Protocol

from ksi_common.clock import Clock
from ksi_common.errors import FailedPrecondition, InvalidArgument
from ksi_common.records import record
from ksi_daemon.database import Database, Transaction

_FIND: Final = "SELECT owner, token, expires FROM leases WHERE name = ?"
_TAKE: Final = "REPLACE INTO leases (name, owner, token, expires) VALUES (?, ?, ?, ?)"
_TAKE_FREE: Final = (
    "UPDATE leases SET owner = ?2, token = token + 1, expires = ?3 "
    "WHERE name = ?1 AND (owner IS NULL OR owner = ?2) RETURNING token"
)
"""The usual case in one statement: nobody has it, or the owner itself."""
_RENEW: Final = "UPDATE leases SET expires = ? WHERE name = ?"
_REVOKE: Final = "UPDATE leases SET owner = NULL WHERE name = ? AND owner IS NOT NULL"
_RELEASE: Final = "UPDATE leases SET owner = NULL WHERE name = ? AND token = ? AND owner IS NOT NULL"


@record
class Lease:
    """The right of ``owner`` to what ``name`` stands for, until another takes it after ``expires_us``."""

    name: str
    owner: str
    token: int
    expires_us: int


@record
class LeaseStatistics:
    """Figures since the start."""

    acquired: int
    taken_over: int
    """Of these, from an owner that let it expire."""
    released: int


class LeaseHeld(FailedPrecondition):
    """Another holds the lease; ``retry_after_s`` says when it expires."""

    retryable_by_default = True


class LeaseLost(FailedPrecondition):
    """The lease has been released, or taken over by another."""


class Leases(Protocol):
    """Hold the right to a thing for a time.

    Time is the wall clock's, for a lease survives restarts: a jump forward may end it early, which the token
    makes harmless. A lease that has expired stays good until another takes it.
    """

    async def acquire(self, name: str, owner: str, ttl_s: float) -> Lease:
        """Take the lease in a commit of its own; raise LeaseHeld where another has it.

        The owner who has it already gets a new token: its earlier lease is lost.
        """
        ...

    def acquire_in(self, tx: Transaction, name: str, owner: str, ttl_s: float) -> Lease:
        """Take the lease in a unit of work."""
        ...

    async def renew(self, lease: Lease, ttl_s: float) -> Lease:
        """Hold on to it for ``ttl_s`` seconds from now, same token; raise LeaseLost."""
        ...

    async def release(self, lease: Lease) -> bool:
        """Give it back; False where it was lost already. May be called twice."""
        ...

    def release_in(self, tx: Transaction, lease: Lease) -> bool:
        """Give it back in a unit of work."""
        ...

    def revoke_in(self, tx: Transaction, name: str) -> bool:
        """Take a lease from its owner, for who knows that this one is gone; False where nobody had it."""
        ...

    def check_in(self, tx: Transaction, lease: Lease) -> None:
        """Raise LeaseLost within the unit, so that it does not commit, unless the token is the last one."""
        ...


class DatabaseLeases:
    """The leases of one daemon, as rows."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._acquired = self._taken_over = self._released = 0

    @property
    def statistics(self) -> LeaseStatistics:
        """Give figures since the start."""
        return LeaseStatistics(self._acquired, self._taken_over, self._released)

    async def acquire(self, name: str, owner: str, ttl_s: float) -> Lease:
        """Take the lease in a commit of its own."""
        return await self._database.write_apart(lambda tx: self.acquire_in(tx, name, owner, ttl_s))

    def acquire_in(self, tx: Transaction, name: str, owner: str, ttl_s: float) -> Lease:
        """Take the lease in a unit of work."""
        now = self._clock.time_us()
        free = tx.execute(_TAKE_FREE, (name, owner, _expiry(now, ttl_s))).fetchone()
        if free is not None:
            tx.on_commit(lambda: self._count_acquired(taken_over=False))
            return Lease(name, owner, free[0], _expiry(now, ttl_s))
        holder, token, expires = tx.execute(_FIND, (name,)).fetchone() or (None, 0, 0)
        if holder is not None and expires > now:
            raise LeaseHeld(
                f"lease {name!r} is held by {holder!r}",
                reason="lease_held",
                holder=holder,
                retry_after_s=(expires - now) / 1e6,
            )
        lease = Lease(name, owner, token + 1, _expiry(now, ttl_s))
        tx.execute(_TAKE, (lease.name, lease.owner, lease.token, lease.expires_us))
        tx.on_commit(lambda: self._count_acquired(taken_over=holder is not None))
        return lease

    async def renew(self, lease: Lease, ttl_s: float) -> Lease:
        """Hold on to it for ``ttl_s`` seconds from now."""
        return await self._database.write_apart(lambda tx: self._renew(tx, lease, ttl_s))

    async def release(self, lease: Lease) -> bool:
        """Give it back."""
        return await self._database.write_apart(lambda tx: self.release_in(tx, lease))

    def release_in(self, tx: Transaction, lease: Lease) -> bool:
        """Give it back in a unit of work."""
        released = tx.execute(_RELEASE, (lease.name, lease.token)).rowcount > 0
        if released:
            tx.on_commit(self._count_released)
        return released

    def revoke_in(self, tx: Transaction, name: str) -> bool:
        """Take a lease from its owner, in a unit of work."""
        return tx.execute(_REVOKE, (name,)).rowcount > 0

    def check_in(self, tx: Transaction, lease: Lease) -> None:
        """Raise LeaseLost unless the token is the last one."""
        holder, token, _ = tx.execute(_FIND, (lease.name,)).fetchone() or (None, 0, 0)
        if holder is None or token != lease.token:
            raise LeaseLost(
                f"lease {lease.name!r} is not with {lease.owner!r} any more",
                reason="lease_lost",
                holder=holder,
                token=lease.token,
                current=token,
            )

    def _renew(self, tx: Transaction, lease: Lease, ttl_s: float) -> Lease:
        self.check_in(tx, lease)
        expires = _expiry(self._clock.time_us(), ttl_s)
        tx.execute(_RENEW, (expires, lease.name))
        return Lease(lease.name, lease.owner, lease.token, expires)

    def _count_acquired(self, *, taken_over: bool) -> None:
        self._acquired += 1
        self._taken_over += taken_over

    def _count_released(self) -> None:
        self._released += 1


def _expiry(now_us: int, ttl_s: float) -> int:
    if not ttl_s > 0:
        raise InvalidArgument(f"a lease of {ttl_s} s would never be held", reason="out_of_range")
    return now_us + round(ttl_s * 1e6)
