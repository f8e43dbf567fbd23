"""`ksi contract`: what clients may rely on, as a file, and what a change of it takes away."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import orjson

from ksi_client.cli.events import discovered
from ksi_client.cli.failures import FAILED
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import write, write_json, write_json_line
from ksi_common.errors import InvalidArgument

_MARKS: Final = {"breaking": ("✗", "red"), "deprecation": ("!", "yellow"), "addition": ("+", "green")}
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def contract() -> None:
    """Save what clients rely on, and see what a change breaks.

    \b
    ksi contract save contract.json     what can be sent and followed now
    ksi contract diff contract.json     what has changed since, and whom it breaks
    """  # noqa: D301


@contract.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--namespace", help="Only events of this namespace, as those of a plugin.")
@common_options
@click.pass_obj
def save(invocation: Invocation, file: Path, namespace: str | None) -> None:
    """Write the daemon's discovery document into a file. Commit that.

    \b
    ksi contract save contract.json --namespace weather
    """  # noqa: D301
    found = _discovered(invocation, namespace)
    file.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
    write(invocation, f"{found['total_events']} events written to {file}")


@contract.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE, required=False)
@common_options
@click.pass_obj
def diff(invocation: Invocation, old: Path, new: Path | None) -> int:
    """Compare two documents, or one with the daemon.

    Exit code 1 where a client of the old one breaks.

    \b
    ksi contract diff contract.json
    ksi contract diff 1.0.json 1.1.json -o jsonl
    """  # noqa: D301
    from ksi_client.contract import changes  # noqa: PLC0415 -- where it is needed

    before = _read(old)
    after = _narrowed(_discovered(invocation, None), before) if new is None else _read(new)
    found = changes(before, after)
    if invocation.format == "jsonl":
        for change in found:
            write_json_line(invocation, {"kind": change.kind, "event": change.event, "text": str(change)})
    elif invocation.format == "json":
        listed = [{"kind": each.kind, "event": each.event, "text": str(each)} for each in found]
        write_json(invocation, {"changes": listed})
    else:
        for change in found:
            mark, color = _MARKS[change.kind]
            write(invocation, f"{click.style(mark, fg=color)} {one_line(str(change))}")
        kinds = [change.kind for change in found]
        write(invocation, _verdict(kinds.count("breaking"), len(kinds)))
    return FAILED if any(change.kind == "breaking" for change in found) else 0


def _verdict(broken: int, count: int) -> str:
    if broken:
        return f"{broken} of {count} break clients: that takes a new major version."
    return "Nothing breaks." if count else "No change."


def _discovered(invocation: Invocation, namespace: str | None) -> dict[str, Any]:
    with invocation.client() as client:
        return discovered(client, namespace)


def _narrowed(found: dict[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the namespaces that a document of one plugin is not about."""
    about = {*like["events"], *like["notifications"]}
    return {
        **found,
        **{
            group: {name: events for name, events in found[group].items() if name in about}
            for group in ("events", "notifications")
        },
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(file.read_bytes())
    except ValueError:
        found = None
    if isinstance(found, dict) and {"events", "notifications"} <= found.keys():
        return found
    raise InvalidArgument(
        f"{file} is no discovery document", hint="ksi contract save FILE", reason="bad_document"
    )
