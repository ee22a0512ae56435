"""Tells peers the state of their account here, and books payments off the books with them.

    ledger.account  paid_micro, is_payer: what the caller's operator says was paid, 0 for nothing
        -> limit_micro, left_micro: what the caller may owe here, and what is left of it, signed
           paid_micro, is_payer: what this node's operator says; the payee's word is told
             only to a payer that has said the same
           voucher: where both say the same and this node was paid

What a peer says of limits is only shown to people. What it says of a payment is compared:
if both operators reported the same, the payee signs, and the payer books what was signed.
The rules are in `off_books`.

`ledger-paid/<peer>`, synced: the report of this node's operator, until it is booked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from xsc.base import encoding, errors, limits, merkle, peering
from xsc.base.fields import take_bool, take_int, take_opt_bytes
from xsc.base.ids import short
from xsc.base.keyvalue import prefix_end
from xsc.base.units import is_near
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.ledger import off_books
from xsc.ledger.chain import Chain
from xsc.ledger.off_books import Payment
from xsc.ledger.proposals import Proposals
from xsc.terms.voucher import Voucher, off_books_account

ACCOUNT_TIMEOUT_MS = 2_000
"""How long a peer has to answer what an account holds: a person waits for it."""

ACCOUNT: Final = "ledger.account"
PAID: Final = b"ledger-paid/"
_VERSION: Final = 1


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
        self._key = context.key
        self._own = context.key.node_id
        self._network = context.network
        self._clock = context.clock
        self._executor = context.executor
        self._caller = context.caller
        self._log = context.log
        self._chain = chain
        self._proposals = proposals
        self._limit = limit
        self.left = limit
        """Returns what a peer may still come to owe this node, its leases counted."""
        self._theirs: dict[bytes, tuple[int, bool]] = {}
        """What operators of peers say was paid between us, and whether by them, as heard last."""
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
            value = encoding.decode(raw)
            if not isinstance(value, dict) or value.get("v") != _VERSION:
                raise errors.RecordInvalid("it is of an unknown version")
            found = Payment(
                take_int(value, "amount_micro"),
                take_bool(value, "is_payer"),
                take_int(value, "before_micro"),
                take_int(value, "said_ms"),
            )
        except errors.RecordInvalid as fault:
            raise errors.StoreDamaged(f"a payment cannot be read: {fault.message}") from fault
        booked = self._booked(peer, is_payer=found.is_payer)
        return None if off_books.is_over(found, booked) else found

    def check_consent(self, payer: bytes, voucher: Voucher) -> str | None:
        """Return why this node's operator does not agree now to what its voucher is over."""
        return off_books.check_consent(voucher, self.waiting(payer), payer=payer, payee=self._own)

    def heard(self, peer: bytes) -> int:
        """Return what a peer's operator reports as paid, and this node's has not; 0: nothing.

        Also 0 if debtor and creditor have changed places since: the same report now would
        book a payment by the other party.
        """
        amount, by_peer = self._theirs.get(peer, (0, False))
        balance = self._chain.state.balances.get(peer, 0)
        if balance == 0 or by_peer != (balance > 0):
            return 0
        own = self.waiting(peer)
        return 0 if own is not None and own.amount_micro == amount else amount

    def _told(self, peer: bytes, payment: Payment | None) -> int:
        """Return which amount a peer is told: of the payee's word, only what the payer said too.

        The payer could echo any other, and have booked what the payee's operator mistyped.
        """
        if payment is None or not (
            payment.is_payer or self._theirs.get(peer, (0, False))[0] == payment.amount_micro
        ):
            return 0
        return payment.amount_micro

    def _booked(self, peer: bytes, *, is_payer: bool) -> int:
        payer, payee = (self._own, peer) if is_payer else (peer, self._own)
        return self._chain.state.settled_under(
            off_books_account(payer, payee), debtor=payee, creditor=payer
        )

    async def _keep(self, peer: bytes, payment: Payment | None) -> None:
        raw = None if payment is None else encoding.encode({"v": _VERSION, **asdict(payment)})
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
            payment = Payment(amount_micro, is_payer, booked, self._clock.now_ms())
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
        payment = self.waiting(peer)
        reply = await self._caller.call(
            peer,
            ACCOUNT,
            {
                "v": 1,
                "paid_micro": self._told(peer, payment),
                "is_payer": payment is not None and payment.is_payer,
            },
            timeout_ms=ACCOUNT_TIMEOUT_MS,
        )
        self._hear(peer, reply.header)
        raw = take_opt_bytes(reply.header, "voucher")
        if payment is not None and payment.is_payer and raw is not None:
            await self._book(peer, payment, raw)
        found = PeerAccount(
            take_int(reply.header, "limit_micro"),
            take_int(reply.header, "left_micro", least=-limits.AMOUNT_MAX),
        )
        before, self.accounts[peer] = self.accounts.get(peer), found
        if found.is_near and not (before and before.is_near):
            self._log.warning("ledger.near_limit", peer=short(peer), role="debtor", **asdict(found))
        return found

    async def _book(self, peer: bytes, payment: Payment, raw: bytes) -> None:
        """Have a payee's voucher booked: what this node is owed by it is taken off its debt."""
        voucher = open_signed(raw, Voucher, network=self._network, author=peer).record
        wrong = off_books.check_voucher(voucher, payment, payer=self._own, payee=peer)
        if wrong is not None:
            raise errors.ReceiptInvalid(wrong)
        await self._proposals.collect(
            xid=off_books.xid_of(voucher, payment),
            debtor=peer,
            account=voucher.account,
            voucher=raw,
        )

    # What peers ask

    async def _on_account(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> tuple[dict[str, encoding.Value], Sequence[bytes | memoryview]]:
        amount, is_payer = take_int(header, "paid_micro"), take_bool(header, "is_payer")
        self._hear(caller, header)
        payment = self.waiting(caller)
        voucher: bytes | None = None
        if payment is not None and off_books.agree(payment, amount, is_payer=is_payer):
            if payment.is_payer:
                with suppress(errors.XscError):
                    await self._meet(caller)
            else:
                made = off_books.make_voucher(payment, payer=caller, payee=self._own)
                voucher = sign(made, self._key, self._network).raw
        return {
            "v": 1,
            "limit_micro": self._limit(caller),
            "left_micro": min(self.left(caller), limits.AMOUNT_MAX),
            "paid_micro": self._told(caller, payment),
            "is_payer": payment is not None and payment.is_payer,
            "voucher": voucher,
        }, ()

    def _hear(self, peer: bytes, header: dict[str, encoding.Value]) -> None:
        amount = take_int(header, "paid_micro", most=limits.AMOUNT_MAX)
        if amount:
            self._theirs[peer] = amount, take_bool(header, "is_payer")
        else:
            self._theirs.pop(peer, None)

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
