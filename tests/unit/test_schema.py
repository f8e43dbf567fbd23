"""What discovery says of an event is what its class says, and its examples can be sent."""

import importlib
import pkgutil
from typing import Any, Literal

import pytest
from pydantic import Field, JsonValue

import ksi_common.events
from ksi_common.errors import AlreadyExists, NotFound
from ksi_common.events import event, state
from ksi_common.messages import EventSpec, Message, Notification, Request, public_name, renamed_from
from ksi_common.schema import describe, example, type_name
from ksi_common.validation import parser


def declared() -> list[type[Message]]:
    """List every event class of the vocabulary."""
    modules = pkgutil.iter_modules(ksi_common.events.__path__, "ksi_common.events.")
    members = [member for each in modules for member in vars(importlib.import_module(each.name)).values()]
    return [
        cls
        for cls in dict.fromkeys(member for member in members if isinstance(member, type))
        if issubclass(cls, Message) and isinstance(getattr(cls, "__ksi__", None), EventSpec)
    ]


DECLARED = declared()
ASKED = [cls for cls in DECLARED if cls.__ksi__.kind != "notification"]


def name_of(cls: type[Message]) -> str:
    return cls.__ksi__.name


class Bought(Message):
    n: int


class Address(Message):
    street: str


class Buy(Request[Bought], event="shop:buy", idempotent=True, raises=(NotFound, AlreadyExists), version=2):
    """Buy some.

    At once.
    """

    amount: int = Field(description="How many.", examples=[3])
    size: Literal["small", "large"] = "small"
    colors: list[str] = Field(default_factory=lambda: ["red"])
    price: float | None = None
    ship_to: Address | None = Field(default_factory=lambda: Address(street="here"))
    note: JsonValue = None
    tags: dict[str, str] = Field(default_factory=dict)
    gift: bool = False
    kind: Literal["fruit"] = "fruit"
    packing: Literal["box", "bag"] | None = None
    pieces: Literal["all"] | int = "all"
    agent_id: str | None = renamed_from("client_id", "agent_id", None)


class Guess(Request[Bought], event="shop:guess"):
    """Have fields that need a value and show no example."""

    text: str
    whole: int
    part: float
    yes: bool
    many: list[int]
    any: dict[str, int]
    size: Literal["small", "large"]


class Sold(Notification, event="shop:sold"):
    """Something is sold."""

    n: int


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("amount", "integer"),
        ("size", "string"),
        ("kind", "string"),
        ("colors", "array of string"),
        ("price", "number | null"),
        ("ship_to", "object | null"),
        ("note", "any"),
        ("tags", "object"),
        ("gift", "boolean"),
    ],
)
def test_a_type_is_named_as_a_person_would(name: str, kind: str) -> None:
    assert describe(Buy, "shop").parameters[name].type == kind


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ({}, "any"),
        ({"$ref": "#/$defs/Unknown"}, "any"),
        ({"type": "array"}, "array of any"),
        ({"anyOf": [{"type": "string"}, {"type": "string"}, {"type": "null"}]}, "string | null"),
    ],
)
def test_a_schema_that_says_little_has_a_name_too(field: dict[str, Any], kind: str) -> None:
    assert type_name(field, {}) == kind


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("amount", None),
        ("size", "small"),
        ("colors", ["red"]),
        ("price", None),
        ("ship_to", {"street": "here"}),
        ("gift", False),
    ],
)
def test_a_default_is_given_as_json(name: str, default: JsonValue) -> None:
    assert describe(Buy, "shop").parameters[name].default == default


def test_a_field_without_a_default_is_required() -> None:
    assert [name for name, field in describe(Buy, "shop").parameters.items() if field.required] == ["amount"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("size", ["small", "large"]),
        ("kind", ["fruit"]),
        ("packing", ["box", "bag"]),
        ("pieces", None),
        ("amount", None),
        ("price", None),
    ],
)
def test_the_values_allowed_are_listed_where_there_are_no_others(
    name: str, values: list[JsonValue] | None
) -> None:
    assert describe(Buy, "shop").parameters[name].allowed_values == values


def test_what_a_field_is_for_is_said() -> None:
    assert describe(Buy, "shop").parameters["amount"].description == "How many."
    assert describe(Buy, "shop").parameters["size"].description == ""


def test_a_renamed_field_is_described_by_its_new_name_alone() -> None:
    assert "agent_id" in describe(Buy, "shop").parameters
    assert "client_id" not in describe(Buy, "shop").parameters


def test_an_event_is_described_as_it_is_declared() -> None:
    said = describe(Buy, "shop")
    assert (said.event, said.namespace, said.kind, said.plugin) == ("shop:buy", "shop", "request", "shop")
    assert (said.summary, said.description) == ("Buy some.", "Buy some.\n\nAt once.")
    assert (said.version, said.safe, said.idempotent) == (2, False, True)
    assert said.errors == ["NOT_FOUND", "ALREADY_EXISTS"]
    assert said.schema_["title"] == "Buy"
    assert said.reply is not None
    assert said.reply["title"] == "Bought"


def test_the_example_of_a_request_is_a_line_to_send() -> None:
    assert describe(Buy, "shop").examples == [{"event": "shop:buy", "data": {"amount": 3}}]


def test_the_example_of_a_notification_is_how_to_follow_it() -> None:
    said = describe(Sold, "shop")
    (line,) = said.examples
    assert line == {"event": "event:subscribe", "data": {"patterns": ["shop:sold"]}}
    assert said.reply is None
    parser(event.Subscribe)(line["data"])  # type: ignore[arg-type]


def test_a_field_that_shows_no_example_has_one_of_its_type() -> None:
    assert example(Guess) == {
        "text": "example",
        "whole": 1,
        "part": 1.0,
        "yes": True,
        "many": [],
        "any": {},
        "size": "small",
    }


def test_what_has_a_default_is_not_in_the_example() -> None:
    assert example(state.List) == {}


def test_the_vocabulary_is_not_empty() -> None:
    assert len(ASKED) > 10
    assert len(DECLARED) > len(ASKED)


@pytest.mark.parametrize("cls", ASKED, ids=name_of)
def test_the_example_of_a_declared_event_is_valid(cls: type[Message]) -> None:
    (line,) = describe(cls, "any").examples
    parser(cls)(line["data"])  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", ASKED, ids=name_of)
def test_every_example_of_every_field_is_valid(cls: type[Message]) -> None:
    for name, info in cls.model_fields.items():
        for value in info.examples or ():
            parser(cls)({**example(cls), public_name(name, info): value})


@pytest.mark.parametrize("cls", DECLARED, ids=name_of)
def test_every_declared_event_can_be_described(cls: type[Message]) -> None:
    said = describe(cls, "any")
    assert said.summary.endswith(".")
    assert said.model_dump_json(by_alias=True)
