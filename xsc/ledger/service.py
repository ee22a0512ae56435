"""Books debts together with peers, and keeps the book.

The creditor writes its half before it sends it, the debtor writes both halves
before it answers, the creditor writes the answer before it counts: each with
one synced write. Whatever is lost on the way is sent again, and the same half
gets the same answer, so that both books agree as soon as the two can talk.

The rules are in `validation`, the sums in `state`, the replay in `audit`.

Keys, all under "ledger/": `half/<seq>` own halves, `other/<seq>` the peer's half
beside it, `voucher/<seq>` what it rests on, `mark` the end of the chain,
`conflict/<peer><id>` evidence; `restart` the present incarnation, `claim/<seq>` when an
old half was taken after it had begun. Beside them `ledger-peer/<peer>` is the newest
incarnation of a peer, and `ledger-heard/<peer>` the own one in which it told its history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, Protocol, TypeAlias, TypeVar

from xsc.base.clock import Clock, Entropy, Executor
from xsc.base.encoding import Value
from xsc.base.errors import (
    ArgumentInvalid,
    CreditExceeded,
    EntryRefused,
    LedgerDamaged,
    LimitError,
    NotFound,
    PeerError,
    ReceiptInvalid,
    RecordInvalid,
    Recovering,
    XscError,
)
from xsc.base.fields import take_bool, take_bytes, take_int, take_list, take_opt_bytes
from xsc.base.ids import short
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.limits import (
    AMOUNT_MAX,
    INCARNATIONS_A_PEER_MAX,
    INCARNATIONS_MS,
    LEDGER_CONFLICTS_KEPT,
    LEDGER_HEAD_TIMEOUT_MS,
    LEDGER_HISTORY_ITEMS_MAX,
    LEDGER_RETRY_MS,
)
from xsc.base.log import Log
from xsc.base.merkle import Part
from xsc.base.peering import Caller, Handler, History
from xsc.base.tally import Tally
from xsc.identity.envelope import Signed, sign
from xsc.identity.keys import KeyPair
from xsc.ledger.audit import (
    Mark,
    Rows,
    claim_bytes,
    conflict_bytes,
    mark_bytes,
    open_voucher,
    replay,
    trusted,
)
from xsc.ledger.entry import (
    GENESIS,
    XID_BYTES,
    EntryKind,
    Half,
    SettledEntry,
    counter_half,
    limit_half,
    open_half,
    post_half,
    void_half,
)
from xsc.ledger.incarnation import (
    Incarnation,
    Noted,
    NotedAccount,
    Restart,
    open_incarnation,
    open_restart,
    restart_bytes,
    worth_noting,
)
from xsc.ledger.recovery import Old, check_shown, known_entries, merged, plan
from xsc.ledger.state import LedgerState, append, digest, next_claim, settle, take_old
from xsc.ledger.validation import (
    Code,
    Refusal,
    check_chain,
    check_counter,
    check_incarnation,
    check_own_next,
    check_proposal,
)
from xsc.terms.voucher import Voucher, off_books_lease

P = ParamSpec("P")
T = TypeVar("T")

_ROOT = b"ledger/"
HALF = _ROOT + b"half/"
_OTHER = _ROOT + b"other/"
_VOUCHER = _ROOT + b"voucher/"
_CONFLICT = _ROOT + b"conflict/"
_MARK = _ROOT + b"mark"
_RESTART = _ROOT + b"restart"
_CLAIM = _ROOT + b"claim/"
_PEER = b"ledger-peer/"
_HEARD = b"ledger-heard/"

PROPOSE = "ledger.propose"
HEAD = "ledger.head"
HISTORY = "ledger.history"

EntryState: TypeAlias = Literal["settled", "open", "void", "noted", "claim", "covered"]
"""`open` has no answer yet, `void` was withdrawn, `noted` needs no answer. `claim` is of an
incarnation before and was shown late; `covered` likewise, and counts nothing, because what
its debtor promised is booked already."""
Direction: TypeAlias = Literal["in", "out", "-"]


class Payee(Protocol):
    """Who knows what this node's operator says was paid to it off the books."""

    def check_consent(self, payer: bytes, voucher: Voucher) -> str | None:
        """Return why the operator does not agree now to what the voucher is over."""


@dataclass(frozen=True, slots=True)
class EntryRow:
    """One entry as this node's book shows it."""

    seq: int
    kind: EntryKind
    peer: bytes
    amount_micro: int
    direction: Direction
    """`in`: the peer comes to owe this node; `out`: this node comes to owe the peer."""
    lease_id: bytes | None
    created_ms: int
    entry_id: bytes
    """The same at both parties."""
    state: EntryState


@dataclass(frozen=True, slots=True)
class StatementRow:
    """How things stand with one peer."""

    peer: bytes
    balance_micro: int
    limit_micro: int
    credit_left_micro: int
    open_micro: int
    unproven_micro: int
    """What the directory noted beyond what halves show, since a recovery; the sign as in
    `balance_micro`."""
    entries: int
    """Settled ones."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` went through."""

    entries: int
    settled: int
    open: int
    peers: int
    conflicts: int
    head: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """How an incarnation began."""

    silent: tuple[bytes, ...]
    """Who did not answer."""
    unproven: dict[bytes, int]
    """Per peer, what was noted of its debt and nobody shows; below zero, of the own."""


def _key(prefix: bytes, seq: int) -> bytes:
    return prefix + seq.to_bytes(8, "big")


def _error(refusal: Refusal) -> XscError:
    """Return the error that tells the market why nothing was booked."""
    kinds: dict[Code, type[XscError]] = {
        "limit_exceeded": CreditExceeded,
        "voucher_wrong": ReceiptInvalid,
    }
    return kinds.get(refusal.code, ArgumentInvalid)(refusal.sentence)


class LedgerService:
    """The book of one node."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        entropy: Entropy,
        executor: Executor,
        caller: Caller,
        state: KeyValue,
        log: Log,
        starter_limit: int,
        shares_with: Callable[[bytes], Sequence[bytes]] = lambda peer: [peer],
        recovering: bool = False,
    ) -> None:
        """Read the book from the store.

        Args:
            key: whose book it is.
            network: the network of all its entries.
            clock: dates the entries.
            entropy: makes the xids of entries that concern no lease.
            executor: runs the synced writes.
            caller: reaches the peers.
            state: the store; other tables may live in it.
            log: hears of refusals and conflicts.
            starter_limit: micro-credits that a peer may owe until `set_limit` says
                otherwise.
            shares_with: whose debts count together with a peer's, itself among them.
            recovering: sign nothing until `restart`.

        Raises:
            LedgerDamaged: the stored chain breaks a rule.
        """
        self._key = key
        self._network = network
        self._clock = clock
        self._entropy = entropy
        self._executor = executor
        self._caller = caller
        self._store = state
        self._log = log
        self._starter_limit = starter_limit
        self._shares_with = shares_with
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()
        self._certain = True
        self._recovering = recovering
        self._told = Tally(INCARNATIONS_A_PEER_MAX, INCARNATIONS_MS)
        self._shown_to: dict[bytes, int] = {}
        """From which number on a peer is asked that did not come to the end of its claims."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a balance or a limit has changed."""
        self.payments: Payee | None = None
        """Without it, nothing that was paid off the books is answered."""
        self._restart: Restart | None = None
        self._ledger = self._load()

    # What the book says

    def balance(self, peer: bytes) -> int:
        """Return what the peer owes this node, less what this node owes it, in micro-credits."""
        return self._ledger.balances.get(peer, 0)

    def limit(self, peer: bytes) -> int:
        """Return the micro-credits that the peer may owe this node."""
        return self._ledger.limits.get(peer, self._starter_limit)

    def credit_left(self, peer: bytes) -> int:
        """Return the micro-credits that the peer may still come to owe.

        Entries that it has not answered count against it, and so does what those
        owe with whom it shares its credit. Negative after its limit was lowered
        below its debt.
        """
        others = (other for other in self._shares_with(peer) if other != peer)
        theirs = sum(max(0, self._ledger.exposure(other)) for other in others)
        return self.limit(peer) - self._ledger.exposure(peer) - theirs

    def shares_with(self, peer: bytes) -> Sequence[bytes]:
        """Return the peers whose debts count together with one's, itself among them."""
        return self._shares_with(peer)

    def settled(self, lease_id: bytes) -> int:
        """Return what both parties have signed for under a lease in all."""
        return sum(self._ledger.settled.get(lease_id, {}).values())

    def settled_between(self, lease_id: bytes, *, debtor: bytes, creditor: bytes) -> int:
        """Return what was settled under a lease in all that one party owes the other for."""
        return self._ledger.settled_under(lease_id, debtor=debtor, creditor=creditor)

    def pending(self) -> int:
        """Return how many own entries their debtors have not answered."""
        return len(self._ledger.open)

    def head(self) -> tuple[int, bytes]:
        """Return the length of the own chain and the id of its last half."""
        return self._ledger.next_seq, self._ledger.head

    def count(self) -> int:
        """Return how many halves the book has, those of incarnations before included."""
        return len(self._ledger.order)

    def settled_entries(self) -> int:
        """Return how many entries both parties have signed."""
        return sum(len(halves) for halves in self._ledger.seen.values())

    def incarnation(self) -> Incarnation | None:
        """Return what the chain was restarted with; None in the first incarnation."""
        return None if self._restart is None else self._restart.incarnation.record

    def noted(self) -> Noted:
        """Return how things stand with each peer, for the own directory.

        What is unproven is noted again: it is not forgotten with the next disk.
        """
        accounts = worth_noting(
            (
                NotedAccount(
                    row.peer,
                    max(-AMOUNT_MAX, min(AMOUNT_MAX, row.balance_micro + row.unproven_micro)),
                    self._ledger.limits.get(row.peer),
                )
                for row in self.statement()
            ),
            default_limit_micro=self._starter_limit,
        )
        return Noted(self._ledger.next_seq, accounts)

    def entries(self, *, limit: int = 50, peer: bytes | None = None) -> list[EntryRow]:
        """Return the last entries, newest first; those with one peer where it is given."""
        book = self._ledger
        seqs = book.order if peer is None else book.with_peer.get(peer, [])
        newest = reversed(seqs[max(0, len(seqs) - limit) :])
        return [self._row(self._own(seq)) for seq in newest]

    def statement(self) -> list[StatementRow]:
        """Return how things stand with every peer that the book knows, in order of id."""
        book = self._ledger
        peers = {*book.balances, *book.limits, *(item.debtor for item in book.open.values())}
        peers |= {*book.noted}
        return [
            StatementRow(
                peer=peer,
                balance_micro=self.balance(peer),
                limit_micro=self.limit(peer),
                credit_left_micro=self.credit_left(peer),
                open_micro=book.open_micro(peer),
                unproven_micro=book.unproven_micro(peer),
                entries=len(book.seen.get(peer, ())),
            )
            for peer in sorted(peers)
        ]

    def export(self, entry_id: bytes) -> bytes:
        """Return a settled entry with both halves, signed, for `xsc verify`.

        Raises:
            NotFound: no such entry, or it is not settled.
        """
        for known in self._ledger.entries.values():
            if known.entry_id != entry_id:
                continue
            other = self._store.get(_key(_OTHER, known.seq))
            if other is None:
                break
            own = self._own(known.seq)
            halves = (own.raw, other) if own.record.link is None else (other, own.raw)
            entry = SettledEntry(
                half=halves[0], counter=halves[1], voucher=self._read(_VOUCHER, known.seq)
            )
            return sign(entry, self._key, self._network).raw
        raise NotFound(
            f"no settled entry {short(entry_id)} in this ledger",
            hint="`xsc ledger log` shows the entries and their state",
        )

    async def verify(self) -> VerifyReport:
        """Read everything back from the store and check all of it.

        Signatures, hashes, links and limits are checked from the first half on,
        and the replay must come out equal to what this node works with.

        Raises:
            LedgerDamaged: names the first entry that breaks a rule.
        """
        return await self._exclusive(self._verify)

    async def _verify(self) -> VerifyReport:
        def work() -> VerifyReport:
            audit = replay(
                self._rows(), me=self._key.node_id, network=self._network, signatures=True
            )
            if digest(audit.state) != digest(self._ledger):
                raise LedgerDamaged(
                    "the ledger replays to other balances than this node works with",
                    hint="restart the node; if it happens again, restore the home from a backup",
                )
            book = audit.state
            peers = len({*book.balances, *book.limits})
            text = (
                f"{len(book.order)} entries with {peers} peers verified: {audit.settled} settled, "
                f"{len(book.open)} open; signatures, chain, counter-halves and replay agree"
            )
            return VerifyReport(
                entries=len(book.order),
                settled=audit.settled,
                open=len(book.open),
                peers=peers,
                conflicts=audit.conflicts,
                head=book.head,
                text=text,
            )

        return await self._executor.run(work)

    # What changes it

    async def set_limit(self, peer: bytes, amount_micro: int) -> None:
        """Allow the peer to owe that much from now on; what it owes already stays.

        Raises:
            ArgumentInvalid: the peer is this node, or the amount out of range.
        """
        if peer == self._key.node_id:
            raise ArgumentInvalid("a node has no account with itself")
        if not 0 <= amount_micro <= AMOUNT_MAX:
            raise ArgumentInvalid("a limit is from 0 to 2^63 - 1 micro-credits")
        await self._exclusive(self._set_limit, peer, amount_micro)

    async def _set_limit(self, peer: bytes, amount_micro: int) -> None:
        await self._extend(self._limit("limit", peer, amount_micro))
        self.on_change()

    async def collect(
        self, *, xid: bytes, debtor: bytes, amount_micro: int, lease_id: bytes, voucher: bytes
    ) -> int:
        """Book what a voucher leaves unsettled, and return what is settled of the lease in all.

        An entry under the same lease that is still open is finished first.

        Args:
            xid: 16 bytes; the same ones book the same entry, once.
            debtor: who signed the voucher.
            amount_micro: the voucher's amount less what is settled already.
            lease_id: the voucher's.
            voucher: the signed voucher.

        Raises:
            PeerSilent: the entry is written and will be proposed again by itself.
            EntryRefused: the debtor refused; the entry is withdrawn, its xid is spent.
            CreditExceeded: the limit would be passed; nothing is written.
            ReceiptInvalid: the voucher is another's, or the debtor's answer does not fit.
            ArgumentInvalid: another amount than is left, or the xid stands for another entry.
        """
        if len(xid) != XID_BYTES:
            raise ArgumentInvalid(f"an xid has {XID_BYTES} bytes, this has {len(xid)}")
        signed = open_voucher(voucher, network=self._network)
        await self._hear(debtor)
        while True:
            seq, mine = await self._exclusive(
                self._prepare, xid, debtor, amount_micro, lease_id, signed
            )
            refusal = await self._propose(seq)
            if mine and refusal is not None:
                raise EntryRefused(f"the peer refused the entry: {refusal}")
            if mine:
                return self._ledger.settled_under(
                    lease_id, debtor=debtor, creditor=self._key.node_id
                )

    async def _prepare(
        self,
        xid: bytes,
        debtor: bytes,
        amount_micro: int,
        lease_id: bytes,
        voucher: Signed[Voucher],
    ) -> tuple[int, bool]:
        """Return the entry to propose, and whether it is the one asked for."""
        book, me = self._ledger, self._key.node_id
        if debtor == me:
            raise ArgumentInvalid("a node has no account with itself")
        if not 0 < amount_micro <= AMOUNT_MAX:
            raise ArgumentInvalid("an amount is from 1 to 2^63 - 1 micro-credits")
        if (known := book.entries.get((me, xid))) is not None:
            written = self._own(known.seq).record
            wanted = ("post", debtor, amount_micro, lease_id, voucher.id)
            if wanted != (
                written.kind,
                written.peer,
                written.amount_micro,
                written.lease,
                written.receipt,
            ):
                raise ArgumentInvalid("this xid stands for another entry already")
            return known.seq, True
        if (busy := book.open_under(debtor, lease_id)) is not None:
            return busy, False
        if debtor not in book.limits:
            await self._extend(self._limit("open", debtor, self._starter_limit))
        post = post_half(
            creditor=me,
            debtor=debtor,
            seq=book.next_seq,
            prev=book.head,
            xid=xid,
            amount_micro=amount_micro,
            lease=lease_id,
            receipt=voucher.id,
            created_ms=self._clock.now_ms(),
        )
        await self._extend(sign(post, self._key, self._network), voucher)
        return post.seq, True

    async def _propose(self, seq: int) -> str | None:
        """Have the debtor answer an own entry; return its refusal, or None where it is settled."""
        if seq in self._ledger.voided:
            return "it did so before, and the entry was withdrawn"
        if seq not in self._ledger.open:
            return None
        half = self._own(seq)
        header: dict[str, Value] = {
            "v": 1,
            "half": half.raw,
            "voucher": self._read(_VOUCHER, seq),
        }
        try:
            reply = await self._caller.call(half.record.peer, PROPOSE, header)
        except EntryRefused as fault:
            self._log.warning(
                "ledger.refused", peer=short(half.record.peer), entry=seq, reason=fault.message
            )
            await self._exclusive(self._void, seq)
            return None if self._is_settled(seq) else fault.message
        counter = open_half(take_bytes(reply.header, "counter"), network=self._network)
        await self._exclusive(self._conclude, half, counter)
        return None

    def _is_settled(self, seq: int) -> bool:
        return seq not in self._ledger.open and seq not in self._ledger.voided

    async def _void(self, seq: int) -> None:
        """Withdraw an own entry, unless another answer came in the meantime."""
        book = self._ledger
        if seq not in book.open:
            return
        void = void_half(
            self._own(seq).record,
            seq=book.next_seq,
            prev=book.head,
            xid=self._entropy.token(XID_BYTES),
            created_ms=self._clock.now_ms(),
        )
        await self._extend(sign(void, self._key, self._network))

    async def _conclude(self, half: Signed[Half], counter: Signed[Half]) -> None:
        """Take the debtor's answer to the book, unless it is there already."""
        book, seq = self._ledger, half.record.seq
        if seq not in book.open:
            return
        if (refusal := check_counter(half, counter)) is not None:
            raise ReceiptInvalid(f"the peer's half does not fit: {refusal.sentence}")
        if (refusal := check_chain(book, counter)) is not None:
            await self._keep_fork(counter)
            raise ReceiptInvalid(f"the peer keeps two ledgers: {refusal.sentence}")
        await self._write([(_key(_OTHER, seq), counter.raw)])
        settle(book, half.record, counter)
        self.on_change()

    # What peers ask

    def handlers(self) -> dict[str, Handler]:
        """Return the methods that peers may call."""
        return {
            PROPOSE: self._answer_propose,
            HEAD: self._answer_head,
            HISTORY: self._answer_history,
        }

    async def _answer_propose(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        half = open_half(take_bytes(header, "half"), network=self._network)
        voucher = open_voucher(take_bytes(header, "voucher"), network=self._network)
        await self._hear(caller)
        counter = await self._exclusive(self._accept, caller, half, voucher)
        return {"v": 1, "counter": counter}, ()

    async def _accept(self, caller: bytes, half: Signed[Half], voucher: Signed[Voucher]) -> bytes:
        """Return this node's signed half to a creditor's, writing both unless it is known."""
        book = self._ledger
        told = self._incarnation_of(caller)
        refusal = (
            check_proposal(book, half, caller, voucher)
            or check_incarnation(told, half)
            or self._check_payment(caller, voucher.record)
        )
        if refusal is not None:
            if refusal.code == "exists":
                return self._read(HALF, book.entries[caller, half.record.xid].seq)
            if refusal.code == "conflict":
                await self._keep_conflict(half, told)
            if refusal.code == "fork":
                await self._keep_fork(half)
            self._log.warning(
                "ledger.refusal", peer=short(caller), code=refusal.code, reason=refusal.sentence
            )
            if refusal.code == "amount_overflow":
                raise CreditExceeded(refusal.sentence)
            raise EntryRefused(refusal.sentence)
        answer = counter_half(
            half, seq=book.next_seq, prev=book.head, created_ms=self._clock.now_ms()
        )
        own = sign(answer, self._key, self._network)
        await self._extend(own, voucher, initiator=half)
        self.on_change()
        return own.raw

    def _check_payment(self, payer: bytes, voucher: Voucher) -> Refusal | None:
        """Return why what was paid off the books is not booked at this moment."""
        if voucher.lease_id != off_books_lease(payer, self._key.node_id):
            return None
        if self.payments is None:
            return Refusal("payment_not_said", "nothing that was paid off the books is booked here")
        wrong = self.payments.check_consent(payer, voucher)
        return None if wrong is None else Refusal("payment_not_said", wrong)

    async def _answer_history(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Give the caller its own halves as they stand here, from a number on, a page of them."""
        start = take_int(header, "start")
        seen = self._ledger.seen.get(caller, {})
        later = [seq for seq in sorted(seen) if seq >= start]
        items: list[Value] = []
        for theirs in later[:LEDGER_HISTORY_ITEMS_MAX]:
            seq = seen[theirs].seq
            items.append(
                {
                    "seq": theirs,
                    "half": self._read(_OTHER, seq),
                    "other": self._read(HALF, seq),
                    "voucher": self._read(_VOUCHER, seq),
                }
            )
        return {
            "v": 1,
            "items": items,
            "more": len(items) < len(later),
            "incarnation": self._store.get(_PEER + caller),
        }, ()

    async def _answer_head(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Hear the caller's incarnation; tell what is known of its chain, and where this ends."""
        raw = take_opt_bytes(header, "incarnation")
        if raw is not None:
            incarnation = open_incarnation(raw, author=caller, network=self._network)
            await self._exclusive(self._keep_incarnation, incarnation)
        told = self._incarnation_of(caller)
        seen = self._ledger.seen.get(caller, {})
        yours = self._read(_OTHER, seen[max(seen)].seq) if seen else None
        first = 0 if told is None else told.record.first_seq
        return {
            "v": 1,
            "next_seq": self._ledger.next_seq,
            "head": self._ledger.head,
            "yours": yours,
            "old": sum(seq < first for seq in seen),
            "incarnation": None if told is None else told.raw,
        }, ()

    def _incarnation_of(self, peer: bytes) -> Signed[Incarnation] | None:
        raw = self._store.get(_PEER + peer)
        if raw is None:
            return None
        return open_incarnation(raw, author=peer, network=self._network)

    async def _keep_incarnation(self, told: Signed[Incarnation]) -> None:
        """Keep a peer's incarnation where its number is the highest yet."""
        known = self._incarnation_of(told.author)
        if known is not None and told.record.first_seq <= known.record.first_seq:
            return
        self._told.count(told.author, self._clock.monotonic_ms(), "incarnations")
        await self._write([(_PEER + told.author, told.raw)])
        self._log.warning(
            "ledger.restarted", peer=short(told.author), first_seq=told.record.first_seq
        )

    # Recovery

    async def restart(self, peers: Sequence[bytes], noted: Noted) -> Restarted:
        """Begin a new incarnation with all that the own book and peers show.

        Entries that both sides signed count on, those of the own book and of the peers'.
        Nobody is waited for: what a silent peer holds is taken when it is heard.

        Args:
            peers: whom to ask.
            noted: what the newest directory says of the ledger.
        """
        if self._ledger.next_seq > noted.next_seq:
            noted = self.noted()
        shown: dict[bytes, list[Old]] = {peer: [] for peer in peers}
        answers = await asyncio.gather(*(self._ask(peer, shown[peer]) for peer in peers))
        heard = {peer: raw for peer, raw in zip(peers, answers, strict=True) if raw is not None}
        entries = [item for peer in peers for item in shown[peer]]
        await self._exclusive(self._begin_anew, entries, heard, noted)
        self._recovering = False
        silent = tuple(peer for peer in peers if peer not in heard)
        unproven = {row.peer: row.unproven_micro for row in self.statement() if row.unproven_micro}
        return Restarted(silent, unproven)

    async def _ask(self, peer: bytes, shown: list[Old]) -> int | None:
        """Hear a peer's history; return the number of the newest own incarnation it knows."""
        try:
            return await self._history(peer, shown)
        except XscError as fault:
            self._log.warning("ledger.history_untold", peer=short(peer), code=fault.code)
            return None

    async def _begin_anew(
        self, shown: Sequence[Old], heard: dict[bytes, int], noted: Noted
    ) -> None:
        def work() -> list[Change]:
            rows = self._rows()
            entries = merged([*known_entries(rows, network=self._network), *shown])
            known = {seq + 1 for seq in rows.halves} | {self._ledger.next_seq}
            known |= {item.half.record.seq + 1 for item in entries} | {*heard.values()}
            record = plan(entries, noted, highest_seq=max(known), now_ms=self._clock.now_ms())
            signed = sign(record, self._key, self._network)
            changes: list[Change] = []
            for prefix in (HALF, _OTHER, _VOUCHER, _CLAIM, _HEARD):
                changes += [(prefix + key, None) for key, _ in self._table(prefix)]
            for item in entries:
                seq = item.half.record.seq
                changes += [
                    (_key(HALF, seq), item.half.raw),
                    (_key(_OTHER, seq), item.other.raw),
                    (_key(_VOUCHER, seq), item.voucher.raw),
                ]
            changes += [(_HEARD + peer, b"") for peer in heard]
            changes.append((_RESTART, restart_bytes(Restart(signed, noted))))
            changes.append((_MARK, mark_bytes(Mark(record.first_seq, signed.id, GENESIS))))
            return changes

        await self._write(await self._executor.run(work))
        self._ledger = await self._executor.run(self._load)

    async def _hear(self, peer: bytes) -> None:
        """Ask a peer once in an incarnation what it holds of the ones before.

        Until then nothing is booked with it: what was settled under a lease is not known.

        Raises:
            XscError: it does not tell.
        """
        if self._restart is not None and self._store.get(_HEARD + peer) is None:
            await self._claims_of(peer)

    async def _claims_of(self, peer: bytes) -> None:
        """Take the claims that a peer shows; one that comes to no end is asked on next time."""
        shown: list[Old] = []
        try:
            await self._history(peer, shown, start=self._shown_to.get(peer, 0))
        except XscError:
            if shown:
                self._shown_to[peer] = shown[-1].half.record.seq + 1
            await self._exclusive(self._take_claims, peer, shown, heard=False)
            raise
        self._shown_to.pop(peer, None)
        await self._exclusive(self._take_claims, peer, shown, heard=True)

    async def _take_claims(self, peer: bytes, shown: Sequence[Old], *, heard: bool) -> None:
        """Take what a peer shows of incarnations before and this book does not have."""
        book = self._ledger
        late = []
        for item in merged(shown):
            seq = item.half.record.seq
            if seq >= book.first_seq:
                continue  # `_confirm` judges those
            known = self._store.get(_key(HALF, seq))
            if known is None:
                late.append(item)
            elif known != item.half.raw:
                self._log.warning("ledger.claim_in_a_place_taken", peer=short(peer), entry=seq)
        changes: list[Change] = [(_HEARD + peer, b"")] if heard else []
        turns, ends = [], book.claims_head
        for number, item in enumerate(late, len(book.claims)):
            seq = item.half.record.seq
            turns.append(claim_bytes(book.next_seq, number))
            ends = next_claim(ends, turns[-1], item.half.id, item.other.id)
            changes += [
                (_key(HALF, seq), item.half.raw),
                (_key(_OTHER, seq), item.other.raw),
                (_key(_VOUCHER, seq), item.voucher.raw),
                (_key(_CLAIM, seq), turns[-1]),
            ]
        if late:
            changes.append((_MARK, mark_bytes(Mark(book.next_seq, book.head, ends))))
        if changes:
            await self._write(changes)
        for item, turn in zip(late, turns, strict=True):
            take_old(book, item.half, item.other, item.voucher.record, turn)
        if late:
            self._log.warning("ledger.claims", peer=short(peer), entries=len(late))
            self.on_change()

    async def _history(self, peer: bytes, shown: list[Old], *, start: int = 0) -> int:
        """Hear what a peer holds of the own chain, and the number of its newest incarnation.

        Args:
            peer: who is asked.
            shown: gets what holds, also where the peer falls silent later.
            start: from which number on.
        """
        history = History(self._caller, self._clock, peer, HISTORY)
        wrong, more, newest = 0, True, 0
        while more:
            reply = await history.page({"v": 1, "start": start})
            newest = max(newest, self._told_of_me(reply.header))
            items = take_list(reply.header, "items", most=LEDGER_HISTORY_ITEMS_MAX)
            for item in items:
                if not isinstance(item, dict):
                    raise RecordInvalid("an item of a history must be a map")
                seq = take_int(item, "seq")
                if seq < start:
                    raise RecordInvalid("a history goes backwards")
                start = seq + 1
                found = check_shown(item, peer=peer, me=self._key.node_id, network=self._network)
                if found is None or found.half.record.seq != seq:
                    self._log.warning("ledger.history_wrong", peer=short(peer), entry=seq)
                    wrong += 1
                else:
                    shown.append(found)
            if wrong > LEDGER_HISTORY_ITEMS_MAX:
                # What is right comes to an end, what is wrong need not.
                raise RecordInvalid("a history shows too much that does not hold")
            more = take_bool(reply.header, "more") and bool(items)
        return newest

    def _told_of_me(self, header: dict[str, Value]) -> int:
        """Return the number of the own incarnation that a peer shows; 0 where it shows none."""
        raw = take_opt_bytes(header, "incarnation")
        if raw is None:
            return 0
        shown = open_incarnation(raw, author=self._key.node_id, network=self._network)
        return shown.record.first_seq

    async def confirm_head(self, peers: Sequence[bytes], *, claims: bool = True) -> int:
        """Tell peers the own incarnation, and ask how far they have seen the own chain.

        A node whose home was restored from a copy must do so before it signs
        anything: going on from an old end would fork its chain. Returns how many answered.

        Args:
            peers: whom to ask.
            claims: whether to hear the old halves, too, that one says it holds beyond the
                book's. That takes as long as the peer likes, up to HISTORY_TIMEOUT_MS.

        Raises:
            LedgerDamaged: a peer holds what this node signed and is not in its book.
        """
        answers = await asyncio.gather(*(self._confirm_at(peer, claims) for peer in peers))
        return sum(answers)

    async def _confirm_at(self, peer: bytes, claims: bool) -> bool:
        """Ask one peer; what else goes wrong with it says nothing of this ledger."""
        own = None if self._restart is None else self._restart.incarnation.raw
        try:
            reply = await self._caller.call(
                peer, HEAD, {"v": 1, "incarnation": own}, timeout_ms=LEDGER_HEAD_TIMEOUT_MS
            )
            take_int(reply.header, "next_seq")
            self._confirm_incarnation(peer, reply.header)
            if reply.header.get("yours") is not None:
                self._confirm(peer, take_bytes(reply.header, "yours"))
            old = take_int(reply.header, "old")
            # Before the first restart there is no incarnation that old halves could be of.
            if claims and self._restart is not None and old > self._old_with(peer):
                await self._claims_of(peer)
        except LedgerDamaged:
            raise
        except XscError as fault:
            self._log.info("head_not_confirmed", peer=short(peer), code=fault.code)
            return False
        return True

    def _old_with(self, peer: bytes) -> int:
        """Return how many old halves with a peer are in the book."""
        book = self._ledger
        return sum(seq < book.first_seq for seq in book.with_peer.get(peer, ()))

    def _confirm_incarnation(self, peer: bytes, header: dict[str, Value]) -> None:
        first = self._told_of_me(header)
        known = self._restart
        if first > self._ledger.first_seq or (
            known is not None
            and first == self._ledger.first_seq
            and header.get("incarnation") != known.incarnation.raw
        ):
            raise LedgerDamaged(
                f"{short(peer)} holds an incarnation of this node that its own ledger lacks: "
                "this home is an old copy",
                hint="use the home that was recovered last, or recover it: xsc node recover",
            )

    def _confirm(self, peer: bytes, raw: bytes) -> None:
        mine = open_half(raw, network=self._network)
        if mine.author != self._key.node_id:
            raise ReceiptInvalid(f"{short(peer)} shows an entry of another node as this node's")
        seq = mine.record.seq
        if seq < self._ledger.first_seq:
            return  # a claim, at most
        if seq >= self._ledger.next_seq or self._own(seq).id != mine.id:
            raise LedgerDamaged(
                f"{short(peer)} holds entry {seq} of this node, which its own "
                "ledger lacks: this home is an old copy",
                hint="restore the latest home; going on from an old one would fork the ledger",
            )

    # What runs by itself

    async def retry_pending(self) -> int:
        """Propose every open entry again; return how many were settled.

        Peers are asked side by side; at the first error with a peer, its
        others wait for the next time.
        """
        by_peer: dict[bytes, list[int]] = {}
        for seq, item in sorted(self._ledger.open.items()):
            by_peer.setdefault(item.debtor, []).append(seq)
        counts = await asyncio.gather(*(self._retry(seqs) for seqs in by_peer.values()))
        return sum(counts)

    async def _retry(self, seqs: list[int]) -> int:
        count = 0
        for seq in seqs:
            try:
                refusal = await self._propose(seq)
            except XscError as fault:
                self._log.warning("ledger.unanswered", entry=seq, code=fault.code)
                break
            count += refusal is None
        return count

    async def run(self) -> None:
        """Propose open entries again, now and every LEDGER_RETRY_MS; never returns."""
        while True:
            await self.retry_pending()
            await self._clock.sleep_ms(LEDGER_RETRY_MS)

    async def close(self) -> None:
        """Wait until nothing is being written."""
        while self._running:
            await asyncio.wait(self._running)

    # The chain and the store

    async def _exclusive(
        self, step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a step alone, and to its end even where the caller is cancelled.

        A write that was begun would otherwise reach the disk without reaching
        the state, and the next half would fork the chain.
        """
        task = asyncio.ensure_future(self._alone(step, *args, **kwargs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _alone(self, step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._lock:
            if not self._certain:
                self._ledger = await self._executor.run(self._load)
                self._certain = True
            return await step(*args, **kwargs)

    async def _write(self, changes: list[Change]) -> None:
        """Write and sync; after a failure nobody knows what is on the disk, so it is read again."""
        self._certain = False
        await self._executor.run(self._store.write, changes, sync=True)
        self._certain = True

    async def _extend(
        self,
        own: Signed[Half],
        voucher: Signed[Voucher] | None = None,
        *,
        initiator: Signed[Half] | None = None,
    ) -> None:
        """Append an own half, with what stands beside it, in one synced write.

        Raises:
            CreditExceeded, ReceiptInvalid, ArgumentInvalid: a rule is broken; nothing
                is written.
        """
        if self._recovering:
            raise Recovering("this node is recovering its ledger and signs nothing yet")
        refusal = check_own_next(self._ledger, own, voucher=voucher, initiator=initiator)
        if refusal is not None:
            raise _error(refusal)
        seq = own.record.seq
        mark = Mark(seq + 1, own.id, self._ledger.claims_head)
        changes: list[Change] = [(_key(HALF, seq), own.raw), (_MARK, mark_bytes(mark))]
        if voucher is not None:
            changes.append((_key(_VOUCHER, seq), voucher.raw))
        if initiator is not None:
            changes.append((_key(_OTHER, seq), initiator.raw))
        await self._write(changes)
        append(self._ledger, own, initiator)

    async def _keep_fork(self, half: Signed[Half]) -> None:
        """Keep a half together with one of the same author that contradicts it."""
        seen = self._ledger.seen.get(half.author, {})
        for seq in (half.record.seq, half.record.seq - 1, half.record.seq + 1):
            if seq in seen:
                await self._keep(self._read(_OTHER, seen[seq].seq), half)
                return

    async def _keep_conflict(self, half: Signed[Half], told: Signed[Incarnation] | None) -> None:
        """Keep a half whose xid stands for another, where both are of one incarnation."""
        known = self._read(_OTHER, self._ledger.entries[half.author, half.record.xid].seq)
        first = 0 if told is None else told.record.first_seq
        kept = open_half(known, network=self._network)
        if (kept.record.seq < first) == (half.record.seq < first):
            await self._keep(known, half)

    async def _keep(self, kept: bytes, other: Signed[Half]) -> None:
        """Keep evidence against a peer, up to LEDGER_CONFLICTS_KEPT of each."""
        prefix = _CONFLICT + other.author
        held = sum(1 for _ in self._store.scan(prefix, prefix_end(prefix)))
        if held < LEDGER_CONFLICTS_KEPT:
            await self._write([(prefix + other.id, conflict_bytes(kept, other.raw))])
        self._log.error("ledger.conflict", peer=short(other.author), entry=other.record.seq)

    def _limit(
        self,
        kind: Literal["open", "limit"],
        peer: bytes,
        amount_micro: int,
    ) -> Signed[Half]:
        half = limit_half(
            kind,
            author=self._key.node_id,
            peer=peer,
            seq=self._ledger.next_seq,
            prev=self._ledger.head,
            xid=self._entropy.token(XID_BYTES),
            amount_micro=amount_micro,
            created_ms=self._clock.now_ms(),
        )
        return sign(half, self._key, self._network)

    def _row(self, own: Signed[Half]) -> EntryRow:
        half, book = own.record, self._ledger
        state: EntryState = "noted"
        direction: Direction = "-"
        if half.kind == "post":
            direction = "in" if half.credit == self._key.node_id else "out"
            state = "settled"
            if half.seq in book.open:
                state = "open"
            elif half.seq in book.voided:
                state = "void"
            elif half.seq in book.covered:
                state = "covered"
            elif half.seq in book.claims:
                state = "claim"
        return EntryRow(
            seq=half.seq,
            kind=half.kind,
            peer=half.peer,
            amount_micro=half.amount_micro,
            direction=direction,
            lease_id=half.lease,
            created_ms=half.created_ms,
            entry_id=half.link or own.id,
            state=state,
        )

    def _read(self, prefix: bytes, seq: int) -> bytes:
        raw = self._store.get(_key(prefix, seq))
        if raw is None:
            raise LedgerDamaged(
                f"a part of entry {seq} of the ledger is missing",
                hint="restore the home from a backup",
            )
        return raw

    def _own(self, seq: int) -> Signed[Half]:
        raw = self._read(HALF, seq)
        try:
            return trusted(raw, Half, self._network)
        except (PeerError, LimitError) as fault:
            raise LedgerDamaged(f"entry {seq} of the ledger is damaged: {fault.message}") from None

    def _table(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, raw in self._store.scan(prefix, prefix_end(prefix)):
            yield key[len(prefix) :], raw

    def _rows(self) -> Rows:
        def numbered(prefix: bytes) -> dict[int, bytes]:
            return {int.from_bytes(key, "big"): raw for key, raw in self._table(prefix)}

        return Rows(
            mark=self._store.get(_MARK),
            halves=numbered(HALF),
            others=numbered(_OTHER),
            vouchers=numbered(_VOUCHER),
            conflicts=dict(self._table(_CONFLICT)),
            restart=self._store.get(_RESTART),
            claims=numbered(_CLAIM),
        )

    def _load(self) -> LedgerState:
        rows = self._rows()
        state = replay(rows, me=self._key.node_id, network=self._network, signatures=False).state
        if rows.restart is not None:
            self._restart = open_restart(
                rows.restart, author=self._key.node_id, network=self._network
            )
        return state
