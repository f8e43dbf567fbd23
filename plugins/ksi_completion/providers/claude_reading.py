"""What the Claude CLI says in its mode stream-json, and what its ends mean.

Its exit code and its ``subtype`` say little: a failure may be a "success" and the other way round. So the
last line, type ``result``, is read first: ``is_error``, then ``api_error_status`` and ``terminal_reason``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ksi_common.events.completion import Usage
from ksi_completion.providers.command import Ended
from ksi_completion.providers.interface import Answer, FailureClass, ProviderFailure
from ksi_completion.providers.statuses import classified

SYNTHETIC: Final = "<synthetic>"
"""The model of messages that the CLI writes itself, to say that something failed."""

LOGIN: Final = (
    "the Claude CLI has no key: set ANTHROPIC_API_KEY where KSI starts, or api_key_file of "
    "[plugins.completion.providers.claude-cli]"
)

_FINISH: Final = {"end_turn": "stop", "stop_sequence": "stop", "tool_use": "stop", "max_tokens": "length"}

_LOST: Final = re.compile(r"No (?:conversation found with session ID|message found with message\.uuid)")

_WORDS: Final[Sequence[tuple[str, FailureClass, str]]] = (
    (r"[Cc]redit balance is too low", "auth", "billing"),
    (r"prompt_too_long|[Pp]rompt is too long", "invalid", "context_exceeded"),
    (r"max_output_tokens|output token maximum", "invalid", "max_tokens"),
    (r"error_max_turns", "invalid", "max_turns"),
    (r"error_max_budget_usd|budget_exhausted", "invalid", "budget_exhausted"),
    (r"image_error", "invalid", "too_large"),
)
"""What says more than a status."""

_WITHOUT_STATUS: Final[Sequence[tuple[str, FailureClass, str]]] = (
    (r"Not logged in|run /login|Invalid API key|authentication_failed", "auth", "unauthenticated"),
    (r"billing_error", "auth", "billing"),
    (r"Request timed out", "transient", "timed_out"),
    (r"aborted_", "transient", "interrupted"),
    (r"", "transient", "api_error"),
)


class ClaudeReading:
    """One run. ``max_tokens``: where the caller set it, a cut at it is an answer, and no failure."""

    def __init__(self, *, max_tokens: int | None = None, servers: Sequence[str] = ()) -> None:
        self._max_tokens = max_tokens
        self._servers = servers
        self._result: Mapping[str, Any] | None = None
        self._texts: list[str] = []
        self._block = ""
        """What was streamed of the block that is not whole yet."""
        self._gap = ""
        self._model = ""
        self._at: str | None = None
        self._error = ""
        self._has_acted = False
        """A tool was used: what is done again from the beginning does that again, too."""
        self._finish: str | None = None
        self._session: str | None = None
        self._spent: list[dict[str, Any]] = []
        """What each message has used, as it was streamed."""

    @property
    def is_whole(self) -> bool:
        """The result was said."""
        return self._result is not None

    @property
    def is_enough(self) -> bool:
        """The answer is as long as was asked; the CLI would go on with it."""
        return self._max_tokens is not None and self._finish == "max_tokens"

    @property
    def usage(self) -> Usage | None:
        """What this run has used: not the session's sum, which ``total_cost_usd`` and ``modelUsage`` are."""
        return None if self._result is None else _usage(self._result)

    def take(self, line: Mapping[str, Any]) -> str:
        """Hear a line; give the text that it adds. Raises ProviderFailure where there will be no answer."""
        if line.get("parent_tool_use_id") is not None:
            return ""  # an agent of its own that the CLI has started; its result comes as a tool's
        match line.get("type"):
            case "stream_event" if not self.is_enough:
                return self._stream(line.get("event") or {})
            case "assistant" if not (line.get("aborted") or self.is_enough):
                return self._assistant(line)
            case "user" if _has_tool_result(line) and not self.is_enough:
                self._at = _name(line, "uuid") or self._at
            case "system":
                self._system(line)
            case "result":
                self._result = line
                return self._rest(line)
        return ""

    def conclude(self, how: Ended) -> Answer:
        """Give the answer. Raises ProviderFailure."""
        result = self._result or (self._as_streamed if self.is_enough else None)
        if result is None:
            raise _unsaid(how)
        if result.get("is_error") and not self.is_enough:
            raise self._failure(result)
        text = "".join(self._texts)
        said = self._finish or str(result.get("stop_reason") or "stop")
        finish, usage = _FINISH.get(said, said), _usage(result) or Usage()
        response = {
            "result": text,
            "model": self._model,
            "finish_reason": finish,
            "usage": usage.model_dump(exclude_none=True),
            "provider_usage": result.get("usage"),
        }
        return Answer(
            text=text,
            model=self._model,
            finish_reason=finish,
            usage=usage,
            response={**result, **response},
            provider_session=_name(result, "session_id"),
            resume_at=self._at,
            structured=result.get("structured_output"),
        )

    @property
    def _as_streamed(self) -> Mapping[str, Any]:
        """The result of a run that was interrupted, and ended before it could say one."""
        usage = {name: sum(used.get(name) or 0 for used in self._spent) for name in _SPENT}
        return {"session_id": self._session, "usage": usage}

    def _stream(self, event: Mapping[str, Any]) -> str:
        match event:
            case {"type": "message_start"} if self._block:
                # It asks again by itself; what was told of the first answer cannot be taken back.
                raise ProviderFailure("the answer was cut in the middle", reason="stream_cut")
            case {"type": "message_start", "message": {"usage": dict(used)}}:
                self._spent.append(used)
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": str(text)}}:
                before, self._gap = ("", self._gap) if self._block else (self._gap, "")
                self._block += text
                return before + text
            case {"type": "message_delta", "delta": {"stop_reason": str(reason)}}:
                self._finish = reason
                if self._spent:
                    self._spent[-1] |= event.get("usage") or {}
                self._gap = "" if reason == "max_tokens" else self._gap
        return ""

    def _assistant(self, line: Mapping[str, Any]) -> str:
        message = line.get("message") or {}
        if message.get("model") == SYNTHETIC:
            self._error = str(line.get("error") or "")
            return ""
        self._model = message.get("model") or self._model
        self._at = _name(line, "uuid") or self._at
        content = message.get("content") or ()
        self._has_acted = self._has_acted or any(block.get("type") == "tool_use" for block in content)
        blocks = [block for block in content if block.get("type") == "text"]
        return "".join(self._finish_block(str(block.get("text") or "")) for block in blocks)

    def _finish_block(self, text: str) -> str:
        """Take a whole block; give what was not streamed of it."""
        if self._block and not text.startswith(self._block):
            raise ProviderFailure("the answer was cut in the middle", reason="stream_cut")
        before, rest = ("", text[len(self._block) :]) if self._block else (self._gap, text)
        self._texts.append((self._break if self._texts else "") + text)
        self._block, self._gap = "", "\n\n"
        return before + rest if rest else ""

    def _rest(self, result: Mapping[str, Any]) -> str:
        """Give the answer where no message had it: what a schema asked for comes as a tool's input."""
        if self._texts or result.get("is_error"):
            return ""
        self._texts.append(str(result.get("result") or ""))
        return self._texts[0]

    @property
    def _break(self) -> str:
        return "" if self._finish == "max_tokens" else "\n\n"

    def _system(self, line: Mapping[str, Any]) -> None:
        match line:
            case {"subtype": "init"}:
                self._model = line.get("model") or self._model
                self._session = _name(line, "session_id")
                self._check_servers(line.get("mcp_servers") or ())
            case {"subtype": "api_retry"} if not self._has_acted:
                # It would wait here by itself, unseen; ended, the wait is KSI's, told and durable.
                status, delay_ms = line.get("error_status"), line.get("retry_delay_ms")
                kind, reason = (
                    classified(status) if isinstance(status, int) else ("transient", "no_connection")
                )
                raise ProviderFailure(
                    f"the service failed: {line.get('error') or 'unknown'} (status {status})",
                    reason=reason,
                    kind=kind,
                    retry_after_s=delay_ms / 1000 if isinstance(delay_ms, int | float) else None,
                )

    def _check_servers(self, servers: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to answer without a tool that was to be there: the CLI itself goes on silently."""
        states = {server.get("name"): server.get("status") for server in servers}
        failed = [name for name in self._servers if states.get(name, "absent") in {"failed", "absent"}]
        if failed:
            message = f"MCP server {' and '.join(failed)} of the Claude CLI did not start"
            raise ProviderFailure(message, reason="mcp_failed", kind="not_deployed")

    def _failure(self, result: Mapping[str, Any]) -> ProviderFailure:
        said = " ".join(map(str, [result.get("result") or "", *(result.get("errors") or ())])).strip()
        kind, reason = self._class_of(result, said)
        message = LOGIN if reason == "unauthenticated" and "log" in said else said[:1000] or reason
        return ProviderFailure(message, reason=reason, kind=kind, usage=_usage(result))

    def _class_of(self, result: Mapping[str, Any], said: str) -> tuple[FailureClass, str]:
        if _LOST.search(said):
            return "invalid", "session_lost"
        telling = f"{self._error} {result.get('subtype')} {result.get('terminal_reason')} {said}"
        status = result.get("api_error_status")
        words = _WORDS if isinstance(status, int) else (*_WORDS, *_WITHOUT_STATUS)
        for pattern, kind, reason in words:
            if re.search(pattern, telling):
                return kind, reason
        return classified(int(status or 0))


def _name(line: Mapping[str, Any], field: str) -> str | None:
    """Give a name that the CLI will know again; what is no text is none."""
    name = line.get(field)
    return name if isinstance(name, str) else None


def _has_tool_result(line: Mapping[str, Any]) -> bool:
    content = (line.get("message") or {}).get("content")
    return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)


def _unsaid(how: Ended) -> ProviderFailure:
    """Say why a run ended without a result."""
    if _LOST.search(how.words):
        return ProviderFailure(how.words.strip(), reason="session_lost", kind="invalid")
    if how.code and how.code < 128:
        # A flag that this CLI does not know, a configuration that it cannot read.
        return ProviderFailure(
            f"the Claude CLI did not start ({how})", reason="not_started", kind="not_deployed"
        )
    return ProviderFailure(f"the Claude CLI ended without a result ({how})", reason="process_died")


def _usage(result: Mapping[str, Any]) -> Usage | None:
    """Give what a run has used; None where what it says of that can be none."""
    try:
        return _counted(result)
    except (AttributeError, TypeError, ValueError):
        return None


def _counted(result: Mapping[str, Any]) -> Usage:
    models = list((result.get("model_usage_since_last_result") or {}).values())
    if models:
        return _sum(
            [[model.get(name, 0) for name in _SINCE] for model in models],
            cost_usd=sum(model.get("costUSD") or 0.0 for model in models),
        )
    used = result.get("usage") or {}
    return _sum([[used.get(name) or 0 for name in _SPENT]], cost_usd=None)


_SINCE: Final = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
_SPENT: Final = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _sum(counts: Sequence[Sequence[int]], *, cost_usd: float | None) -> Usage:
    fresh, answer, read, created = map(sum, zip(*counts, strict=True))
    return Usage(
        prompt_tokens=fresh + read + created,
        completion_tokens=answer,
        cached_tokens=read,
        cache_creation_tokens=created,
        cost_usd=cost_usd,
    )
