#!/usr/bin/env python3
"""Write reference.md: hooks, services and all that plugins import, from their docstrings.

python docs/plugins/generate.py            writes it
python docs/plugins/generate.py --check    changes nothing; exits with 1 where it is not up to date
"""

import argparse
import ast
import asyncio
import inspect
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from ksi_daemon import hookspecs, plugin, testing
from ksi_daemon.logs import logging_to
from ksi_daemon.settings import LogSettings
from ksi_daemon.testing import running_daemon

PAGE = Path(__file__).resolve().parent / "reference.md"
COMMAND = "python docs/plugins/generate.py"
HEAD = f"""\
# Reference

<!-- Written by `{COMMAND}`. Change the code, not this page. -->

What a plugin is written with: everything here is `from ksi_daemon.plugin import …`, and what tests are
written with is `from ksi_daemon.testing import …`. It changes by addition within a version of `ksi_api`.
[Events](../reference/events.md), [settings](../reference/settings.md) and [errors](../reference/errors.md)
have pages of their own. Of a class stand its fields first, as it takes them by name, then what it does:
`async` is awaited, `async with` and `with` are entered.
"""
HOOKS = "Decorate a function of that name with `@hookimpl`; take the parameters you need."
SERVICES = "What a handler may take as a parameter, by type, and the plugin that offers it."

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description="Write the reference of plugins from the code.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where the page is old"
    )
    check = parser.parse_args().check
    text = page()
    if text == (PAGE.read_text() if PAGE.exists() else None):
        return 0
    if check:
        sys.stderr.write(f"not up to date: {PAGE.name}; run {COMMAND}\n")
        return 1
    PAGE.write_text(text)
    return 0


def page() -> str:
    """Make the page."""
    services = asyncio.run(_services())
    lines = [
        HEAD,
        "## Hooks",
        "",
        "Decorate a function of that name with `@hookimpl`; take the parameters you need.",
        "",
    ]
    for name, spec in vars(hookspecs).items():
        if name.startswith("ksi_"):
            lines += [
                f"### `{name}`",
                "",
                "```text",
                _written(spec),
                "```",
                "",
                inspect.getdoc(spec) or "",
                "",
            ]
    lines += [
        "## Services",
        "",
        "What a handler may take as a parameter, by type, and the plugin that offers it.",
        "",
    ]
    for interface, origin in sorted(services.items(), key=lambda pair: pair[0].__name__):
        lines += [f"- `{interface.__name__}` ({origin}): {_first_line(interface)}"]
    for title, module in (("To import", plugin), ("For tests", testing)):
        lines += ["", f"## {title}", ""]
        for name in module.__all__:
            lines += [f"### `{name}`", "", *_described(name, getattr(module, name))]
    return "\n".join(lines).rstrip() + "\n"


async def _services() -> Mapping[type, str]:
    with tempfile.TemporaryDirectory() as folder, logging_to(Path(folder) / "ksi.jsonl", LogSettings()):
        async with running_daemon(settings={"load_plugins": "none"}) as ksi:
            return dict(ksi.daemon.services.origins)


def _described(name: str, thing: Any) -> Iterator[str]:
    origin = str(getattr(thing, "__module__", "ksi"))
    if inspect.isroutine(thing) and not origin.startswith("ksi"):
        yield from (f"As it is in {origin.partition('.')[0]}.", "")
    elif inspect.isclass(thing):
        yield from _class(thing)
    elif inspect.isroutine(thing):
        yield from ("```text", f"{name}{_signature(thing)}", "```", "", inspect.getdoc(thing) or "", "")
    elif isinstance(thing, str | int | float):
        yield from (f"`{thing!r}`", "")
    elif get_origin(thing) is Annotated:  # its validators say nothing to who reads; its schema does
        schema = TypeAdapter(thing).json_schema()
        yield from (f"{_type_of(get_args(thing)[0].__name__)} with the schema `{schema}`", "")
    else:
        yield from (_type_of(thing), "")


def _class(cls: type) -> Iterator[str]:
    yield from (_own_doc(cls), "")
    yield from _fields(cls)
    for name, member in sorted(vars(cls).items()):
        function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        if name.startswith("_") or issubclass(cls, BaseModel | Enum):
            continue
        if inspect.isfunction(function):
            yield f"- `{_kind(function)}{name}{_signature(function)}`: {_first_line(function)}"
        elif isinstance(function, property):
            yield f"- `{name}`: {_first_line(function)}"
    yield ""


def _fields(cls: type) -> Iterator[str]:
    """Give the fields of a record, in the order in which it takes them."""
    docs = _field_docs(cls)
    for field in fields(cls) if is_dataclass(cls) else ():
        if field.name.startswith("_"):
            continue
        default = "" if field.default is MISSING else f" = {field.default!r}"
        said = f": {docs[field.name]}" if field.name in docs else ""
        yield f"- `{field.name}: {_annotation(field.type)}{_ADDRESS.sub('', default)}`{said}"


def _field_docs(cls: type) -> Mapping[str, str]:
    """Read the strings that stand below the fields of a class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _annotation(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else _type_of(kind).strip("`")


def _kind(function: Any) -> str:
    """Say what is to be done with what it gives: awaited, or entered."""
    written = inspect.unwrap(function)
    given = str(inspect.signature(written).return_annotation)
    if written is not function and "Iterator" in given:
        return "async with " if inspect.isasyncgenfunction(written) else "with "
    return "async " if inspect.iscoroutinefunction(function) else ""


def _own_doc(cls: type) -> str:
    doc = inspect.cleandoc(cls.__doc__ or "")
    return "" if doc.startswith(f"{cls.__name__}(") else doc  # what dataclass makes


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def _signature(function: Any) -> str:
    try:
        text = str(inspect.signature(function))
    except ValueError:
        return "(…)"
    return (
        _ADDRESS.sub("", re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text))
        .replace("self, ", "")
        .replace("self", "")
    )


def _written(spec: Any) -> str:
    written = inspect.getsource(spec).partition("\n")[2].partition('"""')[0]
    return " ".join(written.partition("# type:")[0].split()).removesuffix(":")


def _type_of(thing: Any) -> str:
    name = re.sub(r"\b(?:[a-z_]+\.)+(\w+)", r"\1", str(thing))
    return f"`{_ADDRESS.sub('', name)}`"


if __name__ == "__main__":
    sys.exit(main())
