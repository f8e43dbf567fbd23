"""Count the changes of each key: documents. `ksi call projection:get name=popularity key=color`."""

from ksi_common.events.state import Changed
from ksi_daemon.plugin import Message, projection


class Popularity(Message):
    changes: int = 0
    last: str | None = None


@projection(version=1, key=lambda event: event.key)
def popularity(state: Popularity, event: Changed) -> Popularity:
    return Popularity(changes=state.changes + 1, last=event.namespace)
