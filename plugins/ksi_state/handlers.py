"""What is asked of state, and what is told of it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ksi_common.events.state import (
    Clear,
    Cleared,
    Delete,
    Deleted,
    Found,
    Get,
    List,
    Listed,
    Set,
    Stored,
)
from ksi_daemon.plugin import Database, Service, handler, hookimpl, scripts
from ksi_state.store import StateStore


@hookimpl
def ksi_migrations() -> Mapping[int, str]:
    """Give the table of state."""
    return scripts("ksi_state")


@hookimpl
def ksi_services() -> Sequence[Service[Any]]:
    """Offer the store."""
    return [Service(StateStore, _open)]


@asynccontextmanager
async def _open(database: Database) -> AsyncIterator[StateStore]:
    yield StateStore(database)


@handler
async def get(request: Get, store: StateStore) -> Found:
    """Read one value."""
    value, found = await store.get(request.namespace, request.key)
    return Found(value=value, found=found, namespace=request.namespace, key=request.key)


@handler
async def set_(request: Set, store: StateStore) -> Stored:
    """Store one value, and tell it."""
    await store.set(request.namespace, request.key, request.value, request.metadata)
    return Stored(namespace=request.namespace, key=request.key)


@handler
async def delete(request: Delete, store: StateStore) -> Deleted:
    """Remove one value, and tell it if there was one."""
    there = await store.delete(request.namespace, request.key)
    return Deleted(status="deleted" if there else "not_found", namespace=request.namespace, key=request.key)


@handler
async def list_(request: List, store: StateStore) -> Listed:
    """List keys, by pages."""
    keys, more = await store.keys(
        request.namespace, request.pattern, after=request.after, limit=request.limit
    )
    return Listed(
        keys=list(keys),
        count=len(keys),
        namespace=request.namespace,
        pattern=request.pattern,
        next=keys[-1] if more else None,
    )


@handler
async def clear(request: Clear, store: StateStore) -> Cleared:
    """Remove a whole namespace, and tell it."""
    deleted = await store.clear(request.namespace)
    return Cleared(namespace=request.namespace, keys_deleted=deleted)
