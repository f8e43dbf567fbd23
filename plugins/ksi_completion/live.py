"""Completions that are open now, as those see them who follow: steps in order, what was said so far first."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from ksi_common.events.completion import Step

FINAL: Final = frozenset(("result", "failed", "cancelled"))


class Live:
    """One open completion: its last steps, and who follows them."""

    def __init__(self, accepted: Step) -> None:
        self._accepted = accepted
        self._started: Step | None = None
        self._text: list[str] = []
        self._followers: set[_Follower] = set()

    def step(self, step: Step) -> None:
        """Tell the followers."""
        if step.type == "started":
            self._started = step
            self._text.clear()
        elif step.type == "delta":
            self._text.append(step.text or "")
        for follower in self._followers:
            follower.put(step)

    async def follow(self) -> AsyncGenerator[Step, None]:
        """Give the steps from the beginning, what was said already as one delta, to the last one."""
        follower = _Follower(self._so_far())
        self._followers.add(follower)
        try:
            while True:
                step = await follower.take()
                yield step
                if step.type in FINAL:
                    return
        finally:
            self._followers.discard(follower)

    def _so_far(self) -> list[Step]:
        steps = [self._accepted]
        if self._started is not None:
            steps.append(self._started)
            if self._text:
                steps.append(self._started.model_copy(update={"type": "delta", "text": "".join(self._text)}))
        return steps


class _Follower:
    """Steps that one follower has not taken yet. One that is slow gets its deltas joined."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = deque(steps)
        self._arrived = asyncio.Event()
        self._arrived.set()

    def put(self, step: Step) -> None:
        last = self._steps[-1] if self._steps else None
        if last is not None and last.type == step.type == "delta" and last.attempt == step.attempt:
            self._steps[-1] = step.model_copy(update={"text": (last.text or "") + (step.text or "")})
        else:
            self._steps.append(step)
        self._arrived.set()

    async def take(self) -> Step:
        while not self._steps:
            self._arrived.clear()
            await self._arrived.wait()
        return self._steps.popleft()
