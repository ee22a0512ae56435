"""The ledger of one node: what it says, and the parts that change it.

`chain` keeps it, `proposals` books debts together with peers, `loops` takes them off where they
go around, `payments` where they are paid in money, `seals` compares it with peers, `exchange`
recovers it from them. The sums are in
`state`, the replay in `audit`, what people see in `statement`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from xsc.api.ledger import Entry, Paid, Statement, Verified
from xsc.base import errors, ids, limits, peering
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.ledger import chain, exchange, incarnation
from xsc.ledger.entry import SettledEntry
from xsc.ledger.limits import REPAID_MS, LimitSettings, LimitTerms, Trust, limit_terms, repaid
from xsc.ledger.loops import Loops
from xsc.ledger.payments import Payments
from xsc.ledger.proposals import PROPOSE, Proposals
from xsc.ledger.seals import Seals
from xsc.ledger.statement import credit_left, entry_row, head_of, note_accounts, paid_row
from xsc.ledger.verifying import Checking, verify


class LedgerService:
    """The ledger of one node.

    Args:
        context: whose ledger it is.
        credit: what peers may owe until `set_limit` says otherwise.
        trust: returns what the rest of the node says of a peer.
        shares_with: returns the peers whose debts count together with a peer's, itself
            among them.
        recovering: sign nothing until `restart`.
        checking: of many signatures; in threads of the executor where None.

    Raises:
        LedgerDamaged: the stored chain breaks a rule.
    """

    def __init__(
        self,
        context: Context,
        *,
        credit: LimitSettings,
        trust: Callable[[bytes], Trust] = lambda _: Trust(),
        shares_with: Callable[[bytes], Sequence[bytes]] = lambda peer: [peer],
        recovering: bool = False,
        checking: Checking | None = None,
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._executor = context.executor
        self._credit = credit
        self._trust = trust
        self.shares_with = shares_with
        self._verifying = asyncio.Lock()
        self._checking = checking
        self.chain = chain.Chain(context, context.state, recovering=recovering)
        self.exchange = exchange.HistoryExchange(context, self.chain)
        self.proposals = Proposals(context, self.chain, self.exchange, limit_terms=self.limit_terms)
        self.loops = Loops(context, self.chain, self.exchange, self.proposals)
        self.seals = Seals(context, self.chain, self.exchange, self.proposals)
        self.payments = Payments(context, self.chain, self.proposals, limit=self.limit)
        self.set_limit = self.proposals.set_limit
        self.collect = self.proposals.collect
        self.retry_pending = self.proposals.retry_pending
        self.restart = self.exchange.restart
        self.confirm_head = self.exchange.confirm_head

    def balance(self, peer: bytes) -> int:
        """Return what the peer owes this node, less what this node owes it, in micro-credits."""
        return self.chain.state.balances.get(peer, 0)

    def limit(self, peer: bytes) -> int:
        """Return the micro-credits that the peer may owe this node."""
        return self.limit_terms(peer).limit_micro

    def limit_terms(self, peer: bytes) -> LimitTerms:
        """Return that limit and what it is made of."""
        set_micro = self.chain.state.limits.get(peer)
        return limit_terms(self._credit, self._trust(peer), self._repaid_micro(peer), set_micro)

    def _repaid_micro(self, peer: bytes) -> int:
        flow = self.chain.state.flows.of(peer, self._clock.now_ms() - REPAID_MS)
        # What a peer does not show since a recovery of this node may have been paid to it.
        unproven = max(0, self.chain.state.unproven_micro(peer))
        return max(0, repaid(self.balance(peer), flow) - unproven)

    def credit_left(self, peer: bytes) -> int:
        """Return the micro-credits that the peer may still come to owe; can be negative."""
        return credit_left(self.chain.state, peer, self.limit(peer), self.shares_with(peer))

    def settled(self, account: bytes) -> int:
        """Return what both parties have signed for in an account in all."""
        return sum(self.chain.state.settled.get(account, {}).values())

    def head(self) -> tuple[int, bytes]:
        """Return the length of the own chain and the id of its last half."""
        return self.chain.state.next_seq, self.chain.state.head

    def count(self) -> int:
        """Return how many halves the ledger has, those of earlier incarnations included."""
        return self.chain.state.halves

    def settled_entries(self) -> int:
        """Return how many entries both parties have signed, seals left out."""
        return sum(self.chain.state.dealt.values())

    def noted(self) -> incarnation.Noted:
        """Return the account with each peer, for the own directory."""
        return note_accounts(self.chain.state)

    def entries(
        self, *, limit: int = 50, before: int | None = None, peer: bytes | None = None
    ) -> list[Entry]:
        """Return the last entries, newest first; those with one peer where it is given.

        They are listed by number, those with one peer by date.

        Args:
            limit: how many at most.
            before: the number of an entry: those that come after it here.
            peer: with whom.

        Raises:
            ArgumentInvalid: there is no entry of that number among these.
        """
        state, last = self.chain.state, None
        if before is not None:
            if self.chain.find(before) is not None:
                last = self.chain.own(before).record
            if last is None or peer not in (None, last.peer):
                raise errors.ArgumentInvalid(
                    f"there is no entry {before} in this ledger", hint="`xsc ledger log`"
                )
        newest = self.chain.newest(before) if peer is None else state.flows.newest(peer, last)
        return [entry_row(state, self.chain.own(seq)) for seq in islice(newest, limit)]

    def booked(
        self, from_ms: int, until_ms: int, name_of: Callable[[bytes], str]
    ) -> tuple[Statement, Iterator[Paid]]:
        """Return all that counts and was booked within a time: balances, and payments one by one.

        Both are of the moment of the call. The payments read the store.
        """
        state = self.chain.state
        seqs = state.flows.numbers(from_ms, until_ms)
        rows = (paid_row(self.chain.own(seq), self.proposals.noted(seq), name_of) for seq in seqs)
        return head_of(state, from_ms, until_ms, name_of), rows

    def export(self, entry_id: bytes) -> bytes:
        """Return a settled entry with both halves, signed, for `xsc verify`.

        Raises:
            NotFound: no such entry, or it is not settled.
        """
        seq = self.chain.state.number_of(entry_id)
        row = None if seq is None else self.chain.row(seq)
        if seq is not None and row is not None and row.other and row.voucher is not None:
            is_first = self.chain.own(seq).record.link is None
            half, counter = (row.half, row.other) if is_first else (row.other, row.half)
            entry = SettledEntry(half=half, counter=counter, voucher=row.voucher)
            return sign(entry, self._key, self._network).raw
        raise errors.NotFound(
            f"no settled entry {ids.short(entry_id)} in this ledger",
            hint="`xsc ledger log` shows the entries and their state",
        )

    async def verify(self) -> Verified:
        """Read everything back from the store and check all of it.

        Signatures, hashes, links and limits are checked from the first half on, and the replay
        must come out equal to the snapshot, the index and what this node works with. Bookings go
        on meanwhile.

        Raises:
            LedgerDamaged: names the first entry that breaks a rule.
        """
        async with self._verifying:
            return await verify(self.chain, self._executor, self._checking)

    def handlers(self) -> dict[str, peering.Handler]:
        """Return the methods that peers may call."""
        return {
            PROPOSE: self.proposals.on_propose,
            exchange.HEAD: self.exchange.on_head,
            exchange.HISTORY: self.exchange.on_history,
            **self.loops.handlers(),
            **self.seals.handlers(),
            **self.payments.handlers(),
        }

    async def run(self) -> None:
        """Propose open entries again, now and every LEDGER_RETRY_MS; never returns."""
        while True:
            await self.retry_pending()
            await self._clock.sleep_ms(limits.LEDGER_RETRY_MS)

    async def close(self) -> None:
        """Wait until nothing is being written."""
        await self.chain.close()
