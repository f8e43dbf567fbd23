"""Lines of an export: CloudEvents 1.0 in JSON, which hold everything that a row of the log does.

The first line says where the log begins, the last one where it ends: a file without that is cut short.
Between the first and the events stands what retention has left of what came before: see `kept`.
Extension attributes are those that CloudEvents has no name for: small letters and digits, numbers as texts.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from ksi_common.clock import parse_time
from ksi_common.envelope import StoredEvent
from ksi_common.errors import InvalidArgument
from ksi_common.records import record
from ksi_daemon.database.log_writer import KINDS, digest_of

STARTED: Final = "ksi:export:started"
FINISHED: Final = "ksi:export:finished"


class BadLine(InvalidArgument):
    """A line of an export is not what it should be; the message says which."""

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(f"line {number}: {detail}", reason="bad_line", line=number)


@record
class Line:
    """An event of an export, and what its row has besides."""

    event: StoredEvent
    digest: bytes
    has_data: bool
    """A request has none, nor an event whose data retention has removed."""


def mark(kind: str, log_id: str, seq: int, chain: bytes, time: str) -> bytes:
    """Render the first or the last line: ``seq`` and ``chain`` before it."""
    return rendered(
        {
            "specversion": "1.0",
            "id": f"{log_id}-{kind.rpartition(':')[2]}-{seq}",
            "source": f"/ksi/{log_id}",
            "type": kind,
            "time": time,
            "ksiseq": str(seq),
            "ksichain": chain.hex(),
        }
    )


def line_of(event: StoredEvent, digest: bytes, log_id: str, *, has_data: bool) -> bytes:
    """Render an event."""
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.event_id,
        "source": f"/ksi/{log_id}",
        "type": event.event,
        "time": event.time,
        "ksiseq": str(event.seq),
        "ksikind": event.kind,
        "ksicorrelation": event.correlation_id,
        "ksiactor": event.actor,
        "ksihop": str(event.hop),
        "ksidigest": digest.hex(),
    }
    if event.stream is not None:
        attributes |= {"subject": event.stream, "ksiversion": str(event.version)}
    if event.causation_id is not None:
        attributes["ksicausation"] = event.causation_id
    if has_data:
        attributes |= {"datacontenttype": "application/json", "data": orjson.Fragment(event.data)}
    return rendered(attributes)


def parse_line(text: bytes, number: int) -> Mapping[str, Any]:
    """Read a line as a CloudEvent; raise BadLine."""
    if not text.endswith(b"\n"):
        raise BadLine(number, "the file ends within it")
    try:
        attributes = orjson.loads(text)
    except ValueError as error:
        raise BadLine(number, f"it is no JSON: {error}") from error
    if not isinstance(attributes, dict) or attributes.get("specversion") != "1.0" or "type" not in attributes:
        raise BadLine(number, "it is no CloudEvent 1.0")
    return attributes


def mark_in(attributes: Mapping[str, Any], number: int) -> tuple[int, bytes]:
    """Read the seq and the chain of the first or the last line; raise BadLine."""
    try:
        return int(attributes["ksiseq"]), bytes.fromhex(attributes["ksichain"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadLine(number, f"it is no {attributes['type']}: {error}") from error


def event_in(attributes: Mapping[str, Any], text: bytes, number: int) -> Line:
    """Make the event of a line, held against its digest; raise BadLine."""
    has_data = "data" in attributes
    try:
        event = StoredEvent(
            attributes["type"],
            _data_in(text, attributes["data"]) if has_data else b"null",
            attributes["id"],
            attributes["ksicorrelation"],
            attributes.get("ksicausation"),
            attributes["ksiactor"],
            int(attributes["ksihop"]),
            parse_time(attributes["time"]),
            seq=int(attributes["ksiseq"]),
            stream=attributes.get("subject"),
            version=int(attributes["ksiversion"]) if "subject" in attributes else None,
            kind=attributes["ksikind"],
        )
        digest = bytes.fromhex(attributes["ksidigest"])
        KINDS.index(event.kind)  # ValueError: there is no such kind
    except KeyError as error:
        raise BadLine(number, f"it has no {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise BadLine(number, str(error)) from error
    if has_data and digest_of(event) != digest:
        raise BadLine(number, f"event {event.event_id} does not say what its digest was made of")
    return Line(event, digest, has_data)


_DATA: Final = b',"data":'


def _data_in(text: bytes, data: object) -> bytes:
    """Cut the data out of a line as they were stored: another rendering of them has another digest.

    They come last, and no name or text before them can hold these bytes unescaped.
    """
    start = text.find(_DATA)
    if start < 0:  # the line was rendered by somebody else
        return orjson.dumps(data)
    return text[start + len(_DATA) : text.rindex(b"}")]


def rendered(attributes: Mapping[str, Any]) -> bytes:
    """Render a line."""
    return orjson.dumps(attributes, option=orjson.OPT_APPEND_NEWLINE)
