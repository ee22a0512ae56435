"""Divides capacity among the customers that ask a provider in one window.

While everything fits, each customer gets what it asks for. Otherwise the division rule
decides. A customer counts once, however many leases it asks for, so that asking in pieces
gains nothing. A grant below its least useful quantity is refused, and the others divide
what it would have taken. Credit bounds a grant before capacity does.

Ties are broken by lot: by hashes of ids under a salt that the provider draws once the
window has closed. Customers choose their ids and the time of their requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import FUEL_QUANTUM, MIB
from xsc.market.ports import Divide, Need
from xsc.terms.pricing import compute_amount, storage_amount
from xsc.terms.quote import Kind, Tier

_LAST_FIRST: Final[dict[Tier, int]] = {"open": 0, "one_way": 1, "mutual": 2}


@dataclass(frozen=True, slots=True)
class Ask:
    """One lease that is asked for."""

    lease_id: bytes
    customer: bytes
    tier: Tier
    weight: int
    quantity: int
    quantity_min: int
    price: int


@dataclass(frozen=True, slots=True)
class Clearing:
    """The outcome of one window."""

    grants: dict[bytes, int]
    """Quantity by lease id."""
    refused: frozenset[bytes]
    """Lease ids whose grant would be below their least useful quantity."""


def lot(salt: bytes, chosen_id: bytes) -> bytes:
    """Return the hash that replaces an id where ids decide."""
    return tagged_sha256("clearing/lot", salt, chosen_id)


def by_lot(asks: Sequence[Ask], salt: bytes) -> list[Ask]:
    """Return the asks in an order that no customer can choose."""
    return sorted(asks, key=lambda ask: lot(salt, ask.lease_id))


def affordable(kind: Kind, price: int, credit_micro: int) -> int | None:
    """Return the largest quantity whose worth is within the credit; None without bound.

    Worth is the whole lease of compute, and one epoch of a lease of storage.
    """
    if price == 0:
        return None
    if credit_micro < 0:
        return 0
    quantum = MIB if kind == "storage" else FUEL_QUANTUM
    # The largest quantity with price · quantity // quantum <= credit.
    return ((credit_micro + 1) * quantum - 1) // price


def within_credit(
    kind: Kind, asks: Sequence[Ask], credit_micro: Mapping[bytes, int]
) -> tuple[list[Ask], frozenset[bytes]]:
    """Return the asks cut to their customers' credit, and the leases refused for want of it.

    A customer's asks use up its credit one after another, in the order given (`by_lot`).
    """
    left = dict(credit_micro)
    kept: list[Ask] = []
    refused: set[bytes] = set()
    for ask in asks:
        most = affordable(kind, ask.price, left[ask.customer])
        quantity = ask.quantity if most is None else min(ask.quantity, most)
        if quantity < ask.quantity_min:
            refused.add(ask.lease_id)
            continue
        left[ask.customer] -= worth(kind, ask.price, quantity)
        kept.append(replace(ask, quantity=quantity))
    return kept, frozenset(refused)


def worth(kind: Kind, price: int, quantity: int) -> int:
    """Return the micro-credits that a lease can come to cost before it is settled again."""
    return storage_amount(price, quantity) if kind == "storage" else compute_amount(price, quantity)


def _grants(asks: Sequence[Ask], free: int, divide: Divide, salt: bytes) -> dict[bytes, int]:
    if sum(ask.quantity for ask in asks) <= free:
        return {ask.lease_id: ask.quantity for ask in asks}
    needs: dict[bytes, Need] = {}
    for ask in asks:
        before = needs[ask.customer].need if ask.customer in needs else 0
        claimant = lot(salt, ask.customer)
        needs[ask.customer] = Need(claimant, ask.tier, ask.weight, before + ask.quantity)
    left = dict(divide(free, list(needs.values())))
    grants = {}
    for ask in by_lot(asks, salt):
        claimant = needs[ask.customer].id
        grants[ask.lease_id] = min(ask.quantity, left[claimant])
        left[claimant] -= grants[ask.lease_id]
    return grants


def clear(asks: Sequence[Ask], free: int, divide: Divide, salt: bytes) -> Clearing:
    """Return what each ask of a window is granted.

    While a grant is below its least useful quantity, one such ask is refused and the rest
    is divided again: the lowest tier first, then the one that lacks most, then by lot.
    """
    assert free >= 0, "free capacity is not negative"
    remaining = list(asks)
    refused: set[bytes] = set()
    while True:
        grants = _grants(remaining, free, divide, salt)
        short = [ask for ask in remaining if grants[ask.lease_id] < ask.quantity_min]
        if not short:
            return Clearing(grants, frozenset(refused))
        worst = min(
            short,
            key=lambda ask: (
                _LAST_FIRST[ask.tier],
                grants[ask.lease_id] - ask.quantity_min,
                lot(salt, ask.lease_id),
            ),
        )
        refused.add(worst.lease_id)
        remaining.remove(worst)
