"""The JSON-RPC calls of a connection: they go the way of all calls, and their answers are translated here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from ksi_common.errors import AlreadyExists, InvalidArgument, KSIError, ResourceExhausted
from ksi_common.frames import Answer, Call, Failure, FrameId, answer_from_wire
from ksi_common.ids import new_id
from ksi_common.jsonrpc import Rpc, RpcCall, RpcCancel, RpcId, RpcPart, render, render_error, render_item
from ksi_common.protocol import MAX_ANSWER
from ksi_daemon.channel import Channel
from ksi_daemon.outcomes import Reply
from ksi_daemon.router import Route
from ksi_daemon.shared_bytes import SharedBytes

if TYPE_CHECKING:
    from ksi_daemon.exchange import Exchange

_NO_ROOM: Final = 1280
"""Bytes that are kept free for saying of a call that its answer has no room."""


class RpcSide:
    """What a connection has of JSON-RPC. Its ids are apart from those of KSI's own frames."""

    def __init__(
        self,
        connection: Channel,
        begin: Callable[[Call, Channel], None],
        cancel: Callable[[FrameId], None],
        routes: Mapping[str, Route],
    ) -> None:
        self._connection = connection
        self._begin = begin
        self._cancel = cancel
        self._routes = routes
        self._live: dict[RpcId, FrameId] = {}

    def receive(self, frame: Rpc) -> None:
        """Begin what a line asks, in its order."""
        answers = Answers(sum(_is_answered(part) for part in frame.parts)) if frame.batch else None
        for part in frame.parts:
            if type(part) is RpcCall:
                self._call(part, answers)
            elif type(part) is RpcCancel:
                self._stop(part, answers)
            else:
                self._say(part.line, answers)  # type: ignore[union-attr]

    def forget(self, part: RpcCall) -> None:
        """Free the id of a call that is answered."""
        if self._live.get(part.id) == part.call.id:
            del self._live[part.id]

    def _call(self, part: RpcCall, answers: "Answers | None") -> None:
        refusal = self._refusal(part, batch=answers is not None)
        if refusal is None:
            part.call.id = frame_id = new_id()
            if not part.notification and part.id is not None:
                self._live[part.id] = frame_id
            self._begin(part.call, RpcChannel(self._connection, self, part, answers))
        elif not part.notification:
            self._say(render_error(part.id, refusal), answers)

    def _refusal(self, part: RpcCall, *, batch: bool) -> KSIError | None:
        if not part.notification and part.id in self._live:
            return AlreadyExists(f"id {part.id!r} is in use on this connection", reason="id_in_use")
        route = self._routes.get(part.call.event)
        if (batch or part.notification) and route is not None and route.spec.kind == "stream":
            return InvalidArgument(
                f"{part.call.event} is a stream: ask for it by a request that is in no batch", reason="stream"
            )
        return None

    def _stop(self, part: RpcCancel, answers: "Answers | None") -> None:
        if part.id in self._live:
            self._cancel(self._live[part.id])
        if not part.notification:
            self._say(b'{"jsonrpc":"2.0","id":%b,"result":null}' % orjson.dumps(part.answer_to), answers)

    def _say(self, line: bytes, answers: "Answers | None") -> None:
        if answers is not None:
            line = answers.add(line, None)
        if line:
            self._connection.write(line + b"\n")


@dataclass(slots=True)
class Answers:
    """The answers of a batch: one array, when the last of them is there; nothing where none is due."""

    due: int
    _lines: list[bytes] = field(default_factory=list)
    _size: int = 0

    def add(self, line: bytes, ident: RpcId) -> bytes:
        """Take an answer; give the array with the last one, else nothing.

        An answer that would make the array longer than a line may be is replaced by an error that says so.
        """
        if self._size + len(line) > MAX_ANSWER - _NO_ROOM * self.due:
            no_room = ResourceExhausted(
                "the call is over, but its batch has no room for the answer",
                reason="too_large",
                limit=MAX_ANSWER,
                retryable=False,
            )
            line = render_error(ident, no_room)
        self._lines.append(line)
        self._size += len(line) + 1
        self.due -= 1
        return b"" if self.due else b"[" + b",".join(self._lines) + b"]"


class RpcChannel:
    """The way of one call's answers: each frame for it becomes an object of JSON-RPC."""

    __slots__ = ("_answers", "_connection", "_part", "_side")

    def __init__(self, connection: Channel, side: RpcSide, part: RpcCall, answers: Answers | None) -> None:
        self._connection = connection
        self._side = side
        self._part = part
        self._answers = answers

    @property
    def connection(self) -> object:
        """Give what stands for the connection itself."""
        return self._connection.connection

    @property
    def full(self) -> bool:
        """Tell whether the client has as much unread as it may."""
        return self._connection.full

    @property
    def timestamp(self) -> bytes:
        """Give the time, RFC 3339."""
        return self._connection.timestamp

    def encode(self, value: Reply | Mapping[str, Any]) -> bytes:
        """Render a reply."""
        return self._connection.encode(value)

    async def wait_writable(self) -> None:
        """Return when the client has read enough, or is gone."""
        await self._connection.wait_writable()

    def write(self, line: bytes) -> None:
        """Send an item or a mark; or that the call is refused, which ends it."""
        answer = _read(line)
        said = self._last(answer) if type(answer) is Failure else self._render(answer)
        if said:
            self._connection.write(said)

    def push(self, lines: bytes, shared: SharedBytes | None) -> None:
        """Send items of a subscription, each as a notification of its own."""
        del shared  # they are this client's only
        ident = self._part.id
        self._connection.write(b"".join([render_item(line, ident) + b"\n" for line in lines.splitlines()]))

    def answer(self, exchange: "Exchange", line: bytes) -> None:
        """Send the response, unless there is to be none."""
        self._connection.answer(exchange, self._last(_read(line)))

    def crashed(self, error: BaseException) -> None:
        """End the daemon: an error that nobody may catch."""
        self._connection.crashed(error)

    def _last(self, answer: Answer) -> bytes:
        """Take the terminal frame; give what is to be sent for it now, if anything."""
        part = self._part
        self._side.forget(part)
        if part.notification:
            return b""
        if self._answers is None:
            return self._render(answer)
        array = self._answers.add(render(answer, part.id), part.id)
        return array + b"\n" if array else b""

    def _render(self, answer: Answer) -> bytes:
        return render(answer, self._part.id) + b"\n"


def _read(line: bytes) -> Answer:
    answer = answer_from_wire(orjson.loads(line))
    assert answer is not None, "frames of our own are known"
    return answer


def _is_answered(part: RpcPart) -> bool:
    return not getattr(part, "notification", False)
