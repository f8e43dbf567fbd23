"""What the Claude CLI says, line by line, as it was recorded; where it is installed, it is tested itself."""

from collections.abc import Mapping
from typing import Any

import pytest

from ksi_common.events.completion import Usage
from ksi_completion.providers.claude_reading import LOGIN, ClaudeReading
from ksi_completion.providers.command import Ended
from ksi_completion.providers.interface import Answer, ProviderFailure

WELL = Ended(0, None, "")
SPENT = {
    "input_tokens": 11,
    "output_tokens": 5,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 2,
}
SINCE = {
    "inputTokens": 22,
    "outputTokens": 10,
    "cacheReadInputTokens": 6,
    "cacheCreationInputTokens": 4,
    "costUSD": 0.25,
}
RESULT = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "api_error_status": None,
    "terminal_reason": "completed",
    "result": "Hello",
    "stop_reason": "end_turn",
    "session_id": "s-1",
    "usage": SPENT,
    "total_cost_usd": 99.0,
}

Line = Mapping[str, Any]


def begun() -> Line:
    return streamed(type="message_start", message={"model": "claude"})


def streamed(**event: Any) -> Line:
    return {"type": "stream_event", "event": event, "uuid": "e"}


def delta(text: str) -> Line:
    return streamed(type="content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def stopped(reason: str) -> Line:
    return streamed(type="message_delta", delta={"stop_reason": reason})


def said(text: str, uuid: str = "a-1", **fields: Any) -> Line:
    content = [{"type": "text", "text": text}]
    return {"type": "assistant", "message": {"model": "claude", "content": content}, "uuid": uuid, **fields}


def heard(*lines: Line, **settings: Any) -> tuple[str, ClaudeReading]:
    reading = ClaudeReading(**settings)
    return "".join(reading.take(line) for line in lines), reading


def answer(*lines: Line, **settings: Any) -> Answer:
    text, reading = heard(*lines, **settings)
    answer = reading.conclude(WELL)
    assert answer.text == text
    return answer


def failure(*lines: Line, how: Ended = WELL) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as failed:
        heard(*lines)[1].conclude(how)
    return failed.value


def test_pieces_and_the_whole_are_told_once() -> None:
    made = answer(begun(), delta("Hel"), delta("lo"), said("Hello"), stopped("end_turn"), RESULT)
    assert (made.text, made.model, made.finish_reason) == ("Hello", "claude", "stop")
    assert (made.provider_session, made.resume_at) == ("s-1", "a-1")


def test_a_cli_that_streams_no_pieces_is_heard_by_its_messages() -> None:
    assert answer(said("Hello"), RESULT).text == "Hello"
    assert answer(RESULT).text == "Hello"


def test_several_messages_are_parted_and_what_goes_on_is_not() -> None:
    two = (
        begun(),
        delta("One"),
        said("One"),
        stopped("tool_use"),
        begun(),
        delta("Two"),
        said("Two"),
        RESULT,
    )
    assert answer(*two).text == "One\n\nTwo"
    cut = (begun(), delta("On"), said("On"), stopped("max_tokens"), begun(), delta("e"), said("e"), RESULT)
    assert answer(*cut).text == "One"


def test_the_usage_is_of_this_run_and_the_sum_of_the_session_is_no_cost() -> None:
    old = answer(said("Hello"), RESULT).usage
    assert (old.prompt_tokens, old.completion_tokens, old.cached_tokens, old.cost_usd) == (16, 5, 3, None)
    since = RESULT | {"model_usage_since_last_result": {"a": SINCE, "b": SINCE}}
    new = answer(said("Hello"), since).usage
    assert (new.prompt_tokens, new.completion_tokens, new.cost_usd) == (64, 20, 0.5)


def test_what_an_agent_of_the_cli_says_is_not_the_answer() -> None:
    inner = {**said("thinking"), "parent_tool_use_id": "t-1"}
    assert answer(inner, {**delta("hm"), "parent_tool_use_id": "t-1"}, said("Hello"), RESULT).text == "Hello"


def test_a_session_goes_on_behind_the_result_of_its_last_tool() -> None:
    content = [{"type": "tool_result", "tool_use_id": "t"}]
    used = {"type": "user", "message": {"role": "user", "content": content}, "uuid": "u-1"}
    told = {"type": "user", "message": {"role": "user", "content": "go on"}, "uuid": "u-2"}
    assert answer(said("Hello"), used, told, RESULT).resume_at == "u-1"


def test_an_answer_that_is_begun_again_is_none() -> None:
    for again in (begun(), said("Other")):
        with pytest.raises(ProviderFailure) as failed:
            heard(begun(), delta("Hel"), again)
        assert (failed.value.kind, failed.value.reason) == ("transient", "stream_cut")


def test_an_answer_as_long_as_was_asked_needs_no_good_end() -> None:
    lines = (begun(), delta("On"), said("On"), stopped("max_tokens"))
    _, reading = heard(*lines, max_tokens=7)
    assert reading.is_enough
    aborted = RESULT | {"is_error": True, "terminal_reason": "aborted_streaming"}
    later = (said("an", "a-2"), {**said("d", "a-3"), "aborted": True})
    made = answer(*lines, *later[1:], aborted, max_tokens=7)
    assert (made.text, made.finish_reason, made.resume_at) == ("On", "length", "a-1")


def test_an_answer_as_long_as_was_asked_needs_no_result() -> None:
    init = {"type": "system", "subtype": "init", "session_id": "s-1"}
    start = streamed(type="message_start", message={"model": "claude", "usage": SPENT | {"output_tokens": 1}})
    stop = streamed(type="message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 5})
    made = answer(init, start, delta("On"), said("On"), stop, max_tokens=7)
    assert (made.text, made.finish_reason, made.resume_at) == ("On", "length", "a-1")
    assert made.provider_session == "s-1"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.cached_tokens) == (16, 5, 3)


def test_what_comes_behind_an_answer_as_long_as_was_asked_is_not_told() -> None:
    lines = (begun(), delta("On"), said("On"), stopped("max_tokens"), begun(), delta("and "), begun())
    assert answer(*lines, RESULT, max_tokens=7).text == "On"


WORDS = [
    ({"terminal_reason": "prompt_too_long", "api_error_status": 400}, "invalid", "context_exceeded"),
    ({"terminal_reason": "image_error", "api_error_status": 413}, "invalid", "too_large"),
    ({"subtype": "error_max_turns", "errors": ["too many"]}, "invalid", "max_turns"),
    (
        {"subtype": "error_max_budget_usd", "terminal_reason": "budget_exhausted"},
        "invalid",
        "budget_exhausted",
    ),
    ({"result": "Claude's response exceeded the 7 output token maximum"}, "invalid", "max_tokens"),
    ({"result": "Your credit balance is too low", "api_error_status": 400}, "auth", "billing"),
    ({"result": "Request timed out."}, "transient", "timed_out"),
    ({"result": "API Error: JSON Parse error"}, "transient", "api_error"),
    ({"terminal_reason": "aborted_streaming", "result": None}, "transient", "interrupted"),
    ({"api_error_status": 529}, "transient", "overloaded"),
    ({"api_error_status": 429}, "rate_limited", "rate_limited"),
    ({"errors": ["No conversation found with session ID: s"]}, "invalid", "session_lost"),
    ({"errors": ["No message found with message.uuid of: u"]}, "invalid", "session_lost"),
]


@pytest.mark.parametrize(("fields", "kind", "reason"), WORDS)
def test_a_failed_result_has_a_class_and_its_cost(fields: Line, kind: str, reason: str) -> None:
    failed = failure(RESULT | {"is_error": True} | dict(fields), how=Ended(1, None, ""))
    assert (failed.kind, failed.reason) == (kind, reason)
    assert failed.usage is not None
    assert failed.usage.completion_tokens == 5


def test_who_is_not_logged_in_is_told_where_a_key_goes() -> None:
    failed = failure(RESULT | {"is_error": True, "result": "Not logged in · Please run /login"})
    assert (failed.kind, failed.message) == ("auth", LOGIN)


def test_a_result_that_is_no_error_counts_whatever_the_exit_code() -> None:
    _, reading = heard(said("Hello"), RESULT)
    assert reading.conclude(Ended(1, None, "")).text == "Hello"


def test_a_wish_to_try_again_inside_is_a_failure_outside() -> None:
    retry = {"type": "system", "subtype": "api_retry", "error_status": 429, "retry_delay_ms": 2500}
    assert (failure(retry).kind, failure(retry).retry_after_s) == ("rate_limited", 2.5)
    unreached = failure({**retry, "error_status": None, "error": "unknown"})
    assert (unreached.kind, unreached.reason) == ("transient", "no_connection")


def test_a_server_of_tools_that_is_not_there_is_no_small_thing() -> None:
    init = {"type": "system", "subtype": "init", "mcp_servers": [{"name": "a", "status": "connected"}]}
    assert heard(init, servers=["a"])[0] == ""
    for found in ([{"name": "b", "status": "failed"}], []):
        with pytest.raises(ProviderFailure) as failed:
            heard({**init, "mcp_servers": found}, servers=["b"])
        assert failed.value.kind == "not_deployed"


@pytest.mark.parametrize(
    ("how", "kind", "reason"),
    [
        (Ended(1, None, "error: unknown option '--x'\n"), "not_deployed", "not_started"),
        (Ended(1, None, "No conversation found with session ID: s"), "invalid", "session_lost"),
        (Ended(None, 9, ""), "transient", "process_died"),
        (Ended(0, None, ""), "transient", "process_died"),
        (Ended(143, None, ""), "transient", "process_died"),
    ],
)
def test_an_end_without_a_result_is_judged_by_how_it_came(how: Ended, kind: str, reason: str) -> None:
    failed = failure(how=how)
    assert (failed.kind, failed.reason) == (kind, reason)


def test_names_of_a_session_that_are_no_text_are_none() -> None:
    """They went into the file of answers, which could not be read again, nor could the session go on."""
    made = answer(said("Hello", uuid=7), {**RESULT, "session_id": {"id": 12}})  # type: ignore[arg-type]  # so
    assert (made.provider_session, made.resume_at) == (None, None)


@pytest.mark.parametrize("count", [-100, 2**53, "many", 1.5])
def test_an_answer_whose_usage_can_be_none_is_an_answer(count: Any) -> None:
    """It was a bug, asked for again, and paid for again; so was a failure, whatever it had said."""
    odd = {**RESULT, "usage": {**SPENT, "input_tokens": count}}
    assert answer(said("Hello"), odd).usage == Usage()
    refused = failure({**odd, "is_error": True, "api_error_status": 401, "result": "no"})
    assert (refused.kind, refused.usage) == ("auth", None)
