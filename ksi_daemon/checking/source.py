"""Read the source of a plugin for what loading does not show: calls that block, functions nobody calls."""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import getmodule, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any, Final, get_type_hints

import pluggy

from ksi_common.messages import Message, Notification
from ksi_daemon import hookspecs
from ksi_daemon.checking.findings import Finding, at, place_of
from ksi_daemon.supervisor import attempt

BLOCKING: Final[Mapping[str, str]] = {
    "time.sleep": "await asyncio.sleep(…)",
    "input": "ask for it in the request",
    "os.system": "take processes: Processes as a parameter",
    "os.popen": "take processes: Processes as a parameter",
    "subprocess.run": "take processes: Processes as a parameter",
    "subprocess.call": "take processes: Processes as a parameter",
    "subprocess.check_call": "take processes: Processes as a parameter",
    "subprocess.check_output": "take processes: Processes as a parameter",
    "urllib.request.urlopen": "make the handler a plain `def`: it gets a thread",
    "socket.create_connection": "await asyncio.open_connection(…)",
    "sqlite3.connect": "take database: Database as a parameter",
    **{
        f"requests.{verb}": "use an asynchronous client, or make the handler a plain `def`: it gets a thread"
        for verb in ("get", "post", "put", "patch", "delete", "head", "request")
    },
    **{
        f"httpx.{verb}": "use httpx.AsyncClient, or make the handler a plain `def`: it gets a thread"
        for verb in ("get", "post", "put", "patch", "delete", "head", "request")
    },
}
"""Calls that hold the loop, and what to do in their place."""

Hooks = frozenset(name for name in vars(hookspecs) if name.startswith("ksi_"))


def modules_in(module: object) -> Sequence[ModuleType]:
    """List the loaded modules of a plugin: its own and those beside it in its package."""
    name = str(getattr(module, "__name__", ""))
    top = name.partition(".")[0]
    return [
        found
        for own, found in tuple(sys.modules.items())
        if (own == top or own.startswith(f"{top}.")) and getattr(found, "__file__", None)
    ]


def blocking(module: ModuleType) -> Iterator[Finding]:
    """Find calls in async functions that would hold up everybody."""
    path = Path(str(module.__file__))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = dict(_imported(tree))
    for function in ast.walk(tree):
        if isinstance(function, ast.AsyncFunctionDef):
            for call in sorted(_calls(function), key=lambda call: call.lineno):
                called = _dotted(call.func, names)
                if called in BLOCKING:
                    yield Finding(
                        "problem",
                        f"{called}(…) in `async def {function.name}` stops the whole daemon while it waits",
                        at(path, call.lineno),
                        BLOCKING[called],
                    )


def undecorated(module: ModuleType) -> Iterator[Finding]:
    """Find functions that look like handlers, subscribers or hooks, and are none."""
    for name, function in tuple(vars(module).items()):
        if not isfunction(function) or getmodule(function) is not module:
            continue
        if name in Hooks and not _is_hook(function):
            yield Finding(
                "problem",
                f"{name} is never called: it is not decorated with @hookimpl",
                place_of(function),
                "from ksi_daemon.plugin import hookimpl",
            )
        elif not name.startswith("_") and not _is_marked(function):
            yield from _forgotten(name, function)


def _forgotten(name: str, function: Callable[..., Any]) -> Iterator[Finding]:
    hints = attempt(lambda: get_type_hints(function))
    if isinstance(hints, BaseException):
        return
    first = function.__code__.co_varnames[:1]
    event = hints.get(first[0]) if first else None
    if isinstance(event, type) and issubclass(event, Message) and "__ksi__" in vars(event):
        mark = "subscriber" if issubclass(event, Notification) else "handler"
        yield Finding(
            "warning",
            f"{name} takes {event.__name__}, but is not decorated with @{mark}: nobody calls it",
            place_of(function),
            f"put @{mark} above it, or an underscore before its name",
        )


def _is_hook(function: Callable[..., Any]) -> bool:
    manager = pluggy.PluginManager("ksi")
    holder = ModuleType("holder")
    holder.hook = function  # type: ignore[attr-defined]
    return manager.parse_hookimpl_opts(holder, "hook") is not None


def _is_marked(function: Callable[..., Any]) -> bool:
    return any(name.startswith("__ksi_") for name in vars(function)) or _is_hook(function)


def _calls(function: ast.AsyncFunctionDef) -> Iterator[ast.Call]:
    """Walk what runs in the function itself: what it defines runs elsewhere, perhaps in a thread."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Call):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Give what names of the module stand for: ``from time import sleep`` makes sleep time.sleep."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""
