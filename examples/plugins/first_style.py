"""A plugin in the style of the first KSI; it is loaded through an adapter, as it stands."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

ksi_plugin = True

emit: dict[str, Callable[..., Awaitable[Any]]] = {}


def ksi_plugin_context(context: Mapping[str, Any]) -> None:
    emit["event"] = context["emit_event"]


async def ksi_handle_event(event_name: str, data: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    if event_name == "first:greet":
        stored = await emit["event"]("state:get", {"key": data.get("key", "name")})
        return {"text": f"Hello, {stored['value'] or 'world'}!", "correlation_id": context["correlation_id"]}
    return None


def ksi_shutdown() -> None:
    emit.clear()
