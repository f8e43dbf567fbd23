"""Look at what a plugin declares, now that it is loaded: handlers one by one, then events, field by field."""

import inspect
from collections.abc import Iterator, Sequence, Set
from itertools import chain

from pydantic import BaseModel, ValidationError

from ksi_common.errors import KSIError
from ksi_common.messages import Message, Notification, public_name, spec_of
from ksi_common.schema import example
from ksi_daemon.catalog import Plugin
from ksi_daemon.checking.findings import Finding, place_of
from ksi_daemon.daemon import Daemon
from ksi_daemon.explaining import explain
from ksi_daemon.handlers import Compiler
from ksi_daemon.marks import HANDLER, PROJECTION, REBUILDER, SUBSCRIBER, UPCASTER
from ksi_daemon.plugins import declared, modules_of, notifications_of
from ksi_daemon.services import ServiceError
from ksi_daemon.supervisor import attempt
from ksi_daemon.threads import Threads

ASKED_FOR_BY = "it is what `ksi events show` and language models read"


def handlers(daemon: Daemon, plugin: Plugin) -> Iterator[Finding]:
    """Compile each handler and subscriber by itself: a daemon stops at the first that does not fit."""
    compiler = Compiler(daemon.services, Threads(), daemon.database)
    offers = getattr(plugin.module, "ksi_services", tuple)  # a plugin that is refused is asked by no hook
    own = attempt(lambda: {service.interface.__name__ for service in offers()})
    made = attempt(lambda: daemon.relay.handlers(plugin.name))
    functions = [] if isinstance(made, BaseException) else list(made)
    seen = dict.fromkeys(
        chain(declared(plugin.module, HANDLER), declared(plugin.module, SUBSCRIBER), functions)
    )
    for function in seen:
        if getattr(function, SUBSCRIBER, False):
            outcome: object = attempt(lambda function=function: compiler.subscriber(function))  # type: ignore[misc]
        else:
            outcome = attempt(lambda function=function: compiler.handler(function, plugin.name))  # type: ignore[misc]
        if isinstance(outcome, BaseException) and not _lacks(outcome, own):
            hint = outcome.hint if isinstance(outcome, KSIError) else None
            yield Finding("problem", explain(outcome).partition(" (")[0], place_of(function), hint)


def _lacks(error: BaseException, own: Set[str] | BaseException) -> bool:
    """Tell whether there is nothing wrong but that the plugin's own service did not open, which is said."""
    missing = error.details.get("service") if isinstance(error, ServiceError) else None
    return not isinstance(own, BaseException) and missing in own


def events(daemon: Daemon, plugin: Plugin) -> Iterator[Finding]:
    """Look at the events that a plugin answers and tells."""
    for event in classes_of(daemon, plugin):
        yield from _event(event, plugin)
    does = (plugin.handled, plugin.subscribed, plugin.services, plugin.told, kept_by(plugin))
    if not any((*does, daemon.relay.hooks_of(plugin.name))):
        yield Finding(
            "warning",
            "it does nothing: no @handler, no @subscriber, no hook",
            hint="the entry point must name the module that has them",
        )


def kept_by(plugin: Plugin) -> Sequence[str]:
    """Name the functions of a plugin that make tables and documents of the log, or read it."""
    marks = (PROJECTION, REBUILDER, UPCASTER)
    return [made.__name__ for mark in marks for made in declared(plugin.module, mark)]


def classes_of(daemon: Daemon, plugin: Plugin) -> Sequence[type[Message]]:
    """List the classes of the events of a plugin."""
    asked = [daemon.catalog.routes[name].message for name in plugin.handled]
    told: list[type[Notification]] = list(notifications_of(modules_of(plugin.module, asked)))
    return [*asked, *told]


def _event(event: type[Message], plugin: Plugin) -> Iterator[Finding]:
    spec = spec_of(event)
    if spec.namespace != plugin.name:
        yield Finding(
            "warning",
            f"{spec.name} is not in the plugin's own namespace: another plugin may want that name",
            place_of(event),
            f"call it {plugin.name}:{spec.name.partition(':')[2]}",
        )
    if not _own_doc(event):
        yield Finding("warning", f"{spec.name} has no docstring", place_of(event), ASKED_FOR_BY)
    yield from _fields(event, spec.name)
    if spec.reply is not None:
        yield from _fields(spec.reply, f"the answer of {spec.name}")
    if spec.kind != "notification":
        yield from _example(event, spec.name)


def _fields(model: type[BaseModel], of_what: str) -> Iterator[Finding]:
    for name, info in model.model_fields.items():
        if not info.description:
            field = public_name(name, info)
            yield Finding(
                "warning",
                f'field "{field}" of {of_what} has no description',
                place_of(model),
                'Field(description="…")',
            )


def _example(event: type[Message], name: str) -> Iterator[Finding]:
    data = example(event)
    try:
        event.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        yield Finding(
            "warning",
            f'the example of {name} cannot be sent: "{field}": {problem["msg"].lower()}',
            place_of(event),
            "Field(examples=[…])",
        )


def _own_doc(event: type[Message]) -> str:
    return inspect.cleandoc(event.__doc__ or "")
