"""What must be done before a group may commit: syncs of files whose bytes its rows refer to."""

from collections.abc import Callable, Hashable, Mapping

from ksi_daemon.database.errors import file_refused

Condition = Callable[[], None]


class Conditions:
    """Conditions of the transaction at work, and what became of those of its group.

    A group may take several transactions: where one is lost, its units are run one by one. What was done
    once for the group holds for all of them, as their bytes were written before they were handed over. What
    failed is not tried again: a second sync may say that all is well though the bytes are gone.
    """

    def __init__(self) -> None:
        self._wanted: dict[Hashable, Condition] = {}
        self._outcomes: dict[Hashable, BaseException | None] = {}

    def begin_group(self) -> None:
        """Forget what became of the conditions of the last group."""
        self._outcomes.clear()

    def begin(self) -> None:
        """Forget what a transaction wanted that may have been lost."""
        self._wanted.clear()

    def add(self, conditions: Mapping[Hashable, Condition]) -> None:
        """Want what a unit wants."""
        for key, condition in conditions.items():
            self._wanted.setdefault(key, condition)

    def meet(self) -> BaseException | None:
        """Do what is wanted and not done for the group; give the first error."""
        for key, condition in self._wanted.items():
            if key not in self._outcomes:
                self._outcomes[key] = _attempt(condition)
            error = self._outcomes[key]
            if error is not None:
                return error
        return None


def _attempt(condition: Condition) -> BaseException | None:
    try:
        condition()
    except OSError as error:
        return file_refused(error)
    except BaseException as error:  # noqa: BLE001 -- of whatever kind, it is for the unit that named it
        return error
    return None
