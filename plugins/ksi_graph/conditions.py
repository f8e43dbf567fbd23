"""What properties must be, as SQL: for an index to begin with, or for each candidate to be held against."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ksi_common.events.properties import Condition, Value
from ksi_common.records import record
from ksi_graph.tables import Kind, marks
from ksi_graph.values import to_row

_COMPARISONS: Final = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}


@record
class Sql:
    """A piece of a statement, and what its marks stand for. ``{p}``: the row of a property."""

    text: str
    parameters: Sequence[Any] = ()

    def __add__(self, other: "Sql") -> "Sql":
        return Sql(f"{self.text} {other.text}", (*self.parameters, *other.parameters))

    def called(self, alias: str) -> "Sql":
        """Give the row of the property its name in the statement."""
        return Sql(self.text.replace("{p}", alias), self.parameters)


@record
class Demand:
    """What one property must be.

    ``indexed``: an index by value finds rows of which this is true. ``looked_at``: each row must be looked
    at to know. ``never``: no row may be like one of these.
    """

    name: str
    indexed: Sequence[Sql]
    looked_at: Sequence[Sql] = ()
    never: Sequence[Sql] = ()

    @property
    def positive(self) -> bool:
        """Only what has the property can fit."""
        return bool(self.indexed or self.looked_at)


def demands(where: Mapping[str, Value | Condition]) -> list[Demand]:
    """Read what is wanted, property by property."""
    return [
        _of(name, wanted) if isinstance(wanted, Condition) else Demand(name, [_equal(wanted)])
        for name, wanted in where.items()
    ]


def of_one_row(demand: Demand) -> Sql:
    """Say of a row ``{p}`` of the property that it fits."""
    return _all([*demand.indexed, *demand.looked_at])


def held_against(demand: Demand, kind: Kind, owner: str) -> Sql:
    """Say of an owner that it fits: ``AND …``, of which every part is a look-up by the primary key."""
    parts = []
    if demand.positive:
        parts.append(_exists(demand.name, kind, owner, of_one_row(demand)))
    parts += [Sql("NOT") + _exists(demand.name, kind, owner, other) for other in demand.never]
    return Sql("AND") + _all(parts) if parts else Sql("")


def without(name: str, kind: Kind, owner: str) -> Sql:
    """Say of an owner that it has no such property."""
    return Sql("AND NOT") + _exists(name, kind, owner, Sql("1"))


def _of(name: str, wanted: Condition) -> Demand:
    given = wanted.model_fields_set
    indexed, never = [], []
    if "eq" in given:
        indexed.append(_equal(wanted.eq))
    if "ne" in given:
        never.append(_equal(wanted.ne))
    indexed += _comparisons(wanted)
    if wanted.in_ is not None:
        indexed.append(_one_of(wanted.in_))
    if wanted.exists is False:
        never.append(Sql("1"))
    elif wanted.exists:
        indexed.append(Sql("1"))
    looked_at = []
    if wanted.contains is not None:
        indexed.append(Sql("{p}.kind = 'text'"))
        looked_at.append(Sql("instr({p}.value, ?) > 0", (wanted.contains,)))
    return Demand(name, indexed, looked_at, never)


def _comparisons(wanted: Condition) -> Iterator[Sql]:
    for word, sign in _COMPARISONS.items():
        bound = getattr(wanted, word)
        if bound is not None:
            kind, value = to_row(bound)
            yield Sql(f"{{p}}.kind = ? AND {{p}}.value {sign} ?", (kind, value))


def _equal(value: Value) -> Sql:
    return Sql("{p}.kind = ? AND {p}.value = ?", to_row(value))


def _one_of(values: Sequence[Value]) -> Sql:
    """Say that the value is one of these: of each kind, those of that kind."""
    by_kind: dict[str, list[Any]] = {}
    for value in values:
        kind, column = to_row(value)
        by_kind.setdefault(kind, []).append(column)
    if not by_kind:
        return Sql("0")
    parts = [
        Sql(f"{{p}}.kind = ? AND {{p}}.value IN ({marks(some)})", (kind, *some))
        for kind, some in by_kind.items()
    ]
    text = " OR ".join(f"({part.text})" for part in parts)
    return Sql(f"({text})", [value for part in parts for value in part.parameters])


def _exists(name: str, kind: Kind, owner: str, fits: Sql) -> Sql:
    sql = f"EXISTS (SELECT 1 FROM {kind.properties} p WHERE p.owner = {owner} AND p.name = ? AND"  # noqa: S608
    return Sql(sql, (name,)) + fits.called("p") + Sql(")")


def _all(parts: Sequence[Sql]) -> Sql:
    return Sql(
        " AND ".join(part.text for part in parts), [value for part in parts for value in part.parameters]
    )
