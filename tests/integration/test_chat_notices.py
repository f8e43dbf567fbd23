"""What `chat.py` says of providers that fail, of what answers cost, and of budgets."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_chat import Chats

pytestmark = pytest.mark.timeout(180)  # each test runs several programs

SETTINGS = """
[plugins.completion]
retry_delay_s = 0.01
models.any = ["mock/down", "mock/up"]

[plugins.completion.mock]
models = ["plain", "flaky"]
usd_per_million_tokens = 5000.0
outages = {down = 1000, flaky = 1}
"""


@pytest.fixture(scope="module")
def chat() -> Iterator[Chats]:
    """Give a home whose daemon has the mock provider, and was asked before."""
    folder = Path(tempfile.mkdtemp(prefix="ksi"))
    try:
        chats = Chats(folder)
        (folder / "ksi.toml").write_text(SETTINGS)
        assert chats.control("start").returncode == 0
        assert chats("-p", "hello", "--provider", "mock").returncode == 0
        yield chats
        chats.control("stop", "--now")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_failover_is_a_line_beside_the_answer(chat: Chats) -> None:
    done = chat("hello there", "--model", "any")
    assert done.stdout == "hello there\n"
    assert done.stderr == "mock/up is asked instead (outage: down is down)\n"


def test_a_retry_is_a_line_beside_the_answer(chat: Chats) -> None:
    done = chat("hello there", "--provider", "mock", "--model", "flaky")
    assert done.stdout == "hello there\n"
    assert done.stderr.startswith("attempt 1 failed (outage); again in 0.0")


def test_a_conversation_says_who_speaks_what_it_cost_and_what_the_session_used(chat: Chats) -> None:
    with chat.talking("--name", "spender", "--provider", "mock", NO_COLOR="1") as terminal:
        terminal.enter("12345678")
        terminal.expect("plain ▸ 12345678\n")
        terminal.expect_match(r"·  2 tokens, \d+\.\d s, \$0\.0200\nyou ▸ ")
        terminal.enter("/usage")
        terminal.expect("  mock/plain: 1 call, 4 tokens (2 in, 2 out), $0.0200\n")
        terminal.expect("session spender: 1 call, 4 tokens (2 in, 2 out), $0.0200\nyou ▸ ")
        chat.ask("budget:set", subject="spender", tokens=5)
        terminal.enter("12345678")
        terminal.expect("waiting: budget session/spender/ever is used up; budget:set gives more")
        chat.ask("budget:set", subject="spender", tokens=1000)
        terminal.expect("12345678\n")
        terminal.expect("you ▸ ")
        terminal.enter("/usage")
        terminal.expect("budget session/spender/ever: ")
        terminal.expect("you ▸ ")
        terminal.type("\x04")
        assert terminal.wait() == 0


def test_usage_before_the_first_question_says_that_there_is_none(chat: Chats) -> None:
    with chat.talking("--provider", "mock") as terminal:
        terminal.enter("/usage")
        terminal.expect("0 calls, 0 tokens")
        terminal.expect("you ▸ ")
        terminal.type("\x04")
        assert terminal.wait() == 0


def test_ctrl_c_stops_one_that_waits_for_a_budget(chat: Chats) -> None:
    chat.ask("budget:set", subject="poor", tokens=1)
    with chat.talking("--name", "poor", "--provider", "mock") as terminal:
        terminal.enter("12345678")
        terminal.expect("waiting: budget session/poor/ever")
        terminal.type("\x03")
        terminal.expect("stopped\nyou ▸ ")
        terminal.type("\x04")
        assert terminal.wait() == 0
