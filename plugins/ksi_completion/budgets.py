"""How much may be used: budgets, what is used of them, and what is reserved for calls at work.

A call is checked before it is made, with what its prompt will take and its answer may at most, and while it
is made, with what its answer has so far. What is used is what the ledger has.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from ksi_common.clock import Clock, format_time
from ksi_common.events.budget import (
    EACH,
    Budget,
    BudgetChanged,
    BudgetExceeded,
    BudgetKey,
    BudgetRemoved,
    Removed,
    SetBudget,
)
from ksi_common.events.completion import Usage
from ksi_completion.reservations import CHARACTERS_PER_TOKEN, Account, Limit, Reservation, Spent, is_over
from ksi_completion.rows import Row
from ksi_daemon.plugin import Database, FailedPrecondition, NotFound, Transaction

REMEMBERED: Final = 10_000
"""Sums that are kept in memory."""

_LOAD: Final = "SELECT scope, subject, per, tokens, cost_usd FROM budgets"
_SET: Final = (
    "INSERT INTO budgets (name, scope, subject, per, tokens, cost_usd, set_us) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET tokens = excluded.tokens, cost_usd = excluded.cost_usd, "
    "set_us = excluded.set_us"
)
_REMOVE: Final = "DELETE FROM budgets WHERE name = ?"


class Holds(Protocol):
    """Holds sessions, and lets them go."""

    def hold_in(self, tx: Transaction, session_id: str, budget: str) -> None:
        """Hold a session, in a unit of work."""
        ...

    def release(self) -> None:
        """Let all of them try again."""
        ...


class Budgets:
    """The budgets, and what is used of them. ``settings``: those of ksi.toml."""

    def __init__(self, database: Database, clock: Clock, settings: Sequence[Limit]) -> None:
        self._database = database
        self._clock = clock
        self._settings = {limit.key.name: limit for limit in settings}
        self._limits: dict[str, Limit] = dict(self._settings)
        self._holds: Holds | None = None
        self._spent: dict[Account, Spent] = {}
        self._reservations: dict[str, Reservation] = {}
        """By request, of calls that the ledger does not have yet."""

    async def load(self) -> None:
        """Read what was set by request: it goes before the settings."""
        for scope, subject, per, tokens, cost_usd in await self._database.read(_LOAD):
            key = BudgetKey(scope=scope, subject=subject, per=per)
            self._limits[key.name] = Limit(key, tokens, cost_usd)

    def hold_with(self, holds: "Holds") -> None:
        """Have sessions held by this, whose completions do not fit."""
        self._holds = holds

    def hold_in(self, tx: Transaction, over: BudgetExceeded) -> None:
        """Hold the session of a completion that does not fit, and tell it, in a unit of work."""
        tx.tell(over, stream=f"budget/{over.name.partition('/')[0]}")
        if self._holds is not None:
            self._holds.hold_in(tx, over.session_id, over.name)
            tx.on_commit(lambda: self._let_go_again(over))

    async def reserve(self, row: Row, prompt_characters: int) -> Reservation:
        """Take what a call will use at least; raise OverBudget where it does not fit."""
        if not self._limits:
            return Reservation(row)
        limits = self._holding(row.session_id, row.agent_id)
        held = [
            (limit, await self._spent_of(self._account_of(limit, row.session_id, row.agent_id)))
            for limit in limits
        ]
        reservation = Reservation(row, held)
        reservation.take(-(-prompt_characters // CHARACTERS_PER_TOKEN), phase="before")
        self._reservations[row.request_id] = reservation
        return reservation

    def give_back(self, request_id: str) -> None:
        """Reserve nothing for a call any more: the ledger has what it used, or it used nothing."""
        reservation = self._reservations.pop(request_id, None)
        if reservation is not None:
            for _, spent in reservation.held:
                spent.reserved -= reservation.tokens
            reservation.held = ()

    def accounted(self, row: Row, usage: Usage, day: str) -> None:
        """Hear of a call that is in the ledger: what was reserved for it is used by now."""
        self.give_back(row.request_id)
        if not self._spent:
            return
        tokens = usage.prompt_tokens + usage.completion_tokens
        accounts = {
            Account(session_id=session_id, agent_id=agent_id, day=when)
            for session_id, agent_id in ((row.session_id, None), (None, row.agent_id), (None, None))
            for when in (None, day)
        }
        for account in accounts & self._spent.keys():
            self._spent[account].tokens += tokens
            self._spent[account].cost_usd += usage.cost_usd or 0.0

    async def set(self, asked: SetBudget) -> Budget:
        """Set a budget, or change it."""
        key = BudgetKey(scope=asked.scope, subject=asked.subject, per=asked.per)
        limit = Limit(key, asked.tokens, asked.cost_usd)
        now = self._clock.time_us()

        def put(tx: Transaction) -> None:
            row = (key.name, key.scope, key.subject, key.per, limit.tokens, limit.cost_usd, now)
            tx.execute(_SET, row)
            tx.tell(
                BudgetChanged(name=key.name, tokens=limit.tokens, cost_usd=limit.cost_usd),
                stream=f"budget/{key.scope}",
            )
            tx.on_commit(lambda: self._keep(limit))

        await self._database.write(put)
        return await self._described(limit)

    async def remove(self, key: BudgetKey) -> Removed:
        """Remove one that was set by request; raise FailedPrecondition for one of the settings."""
        known = self._limits.get(key.name)
        if known is not None and known.by == "settings":
            raise FailedPrecondition(
                f"budget {key.name} is set in ksi.toml",
                reason="set_in_file",
                hint="change it there, or override it with budget:set",
            )

        def remove(tx: Transaction) -> bool:
            removed = tx.execute(_REMOVE, (key.name,)).rowcount > 0
            if removed:
                tx.tell(BudgetRemoved(name=key.name), stream=f"budget/{key.scope}")
                tx.on_commit(lambda: self._forget(key.name))
            return removed

        return Removed(name=key.name, removed=await self._database.write(remove))

    async def get(self, key: BudgetKey) -> Budget:
        """Describe a budget; raise NotFound."""
        limit = self._limits.get(key.name)
        if limit is None:
            known = ", ".join(self._limits) or "none"
            raise NotFound(
                f"there is no budget {key.name}", reason="unknown_budget", hint=f"there are: {known}"
            )
        return await self._described(limit)

    async def all(self, session_id: str | None, agent_id: str | None) -> Sequence[Budget]:
        """Describe the budgets; those that hold for a session or an agent, with what that has used."""
        if session_id is None and agent_id is None:
            return [await self._described(limit) for limit in tuple(self._limits.values())]
        limits = self._holding(session_id, agent_id)
        return [await self._described(limit, session_id, agent_id) for limit in limits]

    def _let_go_again(self, over: BudgetExceeded) -> None:
        """Release what was held for a budget that became another before anyone knew of the hold."""
        limit = self._limits.get(over.name)
        if limit is None or (limit.tokens, limit.cost_usd) != (over.tokens, over.cost_usd):
            self._release()

    def _release(self) -> None:
        if self._holds is not None:
            self._holds.release()

    def _keep(self, limit: Limit) -> None:
        self._limits[limit.key.name] = limit
        self._release()

    def _forget(self, name: str) -> None:
        del self._limits[name]
        if name in self._settings:
            self._limits[name] = self._settings[name]
        self._release()

    def _holding(self, session_id: str | None, agent_id: str | None) -> list[Limit]:
        subjects = {"session": session_id, "agent": agent_id, "all": EACH}
        return [
            limit for limit in self._limits.values() if self._is_for(limit.key, subjects[limit.key.scope])
        ]

    def _is_for(self, key: BudgetKey, subject: str | None) -> bool:
        if subject is None:
            return False
        if key.subject != EACH or key.scope == "all":
            return key.subject in {subject, EACH}
        return f"{key.scope}/{subject}/{key.per}" not in self._limits

    def _account_of(self, limit: Limit, session_id: str | None, agent_id: str | None) -> Account:
        day = format_time(self._clock.time_us())[:10] if limit.key.per == "day" else None
        match limit.key.scope:
            case "session":
                return Account(session_id=session_id, day=day)
            case "agent":
                return Account(agent_id=agent_id, day=day)
            case _:
                return Account(day=day)

    async def _spent_of(self, account: Account) -> Spent:
        """Give what is used; the first time from the ledger, in the writer, so that no call is missed."""
        known = self._spent.pop(account, None)
        if known is not None:
            self._spent[account] = known  # what was not used for longest makes room first
            return known

        def read(tx: Transaction) -> None:
            tokens, cost_usd = tx.execute(*account.query()).fetchone()
            tx.on_commit(lambda: self._remember(account, Spent(tokens, cost_usd)))

        await self._database.write_apart(read)
        return self._spent[account]

    def _remember(self, account: Account, spent: Spent) -> None:
        if account in self._spent:
            return
        if len(self._spent) >= REMEMBERED:
            idle = next((name for name, known in self._spent.items() if not known.reserved), None)
            if idle is not None:
                del self._spent[idle]
        self._spent[account] = spent

    async def _described(
        self, limit: Limit, session_id: str | None = None, agent_id: str | None = None
    ) -> Budget:
        key = limit.key
        named = None if key.subject == EACH else key.subject
        session_id, agent_id = (
            named if key.scope == "session" and named else session_id,
            named if key.scope == "agent" and named else agent_id,
        )
        account = self._account_of(limit, session_id, agent_id)
        is_of_somebody = key.scope == "all" or account.session_id or account.agent_id
        spent = await self._spent_of(account) if is_of_somebody else Spent()
        return Budget(
            name=key.name,
            scope=key.scope,
            subject=key.subject,
            per=key.per,
            tokens=limit.tokens,
            cost_usd=limit.cost_usd,
            used_tokens=spent.tokens,
            used_cost_usd=spent.cost_usd,
            reserved_tokens=spent.reserved,
            is_exceeded=is_over(limit, spent, 0),
            by=limit.by,
        )
