"""Records: dataclasses that are not changed once made, and that start and make instances fast.

``@dataclass(frozen=True, slots=True)`` has Python write and compile six functions for each class, half a
millisecond when its module is imported, and sets each field of an instance by a call. A daemon has a hundred
of them. Here the type checker keeps records from being changed, at no cost at all, and
what compares, hashes and shows them is written once, below; only ``__init__`` is their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform, overload

C = TypeVar("C")


@overload
def record(cls: type[C], /) -> type[C]: ...


@overload
def record(*, eq: bool = True, kw_only: bool = False) -> Callable[[type[C]], type[C]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(
    cls: type[C] | None = None, /, *, eq: bool = True, kw_only: bool = False
) -> type[C] | Callable[[type[C]], type[C]]:
    """Make a dataclass with slots, frozen for the type checker. ``eq=False``: each one equals only itself."""

    def make(plain: type[C]) -> type[C]:
        made = dataclass(slots=True, eq=False, repr=False, kw_only=kw_only)(plain)
        _give(made, "__repr__", _shown)
        if eq:
            _give(made, "__eq__", _is_equal)
            _give(made, "__hash__", _hashed)
        return made

    return make if cls is None else make(cls)


def _give(cls: type, name: str, method: Callable[..., object]) -> None:
    if name not in cls.__dict__:
        setattr(cls, name, method)


def _values(one: Any) -> tuple[Any, ...]:
    return tuple([getattr(one, each.name) for each in fields(one)])


def _shown(self: Any) -> str:
    shown = [f"{each.name}={getattr(self, each.name)!r}" for each in fields(self)]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _is_equal(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hashed(self: Any) -> int:
    return hash(_values(self))
