"""Talk to KSI: ``AsyncClient``, ``Client`` (its blocking twin), and ``call_raw`` for one quick question.

Importing this imports nothing else: a name is loaded when it is first used, and ``call_raw`` needs no
pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ksi_client.async_client import AsyncClient
    from ksi_client.async_items import AsyncItems
    from ksi_client.blocking import Client
    from ksi_client.consumed import BlockingConsumed, Consumed
    from ksi_client.items import Items
    from ksi_client.raw import RawClient, call_raw
    from ksi_client.serving import Served, serve
    from ksi_client.session import ClientStatistics

__all__ = [
    "AsyncClient",
    "AsyncItems",
    "BlockingConsumed",
    "Client",
    "ClientStatistics",
    "Consumed",
    "Items",
    "RawClient",
    "Served",
    "call_raw",
    "serve",
]

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncItems": "async_items",
    "BlockingConsumed": "consumed",
    "Client": "blocking",
    "ClientStatistics": "session",
    "Consumed": "consumed",
    "Items": "items",
    "RawClient": "raw",
    "Served": "serving",
    "call_raw": "raw",
    "serve": "serving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
