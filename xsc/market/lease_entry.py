"""One lease as this node keeps it, in either role, and what follows from one or from many.

A lease carries beside its terms and its use what is in memory only: what is reserved
by work under way (provider), and what was handed out and has not been reported yet (customer).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from xsc.base.limits import (
    LEASE_KEPT_MS,
    PROMISE_MS,
    REQUEST_WINDOW_MS,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.market import lease as rules
from xsc.market.lease import LeaseTerms, LeaseUse
from xsc.terms.lease import Draw
from xsc.terms.pricing import compute_amount
from xsc.terms.quote import Kind
from xsc.terms.slot import EntitlementKey

Role: TypeAlias = Literal["customer", "provider"]
_PROMISE_STEP_MS: Final = PROMISE_MS // 60
_TOLD: Final = frozenset({"terms", "use", "reserved"})


@dataclass(slots=True)
class LeaseEntry:
    """One lease as this node knows it."""

    role: Role
    terms: LeaseTerms
    use: LeaseUse
    raw: bytes
    """The signed lease, with request and quote inside."""
    request_id: bytes
    domain: bytes = b""
    draw: Draw | None = None
    """The entitlement that it draws on, by its quote."""
    denial: bytes | None = None
    """Customer: the provider's signed count, in which it is not, or over."""
    reserved: int = 0
    """Provider: steps of runs that wait or are under way, or bytes that are being written."""
    leeway: int = 0
    """Customer: what a minute more or less of each change since the last count comes to, in `used`:
    the provider's clock and this node's may differ by so much."""
    promised: list[tuple[int, int]] = field(default_factory=list)
    """Customer: (until ms, quantity) of what was handed out and not yet heard of."""
    is_apart: bool = False
    """Customer: services at the provider use it, and runs of this node do not."""
    avoided_until_ms: int = 0
    """Customer: until when others are preferred, because the host refused a write."""
    told: Callable[[LeaseEntry], None] | None = field(default=None, init=False, compare=False)
    """Called when its terms, its use or what is reserved by work change."""

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        told = getattr(self, "told", None)
        if told is not None and name in _TOLD:
            told(self)

    @property
    def peer(self) -> bytes:
        """The other side."""
        return self.terms.provider if self.role == "customer" else self.terms.customer

    @property
    def drawn_key(self) -> EntitlementKey | None:
        """The entitlement that it draws on."""
        if self.draw is None:
            return None
        terms, draw = self.terms, self.draw
        return EntitlementKey(terms.provider, draw.slot, draw.start_ms, terms.customer, draw.need)

    def is_over(self, now_ms: int) -> bool:
        """Return whether nothing more comes under it."""
        return rules.is_over(self.terms, self.use, now_ms)

    def changed(self, quantity: int) -> None:
        """Take note that so much more or less is held, or kept free, than at the last count."""
        self.leeway += abs(quantity) * REQUEST_WINDOW_MS

    def agreed(self, use: LeaseUse) -> None:
        """Take over what a count says of the lease, from which the next one follows."""
        self.use, self.leeway = use, 0
        if use.level and not self.terms.cleared:
            # Its room will lapse by two clocks.
            self.changed(use.level)

    def promised_at(self, now_ms: int) -> int:
        """Return the quantity handed out; what was never heard of is forgotten in time."""
        self.promised = [item for item in self.promised if item[0] > now_ms]
        return sum(quantity for _, quantity in self.promised)

    def promise(self, quantity: int, now_ms: int) -> None:
        """Record what was handed out; of storage, in steps of time, not one by one."""
        until_ms = now_ms + PROMISE_MS
        if self.terms.kind == "storage" and self.promised:
            last_ms, before = self.promised[-1]
            if until_ms - last_ms < _PROMISE_STEP_MS:
                self.promised[-1] = (last_ms, before + quantity)
                return
        self.promised.append((until_ms, quantity))

    def keep_promise(self, quantity: int) -> None:
        """Take so much out of what was handed out, the oldest first."""
        while self.promised and quantity > 0:
            until_ms, oldest = self.promised[0]
            taken = min(oldest, quantity)
            quantity -= taken
            if taken == oldest:
                self.promised.pop(0)
            else:
                self.promised[0] = (until_ms, oldest - taken)

    def end_promise(self, quantity: int) -> None:
        """Take out one whole promise: the least that covers the quantity, else the largest."""
        if not self.promised:
            return
        covering = [item for item in self.promised if item[1] >= quantity]
        if covering:
            ended = min(covering, key=lambda item: item[1])
        else:
            ended = max(self.promised, key=lambda item: item[1])
        self.promised.remove(ended)


def is_done(entry: LeaseEntry, now_ms: int) -> bool:
    """Return whether a lease is over, and nothing is held or under way under it."""
    return entry.is_over(now_ms) and not entry.use.held_bytes and not entry.reserved


def tidied(entry: LeaseEntry, now_ms: int) -> tuple[LeaseUse, bool]:
    """Return the use as of now, and whether the lease can be forgotten.

    A lease of storage that was empty for long is given back, and one that a clearing granted whose
    customer never asked for a count of it: its answer may have been lost. A provider forgets a
    lease LEASE_KEPT_MS after its end; a customer once the provider names it no more, or much later.
    """
    terms, use = entry.terms, rules.advance(entry.terms, entry.use, now_ms)
    if not entry.reserved and not use.given_back:
        since_ms = terms.start_ms if terms.renews is None else use.touched_ms
        is_unsigned = (
            entry.role == "provider"
            and terms.cleared
            and not use.known
            and now_ms - since_ms >= STORAGE_LEASE_IDLE_MS
            and not use.held_bytes
        )
        if is_unsigned:
            # Nothing unsigned is owed.
            use = replace(rules.ended(use), used=0)
        elif rules.is_idle(terms, use, now_ms):
            use = rules.ended(use)
    ended_ms = use.touched_ms if use.given_back else terms.end_ms
    kept_ms = STORAGE_LEASE_MS if entry.role == "customer" else LEASE_KEPT_MS
    is_kept = entry.role == "provider" and use.held_bytes > 0
    if not rules.is_over(terms, use, now_ms) or entry.reserved or is_kept:
        return use, False
    return use, now_ms - ended_ms >= kept_ms


def kept_free(entry: LeaseEntry, now_ms: int) -> int:
    """Return what a provider keeps free for a lease: bytes, or fuel steps."""
    kept = rules.reserved(entry.terms, entry.use, now_ms)
    # Bytes that are being written have their room from the shard store already.
    return max(0, kept - entry.reserved) if entry.terms.kind == "storage" else kept


def drawn(entry: LeaseEntry, now_ms: int) -> int:
    """Return how much of a slot a lease takes: bytes, or fuel steps a minute.

    A lease for now takes what it holds, and of compute nothing; so does one whose level lapsed.
    """
    if not entry.terms.cleared or entry.use.lapsed:
        return entry.use.held_bytes
    if entry.is_over(now_ms):
        return min(entry.use.held_bytes, entry.use.level)
    return entry.use.level


def held_or_kept(entry: LeaseEntry, now_ms: int) -> int:
    """Return the bytes of a lease of storage: those held, or what is kept free for more."""
    terms, use = entry.terms, entry.use
    if entry.is_over(now_ms) or (terms.cleared and use.lapsed):
        return use.held_bytes
    return max(use.held_bytes, use.level if terms.cleared else terms.quantity)


def calls_micro(entries: Iterable[LeaseEntry]) -> int:
    """Return what the runs that are under way may cost, and those that wait: their limits."""
    return sum(
        compute_amount(rules.run_price(entry.terms), entry.reserved)
        for entry in entries
        if entry.terms.kind == "compute"
    )


def ahead_micro(entry: LeaseEntry, now_ms: int) -> int:
    """Return what a provider may come to lose under a lease beside what is owed and beside runs."""
    return rules.ahead_micro(entry.terms, entry.use, now_ms)


def usable(
    entries: Iterable[LeaseEntry], kind: Kind, quantity: int, nodes: Collection[bytes], now_ms: int
) -> list[LeaseEntry]:
    """Return a customer's leases with room for `quantity`, one for each of `nodes` that has one.

    Of one node it is one on an entitlement, else the cheapest, and of those the first.
    """

    def rank(entry: LeaseEntry) -> tuple[bool, int]:
        return entry.draw is None, entry.terms.price

    found: dict[bytes, LeaseEntry] = {}
    for entry in entries:
        before = found.get(entry.terms.provider)
        if (
            entry.terms.kind == kind
            and entry.terms.provider in nodes
            and (before is None or rank(entry) < rank(before))
            and room_at_hand(entry, now_ms) >= quantity
        ):
            found[entry.terms.provider] = entry
    return list(found.values())


def joined(
    entries: Iterable[LeaseEntry], size_bytes: int, nodes: Collection[bytes], now_ms: int
) -> list[LeaseEntry]:
    """Return of each node whose cleared leases together have that room the one that has most.

    Who uses it goes on under the next one there.
    """
    rooms: dict[bytes, list[tuple[int, LeaseEntry]]] = {}
    for entry in entries:
        terms = entry.terms
        if terms.cleared and terms.kind == "storage" and terms.provider in nodes:
            left = room_at_hand(entry, now_ms)
            rooms.setdefault(terms.provider, []).append((left, entry))
    return [
        max(leases, key=lambda item: item[0])[1]
        for leases in rooms.values()
        if sum(left for left, _ in leases) >= size_bytes
    ]


def room_at_hand(entry: LeaseEntry, now_ms: int) -> int:
    """Return what a customer can begin to use of a lease: bytes, or fuel steps."""
    if (
        entry.denial is not None
        or entry.is_apart
        or entry.avoided_until_ms > now_ms
        or not rules.is_useful(entry.terms, entry.use, now_ms)
    ):
        return 0
    return max(0, rules.room(entry.terms, entry.use, now_ms) - entry.promised_at(now_ms))
