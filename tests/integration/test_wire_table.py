"""Hostile lines: each gets one defined frame, and the connection goes on where DESIGN.md says so."""

import asyncio
import json
import socket
from typing import Any, NamedTuple

import pytest

from ksi_daemon.testing import RunningDaemon, running_daemon

MIB = 1024 * 1024
HEALTH = b'{"event":"system:health","id":"after"}'


class Case(NamedTuple):
    """A line, and the one frame that answers it."""

    name: str
    line: bytes
    code: str
    reason: str | None
    says: str = ""
    """What the message or the hint contains."""
    id: str | int | None = None
    fatal: bool = False
    """The connection ends after the frame."""


def asks(fields: str, event: str = "state:get") -> bytes:
    """Give a line that asks ``event`` with the JSON text ``fields`` as its data."""
    return b'{"id":7,"event":"%b","data":%b}' % (event.encode(), fields.encode())


def malformed(name: str, line: bytes, says: str = "not JSON at byte") -> Case:
    return Case(name, line, "INVALID_ARGUMENT", "malformed", says)


def wrong_frame(name: str, line: bytes, says: str, **options: Any) -> Case:
    return Case(name, line, "INVALID_ARGUMENT", "wrong_type", says, **options)


def wrong_data(name: str, line: bytes, reason: str, says: str) -> Case:
    return Case(name, line, "INVALID_ARGUMENT", reason, says, id=7)


def too_deep(name: str, line: bytes, **options: Any) -> Case:
    return Case(name, line, "INVALID_ARGUMENT", "too_deep", "nested deeper than 64", **options)


def not_utf8(name: str, line: bytes, position: int) -> Case:
    return Case(name, line, "INVALID_ARGUMENT", "not_utf8", f"not UTF-8 at byte {position}", fatal=True)


def unknown(name: str, line: bytes, says: str) -> Case:
    return Case(name, line, "NOT_FOUND", "unknown_event", says, id=7)


CASES = (
    # Not JSON at all.
    malformed("words", b"not json", "not JSON at byte 0"),
    malformed("nothing", b""),
    malformed("spaces", b"   "),
    malformed("a carriage return", b"\r"),
    malformed("a NUL", b"\0"),
    malformed("NULs after a frame", b'{"event":"system:health"}\0\0'),
    malformed("a byte order mark", b'\xef\xbb\xbf{"event":"system:health"}', "byte order mark"),
    malformed("a trailing comma", b'{"event":"system:health",}', "not JSON at byte 24"),
    malformed("single quotes", b"{'event':'system:health'}", "not JSON at byte 1"),
    malformed("a comment", b'{"event":"system:health"} // please', "not JSON at byte 26"),
    malformed("two objects", b'{"event":"system:health"}{"event":"system:health"}', "not JSON at byte 25"),
    malformed("half an object", b'{"event":"system:health"'),
    malformed("a control character", b'{"event":"system\x01:health"}', "control character"),
    malformed("a lone surrogate", b'{"event":"state:get","data":{"key":"\\ud800"}}', "surrogate"),
    malformed("a reversed pair", b'{"event":"state:get","data":{"key":"\\udc00\\ud800"}}'),
    malformed("a bad escape", b'{"event":"state:get","data":{"key":"\\x41"}}'),
    malformed("an HTTP request", b"GET / HTTP/1.1"),
    # Bytes that are not UTF-8 end the connection.
    not_utf8("a bad byte", b'{"event":"system:health","id":"\xff"}', 31),
    not_utf8("an overlong slash", b'{"event":"\xc0\xaf"}', 10),
    not_utf8("a surrogate in bytes", b'{"event":"\xed\xa0\x80"}', 10),
    not_utf8("binary", bytes(range(128, 256)), 0),
    not_utf8("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 8),
    # Numbers that a second parser would read otherwise.
    malformed("NaN", asks('{"key":NaN}')),
    malformed("Infinity", asks('{"key":Infinity}')),
    malformed("minus infinity", asks('{"key":-Infinity}')),
    malformed("1e999", asks('{"key":1e999}'), "infinity"),
    malformed("5,000 digits", asks('{"key":' + "9" * 5000 + "}"), "infinity"),
    malformed("a leading zero", asks('{"key":007}')),
    malformed("hexadecimal", asks('{"key":0x10}')),
    *(
        Case(
            name,
            asks(f'{{"key":"a","n":{digits}}}'),
            "INVALID_ARGUMENT",
            "integer_out_of_range",
            "±2^53",
            id=7,
        )
        for name, digits in (
            ("2^64", 2**64),
            ("2^53 + 1", 2**53 + 1),
            ("-2^53 - 1", -(2**53) - 1),
            ("200 digits", "1" * 200),
        )
    ),
    # Depth and width.
    too_deep("depth 65", asks('{"key":' + "[" * 63 + "]" * 63 + "}"), id=7),
    too_deep("depth 10,000", b"[" * 10_000 + b"]" * 10_000),
    too_deep("depth 100,000", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    too_deep("depth 10,000 without an end", b'{"event":' + b"[" * 10_000),
    Case(
        "10,001 keys",
        asks("{" + ",".join(f'"k{n}":0' for n in range(10_001)) + "}"),
        "INVALID_ARGUMENT",
        "too_many_keys",
        "10001 keys",
        id=7,
    ),
    # JSON, but no frame.
    wrong_frame("an array", b"[1]", "must be an object, not array"),
    wrong_frame("an array of frames", b'[{"event":"system:health"}]', "must be an object, not array"),
    wrong_frame("a string", b'"s"', "must be an object, not string"),
    wrong_frame("a number", b"5", "must be an object, not number"),
    wrong_frame("null", b"null", "must be an object, not null"),
    wrong_frame("true", b"true", "must be an object, not boolean"),
    Case("an empty object", b"{}", "INVALID_ARGUMENT", "missing", "names no event"),
    Case("no event", b'{"id":7,"data":{}}', "INVALID_ARGUMENT", "missing", "names no event", id=7),
    Case("an answer", b'{"id":7,"type":"reply","data":{}}', "INVALID_ARGUMENT", "missing", "no event", id=7),
    Case("a cancel of nothing", b'{"type":"cancel"}', "INVALID_ARGUMENT", "missing", "names no id"),
    wrong_frame("a cancel of null", b'{"type":"cancel","id":null}', "id must be a string"),
    # Fields of the frame.
    wrong_frame("event null", b'{"id":7,"event":null}', "event must be a string, not null", id=7),
    wrong_frame("event 5", b'{"id":7,"event":5}', "event must be a string, not number", id=7),
    wrong_frame(
        "event [ ]", b'{"id":7,"event":["system:health"]}', "event must be a string, not array", id=7
    ),
    wrong_frame("event true", b'{"id":7,"event":true}', "event must be a string, not boolean", id=7),
    wrong_frame("data null", asks("null"), "data must be an object, not null", id=7),
    wrong_frame("data [1]", asks("[1]"), "data must be an object, not array", id=7),
    wrong_frame("data text", asks('"key=a"'), "data must be an object, not string", id=7),
    wrong_frame("id true", b'{"id":true,"event":"system:health"}', "id must be a string of at most 128"),
    wrong_frame("id 1.5", b'{"id":1.5,"event":"system:health"}', "id must be a string of at most 128"),
    wrong_frame("id [ ]", b'{"id":[],"event":"system:health"}', "id must be a string of at most 128"),
    wrong_frame(
        "a long id",
        b'{"id":"%b","event":"system:health"}' % (b"x" * 129),
        "id must be a string of at most 128",
    ),
    *(
        wrong_frame(
            f"{name} {value}", f'{{"id":7,"event":"system:health","{name}":{value}}}'.encode(), name, id=7
        )
        for name in ("correlation_id", "causation_id", "idempotency_key", "traceparent")
        for value in ("5", '""', f'"{"c" * 129}"', "{}")
    ),
    *(
        wrong_frame(
            f"timeout_s {value}",
            b'{"id":7,"event":"system:health","timeout_s":%b}' % value.encode(),
            "timeout_s must be a number of seconds above 0",
            id=7,
        )
        for value in ("0", "-1", '"1"', "true", "[]")
    ),
    # Events that there are not.
    unknown("a near event", asks("{}", "state:gett"), "did you mean state:get"),
    unknown("no near event", asks("{}", "zzz:qqqqq"), "system:discover lists what there is"),
    unknown("an event of no text", asks("{}", ""), 'no plugin handles ""'),
    unknown("an event in capitals", asks("{}", "STATE:GET"), "no plugin handles"),
    unknown("a pattern", asks("{}", "state:*"), "no plugin handles"),
    unknown("a long event", asks("{}", "state:" + "x" * 5000), "..."),
    unknown("a told event", asks("{}", "state:changed"), "no plugin handles"),
    unknown("an attribute", asks("{}", "state:__class__"), "no plugin handles"),
    # Fields of the data.
    wrong_data("a misspelt field", asks('{"kee":"a"}'), "unknown_field", 'did you mean "key"?'),
    wrong_data("a field of Python's", asks('{"key":"a","__class__":"x"}'), "unknown_field", "__class__"),
    wrong_data("a missing field", asks("{}"), "missing", "state:get needs the field key"),
    wrong_data(
        "a field of another type", asks('{"key":5}'), "invalid_field", "key: input should be a valid string"
    ),
    wrong_data("a field null", asks('{"key":null}'), "invalid_field", "key: "),
    wrong_data("an empty key", asks('{"key":""}'), "invalid_field", "key: "),
    wrong_data("a path as a name", asks('{"key":"a","namespace":"../x"}'), "invalid_field", "namespace: "),
    wrong_data("a nested field", asks('{"patterns":["x"]}', "event:query"), "invalid_field", "patterns.0: "),
    wrong_data("a time that is none", asks('{"since":"tuesday"}', "event:query"), "invalid_field", "since: "),
    wrong_data(
        "a time of no zone", asks('{"since":"2026-01-31T12:00:00"}', "event:query"), "invalid_field", "offset"
    ),
    wrong_data("a cursor that is none", asks('{"cursor":"x"}', "event:query"), "bad_cursor", "is no cursor"),
    wrong_data(
        "data over the limit",
        asks('{"key":"a","value":"%s"}' % ("v" * (MIB - 4096)), "state:set"),
        "too_large",
        "data of state:set has",
    ),
    # Lines that are too long end the connection.
    Case("1 MiB and a byte", HEALTH.ljust(MIB + 1), "INVALID_ARGUMENT", "too_large", str(MIB), fatal=True),
    Case("2 MiB", b"[" * 2 * MIB, "INVALID_ARGUMENT", "too_large", str(MIB), fatal=True),
)

ACCEPTED = {
    "a plain line": HEALTH,
    "spaces around": b"  " + HEALTH + b"\t ",
    "CRLF": HEALTH + b"\r",
    "an escaped name": b'{"event":"system\\u003ahealth","id":"after"}',
    "duplicate keys, the last wins": b'{"event":"x:y","event":"system:health","id":1,"id":"after"}',
    "fields that nobody knows": b'{"event":"system:health","id":"after","type":"call","jsonrpc":"3.0"}',
    "options of null": b'{"event":"system:health","id":"after","correlation_id":null,"timeout_s":null}',
    "1 MiB": HEALTH.ljust(MIB),
    "2^53": b'{"event":"system:health","id":"after","n":[9007199254740992,-9007199254740992]}',
    "a long run of digits in a string": b'{"event":"system:health","id":"after","n":"%b"}' % (b"9" * 100),
    "depth 64": b'{"event":"system:health","id":"after","n":' + b"[" * 63 + b"]" * 63 + b"}",
    "an astral character": '{"event":"system:health","id":"after","n":"\\ud83d\\ude00 😀"}'.encode(),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_hostile_line_gets_one_defined_frame(ksi: RunningDaemon, case: Case) -> None:
    async with ksi.connect() as wire:
        wire.send(case.line + b"\n")
        check(await wire.receive(), case)
        if case.fatal:
            await wire.wait_closed()
        else:
            wire.send(HEALTH + b"\n")
            assert (await wire.receive())["id"] == "after"


@pytest.mark.parametrize("line", ACCEPTED.values(), ids=ACCEPTED)
async def test_a_strange_line_that_is_right_is_answered(ksi: RunningDaemon, line: bytes) -> None:
    async with ksi.connect() as wire:
        wire.send(line + b"\n")
        frame = await wire.receive()
    assert (frame["id"], frame["type"], frame["event"]) == ("after", "reply", "system:health")


async def test_all_that_cannot_be_read_is_answered_in_order_in_one_piece(ksi: RunningDaemon) -> None:
    unread = [case for case in CASES if case.id is None and not case.fatal]
    async with ksi.connect() as wire:
        wire.send(b"".join(case.line + b"\n" for case in unread))
        for case in unread:
            check(await wire.receive(), case)


async def test_a_hostile_line_byte_by_byte_gets_the_same_frame(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        for line in (b'{"event":"stat\xc3\xa9:get"}\n', HEALTH + b"\n"):
            for byte in line:
                wire.send(bytes([byte]))
                await wire.writer.drain()
                await asyncio.sleep(0)
        first, second = await wire.receive(), await wire.receive()
    assert first["error"]["code"] == "NOT_FOUND"
    assert second["id"] == "after"


@pytest.mark.parametrize("connections", [1, 100])
async def test_10_000_hostile_lines_are_answered(ksi: RunningDaemon, connections: int) -> None:
    short = [case for case in CASES if not case.fatal and len(case.line) < 1000]
    count = 10_000 // connections

    async def pester() -> None:
        async with ksi.connect() as wire:
            for sent in range(0, count, 100):
                lines = [short[n % len(short)].line for n in range(sent, sent + 100)]
                wire.send(b"\n".join(lines) + b"\n")
                for _ in lines:
                    assert (await wire.receive())["type"] == "error"
            assert (await wire.call("system:health"))["type"] == "reply"

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(pester())


async def test_a_cancel_of_an_unknown_id_is_passed_over(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        wire.send(b'{"type":"cancel","id":"nobody"}\n' + HEALTH + b"\n")
        assert (await wire.receive())["id"] == "after"


async def test_a_request_without_an_id_gets_one(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        wire.send(b'{"event":"system:info"}\n')
        reply = await wire.receive()
    assert reply["type"] == "reply"
    assert isinstance(reply["id"], str)
    assert reply["id"]


@pytest.mark.parametrize("ident", ["", "7", 7, 0, -1, "ü", 2**53, "x" * 128])
async def test_an_id_is_echoed_as_it_was(ksi: RunningDaemon, ident: str | int) -> None:
    async with ksi.connect() as wire:
        wire.send({"event": "system:health", "id": ident})
        assert (await wire.receive())["id"] == ident


async def test_what_came_before_a_fatal_line_is_answered(ksi: RunningDaemon) -> None:
    async with ksi.connect() as wire:
        wire.send(b'{"event":"state:set","id":1,"data":{"key":"a","value":1}}\n\xff\n')
        frames = [await wire.receive(), await wire.receive()]
        await wire.wait_closed()
    assert {frame["id"]: frame["type"] for frame in frames} == {1: "reply", None: "error"}


async def test_a_line_that_does_not_end_is_cut() -> None:
    async with running_daemon(settings={"limits": {"partial_line_s": 0.05}}) as ksi, ksi.connect() as wire:
        wire.send(b'{"event":')
        frame = await wire.receive()
        await wire.wait_closed()
    assert frame["id"] is None
    assert frame["error"]["code"] == "DEADLINE_EXCEEDED"
    assert frame["error"]["details"]["reason"] == "partial_line"


async def test_the_end_of_a_line_is_not_waited_for_while_its_client_reads_nothing() -> None:
    """Nothing is read of a client with too much unread: the end of its line may have come long ago."""
    limits = {"partial_line_s": 0.05, "unwritable_s": 60.0}
    async with running_daemon(settings={"limits": limits}) as ksi, ksi.connect() as hasty:
        await ksi.call_raw("state:set", {"key": "large", "value": "x" * 900_000})
        await ksi.call_raw("state:get", {"key": "large"})  # from now on it is at hand
        line = b'{"event":"state:get","data":{"key":"large"}}\n'
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(ksi.paths.socket))
            sock.sendall(line * 4 + line[:-9])
            await ksi.call_raw("system:health")
            hasty.send(b'{"event":')
            assert (await hasty.receive())["error"]["details"]["reason"] == "partial_line"
            sock.sendall(line[-9:])
            sock.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=4 * MIB)
            answers = [json.loads(await reader.readline()) for _ in range(5)]
            writer.close()
    assert {answer["type"] for answer in answers} == {"reply"}


async def test_a_client_that_stops_sending_still_gets_its_answers(ksi: RunningDaemon) -> None:
    """As ``nc -N`` and ``socat`` do: they shut their end when their input is at its end."""
    async with ksi.connect() as wire:
        wire.send(b'{"event":"state:set","id":1,"data":{"key":"a","value":1}}\n')
        wire.writer.write_eof()
        assert (await wire.receive())["type"] == "reply"
        await wire.wait_closed()


def check(frame: dict[str, Any], case: Case) -> None:
    error = frame["error"]
    assert (frame["id"], frame["type"], error["code"]) == (case.id, "error", case.code), frame
    assert error["details"].get("reason") == case.reason, frame
    assert case.says in f"{error['message']} {error.get('hint')}", frame
    assert error["retryable"] is False
    assert json.dumps(frame).isascii()
    assert len(json.dumps(frame)) < 10_000, "an error does not repeat what was sent"
