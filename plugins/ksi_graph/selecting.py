"""Which entities, or relationships, fit: one index leads to candidates, and they are held against the rest.

Which index leads is found out by counting what each would lead to, up to a bound: SQLite would have to
know the values to choose well, and has seen only the shape of the question when it chooses.
"""

from collections.abc import Sequence
from typing import Any, Final

from ksi_common.records import record
from ksi_graph.conditions import Demand, Sql, held_against, of_one_row, without
from ksi_graph.page_cursors import Position
from ksi_graph.tables import Kind, Reading, marks, types

PROBED: Final = 10_000
"""Rows of an index counted to find out where it leads."""


@record
class Question:
    """What to look for. ``ends``: the numbers that relationships must have in ``source`` or ``target``."""

    kind: Kind
    type: str | None
    demands: Sequence[Demand]
    ends: Sequence[tuple[str, int]] = ()


@record
class Order:
    """By a property, or by number: the order of creation."""

    by: str | None = None
    descending: bool = False

    @property
    def direction(self) -> str:
        """As SQL says it."""
        return "DESC" if self.descending else "ASC"

    @property
    def beyond(self) -> str:
        """The comparison of what comes later."""
        return "<" if self.descending else ">"

    def __str__(self) -> str:
        return f"{self.by or ''} {self.direction}"


@record
class Candidates:
    """Rows to begin with, and what is left to hold them against."""

    source: str
    where: Sql
    alias: str
    owner: str
    left: Sequence[Demand]


class Selection:
    """One question, asked of one snapshot. ``whole``: everything that fits is wanted, not a page of it."""

    def __init__(self, tables: Reading, question: Question, *, whole: bool = False) -> None:
        self._tables = tables
        self._question = question
        self._kind = question.kind
        self._types = [question.type] if question.type is not None else types(tables, question.kind)
        self._lead: Demand | None = None
        self._few = True
        """So few rows are led to that they are better sorted than looked for in the order asked for."""
        if not question.ends:
            self._choose(whole=whole)

    def page(self, order: Order, after: Position | None, limit: int) -> list[Position]:
        """Give the positions of at most ``limit`` rows that fit, in order, after one."""
        if order.by is None:
            return self._by_number(order, after, limit, Sql(""))
        found: list[Position] = []
        if after is None or after.kind is not None:
            found = self._by_property(order.by, order, after, limit)
            after = None
        must_have = any(demand.name == order.by and demand.positive for demand in self._question.demands)
        if len(found) < limit and not must_have:
            missing = without(order.by, self._kind, self._candidates().owner)
            found += self._by_number(order, after, limit - len(found), missing)
        return found

    def count(self) -> int:
        """Count what fits."""
        return int(self._run("count(*)", self._candidates(), Sql(""))[0][0])

    def by_type(self, limit: int) -> list[Any]:
        """Count what fits by type: rows of type and count, the largest first."""
        found = self._candidates()
        column = f"{found.alias}.type"
        end = Sql(f"GROUP BY {column} ORDER BY 2 DESC, 1 LIMIT ?", (limit,))
        return self._run(f"{column}, count(*)", found, end)

    def by_value(self, name: str, limit: int) -> list[Any]:
        """Count what fits by the value of a property: rows of kind, value and count, the largest first."""
        end = Sql("GROUP BY o.kind, o.value ORDER BY 3 DESC, 1, 2 LIMIT ?", (limit,))
        return self._run("o.kind, o.value, count(*)", self._with_property(name), end)

    def having(self, name: str) -> int:
        """Count what fits and has a property."""
        return int(self._run("count(*)", self._with_property(name), Sql(""))[0][0])

    def _by_number(self, order: Order, after: Position | None, limit: int, missing: Sql) -> list[Position]:
        found = self._candidates()
        end = missing
        if after is not None:
            end += Sql(f"AND {found.owner} {order.beyond} ?", (after.number,))
        end += Sql(f"ORDER BY {found.owner} {order.direction} LIMIT ?", (limit,))
        return [Position(row[0]) for row in self._run(found.owner, found, end)]

    def _by_property(self, name: str, order: Order, after: Position | None, limit: int) -> list[Position]:
        end = Sql("")
        if after is not None:
            last = (after.kind, after.value, after.number)
            end = Sql(f"AND (o.kind, o.value, o.owner) {order.beyond} (?, ?, ?)", last)
        way = order.direction
        end += Sql(f"ORDER BY o.kind {way}, o.value {way}, o.owner {way} LIMIT ?", (limit,))
        rows = self._run("o.owner, o.kind, o.value", self._with_property(name), end)
        return [Position(*row) for row in rows]

    def _candidates(self) -> Candidates:
        """Begin with the index that leads, or with the rows in their order."""
        question, kind, lead = self._question, self._kind, self._lead
        if lead is not None:
            return self._by_index(lead, "d")
        where, index = Sql("1"), ""
        for column, number in question.ends:
            where += Sql(f"AND r.{column} = ?", (number,))
            index = index or f"INDEXED BY {kind.rows}_by_{column}"
        if question.type is not None:
            where += Sql("AND r.type = ?", (question.type,))
            index = index or f"INDEXED BY {kind.rows}_by_type"
        return Candidates(f"{kind.rows} r {index}", where, "r", "r.number", question.demands)

    def _with_property(self, name: str) -> Candidates:
        """Join candidates with a property of theirs, ``o``; where none lead, its own index does."""
        lead, kind = self._lead, self._kind
        if self._question.ends or (lead is not None and lead.name != name and self._few):
            found = self._candidates()
            source = (
                f"{found.source} CROSS JOIN {kind.properties} o ON o.owner = {found.owner} AND o.name = ?"
            )
            return Candidates(source, Sql("", (name,)) + found.where, "o", "o.owner", found.left)
        wanted = [demand for demand in self._question.demands if demand.name == name and demand.positive]
        return self._by_index(wanted[0] if wanted else Demand(name, [Sql("1")]), "o")

    def _by_index(self, lead: Demand, alias: str) -> Candidates:
        kind = self._kind
        left = [
            Demand(demand.name, (), (), demand.never) if demand is lead else demand
            for demand in self._question.demands
        ]
        source = f"{kind.properties} {alias} INDEXED BY {kind.properties}_by_value"
        where = self._in_index(lead.name, alias) + Sql("AND") + of_one_row(lead).called(alias)
        return Candidates(source, where, alias, f"{alias}.owner", left)

    def _in_index(self, name: str, alias: str) -> Sql:
        known = self._types
        one_of = "= ?" if len(known) == 1 else f"IN ({marks(known)})"
        return Sql(f"{alias}.type {one_of} AND {alias}.name = ?", (*known, name))

    def _choose(self, *, whole: bool) -> None:
        """Let the demand lead whose index leads to the fewest rows.

        None does where all lead to many: rows are looked at in the order asked for, until there are enough.
        A text that is looked for within texts is rarely found so soon, and the ``whole`` never.
        """
        demands = self._question.demands
        counted = [(self._probe(demand), n) for n, demand in enumerate(demands) if demand.positive]
        if not counted:
            return
        rows, best = min(counted)
        whole = whole or bool(demands[best].looked_at)
        if whole or rows < PROBED:
            self._lead = demands[best]
            self._few = whole or rows < PROBED // 5

    def _probe(self, demand: Demand) -> int:
        indexed = self._by_index(Demand(demand.name, demand.indexed), "d")
        sql = Sql(f"SELECT count(*) FROM (SELECT 1 FROM {indexed.source} WHERE") + indexed.where  # noqa: S608
        sql += Sql("LIMIT ?)", (PROBED,))
        return int(self._tables.execute(sql.text, sql.parameters).fetchone()[0])

    def _run(self, columns: str, found: Candidates, end: Sql) -> list[Any]:
        sql = Sql(f"SELECT {columns} FROM {found.source} WHERE") + found.where  # noqa: S608
        for demand in found.left:
            sql += held_against(demand, self._kind, found.owner)
        sql += end
        return self._tables.execute(sql.text, sql.parameters).fetchall()
