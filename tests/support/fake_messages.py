"""The Messages API, on loopback: it answers as the test has planned, and remembers what it was asked."""

import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from tests.support.fake_http import Exchange, Received, http_server

Answer = Callable[[Exchange], Awaitable[None]]

INPUT_TOKENS, CACHED_TOKENS, CREATED_TOKENS, OUTPUT_TOKENS = 11, 3, 2, 5
"""Of each answer."""


class FakeMessages:
    """``requests``: what it was asked; ``plan``: how it answers each; after that, ``says("Hello")``."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Received] = []
        self.plan: deque[Answer] = deque()

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request; anything but a message is not found."""
        if exchange.received.path != "/v1/messages":
            exchange.reply(404, error("not_found_error", exchange.received.path))
            return
        self.requests.append(exchange.received)
        await (self.plan.popleft() if self.plan else says("Hello"))(exchange)


@asynccontextmanager
async def fake_messages(*plan: Answer) -> AsyncIterator[FakeMessages]:
    """Run one."""
    api = FakeMessages()
    api.plan.extend(plan)
    async with http_server(api.serve) as api.url:
        yield api


def said(received: Received) -> list[tuple[str, list[str]]]:
    """List the texts of a request, by role."""
    texts = []
    for message in received.body["messages"]:
        content = message["content"]
        parts = (
            [content] if isinstance(content, str) else [part.get("text", part["type"]) for part in content]
        )
        texts.append((message["role"], parts))
    return texts


def error(kind: str, message: str) -> Mapping[str, Any]:
    """Give an error's body."""
    return {"type": "error", "error": {"type": kind, "message": message}}


def refuses(status: int, kind: str, message: str = "as planned", **headers: str) -> Answer:
    """Answer with an error."""

    async def answer(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.reply(status, error(kind, message), named)

    return answer


def says(*pieces: str, stop_reason: str = "end_turn") -> Answer:
    """Answer with text, in pieces."""

    async def answer(exchange: Exchange) -> None:
        if not exchange.received.body.get("stream"):
            content = [{"type": "text", "text": "".join(pieces)}]
            whole = _message(exchange) | {"content": content, "stop_reason": stop_reason}
            exchange.reply(200, whole | {"usage": _usage(OUTPUT_TOKENS)})
            return
        _begin(exchange)
        _block(
            exchange,
            {"type": "text", "text": ""},
            [{"type": "text_delta", "text": piece} for piece in pieces],
        )
        _end(exchange, stop_reason)

    return answer


def uses(tool: str, **arguments: Any) -> Answer:
    """Ask for a tool."""

    async def answer(exchange: Exchange) -> None:
        block = {"type": "tool_use", "id": f"toolu_{uuid4().hex}", "name": tool, "input": {}}
        _begin(exchange)
        _block(exchange, block, [{"type": "input_json_delta", "partial_json": json.dumps(arguments)}])
        _end(exchange, "tool_use")

    return answer


def begins(*pieces: str) -> Answer:
    """Begin to answer, and go on no more, until the client hangs up."""

    async def answer(exchange: Exchange) -> None:
        if pieces:
            _begin(exchange)
            _begin_block(exchange, {"type": "text", "text": ""})
            for piece in pieces:
                _event(
                    exchange, type="content_block_delta", index=0, delta={"type": "text_delta", "text": piece}
                )
        await exchange.gone.wait()

    return answer


def hangs() -> Answer:
    """Say nothing, until the client hangs up."""
    return begins()


def cuts(*pieces: str) -> Answer:
    """Begin to answer, and hang up."""

    async def answer(exchange: Exchange) -> None:
        _begin(exchange)
        _begin_block(exchange, {"type": "text", "text": ""})
        for piece in pieces:
            _event(exchange, type="content_block_delta", index=0, delta={"type": "text_delta", "text": piece})

    return answer


def _begin(exchange: Exchange) -> None:
    exchange.begin_stream()
    _event(exchange, type="message_start", message=_message(exchange))


def _message(exchange: Exchange) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid4().hex}",  # those of one id are one message to the CLI
        "type": "message",
        "role": "assistant",
        "model": exchange.received.body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(1),
    }


def _usage(output_tokens: int) -> Mapping[str, int]:
    return {
        "input_tokens": INPUT_TOKENS,
        "cache_read_input_tokens": CACHED_TOKENS,
        "cache_creation_input_tokens": CREATED_TOKENS,
        "output_tokens": output_tokens,
    }


def _block(exchange: Exchange, block: Mapping[str, Any], deltas: Sequence[Mapping[str, Any]]) -> None:
    _begin_block(exchange, block)
    for delta in deltas:
        _event(exchange, type="content_block_delta", index=0, delta=delta)
    _event(exchange, type="content_block_stop", index=0)


def _begin_block(exchange: Exchange, block: Mapping[str, Any]) -> None:
    _event(exchange, type="content_block_start", index=0, content_block=block)


def _end(exchange: Exchange, stop_reason: str) -> None:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    _event(exchange, type="message_delta", delta=delta, usage={"output_tokens": OUTPUT_TOKENS})
    _event(exchange, type="message_stop")
    exchange.end_stream()


def _event(exchange: Exchange, **fields: Any) -> None:
    exchange.event(fields, name=fields["type"])
