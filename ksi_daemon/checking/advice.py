"""What to do about a refusal: the daemon says in a line what does not fit; this says what would."""

import re
from collections.abc import Mapping
from types import FunctionType

from ksi_common.guessing import nearest
from ksi_daemon.checking.findings import Finding, place_of

_SERVICE = re.compile(r"(no plugin offers the service (\w+)); (?:did you mean \w+\? )?there are (.*)")
_OURS = re.compile(r"^(TypeError: )?(ksi_file_\w+\.)?")
"""How it is said says nothing to the author."""
_WORD = re.compile(r"[A-Za-z_]\w*")

USUAL = ("Bus", "Database", "Timers", "Clock", "EventLog", "Blobs", "Processes", "Settings")
"""What handlers take most."""

_ADVICE: Mapping[str, str] = {
    r"first parameter must be annotated": "async def {name}(request: AnEventClass, …) -> ItsReply:",
    r"parameter (\w+) of \w+ has no type": "give it a type, by which it is found: {1}: Bus",
    r"does not say what it returns": "add -> and the reply that the event's class names: Request[Reply]",
    r"is answered with (\w+): write": "return {1}, and say so: -> {1}",
    r"No module named '([\w]+)": "pip install what has {1}, and name it under dependencies in pyproject.toml",
    r"is not an event name": 'event="namespace:verb", in small letters, digits and underscores',
    r"there is no hook|has no parameter": "docs/plugins/reference.md lists the hooks with their parameters",
    r"is handled by plugin (\w+) already": "ask {1} by its event instead, or choose another name",
    r"^setting plugins": "give the field a default, or the check one: [tool.ksi.settings] in pyproject.toml",
    r"name is taken|name taken by": "call it otherwise in pyproject.toml",
}


def advised(finding: Finding, module: object) -> Finding:
    """Give a problem with a hint, and with its place where it names a function of the plugin."""
    text, hint = _OURS.sub("", finding.text), finding.hint
    service = _SERVICE.search(text)
    if service is not None:
        text, hint = service[1], _service_hint(service[2], service[3].split(", "))
    place = finding.place or _named(text, module)
    return Finding(finding.level, text, place, hint or _hint(text))


def _hint(text: str) -> str | None:
    for pattern, advice in _ADVICE.items():
        found = re.search(pattern, text)
        if found is not None:
            name = text.partition(":")[0].rpartition(".")[2]
            return advice.format(found[0], *found.groups(), name=name)
    return None


def _service_hint(wanted: str, there_are: list[str]) -> str:
    near = nearest(wanted, there_are)
    if near:
        return f"did you mean {near[0]}?"
    usual = ", ".join(name for name in USUAL if name in there_are)
    return f"take one that is there ({usual}, …), or offer it by the hook ksi_services"


def _named(text: str, module: object) -> str | None:
    names = vars(module) if module is not None else {}
    own = str(getattr(module, "__name__", "")).partition(".")[0]
    for word in _WORD.findall(text):
        found = names.get(word)
        # What it imports has a place, too, which is not the author's.
        if isinstance(found, FunctionType) and found.__module__.partition(".")[0] == own:
            return place_of(found)
    return None
