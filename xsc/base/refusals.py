"""Why nodes did not take what they were asked to: one error for people out of many."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from xsc.base import errors, ids

_WORDS: dict[type[errors.XscError], tuple[str, str]] = {
    errors.CreditExceeded: (
        "debt limit reached",
        (
            "`xsc ledger balance` says what this node owes; pay it off the books and have both "
            "sides sign that (`xsc ledger settle PEER --off-books AMOUNT`), or ask for a "
            "higher limit"
        ),
    ),
    errors.SpaceExhausted: (
        "no room",
        (
            "see who has room: `xsc market quote storage`; this node now states that it needs it: "
            "`xsc market slots` shows when it is granted"
        ),
    ),
    errors.ComputeExhausted: ("no fuel left", "see who has fuel left: `xsc market quote compute`"),
    errors.LeaseExhausted: ("lease used up", "try again under a new lease"),
    errors.NoOffers: ("no offer", "see who asks how much: `xsc market quote`"),
    errors.PeerSilent: (
        "silent",
        "wait for the silent ones, or remove those that are gone: `xsc peer rm`",
    ),
    errors.PeerLeaving: ("leaving", "remove those that left, and add others: `xsc peer rm`"),
    errors.PeerUnknown: ("unknown here", "see who is known: `xsc peer ls`"),
    errors.ClockSkewed: ("clock differs", "set the clock that is wrong"),
    errors.ShardMismatch: (
        "wrong bytes",
        "ask who runs those with wrong bytes to check their disks",
    ),
    errors.ShardsInsufficient: ("without their shard", "try again when more hosts are up"),
    errors.RateLimited: ("busy", "try again in a moment"),
    errors.LimitError: ("limit reached", "ask for less, or try again in a moment"),
    errors.UnavailableError: ("not available", "try again in a moment"),
    errors.CallerError: ("refused", "ask who runs the ones that refused"),
    errors.XscError: ("failed", "ask who runs the ones that failed to look at their logs"),
}
"""By error: what is said of a node, and what would help; of one not named here, by its branch."""
_USED_UP: Collection[type[errors.XscError]] = (
    errors.CreditExceeded,
    errors.SpaceExhausted,
    errors.ComputeExhausted,
)
"""Errors that last until a debt is paid or something is given back."""


def _kind(fault: errors.XscError) -> type[errors.XscError]:
    return next(kind for kind in type(fault).__mro__ if kind in _WORDS)


def reasons(refused: Iterable[tuple[bytes, errors.XscError]]) -> str:
    """Return who refused why: "debt limit reached: abc, def; silent: ghi"."""
    nodes: dict[str, set[str]] = {}
    for node, fault in refused:
        nodes.setdefault(_WORDS[_kind(fault)][0], set()).add(ids.short(node))
    return "; ".join(f"{word}: {', '.join(sorted(nodes[word]))}" for word in sorted(nodes))


def help_for(refused: Mapping[bytes, errors.XscError]) -> list[str]:
    """Return what would help against each reason."""
    kinds = {_kind(fault) for fault in refused.values()}
    return list(dict.fromkeys(advice for kind, (_, advice) in _WORDS.items() if kind in kinds))


def refusal(
    refused: Mapping[bytes, errors.XscError], sentence: str, *, also: str = ""
) -> errors.XscError:
    """Return the one error for what nodes refused, of the branch that says what to do.

    Debts, full disks and promised fuel are limits; where one node has another reason, it is
    worth trying again later.

    Args:
        refused: by node, why; empty where nobody was left to be asked.
        sentence: what could not be done.
        also: what helps beside what the reasons suggest.
    """
    if not refused:
        return errors.NoOffers(f"{sentence}: nobody is left that could be asked", hint=also)
    kinds = {_kind(fault) for fault in refused.values()}
    kind: type[errors.XscError] = errors.NoOffers
    if kinds == {errors.CreditExceeded}:
        kind = errors.CreditExceeded
    elif kinds.issubset(_USED_UP):
        kind = (
            errors.ComputeExhausted if errors.ComputeExhausted in kinds else errors.SpaceExhausted
        )
    hint = "; ".join([*help_for(refused), *([also] if also else [])])
    return kind(f"{sentence} ({reasons(refused.items())})", hint=hint)
