"""What plugins need of each other: who starts first, and who cannot run.

A module says ``requires = ["state>=0.1"]`` and ``wants = ["metrics"]``, as pip has it; ``ksi_api = "1"`` says
what it was written for. What is required must be there, and starts before; what is wanted starts before,
where it is there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ksi_common.errors import FailedPrecondition
from ksi_common.guessing import nearest
from ksi_common.records import record
from ksi_daemon.catalog import Plugin
from ksi_daemon.marks import KSI_API


class NeedError(FailedPrecondition):
    """A plugin cannot run, for what it needs; the message says the way to what is missing."""


@record
class Need:
    """Another plugin, and the versions of it that will do."""

    name: str
    text: str
    fits: Callable[[str], bool]


@record
class Needs:
    """What one plugin declares."""

    requires: Sequence[Need] = ()
    wants: Sequence[Need] = ()


def needs_of(module: object) -> Needs:
    """Read what a module declares; raise NeedError where that cannot be read, or is for another API."""
    api = getattr(module, "ksi_api", KSI_API)
    if str(api) != KSI_API:
        raise NeedError(f"it is written for version {api} of the plugin API; this daemon has {KSI_API}")
    return Needs(_declared(module, "requires"), _declared(module, "wants"))


def arrange(
    needs: Mapping[str, Needs], plugins: Mapping[str, Plugin], missing: Callable[[str], str]
) -> "Order":
    """Decide who runs, and in which order: as found, but for what is needed first.

    ``needs``: of the plugins that could be imported, in the order found. ``plugins``: all that were found.
    ``missing``: why there is none of a name.
    """
    order = Order(needs, plugins, missing)
    for name in needs:
        order.judge(name, ())
    edges = {name: [need.name for need in needs[name].requires] for name in order.sound}
    for name in order.sound:
        for need in needs[name].wants:
            if (
                need.name in order.sound
                and _version_fits(need, plugins)
                and not _reaches(edges, need.name, name)
            ):
                edges[name].append(need.name)
    for name in order.sound:
        _visit(name, edges, order.ordered)
    return order


class Order:
    """What came of it: ``ordered`` run, ``refused`` do not, with the reason."""

    def __init__(
        self, needs: Mapping[str, Needs], plugins: Mapping[str, Plugin], missing: Callable[[str], str]
    ) -> None:
        self.ordered: list[str] = []
        self.refused: dict[str, str] = {}
        self._needs = needs
        self._plugins = plugins
        self._missing = missing

    @property
    def sound(self) -> Sequence[str]:
        """Give those that can run, in the order found."""
        return [name for name in self._needs if name not in self.refused]

    def judge(self, name: str, path: tuple[str, ...]) -> str | None:
        """Tell why a plugin cannot run, with the way to what is missing; None: it can."""
        if name in self.refused:
            return self.refused[name]
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            reason = f"plugins need each other: {circle}"
            self.refused.update(dict.fromkeys(path[path.index(name) :], reason))
            return reason
        for need in self._needs[name].requires:
            missing = self._judge_need(need, (*path, name))
            if missing is not None:
                return self.refused.setdefault(name, missing)
        return None

    def _judge_need(self, need: Need, path: tuple[str, ...]) -> str | None:
        plugin = self._plugins.get(need.name)
        if plugin is None:
            return f"it needs {need.text}; {self._missing(need.name)}"
        if not need.fits(plugin.version):
            return f"it needs {need.text}, but {need.name} is {plugin.version}"
        if need.name not in self._needs:
            return f"it needs {need.name}, which is {plugin.status}: {plugin.error or 'see its table'}"
        reason = self.judge(need.name, path)
        if reason is None or path[-1] in self.refused:  # the second: it is in the circle itself
            return reason
        return f"it needs {need.name}, which cannot run: {reason}"


def nobody_called(name: str, plugins: Mapping[str, Plugin]) -> str:
    """Say that there is no plugin of a name, with a guess."""
    near = nearest(name, plugins)
    return f"there is no plugin {name}" + (f"; did you mean {near[0]}?" if near else "")


_MEANT: Final = 'write requires = ["state"], or requires = ["state>=0.1"]'


def _declared(module: object, attribute: str) -> Sequence[Need]:
    texts = getattr(module, attribute, ())
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise NeedError(
            f"{attribute} must be a list of names of plugins; {_MEANT.replace('requires', attribute)}"
        )
    return [_need(text, attribute) for text in texts]


def _need(text: str, attribute: str) -> Need:
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415 -- few plugins need it

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise NeedError(f"{attribute} has {text!r}, which names no plugin; {_MEANT}") from error
    versions = requirement.specifier
    return Need(
        requirement.name.replace("-", "_"), text, lambda version: versions.contains(version, prereleases=True)
    )


def _version_fits(need: Need, plugins: Mapping[str, Plugin]) -> bool:
    return need.fits(plugins[need.name].version)


def _reaches(edges: Mapping[str, Sequence[str]], start: str, goal: str) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        name = waiting.pop()
        if name == goal:
            return True
        fresh = [each for each in edges.get(name, ()) if each not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return False


def _visit(name: str, edges: Mapping[str, Sequence[str]], ordered: list[str]) -> None:
    if name not in ordered:
        for needed in edges[name]:
            _visit(needed, edges, ordered)
        ordered.append(name)
