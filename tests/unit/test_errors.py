"""Errors have one code each, and cross the wire unchanged."""

from typing import Any

import pytest

from ksi_common import errors
from ksi_common.errors import (
    ERRORS,
    FailedPrecondition,
    InternalError,
    KSIError,
    NotFound,
    OperationalError,
    ResourceExhausted,
    error_from_wire,
)

CODES = [
    "INTERNAL",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "UNIMPLEMENTED",
    "DATA_LOSS",
]


def test_the_codes_are_those_of_the_table() -> None:
    assert list(ERRORS) == CODES


@pytest.mark.parametrize("code", CODES)
def test_the_tree_in_the_docstring_names_the_class_of_each_code(code: str) -> None:
    line = next(line for line in (errors.__doc__ or "").splitlines() if code in line.split())
    assert ERRORS[code].__name__ in line


@pytest.mark.parametrize("code", CODES)
def test_the_tree_says_which_are_retryable(code: str) -> None:
    line = next(line for line in (errors.__doc__ or "").splitlines() if code in line.split())
    assert ERRORS[code]("x").retryable is ("retryable" in line)


@pytest.mark.parametrize("code", CODES)
def test_an_error_crosses_the_wire_unchanged(code: str) -> None:
    error = ERRORS[code]("queue full", hint="wait", reason="full", limit=256)
    copy = error_from_wire(error.to_wire())
    assert type(copy) is ERRORS[code]
    assert copy.to_wire() == error.to_wire()


def test_only_internal_errors_are_not_operational() -> None:
    assert [kind for kind in ERRORS.values() if not issubclass(kind, OperationalError)] == [InternalError]


def test_without_a_message_the_docstring_is_the_message() -> None:
    assert NotFound().message == "The thing asked for does not exist."


def test_an_error_can_say_that_it_is_retryable_where_its_kind_is_not() -> None:
    assert FailedPrecondition("x", retryable=True).to_wire()["retryable"] is True
    assert ResourceExhausted("x", retryable=False).to_wire()["retryable"] is False


def test_a_hint_is_left_out_where_there_is_none() -> None:
    assert "hint" not in NotFound("x").to_wire()


def test_an_unknown_code_becomes_an_internal_error() -> None:
    error = error_from_wire({"code": "NEW_IN_2030", "message": "what"})
    assert type(error) is InternalError
    assert error.message == "what"


def test_an_error_object_with_nothing_in_it_is_read() -> None:
    error = error_from_wire({})
    assert isinstance(error, KSIError)
    assert error.details == {}
    assert error.retryable is False


@pytest.mark.parametrize("wire", [{"code": []}, {"code": None}, {"details": [1]}, {"details": "x"}])
def test_an_error_object_of_wrong_types_is_a_bug_with_no_details(wire: dict[str, Any]) -> None:
    error = error_from_wire(wire)
    assert type(error) is InternalError
    assert error.details == {}


def test_details_that_are_named_like_parameters_survive() -> None:
    wire = {"code": "NOT_FOUND", "message": "x", "details": {"message": 1, "hint": 2}, "retryable": False}
    assert error_from_wire(wire).to_wire() == wire
