"""Decides which of several providers of one order are believed and paid.

A run has one outcome. If `need` of `of` providers sign the same outcome, they are believed and
paid; `need` is more than half, or two outcomes could win. A provider that signed another
outcome on the same engine and configuration contradicts them: both receipts together prove that
one of the two is false. A receipt of another engine, or of a run that was ended for its time,
cannot be contradicted. It does not count and is not paid; otherwise a provider could name an
engine of its own and be paid for nothing. Providers can also agree that the time was over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from xsc.base.errors import ArgumentInvalid
from xsc.compute.jobs.receipts import TIME_TRAPS
from xsc.terms.execution import Order, Outcome

PROVIDERS_VERIFYING_MAX = 9
"""Providers that one order can be run by at once."""

_Ballot: TypeAlias = "bytes | str"
"""The outcome's canonical bytes, or the trap of a run that was ended for its time."""


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many of how many must agree.

    Raises:
        ArgumentInvalid: not more than half of 2 to PROVIDERS_VERIFYING_MAX.
    """

    need: int
    of: int

    def __post_init__(self) -> None:
        if not 2 <= self.of <= PROVIDERS_VERIFYING_MAX:
            raise ArgumentInvalid(f"from 2 to {PROVIDERS_VERIFYING_MAX} providers can be asked")
        if not self.of < 2 * self.need <= 2 * self.of:
            raise ArgumentInvalid(
                f"of {self.of} providers more than half must agree, and at most all",
                hint=f"for example {self.of // 2 + 1}of{self.of}",
            )


def read_quorum(text: str) -> Quorum:
    """Return what a text like "2of3" means.

    Raises:
        ArgumentInvalid: it means nothing.
    """
    match = re.fullmatch(r"([0-9]{1,3})of([0-9]{1,3})", text)
    if match is None:
        raise ArgumentInvalid(
            f"'{text[:40]}' does not say how many must agree", hint="write for example 2of3"
        )
    return Quorum(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Votes:
    """What came of asking several; providers in the order in which they were asked."""

    agreeing: tuple[bytes, ...] = ()
    """Those that are believed and paid; none where too few agree."""
    dissenting: tuple[bytes, ...] = ()
    """Those that contradict the agreeing ones."""
    uncounted: tuple[bytes, ...] = ()
    """Those that signed what nothing here confirms or contradicts."""
    contradictions: tuple[tuple[bytes, bytes], ...] = ()
    """Pairs of which one must be false; the believed one first, where one is."""


def _ballot(outcome: Outcome) -> _Ballot:
    return outcome.trap if outcome.trap in TIME_TRAPS else outcome.to_bytes()


def contradict(first: Outcome, second: Outcome) -> bool:
    """Say whether two outcomes of the same order cannot both be true."""
    return (
        (first.engine, first.engine_config) == (second.engine, second.engine_config)
        # Time can end a batch within its table, which the receipt does not show.
        and first.mode != "batch"
        and not TIME_TRAPS & {first.trap, second.trap}
        and first != second
    )


def same_content(first: Order, second: Order) -> bool:
    """Say whether two orders ask for the same run, of other providers and under other leases.

    A run that is granted the real time or chance is no other's same.
    """
    if first.provider == second.provider or first.grants:
        return False
    parties = {"provider": first.provider, "lease_id": first.lease_id}
    return first == second.model_copy(update=parties)


def decide(told: Mapping[bytes, Outcome], need: int) -> Votes:
    """Return which providers agree; `told` has the outcomes in the order of asking."""
    groups: dict[_Ballot, list[bytes]] = {}
    for provider, outcome in told.items():
        groups.setdefault(_ballot(outcome), []).append(provider)
    # More than half of those that were asked: there is at most one such group.
    agreeing = next((members for members in groups.values() if len(members) >= need), [])
    # One of each group stands for it: the believed first, then as they were asked.
    leaders = [members[0] for members in groups.values() if members is not agreeing]
    if agreeing:
        leaders.insert(0, agreeing[0])
    pairs = []
    for place, first in enumerate(leaders):
        for other in leaders[place + 1 :]:
            if contradict(told[first], told[other]):
                members = groups[_ballot(told[other])]
                pairs += [(first, member) for member in members]
        if agreeing:
            break
    dissenting = {second for _, second in pairs} if agreeing else set()
    known = {*agreeing, *dissenting}
    return Votes(
        tuple(agreeing),
        tuple(node for node in told if node in dissenting),
        tuple(node for node in told if node not in known),
        tuple(pairs),
    )
