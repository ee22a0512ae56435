"""Proposes entries to debtors, and answers those that creditors propose.

The creditor writes its half before it sends it, the debtor writes both halves before it
answers, the creditor writes the answer before it counts. What is lost on the way is sent
again, and the same half gets the same answer, so that both ledgers agree as soon as the
two nodes can talk. The rules are in `validation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Literal, TypeAlias

from xsc.api.ledger import PaidLease
from xsc.base import encoding, fields, ids, limits
from xsc.base.errors import ArgumentInvalid, CreditExceeded, EntryRefused, ReceiptInvalid, XscError
from xsc.base.peering import Answered, Header, Parts
from xsc.base.units import is_near
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed
from xsc.ledger import entry, validation
from xsc.ledger.chain import FOR, OTHER, VOUCHER, Chain, key_of
from xsc.ledger.cube import SEALED_MAX, seal_hash
from xsc.ledger.exchange import HistoryExchange
from xsc.ledger.limits import LimitTerms
from xsc.ledger.loop import open_loop, open_voucher
from xsc.ledger.state import settle
from xsc.ledger.statement import lease_text, note_bytes, read_note
from xsc.terms.voucher import Voucher

PROPOSE: Final = "ledger.propose"

CheckConsent: TypeAlias = Callable[[bytes, Voucher], str | None]
"""Returns why this node's operator does not agree now to what a payer says that it paid."""


LeasesOf: TypeAlias = Callable[[bytes, bytes], Sequence[PaidLease]]
"""Returns the leases of a peer that were used and count in an account."""


class Proposals:
    """Proposes entries to peers, and answers their proposals within this node's limits."""

    def __init__(
        self,
        context: Context,
        chain: Chain,
        exchange: HistoryExchange,
        *,
        limit_terms: Callable[[bytes], LimitTerms],
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._caller = context.caller
        self._log = context.log
        self._chain = chain
        self._exchange = exchange
        self._limit_terms = limit_terms
        self.check_consent: CheckConsent
        """Asked before anything that was paid off the books is booked."""
        self.leases_of: LeasesOf = lambda _peer, _account: ()
        """Asked what an entry is for when it is written."""
        self.on_owed: Callable[[bytes], None] = lambda _: None
        """Called with a peer that this node came to owe something."""
        self.on_loop: Callable[[bytes], None] = lambda _loop_id: None
        """Called when a peer has shown a complete loop by booking its debt."""

    async def set_limit(self, peer: bytes, amount_micro: int | None) -> None:
        """Allow the peer to owe that much from now on, whatever the formula says; None ends that.

        What it owes already stays.

        Raises:
            ArgumentInvalid: the peer is this node, or the amount out of range.
        """
        if peer == self._key.node_id:
            raise ArgumentInvalid("a node has no account with itself")
        if amount_micro is not None and not 0 <= amount_micro <= limits.AMOUNT_MAX:
            raise ArgumentInvalid("a limit is from 0 to 2^63 - 1 micro-credits")
        await self._chain.commit(self._set_limit, peer, amount_micro)

    def _set_limit(self, peer: bytes, amount_micro: int | None) -> None:
        by_rule = self._limit_terms(peer).rule_micro
        half = entry.Half(
            kind="open" if amount_micro is None else "limit",
            peer=peer,
            debit=peer,
            credit=self._key.node_id,
            xid=self._entropy.token(entry.XID_BYTES),
            amount_micro=by_rule if amount_micro is None else amount_micro,
        )
        self._chain.extend(half)

    async def collect(self, *, xid: bytes, debtor: bytes, account: bytes, voucher: bytes) -> int:
        """Book what a voucher leaves unsettled, and return what is settled of the account in all.

        An entry in the same account that is still open is finished first, so the same call can be
        made again after any fault.

        Args:
            xid: 16 bytes; the same ones book the same entry, once.
            debtor: the node that signed the voucher.
            account: the voucher's.
            voucher: the signed voucher.

        Raises:
            PeerSilent: the entry is written and will be proposed again by itself.
            EntryRefused: the debtor refused; the entry is withdrawn, its xid is spent. That of a
                loop stays, and is proposed again by itself.
            CreditExceeded: the limit would be passed; nothing is written.
            ReceiptInvalid: the voucher is another's, or the debtor's answer does not fit.
            ArgumentInvalid: another entry has this xid.
        """
        if len(xid) != entry.XID_BYTES:
            raise ArgumentInvalid(f"an xid has {entry.XID_BYTES} bytes, this has {len(xid)}")
        size_max = limits.LEDGER_RECORD_BYTES_MAX
        signed = open_signed(voucher, Voucher, network=self._network, size_max=size_max)
        return await self.book(xid, debtor, account, signed)

    async def book(
        self, xid: bytes, debtor: bytes, account: bytes, voucher: Signed[Voucher]
    ) -> int:
        """Do as `collect`, with a voucher that was opened, or what a loop is worth as one."""
        await self._exchange.hear(debtor)
        while True:
            seq, mine = await self._chain.commit(self._prepare, xid, debtor, account, voucher)
            refusal = None if seq is None else await self.propose(seq)
            if mine and refusal is not None:
                raise EntryRefused(f"the peer refused the entry: {refusal}")
            if mine:
                return self._chain.state.settled_under(
                    account, debtor=debtor, creditor=self._key.node_id
                )

    def _prepare(
        self, xid: bytes, debtor: bytes, account: bytes, voucher: Signed[Voucher]
    ) -> tuple[int | None, bool]:
        """Return the entry to propose, if anything is left, and whether it is the one asked for."""
        state, me = self._chain.state, self._key.node_id
        if debtor == me:
            raise ArgumentInvalid("a node has no account with itself")
        if (known := state.entries.get(me, xid)) is not None:
            written = self._chain.content(known.seq)
            wanted = ("post", debtor, account, voucher.id)
            if wanted != (written.kind, written.peer, written.account, written.receipt):
                raise ArgumentInvalid("this xid stands for another entry already")
            return known.seq, True
        if (busy := state.open_under(debtor, account)) is not None:
            return busy, False
        settled = state.settled_under(account, debtor=debtor, creditor=me)
        amount_micro = voucher.record.amount_micro - settled
        if amount_micro <= 0:
            return None, True
        if debtor not in state.opened and debtor not in state.limits:
            self._set_limit(debtor, None)
        return self.begin(xid, debtor, account, voucher, amount_micro), True

    def begin(
        self,
        xid: bytes,
        debtor: bytes,
        account: bytes,
        voucher: Signed[Voucher],
        amount_micro: int,
        *,
        kind: Literal["post", "seal"] = "post",
    ) -> int:
        """Extend the chain by an entry that rests on a voucher, in a step; return its number."""
        half = entry.Half(
            kind=kind,
            unit=entry.UNIT_CREDIT if kind == "post" else entry.UNIT_NONE,
            peer=debtor,
            debit=debtor,
            credit=self._key.node_id,
            xid=xid,
            amount_micro=amount_micro,
            account=account,
            receipt=voucher.id,
        )
        note = note_bytes(self.leases_of(debtor, account)) if kind == "post" else None
        limit_micro = self._limit_terms(debtor).limit_micro
        return self._chain.extend(half, voucher, note=note, limit_micro=limit_micro).seq

    async def propose(self, seq: int) -> str | None:
        """Have the peer answer an own entry; return its refusal, or None where it is settled."""
        if seq in self._chain.state.voided:
            return "it did so before, and the entry was withdrawn"
        if seq not in self._chain.state.open:
            return None
        half = self._chain.own(seq)
        seals = half.record.kind == "seal"
        if seals and half.record.account != self._chain.history(half.record.peer):
            await self._chain.commit(self._void, seq)
            return "the peer has restarted its ledger, and the cubes with it"
        header: dict[str, encoding.Value] = {
            "v": 1,
            "half": half.raw,
            "voucher": self._chain.read(VOUCHER, seq),
        }
        try:
            reply = await self._caller.call(half.record.peer, PROPOSE, header)
        except EntryRefused as fault:
            if seals or half.record.clears:
                # What all members signed is not undone by one; the refusal need not be final.
                raise
            self._log.warning(
                "ledger.refused", peer=ids.short(half.record.peer), entry=seq, reason=fault.message
            )
            await self._chain.commit(self._void, seq)
            return None if self._is_settled(seq) else fault.message
        counter = entry.open_half(fields.take_bytes(reply.header, "counter"), network=self._network)
        refusal, is_new = await self._chain.commit(self._conclude, half, counter)
        if refusal is not None:
            await self._chain.keep_fork(counter)
            raise ReceiptInvalid(f"the peer keeps two ledgers: {refusal.sentence}")
        if is_new:
            self._say_paid(half.record)
        return None

    def _is_settled(self, seq: int) -> bool:
        return seq not in self._chain.state.open and seq not in self._chain.state.voided

    def _void(self, seq: int) -> None:
        """Withdraw an own entry, unless another answer came in the meantime."""
        if seq in self._chain.state.open:
            xid = self._entropy.token(entry.XID_BYTES)
            self._chain.extend(entry.void_half(self._chain.own(seq).record, xid=xid))

    def _conclude(
        self, half: Signed[entry.Half], counter: Signed[entry.Half]
    ) -> tuple[validation.Refusal | None, bool]:
        """Take the debtor's answer, unless it is there already.

        Returns:
            What shows that the debtor keeps two ledgers; and whether the answer was taken.
        """
        state, seq = self._chain.state, half.record.seq
        if seq not in state.open:
            return None, False
        if (refusal := validation.check_counter(half, counter)) is not None:
            raise ReceiptInvalid(f"the peer's half does not fit: {refusal.sentence}")
        if (refusal := validation.check_chain(state, counter)) is not None:
            return refusal, False
        self._chain.put([(key_of(OTHER, seq), counter.raw)])
        settle(state, half.record, counter)
        if half.record.clears:
            under = self._chain.read(VOUCHER, seq)
            self._chain.keep_loop(open_loop(under, network=self._network))
        return None, True

    async def on_propose(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        """Answer a creditor's half with this node's half."""
        half = entry.open_half(fields.take_bytes(header, "half"), network=self._network)
        raw = fields.take_bytes(header, "voucher")
        voucher = open_voucher(raw, half.record, network=self._network)
        await self._exchange.hear(caller)
        accepted = await self._chain.commit(self._accept, caller, half, voucher)
        if isinstance(accepted, validation.Refusal):
            if accepted.code in {"conflict", "fork"}:
                await self._chain.keep_fork(half)
            self._log.warning(
                "ledger.refusal",
                peer=ids.short(caller),
                code=accepted.code,
                reason=accepted.sentence,
            )
            kind = CreditExceeded if accepted.code == "amount_overflow" else EntryRefused
            raise kind(accepted.sentence)
        seq, is_new = accepted
        own = self._chain.own(seq)
        if is_new:
            self._say_paid(own.record)
        return {"v": 1, "counter": own.raw}, ()

    def _accept(
        self, caller: bytes, half: Signed[entry.Half], voucher: Signed[Voucher]
    ) -> validation.Refusal | tuple[int, bool]:
        """Extend the chain by this node's half to a creditor's, unless it is known.

        Returns:
            Why it is refused; or the number of this node's half, and whether it is new.
        """
        state = self._chain.state
        refusal = (
            validation.check_proposal(state, half, caller, voucher)
            or validation.check_incarnation(self._chain.incarnation_of(caller), half)
            or self._check_payment(half.record, voucher.record)
            or self._check_seal(half.record)
        )
        if refusal is not None:
            known = state.entries.get(caller, half.record.xid)
            return (known.seq, False) if known and refusal.code == "exists" else refusal
        account = half.record.account
        assert account is not None, "a post names an account"
        seals = half.record.kind == "seal"
        note = None if seals else note_bytes(self.leases_of(caller, account))
        answer = self._chain.extend(entry.counter_half(half), voucher, initiator=half, note=note)
        if answer.clears:
            self.on_loop(voucher.id)
        return answer.seq, True

    def noted(self, seq: int) -> list[PaidLease]:
        """Return the leases that were noted for an own half.

        Raises:
            LedgerDamaged: the note cannot be read.
        """
        return read_note(seq, self._chain.get(key_of(FOR, seq)))

    def _say_paid(self, own: entry.Half) -> None:
        """Log what was booked, by this node's half of it."""
        if own.kind == "seal":
            return
        self._log.info(
            "ledger.paid",
            peer=ids.short(own.peer),
            debtor=ids.short(own.debit),
            creditor=ids.short(own.credit),
            amount_micro=own.amount_micro,
            role="creditor" if own.credit == self._key.node_id else "debtor",
            off_books=own.purpose == "off_books",
            leases="; ".join(map(lease_text, self.noted(own.seq))),
            loop=own.purpose == "loop",
        )
        self._say_near(own)

    def _say_near(self, own: entry.Half) -> None:
        """Log that a peer comes near its limit by an entry, or have it asked for its limit."""
        if own.credit != self._key.node_id:
            self.on_owed(own.peer)
            return
        debt, limit = self._chain.state.exposure(own.peer), self._limit_terms(own.peer).limit_micro
        if is_near(debt, limit) and not is_near(debt - own.amount_micro, limit):
            self._log.warning(
                "ledger.near_limit",
                peer=ids.short(own.peer),
                role="creditor",
                owed_micro=debt,
                limit_micro=limit,
            )

    def _check_payment(self, half: entry.Half, voucher: Voucher) -> validation.Refusal | None:
        """Return why what was paid off the books is not booked at this moment."""
        if half.purpose != "off_books":
            return None
        wrong = self.check_consent(half.credit, voucher)
        return None if wrong is None else validation.Refusal("payment_not_said", wrong)

    def _check_seal(self, half: entry.Half) -> validation.Refusal | None:
        """Return why this node does not seal what a peer says at this moment."""
        if half.kind != "seal":
            return None
        if half.account != self._chain.history(half.credit):
            return validation.Refusal("seal_wrong", "the seal is of other incarnations")
        waiting = islice(self._chain.unsealed(half.credit, half.amount_micro), SEALED_MAX + 1)
        entry_ids = sorted(entry_id for _, entry_id in waiting)
        if not 0 < len(entry_ids) <= SEALED_MAX or half.receipt != seal_hash(entry_ids):
            return validation.Refusal("seal_wrong", "the seal is not over what waits for one here")
        if half.amount_micro > half.seq:
            return validation.Refusal("seal_wrong", "the seal is over numbers to come")
        return None

    async def retry_pending(self) -> int:
        """Propose every open entry again; return how many were settled.

        Peers are asked side by side; at the first error with a peer, its
        others wait for the next time.
        """
        counts = await asyncio.gather(*map(self._retry, await self._chain.commit(self._pending)))
        return sum(counts)

    def _pending(self) -> list[list[int]]:
        """Return the open entries, by peer; in a step, so that they are on the disk."""
        by_peer: dict[bytes, list[int]] = {}
        state = self._chain.state

        def turn(seq: int) -> tuple[bool, bool, int]:
            """What stays open where it is refused comes last: it holds up nothing else."""
            return not state.open[seq].amount_micro, state.open[seq].account in state.loops, seq

        for seq in sorted(state.open, key=turn):
            by_peer.setdefault(state.open[seq].debtor, []).append(seq)
        return [*by_peer.values()]

    async def _retry(self, seqs: list[int]) -> int:
        count = 0
        for seq in seqs:
            try:
                refusal = await self.propose(seq)
            except XscError as fault:
                self._log.warning("ledger.unanswered", entry=seq, code=fault.code)
                break
            count += refusal is None
        return count
