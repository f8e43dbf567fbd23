"""However the bytes are cut, the frames are the same; and every declared event comes through unchanged."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, JsonValue, ValidationError

import ksi_common.events
from ksi_common.events.completion import Asked
from ksi_common.frame_fields import MAX_TIMEOUT_S
from ksi_common.frames import Answer, Call, Cancel, FrameId, Item, answer_from_wire, item_line
from ksi_common.messages import Message, spec_of
from ksi_common.protocol import ClientConnection, Malformed, ServerConnection, decode_call
from ksi_common.strict_json import MAX_INTEGER, dumps, loads


def declared() -> Iterator[type[Message]]:
    """Yield every class that declares an event, of every namespace."""
    for module in pkgutil.iter_modules(ksi_common.events.__path__):
        namespace = importlib.import_module(f"ksi_common.events.{module.name}")
        for value in vars(namespace).values():
            if isinstance(value, type) and issubclass(value, Message) and hasattr(value, "__ksi__"):
                yield value


CLASSES = sorted(set(declared()), key=lambda cls: spec_of(cls).name)
characters = st.characters(exclude_categories=["Cs"])  # made once: a dear thing to make
texts = st.text(characters, max_size=20)
numbers = st.integers(-MAX_INTEGER, MAX_INTEGER)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
validated = {
    "_pattern": st.sampled_from(["*", "state:*", "a:b", "a:b:c_*"]),
    "_time": st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
}


@functools.cache
def messages(cls: type[BaseModel]) -> st.SearchStrategy[BaseModel]:
    """Make messages of ``cls``: each field as its annotation allows, or left to its default."""
    fields = {
        name: values(info.annotation, info.metadata) if info.is_required() else optional(info)
        for name, info in cls.model_fields.items()
    }
    if issubclass(cls, Asked):  # one of the three, and no more
        fields |= {"messages": st.just(OMITTED), "prompt": st.just(OMITTED), "prompt_file": st.just("p.txt")}
    made = st.fixed_dictionaries(fields).map(
        lambda given_: {name: value for name, value in given_.items() if value is not OMITTED}
    )
    if cls.__pydantic_decorators__.model_validators:  # not every field goes with every other
        made = made.filter(lambda given_: fits(cls, given_))
    return made.map(lambda given_: cls(**given_))


def fits(cls: type[BaseModel], fields: dict[str, Any]) -> bool:
    try:
        cls(**fields)
    except ValidationError:
        return False
    return True


OMITTED = object()


def optional(info: Any) -> st.SearchStrategy[Any]:
    return st.just(OMITTED) | values(info.annotation, info.metadata)


def values(annotation: Any, metadata: Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    """Make values of an annotation, within the limits that are annotated."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is JsonValue or annotation is Any:
        return json_values
    if origin is Annotated:
        return values(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, UnionType):
        return st.one_of([values(argument, metadata) for argument in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    limits = Limits(metadata)
    if origin is list:
        return st.lists(values(arguments[0]), min_size=limits.shortest, max_size=limits.shortest + 3)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return messages(annotation)
    return limits.scalar(annotation)


class Limits:
    """What the metadata of a field says of its values."""

    def __init__(self, metadata: Sequence[Any]) -> None:
        flat = [inner for entry in metadata for inner in unpacked(entry)]
        self.pattern = next((entry.pattern for entry in flat if getattr(entry, "pattern", None)), None)
        self.validator = next((entry.func for entry in flat if isinstance(entry, AfterValidator)), None)
        self.least: Any = next((entry.ge for entry in flat if isinstance(entry, Ge)), -1000)
        self.most: Any = next((entry.le for entry in flat if isinstance(entry, Le)), MAX_INTEGER)
        self.below: Any = next((entry.lt for entry in flat if isinstance(entry, Lt)), None)
        self.shortest = next((entry.min_length for entry in flat if isinstance(entry, MinLen)), 0)
        self.above: Any = next((entry.gt for entry in flat if isinstance(entry, Gt)), None)
        self.longest = next((entry.max_length for entry in flat if isinstance(entry, MaxLen)), None)

    def scalar(self, kind: Any) -> st.SearchStrategy[Any]:
        if kind is str:
            return self.text()
        least, most = self.least, self.most if self.below is None else self.below - 1
        return {
            NoneType: st.none(),
            bool: st.booleans(),
            int: st.integers(least, most),
            float: st.floats(
                self.above if self.above is not None else least, most, exclude_min=self.above is not None
            ),
        }[kind]

    def text(self) -> st.SearchStrategy[str]:
        if self.validator is not None:
            return validated[self.validator.__name__]
        if self.pattern is None:
            return st.text(
                characters,
                min_size=self.shortest,
                max_size=min(self.longest or 20, self.shortest + 20),
            )
        matching = st.from_regex(self.pattern, fullmatch=True, alphabet=st.characters(codec="ascii"))
        return matching.filter(lambda text: self.shortest <= len(text) <= (self.longest or len(text)))


def unpacked(entry: Any) -> Iterator[Any]:
    """Yield what a group (StringConstraints, Field) stands for."""
    if hasattr(entry, "metadata"):
        yield from entry.metadata
    elif hasattr(entry, "__iter__"):
        yield from entry
    yield entry


def test_there_are_classes_to_try() -> None:
    assert len(CLASSES) > 20
    assert {spec_of(cls).kind for cls in CLASSES} == {"request", "stream", "notification"}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: spec_of(cls).name)
@settings(max_examples=20)
@given(data=st.data())
def test_every_event_comes_through_the_wire_unchanged(cls: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(cls))
    wire = message.model_dump(mode="json", by_alias=True)
    call = decode_call(Call(spec_of(cls).name, wire).encode().rstrip(b"\n"))
    assert isinstance(call, Call)
    assert call.event == spec_of(cls).name
    assert cls.model_validate_json(dumps(call.data), strict=True) == message


REPLIES = sorted(
    {reply for cls in CLASSES if (reply := spec_of(cls).reply)}, key=lambda cls: cls.__qualname__
)


@pytest.mark.parametrize("cls", REPLIES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
@settings(max_examples=20)
@given(data=st.data())
def test_every_reply_comes_through_the_wire_unchanged(cls: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(cls))
    item = answer_from_wire(loads(item_line(b"1", message.model_dump_json(by_alias=True).encode())))
    assert isinstance(item, Item)
    assert cls.model_validate_json(dumps(item.data)) == message


ids = st.none() | numbers | texts
optional_texts = st.none() | st.text(characters, min_size=1, max_size=10)
calls = st.builds(
    Call,
    texts,
    st.dictionaries(texts, json_values, max_size=3),
    ids,
    optional_texts,
    optional_texts,
    st.none() | st.floats(0, MAX_TIMEOUT_S, exclude_min=True),
    optional_texts,
    optional_texts,
).map(Call.encode)
cancels = st.builds(Cancel, numbers | texts).map(Cancel.encode)
nonsense = st.binary(max_size=30).map(lambda line: line + b"\n")
streams = st.lists(calls | cancels | nonsense, max_size=6).map(b"".join)


def shape(frame: Any) -> Any:
    if isinstance(frame, Malformed):
        return (frame.id, frame.fatal, frame.error.to_wire())
    return dataclasses.asdict(frame)


def received(pieces: Sequence[bytes], max_line: int) -> list[Any]:
    """Give the frames of a connection that stops, as connections do, after a fatal one."""
    connection = ServerConnection(max_line=max_line)
    frames = []
    for piece in pieces:
        for frame in connection.receive(piece):
            frames.append(shape(frame))
            if isinstance(frame, Malformed) and frame.fatal:
                return frames
    return frames


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(streams, st.lists(st.integers(0, 400), max_size=8), st.sampled_from([1, 20, 60, 100_000]))
def test_any_split_of_the_bytes_gives_the_same_frames(stream: bytes, places: list[int], limit: int) -> None:
    whole = received([stream], limit)
    assert received(cut(stream, places), limit) == whole
    assert received([bytes([byte]) for byte in stream], limit) == whole


@given(st.lists(calls, min_size=1, max_size=6))
def test_a_call_that_is_encoded_is_decoded_as_it_was(lines: list[bytes]) -> None:
    frames = list(ServerConnection().receive(b"".join(lines)))
    assert [frame.encode() for frame in frames if isinstance(frame, Call)] == lines


answers = st.builds(
    lambda ident, data: item_line(dumps(ident), dumps(data)),
    ids,
    st.dictionaries(texts, json_values, max_size=3),
)


@given(st.lists(answers, max_size=6).map(b"".join), st.lists(st.integers(0, 400), max_size=8))
def test_a_client_reads_the_same_answers_from_any_split(stream: bytes, places: list[int]) -> None:
    def read(pieces: Sequence[bytes]) -> list[Any]:
        client = ClientConnection()
        return [dataclasses.asdict(answer) for piece in pieces for answer in client.receive(piece)]

    assert read(cut(stream, places)) == read([stream])


def test_every_answer_has_an_id_field() -> None:
    kinds = get_args(Answer)
    assert all(any(field.name == "id" for field in dataclasses.fields(kind)) for kind in kinds)
    assert FrameId == str | int
