"""Ask services for answers, by litellm.

    python -I litellm.py

A script of the standard library and litellm alone; `ksi_completion.workers` says what it speaks. Of an order
it also reads ``options``: ``model``, as litellm calls it; ``api_key_env`` or ``api_key_file``, where the key
is; ``api_base``, ``api_version``, ``timeout_s``; ``parameters``, more for litellm; ``input_usd_per_million``
and ``output_usd_per_million``. No try is made twice: that is the daemon's to do.
"""

import asyncio
import json
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

MAX_LINE_BYTES = 64 * 1024 * 1024
MILLION = 1_000_000
MAX_TOKENS = 2**53
"""Of a count; as many, or more, are none."""

NO_KEY = "none"
"""Said to services of one's own, which ask for none: the libraries insist on one."""

SETTINGS = {
    # Before it is imported: else it asks the network for prices, and reads .env of wherever it is.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "CRITICAL",
}

Order = Mapping[str, Any]


class Failed(Exception):
    """An order that comes to nothing; ``report``: what is said of it."""

    def __init__(self, reason: str, message: str, **report: Any) -> None:
        super().__init__(message)
        self.report = {"report": "failed", "reason": reason, "message": message, **report}


class Desk:
    """Takes orders, one task each, and reports."""

    def __init__(self, litellm: Any, reports: BinaryIO, group: asyncio.TaskGroup) -> None:
        self._litellm = litellm
        self._group = group
        self._reports = reports
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lock = threading.Lock()

    def take(self, order: Order) -> None:
        """Begin an order, or end one."""
        ident = order["id"]
        if order["do"] == "cancel":
            if task := self._tasks.get(ident):
                task.cancel()
            return
        task = self._tasks[ident] = self._group.create_task(self._serve(ident, order))
        task.add_done_callback(lambda task: self._note_end(ident, task))

    def report(self, report: Mapping[str, Any]) -> None:
        """Say a line."""
        # What is no text, as half a surrogate pair, becomes "?": the daemon takes such a line for garbage.
        line = json.dumps(report, ensure_ascii=False).encode(errors="replace") + b"\n"
        with self._lock:
            self._reports.write(line)
            self._reports.flush()

    async def _serve(self, ident: str, order: Order) -> None:
        secret: str | None = None
        try:
            secret = key(order["options"])
            end = await self._complete(ident, order, secret)
        except asyncio.CancelledError:
            end = {"report": "stopped"}
        except Failed as failed:
            end = failed.report
        except Exception as error:
            end = failure(error, secret)
        self.report({**end, "id": ident})

    def _note_end(self, ident: str, task: asyncio.Task[None]) -> None:
        del self._tasks[ident]
        if task.cancelled():  # before it began: it has run nothing at all
            self.report({"report": "stopped", "id": ident})

    async def _complete(self, ident: str, order: Order, secret: str | None) -> dict[str, Any]:
        stream = await self._litellm.acompletion(**request(order, secret))
        text: list[str] = []
        chunks: list[Any] = []
        try:
            async for chunk in stream:
                chunks.append(chunk)
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if piece:
                    text.append(piece)
                    self.report({"report": "delta", "id": ident, "text": piece})
        finally:
            # Also when it is cancelled: the service must hear of it before "stopped" is said.
            with suppress(Exception):
                await stream.aclose()
        if stream.received_finish_reason is None and stream.intermittent_finish_reason is None:
            # litellm itself would call this "stop".
            raise Failed("stream_cut", "the answer ended without its end", kind="transient")
        return done(self._litellm, order, "".join(text), chunks)


def request(order: Order, secret: str | None) -> dict[str, Any]:
    """Give litellm's parameters. ``secret``: the key, where there is one."""
    options = order["options"]
    messages = [*order["messages"]]
    if order["system"] is not None:
        messages.insert(0, {"role": "system", "content": order["system"]})
    wanted = {
        "api_base": options["api_base"],
        "api_version": options["api_version"],
        "max_tokens": order["max_tokens"],
        "tools": order["tools"] or None,
        "response_format": response_format(order["response_schema"]),
    }
    return {
        **options["parameters"],
        **{name: value for name, value in wanted.items() if value is not None},
        "model": options["model"],
        "messages": messages,
        "api_key": secret,
        "timeout": options["timeout_s"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_retries": 0,
        "num_retries": 0,
        # Else it imports, where there are tools, a library for MCP that it does not bring.
        "_skip_mcp_handler": True,
    }


def key(options: Mapping[str, Any]) -> str | None:
    """Read the key from where the settings say. Raises Failed."""
    try:
        if path := options["api_key_file"]:
            return Path(path).read_text(encoding="utf-8").strip()
        if name := options["api_key_env"]:
            return os.environ[name]
    except KeyError:
        message = f"there is no key: {options['api_key_env']} is not set in the daemon's environment"
        raise Failed("no_key", message, kind="auth") from None
    except OSError as error:
        message = f"there is no key: cannot read {options['api_key_file']}: {error.strerror}"
        raise Failed("no_key", message, kind="auth") from None
    return NO_KEY if options["api_base"] else None


def response_format(schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give a schema as the OpenAI API has it."""
    if schema is None:
        return None
    named = {"name": str(schema.get("title", "answer")), "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": named}


def done(litellm: Any, order: Order, text: str, chunks: Sequence[Any]) -> dict[str, Any]:
    """Give the report of an answer."""
    whole = litellm.stream_chunk_builder(chunks, messages=order["messages"])
    choice, usage = whole.choices[0], getattr(whole, "usage", None)
    calls = [call.model_dump() for call in getattr(choice.message, "tool_calls", None) or ()]
    return {
        "report": "done",
        "text": text,
        "finish_reason": choice.finish_reason or "stop",
        "model": whole.model or order["options"]["model"],
        "usage": counts(usage) | {"cost_usd": cost(litellm, order["options"], whole)},
        "tool_calls": calls,
    }


def counts(usage: Any) -> dict[str, Any]:
    """Give the tokens of a call."""
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "completion_tokens": _count(usage, "completion_tokens"),
        "cached_tokens": _count(details, "cached_tokens"),
        "cache_creation_tokens": _count(details, "cache_creation_tokens"),
    }


def _count(usage: Any, name: str) -> int:
    """Give a number of tokens; 0 for what none can be, which the daemon does not take."""
    said = getattr(usage, name, 0)
    return said if isinstance(said, int) and 0 <= said < MAX_TOKENS else 0


def cost(litellm: Any, options: Mapping[str, Any], whole: Any) -> float | None:
    """Give the price of a call by the settings, or by litellm's list; None where neither knows."""
    prices = [options["input_usd_per_million"], options["output_usd_per_million"]]
    if any(price is not None for price in prices):
        counted = counts(getattr(whole, "usage", None))
        tokens = [counted["prompt_tokens"], counted["completion_tokens"]]
        total = sum(count * (price or 0.0) for count, price in zip(tokens, prices, strict=True))
        return float(total / MILLION)
    with suppress(Exception):  # it raises many things for what it does not know
        price = float(litellm.completion_cost(completion_response=whole, model=options["model"]))
        return price if math.isfinite(price) and price >= 0 else None
    return None


def failure(error: Exception, secret: str | None = None) -> dict[str, Any]:
    """Give the report of a failed call. What it means is judged by the status, not by litellm's classes.

    ``secret``: what services quote where they do not accept it, and nobody is to read.
    """
    status = getattr(error, "status_code", None)
    name = type(error).__name__
    message = str(getattr(error, "message", None) or error)
    if secret and secret != NO_KEY:  # before it is cut: else a part of it might stay
        message = message.replace(secret, "(the key)")
    report = {
        "report": "failed",
        "status": status if isinstance(status, int) else None,
        "message": f"{name}: {message}"[:1000],
        "retry_after_s": retry_after_s(error),
    }
    if "ContextWindowExceeded" in name:
        return report | {"kind": "invalid", "reason": "context_exceeded"}
    if "ContentPolicyViolation" in name:
        return report | {"kind": "invalid", "reason": "content_policy"}
    if "MidStreamFallback" in name:
        return report | {"kind": "transient", "reason": "stream_cut"}
    if not isinstance(status, int):
        return report | {"kind": "invalid", "reason": "bad_request"}
    return report


def retry_after_s(error: Exception) -> float | None:
    """Read what the service says of coming back: seconds, or a date."""
    headers = getattr(error, "litellm_response_headers", None) or {}
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        seconds = float(said)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def read_orders(loop: asyncio.AbstractEventLoop, desk: Desk) -> None:
    """Pass on orders until there are no more, and end the process."""
    while line := sys.stdin.buffer.readline(MAX_LINE_BYTES):
        loop.call_soon_threadsafe(desk.take, json.loads(line))
    # Calls may be under way whose answers nobody will read.
    os._exit(0)


async def main() -> None:
    """Serve until stdin ends."""
    with claim_stdout() as reports:
        os.environ.update(SETTINGS)
        try:
            litellm: Any = import_module("litellm")
        except ImportError as error:
            message = f"cannot import litellm: {error}"
            failed = {"report": "failed", "id": None, "kind": "not_deployed", "reason": "not_started"}
            reports.write(json.dumps(failed | {"message": message}).encode() + b"\n")
            sys.exit(1)
        litellm.suppress_debug_info = True
        litellm.telemetry = False
        warm_up()
        async with asyncio.TaskGroup() as group:
            desk = Desk(litellm, reports, group)
            desk.report({"report": "ready"})
            loop = asyncio.get_running_loop()
            threading.Thread(target=read_orders, args=[loop, desk], daemon=True).start()
            await loop.create_future()


def warm_up() -> None:
    """Import what the first call would: it holds the loop for a second, and a cancel must not wait for it."""
    with suppress(Exception):  # the first call says what is wrong
        _ = import_module("openai").AsyncOpenAI(api_key=NO_KEY).chat.completions


def claim_stdout() -> BinaryIO:
    """Give stdout, and let what else is printed go to stderr."""
    reports = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return reports


if __name__ == "__main__":
    # A script is first on the path by its folder, and is itself called litellm; -I leaves that folder out.
    asyncio.run(main())
