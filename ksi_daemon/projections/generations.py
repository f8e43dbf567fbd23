"""What is on disk of a projection: the state that readers see, and one that is built beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ksi_common.errors import FailedPrecondition
from ksi_daemon.database import Transaction

Role = Literal["live", "shadow", "retired"]

_DELETED_AT_ONCE: Final = 500
_COLUMNS: Final = "generation, role, version, columns, position, missing"


@dataclass(slots=True, eq=False)
class Generation:
    """One building of a projection's state."""

    name: str
    number: int
    role: Role
    version: int
    columns: str | None
    position: int = 0
    """Everything up to here was looked at."""
    missing: int = 0
    applied: int = 0
    """Events that this process has applied."""
    stored: int = 0
    """The position on disk: where a restart begins."""

    @property
    def table(self) -> str:
        """Name its table, where it has one."""
        return f"projection_{self.name}_{self.number}"


def begin(tx: Transaction, name: str, version: int, columns: str | None) -> Sequence[Generation]:
    """Read the generations of a projection; begin the one that this code needs, where it is missing.

    That is done in the writer: what a follower that was cancelled has under way comes before it.
    """
    wanted = (version, columns)
    found = {each.role: each for each in _load(tx, name) if each.role != "retired"}
    shadow, live = found.get("shadow"), found.get("live")
    if shadow is not None and (shadow.version, shadow.columns) != wanted:
        retire_shadow(tx, name)
        shadow = None
    if live is None:
        create(tx, name, "live", version, columns)
    elif shadow is None and (live.version, live.columns) != wanted:
        create(tx, name, "shadow", version, columns)
    return _load(tx, name)


def create(tx: Transaction, name: str, role: Role, version: int, columns: str | None) -> Generation:
    """Begin a generation with nothing applied."""
    sql = "SELECT coalesce(max(generation), 0) + 1 FROM projections WHERE name = ?"
    number = tx.execute(sql, (name,)).fetchone()[0]
    tx.execute(
        "INSERT INTO projections (name, generation, role, version, columns) VALUES (?, ?, ?, ?, ?)",
        (name, number, role, version, columns),
    )
    made = Generation(name, number, role, version, columns)
    if columns is not None:
        tx.execute(f"CREATE TABLE {made.table} ({columns})")
    return made


def checkpoint(tx: Transaction, generation: Generation, position: int, missing: int) -> None:
    """Say, in the commit of what was applied, how far that is; refused where somebody else was there."""
    moved = tx.execute(
        "UPDATE projections SET position = ?, missing = missing + ? "
        "WHERE name = ? AND generation = ? AND position = ? AND role != 'retired'",
        (position, missing, generation.name, generation.number, generation.stored),
    ).rowcount
    if moved != 1:
        raise FailedPrecondition(
            f"projection {generation.name} is not at {generation.stored} any more", reason="moved"
        )


def swap(tx: Transaction, shadow: Generation) -> None:
    """Let readers see the shadow; what they saw is retired. Refused where it was given up meanwhile."""
    tx.execute("UPDATE projections SET role = 'retired' WHERE name = ? AND role = 'live'", (shadow.name,))
    swapped = tx.execute(
        "UPDATE projections SET role = 'live' WHERE name = ? AND generation = ? AND role = 'shadow'",
        (shadow.name, shadow.number),
    ).rowcount
    if swapped != 1:
        raise FailedPrecondition(f"projection {shadow.name} is being built anew", reason="moved")


def retire_shadow(tx: Transaction, name: str) -> None:
    """Give up what is being built; it is deleted later."""
    tx.execute("UPDATE projections SET role = 'retired' WHERE name = ? AND role = 'shadow'", (name,))


def delete_some(tx: Transaction, generation: Generation) -> bool:
    """Delete a slice of a retired generation; give whether that was the last of it."""
    key = (generation.name, generation.number)
    deleted = tx.execute(
        "DELETE FROM projection_documents WHERE (name, generation, key) IN (SELECT name, generation, key "
        "FROM projection_documents WHERE name = ? AND generation = ? LIMIT ?)",
        (*key, _DELETED_AT_ONCE),
    ).rowcount
    if deleted == _DELETED_AT_ONCE:
        return False
    tx.execute(f"DROP TABLE IF EXISTS {generation.table}")
    tx.execute("DELETE FROM projections WHERE name = ? AND generation = ?", key)
    return True


def put_documents(tx: Transaction, generation: Generation, documents: Mapping[str, str]) -> None:
    """Store documents (JSON) by key."""
    for key, state in documents.items():
        tx.execute(
            "INSERT INTO projection_documents VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET state = excluded.state",
            (generation.name, generation.number, key, state),
        )


def _load(tx: Transaction, name: str) -> Sequence[Generation]:
    sql = f"SELECT {_COLUMNS} FROM projections WHERE name = ? ORDER BY generation"  # noqa: S608
    return [
        Generation(name, number, role, version, columns, position, missing, stored=position)
        for number, role, version, columns, position, missing in tx.execute(sql, (name,))
    ]
