"""An event is a class; what it declares is read from it, and nonsense is refused where it is declared."""

from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from ksi_common.errors import NotFound
from ksi_common.events.types import EventPattern, Time
from ksi_common.messages import (
    EventSpec,
    Message,
    Notification,
    Request,
    Stream,
    accepted_names,
    is_event_name,
    is_event_pattern,
    matches,
    public_name,
    renamed_from,
    spec_of,
)

T = TypeVar("T", bound=Message)


class Found(Message):
    value: int


class Get(Request[Found], event="shop:get", safe=True, raises=[NotFound]):
    key: str


class Watch(Stream[Found], event="shop:watch"):
    """Items."""


class Sold(Notification, event="shop:sold", ephemeral=True, version=2):
    key: str


class Spawn(Request[Found], event="shop:spawn"):
    purpose: str | None = renamed_from("task", "purpose", None)


def test_a_request_declares_its_event_and_reply() -> None:
    assert spec_of(Get) == EventSpec("shop:get", "request", Found, safe=True, raises=(NotFound,))
    assert spec_of(Get).namespace == "shop"


def test_a_stream_declares_its_item() -> None:
    assert spec_of(Watch) == EventSpec("shop:watch", "stream", Found)


def test_a_notification_has_no_reply() -> None:
    assert spec_of(Sold) == EventSpec("shop:sold", "notification", None, ephemeral=True, version=2)


def test_a_class_given_in_place_of_its_message_is_said_to_be_one() -> None:
    with pytest.raises(TypeError, match="this is the class of an event: make a message of it"):
        spec_of(type(Get))  # type: ignore[arg-type]  # as a caller without mypy does


def test_a_class_without_an_event_has_no_spec() -> None:
    with pytest.raises(TypeError, match="Found declares no event"):
        spec_of(Found)


def test_keywords_without_an_event_name_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Bad has class keywords \['safe'\] but no event= name"):

        class Bad(Request[Found], safe=True):
            pass


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="sfae"):

        class Bad(Request[Found], event="a:b", sfae=True):
            pass


@pytest.mark.parametrize("name", ["get", "Shop:get", "shop:", ":get", "shop:get ", "shop.get", "shop:*"])
def test_a_name_that_is_no_event_name_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="is not an event name"):

        class Bad(Notification, event=name):
            pass


def test_a_request_without_a_reply_is_refused() -> None:
    with pytest.raises(TypeError, match="does not say what it is answered with"):

        class Bad(Request, event="a:b"):  # type: ignore[type-arg]  # that is what is refused
            pass


def test_a_reply_that_is_no_message_is_refused() -> None:
    with pytest.raises(TypeError, match="is no Message"):

        class Bad(Request[T], event="a:b"):
            pass


def test_a_request_refuses_unknown_fields_and_a_reply_ignores_them() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Get.model_validate({"key": "a", "colour": 1})
    assert Found.model_validate({"value": 1, "colour": 1}) == Found(value=1)
    assert Sold.model_validate({"key": "a", "colour": 1}) == Sold(key="a")


def test_a_message_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Found(value=1).value = 2  # type: ignore[misc]  # that is what is refused


def test_a_renamed_field_is_read_under_both_names_and_sent_under_the_new_one() -> None:
    for name in ("task", "purpose"):
        spawn = Spawn.model_validate({name: "look"})
        assert spawn.purpose == "look"
        assert spawn.model_dump(by_alias=True) == {"purpose": "look"}


def test_deprecated_names_are_not_among_those_suggested() -> None:
    assert accepted_names(Spawn) == ["purpose"]


def test_an_alias_is_the_name_on_the_wire() -> None:
    from ksi_common.events.system import EventHelp

    assert public_name("schema_", EventHelp.model_fields["schema_"]) == "schema"


@pytest.mark.parametrize("name", ["a:b", "a:b:c", "a1_b:c_2", "a:" + "b" * 126])
def test_snake_case_parts_joined_by_colons_are_an_event_name(name: str) -> None:
    assert is_event_name(name)
    assert is_event_pattern(name)


@pytest.mark.parametrize("name", ["", "a", "a:b\n", "a:1", "A:b", "a::b", "a:b:", "a:" + "b" * 127])
def test_anything_else_is_not(name: str) -> None:
    assert not is_event_name(name)
    assert not is_event_pattern(name)


@pytest.mark.parametrize("pattern", ["*", "s*", "state*", "state:*", "state:ch*", "a:b:*"])
def test_the_beginning_of_a_name_and_a_star_are_a_pattern(pattern: str) -> None:
    assert is_event_pattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["**", "*:a", "a*b", ":*", "a::*", "state:*:x", "s?", "[a]*", "a" * 128 + "*"]
)
def test_a_star_elsewhere_is_no_pattern(pattern: str) -> None:
    assert not is_event_pattern(pattern)


class Follow(Message):
    pattern: EventPattern = "*"
    since: Time = "2026-01-31T12:00:00Z"


@pytest.mark.parametrize(
    "data", [{"pattern": "a*b"}, {"since": "yesterday"}, {"since": "2026-01-31T12:00:00"}]
)
def test_fields_of_these_types_are_checked(data: dict[str, str]) -> None:
    Follow.model_validate({"pattern": "a:*", "since": "2026-01-31T12:00:00+02:00"})
    with pytest.raises(ValidationError, match="value_error"):
        Follow.model_validate(data)


@pytest.mark.parametrize(
    ("pattern", "event", "meant"),
    [
        ("*", "a:b", True),
        ("a:*", "a:b", True),
        ("a:*", "ab:c", False),
        ("a*", "ab:c", True),
        ("a:b", "a:b", True),
        ("a:b", "a:b:c", False),
    ],
)
def test_a_trailing_star_matches_the_rest(pattern: str, event: str, meant: Any) -> None:
    assert matches(pattern, event) is meant


def test_a_reply_that_is_named_is_no_class_of_its_own() -> None:
    class Ask(Request[Found], event="shop:ask"):
        """Ask."""

    assert Ask.__mro__[1] is Request
    assert spec_of(Ask).reply is Found
