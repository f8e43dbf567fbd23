"""`ksi plugin check` says what is wrong in a sentence, where, and what to do; what is right is left alone."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.checking.__main__ import SLOW_MS

HEAD = """\
from ksi_daemon.plugin import Bus, Field, Message, Notification, Request, handler, hookimpl, subscriber


class Said(Message):
    text: str = Field(description="Words.")


class Ask(Request[Said], event="probe:ask"):
    '''Ask.'''


"""
PROGRAM = "from ksi_client.cli.main import main; main()"
BUSY = """\
class Busy: ...
@handler
async def ask(request: Ask, bus: Busy) -> Said: ...
"""
NAP = """\
from time import sleep as nap
@handler
async def ask(request: Ask) -> Said:
    nap(1)
    return Said(text='')
"""
LINE = HEAD.count("\n") + 1
"""Of what a case adds to it."""
GOOD = """\
@handler
async def ask(request: Ask, bus: Bus) -> Said:
    return Said(text="yes")
"""

Check = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Check a single file; give what is found, but for the advice to write a test."""

    def run(source: str, *options: str) -> list[dict[str, Any]]:
        (tmp_path / "probe.py").write_text(textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "plugin", "check", "probe.py", "--json", *options],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        found = [each for each in json.loads(done.stdout)["findings"] if each["text"] != "has no test"]
        for each in found:
            judge_load(each)
        problems = [each for each in found if each["level"] == "problem"]
        assert done.returncode == (1 if problems else 0)
        return found

    return run


def judge_load(finding: dict[str, Any]) -> None:
    """See whether what is said of the time is right; it is the machine's, and no matter to the tests."""
    took = re.fullmatch(r"loads in (\d+) ms", finding["text"])
    if took is not None and int(took[1]) != SLOW_MS:
        assert finding["level"] == ("warning" if int(took[1]) > SLOW_MS else "ok")
        finding["level"] = "ok"


CASES = {
    "a reply of the wrong type": (
        "@handler\nasync def ask(request: Ask) -> int:\n    return 3\n",
        1, "ask returns int, but probe:ask is answered with Said", "return Said",
    ),
    "a first parameter without a type": (
        "@handler\nasync def ask(request) -> Said:\n    return Said(text='')\n",
        1, "ask: the first parameter must be annotated", "request: AnEventClass",
    ),
    "a service without a type": (
        "@handler\nasync def ask(request: Ask, bus) -> Said:\n    return Said(text='')\n",
        1, "parameter bus of ask has no type", "bus: Bus",
    ),
    "an unknown service": (
        BUSY,
        2, "no plugin offers the service Busy", "did you mean Bus?",
    ),
    "no reply": (
        "@handler\nasync def ask(request: Ask):\n    pass\n",
        1, "ask does not say what it returns", "->",
    ),
    "a hook misspelt": (
        "@hookimpl\nasync def ksi_statrup(bus): ...\n",
        1, "there is no hook ksi_statrup; did you mean ksi_startup?", "reference.md",
    ),
    "a hook's parameter misspelt": (
        "@hookimpl\nasync def ksi_startup(buss): ...\n",
        1, "hook ksi_startup has no parameter buss; it has bus, services", "reference.md",
    ),
    "an event's name of capitals": (
        "class Bad(Request[Said], event='BadName'): ...\n",
        0, "Bad: 'BadName' is not an event name", "namespace:verb",
    ),
    "a module that is not there": (
        "import nosuchmodule\n",
        0, "ModuleNotFoundError: No module named 'nosuchmodule'", "pip install",
    ),
    "an error at import": ("{}['a']\n", 0, "KeyError: 'a'", None),
    "a syntax error": ("def f(:\n", 0, "SyntaxError: invalid syntax", None),
    "a call that blocks": (
        NAP,
        3, "time.sleep(…) in `async def ask` stops the whole daemon", "asyncio.sleep",
    ),
    "a forgotten await": (
        GOOD.replace("    return", "    bus.call(request)\n    return"),
        2, "bus.call(…) is not awaited: it never runs", "write: await bus.call(…)",
    ),
    "a hook without its mark": (
        GOOD + "def ksi_shutdown(): ...\n",
        3, "ksi_shutdown is never called", "hookimpl",
    ),
    "a projection whose state has no beginning": (
        "from ksi_daemon.plugin import projection\n"
        "class Told(Notification, event='probe:told'): ...\n"
        "@projection()\n"
        "def said(state: Said, event: Told) -> Said: ...\n",
        2, "projection said: its state has no default for text", None,
    ),
    "a hook that gives no list": (
        GOOD + "@hookimpl\ndef ksi_handlers(): return handler\n",
        4, "ksi_handlers must give a list of functions", None,
    ),
    "a crash of the process": (
        "import ctypes\nctypes.string_at(0)\n",
        1, "it crashed the process (Segmentation fault)", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "offset", "text", "hint"), CASES.values(), ids=CASES)
def test_what_is_wrong_is_said_with_its_place_and_what_to_do(
    check: Check, source: str, offset: int, text: str, hint: str | None
) -> None:
    problems = [each for each in check(HEAD + source) if each["level"] == "problem"]
    assert len(problems) == 1
    assert text in problems[0]["text"]
    assert problems[0]["place"] == f"probe.py:{LINE + offset}"
    assert hint is None or hint in problems[0]["hint"]


def test_several_problems_are_all_said(check: Check) -> None:
    source = """\
    @handler
    async def one(request: Ask) -> int: ...
    @handler
    async def two(request) -> Said: ...
    """
    found = check(HEAD + textwrap.dedent(source))
    assert [each["place"] for each in found if each["level"] == "problem"] == [
        f"probe.py:{LINE + 1}",
        f"probe.py:{LINE + 3}",
    ]


def test_what_is_right_is_left_alone(check: Check) -> None:
    helpers = """

class Told(Notification, event="probe:told"):
    '''It was.'''


@subscriber
async def hear(told: Told) -> None: ...


async def _help(request: Ask) -> None:
    def in_a_thread() -> None:
        import time
        time.sleep(1)


def plain(text: str) -> str:
    return text
"""
    found = check(HEAD + GOOD + helpers)
    assert {each["level"] for each in found} == {"ok"}
    assert [each["text"] for each in found][1:] == [
        "answers probe:ask",
        "tells probe:told",
        "hears hear(probe:told)",
    ]


def test_what_could_be_better_is_said_and_does_not_fail_unless_that_is_wanted(check: Check) -> None:
    source = """\
    from ksi_daemon.plugin import Field, Message, Request, handler

    class Said(Message):
        text: str

    class Ask(Request[Said], event="other:ask"):
        number: int = Field(ge=5)

    @handler
    async def ask(request: Ask) -> Said: ...

    async def forgotten(request: Ask) -> Said: ...
    """
    warnings = [each for each in check(source) if each["level"] == "warning"]
    assert [each["text"] for each in warnings] == [
        "other:ask is not in the plugin's own namespace: another plugin may want that name",
        "other:ask has no docstring",
        'field "number" of other:ask has no description',
        'field "text" of the answer of other:ask has no description',
        'the example of other:ask cannot be sent: "number": input should be greater than or equal to 5',
        "forgotten takes Ask, but is not decorated with @handler: nobody calls it",
    ]
    with pytest.raises(AssertionError):
        check(source, "--strict")


def test_one_that_only_keeps_a_projection_does_something(check: Check) -> None:
    source = """\
    from ksi_daemon.plugin import Delivered, Message, Rows, projection, table_projection

    class Sum(Message):
        total: int = 0

    @projection(patterns=["probe:*"])
    def total(state: Sum, event: Delivered) -> Sum: ...

    @table_projection("name TEXT PRIMARY KEY", patterns=["probe:*"])
    def names(rows: Rows, event: Delivered) -> None: ...
    """
    assert [each["text"] for each in check(source)][1:] == ["keeps total, names"]


def test_a_service_that_does_not_open_is_named_and_not_what_takes_it(check: Check) -> None:
    source = (
        HEAD
        + """\
from contextlib import asynccontextmanager
from ksi_daemon.plugin import Service
class Dice: ...
@asynccontextmanager
async def dice():
    raise ValueError("no dice")
    yield Dice()
@hookimpl
def ksi_services():
    return [Service(Dice, dice)]
@handler
async def ask(request: Ask, dice: Dice) -> Said: ...
"""
    )
    assert [each["text"] for each in check(source)] == ["ValueError: no dice"]


def test_one_that_does_nothing_is_told_so(check: Check) -> None:
    assert "it does nothing" in check("x = 1\n")[1]["text"]


def test_one_that_does_not_end_is_ended_and_its_line_named(check: Check) -> None:
    for limit in (3, 9, 27):  # until it comes to that line at all
        (found,) = check("import time\ntime.sleep(100)\n", "--timeout", f"{limit}s")
        assert found["text"] == f"it did not load within {limit} s"
        if found["place"] is not None:
            assert found["place"] == "probe.py:2"
            return
    pytest.fail("it never came to that line")


def test_one_that_ends_the_process_is_told_so(check: Check) -> None:
    (found,) = check("import os\nos._exit(3)\n")
    assert found["text"] == "it ended the process with exit code 3"


def test_what_a_plugin_prints_is_not_taken_for_findings(check: Check) -> None:
    assert check("print('{}')\n" + HEAD + GOOD)[0]["level"] == "ok"


def test_what_its_children_print_and_its_last_words_are_not_taken_for_findings(check: Check) -> None:
    noisy = "import atexit, os\nos.system('echo {')\natexit.register(print, '{')\n"
    assert check(noisy + HEAD + GOOD)[0]["level"] == "ok"


def test_tests_of_a_single_file_need_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(HEAD + GOOD)
    (tmp_path / "test_probe.py").write_text(
        "import pytest\n"
        "@pytest.mark.ksi(plugins=['probe.py'])\n"
        "async def test_it_answers(ksi):\n"
        "    assert await ksi.call_raw('probe:ask') == {'text': 'yes'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "plugin", "test", "probe.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
