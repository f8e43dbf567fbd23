"""What a call needs of the connection that it came by: to be rendered there, and to be answered."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ksi_daemon.outcomes import Reply

if TYPE_CHECKING:
    from ksi_daemon.exchange import Exchange
    from ksi_daemon.shared_bytes import SharedBytes


class Channel(Protocol):
    """The way of a call's answers: the connection itself, or what makes JSON-RPC of them."""

    @property
    def connection(self) -> object:
        """Give what stands for the connection itself."""
        ...

    @property
    def full(self) -> bool:
        """Tell whether the client has as much unread as it may."""
        ...

    @property
    def timestamp(self) -> bytes:
        """Give the time, RFC 3339."""
        ...

    def encode(self, value: Reply | Mapping[str, Any]) -> bytes:
        """Render a reply."""
        ...

    async def wait_writable(self) -> None:
        """Return when the client has read enough, or is gone."""
        ...

    def write(self, line: bytes) -> None:
        """Send a frame."""
        ...

    def push(self, lines: bytes, shared: "SharedBytes | None") -> None:
        """Send items of a subscription; ``shared``: by which that may be done, where many get them."""
        ...

    def answer(self, exchange: "Exchange", line: bytes) -> None:
        """Send the one terminal frame of an exchange."""
        ...

    def crashed(self, error: BaseException) -> None:
        """End the daemon: an error that nobody may catch."""
        ...
