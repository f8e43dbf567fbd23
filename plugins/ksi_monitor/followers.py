"""Who follows by monitor:subscribe, so that monitor:unsubscribe can end it."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Follower:
    """One subscription of a connection."""

    connection: object
    agent_id: str | None
    subscription_id: str | None
    limit: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Of the work; set to now, it ends it."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Followers:
    """The subscriptions that can be ended, by connection."""

    def __init__(self) -> None:
        self._followers: dict[object, set[Follower]] = {}

    async def run(self, follower: Follower, work: Awaitable[None]) -> None:
        """Do the work of a subscription until it is ended."""
        self._followers.setdefault(follower.connection, set()).add(follower)
        try:
            async with follower.limit:
                await work
        except TimeoutError:
            if not follower.limit.expired():
                raise
        finally:
            self._forget(follower)
            follower.ended.set()

    async def end(
        self, connection: object, *, agent_id: str | None = None, subscription_id: str | None = None
    ) -> int:
        """End those of a connection that are meant; give how many, when they have ended. None: any."""
        meant = [
            follower
            for follower in self._followers.get(connection, ())
            if agent_id in {None, follower.agent_id} and subscription_id in {None, follower.subscription_id}
        ]
        now = asyncio.get_running_loop().time()
        for follower in meant:
            self._forget(follower)
            follower.limit.reschedule(now)
        for follower in meant:
            await follower.ended.wait()
        return len(meant)

    def _forget(self, follower: Follower) -> None:
        others = self._followers.get(follower.connection, set())
        others.discard(follower)
        if not others:
            self._followers.pop(follower.connection, None)
