"""What a consumer has before it: each event once, whoever else says so."""

import pytest

from ksi_common.envelope import StoredEvent
from ksi_daemon.consumers.ledger import LOSSES_TOGETHER, Failures, Ledger, Member


def event(seq: int) -> StoredEvent:
    return StoredEvent("a:b", b"{}", f"e{seq}", f"c{seq}", None, "owner", 0, 1, seq=seq)


def test_a_dead_letter_that_is_restored_twice_is_given_once() -> None:
    ledger, member = Ledger(5, shared=False), Member("m", 8)
    ledger.join(member)
    for _ in range(2):
        ledger.restore(event(3), Failures(letter=1))
    given = ledger.give(0, lambda member: member.has_room)
    assert [entry.seq for _, entry in given] == [3]
    ledger.settle([3], 5)
    assert not ledger.entries


def test_an_event_that_was_lost_often_waits_until_its_member_has_nothing_else() -> None:
    ledger, member = Ledger(0, shared=False, failures={2: Failures(losses=LOSSES_TOGETHER)}), Member("m", 8)
    ledger.join(member)
    ledger.read([event(1), event(2), event(3)], 3)

    def given() -> list[int]:
        return [entry.seq for _, entry in ledger.give(0, lambda member: member.has_room)]

    assert given() == [1]
    ledger.settle([1], 1)
    assert given() == [2]
    ledger.settle([2], 2)
    assert given() == [3]


def test_the_position_waits_for_what_is_not_settled_however_much_was_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ksi_daemon.consumers.ledger.MAX_HELD", 4)
    ledger = Ledger(0, shared=False)
    for seq in range(1, 20):
        ledger.read([event(seq)], seq)
        assert ledger.position_without(()) == seq - 1
        ledger.settle([seq], seq)
