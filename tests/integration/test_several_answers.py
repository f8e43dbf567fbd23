"""One question, several plugins: all of them answer, or the first that can."""

from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.testing import RunningDaemon, running_daemon

from .conftest import LogFile, WritePlugin

ASK = """
    import asyncio
    from ksi_daemon.plugin import Answers, Message, NotFound, Request, Transaction, handler, hookimpl

    class Hint(Message):
        text: str

    class All(Request[Answers[Hint]], event="hint:all", answers="all", safe=True):
        '''Ask everybody.'''
        word: str = ""

    class Race(Request[Hint], event="hint:race", answers="race", safe=True):
        '''Ask for the first.'''
        word: str = ""

    class Keep(Request[Answers[Hint]], event="hint:keep", answers="all"):
        '''Ask everybody to change something.'''

    gate = asyncio.Event()
"""

ANSWER = """
    @handler
    async def all_(request: All) -> Hint:
        {all}

    @handler
    async def race(request: Race) -> Hint:
        {race}
"""

SHARED = "    from ksi_file_a import All, Hint, Keep, Race, gate\n    from ksi_daemon.plugin import *\n"


def plugin(write_plugin: WritePlugin, name: str, *, all_: str, race: str) -> Path:
    head = ASK if name == "a" else f'    requires = ["a"]\n{SHARED}'
    return write_plugin(head + ANSWER.replace("{all}", all_).replace("{race}", race), name)


def reply(text: str) -> str:
    return f'return Hint(text="{text}")'


async def data(ksi: RunningDaemon, event: str, **fields: Any) -> dict[str, Any]:
    return await ksi.call_raw(event, fields)


async def test_all_give_their_answers_side_by_side_and_errors_are_among_them(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    files = [
        plugin(write_plugin, "a", all_="await gate.wait(); " + reply("from a"), race=reply("a")),
        plugin(write_plugin, "b", all_="gate.set(); " + reply("from b"), race=reply("b")),
        plugin(write_plugin, "c", all_='raise NotFound("none", hint="look")', race=reply("c")),
        plugin(write_plugin, "d", all_="return 1 / 0", race=reply("d")),
    ]
    with log_file.written():
        async with running_daemon(plugins=files, settings={"strict": False}) as ksi:
            answers = (await data(ksi, "hint:all"))["answers"]
            help_ = await ksi.call_raw("system:help", {"event": "hint:all"})
            listed = {
                each["name"]: each["failures"] for each in (await ksi.call_raw("plugin:list"))["plugins"]
            }
    assert [answer["plugin"] for answer in answers] == ["a", "b", "c", "d"]
    assert [answer["value"] for answer in answers[:2]] == [{"text": "from a"}, {"text": "from b"}]
    assert (answers[2]["error"]["code"], answers[2]["error"]["hint"]) == ("NOT_FOUND", "look")
    assert answers[3]["error"]["code"] == "INTERNAL"
    assert (help_["answers"], help_["plugin"]) == ("all", "a, b, c, d")
    assert (listed["c"], listed["d"]) == (0, 1)
    assert [line["plugin"] for line in log_file.lines("handler.crashed")] == ["d"]


async def test_the_first_that_can_wins_and_the_others_are_stopped(write_plugin: WritePlugin) -> None:
    stuck = "await gate.wait(); " + reply("late")
    files = [
        plugin(write_plugin, "a", all_=reply("a"), race=stuck),
        plugin(write_plugin, "b", all_=reply("b"), race='raise NotFound("not here")'),
        plugin(write_plugin, "c", all_=reply("c"), race=reply("first")),
    ]
    async with running_daemon(plugins=files) as ksi:
        assert await data(ksi, "hint:race") == {"text": "first"}


async def test_where_none_can_the_error_is_that_of_the_first(write_plugin: WritePlugin) -> None:
    files = [
        plugin(write_plugin, name, all_=reply(name), race=f'raise NotFound("not in {name}")') for name in "ab"
    ]
    async with running_daemon(plugins=files) as ksi, ksi.connect() as wire:
        error = (await wire.call("hint:race"))["error"]
    assert (error["code"], error["message"]) == ("NOT_FOUND", "not in a")


async def test_what_changes_something_leaves_one_row_for_all(write_plugin: WritePlugin) -> None:
    keep = """
    @handler
    async def keep(request: Keep) -> Hint:
        return Hint(text="kept")
"""
    files = [write_plugin(ASK + keep, "a"), write_plugin(f'    requires = ["a"]\n{SHARED}{keep}', "b")]
    async with running_daemon(plugins=files) as ksi:
        answers = (await ksi.call_raw("hint:keep"))["answers"]
        logged = await ksi.call_raw("event:query", {"patterns": ["hint:keep"]})
        assert len(answers) == 2
        typed: Any = ksi.daemon.catalog.routes["hint:keep"].message
        reply: Any = await ksi.bus.call(typed())
        assert [hint.text for hint in reply.values] == ["kept", "kept"]
    assert [event["kind"] for event in logged["events"]] == ["request"]


async def test_a_plugin_that_cannot_run_is_not_among_those_who_answer(write_plugin: WritePlugin) -> None:
    fails = """
    @hookimpl
    async def ksi_startup():
        raise OSError("no")
"""
    bad = f'    requires = ["a"]\n{SHARED}' + ANSWER.replace("{all}", reply("b")).replace(
        "{race}", reply("b")
    )
    files = [plugin(write_plugin, "a", all_=reply("a"), race=reply("a")), write_plugin(bad + fails, "b")]
    async with running_daemon(plugins=files) as ksi:
        assert [answer["plugin"] for answer in (await data(ksi, "hint:all"))["answers"]] == ["a"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "class Odd(Request[Hint], event='odd:ask', answers='all'):\n        '''Odd.'''",
            'odd:ask has answers="all", so it is a Request[Answers[...]]',
        ),
        (
            "class Odd(Stream[Hint], event='odd:ask', answers='race'):\n        '''Odd.'''",
            "odd:ask is a stream: only a Request has several answers",
        ),
    ],
)
async def test_a_class_that_declares_it_wrongly_refuses_its_plugin(
    write_plugin: WritePlugin, source: str, says: str
) -> None:
    handler = "\n\n    @handler\n    async def odd(request: Odd) -> Hint:\n        return Hint(text='x')\n"
    text = ASK.replace("Request,", "Request, Stream,") + "\n    " + source + handler
    async with running_daemon(plugins=[write_plugin(text)]) as ksi:
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
    assert says in details["error"]
