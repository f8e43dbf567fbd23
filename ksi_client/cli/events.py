"""`ksi events`: what can be sent and followed."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from ksi_client.cli.fields import Schema, alternatives
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line, visible
from ksi_client.cli.writing import (
    columns,
    text_of,
    write,
    write_aligned,
    write_json,
    write_json_line,
    write_rows,
)
from ksi_client.raw import RawClient
from ksi_common.errors import NotFound
from ksi_common.guessing import guess, nearest

Described = Mapping[str, Any]

WIDEST: Final = 40
"""Characters of a column, past which only its own row moves."""


@click.group()
def events() -> None:
    """List and explain events.

    \b
    ksi events ls                 all of them
    ksi events ls state           those of a namespace
    ksi events show state:set     fields, reply, errors and an example
    """  # noqa: D301


@events.command()
@click.argument("namespace", required=False)
@common_options
@click.pass_obj
def ls(invocation: Invocation, namespace: str | None) -> None:
    """List events: those that can be sent, then those that are told.

    \b
    ksi events ls
    ksi events ls state
    ksi events ls -o jsonl | jq -r .event
    """  # noqa: D301
    with invocation.client() as client:
        found = discovered(client, namespace)
    if invocation.format == "json":
        write_json(invocation, found)
    elif invocation.format == "jsonl":
        for event in _all(found):
            write_json_line(invocation, event)
    else:
        rows = [(event["event"], event["kind"], _plain(event["summary"])) for event in _all(found)]
        write_rows(invocation, ("EVENT", "KIND", "SUMMARY"), rows)


@events.command()
@click.argument("event")
@common_options
@click.pass_obj
def show(invocation: Invocation, event: str) -> None:
    """Explain one event.

    \b
    ksi events show state:set
    ksi events show state:set --json | jq .schema
    """  # noqa: D301
    with invocation.client() as client:
        described = client.call_raw("system:help", {"event": event}, safe=True)
    if invocation.is_json:
        write_json(invocation, described)
    else:
        _explain(invocation, described)


def discovered(client: RawClient, namespace: str | None) -> dict[str, Any]:
    """Give what there is, or what of it is in a namespace; raise NotFound that names the nearest."""
    found = client.call_raw("system:discover", {"namespace": namespace} if namespace else {}, safe=True)
    if namespace and not any(_all(found)):
        known = client.call_raw("system:discover", safe=True)
        near = nearest(namespace, sorted({*known["events"], *known["notifications"]}))
        raise NotFound(
            f"there are no events in {namespace!r}",
            hint=guess(near, "ksi events ls"),
            reason="no_events",
            nearest=near,
        )
    return found


def command_line(example: Mapping[str, Any]) -> str:
    """Give the `ksi` command that sends an example."""
    words = [_word(key, value) for key, value in example.get("data", {}).items()]
    return " ".join(["ksi call", example["event"], *words])


def _all(found: Mapping[str, Any]) -> Iterator[Described]:
    for group in ("events", "notifications"):
        for described in found[group].values():
            yield from described


def _explain(invocation: Invocation, described: Described) -> None:
    name = click.style(one_line(described["event"]), bold=True)
    write(invocation, f"{name}  {_plain(described['summary'])}")
    write(invocation, f"  a {one_line(described['kind'])} of plugin {one_line(described['plugin'])}")
    for line in visible(described["description"].partition("\n")[2].strip()).splitlines():
        write(invocation, f"  {line.replace('``', '')}".rstrip())
    rows = list(_rows(described["parameters"], described["schema"]))
    widths = [min(max(map(len, column)), WIDEST) for column in zip(*rows, strict=True)]
    for row in rows:
        write(invocation, "  " + columns(row, widths))
    write_aligned(invocation, list(_facts(described)), indent="  ")


def _rows(parameters: Mapping[str, Described], schema: Schema) -> Iterator[tuple[str, str, str]]:
    for name, parameter in parameters.items():
        field = schema["properties"][name]
        need = "required" if parameter["required"] else _default(parameter["default"])
        yield _row(name, _kind(field, schema), need, parameter["description"])
        for held in _objects(field, schema):
            for inner, part in held["properties"].items():
                need = _default(part["default"]) if "default" in part else "optional"
                need = "required" if inner in held.get("required", ()) else need
                yield _row(inner, _kind(part, schema), need, part.get("description", ""), indent="  ")


def _row(name: str, kind: str, need: str, description: str, *, indent: str = "") -> tuple[str, str, str]:
    return indent + one_line(name), one_line(f"{kind}, {need}"), _plain(description)


def _objects(field: Schema, root: Schema) -> Iterator[Schema]:
    """Yield what a field may be that has fields of its own, or may be a list of."""
    for kind in alternatives(field, root):
        if "properties" in kind:
            yield kind
        elif kind.get("type") == "array":
            yield from _objects(kind.get("items", {}), root)


def _default(value: Any) -> str:
    return f"default {'empty' if value == '' else text_of(value)}"


def _kind(field: Schema, root: Schema) -> str:
    kinds = dict.fromkeys(name for kind in alternatives(field, root) for name in _names(kind, root))
    return " | ".join(kinds) or "any"


def _names(kind: Schema, root: Schema) -> Sequence[str]:
    if "const" in kind or "enum" in kind:
        return [text_of(value) for value in kind.get("enum", [kind.get("const")])]
    if kind["type"] == "array":
        return [f"array of {_kind(kind.get('items', {}), root)}"]
    return [kind["type"]]


def _plain(text: str) -> str:
    return one_line(text.replace("``", ""))


def _facts(described: Described) -> Iterator[tuple[str, str]]:
    if described.get("deprecated"):
        yield "deprecated", described["deprecated"]
    reply = described.get("reply")
    if reply:
        yield "gives", "{" + ", ".join(reply.get("properties", {})) + "}"
    if described["errors"]:
        yield "errors", ", ".join(described["errors"])
    examples: Sequence[Mapping[str, Any]] = described["examples"]
    if described["kind"] == "notification":
        yield "follow", f"ksi sub {described['event']}"
    elif examples:
        yield "example", command_line(examples[0])


def _word(key: str, value: Any) -> str:
    return shlex.quote(f"{key}={value}" if isinstance(value, str) else f"{key}:={text_of(value)}")
