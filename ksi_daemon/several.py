"""A request that several plugins answer: of all of them, or of the first that can."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from ksi_common.answers import Answer, Answers, refusal_of
from ksi_common.envelope import EventEnvelope
from ksi_common.errors import InternalError, KSIError
from ksi_common.messages import EventSpec, Message, Rendered
from ksi_common.records import record
from ksi_common.validation import parser
from ksi_daemon.database import Database
from ksi_daemon.immediate import HandlerError
from ksi_daemon.outcomes import Endpoint, Failed, Outcome, Replied, Send
from ksi_daemon.router import Route
from ksi_daemon.supervisor import attempt_async

Explain = Callable[[EventEnvelope, BaseException, str], KSIError]
"""Give the error that a plugin's failure is answered with; a bug is logged, and counted against it."""


def item_of(spec: EventSpec) -> EventSpec:
    """Give what one of several handlers answers: its own part, which leaves no row of its own.

    Raise HandlerError where the class does not declare that well.
    """
    if spec.kind != "request":
        raise HandlerError(f"{spec.name} is a {spec.kind}: only a Request has several answers")
    reply = spec.reply
    if spec.answers == "all":
        arguments = getattr(reply, "__pydantic_generic_metadata__", {})
        if arguments.get("origin") is not Answers:
            raise HandlerError(
                f'{spec.name} has answers="all", so it is a Request[Answers[...]] of what each gives'
            )
        (reply,) = arguments["args"]
    return replace(spec, reply=reply, recorded=False)


@record
class Several:
    """The end of the chain for such a request: ``members`` in the order loaded."""

    members: Sequence[Route]
    spec: EventSpec
    message: type[Message]
    database: Database
    explain: Explain

    def route(self) -> Route:
        """Make the one route of them all."""
        names = ", ".join(member.plugin for member in self.members)
        return Route(
            self.spec, self.message, names, self._endpoint(), plugins=[m.plugin for m in self.members]
        )

    def _endpoint(self) -> Endpoint:
        parse = parser(self.message)
        to_record = self.spec.recorded and not self.spec.safe
        decide = self._all if self.spec.answers == "all" else self._race

        async def handle(envelope: EventEnvelope, send: Send) -> None:
            if envelope.message is None:
                envelope.message = parse(envelope.data)
            reply = await decide(envelope)
            envelope.to_record = to_record
            if to_record:
                await self.database.record(envelope, reply)
            await send(Replied(reply))

        return handle

    async def _all(self, envelope: EventEnvelope) -> Message:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(member, envelope)) for member in self.members]
        reply: Any = self.spec.reply
        (answer,) = get_args(reply.model_fields["answers"].annotation)
        answers = [
            _answer(answer, member.plugin, task.result())
            for member, task in zip(self.members, asked, strict=True)
        ]
        return reply.model_construct(answers=answers)  # type: ignore[no-any-return]  # it is an Answers

    async def _race(self, envelope: EventEnvelope) -> Message | Mapping[str, Any]:
        errors: list[KSIError] = []
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(member, envelope)) for member in self.members]
            for finished in asyncio.as_completed(asked):
                given = await finished
                if not isinstance(given, KSIError):
                    for task in asked:
                        task.cancel()
                    return given
                errors.append(given)
        raise errors[0]

    async def _ask(self, member: Route, envelope: EventEnvelope) -> Message | Mapping[str, Any] | KSIError:
        own = replace(envelope, caller=None, begun=None, joins=None, recorded=False, to_record=False)
        outcomes: list[Outcome] = []

        async def send(outcome: Outcome) -> None:
            outcomes.append(outcome)

        error = await attempt_async(partial(member.handle, own, send))
        if isinstance(error, BaseException):
            return self.explain(own, error, member.plugin)
        last = outcomes[-1] if outcomes else None
        if isinstance(last, Failed):
            return last.error
        if isinstance(last, Replied):
            value = last.value
            return value.message.model_validate_json(value.data) if isinstance(value, Rendered) else value
        return InternalError(f"plugin {member.plugin} did not answer {envelope.event}")


def _answer(answer: type[Answer[Any]], plugin: str, given: object) -> Answer[Any]:
    if isinstance(given, KSIError):
        return answer.model_construct(plugin=plugin, error=refusal_of(given))
    return answer.model_construct(plugin=plugin, value=given)
