"""What mypy is told of handlers: that they give what their event is answered with.

    [tool.mypy]
    plugins = ["pydantic.mypy", "ksi_daemon.mypy_plugin"]

A plugin of mypy, for a decorator's type cannot say it: the reply hangs on the class of the first parameter.
"""

from collections.abc import Callable, Iterator

from mypy.errorcodes import ErrorCode
from mypy.maptype import map_instance_to_supertype
from mypy.nodes import TypeInfo
from mypy.plugin import FunctionContext, Plugin
from mypy.subtypes import is_subtype
from mypy.types import AnyType, CallableType, Instance, NoneType, ProperType, Type, UnionType, get_proper_type

DECORATOR = "ksi_daemon.plugin.handler"
CODE = ErrorCode("ksi-handler", "A handler gives what its event is answered with", "KSI")

_EVENTS = ("ksi_common.messages.Request", "ksi_common.messages.Stream")
_ANSWERS = "ksi_common.answers.Answers"
_LATER = (
    "typing.Coroutine",
    "typing.Awaitable",
    "typing.AsyncIterator",
    "typing.AsyncGenerator",
    "ksi_daemon.database.transaction.Telling",
)


class Handlers(Plugin):
    """Check what is decorated with ``@handler``."""

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        """Look at the decorator of handlers."""
        return _check if fullname == DECORATOR else None


def _check(context: FunctionContext) -> Type:
    function = get_proper_type(context.arg_types[0][0]) if context.arg_types[0] else None
    if isinstance(function, CallableType) and function.arg_types:
        reply = _reply_of(get_proper_type(function.arg_types[0]))
        if reply is not None:
            for given in _given(get_proper_type(function.ret_type)):
                if not isinstance(given, AnyType) and not any(is_subtype(given, each) for each in reply):
                    name = function.name or "the handler"
                    wanted = str(reply[0]).rpartition(".")[2]
                    message = f"{name} gives {_named(given)}, but its event is answered with {wanted}"
                    context.api.fail(message, context.context, code=CODE)
    return context.default_return_type


def _reply_of(event: ProperType) -> list[ProperType] | None:
    """Give what an event is answered with; where all are asked, a handler gives one of the answers."""
    if not isinstance(event, Instance):
        return None
    for name in _EVENTS:
        base = next((each for each in event.type.mro if each.fullname == name), None)
        if isinstance(base, TypeInfo):
            (reply,) = map_instance_to_supertype(event, base).args or (AnyType(1),)
            proper = get_proper_type(reply)
            if isinstance(proper, Instance) and proper.type.fullname == _ANSWERS:
                return [get_proper_type(each) for each in proper.args]
            return [proper, NoneType()] if name == _EVENTS[1] else [proper]  # None: it feeds a Sink
    return None


def _given(returned: ProperType) -> Iterator[ProperType]:
    """Take what a handler gives, at once or later, out of what it returns."""
    if isinstance(returned, UnionType):
        for item in returned.items:
            yield from _given(get_proper_type(item))
    elif isinstance(returned, CallableType):
        yield from _given(get_proper_type(returned.ret_type))
    elif isinstance(returned, Instance) and returned.type.fullname in _LATER:
        last = returned.args[2] if returned.type.fullname == "typing.Coroutine" else returned.args[0]
        yield from _given(get_proper_type(last))
    elif isinstance(returned, Instance) and returned.type.fullname == "ksi_common.messages.Rendered":
        yield get_proper_type(returned.args[0])
    elif not (isinstance(returned, Instance) and returned.type.fullname == "builtins.object"):
        yield returned


def _named(given: ProperType) -> str:
    return given.type.name if isinstance(given, Instance) else str(given)


def plugin(version: str) -> type[Plugin]:
    """Give mypy its plugin."""
    del version
    return Handlers
