"""Data is read strictly, once; what is wrong with it is said by path, with a guess."""

from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator

from ksi_common.errors import InvalidArgument
from ksi_common.events.event import Subscribe
from ksi_common.events.types import EventName, EventPattern, Name, StreamName
from ksi_common.messages import Message, Request, renamed_from
from ksi_common.protocol import MAX_DATA
from ksi_common.validation import parser


class Bought(Message):
    n: int


class Address(Message):
    street: str
    number: int = 1


class Buy(Request[Bought], event="shop:buy"):
    """Buy."""

    amount: int
    name: str = "apple"
    price: float = 1.0
    gift: bool = False
    ship_to: Address | None = None
    wrap: Literal["paper"] | Address | None = None
    notes: dict[Name, str] | None = None
    parts: tuple[Address, ...] = ()
    agent_id: str | None = renamed_from("client_id", "agent_id", None)


class Look(Request[Bought], event="shop:look"):
    """Look."""

    far: bool = False


class ByHand(Message):
    to: str


class ByPost(Message):
    to: str
    paid: Literal["yes", "no"] | Annotated[int, Field(ge=0)]


class Send(Request[Bought], event="shop:send"):
    """Send."""

    how: Literal["now", "later"] | ByHand | ByPost = "now"
    parts: tuple[ByHand | Annotated[int, Field(ge=1)], ...] = ()


class Follow(Request[Bought], event="shop:follow"):
    """Follow."""

    event: EventName = "shop:sold"
    pattern: EventPattern = "shop:*"
    name: Name = "a"
    stream: StreamName = "shop/1"


buy = parser(Buy)
follow = parser(Follow)
look = parser(Look)
send = parser(Send)


def refusal(data: dict[str, Any]) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as refused:
        buy(data)
    return refused.value


def test_data_becomes_a_message() -> None:
    assert buy({"amount": 2, "name": "pear"}) == Buy(amount=2, name="pear")


def test_data_of_an_event_that_needs_none_may_be_empty() -> None:
    assert look({}) == Look()


def test_messages_that_say_nothing_are_one() -> None:
    assert look({}) is look({})


def test_an_event_whose_fields_need_one_another_is_parsed() -> None:
    class Ask(Request[Bought], event="shop:ask"):
        by_name: str | None = None
        by_number: int | None = None

        @model_validator(mode="after")
        def _has_one(self) -> Self:
            if self.by_name is None and self.by_number is None:
                raise ValueError("give a name or a number")
            return self

    assert parser(Ask)({"by_number": 1}).by_number == 1
    with pytest.raises(InvalidArgument, match="give a name or a number"):
        parser(Ask)({})


def test_a_deprecated_alias_is_read_as_its_new_name() -> None:
    assert buy({"amount": 1, "client_id": "a1"}).agent_id == "a1"


def test_the_new_name_is_read_too_and_sent_alone() -> None:
    message = buy({"amount": 1, "agent_id": "a1"})
    assert message.model_dump(by_alias=True)["agent_id"] == "a1"
    assert "client_id" not in message.model_dump(by_alias=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amount", "2"),
        ("amount", 2.0),
        ("amount", True),
        ("amount", None),
        ("name", 5),
        ("price", "1.5"),
        ("gift", 1),
        ("gift", "true"),
        ("parts", {}),
        ("ship_to", "home"),
    ],
)
def test_a_value_of_another_json_type_is_refused(field: str, value: object) -> None:
    error = refusal({"amount": 1, field: value})
    assert error.details["field"].split(".")[0] == field
    assert error.details["reason"] == "invalid_field"
    assert error.message.startswith(f"{field}: ")
    assert error.hint == "system:help {event: shop:buy} shows its fields"


def test_an_integer_is_read_where_a_number_is_wanted() -> None:
    assert buy({"amount": 1, "price": 2}).price == 2.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"event": "shop"}, "event: an event is called namespace:name, in small letters"),
        ({"name": "a/b"}, "name: a name has 1 to 128 letters"),
        ({"pattern": "shop"}, "pattern: 'shop' is no event pattern"),
        ({"stream": "shop/"}, "stream: a stream is called category/id"),
    ],
)
def test_a_name_that_is_none_is_refused_in_words(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        follow(data)
    assert refused.value.message.startswith(message)


def test_a_missing_field_is_named() -> None:
    error = refusal({"name": "pear"})
    assert error.message == "shop:buy needs the field amount"
    assert (error.details["reason"], error.details["field"]) == ("missing", "amount")


def test_an_unknown_field_is_refused_with_a_guess() -> None:
    error = refusal({"amount": 1, "nmae": "pear"})
    assert error.message == 'shop:buy has no field "nmae"'
    assert error.hint == 'did you mean "name"?'
    assert (error.details["reason"], error.details["field"]) == ("unknown_field", "nmae")


def test_a_misspelt_field_is_told_before_the_one_that_is_missing_for_it() -> None:
    error = refusal({"amonut": 1})
    assert error.hint == 'did you mean "amount"?'
    assert [problem["field"] for problem in error.details["problems"]] == ["amonut", "amount"]


def test_a_deprecated_alias_is_not_guessed() -> None:
    assert refusal({"amount": 1, "client_idd": "a1"}).hint != 'did you mean "client_id"?'


def test_an_unknown_field_like_no_other_is_refused_with_where_to_look() -> None:
    assert refusal({"amount": 1, "zzz": 1}).hint == "system:help {event: shop:buy} shows its fields"


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"ship_to": {"street": 5}}, "ship_to.street"),
        ({"ship_to": {}}, "ship_to.street"),
        ({"parts": [{"street": "a"}, {"street": "b", "number": "x"}]}, "parts.1.number"),
        ({"wrap": "silk"}, "wrap"),
        ({"wrap": {"street": 5}}, "wrap.street"),
        ({"wrap": {"street": "a", "nubmer": 5}}, "wrap.nubmer"),
        ({"notes": {"a b": "x"}}, "notes.a b"),
        ({"notes": {"a": 5}}, "notes.a"),
    ],
)
def test_a_nested_field_is_named_by_its_path(data: dict[str, Any], path: str) -> None:
    assert refusal({"amount": 1, **data}).details["field"] == path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"how": "never"}, "how: input should be 'now' or 'later', or an object"),
        ({"how": 5}, "how: input should be 'now' or 'later', or an object"),
        ({"how": {"to": 5}}, "how.to: input should be a valid string"),
        ({"how": {}}, "shop:send needs the field how.to"),
        ({"how": {"to": "a", "by": 1}}, 'shop:send has no field "how.by"'),
        ({"how": {"to": "a", "paid": -1}}, "how.paid: input should be greater than or equal to 0"),
        (
            {"how": {"to": "a", "paid": "so"}},
            "how.paid: input should be 'yes' or 'no', or a valid integer",
        ),
        ({"parts": [1, 0]}, "parts.1: input should be greater than or equal to 1"),
        ({"parts": [1, {"to": 5}]}, "parts.1.to: input should be a valid string"),
    ],
)
def test_a_field_of_several_kinds_is_held_against_the_nearest(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        send(data)
    assert refused.value.message == message
    [problem] = refused.value.details["problems"]
    assert problem["field"] == refused.value.details["field"]
    assert problem["field"] in message


def test_an_unknown_field_is_refused_at_any_depth() -> None:
    error = refusal({"amount": 1, "parts": [{"street": "a", "nubmer": 5}]})
    assert error.message == 'shop:buy has no field "parts.0.nubmer"'
    assert error.details["reason"] == "unknown_field"


def test_all_problems_are_listed_twenty_at_most() -> None:
    assert len(refusal({"name": 1, "price": "x"}).details["problems"]) == 3
    assert len(refusal({f"x{n}": 1 for n in range(100)}).details["problems"]) == 20


def test_a_long_name_of_a_field_is_shown_in_part() -> None:
    assert refusal({"amount": 1, "x" * 10_000: 1}).details["field"] == "x" * 128


def test_the_value_refused_is_not_repeated() -> None:
    assert "sk-1234" not in str(refusal({"amount": "sk-1234"}).to_wire())


def test_data_that_is_too_large_is_refused_with_the_limit() -> None:
    error = refusal({"amount": 1, "name": "x" * MAX_DATA})
    assert (error.details["reason"], error.details["limit"]) == ("too_large", MAX_DATA)


def test_data_as_large_as_the_limit_is_read() -> None:
    frame = len('{"amount":1,"name":""}')
    assert len(buy({"amount": 1, "name": "x" * (MAX_DATA - frame)}).name) == MAX_DATA - frame


@pytest.mark.parametrize(
    ("start", "field", "message"),
    [
        ({"time": "2026-01-31T12:00:00"}, "start.time", "has no UTC offset; write it like"),
        ({"time": 5}, "start.time", "start.time: input should be a valid string"),
        ({"cursor": 5}, "start.cursor", "start.cursor: input should be a valid string"),
        ({"tim": "x"}, "start.tim", 'event:subscribe has no field "start.tim"'),
    ],
)
def test_a_field_of_one_kind_of_a_union_is_not_called_unknown(
    start: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parser(Subscribe)({"patterns": ["state:*"], "start": start})
    assert refused.value.details["field"] == field
    assert message in refused.value.message
