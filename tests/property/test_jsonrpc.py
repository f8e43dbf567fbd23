"""Whatever is asked, JSON-RPC and KSI's own frames say the same."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_common.errors import ERRORS, error_from_wire
from ksi_common.frames import answer_from_wire, error_line, item_line, mark_line, reply_line
from ksi_common.jsonrpc import Rpc, RpcCall, render
from ksi_common.protocol import decode_call
from ksi_common.strict_json import MAX_INTEGER, dumps
from ksi_daemon.testing import PATIENCE_S, Wire, running_daemon
from tests.support.scale import scaled

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=3)
ids = st.none() | st.integers(-MAX_INTEGER, MAX_INTEGER) | texts


@given(st.text("abc:_", min_size=1, max_size=10), objects, ids)
def test_a_request_is_the_call_that_ksis_own_frame_is(event: str, data: dict[str, Any], ident: Any) -> None:
    native: Any = decode_call(dumps({"event": event, "data": data}))
    read = decode_call(dumps({"jsonrpc": "2.0", "method": event, "params": data, "id": ident}))
    assert isinstance(read, Rpc)
    (part,) = read.parts
    assert isinstance(part, RpcCall)
    assert (part.call.event, part.call.data, part.id) == (native.event, native.data, ident)


@given(objects, ids, texts)
def test_an_answer_loses_nothing_in_translation(data: dict[str, Any], ident: Any, cursor: str) -> None:
    line = reply_line(b'"x"', b'"a:b"', dumps(data), b'"c"', b"t")
    assert translated(line, ident) == {"jsonrpc": "2.0", "id": ident, "result": data}
    item = translated(item_line(b'"x"', dumps(data)), ident)
    assert item["params"] == {"id": ident, "data": data}
    mark = translated(mark_line(b'"x"', "gap", cursor, {"reason": "r"}), ident)
    assert (mark["method"], mark["params"]) == ("$/gap", {"id": ident, "cursor": cursor, "reason": "r"})


@given(st.sampled_from(list(ERRORS.values())), texts, objects, st.none() | texts)
def test_an_error_can_be_made_again_from_its_data(kind: Any, message: str, details: Any, hint: Any) -> None:
    error = kind(message, hint=hint)
    error.details.update(details)
    answer = translated(error_line(b'"x"', error, "cor"), 1)
    data = answer["error"]["data"]
    again = error_from_wire({**data, "message": answer["error"]["message"]})
    assert (type(again), again.to_wire()) == (kind, error.to_wire())
    assert data["correlation_id"] == "cor"


def translated(line: bytes, ident: Any) -> Any:
    answer = answer_from_wire(json.loads(line))
    assert answer is not None
    return json.loads(render(answer, ident))


async def received(wire: Wire) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return json.loads(await wire.reader.readline())


@asynccontextmanager
async def stored(value: Any) -> AsyncIterator[Wire]:
    async with running_daemon() as ksi, ksi.connect() as wire:
        assert (await wire.call("state:set", {"key": "k", "value": value}))["type"] == "reply"
        yield wire


@pytest.mark.timeout(scaled(240, 600))
@settings(max_examples=scaled(10, 200))
@given(value=st.lists(values, max_size=20), event=st.sampled_from(["state:get", "state:gett", "state:list"]))
async def test_a_daemon_says_the_same_to_both(value: Any, event: str) -> None:
    async with stored(value) as wire:
        native = await wire.call(event, {"key": "k"})
        wire.send({"jsonrpc": "2.0", "method": event, "params": {"key": "k"}, "id": 1})
        answer = await received(wire)
        wire.send([{"jsonrpc": "2.0", "method": event, "params": {"key": "k"}, "id": 1}])  # type: ignore[arg-type]
        assert same([answer], await received(wire))
    if native["type"] == "reply":
        assert answer["result"] == native["data"]
    else:
        wanted = {name: said for name, said in native["error"].items() if name != "message"}
        said = {name: said for name, said in answer["error"]["data"].items() if name != "correlation_id"}
        assert (answer["error"]["message"], said) == (native["error"]["message"], wanted)


def same(one: Any, other: Any) -> bool:
    """Tell whether answers say the same to calls of their own."""
    for answer in (*one, *other):
        answer.get("error", {}).get("data", {}).pop("correlation_id", None)
    return bool(one == other)
