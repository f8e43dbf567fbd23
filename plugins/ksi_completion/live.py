"""Completions that are open now, as those see them who follow: steps in order, what was said so far first."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from ksi_common.events.completion import Step

FINAL: Final = frozenset(("result", "failed", "cancelled"))
PIECE: Final = 256 * 1024
"""Characters of one delta: six bytes each at worst, and a frame has 2 MiB."""


class Live:
    """One open completion: its last steps, and who follows them. Nothing is made for nobody."""

    def __init__(self, accepted: Mapping[str, Any]) -> None:
        self._accepted = {"type": "accepted", **accepted}
        self._started: Mapping[str, Any] | None = None
        self._text: list[str] = []
        self._followers: set[_Follower] = set()

    def started(self, fields: Mapping[str, Any]) -> None:
        """Tell that an attempt began: what the one before it said is void."""
        self._started = {"type": "started", **fields}
        self._text.clear()
        self._put(self._started)

    def said(self, text: str) -> None:
        """Tell a piece of the answer."""
        self._text.append(text)
        if self._followers:
            self._say(text, self._followers)

    def tell(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Tell anything else."""
        if self._followers:
            self._put({"type": kind, **fields})

    def end(self, last: Step | Exception) -> None:
        """Tell the last step; or raise to those who follow where there will be none."""
        for follower in self._followers:
            follower.put(last)

    async def follow(self, held: Step | None = None) -> AsyncGenerator[Step, None]:
        """Give the steps from the beginning, what was said already as few deltas, to the last one.

        ``held``: what is to be told after what is known, where it waits for something now.
        """
        follower = _Follower()
        follower.put(Step.model_validate(self._accepted))
        if self._started is not None:
            follower.put(Step.model_validate(self._started))
            self._say("".join(self._text), (follower,))
        if held is not None:
            follower.put(held)
        self._followers.add(follower)
        try:
            while True:
                step = await follower.take()
                if isinstance(step, Exception):
                    raise step
                yield step
                if step.type in FINAL:
                    return
        finally:
            self._followers.discard(follower)

    def _put(self, fields: Mapping[str, Any]) -> None:
        if self._followers:
            step = Step.model_validate(fields)
            for follower in self._followers:
                follower.put(step)

    def _say(self, text: str, followers: "set[_Follower] | tuple[_Follower, ...]") -> None:
        about = self._started or self._accepted
        named = {name: about.get(name) for name in ("request_id", "session_id", "attempt")}
        for begin in range(0, len(text), PIECE):
            piece = text[begin : begin + PIECE]
            step = Step.model_validate({"type": "delta", "text": piece, **named})
            for follower in followers:
                follower.put(step)


class _Follower:
    """Steps that one follower has not taken yet. One that is slow gets its deltas joined."""

    def __init__(self) -> None:
        self._steps: deque[Step | Exception] = deque()
        self._arrived = asyncio.Event()

    def put(self, step: Step | Exception) -> None:
        last = self._steps[-1] if self._steps else None
        if isinstance(last, Step) and isinstance(step, Step) and _can_join(last, step):
            self._steps[-1] = step.model_copy(update={"text": (last.text or "") + (step.text or "")})
        else:
            self._steps.append(step)
        self._arrived.set()

    async def take(self) -> Step | Exception:
        while not self._steps:
            self._arrived.clear()
            await self._arrived.wait()
        return self._steps.popleft()


def _can_join(last: Step, step: Step) -> bool:
    return (
        last.type == step.type == "delta"
        and last.attempt == step.attempt
        and len(last.text or "") + len(step.text or "") <= PIECE
    )
