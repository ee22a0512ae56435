"""One lease as this node keeps it, in either role, and what follows from one or from many.

A lease carries beside its terms and its use what is in memory only: what is reserved
by work under way (provider), and what was handed out and has not been reported yet (customer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from xsc.base.limits import (
    LEASE_KEPT_MS,
    PROMISE_MS,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.market import lease as rules
from xsc.market.lease import LeaseTerms, LeaseUse
from xsc.market.pricing import QUANTITY_MAX
from xsc.market.room import EVER_MS
from xsc.terms.lease import OWN_COMPUTE, OWN_STORAGE, Draw
from xsc.terms.pricing import amount, compute_amount
from xsc.terms.quote import Kind
from xsc.terms.slot import EntitlementKey

Role: TypeAlias = Literal["customer", "provider"]
ROLES: Final[tuple[Role, Role]] = ("customer", "provider")
OWN: Final[dict[Kind, bytes]] = {"storage": OWN_STORAGE, "compute": OWN_COMPUTE}
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
    draw: Draw | None = None
    """The entitlement that it draws on, by its request."""
    reserved: int = 0
    """Provider: steps of runs that wait or are under way, or bytes that are being written."""
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
    def denial(self) -> bytes | None:
        """The provider's signed count that denies it."""
        return self.use.denial

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

        def fit(promise: tuple[int, int]) -> tuple[bool, int]:
            return promise[1] < quantity, abs(promise[1] - quantity)

        if self.promised:
            self.promised.remove(min(self.promised, key=fit))


def own_leases(role: Role, node: bytes) -> dict[bytes, LeaseEntry]:
    """Return the leases of a node with itself: of no price and no end, under which it uses its own.

    Nothing is kept free for them or owed under them, so nobody signs them, and they are in no list
    of leases and on no disk.
    """
    return {
        lease_id: LeaseEntry(
            role,
            LeaseTerms(lease_id, kind, node, node, 0, QUANTITY_MAX, 0, EVER_MS),
            LeaseUse(touched_ms=0, lapsed=True),
            raw=b"",
            request_id=b"",
        )
        for kind, lease_id in OWN.items()
    }


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
            use = rules.ended(use)
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
    One that its provider signed not to know takes nothing.
    """
    if entry.denial is not None:
        return 0
    if not entry.terms.cleared or entry.use.lapsed:
        return entry.use.held_bytes
    if entry.is_over(now_ms):
        return min(entry.use.held_bytes, entry.use.level)
    return entry.use.level


def calls_micro(entries: Iterable[LeaseEntry]) -> int:
    """Return what the runs that are under way may cost, and those that wait: their limits."""
    return sum(
        compute_amount(rules.run_price(entry.terms), entry.reserved)
        for entry in entries
        if entry.terms.kind == "compute"
    )


def ahead_micro(entry: LeaseEntry, now_ms: int) -> int:
    """Return what a provider may come to lose beside what is owed and beside runs: an hour more.

    A lease of compute for now allows nothing by itself: what runs may cost is counted with them.
    """
    terms = entry.terms
    if entry.is_over(now_ms) or not rules.has_time(terms):
        return 0
    return amount(terms.kind, terms.price, terms.quantity)
