"""Renews the leases of storage that this node took, and those that it gave.

As a customer it asks at half-life, each lease at a moment of its own, and takes
along whatever else can be renewed at the same host: one call, one sync on either
side. Refused renewals are asked for again; the last reason is kept and shown.
As a provider it answers a request that it granted already with what it signed
then. The rules are in `renewal`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from xsc.base.encoding import Value
from xsc.base.errors import (
    CreditExceeded,
    LeaseExhausted,
    RecordInvalid,
    XscError,
)
from xsc.base.fields import take_bytes, take_int, take_list, take_str
from xsc.base.ids import short
from xsc.base.limits import (
    KIB,
    LEASE_TIMEOUT_MS,
    RENEWAL_CALLS_A_PEER_MAX,
    RENEWAL_CALLS_MS,
    RENEWAL_FIRST_MS,
    RENEWAL_INTERVAL_MS,
    RENEWAL_RETRY_MS,
    RENEWALS_A_CALL_MAX,
)
from xsc.base.merkle import Part
from xsc.base.peering import HeadBound
from xsc.base.tally import Tally
from xsc.base.turns import Turns
from xsc.base.units import format_credits, format_duration
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.market import lease as leases
from xsc.market import renewal as rules
from xsc.market.credit_limits import CreditLimits
from xsc.market.denial import REASON
from xsc.market.headroom import Headroom
from xsc.market.lease_entry import LeaseEntry, Role
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.quote import open_quote
from xsc.market.quotes import Quotes
from xsc.terms.lease_denial import LeaseDenial
from xsc.terms.pricing import affordable, storage_amount
from xsc.terms.quote import Quote
from xsc.terms.renewal import Renewal, RenewalRequest

RENEW = "market.renew"
HEADS = {RENEW: HeadBound(RENEWALS_A_CALL_MAX * 4 * KIB, RENEWALS_A_CALL_MAX * 4 * KIB)}
"""Each request holds a quote, each renewal the request: 2.6 KiB with the longest labels."""
DAY_MS = 86_400_000
SILENT = "the host is silent"


@dataclass(frozen=True, slots=True)
class LeaseExpiry:
    """The present end of a lease that this node took."""

    node: bytes
    end_ms: int
    reason: str
    """Why it was not renewed although it is time to; empty while all is well."""


@dataclass(frozen=True, slots=True)
class _Tried:
    reason: str
    at_ms: int


class Renewals:
    """Requests renewals of leases, and grants them (`market.renew`).

    Args:
        turns: locks by role and lease, shared with settlement.
    """

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        settings: MarketSettings,
        store: LeaseStore,
        *,
        limits: CreditLimits,
        headroom: Headroom,
        quotes: Quotes,
        turns: Turns[tuple[Role, bytes]],
    ) -> None:
        self._key = context.key
        self._own = context.key.node_id
        self._network = context.network
        self._clock = context.clock
        self._caller = context.caller
        self._log = context.log
        self._store = store
        self._limits = limits
        self._headroom = headroom
        self._quality = ports.quality
        self._quotes = quotes
        self._turns = turns
        self._leaving = ports.leaving
        self._needs = ports.needs
        self._price_max = settings.storage_price_max
        self._warning_ms = settings.lease_warning_ms
        self._tried: dict[bytes, _Tried] = {}
        self._warned: dict[bytes, int] = {}
        self._asked = Tally(RENEWAL_CALLS_A_PEER_MAX, RENEWAL_CALLS_MS)

    # The customer's side

    async def run(self) -> None:
        """Renew what is due, until cancelled."""
        await self._clock.sleep_ms(RENEWAL_FIRST_MS)
        while True:
            await self.round()
            await self._clock.sleep_ms(RENEWAL_INTERVAL_MS)

    async def round(self) -> None:
        """Ask once for all that is due, and warn of what ends soon."""
        now_ms = self._clock.now_ms()
        by_host: defaultdict[bytes, list[LeaseEntry]] = defaultdict(list)
        due: set[bytes] = set()
        known: set[bytes] = set()
        for entry in self._store.all("customer"):
            known.add(entry.terms.lease_id)
            if entry.denial is None and rules.is_renewable(entry.terms, entry.use, now_ms):
                by_host[entry.peer].append(entry)
                if self._is_due(entry, now_ms):
                    due.add(entry.peer)
        for gone in [lease_id for lease_id in self._tried if lease_id not in known]:
            del self._tried[gone]
        await asyncio.gather(*(self._renew_at(peer, by_host[peer]) for peer in sorted(due)))
        self._warn(now_ms)

    def _is_due(self, entry: LeaseEntry, now_ms: int) -> bool:
        if now_ms < rules.due_ms(entry.terms):
            return False
        tried = self._tried.get(entry.terms.lease_id)
        # A silent host costs no call: it is looked at each time.
        return tried is None or tried.reason == SILENT or now_ms - tried.at_ms >= RENEWAL_RETRY_MS

    async def _renew_at(self, peer: bytes, entries: Sequence[LeaseEntry]) -> None:
        """Renew leases at one host, in as few calls as may be."""
        if not self._quality.is_up(peer):
            self._failed(entries, SILENT)
            return
        quote = await self._quotes.fresh("storage", peer)
        if isinstance(quote, XscError):
            self._failed(entries, quote.message)
            return
        if quote.record.price > self._price_max:
            self._failed(
                entries,
                f"its price of {format_credits(quote.record.price)} is above "
                "storage_price_max_gib_hour",
            )
            return
        needs = {need.slot_id: need.price_max for need in self._needs()}
        dear = [
            entry
            for entry in entries
            if entry.draw is not None and quote.record.price > needs.get(entry.draw.need, -1)
        ]
        self._failed(dear, "its need is no more, or pays less")
        due = [entry for entry in entries if entry not in dear]
        for start in range(0, len(due), RENEWALS_A_CALL_MAX):
            await self._ask(peer, due[start : start + RENEWALS_A_CALL_MAX], quote)

    def _failed(self, entries: Sequence[LeaseEntry], reason: str) -> None:
        now_ms = self._clock.now_ms()
        for entry in entries:
            lease_id = entry.terms.lease_id
            before = self._tried.get(lease_id)
            self._tried[lease_id] = _Tried(reason, now_ms)
            if before is None or before.reason != reason:
                self._log.warning(
                    "market.lease_not_renewed",
                    peer=short(entry.peer),
                    lease=short(lease_id),
                    reason=reason,
                )

    async def _ask(self, peer: bytes, entries: Sequence[LeaseEntry], quote: Signed[Quote]) -> None:
        async with AsyncExitStack() as held:
            # No voucher may be on its way under the terms that this changes.
            for lease_id in sorted(entry.terms.lease_id for entry in entries):
                await held.enter_async_context(self._turns.of(("customer", lease_id)))
            now_ms = self._clock.now_ms()
            requests: list[Value] = []
            for entry in entries:
                use = leases.advance(entry.terms, entry.use, now_ms)
                request = rules.make_request(entry.terms, use, quote.record, quote.raw, now_ms)
                requests.append(sign(request, self._key, self._network).raw)
            try:
                reply = await self._caller.call(
                    peer, RENEW, {"requests": requests}, timeout_ms=LEASE_TIMEOUT_MS
                )
                answers = take_list(reply.header, "answers", most=len(entries))
                if len(answers) != len(entries):
                    raise RecordInvalid("the host did not answer each request")
            except XscError as fault:
                self._failed(entries, fault.message)
                return
            renewed = []
            for entry, answer in zip(entries, answers, strict=True):
                try:
                    renewed.append(self._adopted(entry, answer, now_ms))
                except XscError as fault:
                    self._failed([entry], fault.message)
            if renewed:
                self._store.renew(renewed)
        for entry, terms, _, _ in renewed:
            self._tried.pop(terms.lease_id, None)
            self._log.info(
                "market.lease_renewed",
                peer=short(entry.peer),
                lease=short(terms.lease_id),
                number=terms.renewals,
                price=terms.price,
                days=(terms.end_ms - now_ms) // DAY_MS,
            )

    def _adopted(
        self, entry: LeaseEntry, answer: Value, now_ms: int
    ) -> tuple[LeaseEntry, leases.LeaseTerms, leases.LeaseUse, bytes]:
        """Return what a lease is after a host's answer.

        Raises:
            XscError: the host refused, or the answer is not what it must be.
        """
        if not isinstance(answer, dict):
            raise RecordInvalid("the host's answer is of no known form")
        if "renewal" not in answer:
            if "used" in answer:
                self.reconcile(entry, take_int(answer, "held_bytes"), take_int(answer, "used"))
            raise LeaseExhausted(take_str(answer, "reason"))
        raw = take_bytes(answer, "renewal")
        renewal = open_signed(raw, Renewal, network=self._network, author=entry.peer)
        # Its own signature is enough: the answer to an earlier request can have been lost.
        request = open_signed(
            renewal.record.request, RenewalRequest, network=self._network, author=self._own
        ).record
        refusal = rules.check_answer(entry.terms, request, renewal.record)
        if refusal is not None:
            raise RecordInvalid(refusal)
        terms, use = rules.renewed(entry.terms, entry.use, request, renewal.record.quantity, now_ms)
        return entry, terms, use, raw

    def reconcile(self, entry: LeaseEntry, held_bytes: int, used: int) -> None:
        """Take over what a host counts under a lease where that is less than is counted here."""
        now_ms = self._clock.now_ms()
        before = leases.advance(entry.terms, entry.use, now_ms)
        use = rules.reconciled(entry.terms, before, held_bytes, used, now_ms)
        if use == before:
            return
        self._log.warning(
            "market.count_lowered",
            peer=short(entry.peer),
            lease=short(entry.terms.lease_id),
            held_bytes=before.held_bytes - use.held_bytes,
            used=before.used - use.used,
        )
        entry.use = use
        self._store.save(entry)

    def end_of(self, lease_id: bytes) -> LeaseExpiry | None:
        """Return when a lease that this node took ends, and why it was not renewed."""
        entry = self._store.get("customer", lease_id)
        if entry is None:
            return None
        if entry.denial is not None:
            denied = open_signed(entry.denial, LeaseDenial, network=self._network).record
            return LeaseExpiry(entry.peer, min(denied.denied_ms, entry.terms.end_ms), REASON)
        tried = self._tried.get(lease_id)
        return LeaseExpiry(entry.peer, entry.terms.end_ms, "" if tried is None else tried.reason)

    def ending(self, within_ms: int) -> list[LeaseExpiry]:
        """Return the leases with something under them that end so soon, the first one first."""
        until_ms = self._clock.now_ms() + within_ms
        found = [
            self.end_of(entry.terms.lease_id)
            for entry in self._store.all("customer")
            if entry.terms.kind == "storage"
            and entry.denial is None
            and entry.use.held_bytes
            and entry.terms.end_ms <= until_ms
        ]
        return sorted(
            (item for item in found if item is not None), key=lambda item: (item.end_ms, item.node)
        )

    def _warn(self, now_ms: int) -> None:
        """Log once a day what ends soon."""
        by_host: defaultdict[bytes, list[LeaseExpiry]] = defaultdict(list)
        for item in self.ending(self._warning_ms):
            by_host[item.node].append(item)
        self._warned = {node: at for node, at in self._warned.items() if node in by_host}
        for node, items in sorted(by_host.items()):
            if now_ms - self._warned.get(node, -DAY_MS) < DAY_MS:
                continue
            self._warned[node] = now_ms
            left_ms = items[0].end_ms - now_ms
            self._log.warning(
                "market.leases_end_soon",
                peer=short(node),
                leases=len(items),
                first="over" if left_ms <= 0 else f"in {format_duration(left_ms)}",
                reason=items[0].reason or "not asked yet",
            )

    # The provider's side

    async def on_renew(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Renew leases of the caller; each request has its own answer, all share one sync."""
        self._asked.count(caller, self._clock.monotonic_ms(), "calls for renewals")
        now_ms = self._clock.now_ms()
        answers: list[Value] = []
        granted: dict[bytes, tuple[LeaseEntry, leases.LeaseTerms, leases.LeaseUse, bytes]] = {}
        for raw in take_list(header, "requests", most=RENEWALS_A_CALL_MAX):
            try:
                if not isinstance(raw, bytes):
                    raise RecordInvalid("a request is no signed record")
                answers.append({"renewal": self._granted(caller, raw, granted, now_ms)})
            except XscError as fault:
                answers.append({"reason": fault.message, **self._count_of(caller, raw)})
        if granted:
            # Before it is said.
            self._store.renew(list(granted.values()))
        for entry, terms, _, _ in granted.values():
            self._log.info(
                "market.lease_extended",
                customer=short(entry.peer),
                lease=short(terms.lease_id),
                number=terms.renewals,
                price=terms.price,
            )
        return {"answers": answers}, ()

    def _count_of(self, caller: bytes, raw: Value) -> dict[str, Value]:
        """Return what this node counts under the lease of a request that it refused."""
        try:
            assert isinstance(raw, bytes)
            request = open_signed(raw, RenewalRequest, network=self._network, author=caller)
        except (AssertionError, XscError):
            return {}
        entry = self._store.get("provider", request.record.lease_id)
        if entry is None or entry.terms.customer != caller:
            return {}
        use = leases.advance(entry.terms, entry.use, self._clock.now_ms())
        return {"held_bytes": use.held_bytes, "used": use.used}

    def _granted(
        self,
        caller: bytes,
        raw: bytes,
        granted: dict[bytes, tuple[LeaseEntry, leases.LeaseTerms, leases.LeaseUse, bytes]],
        now_ms: int,
    ) -> bytes:
        """Return the signed renewal for a request, and add it to `granted` where it is new.

        Raises:
            XscError: why it is refused.
        """
        request = open_signed(raw, RenewalRequest, network=self._network, author=caller).record
        entry = self._store.get("provider", request.lease_id)
        if entry is None or entry.terms.customer != caller:
            raise LeaseExhausted("this customer has no such lease here")
        if entry.renewal is not None and request.number <= entry.terms.renewals:
            return entry.renewal
        if request.lease_id in granted:
            raise RecordInvalid("the lease is named twice")
        if self._own in self._leaving():
            raise LeaseExhausted("this node is leaving the network and renews no lease")
        quote = open_quote(
            request.quote,
            network=self._network,
            provider=self._own,
            customer=caller,
            kind="storage",
            now_ms=now_ms,
        )
        use = leases.advance(entry.terms, entry.use, now_ms)
        refusal = rules.check_renewal(entry.terms, use, request, quote.record, now_ms)
        if refusal is not None:
            raise RecordInvalid(refusal)
        quantity = self._quantity(entry, use, request, granted, now_ms)
        renewal = Renewal(request=raw, quantity=quantity, renewed_ms=now_ms)
        signed = sign(renewal, self._key, self._network).raw
        terms, use = rules.renewed(entry.terms, entry.use, request, quantity, now_ms)
        granted[request.lease_id] = (entry, terms, use, signed)
        return signed

    def _quantity(
        self,
        entry: LeaseEntry,
        use: leases.LeaseUse,
        request: RenewalRequest,
        granted: Mapping[bytes, tuple[LeaseEntry, leases.LeaseTerms, leases.LeaseUse, bytes]],
        now_ms: int,
    ) -> int:
        """Return what is granted: what credit allows.

        Raises:
            CreditExceeded: less than is of use.
        """
        ahead = _ahead(entry.terms, entry.use, now_ms)
        left = self._limits.left(entry.peer) + ahead
        for other, terms, _, _ in granted.values():
            left -= storage_amount(terms.price, terms.quantity)
            left += _ahead(other.terms, other.use, now_ms)
        least = max(request.quantity_min, use.held_bytes)
        most = affordable("storage", request.price, left)
        quantity = request.quantity if most is None else min(request.quantity, most)
        if quantity < least:
            raise CreditExceeded("the renewal would pass the debt limit between these nodes")
        if entry.terms.cleared:
            same = [other for other, _, _, _ in granted.values()]
            taken = sum(other.use.level for other in same if other.drawn_key == entry.drawn_key)
            quantity = min(quantity, self._headroom.renewable(entry) - taken)
            if quantity < least:
                raise LeaseExhausted("a clearing granted its room to others: its data has to move")
        return quantity


def _ahead(terms: leases.LeaseTerms, use: leases.LeaseUse, now_ms: int) -> int:
    """Return the part of a lease's exposure that is not owed yet."""
    use = leases.advance(terms, use, now_ms)
    return leases.exposure_micro(terms, use, now_ms) - leases.owed_micro(terms, use, now_ms)
