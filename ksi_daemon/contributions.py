"""What plugins add to the faces of the daemon, as data: routes of HTTP, commands of the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ksi_common.errors import FailedPrecondition
from ksi_common.messages import is_event_name
from ksi_common.records import record


class ContributionError(FailedPrecondition):
    """A route or a command is declared wrongly; the message says how."""


@record
class HttpRoute:
    """Answer a path of HTTP by an event: query and body become its data, its reply the body.

    ``{name}`` in the path is a field. Whichever plugin serves HTTP takes all of them by ``HttpRoutes``.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    event: str
    summary: str = ""
    plugin: str = ""

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ContributionError(f"a route's path begins with /, not {self.path!r}")
        _check_event(self.event)


@dataclass(slots=True)
class HttpRoutes:
    """The routes of all plugins, in the order loaded."""

    all: list[HttpRoute] = field(default_factory=list)


@record
class Command:
    """A command of ``ksi``: ``ksi NAME ARGUMENT...`` sends ``event``, each argument as a field."""

    name: str
    event: str
    arguments: Sequence[str] = ()
    summary: str = ""
    plugin: str = ""

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").isalnum() or not self.name.islower():
            raise ContributionError(f"a command is named in small letters, digits and -, not {self.name!r}")
        for argument in self.arguments:
            if not argument.isidentifier():
                raise ContributionError(f"an argument is named as the field it is for, not {argument!r}")
        _check_event(self.event)


@dataclass(slots=True)
class Commands:
    """The commands of all plugins, by name."""

    by_name: dict[str, Command] = field(default_factory=dict)

    def add(self, command: Command, plugin: str) -> None:
        """Take a command in; raise ContributionError where another plugin has one of that name."""
        taken = self.by_name.get(command.name)
        if taken is not None:
            raise ContributionError(f"the command {command.name} is given by plugin {taken.plugin} already")
        self.by_name[command.name] = replace(command, plugin=plugin)


def _check_event(event: str) -> None:
    if not is_event_name(event):
        raise ContributionError(f"{event!r} is no name of an event")
