"""What a consumer has before it: each event once, whoever else says so."""

from ksi_common.envelope import StoredEvent
from ksi_daemon.consumers.ledger import Failures, Ledger, Member


def event(seq: int) -> StoredEvent:
    return StoredEvent("a:b", b"{}", f"e{seq}", "c", None, "owner", 0, 1, seq=seq)


def test_a_dead_letter_that_is_restored_twice_is_given_once() -> None:
    ledger, member = Ledger(5, shared=False), Member("m", 8)
    ledger.join(member)
    for _ in range(2):
        ledger.restore(event(3), Failures(letter=1))
    given = ledger.give(0, lambda member: member.has_room)
    assert [entry.seq for _, entry in given] == [3]
    ledger.settle([3], 5)
    assert not ledger.entries
