"""Write replies and rows: as tables, plain lines or JSON."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
import orjson

from ksi_client.cli.invocation import Invocation
from ksi_client.cli.safety import json_visible, one_line, visible


class ReaderGone(Exception):
    """Nobody reads stdout any more."""


def write(invocation: Invocation, text: str = "") -> None:
    """Write a line to stdout; raise ReaderGone where it is a pipe that was closed."""
    try:
        click.echo(text, color=invocation.color)
    except BrokenPipeError as error:
        raise ReaderGone from error


def write_json(invocation: Invocation, value: Any) -> None:
    """Write a JSON document: indented, or on one line for ``jsonl``."""
    option = orjson.OPT_INDENT_2 if invocation.format == "json" else 0
    write(invocation, json_visible(_rendered(value, option)))


def write_json_line(invocation: Invocation, value: Any) -> None:
    """Write one of many JSON documents, on a line."""
    write(invocation, json_visible(_rendered(value)))


def write_fields(invocation: Invocation, data: Mapping[str, Any]) -> None:
    """Write an object: a document, or a line a field; on a terminal, lists of rows are tables below them.

    In a pipe, each object of a list, or of an object of objects, has a line of its own.
    """
    if invocation.is_json:
        write_json(invocation, data)
    elif invocation.format == "plain":
        for name, value in _lines(data):
            write(invocation, f"{one_line(name)}\t{one_line(text_of(value))}")
    else:
        tables = {name: value for name, value in data.items() if _is_table(value)}
        fields = [(name, text_of(value)) for name, value in data.items() if name not in tables]
        write_aligned(invocation, fields)
        for name, rows in tables.items():
            write(invocation, click.style(f"\n{one_line(name)}", bold=True))
            write_rows(invocation, list(rows[0]), [list(map(text_of, row.values())) for row in rows])


def write_aligned(invocation: Invocation, pairs: Sequence[tuple[str, str]], indent: str = "") -> None:
    """Write names and values in two columns; further lines of a value stand below its first."""
    width = max((len(one_line(name)) for name, _ in pairs), default=0)
    for name, value in pairs:
        first, *rest = visible(value).split("\n")
        label = click.style(f"{one_line(name):<{width}}", bold=True)
        write(invocation, f"{indent}{label}  {first}")
        for line in rest:
            write(invocation, f"{indent}{'':<{width}}  {line}")


def write_rows(invocation: Invocation, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows: tab-separated, or in columns below their headings with the last cut to the terminal."""
    if invocation.format == "plain":
        for row in rows:
            write(invocation, "\t".join(map(one_line, row)))
        return
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    room = max(20, shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * (len(widths) - 1))
    write(invocation, click.style(columns(headings, widths), bold=True))
    for row in cells:
        write(invocation, columns([*row[:-1], _cut(row[-1], room)], widths))


def columns(row: Sequence[str], widths: Sequence[int]) -> str:
    """Give a row as one line, each cell padded to its width."""
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def text_of(value: Any) -> str:
    """Give a value as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _rendered(value: Any, option: int = 0) -> str:
    try:
        return orjson.dumps(value, option=option).decode()
    except TypeError:  # a file's name that is no UTF-8, in an error
        return orjson.dumps(_readable(value), option=option).decode()


def _readable(value: Any) -> Any:
    """Show in texts what is no Unicode."""
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {_readable(name): _readable(each) for name, each in value.items()}
        case list() | tuple():
            return [_readable(each) for each in value]
    return value


def _lines(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if _are_objects(value):
            yield from ((name, each) for each in value)
        elif isinstance(value, dict) and _are_objects(list(value.values())):
            yield from ((f"{name}.{key}", each) for key, each in value.items())
        else:
            yield name, value


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _is_table(value: Any) -> bool:
    """Tell whether a value is a list of objects of the same fields, none of which holds others."""
    if not _are_objects(value):
        return False
    flat = not any(isinstance(cell, dict | list) for row in value for cell in row.values())
    return flat and all(row.keys() == value[0].keys() for row in value)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
