"""Agrees with peers on what is owed for leases, in both roles.

    market.account  voucher, book_now, leases -> count, voucher, leases, settled_micro

A customer asks its provider for a signed count of all leases between them, and signs a voucher for
what of it follows from its own orders (`account.agree`). The same answer tells it of leases whose
grant was lost, of leases that the provider does not have, and, after it lost its own disk, which
it has there. Vouchers go at every interval: what a provider may lose does not wait for the ledger.
They are booked once an hour and customer, earlier where much of its credit is waiting or one side
asks (`account.is_booking_due`).

A voucher, and a booking with its amount, are on the disk before they are sent. A booking is asked
for again under the same transfer id until the ledger confirms it, so that a crash or a lost answer
neither loses nor doubles it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from xsc.base.encoding import Value, decode, encode, tagged_sha256
from xsc.base.errors import ArgumentInvalid, EntryRefused, RecordInvalid, StoreDamaged, XscError
from xsc.base.fields import (
    take_bool,
    take_bytes,
    take_int,
    take_list,
    take_opt_bytes,
)
from xsc.base.ids import ID_BYTES, short
from xsc.base.keyvalue import Change, KeyValue
from xsc.base.limits import (
    ACCOUNT_LEASES_MAX,
    ACCOUNTS_A_CUSTOMER_MAX,
    ACCOUNTS_MS,
    AGREE_TIMEOUT_MS,
    BOOKINGS_ASKED_A_CUSTOMER_MAX,
    BOOKINGS_ASKED_MS,
    KIB,
    RECORD_BYTES_MAX,
    REQUEST_WINDOW_MS,
    SETTLE_LAST_MS,
    SETTLE_TIMEOUT_MS,
    STORAGE_LEASE_IDLE_MS,
)
from xsc.base.merkle import Part
from xsc.base.peering import HeadBound
from xsc.base.tally import Tally
from xsc.base.turns import Turns
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.market import account as rules
from xsc.market import lease as leases
from xsc.market.account import Account, Booking
from xsc.market.lease_entry import LeaseEntry, Role
from xsc.market.lease_requests import LeaseRequests
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts
from xsc.terms.count import LeaseCount, number_of
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import WORTH
from xsc.terms.voucher import Voucher

ACCOUNT: Final = "market.account"
HEADS: Final = {ACCOUNT: HeadBound(answered=RECORD_BYTES_MAX + ACCOUNT_LEASES_MAX * 8 * KIB)}
"""The count, and of each lease that was asked for the request with its quote: 4 KiB."""
LOST: Final = b"market/lost/"
"""By peer: bytes by lease that the directory names, while what it knows is still to be asked."""
_XID_BYTES: Final = 16
_VERSION: Final = 1


def _xid(account_id: bytes, booking: Booking) -> bytes:
    """Return the transfer id of a booking: the same each time the same attempt is made."""
    number, attempt = booking.number.to_bytes(8, "big"), booking.attempt.to_bytes(8, "big")
    return tagged_sha256("settle/xid", account_id, number, attempt)[:_XID_BYTES]


class Settlement:
    """Settles the leases of this node in both roles.

    Args:
        booking_interval_ms: how long what customers sign waits at most until it is booked.
    """

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        store: LeaseStore,
        requests: LeaseRequests,
        state: KeyValue,
        *,
        booking_interval_ms: int,
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._caller = context.caller
        self._log = context.log
        self._store = store
        self._requests = requests
        self._state = state
        self._credit = ports.credit
        self._quality = ports.quality
        self._leaving = ports.leaving
        self._on_denied = ports.on_denied
        self._turns: Turns[tuple[Role, bytes]] = Turns()
        self._asked = Tally(ACCOUNTS_A_CUSTOMER_MAX, ACCOUNTS_MS)
        self._bookings = Tally(BOOKINGS_ASKED_A_CUSTOMER_MAX, BOOKINGS_ASKED_MS)
        self._booking_interval_ms = booking_interval_ms
        self._refused: set[bytes] = set()
        """Leases that providers name and that are none."""
        self._waiting_ms: dict[bytes, int] = {}
        """Since when something that a customer signed waits to be booked, by a steady clock."""

    async def settle_all(self) -> None:
        """Agree with all peers that are up, and have all that is signed booked now."""
        customers = {account.peer for account in self._store.accounts("provider")}
        providers = [account.peer for account in self._store.accounts("customer")]
        await self._settle(providers, customers, book_now=lambda _: True)

    async def settle_with(self, peer: bytes) -> None:
        """Do the same with one peer, if it is up, as far as it can be done within a short time.

        What cannot stays owed: it keeps nobody from blocking the peer.
        """
        if not self._quality.is_up(peer):
            return
        try:
            async with asyncio.timeout(SETTLE_LAST_MS / 1000):
                await self._settle([peer], [peer], book_now=lambda _: True)
        except (XscError, TimeoutError) as fault:
            self._log.warning("market.not_settled", peer=short(peer), fault=repr(fault))

    async def settle_due(self) -> None:
        """Agree with providers that are up, and book where it is time to."""
        due = self._due() | {
            account.peer
            for account in self._store.accounts("provider")
            if account.booking is not None
        }
        # Who leaves may not be there in an hour.
        leaving = self._leaving()
        providers = {
            account.peer
            for account in self._store.accounts("customer")
            if account.peer in leaving and account.unbooked_micro
        }
        providers.update(self._providers())
        await self._settle(sorted(providers), due, book_now=lambda peer: peer in leaving)

    async def _settle(
        self,
        providers: Sequence[bytes],
        customers: Sequence[bytes] | set[bytes],
        *,
        book_now: Callable[[bytes], bool],
    ) -> None:
        await asyncio.gather(
            *(
                self.agree(peer, book_now=book_now(peer))
                for peer in providers
                if self._quality.is_up(peer)
            ),
            *(self._collect_again(peer) for peer in customers),
        )

    def _providers(self) -> list[bytes]:
        """Return the providers with which something is to be agreed."""
        now_ms = self._clock.now_ms()
        return [
            account.peer
            for account in self._store.accounts("customer")
            if self._is_untold(account)
            or account.peer in self._requests.unheard_at()
            or rules.is_open(account, list(self._store.of("customer", account.peer)), now_ms)
        ]

    def _is_untold(self, account: Account) -> bool:
        """Return whether a provider has still to take the newest voucher, or not booked it."""
        if not account.unbooked_micro:
            return False
        late_ms, now_ms = 2 * self._booking_interval_ms, self._clock.monotonic_ms()
        return account.taken_ms is None or now_ms - account.taken_ms >= late_ms

    def _due(self) -> set[bytes]:
        """Return the customers with whom it is time to book; their next hour begins."""
        unbooked = {
            account.peer: account
            for account in self._store.accounts("provider")
            if account.unbooked_micro
        }
        now_ms = self._clock.monotonic_ms()
        self._waiting_ms = {peer: self._waiting_ms.get(peer, now_ms) for peer in unbooked}
        due = set()
        for peer, since_ms in self._waiting_ms.items():
            together = self._credit.shares_with(peer)
            sharing = [unbooked[each] for each in together if each in unbooked]
            if now_ms - since_ms >= self._booking_interval_ms or rules.is_booking_due(
                sharing, self._credit.credit_left(peer)
            ):
                due.add(peer)
        self._waiting_ms |= dict.fromkeys(due, now_ms)
        return due

    # The customer's side

    async def agree(self, peer: bytes, *, book_now: bool = False) -> None:
        """Ask a provider for its count, take it over as far as it follows, and pay.

        Args:
            peer: the provider.
            book_now: ask it to book at once what is signed.
        """
        async with self._turns.of(("customer", peer)):
            try:
                async with asyncio.timeout(AGREE_TIMEOUT_MS / 1000):
                    voucher = await self._agree(peer)
                account = self._store.account("customer", peer)
                if voucher is not None and (
                    self._is_untold(account) or (book_now and account.unbooked_micro)
                ):
                    await self._ask(account, voucher, book_now=book_now)
            except XscError as fault:
                self._log.warning("market.not_settled", peer=short(peer), code=fault.code)
            except TimeoutError:
                self._log.warning("market.not_settled", peer=short(peer), code="timeout")

    async def _ask(
        self,
        account: Account,
        voucher: bytes | None,
        *,
        book_now: bool = False,
        wanted: Sequence[bytes] = (),
    ) -> dict[str, Value]:
        header: dict[str, Value] = {
            "voucher": voucher,
            "book_now": book_now,
            "leases": [*wanted],
        }
        reply = await self._caller.call(account.peer, ACCOUNT, header, timeout_ms=SETTLE_TIMEOUT_MS)
        settled = min(take_int(reply.header, "settled_micro"), account.signed_micro)
        if voucher is not None:
            account.taken_ms = self._clock.monotonic_ms()
        booked = self._credit.settled(account.id)
        account.settled_micro = max(settled, account.settled_micro, booked)
        return reply.header

    async def _agree(self, peer: bytes) -> bytes | None:
        """Take a provider's count over, and return the newest voucher, which is on the disk.

        Raises:
            XscError: the provider does not answer, or what it answers is no count.
        """
        account = self._store.account("customer", peer)
        lost = self._lost(peer)
        known = {entry.terms.lease_id for entry in self._store.of("customer", peer)}
        asked_ms = self._clock.now_ms()
        answer = await self._ask(account, None)
        count = self._opened(peer, answer)
        if lost is not None:
            self._recall_voucher(account, take_opt_bytes(answer, "voucher"))
        await self._find(account, count, lost or {})
        if lost is not None:
            # What was signed pays for what these leases came to by then, too.
            counted = {line.lease_id: number_of(line.used) for line in count.leases}
            again = sum(
                leases.worth(entry.terms, counted.get(entry.terms.lease_id, 0))
                for entry in self._store.of("customer", peer)
            )
            signed = max(0, account.signed_micro * WORTH - again)
            account.closed = min(number_of(count.closed), signed)
        account.agreed_ms = asked_ms
        known |= {line.lease_id for line in count.leases}
        entries = [
            entry for entry in self._store.of("customer", peer) if entry.terms.lease_id in known
        ]
        now_ms = self._clock.now_ms()
        moving = {entry.terms.lease_id for pair in self._store.renewing(now_ms) for entry in pair}
        agreed = rules.agree(
            account, entries, count, moving=moving, asked_ms=asked_ms, now_ms=now_ms
        )
        await self._take_over(account, count, agreed, take_bytes(answer, "count"))
        if lost is not None:
            # All that it told is on the disk.
            await self._store.sync(account=account)
            self._state.write([(LOST + peer, None)], sync=False)
        return account.voucher

    def _opened(self, peer: bytes, answer: dict[str, Value]) -> LeaseCount:
        raw = take_bytes(answer, "count")
        count = open_signed(raw, LeaseCount, network=self._network, author=peer).record
        wrong = rules.check_count(
            count, provider=peer, customer=self._key.node_id, now_ms=self._clock.now_ms()
        )
        if wrong is not None:
            raise RecordInvalid(wrong)
        return count

    async def _take_over(
        self, account: Account, count: LeaseCount, agreed: rules.Agreed, raw: bytes
    ) -> None:
        disputed = {entry.terms.lease_id for entry in agreed.disputed}
        account.closed = agreed.closed
        for entry, use in agreed.uses:
            if entry.terms.lease_id in disputed or use.touched_ms >= account.agreed_ms:
                entry.use = use  # what changed since may not be counted yet
            else:
                entry.agreed(use)
        for entry in agreed.denied:
            entry.denial = raw
        if disputed and account.disputed is None:
            self._log.warning(
                "market.count_disputed", peer=short(account.peer), leases=len(disputed)
            )
            self._quality.report(account.peer, "lease_count")
        account.disputed = raw if disputed else None
        voucher = rules.next_voucher(account, agreed.amount_micro, count)
        if voucher is not None:
            rules.with_voucher(account, voucher, sign(voucher, self._key, self._network).raw)
            account.count, account.taken_ms = raw, None
        if agreed.uses or voucher is not None:
            # Before it is sent: a number must never mean two amounts.
            await self._store.sync(*(entry for entry, _ in agreed.uses), account=account)
        for entry in agreed.gone:
            if entry.denial is None and self._store.get("customer", entry.terms.lease_id) is entry:
                self._refused.add(entry.terms.lease_id)
                self._store.forget(entry)
        if agreed.denied:
            self._log.warning(
                "market.leases_denied", peer=short(account.peer), leases=len(agreed.denied)
            )
            self._quality.report(account.peer, "lease_denial")
            await self._on_denied({entry.terms.lease_id for entry in agreed.denied})

    # Leases that this node does not know

    def lost(self, held: Mapping[bytes, Mapping[bytes, int]]) -> None:
        """Note that this node lost its leases, and what its directory knows of bytes at peers."""
        changes: list[Change] = []
        for peer, by_lease in sorted(held.items()):
            listed: list[Value] = [[lease_id, size] for lease_id, size in sorted(by_lease.items())]
            changes.append((LOST + peer, encode({"v": _VERSION, "held": listed})))
        if changes:
            self._state.write(changes, sync=True)

    def _lost(self, peer: bytes) -> dict[bytes, int] | None:
        """Return by lease what the directory knew of bytes at a peer that is still to be asked."""
        raw = self._state.get(LOST + peer)
        if raw is None:
            return None
        found: dict[bytes, int] = {}
        try:
            value = decode(raw)
            if not isinstance(value, dict):
                raise RecordInvalid("it is no map")
            for item in take_list(value, "held"):
                match item:
                    case [bytes(lease_id), int(size)] if len(lease_id) == ID_BYTES and size >= 0:
                        found[lease_id] = size
                    case _:
                        raise RecordInvalid("an item is of no known form")
        except XscError as fault:
            raise StoreDamaged(f"a note of what was lost is damaged: {fault.message}") from None
        return found

    def _recall_voucher(self, account: Account, raw: bytes | None) -> None:
        """Take the newest voucher back that this node signed before it lost its disk.

        Raises:
            RecordInvalid, SignatureInvalid: it is not this node's.
        """
        if raw is None:
            return
        signed = open_signed(raw, Voucher, network=self._network, author=self._key.node_id)
        if signed.record.account != account.id:
            raise RecordInvalid("the voucher is of another account")
        if signed.record.number > account.number:
            rules.with_voucher(account, signed.record, raw)
            account.taken_ms = self._clock.monotonic_ms()

    async def _find(self, account: Account, count: LeaseCount, held: Mapping[bytes, int]) -> None:
        """Take leases over that a provider counts and this node does not know.

        They began since the last count: their answers were lost, or this node's newest writes, or
        its disk.
        Each bears this node's signature, so a provider cannot tell of others; of what it says it
        counted under them, no more is believed than they allow.
        """
        lines = {
            line.lease_id: line
            for line in count.leases
            if self._store.get("customer", line.lease_id) is None
            and line.lease_id not in self._refused
        }
        wanted = sorted(lines)
        for start in range(0, len(wanted), ACCOUNT_LEASES_MAX):
            page = wanted[start : start + ACCOUNT_LEASES_MAX]
            answer = await self._ask(account, None, wanted=page)
            fresh = []
            told = take_list(answer, "leases", most=ACCOUNT_LEASES_MAX)
            if len(told) < len(page):
                raise RecordInvalid("a lease that was counted is not shown")
            for raw in told:
                if not isinstance(raw, bytes):
                    raise RecordInvalid("the field 'leases' must list leases")
                entry = self._recalled(account.peer, raw)
                if entry.terms.lease_id not in page:
                    raise RecordInvalid("the lease was not asked for")
                line, use = lines[entry.terms.lease_id], entry.use
                if entry.terms.start_ms < account.agreed_ms - REQUEST_WINDOW_MS:
                    # It was known, is over, and has been paid.
                    self._refused.add(entry.terms.lease_id)
                    continue
                # What it was billed for before is known to its provider alone.
                past_ms = max(0, count.counted_ms - entry.terms.start_ms)
                if not held:
                    # A provider that refused can grant it later: for what it kept free since.
                    past_ms = min(past_ms, STORAGE_LEASE_IDLE_MS + REQUEST_WINDOW_MS)
                entry.leeway += entry.terms.quantity * past_ms
                size = held.get(entry.terms.lease_id, 0)
                entry.use = replace(use, held_bytes=size, level=min(use.level, line.level))
                fresh.append(entry)
            self._store.add(fresh)
        self._requests.heard(account.peer, count.counted_ms)
        if wanted:
            self._log.info("market.leases_recalled", peer=short(account.peer), leases=len(wanted))

    def _recalled(self, peer: bytes, raw: bytes) -> LeaseEntry:
        """Return a lease that a provider shows, once it is known to be this node's there.

        Raises:
            RecordInvalid, SignatureInvalid: it is not.
        """
        lease = open_signed(raw, Lease, network=self._network, author=peer).record
        own = self._key.node_id
        request = open_signed(lease.request, LeaseRequest, network=self._network, author=own)
        if (request.record.provider, request.record.customer) != (peer, own):
            raise RecordInvalid("the lease is between other nodes")
        refusal = leases.check_grant(lease.request, request.record, lease)
        if refusal is not None:
            raise RecordInvalid(refusal)
        return self._store.entry_of(
            "customer", raw, self._clock.now_ms(), self._requests.domain_of(peer)
        )

    # The provider's side

    async def on_account(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Take a customer's voucher, and sign what this node counts of its leases."""
        raw, book_now = take_opt_bytes(header, "voucher"), take_bool(header, "book_now")
        wanted = take_list(header, "leases", most=ACCOUNT_LEASES_MAX)
        self._asked.count(caller, self._clock.monotonic_ms(), "accounts")
        async with self._turns.of(("provider", caller)):
            account = self._store.account("provider", caller)
            if raw is not None:
                self._take_voucher(account, raw)
            now_ms = self._clock.now_ms()
            entries = list(self._store.of("provider", caller))
            for entry in entries:
                use = leases.advance(entry.terms, entry.use, now_ms)
                entry.use = replace(use, known=True)
            count = rules.count_of(account, entries, now_ms)
            if entries or account.number:
                # What is signed must not be more than what is known after a power loss.
                await self._store.sync(*entries, account=account)
            steady_ms = self._clock.monotonic_ms()
            # Each booking is kept in the ledger for ever, and costs its customer nothing.
            may_book = not self._bookings.wait_ms(caller, steady_ms)
            if book_now and account.unbooked_micro and may_book:
                self._bookings.note(caller, steady_ms)
                await self._collect(account)
        shown = [entry.raw for entry in entries if entry.terms.lease_id in wanted]
        return {
            "count": sign(count, self._key, self._network).raw,
            "voucher": account.voucher,
            "leases": [*shown],
            "settled_micro": account.settled_micro,
        }, ()

    def _take_voucher(self, account: Account, raw: bytes) -> None:
        """Take a voucher over that promises more than the last one; any other changes nothing.

        Raises:
            RecordInvalid, SignatureInvalid: it is not that customer's, or wrong.
        """
        voucher: Signed[Voucher] = open_signed(
            raw, Voucher, network=self._network, author=account.customer
        )
        wrong = rules.check_voucher(account, voucher.record, raw)
        if wrong is not None:
            raise RecordInvalid(wrong)
        if voucher.record.amount_micro > account.signed_micro:
            entries = list(self._store.of("provider", account.customer))
            due_micro = rules.due_micro(account, entries, self._clock.now_ms())
            # More than is due here: this node lost its disk, and the customer has not.
            more_micro = max(0, voucher.record.amount_micro - due_micro)
            settled = self._credit.settled(account.id)
            credit = max(0, self._credit.credit_left(account.customer))
            if more_micro and voucher.record.amount_micro > settled + due_micro + credit:
                raise RecordInvalid("the voucher promises more than may be owed here")
            rules.with_voucher(account, voucher.record, raw)
            account.closed += more_micro * WORTH

    async def _collect(self, account: Account) -> None:
        """Book what the newest voucher says beyond what is booked; in the account's turn."""
        while True:
            if account.booking is None:
                settled = self._credit.settled(account.id)
                if settled != account.settled_micro:
                    account.settled_micro = settled
                    await self._store.sync(account=account)
                waits_ms = rules.retry_ms(account.refused)
                if self._clock.monotonic_ms() < account.refused_ms + waits_ms:
                    return
                account.booking = rules.next_booking(account, settled)
                if account.booking is None:
                    return
                # Before it is asked for: the same number must never mean another amount.
                await self._store.sync(account=account)
            booking = account.booking
            try:
                settled = await self._credit.collect(
                    xid=_xid(account.id, booking),
                    debtor=account.customer,
                    amount_micro=booking.amount_micro,
                    account=account.id,
                    voucher=booking.voucher,
                )
            except (EntryRefused, ArgumentInvalid):
                # It was not booked and never will be under this id. The next attempt asks the
                # ledger what is left and uses another id.
                account.booking = None
                account.refusals += 1
                account.refused, account.refused_ms = (
                    account.refused + 1,
                    self._clock.monotonic_ms(),
                )
                await self._store.sync(account=account)
                raise
            account.booking, account.refused = None, 0
            account.settled_micro = settled
            await self._store.sync(account=account)
            self._log.info(
                "market.leases_settled",
                customer=short(account.customer),
                amount_micro=booking.amount_micro,
                settled_micro=settled,
            )

    async def _collect_again(self, peer: bytes) -> None:
        async with self._turns.of(("provider", peer)):
            try:
                await self._collect(self._store.account("provider", peer))
            except XscError as fault:
                # Kept as it is and tried again at the next interval.
                self._log.warning("market.not_collected", customer=short(peer), code=fault.code)
