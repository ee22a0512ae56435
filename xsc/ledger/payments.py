"""Tells peers the state of their account here, and books payments off the books with them.

    ledger.account  paid: what the caller's operator reports as paid, None for nothing
        -> limit_micro, left_micro: what the caller may owe here, and what is left of it, signed
           paid: what this node's operator reports; the payee's report is told only to a payer
             that has reported the same

What a peer says of limits is only shown to people. What it says of a payment is compared: if both
operators reported the same, the payer books it, in an account that is used for its payments to the
payee only, and the payee answers with its half only while its own report stands. So no debt falls
without the creditor's signature. docs/design/ledger.md, "Off the books".

`ledger-paid/<peer>`, synced: the report of this node's operator, until it is booked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from xsc.base import encoding, errors, limits, peering, units
from xsc.base.fields import take_int
from xsc.base.ids import short
from xsc.base.keyvalue import prefix_end
from xsc.base.peering import Answered, Header, Parts
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.ledger.chain import Chain, Part
from xsc.ledger.entry import Half
from xsc.ledger.proposals import Proposals
from xsc.terms.voucher import Voucher, off_books_account, voucher_in_all

ACCOUNT_TIMEOUT_MS = 2_000
"""How long a peer has to answer what an account holds: a person waits for it."""
AGAIN_MS = 3_600_000
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
        return units.is_near(self.limit_micro - self.left_micro, self.limit_micro)


def check_amount(amount_micro: int, balance_micro: int, clearing_micro: int) -> str | None:
    """Return why a payment cannot take so much off what one of two nodes owes the other.

    Args:
        amount_micro: what was paid.
        balance_micro: what the peer owes this node; below zero, this node owes.
        clearing_micro: by how much that changes once loops are booked that all have signed.
    """
    if clearing_micro and amount_micro > abs(balance_micro + clearing_micro):
        off = units.format_credits(abs(clearing_micro))
        return f"{off} credits of this debt are taken off by a loop that is not booked yet"
    if balance_micro == 0:
        return "neither of the two nodes owes the other anything"
    if amount_micro > abs(balance_micro):
        debt = "the peer owes this node" if balance_micro > 0 else "this node owes the peer"
        owed, said = units.format_credits(abs(balance_micro)), units.format_credits(amount_micro)
        return f"{debt} {owed} credits, less than {said}"
    return None


def report(payer: bytes, payee: bytes, amount_micro: int, said_ms: int) -> Voucher:
    """Return what an operator reports as paid in all: a voucher that only two halves will sign."""
    in_all = voucher_in_all(off_books_account(payer, payee), payee, payer, amount_micro)
    return in_all.model_copy(update={"until_ms": said_ms})


def agree(one: Voucher, other: Voucher) -> bool:
    """Return whether two operators reported the same, at whatever time."""
    return one == other.model_copy(update={"until_ms": one.until_ms})


class Payments(Part):
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
        super().__init__(context, chain)
        self._proposals = proposals
        self._limit = limit
        self.left = limit
        """Returns what a peer may still come to owe this node, its leases counted."""
        self._theirs: dict[bytes, Voucher] = {}
        """What operators of peers say was paid between us, as heard last."""
        self._tried: dict[bytes, tuple[Voucher, int]] = {}
        """Own reports that an entry was booked of last, and until when none is booked again."""
        self._to_ask: set[bytes] = set()
        """Peers of which `run` is to hear how this node's account stands there."""
        self._lock = asyncio.Lock()
        self.accounts: dict[bytes, PeerAccount] = {}
        """The state of this node's account at peers, as they said it last."""
        proposals.checks["off_books"] = self._check
        proposals.on_owed = self._to_ask.add

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {ACCOUNT: self._on_account}

    # What was said

    def waiting(self, peer: bytes) -> Voucher | None:
        """Return what this node's operator reports as paid in all, until it is booked."""
        raw = self._chain.store.get(PAID + peer)
        if raw is None:
            return None
        try:
            found = Voucher.from_bytes(raw)
        except errors.RecordInvalid as fault:
            raise errors.StoreDamaged(f"a payment cannot be read: {fault.message}") from fault
        return found if self.left_micro(found) > 0 else None

    def left_micro(self, said: Voucher) -> int:
        """Return what of a report is not booked."""
        return said.amount_micro - self._booked(said.provider, said.customer)

    def _booked(self, payer: bytes, payee: bytes) -> int:
        account = off_books_account(payer, payee)
        return self._chain.state.settled_under(account, debtor=payee, creditor=payer)

    def _check(self, half: Half, voucher: Voucher) -> str | None:
        """Return why the payee's node does not answer what a payer books.

        Its operator may have taken back or corrected it. What is refused so is refused for ever:
        the operator's next report has another time.
        """
        if voucher != self.waiting(half.credit):
            return "the operator does not say now that this was paid"
        return None

    def _around(self, peer: bytes, *, is_payer: bool) -> tuple[bytes, bytes]:
        """Return payer and payee."""
        return (self._own, peer) if is_payer else (peer, self._own)

    def heard(self, peer: bytes) -> int:
        """Return what a peer's operator reports as paid, and this node's has not; 0: nothing.

        Also 0 if debtor and creditor have changed places since: the same report now would
        book a payment by the other party.
        """
        theirs, balance = self._theirs.get(peer), self._chain.state.balances.get(peer, 0)
        around = self._around(peer, is_payer=balance < 0)
        if theirs is None or balance == 0 or (theirs.provider, theirs.customer) != around:
            return 0
        own = self.waiting(peer)
        return 0 if own and agree(own, theirs) else max(0, self.left_micro(theirs))

    def _told(self, peer: bytes) -> encoding.Value:
        """Return what a peer is told: of the payee's report, only what the payer reported too.

        The payer could echo any other, and have booked what the payee's operator mistyped.
        """
        own, theirs = self.waiting(peer), self._theirs.get(peer)
        if own and (own.provider == self._own or (theirs and agree(own, theirs))):
            return own.to_value()
        return None

    async def _keep(self, peer: bytes, payment: Voucher | None) -> None:
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
            if (wrong := check_amount(amount_micro, balance, clearing)) is not None:
                raise errors.ArgumentInvalid(wrong, hint="`xsc ledger balance` shows who owes what")
            around = self._around(peer, is_payer=balance < 0)
            in_all = self._booked(*around) + amount_micro
            payment = report(*around, in_all, self._clock.now_ms())
            await self._keep(peer, payment)
        await self.standing(peer)
        return self.left_micro(payment) <= 0

    async def standing(self, peer: bytes) -> PeerAccount | None:
        """Ask a peer for the state of this node's account there; None where it does not answer.

        It is told what this node's operator says, and what both say is booked.
        """
        header: dict[str, encoding.Value] = {"v": 1, "paid": self._told(peer)}
        try:
            reply = await self._caller.call(peer, ACCOUNT, header, timeout_ms=ACCOUNT_TIMEOUT_MS)
            await self._hear(peer, reply.header)
            found = PeerAccount(
                take_int(reply.header, "limit_micro"),
                take_int(reply.header, "left_micro", least=-limits.AMOUNT_MAX),
            )
        except errors.XscError as fault:
            self._log.info("ledger.account_not_told", peer=short(peer), code=fault.code)
            return None
        before, self.accounts[peer] = self.accounts.get(peer), found
        if found.is_near and not (before and before.is_near):
            self._log.warning("ledger.near_limit", peer=short(peer), role="debtor", **asdict(found))
        return found

    async def _hear(self, peer: bytes, header: dict[str, encoding.Value]) -> None:
        """Take what a peer's operator reports; book it where this node's, the payer's, agrees."""
        self._theirs.pop(peer, None)
        if (paid := header.get("paid")) is None:
            return
        theirs = self._theirs[peer] = Voucher.from_value(paid)
        own = self.waiting(peer)
        now_ms = self._clock.monotonic_ms()
        tried, until_ms = self._tried.get(peer, (None, 0))
        # A payee that agrees and then refuses would have the chain grow.
        is_tried = tried == own and now_ms < until_ms
        if own and own.provider == self._own and agree(own, theirs) and not is_tried:
            under = Signed(theirs, peer, self._network, theirs.id, theirs.to_bytes())
            self._tried[peer] = own, now_ms + AGAIN_MS
            try:
                await self._proposals.book(under)
            except errors.XscError as fault:
                # An entry that is not answered stays open, and is proposed again by itself.
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
