"""Discovery is true: every handled event and nothing else, each described, each example runs."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_client.contract import breaking, changes
from ksi_daemon.testing import RunningDaemon, Wire, running_daemon

from .conftest import WritePlugin

LOCK = Path(__file__).resolve().parents[2] / "docs" / "reference" / "discovery.json"
REGENERATE = "if it is meant, and CHANGELOG.md says so: python docs/reference/generate.py --breaking"

Described = dict[str, Any]

RICH = """
    from typing import Literal
    from ksi_daemon.plugin import (
        AlreadyExists, Field, FailedPrecondition, Message, Notification, Request, handler, renamed_from
    )

    class Made(Message):
        name: str

    class Make(Request[Made], event="rich:make", idempotent=True, raises=(AlreadyExists, FailedPrecondition)):
        '''Make a thing.

        It is kept.
        '''
        name: str = Field(description="What to call it.", examples=["thing"])
        size: int = Field(3, ge=1, description="How large.")
        color: Literal["red", "green"] = Field("red", description="Its look.")
        tags: list[str] = Field(default_factory=list, description="Words for it.")
        purpose: str | None = renamed_from("task", "purpose", None, description="What it is for.")

    class Hidden(Request[Made], event="rich:hidden", expose=False):
        '''For plugins only.'''

    class Broken(Notification, event="rich:broken"):
        '''It broke.'''
        name: str

    @handler
    async def make(request: Make) -> Made:
        if request.name == "thing":
            raise AlreadyExists("there is one")
        return Made(name=request.name)

    @handler
    async def hidden(request: Hidden) -> Made:
        return Made(name="hidden")
"""


async def test_every_handled_event_is_listed_and_nothing_else(ksi: RunningDaemon) -> None:
    found = await ksi.call_raw("system:discover")
    listed = [event["event"] for event in asked(found)]
    catalog = ksi.daemon.catalog
    exposed = [name for name, route in catalog.routes.items() if route.spec.expose]
    handled = [event for plugin in catalog.plugins.values() for event in plugin.handled]
    assert sorted(listed) == sorted(exposed)
    assert sorted(handled) == sorted(catalog.routes)
    assert found["total_events"] == len(listed) == len(set(listed))
    assert found["namespaces"] == sorted(found["events"])
    assert sorted(event["event"] for event in told(found)) == sorted(catalog.notifications)


async def test_what_is_not_listed_is_not_found_and_what_is_listed_is_handled(ksi: RunningDaemon) -> None:
    listed = {event["event"] for event in asked(await ksi.call_raw("system:discover"))}
    async with ksi.connect() as wire:
        for event in sorted(ksi.daemon.catalog.notifications):
            assert event not in listed
            assert (await wire.call(event))["error"]["code"] == "NOT_FOUND"
        for event in sorted(listed - {"system:shutdown", "event:subscribe"}):
            answer = await wire.call(event, {"no_such_field": 1})
            assert answer["error"]["code"] == "INVALID_ARGUMENT"


async def test_a_plugins_event_is_described_as_it_declares_it(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(RICH, "rich")]) as ksi:
        found = await ksi.call_raw("system:discover", {"namespace": "rich"})
    (make,) = found["events"]["rich"]
    (broken,) = found["notifications"]["rich"]
    assert (make["event"], make["kind"], make["plugin"], make["version"]) == (
        "rich:make", "request", "rich", 1,
    )  # fmt: skip
    assert (make["summary"], make["description"]) == ("Make a thing.", "Make a thing.\n\nIt is kept.")
    assert (make["safe"], make["idempotent"]) == (False, True)
    assert make["errors"] == ["ALREADY_EXISTS", "FAILED_PRECONDITION"]
    assert make["parameters"] == {
        "name": parameter("string", "What to call it.", required=True),
        "size": parameter("integer", "How large.", default=3),
        "color": parameter("string", "Its look.", default="red", allowed_values=["red", "green"]),
        "tags": parameter("array of string", "Words for it.", default=[]),
        "purpose": parameter("string | null", "What it is for."),
    }
    assert make["examples"] == [{"event": "rich:make", "data": {"name": "thing"}}]
    assert make["reply"]["properties"] == {"name": {"title": "Name", "type": "string"}}
    assert make["schema"]["required"] == ["name"]
    assert (broken["kind"], broken["summary"], broken["reply"]) == ("notification", "It broke.", None)


async def test_help_explains_one_event_as_discovery_does(ksi: RunningDaemon) -> None:
    found = await ksi.call_raw("system:discover")
    for event in (*asked(found), *told(found)):
        assert await ksi.call_raw("system:help", {"event": event["event"]}) == event
    async with ksi.connect() as wire:
        answer = await wire.call("system:help", {"event": "state:gett"})
    assert answer["error"]["code"] == "NOT_FOUND"
    assert answer["error"]["details"]["nearest"][0] == "state:get"
    assert answer["error"]["hint"].startswith("did you mean state:get")


async def test_a_namespace_alone_can_be_listed(ksi: RunningDaemon) -> None:
    whole = await ksi.call_raw("system:discover")
    for namespace in whole["namespaces"]:
        part = await ksi.call_raw("system:discover", {"namespace": namespace})
        assert part["namespaces"] == [namespace]
        assert part["events"] == {namespace: whole["events"][namespace]}
        assert part["total_events"] == len(whole["events"][namespace])
    nothing = await ksi.call_raw("system:discover", {"namespace": "nobody"})
    assert (nothing["events"], nothing["notifications"], nothing["total_events"]) == ({}, {}, 0)


async def test_every_event_and_every_field_that_is_sent_is_described(ksi: RunningDaemon) -> None:
    found = await ksi.call_raw("system:discover")
    assert [event["event"] for event in (*asked(found), *told(found)) if not event["summary"]] == []
    for event in asked(found):
        bare = [name for name, field in event["parameters"].items() if not field["description"]]
        assert (event["event"], bare) == (event["event"], [])


async def test_every_example_is_answered_as_declared(write_plugin: WritePlugin) -> None:
    async with running_daemon(plugins=[write_plugin(RICH, "rich")]) as ksi:
        found = await ksi.call_raw("system:discover")
        events = sorted(
            (*asked(found), *told(found)), key=lambda event: bool(event["event"] == "system:shutdown")
        )
        for event in events:
            assert len(event["examples"]) == 1, event["event"]
            async with ksi.connect(patience_s=30) as wire:  # one of them starts a sandbox
                answer = await send_as_it_is(wire, event["examples"][0])
            assert is_as_declared(event, answer), (event["event"], answer)
        assert events[-1]["event"] == "system:shutdown"


def test_an_answer_that_is_not_declared_is_found_out() -> None:
    event = {"kind": "request", "errors": ["NOT_FOUND"]}
    assert is_as_declared(event, {"type": "error", "error": {"code": "NOT_FOUND"}})
    assert not is_as_declared(event, {"type": "error", "error": {"code": "INVALID_ARGUMENT"}})
    assert not is_as_declared({"kind": "stream", "errors": []}, {"type": "reply"})


# The lock: what clients were written against stays


async def test_nothing_that_clients_rely_on_is_gone_or_narrower() -> None:
    async with running_daemon(settings={"load_plugins": "none"}) as ksi:
        now = await ksi.call_raw("system:discover")
    assert breaking(json.loads(LOCK.read_text()), now) == [], REGENERATE


def drop_event(found: Described) -> None:
    found["events"]["state"] = [event for event in found["events"]["state"] if event["event"] != "state:get"]


def drop_told(found: Described) -> None:
    found["notifications"]["state"].pop()


def drop_field(found: Described) -> None:
    del of(found, "state:get")["schema"]["properties"]["namespace"]


def drop_reply_field(found: Described) -> None:
    del of(found, "state:get")["reply"]["properties"]["found"]


def require_field(found: Described) -> None:
    of(found, "state:get")["schema"]["required"].append("namespace")


def drop_value(found: Described) -> None:
    of(found, "event:read")["schema"]["properties"]["direction"]["enum"].remove("backwards")


def change_type(found: Described) -> None:
    of(found, "state:list")["schema"]["properties"]["limit"]["type"] = "string"


def lower_limit(found: Described) -> None:
    of(found, "state:list")["schema"]["properties"]["limit"]["maximum"] = 10


def make_nullable(found: Described) -> None:
    of(found, "state:get")["reply"]["properties"]["key"] = {"anyOf": [{"type": "string"}, {"type": "null"}]}


def drop_inner_field(found: Described) -> None:
    del of(found, "event:append")["schema"]["$defs"]["NewEvent"]["properties"]["event_id"]


def lose_safety(found: Described) -> None:
    of(found, "state:get")["safe"] = False


def change_default(found: Described) -> None:
    of(found, "state:get")["parameters"]["namespace"]["default"] = "other"


NARROWER: Mapping[Callable[[Described], None], str] = {
    drop_event: "state:get is gone",
    drop_told: "state:removed is gone",
    drop_field: "state:get: namespace is gone",
    drop_reply_field: "state:get: answer: found is gone",
    require_field: "state:get: namespace is required now",
    drop_value: "event:read: direction no longer takes 'backwards'",
    change_type: "state:list: limit no longer takes integer",
    lower_limit: "state:list: limit has maximum 10 now",
    make_nullable: "state:get: answer: key may be null now",
    drop_inner_field: "event:append: events.event_id is gone",
    lose_safety: "state:get is not safe any more",
    change_default: "state:get: namespace is by default 'other' now",
}


@pytest.mark.parametrize(("change", "finding"), NARROWER.items(), ids=lambda it: getattr(it, "__name__", ""))
def test_what_takes_something_away_is_found_out(change: Callable[[Described], None], finding: str) -> None:
    locked = json.loads(LOCK.read_text())
    changed = copy.deepcopy(locked)
    change(changed)
    assert breaking(locked, changed) == [finding]


def test_what_only_adds_is_no_finding() -> None:
    locked = json.loads(LOCK.read_text())
    grown = copy.deepcopy(locked)
    get = of(grown, "state:get")
    get["schema"]["properties"]["deep"] = {"type": "boolean", "default": False}
    get["reply"]["properties"]["depth"] = {"type": "integer"}
    of(grown, "event:read")["schema"]["properties"]["direction"]["enum"].append("sideways")
    of(grown, "state:list")["schema"]["properties"]["limit"]["maximum"] = 1_000_000
    grown["events"]["new"] = [{**get, "event": "new:get"}]
    assert [str(change) for change in changes(locked, grown)] == [
        "state:get: deep is new",
        "state:get: answer: depth is new",
        "new:get is new",
    ]
    assert breaking(locked, grown) == []


def asked(found: Described) -> list[Described]:
    return [event for events in found["events"].values() for event in events]


def told(found: Described) -> list[Described]:
    return [event for events in found["notifications"].values() for event in events]


def of(found: Described, name: str) -> Described:
    return next(event for event in asked(found) if event["event"] == name)


def parameter(type_: str, description: str, **rest: Any) -> Described:
    return {
        "type": type_, "description": description, "required": False, "default": None, "allowed_values": None,
        **rest,
    }  # fmt: skip


async def send_as_it_is(wire: Wire, example: Described) -> Described:
    wire.send(json.dumps(example).encode() + b"\n")
    return await wire.receive()


def is_as_declared(event: Described, answer: Described) -> bool:
    """Tell whether this is how an event may be answered: a reply, a mark or item, or an error of its own."""
    if answer["type"] == "error":
        return bool(answer["error"]["code"] in event["errors"])
    return answer["type"] in ({"reply"} if event["kind"] == "request" else {"caught_up", "item", "end"})
