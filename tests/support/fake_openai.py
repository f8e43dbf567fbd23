"""The Chat Completions API, on loopback: it answers as a test has planned, and remembers what was asked."""

import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tests.support.fake_http import Exchange, Received, http_server

Answer = Callable[[Exchange], Awaitable[None]]

PROMPT_TOKENS, CACHED_TOKENS, ANSWER_TOKENS = 11, 3, 5
"""Of each answer."""


class FakeOpenAI:
    """``requests``: what it was asked; ``plan``: how it answers each; after that, ``says("Hello")``."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Received] = []
        self.plan: deque[Answer] = deque()

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request; anything but a completion is not found."""
        if exchange.received.path != "/v1/chat/completions":
            exchange.reply(404, error("not_found", exchange.received.path))
            return
        self.requests.append(exchange.received)
        await (self.plan.popleft() if self.plan else says("Hello"))(exchange)


@asynccontextmanager
async def fake_openai(*plan: Answer) -> AsyncIterator[FakeOpenAI]:
    """Run one; its URL is what ``api_base`` is, without /v1."""
    api = FakeOpenAI()
    api.plan.extend(plan)
    async with http_server(api.serve) as api.url:
        yield api


def error(code: str, message: str) -> Mapping[str, Any]:
    """Give an error's body."""
    return {"error": {"message": message, "type": code, "code": code}}


def refuses(status: int, code: str = "as_planned", message: str = "as planned", **headers: str) -> Answer:
    """Answer with an error."""

    async def answer(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.reply(status, error(code, message), named)

    return answer


def garbles() -> Answer:
    """Answer with what is no JSON."""

    async def answer(exchange: Exchange) -> None:
        exchange.reply(200, "<html>a proxy's page</html>", {"content-type": "text/html"})

    return answer


def says(*pieces: str, finish_reason: str | None = "stop") -> Answer:
    """Answer with text, in pieces; without ``finish_reason`` the stream ends, and the answer does not."""

    async def answer(exchange: Exchange) -> None:
        exchange.begin_stream()
        for piece in pieces:
            _chunk(exchange, {"content": piece})
        if finish_reason is not None:
            _end(exchange, finish_reason)
        exchange.event("[DONE]")
        exchange.end_stream()

    return answer


def uses(tool: str, **arguments: Any) -> Answer:
    """Ask for a tool of the caller's."""

    async def answer(exchange: Exchange) -> None:
        exchange.begin_stream()
        function = {"name": tool, "arguments": json.dumps(arguments)}
        _chunk(
            exchange, {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
        )
        _end(exchange, "tool_calls")
        exchange.event("[DONE]")
        exchange.end_stream()

    return answer


def begins(*pieces: str) -> Answer:
    """Begin to answer, and go on no more, until the client hangs up."""

    async def answer(exchange: Exchange) -> None:
        if pieces:
            exchange.begin_stream()
        for piece in pieces:
            _chunk(exchange, {"content": piece})
        await exchange.gone.wait()

    return answer


def cuts(*pieces: str) -> Answer:
    """Begin to answer, and hang up."""

    async def answer(exchange: Exchange) -> None:
        exchange.begin_stream()
        for piece in pieces:
            _chunk(exchange, {"content": piece})

    return answer


def _end(exchange: Exchange, finish_reason: str) -> None:
    _chunk(exchange, {}, finish_reason=finish_reason)
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": ANSWER_TOKENS,
        "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS,
        "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
    }
    exchange.event({**_head(exchange), "choices": [], "usage": usage})


def _chunk(exchange: Exchange, delta: Mapping[str, Any], *, finish_reason: str | None = None) -> None:
    choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": finish_reason}
    exchange.event({**_head(exchange), "choices": [choice]})


def _head(exchange: Exchange) -> Mapping[str, Any]:
    model = exchange.received.body["model"]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_800_000_000, "model": model}
