"""What a peer may owe this node, and why: a formula that an operator's word overrides.

    min(max, starter + recognised share of a starter * mutual recognition + share * repaid)

It rises with trust and with what was really repaid, and every term of it is shown. A limit stops
new use; whatever it falls to, it takes nothing back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from xsc.api.ledger import Flow
from xsc.base.limits import AMOUNT_MAX, PPM

REPAID_MS: Final = 90 * 86_400_000

Known = Literal["direct", "introduced", "stranger", "barred"]
"""`direct`: invited, or confirmed by hand. `introduced`: by the word of one that is, with whom all
that it brought share one credit. `barred`: the operator blocked it, or it keeps two ledgers."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What an operator sets for all peers."""

    starter_micro: int
    recognised_ppm: int = PPM
    """Of a starter, for full mutual recognition."""
    repaid_ppm: int = PPM // 2
    max_starters: int = 4


@dataclass(frozen=True, slots=True)
class Trust:
    """What the rest of this node says of a peer."""

    known: Known = "direct"
    mutual_ppm: int = 0
    """The lesser of what both recognise each other with."""


@dataclass(frozen=True, slots=True)
class LimitTerms:
    """A limit and what it is made of."""

    known: Known
    starter_micro: int
    mutual_ppm: int
    recognised_micro: int
    repaid_micro: int
    """Within REPAID_MS."""
    repaid_credit_micro: int
    max_micro: int
    set_micro: int | None
    """What the operator set instead."""

    @property
    def limit_micro(self) -> int:
        """What the peer may owe."""
        return self.rule_micro if self.set_micro is None else self.set_micro

    @property
    def rule_micro(self) -> int:
        """What it may owe unless the operator set another limit."""
        terms = self.starter_micro + self.recognised_micro + self.repaid_credit_micro
        return min(self.max_micro, terms, AMOUNT_MAX)


def limit_terms(
    settings: LimitSettings, trust: Trust, repaid_micro: int, set_micro: int | None
) -> LimitTerms:
    """Return what a peer may owe."""
    trusted = trust.known in {"direct", "introduced"}
    starter = settings.starter_micro if trusted else 0
    return LimitTerms(
        known=trust.known,
        starter_micro=starter,
        mutual_ppm=trust.mutual_ppm,
        recognised_micro=starter * settings.recognised_ppm * trust.mutual_ppm // PPM**2,
        repaid_micro=repaid_micro,
        repaid_credit_micro=repaid_micro * settings.repaid_ppm // PPM if trusted else 0,
        max_micro=starter * settings.max_starters,
        set_micro=set_micro,
    )


def repaid(balance_micro: int, flow: Flow) -> int:
    """Return what a peer repaid within a time, by sums alone: the order of entries is no matter.

    That is what it did for this node, or paid its operator, and was not paid for in return; and no
    more than it owed in that time. So paying each other to and fro repays nothing.

    Args:
        balance_micro: what it owes at the end of the time; below zero, what it is owed.
        flow: what was booked with it within the time.
    """
    # What a loop took off this node's debt was paid for it; off the peer's, it was never owed.
    paid = flow.paid_micro + flow.cleared_own_micro
    taken, given = flow.spent_micro + flow.received_micro, flow.earned_micro + paid
    before = balance_micro - given + taken
    # What this node paid in money settles what it owed before, and then what it was given.
    settled = min(paid, max(0, -before))
    owed = before + settled + flow.earned_micro
    return max(0, min(taken - (paid - settled), owed))
