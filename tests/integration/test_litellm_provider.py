"""litellm as a provider of completions, in its worker, with a service on loopback that is planned."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ksi_completion.providers import litellm
from ksi_completion.providers.installed import python_with
from ksi_completion.providers.interface import Answer, Job, ProviderFailure
from ksi_completion.providers.litellm import LitellmProvider
from ksi_completion.providers.litellm_settings import LitellmSettings
from ksi_daemon.processes import Processes
from tests.children import marks
from tests.support.fake_openai import (
    Answer as Plan,
)
from tests.support.fake_openai import (
    FakeOpenAI,
    begins,
    cuts,
    fake_openai,
    garbles,
    refuses,
    says,
    uses,
)
from tests.support.provider_cases import NO_LITELLM
from tests.support.workers import failure_of, first_of, job, kill, text_of

pytestmark = [
    pytest.mark.skipif(NO_LITELLM is not None, reason=str(NO_LITELLM)),
    pytest.mark.timeout(150),  # the library takes two seconds of a whole core to import
    pytest.mark.asyncio(loop_scope="module"),
]

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}


class World:
    """The provider, its service and its folder. The worker is one for all tests: its import is slow."""

    def __init__(self, provider: LitellmProvider, folder: Path, api: FakeOpenAI) -> None:
        self.provider = provider
        self.folder = folder
        self.api = api

    async def ask(self, asked: Job, *plan: Plan) -> Answer:
        """Get an answer; the service answers as planned."""
        self.api.plan.extend(plan)
        generation = await self.provider.start(asked)
        assert await text_of(generation) == generation.answer.text
        return generation.answer

    async def fail(self, asked: Job, *plan: Plan) -> ProviderFailure:
        """Get a failure."""
        self.api.plan.extend(plan)
        return await failure_of(await self.provider.start(asked))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("litellm")
    with pytest.MonkeyPatch.context() as environ:
        for name in ("MY_KEY", "ANTHROPIC_API_KEY", "KSI_TOKEN"):
            environ.setenv(name, f"sk-{name.lower()}")
        environ.delenv("NO_SUCH_KEY", raising=False)
        async with Processes(folder) as processes, fake_openai() as api:
            provider = patient(LitellmProvider(processes, models(api, folder / "key")))
            try:
                yield World(provider, folder, api)
            finally:
                await provider.close()
            assert marks(folder) == []


@pytest.fixture
def world(shared: World) -> World:
    shared.api.plan.clear()
    shared.api.requests.clear()
    return shared


def patient(provider: LitellmProvider) -> LitellmProvider:
    """Give its worker time to confirm a cancel, on a machine with other things to do."""
    provider._link = link = provider._linked()
    link._settings = replace(link._settings, confirm_s=60.0)
    return provider


def models(api: FakeOpenAI, key: Path) -> LitellmSettings:
    here = {"model": "openai/gpt-4o", "api_base": f"{api.url}/v1"}
    return LitellmSettings.model_validate(
        {
            "models": {
                "fake": here,
                "priced": {**here, "input_usd_per_million": 1.0, "output_usd_per_million": 2.0},
                "unpriced": {**here, "model": "openai/made-up-here"},
                "nowhere": {**here, "api_base": "http://127.0.0.1:9/v1"},
                "by_variable": {**here, "api_key_env": "MY_KEY"},
                "by_absent_variable": {**here, "api_key_env": "NO_SUCH_KEY"},
                "by_file": {**here, "api_key_file": str(key)},
                "cool": {**here, "parameters": {"temperature": 0.25, "stream": False, "num_retries": 5}},
            }
        }
    )


def asked(*said: str, model: str = "fake", **fields: Any) -> Job:
    return job(*said, model=model, **fields)


async def test_an_answer_is_streamed_and_counted(world: World) -> None:
    world.api.plan.append(says("Hel", "lo"))
    generation = await world.provider.start(asked("Hi", "Yes?", "Well?", system="Be brief.", max_tokens=9))
    assert [text async for text in generation.deltas()]
    answer = generation.answer
    assert (answer.text, answer.finish_reason) == ("Hello", "stop")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (11, 5, 3)
    assert usage.cost_usd is not None, "litellm knows the price of this model"
    (request,) = world.api.requests
    assert [message["role"] for message in request.body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert (request.body["model"], request.body["max_tokens"]) == ("gpt-4o", 9)
    assert request.headers["authorization"] == "Bearer none"


async def test_a_price_of_the_settings_goes_before_litellms(world: World) -> None:
    answer = await world.ask(asked("Hi", model="priced"))
    assert answer.usage.cost_usd == pytest.approx((11 + 2 * 5) / 1_000_000)


async def test_a_model_that_nobody_has_a_price_for_costs_nothing_known(world: World) -> None:
    assert (await world.ask(asked("Hi", model="unpriced"))).usage.cost_usd is None


async def test_tools_and_a_schema_are_passed_on_and_calls_come_back(world: World) -> None:
    schema = {"type": "object", "properties": {"capital": {"type": "string"}}}
    plan = uses("weather", place="Ulm")
    answer = await world.ask(asked("Rain?", tools=[TOOL], response_schema=schema), plan)
    body = world.api.requests[0].body
    assert body["tools"] == [TOOL]
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert answer.finish_reason == "tool_calls"
    calls: Any = answer.response["tool_calls"]
    assert [call["function"] for call in calls] == [{"name": "weather", "arguments": '{"place": "Ulm"}'}]


async def test_a_request_gets_no_tool_that_it_may_not_use(world: World) -> None:
    await world.ask(asked("Rain?", tools=[TOOL, OTHER], allowed_tools=["other"]))
    assert world.api.requests[0].body["tools"] == [OTHER]


STATUSES = [
    (400, "invalid", "refused"),
    (401, "auth", "unauthenticated"),
    (402, "auth", "billing"),
    (403, "auth", "forbidden"),
    (404, "invalid", "no_model"),
    (408, "transient", "timed_out"),
    (413, "invalid", "too_large"),
    (422, "invalid", "refused"),
    (429, "rate_limited", "rate_limited"),
    (500, "transient", "server_error"),
    (502, "transient", "server_error"),
    (503, "transient", "server_error"),
    (504, "transient", "timed_out"),
    (529, "transient", "overloaded"),
]


async def test_a_refusal_has_the_class_of_its_status_and_is_asked_once(world: World) -> None:
    for status, kind, reason in STATUSES:
        failure = await world.fail(asked("Hi"), refuses(status))
        assert (status, failure.kind, failure.reason) == (status, kind, reason), failure.message
    assert len(world.api.requests) == len(STATUSES)


async def test_a_service_says_when_to_come_back(world: World) -> None:
    assert (await world.fail(asked("Hi"), refuses(429, retry_after="60"))).retry_after_s == 60
    dated = refuses(503, retry_after="Fri, 31 Dec 2100 23:59:59 GMT")
    assert ((await world.fail(asked("Hi"), dated)).retry_after_s or 0) > 3600
    assert (await world.fail(asked("Hi"), refuses(429, retry_after="soon"))).retry_after_s is None


async def test_a_prompt_that_is_too_long_and_a_policy_have_names(world: World) -> None:
    long = refuses(400, "context_length_exceeded", "This model's maximum context length is 8 tokens.")
    assert (await world.fail(asked("Hi"), long)).reason == "context_exceeded"
    policy = refuses(400, "invalid_request_error", "content_policy_violation: no")
    assert (await world.fail(asked("Hi"), policy)).reason == "content_policy"


@pytest.mark.parametrize("plan", [cuts("Hel"), garbles(), says("Hel", finish_reason=None)])
async def test_an_answer_that_is_cut_or_garbled_is_no_answer(world: World, plan: Plan) -> None:
    failure = await world.fail(asked("Hi"), plan)
    assert failure.kind == "transient", failure.message


async def test_an_answer_that_is_full_says_so(world: World) -> None:
    answer = await world.ask(asked("Hi"), says("Hel", finish_reason="length"))
    assert (answer.text, answer.finish_reason) == ("Hel", "length")


async def test_a_service_that_hangs_or_is_not_there_is_tried_again(world: World) -> None:
    failure = await world.fail(asked("Hi", timeout_s=0.5), begins())
    assert (failure.kind, failure.reason) == ("transient", "timed_out")
    assert (await world.fail(asked("Hi", model="nowhere"))).kind == "transient"


async def test_a_cancel_reaches_the_service(world: World) -> None:
    gone = []

    async def endless(exchange: Any) -> None:
        await begins("For ever")(exchange)
        gone.append(exchange.gone.is_set())

    world.api.plan.append(endless)
    generation = await world.provider.start(asked("Hi"))
    await first_of(generation)
    before = world.provider.statistics().pid
    proof = await generation.cancel()
    assert proof.how == "confirmed"
    await world.ask(asked("Hi"))
    assert gone == [True]
    assert world.provider.statistics().pid == before, "the worker stays, warm"


async def test_a_worker_that_is_killed_is_replaced_and_its_requests_are_to_be_tried_again(
    world: World,
) -> None:
    world.api.plan.extend([begins("Hel"), begins("Hel")])
    both = [await world.provider.start(asked("Hi")) for _ in range(2)]
    for generation in both:
        await first_of(generation)
    before = world.provider.statistics()
    kill(before.pid or 0)
    assert {(await failure_of(generation)).kind for generation in both} == {"transient"}
    assert (await world.ask(asked("Hi"))).text == "Hello"
    assert world.provider.statistics().started == before.started + 1


async def test_the_worker_has_the_keys_that_its_models_name_and_no_other(world: World) -> None:
    await world.ask(asked("Hi", model="by_variable"))
    assert world.api.requests[0].headers["authorization"] == "Bearer sk-my_key"
    names = {line.partition(b"=")[0] for line in environ_of(world.provider.statistics().pid or 0)}
    assert b"MY_KEY" in names
    assert not names & {b"ANTHROPIC_API_KEY", b"KSI_TOKEN", b"OPENAI_API_KEY"}


def environ_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


async def test_a_key_may_be_in_a_file_and_may_change(world: World) -> None:
    key = world.folder / "key"
    by_file = asked("Hi", model="by_file")
    failure = await world.fail(by_file)
    assert (failure.kind, failure.reason) == ("auth", "no_key")
    assert str(key) in failure.message
    for secret in ("sk-1", "sk-2"):
        key.write_text(f"{secret}\n")
        await world.ask(by_file)
        assert world.api.requests[-1].headers["authorization"] == f"Bearer {secret}"


async def test_a_variable_that_is_not_set_is_said_by_its_name(world: World) -> None:
    failure = await world.fail(asked("Hi", model="by_absent_variable"))
    assert (failure.kind, failure.reason) == ("auth", "no_key")
    assert "NO_SUCH_KEY is not set" in failure.message


async def test_a_key_that_a_service_quotes_is_not_repeated(world: World) -> None:
    quoting = refuses(401, "invalid_api_key", "Incorrect API key provided: sk-my_key, look again")
    failure = await world.fail(asked("Hi", model="by_variable"), quoting)
    assert "look again" in failure.message
    assert "sk-my_key" not in failure.message


async def test_parameters_of_the_settings_reach_the_service(world: World) -> None:
    await world.fail(asked("Hi", model="cool"), refuses(500))
    (request,) = world.api.requests
    assert (request.body["temperature"], request.body["stream"]) == (0.25, True)


async def test_a_model_that_is_not_set_is_refused_with_those_that_are(world: World) -> None:
    with pytest.raises(ProviderFailure) as refused:
        await world.provider.start(job("Hi", model="gpt-9"))
    assert (refused.value.kind, refused.value.reason) == ("invalid", "no_model")
    assert "fake" in refused.value.message


async def test_the_worker_imports_what_its_first_call_needs_before_it_is_ready() -> None:
    """Else that holds the loop for a second, in which no cancel is heard."""
    python, worker = (
        python_with("litellm", "litellm"),
        Path(litellm.__file__).parents[1] / "workers/litellm.py",
    )
    program = (
        "import runpy, sys\n"
        f"runpy.run_path({str(worker)!r}, run_name='worker')['warm_up']()\n"
        "print('openai.resources.chat.completions' in sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(
        str(python), "-I", "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert (await process.communicate())[0] == b"True\n"
