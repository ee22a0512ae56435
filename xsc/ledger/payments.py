"""Tells peers the state of their account here, and books payments off the books with them.

    ledger.account  paid: what the caller's operator reports as paid, None for nothing
        -> limit_micro, left_micro: what the caller may owe here, and what is left of it, signed
           paid: what this node's operator reports; the payee's report is told only to a payer
             that has reported the same

What a peer says of limits is only shown to people. What it says of a payment is compared: if both
operators reported the same, the payer books it. The rules are in `off_books`.

`ledger-paid/<peer>`, synced: the report of this node's operator, until it is booked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from xsc.base import encoding, errors, limits, peering
from xsc.base.fields import take_int
from xsc.base.ids import short
from xsc.base.keyvalue import prefix_end
from xsc.base.peering import Answered, Header, Parts
from xsc.base.units import is_near
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.ledger import off_books
from xsc.ledger.chain import Chain
from xsc.ledger.entry import XID_BYTES
from xsc.ledger.off_books import Payment
from xsc.ledger.proposals import Proposals
from xsc.terms.voucher import Voucher, off_books_account

ACCOUNT_TIMEOUT_MS = 2_000
"""How long a peer has to answer what an account holds: a person waits for it."""
REFUSED_MS = 3_600_000
"""How long a payment that the payee refused is not booked again, unless it is said anew."""

ACCOUNT: Final = "ledger.account"
PAID: Final = b"ledger-paid/"


@dataclass(frozen=True, slots=True)
class PeerAccount:
    """The state of this node's account at a peer, as the peer says."""

    limit_micro: int
    """What this node may owe there."""
    left_micro: int
    """How far that is, with what it holds and has not been billed for; may be negative."""

    @property
    def is_near(self) -> bool:
        """Whether most of it is used."""
        return is_near(self.limit_micro - self.left_micro, self.limit_micro)


class Payments:
    """Asks peers for accounts, and answers them; compares what operators report as paid.

    Args:
        context: whose payments they are.
        chain: the ledger; reports are beside it.
        proposals: books what both operators say.
        limit: returns what a peer may owe this node.
    """

    def __init__(
        self,
        context: Context,
        chain: Chain,
        proposals: Proposals,
        *,
        limit: Callable[[bytes], int],
    ) -> None:
        self._own = context.key.node_id
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._executor = context.executor
        self._caller = context.caller
        self._log = context.log
        self._chain = chain
        self._proposals = proposals
        self._limit = limit
        self.left = limit
        """Returns what a peer may still come to owe this node, its leases counted."""
        self._theirs: dict[bytes, Payment] = {}
        """What operators of peers say was paid between us, as heard last."""
        self._refused: dict[bytes, tuple[Payment, int]] = {}
        """Own reports whose entry the payee refused last, and until when it is not booked again."""
        self._to_ask: set[bytes] = set()
        """Peers of which `run` is to hear how this node's account stands there."""
        self._lock = asyncio.Lock()
        self.accounts: dict[bytes, PeerAccount] = {}
        """The state of this node's account at peers, as they said it last."""
        proposals.check_consent = self.check_consent
        proposals.on_owed = self._to_ask.add

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {ACCOUNT: self._on_account}

    # What was said

    def waiting(self, peer: bytes) -> Payment | None:
        """Return what this node's operator said of a payment that is not booked yet."""
        raw = self._chain.store.get(PAID + peer)
        if raw is None:
            return None
        try:
            found = Payment.from_bytes(raw)
        except errors.RecordInvalid as fault:
            raise errors.StoreDamaged(f"a payment cannot be read: {fault.message}") from fault
        booked = self._booked(peer, is_payer=found.is_payer)
        return None if off_books.is_over(found, booked) else found

    def check_consent(self, payer: bytes, voucher: Voucher) -> str | None:
        """Return why this node's operator does not agree now to what a payer books."""
        return off_books.check_consent(voucher, self.waiting(payer), payer=payer, payee=self._own)

    def heard(self, peer: bytes) -> int:
        """Return what a peer's operator reports as paid, and this node's has not; 0: nothing.

        Also 0 if debtor and creditor have changed places since: the same report now would
        book a payment by the other party.
        """
        theirs, balance = self._theirs.get(peer), self._chain.state.balances.get(peer, 0)
        if theirs is None or balance == 0 or theirs.is_payer != (balance > 0):
            return 0
        own = self.waiting(peer)
        return 0 if own and own.amount_micro == theirs.amount_micro else theirs.amount_micro

    def _told(self, peer: bytes) -> encoding.Value:
        """Return what a peer is told: of the payee's report, only what the payer reported too.

        The payer could echo any other, and have booked what the payee's operator mistyped.
        """
        own, theirs = self.waiting(peer), self._theirs.get(peer)
        if own and (own.is_payer or (theirs and off_books.agree(own, theirs))):
            return own.to_value()
        return None

    def _booked(self, peer: bytes, *, is_payer: bool) -> int:
        payer, payee = (self._own, peer) if is_payer else (peer, self._own)
        return self._chain.state.settled_under(
            off_books_account(payer, payee), debtor=payee, creditor=payer
        )

    async def _keep(self, peer: bytes, payment: Payment | None) -> None:
        raw = None if payment is None else payment.to_bytes()
        await self._executor.run(self._chain.store.write, [(PAID + peer, raw)], sync=True)

    # The operator's side

    async def say(self, peer: bytes, amount_micro: int) -> bool:
        """Say that so much was paid off the books, 0 takes it back; return whether it is booked.

        What a peer owes this node was paid to it, what it owes the peer by it. The peer's
        operator must say the same; until then it waits, and is told again.

        Raises:
            ArgumentInvalid: less is owed.
        """
        if not 0 <= amount_micro <= limits.AMOUNT_MAX:
            raise errors.ArgumentInvalid("an amount is from 0 to 2^63 - 1 micro-credits")
        async with self._lock:
            state = self._chain.state
            balance, clearing = state.balances.get(peer, 0), state.clearing(peer)
            if amount_micro == 0:
                await self._keep(peer, None)
                return False
            if (wrong := off_books.check_amount(amount_micro, balance, clearing)) is not None:
                raise errors.ArgumentInvalid(wrong, hint="`xsc ledger balance` shows who owes what")
            is_payer = balance < 0
            booked = self._booked(peer, is_payer=is_payer)
            payment = Payment(
                amount_micro=amount_micro,
                is_payer=is_payer,
                before_micro=booked,
                said_ms=self._clock.now_ms(),
            )
            await self._keep(peer, payment)
        with suppress(errors.XscError):
            await self._meet(peer)
        return off_books.is_over(payment, self._booked(peer, is_payer=is_payer))

    async def standing(self, peer: bytes) -> PeerAccount | None:
        """Ask a peer for the state of this node's account there; None where it does not answer."""
        try:
            return await self._meet(peer)
        except errors.XscError as fault:
            self._log.info("ledger.account_not_told", peer=short(peer), code=fault.code)
            return None

    async def _meet(self, peer: bytes) -> PeerAccount:
        """Tell a peer what this node's operator says, and book where both say the same."""
        header: dict[str, encoding.Value] = {"v": 1, "paid": self._told(peer)}
        reply = await self._caller.call(peer, ACCOUNT, header, timeout_ms=ACCOUNT_TIMEOUT_MS)
        await self._hear(peer, reply.header)
        found = PeerAccount(
            take_int(reply.header, "limit_micro"),
            take_int(reply.header, "left_micro", least=-limits.AMOUNT_MAX),
        )
        before, self.accounts[peer] = self.accounts.get(peer), found
        if found.is_near and not (before and before.is_near):
            self._log.warning("ledger.near_limit", peer=short(peer), role="debtor", **asdict(found))
        return found

    async def _hear(self, peer: bytes, header: dict[str, encoding.Value]) -> None:
        """Take what a peer's operator reports; book it where this node's, the payer's, agrees."""
        self._theirs.pop(peer, None)
        if (paid := header.get("paid")) is None:
            return
        theirs = self._theirs[peer] = Payment.from_value(paid)
        own = self.waiting(peer)
        now_ms = self._clock.monotonic_ms()
        refused, until_ms = self._refused.get(peer, (None, 0))
        if refused == own and now_ms < until_ms:
            return  # A payee that agrees and then refuses would have the chain grow.
        if own and own.is_payer and off_books.agree(own, theirs):
            worth = off_books.worth(theirs, payer=self._own, payee=peer)
            under = Signed(worth, peer, self._network, worth.id, worth.to_bytes())
            # Where it is not answered, the entry stays, and is proposed again.
            try:
                await self._proposals.book(
                    self._entropy.token(XID_BYTES), peer, worth.account, under
                )
            except errors.EntryRefused:
                self._refused[peer] = own, now_ms + REFUSED_MS
            except errors.XscError as fault:
                self._log.info("ledger.payment_unanswered", peer=short(peer), code=fault.code)

    # What peers ask

    async def _on_account(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        await self._hear(caller, header)
        return {
            "v": 1,
            "limit_micro": self._limit(caller),
            "left_micro": min(self.left(caller), limits.AMOUNT_MAX),
            "paid": self._told(caller),
        }, ()

    # What runs by itself

    async def run(self) -> None:
        """Tell again what waits for a peer, every LEDGER_RETRY_MS; never returns."""
        while True:
            rows = self._chain.store.scan(PAID, prefix_end(PAID))
            for peer in [key.removeprefix(PAID) for key, _ in rows]:
                async with self._lock:
                    if self.waiting(peer) is None:
                        await self._keep(peer, None)
                    else:
                        self._to_ask.add(peer)
            while peers := [*self._to_ask]:
                self._to_ask.clear()
                # Side by side: one that is silent holds up none of the others.
                await asyncio.gather(*map(self.standing, peers))
            await self._clock.sleep_ms(limits.LEDGER_RETRY_MS)
