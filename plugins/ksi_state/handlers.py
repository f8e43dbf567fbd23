"""What is asked of state, and what is told of it."""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

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
from ksi_daemon.plugin import Database, Rendered, Service, Transaction, handler, hookimpl, scripts
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
def get(request: Get, store: StateStore) -> Rendered[Found] | Awaitable[Rendered[Found]]:
    """Read one value; one that is at hand is given at once."""
    at_hand, text = store.cached(request.namespace, request.key)
    return _found(request, text) if at_hand else _read(request, store)


async def _read(request: Get, store: StateStore) -> Rendered[Found]:
    return _found(request, await store.read(request.namespace, request.key))


def _found(request: Get, text: str | None) -> Rendered[Found]:
    found = {
        "value": None if text is None else orjson.Fragment(text),
        "found": text is not None,
        "namespace": request.namespace,
        "key": request.key,
    }
    return Rendered(Found, orjson.dumps(found))


@handler
def set_(request: Set, tx: Transaction, store: StateStore) -> Rendered[Stored]:
    """Store one value, and tell it."""
    store.set(tx, request.namespace, request.key, request.value, request.metadata)
    stored = {"status": "set", "namespace": request.namespace, "key": request.key}
    return Rendered(Stored, orjson.dumps(stored))


@handler
def delete(request: Delete, tx: Transaction, store: StateStore) -> Deleted:
    """Remove one value, and tell it if there was one."""
    there = store.delete(tx, request.namespace, request.key)
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
def clear(request: Clear, tx: Transaction, store: StateStore) -> Cleared:
    """Remove a whole namespace, and tell it."""
    deleted = store.clear(tx, request.namespace)
    return Cleared(namespace=request.namespace, keys_deleted=deleted)
