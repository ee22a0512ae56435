"""Asks providers which leases they know, and ends those that they sign not to.

    market.known  leases: ids of the caller's -> denial: the signed word, or none

A provider whose disk was lost, or restored from a copy, knows nothing of what it has promised
since. Its bare word ends no lease: it has signed that. Its signed word against the lease
ends it for the customer: nothing new is begun under it, what lay there counts as missing,
and nothing more is owed. Both signatures are kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, XscError
from xsc.base.fields import take_list, take_opt_bytes
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import LEASES_A_CUSTOMER_MAX, QUOTE_TIMEOUT_MS
from xsc.base.log import Log
from xsc.base.merkle import Part
from xsc.base.peering import Caller
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.market import lease as rules
from xsc.market.denial import check_denial
from xsc.market.lease_store import LeaseBook
from xsc.terms.lease_denial import LeaseDenial

KNOWN: Final = "market.known"


class Denials:
    """Both sides of it."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        caller: Caller,
        book: LeaseBook,
        report: Callable[[bytes, str], None],
        log: Log,
    ) -> None:
        self._key = key
        self._network = network
        self._clock = clock
        self._caller = caller
        self._book = book
        self._report = report
        self._log = log
        self.on_denied: Callable[[Collection[bytes]], Awaitable[None]] | None = None
        """Called with the leases that a provider has denied."""

    # The provider's side

    async def on_known(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Sign which of the leases that a caller names it does not have here."""
        unknown = []
        for lease_id in take_list(header, "leases", most=LEASES_A_CUSTOMER_MAX):
            if not isinstance(lease_id, bytes) or len(lease_id) != ID_BYTES:
                raise RecordInvalid("the field 'leases' must list ids of leases")
            entry = self._book.get("provider", lease_id)
            if entry is None or entry.terms.customer != caller:
                unknown.append(lease_id)
        if not unknown:
            return {"denial": None}, ()
        denial = LeaseDenial(
            provider=self._key.node_id,
            customer=caller,
            leases=tuple(unknown),
            denied_ms=self._clock.now_ms(),
        )
        return {"denial": sign(denial, self._key, self._network).raw}, ()

    # The customer's side

    async def ask(self, peer: bytes) -> int:
        """Ask a provider whether it knows its leases of storage; return how many it denies."""
        now_ms = self._clock.now_ms()
        open_ids = [
            entry.terms.lease_id
            for entry in self._book.of("customer", peer)
            if entry.terms.kind == "storage"
            and entry.denial is None
            and not rules.is_over(entry.terms, entry.use, now_ms)
        ]
        denied: set[bytes] = set()
        for start in range(0, len(open_ids), LEASES_A_CUSTOMER_MAX):
            denied |= await self._ask(peer, open_ids[start : start + LEASES_A_CUSTOMER_MAX])
        if denied:
            self._log.warning("leases_denied", peer=short(peer), leases=len(denied))
            self._report(peer, "lease_denied")
            if self.on_denied is not None:
                await self.on_denied(denied)
        return len(denied)

    async def _ask(self, peer: bytes, lease_ids: Sequence[bytes]) -> set[bytes]:
        asked: list[Value] = [*lease_ids]
        try:
            reply = await self._caller.call(
                peer, KNOWN, {"leases": asked}, timeout_ms=QUOTE_TIMEOUT_MS
            )
            raw = take_opt_bytes(reply.header, "denial")
            if raw is None:
                return set()
            denial = open_signed(raw, LeaseDenial, network=self._network, author=peer).record
            now_ms = self._clock.now_ms()
            wrong = check_denial(
                denial, provider=peer, customer=self._key.node_id, asked=lease_ids, now_ms=now_ms
            )
            if wrong is not None:
                raise RecordInvalid(wrong)
        except XscError as fault:
            self._log.info("leases_not_confirmed", peer=short(peer), code=fault.code)
            return set()
        found = [self._book.get("customer", lease_id) for lease_id in denial.leases]
        entries = [entry for entry in found if entry is not None and entry.denial is None]
        for entry in entries:
            # What was owed by now is owed; nothing is from here on.
            entry.use = rules.advance(entry.terms, entry.use, now_ms)
        self._book.deny(entries, raw)
        return {entry.terms.lease_id for entry in entries}
