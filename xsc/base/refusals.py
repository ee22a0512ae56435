"""Why nodes did not take what they were asked to: one error for people out of many."""

from __future__ import annotations

from collections.abc import Mapping

from xsc.base.errors import (
    CreditExceeded,
    LimitError,
    NoOffers,
    PeerLeaving,
    PeerSilent,
    RateLimited,
    SpaceExhausted,
    XscError,
)
from xsc.base.ids import short

_WORDS: dict[type[XscError], tuple[str, str]] = {
    CreditExceeded: (
        "debt limit reached",
        (
            "`xsc ledger balance` says what this node owes; pay it off the books and have both "
            "sides sign that (`xsc ledger settle PEER --off-books AMOUNT`), or ask for a "
            "higher limit"
        ),
    ),
    SpaceExhausted: ("no room", "see who has room: `xsc market offers storage`"),
    NoOffers: ("no offer", "see who asks how much: `xsc market offers`"),
    PeerSilent: (
        "silent",
        "wait for the silent ones, or remove those that are gone: `xsc peer rm`",
    ),
    PeerLeaving: ("leaving", "remove those that left, and add others: `xsc peer rm`"),
    RateLimited: ("busy", "try again in a moment"),
}
"""By error: what is said of a node, and what would help."""


def reasons(refused: Mapping[bytes, XscError]) -> str:
    """Return who refused why: "debt limit reached: abc, def; silent: ghi"."""
    nodes: dict[str, list[str]] = {}
    for node, fault in refused.items():
        word = _WORDS[type(fault)][0] if type(fault) in _WORDS else fault.code
        nodes.setdefault(word, []).append(short(node))
    return "; ".join(f"{word}: {', '.join(sorted(nodes[word]))}" for word in sorted(nodes))


def help_for(refused: Mapping[bytes, XscError]) -> list[str]:
    """Return what would help against each reason."""
    kinds = {type(fault) for fault in refused.values()}
    return [advice for kind, (_, advice) in _WORDS.items() if kind in kinds]


def refusal(refused: Mapping[bytes, XscError], sentence: str, *, also: str = "") -> XscError:
    """Return the one error for what nodes refused, of the branch that says what to do.

    Debts and full disks are limits; where anybody is silent or leaves, it is worth trying
    again later.

    Args:
        refused: by node, why; at least one.
        sentence: what could not be done.
        also: what helps beside what the reasons suggest.
    """
    faults = refused.values()
    kind: type[XscError] = NoOffers
    if all(isinstance(fault, CreditExceeded) for fault in faults):
        kind = CreditExceeded
    elif all(isinstance(fault, LimitError) for fault in faults):
        kind = SpaceExhausted
    hint = "; ".join([*help_for(refused), *([also] if also else [])])
    return kind(f"{sentence} ({reasons(refused)})", hint=hint)
