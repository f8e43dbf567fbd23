"""The contract of a daemon, its discovery document: two of them compared, for those who rely on the first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from ksi_client.narrowing import broken_for_readers, broken_for_writers
from ksi_common.records import record

Document = Mapping[str, Any]
Described = Mapping[str, Any]

_NONE: Final[Mapping[str, Any]] = {}


@record
class Change:
    """One difference. ``breaking``: what worked with the old document does not with the new one."""

    kind: Literal["breaking", "deprecation", "addition"]
    event: str
    text: str

    def __str__(self) -> str:
        """Say it in a line."""
        return self.text if self.text.startswith(self.event) else f"{self.event}: {self.text}"


def changes(old: Document, new: Document) -> list[Change]:
    """Compare two documents of ``system:discover``: what is taken away, given up later, and added."""
    before, after = _by_name(old), _by_name(new)
    found: list[Change] = []
    for name, was in before.items():
        found += [Change("breaking", name, text) for text in _broken(was, after.get(name))]
        if name in after:
            found += [Change("deprecation", name, text) for text in _given_up(was, after[name])]
            found += [Change("addition", name, text) for text in _added(was, after[name])]
    found += [Change("addition", name, f"{name} is new") for name in after if name not in before]
    return found


def breaking(old: Document, new: Document) -> list[str]:
    """Name what was there and is gone or narrower."""
    return [str(change) for change in changes(old, new) if change.kind == "breaking"]


def _broken(was: Described, now: Described | None) -> Iterator[str]:
    name = was["event"]
    if now is None or now["kind"] != was["kind"]:
        yield f"{name} is gone"
    elif was["kind"] == "notification":
        yield from broken_for_readers(was["schema"], now["schema"])
    else:
        yield from broken_for_writers(was["schema"], now["schema"])
        yield from (f"answer: {text}" for text in broken_for_readers(was["reply"], now["reply"]))
        yield from _behaves_otherwise(was, now)


def _behaves_otherwise(was: Described, now: Described) -> Iterator[str]:
    for word in ("safe", "idempotent"):
        if was[word] and not now[word]:
            yield f"{was['event']} is not {word} any more"
    for name in was["parameters"].keys() & now["parameters"].keys():
        default = now["parameters"][name]["default"]
        if default != was["parameters"][name]["default"]:
            yield f"{name} is by default {default!r} now"
    if was.get("answers", "one") != now.get("answers", "one"):
        yield f"{was['event']} is answered by {now.get('answers', 'one')} of its handlers now"
    for name, old in _aliases(was).items():
        if name in _aliases(now, default=old) and _aliases(now).get(name) != old:
            yield f"{old} is no longer taken for {name}"


def _given_up(was: Described, now: Described) -> Iterator[str]:
    if now.get("deprecated") and not was.get("deprecated"):
        yield f"{was['event']} is deprecated: {now['deprecated']}"
    for name, old in _aliases(now).items():
        if _aliases(was).get(name) != old:
            yield f"{old} is deprecated: say {name}"


def _added(was: Described, now: Described) -> Iterator[str]:
    yield from (
        f"{name} is new" for name in _properties(now["schema"]) if name not in _properties(was["schema"])
    )
    before, after = _properties(was["reply"] or _NONE), _properties(now["reply"] or _NONE)
    yield from (f"answer: {name} is new" for name in after if name not in before)
    yield from (f"may fail with {code} now" for code in now["errors"] if code not in was["errors"])


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schema.get("properties", _NONE)
    return found


def _aliases(event: Described, *, default: str | None = None) -> Mapping[str, str]:
    """Give the deprecated names of fields; ``default``: for those that have none."""
    fields = _properties(event["schema"]).items()
    named = {name: field.get("deprecated_alias", default) for name, field in fields}
    return {name: old for name, old in named.items() if old is not None}


def _by_name(document: Document) -> Mapping[str, Described]:
    groups: Sequence[Mapping[str, Sequence[Described]]] = (document["events"], document["notifications"])
    return {event["event"]: event for group in groups for events in group.values() for event in events}
