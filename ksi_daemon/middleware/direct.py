"""The layers without coroutines: the way of requests whose handlers do not wait.

What the chain does around a task of the request's own is done here by plain calls, in the same order:
correlation -> errors -> observation -> deadline -> permissions -> handler. Where a plugin has put a layer of
its own around the handlers, the chain serves all.
"""

from asyncio import CancelledError
from collections.abc import Awaitable, Mapping
from functools import partial
from time import perf_counter
from typing import Any

from ksi_common.envelope import reset_current, set_current
from ksi_common.errors import InternalError, KSIError
from ksi_common.messages import Rendered
from ksi_daemon.database import Database
from ksi_daemon.database.core import raisable
from ksi_daemon.database.writer import Job
from ksi_daemon.exchange import Exchange
from ksi_daemon.middleware.deadline import Deadline
from ksi_daemon.middleware.errors import Errors
from ksi_daemon.middleware.observation import Observation
from ksi_daemon.middleware.permissions import check
from ksi_daemon.outcomes import Begin, Later, Replied, Reply


class Direct:
    """Begin handlers at once, and answer when the writer has done what they ask for."""

    def __init__(
        self,
        errors: Errors,
        observation: Observation,
        deadline: Deadline,
        database: Database,
    ) -> None:
        self._errors = errors
        self._observation = observation
        self._deadline = deadline
        self._database = database

    def __call__(self, exchange: Exchange, begin: Begin) -> Awaitable[Reply] | None:
        """Handle a request; give what is left to await, by a task that goes through the chain."""
        envelope = exchange.envelope
        exchange.started = perf_counter()
        token = set_current(envelope)
        try:
            check(envelope)
            outcome = begin(envelope)
            if isinstance(outcome, Replied):
                self._reply(exchange, outcome.value)
            elif callable(outcome):
                exchange.slot = self._deadline.watch(envelope, exchange)
                self._database.write_for(envelope, outcome, partial(self._written, exchange))
            elif isinstance(outcome, Later):
                exchange.slot = self._deadline.watch(envelope, exchange)
                exchange.stop = partial(self._stop, exchange, outcome)
                outcome.begin(partial(self._arrived, exchange))
            else:
                return outcome
        except BaseException as error:  # noqa: BLE001 -- as the errors layer does, which is asked what it means
            self._fail(exchange, error)
        finally:
            reset_current(token)
        return None

    def _written(self, exchange: Exchange, job: Job) -> None:
        try:
            if job.error is not None:
                self._fail(exchange, raisable(job.error))
            elif exchange.answered:  # it was cancelled, or its time was over
                self._end(exchange, CancelledError())
            else:
                self._reply(exchange, job.value)
        except BaseException as error:  # noqa: BLE001 -- the reply cannot be rendered, or is too large
            self._fail(exchange, error)

    def _arrived(self, exchange: Exchange, reply: Rendered[Any] | None, error: KSIError | None) -> None:
        envelope = exchange.envelope
        token = set_current(envelope)
        try:
            if error is not None or reply is None:
                self._fail(exchange, error or InternalError(f"{envelope.event} was not answered"))
            elif envelope.to_record:
                self._database.write_for(envelope, lambda _: reply, partial(self._written, exchange))
            else:
                self._reply(exchange, reply)
        except BaseException as bug:  # noqa: BLE001 -- the reply cannot be rendered, or is too large
            self._fail(exchange, bug)
        finally:
            reset_current(token)

    def _stop(self, exchange: Exchange, later: Later) -> None:
        later.cancel()
        self._end(exchange, CancelledError())

    def _reply(self, exchange: Exchange, reply: Reply | Mapping[str, Any]) -> None:
        exchange.reply(reply)
        self._end(exchange, None)

    def _fail(self, exchange: Exchange, error: BaseException) -> None:
        try:
            exchange.fail(self._errors.answer(exchange.envelope, error))
        except BaseException as bug:  # noqa: BLE001 -- strict mode only: it ends the daemon, not the loop
            exchange.crash(bug)
        self._end(exchange, error)

    def _end(self, exchange: Exchange, error: BaseException | None) -> None:
        if exchange.slot is not None:
            exchange.slot.pop(exchange, None)
        self._observation.ended(exchange.envelope, exchange.started, error)
        exchange.release()
