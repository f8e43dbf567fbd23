"""Find a forgotten await: a statement that calls an async function and drops what it gives."""

import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import get_type_hints

from ksi_common.records import record
from ksi_daemon.checking.findings import Finding, at
from ksi_daemon.supervisor import attempt

Function = ast.FunctionDef | ast.AsyncFunctionDef
Known = Mapping[str, object]
"""What names stand for, where that is certain: a thing of the module, or an `_Instance`."""


@record
class _Instance:
    """Something of which the type is known, and nothing more."""

    kind: type


def unawaited(module: ModuleType) -> Iterator[Finding]:
    """Find statements whose coroutine nobody awaits; where it is not certain, say nothing."""
    path = Path(str(module.__file__))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function, known in _functions(tree.body, dict(vars(module)), None):
        for statement in _statements(function.body):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                called = statement.value.func
                if inspect.iscoroutinefunction(_meaning(called, known)):
                    yield _finding(f"{ast.unparse(called)}(…)", function, at(path, statement.lineno))


def _finding(call: str, function: Function, place: str) -> Finding:
    hint = f"write: await {call}"
    if isinstance(function, ast.FunctionDef):
        hint = f"make {function.name} an `async def`, and write: await {call}"
    return Finding("problem", f"{call} is not awaited: it never runs", place, hint)


def _functions(
    body: Iterable[ast.stmt], known: Known, methods_of: type | None
) -> Iterator[tuple[Function, Known]]:
    """Give each function, and what the names in it stand for."""
    for statement in _statements(body):
        if isinstance(statement, Function):
            inside = _inside(statement, known, methods_of)
            yield statement, inside
            yield from _functions(statement.body, inside, None)
        elif isinstance(statement, ast.ClassDef):
            found = known.get(statement.name)
            nested = dict.fromkeys(each.name for each in statement.body if isinstance(each, ast.ClassDef))
            owner = found if isinstance(found, type) else None
            yield from _functions(statement.body, {**known, **nested}, owner)


def _inside(function: Function, known: Known, owner: type | None) -> Known:
    arguments = function.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    own = {node.arg: None for node in ast.walk(arguments) if isinstance(node, ast.arg)}
    typed = {each.arg: _of(each.annotation, known) for each in given}
    if owner is not None and not function.decorator_list and given and given[0].annotation is None:
        typed[given[0].arg] = _Instance(owner)
    # What a function binds anew may be anything by then.
    bound = dict.fromkeys(_bound(function))
    return {**known, **own, **typed, **bound, **_local_functions(function)}


def _of(annotation: ast.expr | None, known: Known) -> _Instance | None:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        text = annotation.value
        parsed = attempt(lambda: ast.parse(text, mode="eval").body)
        annotation = parsed if isinstance(parsed, ast.expr) else None
    kind = _meaning(annotation, known) if annotation is not None else None
    return _Instance(kind) if isinstance(kind, type) else None


def _local_functions(function: Function) -> Known:
    names = list(_bound(function))
    return {
        each.name: _coroutine
        for each in _statements(function.body)
        if isinstance(each, ast.AsyncFunctionDef) and names.count(each.name) == 1 and _is_plain(each)
    }


def _is_plain(function: ast.AsyncFunctionDef) -> bool:
    """Tell whether calling it gives a coroutine: no decorator made another thing of it, nor a yield."""
    yields = any(isinstance(node, ast.Yield) for node in ast.walk(function))
    return not function.decorator_list and not yields


async def _coroutine() -> None:
    """Stand for an async function that is not there before its outer one runs."""


def _bound(function: Function) -> Iterator[str]:
    """Give the names that a function binds, or one within it; not those of parameters."""
    for node in ast.walk(function):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                if node is not function:
                    yield name
            case ast.alias(name=name, asname=asname):
                yield asname or name.partition(".")[0]
            case (
                ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
                | ast.MatchMapping(rest=str(name))
            ):
                yield name


def _meaning(node: ast.expr, known: Known) -> object:
    """Find what a dotted name stands for; None where that is not certain."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    match _meaning(node.value, known):
        case _Instance(kind=kind):
            return _attribute(kind, node.attr)
        case ModuleType() | type() as holder:
            return inspect.getattr_static(holder, node.attr, None)
    return None


def _attribute(kind: type, name: str) -> object:
    found = inspect.getattr_static(kind, name, None)
    if isinstance(found, FunctionType):
        return found
    hints = attempt(lambda: get_type_hints(kind))
    hint = hints.get(name) if isinstance(hints, dict) else None
    return _Instance(hint) if isinstance(hint, type) else None


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.stmt]:
    """Walk the statements of a body in order, without what functions and classes in it hold."""
    for node in body:
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, Function | ast.ClassDef | ast.expr):
            yield from _statements(ast.iter_child_nodes(node))
