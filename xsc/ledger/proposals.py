"""Proposes entries to debtors, and answers those that creditors propose.

The creditor writes its half before it sends it, the debtor writes both halves before it
answers, the creditor writes the answer before it counts. What is lost on the way is sent
again, and the same half gets the same answer, so that both ledgers agree as soon as the
two nodes can talk. The rules are in `validation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

from xsc.api.ledger import PaidLease
from xsc.base import encoding, fields, ids, limits
from xsc.base.errors import ArgumentInvalid, CreditExceeded, EntryRefused, ReceiptInvalid, XscError
from xsc.base.peering import Answered, Header, Parts
from xsc.base.units import is_near
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed
from xsc.ledger import entry, validation
from xsc.ledger.chain import ENTRY, FOR, Chain, Part, key_of
from xsc.ledger.exchange import HistoryExchange
from xsc.ledger.limits import LimitTerms
from xsc.ledger.loop import open_loop, open_voucher
from xsc.ledger.state import settle
from xsc.ledger.statement import lease_text, note_bytes, read_note
from xsc.terms.voucher import Voucher

PROPOSE: Final = "ledger.propose"

Check: TypeAlias = Callable[[entry.Half, Voucher], str | None]
"""Returns why this node does not answer a creditor's half at this moment."""
LeasesOf: TypeAlias = Callable[[bytes, bytes], Sequence[PaidLease]]
"""Returns the leases of a peer that were used and count in an account."""


class Proposals(Part):
    """Proposes entries to peers, and answers their proposals within this node's limits."""

    def __init__(
        self,
        context: Context,
        chain: Chain,
        exchange: HistoryExchange,
        *,
        limit_terms: Callable[[bytes], LimitTerms],
    ) -> None:
        super().__init__(context, chain)
        self._exchange = exchange
        self._limit_terms = limit_terms
        self.checks: dict[entry.Purpose, Check] = {}
        """Asked before anything for such a purpose is answered."""
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
        if peer == self._own:
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
            credit=self._own,
            amount_micro=by_rule if amount_micro is None else amount_micro,
        )
        self._chain.extend(half)

    async def collect(self, voucher: bytes) -> int:
        """Book what a voucher leaves unsettled, and return what is settled of the account in all.

        An entry in the same account that is still open is finished first, so the same call can be
        made again after any fault.

        Args:
            voucher: signed by the debtor, made out to this node.

        Raises:
            PeerSilent: the entry is written and will be proposed again by itself.
            EntryRefused: the debtor refused; the entry is withdrawn. That of a loop stays, and is
                proposed again by itself.
            CreditExceeded: the limit would be passed; nothing is written.
            ReceiptInvalid: the voucher is another's, or the debtor's answer does not fit.
            ArgumentInvalid: the debtor is this node.
        """
        size_max = limits.LEDGER_RECORD_BYTES_MAX
        signed = open_signed(voucher, Voucher, network=self._network, size_max=size_max)
        return await self.book(signed)

    async def book(self, voucher: Signed[Voucher]) -> int:
        """Do as `collect`, with a voucher that was opened, or what a loop is worth as one."""
        await self._exchange.hear(voucher.record.customer)
        while (seq := await self._chain.commit(self._prepare, voucher)) is not None:
            refusal = await self.propose(seq)
            # One that rests on an earlier voucher makes room for this one.
            if refusal is not None and self._chain.own(seq).record.receipt == voucher.id:
                raise EntryRefused(f"the peer refused the entry: {refusal}")
            if self._settled(voucher.record) >= voucher.record.amount_micro:
                break
        return self._settled(voucher.record)

    def _settled(self, said: Voucher) -> int:
        return self._chain.state.settled_under(
            said.account, debtor=said.customer, creditor=self._own
        )

    def _prepare(self, voucher: Signed[Voucher]) -> int | None:
        """Return the entry of the account to propose; None if nothing is left."""
        said = voucher.record
        if said.customer == self._own:
            raise ArgumentInvalid("a node has no account with itself")
        if (busy := self._chain.state.open_under(said.customer, said.account)) is not None:
            return busy
        left_micro = said.amount_micro - self._settled(said)
        return self.begin(voucher, left_micro) if left_micro > 0 else None

    def begin(
        self,
        voucher: Signed[Voucher],
        amount_micro: int,
        *,
        kind: Literal["post", "seal"] = "post",
    ) -> int:
        """Extend the chain by an entry that rests on a voucher, in a step; return its number."""
        debtor, account = voucher.record.customer, voucher.record.account
        half = entry.Half(
            kind=kind,
            unit=entry.UNIT_CREDIT if kind == "post" else entry.UNIT_NONE,
            peer=debtor,
            debit=debtor,
            credit=self._own,
            amount_micro=amount_micro,
            account=account,
            receipt=voucher.id,
        )
        note = note_bytes(self.leases_of(debtor, account))
        limit_micro = self._limit_terms(debtor).limit_micro
        half = self._chain.extend(half, voucher, note=note, limit_micro=limit_micro)
        owed = self._chain.state.exposure(debtor)
        if is_near(owed, limit_micro) and not is_near(owed - half.moves_micro, limit_micro):
            self._log.warning(
                "ledger.near_limit",
                peer=ids.short(debtor),
                role="creditor",
                owed_micro=owed,
                limit_micro=limit_micro,
            )
        return half.seq

    async def propose(self, seq: int) -> str | None:
        """Have the peer answer an own entry; return its refusal, or None where it is settled."""
        if seq in self._chain.state.voided:
            return "it did so before, and the entry was withdrawn"
        if seq not in self._chain.state.open:
            return None
        row = self._chain.row(seq)
        half = self._chain.own(seq, row)
        header: dict[str, encoding.Value] = {"v": 1, "half": half.raw, "voucher": row.voucher}
        try:
            reply = await self._caller.call(half.record.peer, PROPOSE, header)
        except EntryRefused as fault:
            if half.record.kind == "seal" or half.record.clears:
                # What all members signed is not undone by one; the refusal need not be final.
                raise
            self._log.warning(
                "ledger.refused", peer=ids.short(half.record.peer), entry=seq, reason=fault.message
            )
            await self._chain.commit(self.void, seq)
            return fault.message if seq in self._chain.state.voided else None
        counter = entry.open_half(fields.take_bytes(reply.header, "counter"), network=self._network)
        refusal, is_new = await self._chain.commit(self._conclude, row, half, counter)
        if refusal is not None:
            await self._chain.keep_fork(counter)
            raise ReceiptInvalid(f"the peer keeps two ledgers: {refusal.sentence}")
        if is_new:
            self._say_paid(half.record)
        return None

    def void(self, seq: int) -> None:
        """Withdraw an own entry, in a step, unless an answer came in the meantime."""
        if seq in self._chain.state.open:
            self._chain.extend(entry.void_half(self._chain.own(seq).record))

    def _conclude(
        self, row: entry.EntryRow, half: Signed[entry.Half], counter: Signed[entry.Half]
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
        answered = row.model_copy(update={"other": counter.raw})
        self._chain.put([(key_of(ENTRY, seq), answered.to_bytes())])
        settle(state, half.record, counter)
        if half.record.clears:
            self._chain.keep_loop(open_loop(row.voucher or b"", network=self._network))
        return None, True

    async def on_propose(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        """Answer a creditor's half with this node's half."""
        half = entry.open_half(fields.take_bytes(header, "half"), network=self._network)
        raw = fields.take_bytes(header, "voucher")
        voucher = open_voucher(raw, half.record, network=self._network)
        await self._exchange.hear(caller)
        accepted = await self._chain.commit(self._accept, caller, half, voucher)
        if isinstance(accepted, validation.Refusal):
            if accepted.code == "fork":
                await self._chain.keep_fork(half)
            self._log.warning(
                "ledger.refusal",
                peer=ids.short(caller),
                code=accepted.code,
                reason=accepted.sentence,
            )
            kind = CreditExceeded if accepted.code == "amount_overflow" else EntryRefused
            raise kind(accepted.sentence)
        seq, new = accepted
        if new is not None:
            self._say_paid(new)
        return {"v": 1, "counter": self._chain.row(seq).half}, ()

    def _accept(
        self, caller: bytes, half: Signed[entry.Half], voucher: Signed[Voucher]
    ) -> validation.Refusal | tuple[int, entry.Half | None]:
        """Extend the chain by this node's half to a creditor's, unless it is known.

        Returns:
            Why it is refused; or the number of this node's half, and what it says if it is new.
        """
        state = self._chain.state
        refusal = (
            validation.check_proposal(state, half, caller, voucher)
            or validation.check_incarnation(self._chain.incarnation_of(caller), half)
            or self._check_now(half.record, voucher.record)
        )
        if refusal is not None:
            known = state.seen.get(caller, half.record.seq)
            return (known.seq, None) if known and refusal.code == "exists" else refusal
        account = half.record.account
        assert account is not None, "a post names an account"
        note = note_bytes(self.leases_of(caller, account))
        answer = self._chain.extend(entry.counter_half(half), voucher, initiator=half, note=note)
        if answer.clears:
            self.on_loop(voucher.id)
        return answer.seq, answer

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
            role="creditor" if own.credit == self._own else "debtor",
            off_books=own.purpose == "off_books",
            leases="; ".join(map(lease_text, self.noted(own.seq))),
            loop=own.purpose == "loop",
        )
        if own.debit == self._own:
            self.on_owed(own.peer)

    def _check_now(self, half: entry.Half, voucher: Voucher) -> validation.Refusal | None:
        check = self.checks.get(half.purpose)
        wrong = check(half, voucher) if check else None
        return None if wrong is None else validation.Refusal(f"{half.purpose}_wrong", wrong)

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
