"""Agrees with peers on what is owed for leases, in both roles.

    market.account  voucher, book_now, show, less -> count, voucher, leases, settled_micro, proven

A customer asks its provider for a signed count of all leases between them, and signs a voucher for
what of it follows from its own orders (`account.agree`). It gives up room by the same call. The
answer tells it of leases that the provider does not have, and, after it lost its own disk, shows
all that it has there. Vouchers go at every interval: what a provider may lose does not wait for the
ledger. They are booked once an hour and customer, earlier where much of
its credit is waiting or one side asks (`account.is_booking_due`).

A voucher is on the disk before it is sent. What it leaves unsettled the ledger books, once, however
often it is asked to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from xsc.base import ids, limits, merkle, tally, turns
from xsc.base.encoding import Value
from xsc.base.errors import (
    CreditExceeded,
    EntryRefused,
    ReceiptInvalid,
    RecordInvalid,
    XscError,
)
from xsc.base.fields import take_bool, take_bytes, take_int, take_list, take_opt_bytes
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.market import account as rules
from xsc.market import lease as leases
from xsc.market import proof as proofs
from xsc.market.account import Account
from xsc.market.lease import ROLES, LeaseEntry, Role
from xsc.market.lease_store import MarketNode, MarketPart
from xsc.terms.possession import Answered, Proven
from xsc.terms.pricing import WORTH
from xsc.terms.voucher import LeaseCount, Voucher

SETTLE_TIMEOUT_MS = 15_000
AGREE_TIMEOUT_MS = 2 * SETTLE_TIMEOUT_MS
"""For a count and the leases that it names and this node does not know."""
SETTLE_LAST_MS = 3_000
"""How long a peer is waited for that is settled with before it is blocked or removed."""
BOOKINGS_ASKED_A_CUSTOMER_MAX = 256
"""Bookings that a customer may ask for within an hour; beyond that its provider decides when."""
BOOKINGS_ASKED_MS = 3_600_000

ACCOUNT: Final = "market.account"


class Settlement(MarketPart):
    """Settles the leases of this node in both roles."""

    def __init__(self, node: MarketNode) -> None:
        super().__init__(node)
        self._turns: turns.Turns[bytes] = turns.Turns()
        """By account."""
        self._bookings = tally.Tally(BOOKINGS_ASKED_A_CUSTOMER_MAX, BOOKINGS_ASKED_MS)
        self._booked_ms = node.clock.monotonic_ms()
        """When all that was signed was last booked."""

    async def settle_all(self) -> None:
        """Agree with all peers that are up, and have all that is signed booked now."""
        await self._prove(self._store.accounts("customer"), AGREE_TIMEOUT_MS)
        await self._settle(self._store.accounts(), True, AGREE_TIMEOUT_MS)

    async def _prove(self, accounts: Iterable[Account], within_ms: int) -> None:
        """Challenge the providers where something is not proven, of those that are up.

        What is not proven within that time stays owed.
        """
        now_ms, store = self._clock.now_ms(), self._store
        hosts = [
            each.peer
            for each in accounts
            if self._ports.quality.is_up(each.peer)
            and rules.unproven(each, store.of("customer", each.peer), now_ms)
        ]
        if hosts:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_ms / 1000):
                    await self._ports.prove(hosts)

    async def settle_with(self, peer: bytes) -> None:
        """Do the same with one peer, if it is up, as far as it can be done within a short time.

        What cannot stays owed: it keeps nobody from blocking the peer.
        """
        if not self._ports.quality.is_up(peer):
            return
        both = [self._store.account(role, peer) for role in ROLES]
        await self._prove(both[:1], SETTLE_LAST_MS)
        await self._settle(both, True, SETTLE_LAST_MS)

    # What challenges came to

    def challenged(self, role: Role, peer: bytes, proof: Answered) -> None:
        """Note what a challenge of a customer came to, over all that it has at a provider."""
        entries, now_ms = self._store.of(role, peer), self._clock.now_ms()
        if not entries:
            return
        account = self._store.account(role, peer)
        account.heard_ms = self._clock.monotonic_ms()
        if proof.ok is not None and proofs.is_covered(entries, proof.leaves):
            at_ms = proofs.until_ms(proof.said_ms, proof.epoch, now_ms, ok=proof.ok)
            proofs.decide(account, entries, at_ms, now_ms, ok=proof.ok)
            self._store.keep(account)

    async def settle_due(self) -> None:
        """Agree with providers that are up, and book where it is time to."""
        now_ms, leaving = self._clock.now_ms(), self._ports.leaving()
        providers = [
            account
            for account in self._store.accounts("customer")
            if (account.unbooked_micro and (not account.is_taken or account.peer in leaving))
            or rules.due_micro(account, entries := self._store.of("customer", account.peer), now_ms)
            > account.signed_micro
            or rules.total_micro(account, entries, now_ms) > account.asked_micro
        ]
        await self._settle([*providers, *self._due()], False, AGREE_TIMEOUT_MS)

    async def _settle(self, accounts: Iterable[Account], book_now: bool, within_ms: int) -> None:
        """Agree with providers that are up, and book what customers signed."""
        is_up = self._ports.quality.is_up
        asked = [each for each in accounts if each.role == "provider" or is_up(each.peer)]
        await asyncio.gather(*(self._settle_one(each, book_now, within_ms) for each in asked))

    async def _settle_one(self, account: Account, book_now: bool, within_ms: int) -> None:
        try:
            async with asyncio.timeout(within_ms / 1000), self._turns.of(account.id):
                if account.role == "customer":
                    await self._agree(account, book_now)
                else:
                    await self._collect(account)
        except (XscError, TimeoutError) as fault:
            # Kept as it is and tried again at the next interval.
            code = fault.code if isinstance(fault, XscError) else "timeout"
            self._node.log.warning("market.not_settled", peer=ids.short(account.peer), code=code)

    def _due(self) -> list[Account]:
        """Return the customers with whom it is time to book: all once in an interval."""
        now_ms, credit = self._clock.monotonic_ms(), self._ports.credit
        accounts = self._store.accounts("provider")
        waiting = {account.peer: account for account in accounts if account.unbooked_micro}
        if now_ms - self._booked_ms >= self._node.settings.booking_interval_ms:
            self._booked_ms = now_ms
            return [*waiting.values()]
        due = []
        for peer, account in waiting.items():
            sharing = [waiting[each] for each in credit.shares_with(peer) if each in waiting]
            if rules.is_booking_due(sharing, credit.credit_left(peer)):
                due.append(account)
        return due

    def certified(self, customer: bytes, raw: bytes, leaves: int) -> None:
        """Keep a custodian's record, to be shown to its customer, if its list covers all."""
        if proofs.is_covered(self._store.of("provider", customer), leaves):
            account = self._store.account("provider", customer)
            account.certified = raw
            self._store.keep(account)

    def _certify(self, account: Account, raw: bytes) -> None:
        """Take what a custodian of this node signed while this node was away.

        Raises:
            RecordInvalid, SignatureInvalid: it is of other nodes, or nobody signed it so.
        """
        signed, now_ms = open_signed(raw, Proven, network=self._node.network), self._clock.now_ms()
        proven, entries = signed.record, self._store.of("customer", account.peer)
        parties = proven.host, proven.customer, proven.prober
        if parties != (account.provider, account.customer, signed.author):
            raise RecordInvalid("the record of a proof is between other nodes")
        if (
            proofs.is_certified(account, proven, now_ms)
            and proofs.is_covered(entries, proven.leaves)
            and signed.author in self._ports.custodians()
        ):
            proofs.decide(account, entries, proven.at_ms, now_ms, ok=True)

    # The customer's side

    async def agree(self, peer: bytes) -> None:
        """Ask a provider for its count, take it over as far as it follows, and pay."""
        await self._settle_one(self._store.account("customer", peer), False, AGREE_TIMEOUT_MS)

    async def _ask(
        self, account: Account, voucher: bytes | None, *, book_now: bool = False
    ) -> dict[str, Value]:
        """Tell a provider what is given up, pay it with a voucher, and return its answer."""
        entries = self._store.of("customer", account.peer)
        less: list[Value] = [[entry.id, entry.less[0]] for entry in entries if entry.less]
        less += [[lease_id, 0] for lease_id in account.strange]
        header: dict[str, Value] = {
            "voucher": voucher,
            "book_now": book_now,
            "show": account.lost is not None,
            "less": less,
        }
        reply = await self._node.caller.call(
            account.peer, ACCOUNT, header, timeout_ms=SETTLE_TIMEOUT_MS
        )
        settled = min(take_int(reply.header, "settled_micro"), account.signed_micro)
        account.is_taken = take_opt_bytes(reply.header, "voucher") == account.voucher
        booked = self._ports.credit.settled(account.id)
        account.settled_micro = max(settled, account.settled_micro, booked)
        return reply.header

    async def _agree(self, account: Account, book_now: bool) -> None:
        """Take a provider's count over, have the newest voucher on the disk, and send it.

        Raises:
            XscError: the provider does not answer, or what it answers is no count.
        """
        peer, asked_ms = account.peer, self._clock.now_ms()
        all_there = self._store.of("customer", peer)
        known = {entry.id for entry in all_there}
        account.asked_micro = rules.total_micro(account, all_there, asked_ms)
        answer = await self._ask(account, None)
        raw = take_bytes(answer, "count")
        count = open_signed(raw, LeaseCount, network=self._node.network, author=peer)
        wrong = rules.check_count(account, count.record, self._clock.now_ms())
        if wrong is not None:
            raise RecordInvalid(wrong)
        if account.lost is not None:
            self._recall(account, answer, count.record)
        proven = take_opt_bytes(answer, "proven")
        if proven is not None:
            self._certify(account, proven)
        ends_ms = {line.lease_id: line.end_ms for line in count.record.leases}
        entries = [
            entry
            for entry in self._store.of("customer", peer)
            # Else it was renewed since, or the answer to its renewal is to come.
            if entry.id in known | ends_ms.keys()
            and entry.terms.start_ms <= asked_ms
            and ends_ms.get(entry.id, 0) <= entry.terms.end_ms
        ]
        account.strange = tuple(
            line.lease_id
            for line in count.record.leases
            if line.level
            and self._store.get("customer", line.lease_id) is None
            and line.lease_id not in self._store.asked
        )
        now_ms = self._clock.now_ms()
        agreed = rules.agree(account, entries, count, asked_ms=asked_ms, now_ms=now_ms)
        await self._take_over(account, count, agreed)
        # Who leaves may not be there in an hour.
        book_now = book_now or peer in self._ports.leaving()
        if account.unbooked_micro and (book_now or not account.is_taken):
            await self._ask(account, account.voucher, book_now=book_now)

    async def _take_over(
        self, account: Account, count: Signed[LeaseCount], agreed: rules.Agreed
    ) -> None:
        peer = ids.short(account.peer)
        account.closed, account.stored = agreed.closed, agreed.stored
        for entry, use in agreed.uses:
            entry.counted(use)
        if agreed.broken:
            account.proven += agreed.waits
            account.void += agreed.waits
        # Who lost its disk does not know what ran since it signed last.
        if agreed.disputed and account.disputed is None and account.lost is None:
            self._node.log.warning("market.count_disputed", peer=peer, leases=len(agreed.disputed))
            self._ports.quality.report(account.peer, "payment", "lease_count")
        account.disputed = count.raw if agreed.disputed else None
        voucher = rules.next_voucher(account, agreed.amount_micro, count.record)
        if voucher is not None:
            self._ports.quality.served(account.peer, "payment")
            raw = sign(voucher, self._node.key, self._node.network).raw
            rules.with_voucher(account, voucher, raw)
            account.count, account.is_taken = count.raw, False
        account.lost = None
        # Before it is sent: a number must never mean two amounts.
        await self._store.sync(*(entry for entry, _ in agreed.uses), account)
        for entry in agreed.gone:
            if self._store.get("customer", entry.id) is entry:
                self._store.forget(entry)
        if agreed.denied:
            self._node.log.warning("market.leases_denied", peer=peer, leases=len(agreed.denied))
            if agreed.broken:
                self._ports.quality.report(account.peer, "payment", "lease_denial")
            await self._ports.on_denied(agreed.denied)

    # Leases that this node does not know

    async def lost(self, held: Mapping[bytes, Mapping[bytes, int]]) -> None:
        """Note that this node lost its leases, and what its directory knows of bytes at peers."""
        accounts = [self._store.account("customer", peer) for peer in sorted(held)]
        for account in accounts:
            account.lost = {each.hex(): size for each, size in held[account.peer].items()}
        await self._store.sync(*accounts)

    def _recall(self, account: Account, answer: dict[str, Value], count: LeaseCount) -> None:
        """Take back what this node signed before it lost its disk: the voucher and all leases.

        Raises:
            RecordInvalid, SignatureInvalid: it is not this node's, or a lease is not shown.
        """
        raw = take_opt_bytes(answer, "voucher")
        if raw is not None:
            signed = open_signed(raw, Voucher, network=self._node.network, author=self._node.id)
            if signed.record.account != account.id:
                raise RecordInvalid("the voucher is of another account")
            if signed.record.number > account.number:
                rules.with_voucher(account, signed.record, raw)
                account.paid_until_ms = signed.record.until_ms
        found = dict[bytes, LeaseEntry]()
        for lease in take_list(answer, "leases", most=limits.COUNT_LEASES_MAX):
            if not isinstance(lease, bytes):
                raise RecordInvalid("the field 'leases' must list leases")
            entry = self._store.entry_of("customer", lease)
            parties = entry.terms.provider, entry.terms.customer
            if parties != (account.provider, account.customer):
                raise RecordInvalid("the lease is between other nodes")
            found[entry.id] = entry
        if found.keys() != {line.lease_id for line in count.leases}:
            raise RecordInvalid("a lease that was counted is not shown")
        entries = [each for each in found.values() if self._store.get("customer", each.id) is None]
        rules.restore(account, entries, count)
        for entry in entries:
            self._store.add(entry)
        peer = ids.short(account.peer)
        self._node.log.info("market.leases_recalled", peer=peer, leases=len(entries))

    # The provider's side

    async def on_account(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[merkle.Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Take a customer's voucher, and sign what this node counts of its leases."""
        raw, book_now = take_opt_bytes(header, "voucher"), take_bool(header, "book_now")
        is_shown = take_bool(header, "show")
        less = take_list(header, "less", most=limits.LEASES_A_CUSTOMER_MAX)
        account = self._store.account("provider", caller)
        async with self._turns.of(account.id):
            if raw is not None:
                self._take_voucher(account, raw)
            for item in less:
                self._lower(caller, item)
            now_ms = self._clock.now_ms()
            entries = list(self._store.of("provider", caller))
            for entry in entries:
                entry.use = leases.advance(entry.terms, entry.use, now_ms)
            count = rules.count_of(self._claim(account, entries, now_ms), entries, now_ms)
            if entries or account.number:
                # What is signed must not be more than what is known after a power loss.
                await self._store.sync(*entries, account)
            steady_ms = self._clock.monotonic_ms()
            # Each booking is kept in the ledger for ever, and costs its customer nothing.
            may_book = not self._bookings.wait_ms(caller, steady_ms)
            if book_now and account.unbooked_micro and may_book:
                self._bookings.note(caller, steady_ms)
                await self._collect(account)
        return {
            "count": sign(count, self._node.key, self._node.network).raw,
            "voucher": account.voucher,
            "leases": [entry.raw for entry in entries] if is_shown else [],
            "settled_micro": account.settled_micro,
            "proven": account.certified,
        }, ()

    def _claim(self, account: Account, entries: Sequence[LeaseEntry], now_ms: int) -> Account:
        """Return an account as if its customer named the custodian whose record is here."""
        if account.certified is None:
            return account
        claim, network = replace(account), self._node.network
        proven = open_signed(account.certified, Proven, network=network).record
        if proofs.is_certified(account, proven, now_ms):
            proofs.decide(claim, entries, proven.at_ms, now_ms, ok=True)
        return claim

    def _lower(self, customer: bytes, item: Value) -> None:
        """Give up room of a cleared lease that its customer does not use; it is no more billed.

        Raises:
            RecordInvalid: the item says nothing of that kind.
        """
        match item:
            case [bytes() as lease_id, int() as level] if level >= 0:
                entry = self._store.get("provider", lease_id)
            case _:
                raise RecordInvalid("the field 'less' must list leases and their levels")
        if entry is None or entry.peer != customer or not entry.terms.cleared:
            return
        now_ms = self._clock.now_ms()
        least = leases.least_level(entry.terms, entry.use, entry.reserved, now_ms)
        entry.use = leases.lowered(entry.terms, entry.use, max(level, least), now_ms)

    def _take_voucher(self, account: Account, raw: bytes) -> None:
        """Take a voucher over that promises more than the last one; any other changes nothing.

        Raises:
            RecordInvalid, SignatureInvalid: it is not that customer's, or wrong.
        """
        customer = account.customer
        voucher = open_signed(raw, Voucher, network=self._node.network, author=customer).record
        wrong = rules.check_voucher(account, voucher, raw)
        if wrong is not None:
            raise RecordInvalid(wrong)
        if voucher.amount_micro > account.signed_micro:
            entries = self._store.of("provider", customer)
            due_micro = rules.total_micro(account, entries, self._clock.now_ms())
            # More than is due here: this node lost its disk, and the customer has not.
            more_micro = max(0, voucher.amount_micro - due_micro)
            settled = self._ports.credit.settled(account.id)
            credit = max(0, self._ports.credit.credit_left(customer))
            if more_micro > settled + credit:
                raise RecordInvalid("the voucher promises more than may be owed here")
            rules.with_voucher(account, voucher, raw)
            account.closed += more_micro * WORTH

    async def _collect(self, account: Account) -> None:
        """Book what the newest voucher says beyond what is booked; in the account's turn."""
        account.settled_micro = self._ports.credit.settled(account.id)
        is_early = self._clock.monotonic_ms() < account.retry_ms
        if account.voucher is None or not account.unbooked_micro or is_early:
            return
        try:
            account.settled_micro = await self._ports.credit.collect(account.voucher)
        except (CreditExceeded, ReceiptInvalid):
            # Where there is room for it, the customer says so of what it has signed.
            if self._ports.credit.credit_left(account.customer) >= account.unbooked_micro:
                self._ports.quality.report(account.customer, "payment", "booking_refused")
            raise
        except EntryRefused:
            self._ports.quality.report(account.customer, "payment", "booking_refused")
            account.refusals += 1
            account.retry_ms = self._clock.monotonic_ms() + rules.retry_ms(account.refusals)
            await self._store.sync(account)
            raise
        account.refusals = 0
        self._ports.quality.served(account.customer, "payment")
        self._store.keep(account)
