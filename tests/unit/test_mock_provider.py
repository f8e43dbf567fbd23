"""The provider without a model: what it does follows from its settings and what it is asked."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ksi_common.events.completion import ChatMessage
from ksi_completion.providers.interface import Answer, Job, ProviderFailure
from ksi_completion.providers.mock import MockProvider, MockSettings


def provider(**settings: Any) -> MockProvider:
    return MockProvider(MockSettings.model_validate(settings))


def job(prompt: str, **fields: Any) -> Job:
    return Job("r", "s", "mock", [ChatMessage(role="user", content=prompt)], **fields)


async def answer(mock: MockProvider, prompt: str, **fields: Any) -> tuple[Sequence[str], Answer]:
    generation = await mock.start(job(prompt, **fields))
    return [piece async for piece in generation.deltas()], generation.answer


async def failures(mock: MockProvider, count: int) -> list[bool]:
    failed = []
    for number in range(count):
        try:
            await answer(mock, f"prompt {number}")
        except ProviderFailure:
            failed.append(True)
        else:
            failed.append(False)
    return failed


async def test_without_settings_it_gives_the_prompt_back_in_pieces() -> None:
    pieces, answered = await answer(provider(delta_characters=4), "one two three")
    assert pieces == ["one ", "two ", "thre", "e"]
    assert answered.text == "one two three"
    assert (answered.usage.prompt_tokens, answered.usage.completion_tokens) == (4, 4)


async def test_a_prompt_gets_the_answer_that_is_set_for_it() -> None:
    mock = provider(answers={"2+2": "4"}, answer="no idea", usd_per_million_tokens=2.0)
    assert (await answer(mock, "2+2"))[1].text == "4"
    answered = (await answer(mock, "3+3"))[1]
    assert answered.text == "no idea"
    assert answered.usage.cost_usd == pytest.approx((1 + 2) * 2 / 1_000_000)


async def test_the_same_seed_fails_the_same_requests_in_any_order() -> None:
    first = await failures(provider(failure_rate=0.3, seed=7), 200)
    mock = provider(failure_rate=0.3, seed=7)
    await failures(mock, 13)
    assert await failures(mock, 200) == first
    assert 30 < sum(first) < 90
    assert await failures(provider(failure_rate=0.3, seed=8), 200) != first


async def test_a_failure_is_of_the_class_that_was_set_and_may_cost() -> None:
    mock = provider(failure_rate=1, failure_kind="rate_limited", retry_after_s=2.5, failures_cost=True)
    with pytest.raises(ProviderFailure) as caught:
        await answer(mock, "12345678")
    assert (caught.value.kind, caught.value.retry_after_s) == ("rate_limited", 2.5)
    assert caught.value.usage is not None
    assert caught.value.usage.prompt_tokens == 2


async def test_another_attempt_has_another_fate() -> None:
    mock = provider(failure_rate=0.5)
    fates = set()
    for attempt in range(1, 20):
        try:
            await answer(mock, "prompt", attempt=attempt)
        except ProviderFailure:
            fates.add("failed")
        else:
            fates.add("answered")
    assert fates == {"failed", "answered"}


async def test_an_outage_ends_after_its_calls() -> None:
    assert await failures(provider(outages={"mock": 3}), 5) == [True, True, True, False, False]


async def test_a_cancel_ends_an_answer_that_would_take_an_hour() -> None:
    generation = await provider(latency_s=3600).start(job("prompt"))

    async def read() -> str:
        try:
            return "".join([piece async for piece in generation.deltas()])
        except ProviderFailure as failure:
            return failure.reason

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        await asyncio.sleep(0)
        assert (await generation.cancel()).how == "confirmed"
    assert reading.result() == "cancelled"


@pytest.mark.parametrize("distribution", ["fixed", "uniform", "exponential"])
async def test_latencies_follow_their_distribution(distribution: str) -> None:
    mock = provider(latency_s=0.25, distribution=distribution)
    waits = [(await mock.start(job(f"prompt {number}"))).latency_s for number in range(300)]
    assert 0.2 < sum(waits) / len(waits) < 0.3
    assert (len(set(waits)) == 1) == (distribution == "fixed")


def test_it_is_missing_until_somebody_allows_it() -> None:
    reason = MockProvider(None).missing()
    assert reason is not None
    assert "KSI_PROVIDER=mock" in reason
    assert provider().missing() is None
