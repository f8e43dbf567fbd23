"""Be the handler of events from a process of one's own.

async def greet(request: Greet) -> Greeting: ...

await serve(greet, name="hello")       # until cancelled; a lost connection is made again
"""

import asyncio
import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_type_hints

from pydantic import BaseModel, ValidationError

from ksi_client.async_link import AsyncLink
from ksi_client.connecting import Address, socket_path
from ksi_client.exchanges import Feed
from ksi_client.outgoing import encode_answer
from ksi_client.timeouts import CONNECT_TIMEOUT_S
from ksi_common.errors import InternalError, KSIError, Unavailable
from ksi_common.frames import Asked, Call, FrameId, Revoked, ServedAnswer
from ksi_common.messages import Message, Request, Stream, spec_of
from ksi_common.records import record
from ksi_common.validation import refusal

log = logging.getLogger("ksi_client")

MAX_IN_FLIGHT: Final = 64

Handler = Callable[..., Awaitable[Any] | AsyncIterator[Any]]
"""An async function whose first parameter is the event; a second, if there is one, is the ``Asked`` frame."""


@record
class Served:
    """An event and what handles it. Without ``kind_of``, a class, data and replies are plain objects.

    ``schema`` and ``reply``: JSON Schemas; without both the event is one that is declared already.
    """

    event: str
    handle: Handler
    kind: str = "request"
    summary: str = ""
    safe: bool = False
    idempotent: bool = False
    schema: Mapping[str, Any] | None = None
    reply: Mapping[str, Any] | None = None
    kind_of: type[Message] | None = None

    def declaration(self) -> dict[str, Any]:
        """Give what the daemon is told of it."""
        declared = {
            "event": self.event,
            "kind": self.kind,
            "summary": self.summary,
            "safe": self.safe,
            "idempotent": self.idempotent,
            "schema": self.schema,
            "reply": self.reply,
        }
        return {name: value for name, value in declared.items() if value is not None}


async def serve(
    *handlers: Handler | Served,
    name: str,
    version: str = "0",
    socket: Address | None = None,
    max_in_flight: int = MAX_IN_FLIGHT,
    ready: Callable[[], object] = lambda: None,
    connect_timeout_s: float | None = CONNECT_TIMEOUT_S,
) -> None:
    """Handle events until cancelled, or until the daemon refuses: that is raised.

    A handler is an async function, annotated with a Request and its reply, or an async generator annotated
    with a Stream. What it raises as a KSIError is the caller's answer; anything else is logged here, and told
    as INTERNAL. ``ready`` is called whenever the daemon has taken us in. Several processes may serve under
    one ``name``: calls are spread over them.
    """
    served = [each if isinstance(each, Served) else _served(each) for each in handlers]
    events = [each.declaration() for each in served]
    data = {"name": name, "version": version, "events": events, "max_in_flight": max_in_flight}
    link = AsyncLink(socket_path(socket), connect_timeout_s=connect_timeout_s)
    await link.open()
    refusal: KSIError | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            desk = _Desk({each.event: each for each in served}, tasks, link)
            link.listen(desk.take)
            try:
                refusal = await _hold(link, Service(Call("plugin:serve", data)), desk, ready)
            finally:
                desk.close()
    finally:
        await link.close(Unavailable("serving has ended", reason="client_closed", retryable=False))
    if refusal is not None:  # not within the group, which would wrap it
        raise refusal


class Service(Feed):
    """The stream of ``plugin:serve``: asked for again on each new connection."""

    __slots__ = ()

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.resend = True


_Which = tuple[int, FrameId]
"""A call: the number of its connection, and its id there."""


class _Desk:
    """What was asked and is at work, each in a task of its own."""

    def __init__(self, served: Mapping[str, Served], tasks: asyncio.TaskGroup, link: AsyncLink) -> None:
        self._served = served
        self._tasks = tasks
        self._link = link
        self._running: dict[_Which, asyncio.Task[None]] = {}

    def take(self, frame: Asked | Revoked) -> None:
        """Begin what is asked, stop what is revoked."""
        which = self._link.connections, frame.id
        if isinstance(frame, Revoked):
            task = self._running.get(which)
            if task is not None:
                task.cancel()
            return
        self._running[which] = task = self._tasks.create_task(self._handle(frame, which))
        task.add_done_callback(lambda _: self._running.pop(which))

    def cancel_earlier(self) -> None:
        """Stop what was asked on earlier connections: whoever asked was told by the daemon."""
        now = self._link.connections
        for (connection, _), task in self._running.items():
            if connection != now:
                task.cancel()

    def close(self) -> None:
        """Begin nothing more, and stop everything."""
        self._link.listen(None)
        for task in self._running.values():
            task.cancel()

    async def _handle(self, asked: Asked, which: _Which) -> None:
        self._say(await self._answer(asked, which), which)

    def _say(self, line: bytes, which: _Which) -> None:
        if which[0] == self._link.connections:  # else nobody knows its id any more
            self._link.say(line)

    async def _answer(self, asked: Asked, which: _Which) -> bytes:
        """Give the line that answers; what fails, or gives what cannot be sent, costs its own call only."""
        served = self._served[asked.event]
        try:
            try:
                answer = await self._ask(served, asked, which)
            except KSIError as error:
                answer = ServedAnswer(asked.id, "error", error.to_wire())
            return encode_answer(answer)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            log.exception("the handler of %s failed", asked.event)
            bug = InternalError(f"{type(error).__name__} ({_place(error, served.handle)})")
            return ServedAnswer(asked.id, "error", bug.to_wire()).encode()

    async def _ask(self, served: Served, asked: Asked, which: _Which) -> ServedAnswer:
        arguments = [_message(served, asked), asked][: len(inspect.signature(served.handle).parameters)]
        given = served.handle(*arguments)
        if isinstance(given, AsyncIterator):
            async for item in given:
                self._say(encode_answer(ServedAnswer(asked.id, "item", _plain(item))), which)
                await self._link.wait_writable()
            return ServedAnswer(asked.id, "end", {})
        if not inspect.isawaitable(given):
            raise TypeError(f"the handler of {asked.event} is no async function")
        return ServedAnswer(asked.id, "reply", _plain(await given))


async def _hold(
    link: AsyncLink, service: Service, desk: _Desk, ready: Callable[[], object]
) -> KSIError | None:
    arrived = asyncio.Event()
    service.wake = arrived.set
    link.start(service)
    while True:
        await arrived.wait()
        arrived.clear()
        while link.pop(service) is not None:
            desk.cancel_earlier()  # not all: the daemon may have asked before it says that it took us in
            ready()
        if service.done:
            return service.error


def _served(handle: Handler) -> Served:
    hints = get_type_hints(handle)
    first = next(iter(inspect.signature(handle).parameters), None)
    cls = hints.get(first or "")
    if not (isinstance(cls, type) and issubclass(cls, Request | Stream) and hasattr(cls, "__ksi__")):
        name = getattr(handle, "__qualname__", repr(handle))
        raise TypeError(
            f"the first parameter of {name} must be annotated with the class of a Request or Stream"
        )
    spec = spec_of(cls)
    assert spec.reply is not None
    return Served(
        spec.name,
        handle,
        spec.kind,
        (inspect.getdoc(cls) or "").partition("\n")[0],
        spec.safe,
        spec.idempotent,
        cls.model_json_schema(),
        spec.reply.model_json_schema(mode="serialization"),
        cls,
    )


def _message(served: Served, asked: Asked) -> Any:
    if served.kind_of is None:
        return asked.data
    try:
        return served.kind_of.model_validate(asked.data)
    except ValidationError as error:
        raise refusal(error, served.kind_of, asked.event, asked.data) from None


def _is_cancelled() -> bool:
    """Tell whether this task was to stop, rather than something else that its handler waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _plain(value: Any) -> Mapping[str, Any]:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return value
    raise TypeError(f"a handler gives an object, not {type(value).__name__}")


def _place(error: BaseException, handle: Handler) -> str:
    """Give the last place in the author's folder: what is wrong with a reply shows when none is left."""
    code = getattr(inspect.unwrap(handle), "__code__", None)
    if code is None:
        return "unknown"
    folder = Path(code.co_filename).parent
    places = [(Path(step.f_code.co_filename), line) for step, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in places if _is_in(folder, file)]
    file, line = own[-1] if own else (Path(code.co_filename), code.co_firstlineno)
    return f"{file.name}:{line}"


def _is_in(folder: Path, file: Path) -> bool:
    return file.is_relative_to(folder) and not {"site-packages", "ksi_client", "ksi_common"} & set(
        file.relative_to(folder).parts
    )
