"""Asks providers which leases they know, and ends those that they sign not to.

    market.known  leases: ids of the caller's -> denial: the signed word, or none

A provider whose disk was lost, or restored from a copy, knows nothing of what it has promised
since. Its bare word ends no lease: it has signed that. Its signed word against the lease
ends it for the customer: nothing new is begun under it, what lay there counts as missing,
and nothing more is owed. Both signatures are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, XscError
from xsc.base.fields import take_list, take_opt_bytes
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import LEASES_A_CUSTOMER_MAX, QUOTE_TIMEOUT_MS
from xsc.base.merkle import Part
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.market import lease as rules
from xsc.market.denial import check_denial
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts
from xsc.terms.lease_denial import LeaseDenial

KNOWN: Final = "market.known"


class Denials:
    """Asks hosts which leases they know, and answers customers (`market.known`)."""

    def __init__(self, context: Context, ports: MarketPorts, store: LeaseStore) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._caller = context.caller
        self._log = context.log
        self._store = store
        self._report = ports.quality.report
        self._on_denied = ports.on_denied

    # The provider's side

    async def on_known(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Sign which of the leases that a caller names it does not have here."""
        unknown = []
        for lease_id in take_list(header, "leases", most=LEASES_A_CUSTOMER_MAX):
            if not isinstance(lease_id, bytes) or len(lease_id) != ID_BYTES:
                raise RecordInvalid("the field 'leases' must list ids of leases")
            entry = self._store.get("provider", lease_id)
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
            for entry in self._store.of("customer", peer)
            if entry.terms.kind == "storage"
            and entry.denial is None
            and not rules.is_over(entry.terms, entry.use, now_ms)
        ]
        denied: set[bytes] = set()
        for start in range(0, len(open_ids), LEASES_A_CUSTOMER_MAX):
            denied |= await self._ask(peer, open_ids[start : start + LEASES_A_CUSTOMER_MAX])
        if denied:
            self._log.warning("market.leases_denied", peer=short(peer), leases=len(denied))
            self._report(peer, "lease_denial")
            await self._on_denied(denied)
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
            self._log.info("market.leases_not_confirmed", peer=short(peer), code=fault.code)
            return set()
        found = [self._store.get("customer", lease_id) for lease_id in denial.leases]
        entries = [entry for entry in found if entry is not None and entry.denial is None]
        for entry in entries:
            # What was owed by now is owed; nothing is from here on.
            entry.use = rules.advance(entry.terms, entry.use, now_ms)
        self._store.deny(entries, raw)
        return {entry.terms.lease_id for entry in entries}
