"""Pays for leases: sends vouchers for those taken, and books vouchers for those granted.

Vouchers go at every interval: what a provider may lose does not wait for the ledger. They are
booked once an hour and customer, earlier where much of its credit is waiting or one side asks
(`lease_entry.is_booking_due`).

A voucher, and a booking with its amount, are on the disk before they are sent. A booking
is asked for again under the same transfer id until the ledger confirms it, so that a
crash or a lost answer neither loses nor doubles it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from xsc.base.encoding import Value, tagged_sha256
from xsc.base.errors import ArgumentInvalid, EntryRefused, NotAllowed, RecordInvalid, XscError
from xsc.base.fields import take_bool, take_bytes, take_int
from xsc.base.ids import short
from xsc.base.limits import (
    BOOKINGS_ASKED_A_CUSTOMER_MAX,
    BOOKINGS_ASKED_MS,
    SETTLE_LAST_MS,
    SETTLE_TIMEOUT_MS,
    VOUCHERS_A_CUSTOMER_MAX,
    VOUCHERS_MS,
)
from xsc.base.merkle import Part
from xsc.base.tally import Tally
from xsc.base.turns import Turns
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.market import lease as rules
from xsc.market.lease_entry import (
    Booking,
    LeaseEntry,
    Role,
    is_booking_due,
    is_unbooked,
    next_booking,
)
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts
from xsc.market.taken import TakenLeases
from xsc.terms.voucher import Voucher

SETTLE: Final = "market.settle"
_XID_BYTES: Final = 16


def _xid(lease_id: bytes, booking: Booking) -> bytes:
    """Return the transfer id of a booking: the same each time the same attempt is made."""
    number, attempt = booking.number.to_bytes(8, "big"), booking.attempt.to_bytes(8, "big")
    return tagged_sha256("settle/xid", lease_id, number, attempt)[:_XID_BYTES]


class Settlement:
    """Settles leases in both roles.

    Args:
        booking_interval_ms: how long what customers sign waits at most until it is booked.
    """

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        store: LeaseStore,
        taken: TakenLeases,
        *,
        booking_interval_ms: int,
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._caller = context.caller
        self._log = context.log
        self._store = store
        self._credit = ports.credit
        self._quality = ports.quality
        self._leaving = ports.leaving
        self._taken = taken
        self._turns: Turns[tuple[Role, bytes]] = Turns()
        self._vouchers = Tally(VOUCHERS_A_CUSTOMER_MAX, VOUCHERS_MS)
        self._bookings = Tally(BOOKINGS_ASKED_A_CUSTOMER_MAX, BOOKINGS_ASKED_MS)
        self._booking_interval_ms = booking_interval_ms
        self._waiting_ms: dict[bytes, int] = {}
        """Since when something that a customer signed waits to be booked, by a steady clock."""

    async def settle_all(self) -> None:
        """Send what is owed to providers that are up, and have all that is signed booked now."""
        taken, granted = self._store.all("customer"), self._store.all("provider")
        await self._settle(taken, granted, book_now=lambda _: True)

    async def settle_with(self, peer: bytes) -> None:
        """Do the same with one peer, if it is up, as far as it can be done within a short time.

        What cannot stays owed: it keeps nobody from blocking the peer.
        """
        if not self._quality.is_up(peer):
            return
        taken = self._store.of("customer", peer)
        granted = self._store.of("provider", peer)
        try:
            async with asyncio.timeout(SETTLE_LAST_MS / 1000):
                await self._settle(taken, granted, book_now=lambda _: True)
        except (XscError, TimeoutError) as fault:
            self._log.warning("market.not_settled", peer=short(peer), fault=repr(fault))

    async def settle_due(self) -> None:
        """Send what is owed to providers that are up, and book where it is time to."""
        due = self._due()
        granted = [
            entry
            for entry in self._store.all("provider")
            if entry.peer in due or entry.booking is not None
        ]
        # Who leaves may not be there in an hour.
        leaving = self._leaving()
        await self._settle(
            self._store.all("customer"), granted, book_now=lambda peer: peer in leaving
        )

    async def _settle(
        self,
        taken: Iterable[LeaseEntry],
        granted: Iterable[LeaseEntry],
        *,
        book_now: Callable[[bytes], bool],
    ) -> None:
        owed: dict[bytes, list[LeaseEntry]] = {}
        for entry in taken:
            if self._quality.is_up(entry.peer):
                owed.setdefault(entry.peer, []).append(entry)
        await asyncio.gather(
            *(self._pay_one(entries, book_now=book_now(peer)) for peer, entries in owed.items()),
            *(
                self._collect_again(entry)
                for entry in granted
                if entry.booking is not None or is_unbooked(entry)
            ),
        )

    async def _pay_one(self, entries: list[LeaseEntry], *, book_now: bool) -> None:
        """Pay one provider; the rest waits for the next round where it does not take a voucher.

        What it did not take comes last then, so that it keeps back nothing else.
        """
        until_ms = self._clock.monotonic_ms() + SETTLE_TIMEOUT_MS
        for entry in sorted(entries, key=lambda entry: entry.untaken_ms):
            if not await self._pay(entry, book_now=book_now):
                entry.untaken_ms = self._clock.monotonic_ms()
                return
            if self._clock.monotonic_ms() >= until_ms:
                return

    def _unbooked(self) -> dict[bytes, list[LeaseEntry]]:
        """Return by customer the leases of which not all that is signed is booked."""
        found: dict[bytes, list[LeaseEntry]] = {}
        for entry in self._store.all("provider"):
            if is_unbooked(entry):
                found.setdefault(entry.peer, []).append(entry)
        return found

    def _due(self) -> set[bytes]:
        """Return the customers with whom it is time to book; their next hour begins."""
        unbooked, now_ms = self._unbooked(), self._clock.now_ms()
        steady_ms = self._clock.monotonic_ms()
        self._waiting_ms = {
            customer: self._waiting_ms.get(customer, steady_ms) for customer in unbooked
        }
        due = {
            customer
            for customer, since_ms in self._waiting_ms.items()
            if steady_ms - since_ms >= self._booking_interval_ms
            or is_booking_due(
                unbooked[customer],
                [
                    entry
                    for other in self._credit.shares_with(customer)
                    for entry in unbooked.get(other, ())
                ],
                self._credit.credit_left(customer),
                now_ms,
            )
        }
        self._waiting_ms |= dict.fromkeys(due, steady_ms)
        return due

    # The customer's side

    async def _pay(self, entry: LeaseEntry, *, book_now: bool) -> bool:
        """Sign what is owed now and send it; return whether the provider took all that it must.

        Args:
            entry: what is paid.
            book_now: ask the provider to book it at once.
        """
        async with self._turns.of(("customer", entry.terms.lease_id)):
            if entry.denial is not None:
                return True
            now_ms = self._clock.now_ms()
            use = rules.advance(entry.terms, entry.use, now_ms)
            voucher = rules.next_voucher(entry.terms, use, now_ms)
            if voucher is not None:
                entry.use = rules.with_voucher(use, voucher)
                entry.voucher, entry.taken_ms = sign(voucher, self._key, self._network).raw, None
                # Before it is sent: a number must never mean two amounts.
                await self._store.sync(entry)
            sent = entry.voucher
            # What the provider booked, this node has signed.
            booked = max(entry.use.settled_micro, self._credit.settled(entry.terms.lease_id))
            if booked > entry.use.settled_micro:
                entry.use = replace(entry.use, settled_micro=booked)
                self._store.save(entry)
            is_known = not entry.terms.cleared or entry.taken_ms is not None
            paid = is_known and entry.use.settled_micro >= entry.use.voucher_micro
            if sent is None or paid or not (book_now or self._is_untold(entry)):
                return True
            try:
                reply = await self._caller.call(
                    entry.peer,
                    SETTLE,
                    {"voucher": sent, "book_now": book_now},
                    timeout_ms=SETTLE_TIMEOUT_MS,
                )
                settled = take_int(reply.header, "settled_micro", most=entry.use.voucher_micro)
            except XscError as fault:
                self._log.warning("market.not_settled", peer=short(entry.peer), code=fault.code)
                if isinstance(fault, NotAllowed):
                    # It signed the lease, which runs on until it signs that it knows none.
                    await self._taken.refused(entry.terms.lease_id)
                return False
            entry.taken_ms = self._clock.monotonic_ms()
            entry.use = replace(entry.use, settled_micro=max(settled, entry.use.settled_micro))
            self._store.save(entry)
            return True

    def _is_untold(self, entry: LeaseEntry) -> bool:
        """Return whether the provider has still to take the newest voucher, or not booked it."""
        if entry.taken_ms is None:
            return True
        return self._clock.monotonic_ms() - entry.taken_ms >= 2 * self._booking_interval_ms

    # The provider's side

    async def on_settle(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Take a customer's voucher, and book what it promises if the customer asks for that."""
        raw, book_now = take_bytes(header, "voucher"), take_bool(header, "book_now")
        voucher = open_signed(raw, Voucher, network=self._network, author=caller)
        entry = self._store.get("provider", voucher.record.lease_id)
        if entry is None or entry.terms.customer != caller:
            raise NotAllowed("this customer has no such lease here")
        async with self._turns.of(("provider", entry.terms.lease_id)):
            await self._take_voucher(entry, voucher)
            now_ms = self._clock.monotonic_ms()
            # Each is kept in the ledger for ever, and costs its customer nothing.
            if book_now and is_unbooked(entry) and not self._bookings.wait_ms(caller, now_ms):
                self._bookings.note(caller, now_ms)
                await self._collect(entry)
        return {"settled_micro": entry.use.settled_micro}, ()

    async def _take_voucher(self, entry: LeaseEntry, voucher: Signed[Voucher]) -> None:
        """Keep a voucher that promises more than the last one; any other changes nothing."""
        if voucher.record.number < entry.use.voucher_number:
            return
        if voucher.record.number == entry.use.voucher_number:
            if voucher.raw != entry.voucher:
                raise RecordInvalid("two different vouchers bear the same number")
            return
        use = rules.advance(entry.terms, entry.use, self._clock.now_ms())
        if (refusal := rules.check_voucher(entry.terms, use, voucher.record)) is not None:
            raise RecordInvalid(refusal)
        is_first = entry.terms.cleared and entry.use.voucher_number == 0
        if voucher.record.amount_micro == entry.use.voucher_micro and not is_first:
            # It says nothing new: a customer could sign as many of those as it likes.
            return
        self._vouchers.count(entry.terms.customer, self._clock.monotonic_ms(), "vouchers")
        before = entry.use, entry.voucher
        entry.use, entry.voucher = rules.with_voucher(use, voucher.record), voucher.raw
        try:
            await self._store.sync(entry)
        except XscError:
            # It is not on the disk: sent again, it must not pass for known.
            use, entry.voucher = before
            entry.use = replace(
                entry.use,
                voucher_number=use.voucher_number,
                voucher_micro=use.voucher_micro,
            )
            raise

    async def _collect(self, entry: LeaseEntry) -> None:
        """Book what the newest voucher says beyond what is booked; under the lease's lock."""
        lease_id = entry.terms.lease_id
        while True:
            if entry.booking is None:
                settled = self._credit.settled(lease_id)
                if settled != entry.use.settled_micro:
                    entry.use = replace(entry.use, settled_micro=settled)
                    await self._store.sync(entry)
                if self._clock.monotonic_ms() < entry.refused_ms + rules.retry_ms(entry.refused):
                    return
                entry.booking = next_booking(entry, settled)
                if entry.booking is None:
                    return
                # Before it is asked for: the same number must never mean another amount.
                await self._store.sync(entry)
            booking = entry.booking
            try:
                settled = await self._credit.collect(
                    xid=_xid(lease_id, booking),
                    debtor=entry.terms.customer,
                    amount_micro=booking.amount_micro,
                    lease_id=lease_id,
                    voucher=booking.voucher,
                )
            except (EntryRefused, ArgumentInvalid):
                # It was not booked and never will be under this id. The next attempt asks the
                # ledger what is left and uses another id.
                entry.booking = None
                entry.refusals += 1
                entry.refused, entry.refused_ms = entry.refused + 1, self._clock.monotonic_ms()
                await self._store.sync(entry)
                raise
            entry.booking, entry.refused = None, 0
            entry.use = replace(entry.use, settled_micro=settled)
            await self._store.sync(entry)
            self._log.info(
                "market.lease_settled",
                customer=short(entry.terms.customer),
                amount_micro=booking.amount_micro,
                settled_micro=settled,
            )

    async def _collect_again(self, entry: LeaseEntry) -> None:
        async with self._turns.of(("provider", entry.terms.lease_id)):
            try:
                await self._collect(entry)
            except XscError as fault:
                # Kept as it is and tried again at the next interval.
                self._log.warning(
                    "market.not_collected", customer=short(entry.peer), code=fault.code
                )
