"""What a change of a schema takes away, of fields that may be null or are numbers too."""

from typing import Any

from ksi_client.narrowing import broken_for_readers, broken_for_writers

NULL = {"type": "null"}


def having(field: dict[str, Any]) -> dict[str, Any]:
    return {"properties": {"a": field}}


def test_a_limit_of_a_field_that_may_be_null_is_a_limit() -> None:
    old = having({"anyOf": [{"type": "string", "maxLength": 10}, NULL]})
    new = having({"anyOf": [{"type": "string", "maxLength": 5}, NULL]})
    assert list(broken_for_writers(old, new)) == ["a has maxLength 5 now"]
    assert list(broken_for_writers(new, old)) == []


def test_a_limit_of_a_definition_is_one_of_every_field_that_refers_to_it() -> None:
    old = having({"$ref": "#/$defs/Key"}) | {"$defs": {"Key": {"type": "string"}}}
    new = having({"$ref": "#/$defs/Key"}) | {"$defs": {"Key": {"type": "string", "pattern": "^x"}}}
    assert list(broken_for_writers(old, new)) == ["a has another pattern now"]


def test_an_integer_is_a_number() -> None:
    integer, number = having({"type": "integer"}), having({"type": "number"})
    assert list(broken_for_writers(integer, number)) == []
    assert list(broken_for_writers(number, integer)) == ["a no longer takes number"]
    assert list(broken_for_readers(number, integer)) == []
    assert list(broken_for_readers(integer, number)) == ["a may be number now"]
