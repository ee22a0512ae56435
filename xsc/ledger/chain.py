"""The chain of the own halves: kept in the store, and in memory as the state that they give.

Every change is one synced write. It is made while no other is under way, and after a
failed write the state is read again from the store.

Keys, all under "ledger/": `half/<seq>` own halves, `other/<seq>` the peer's half
beside it, `voucher/<seq>` what it rests on, `mark` the end of the chain,
`conflict/<peer><id>` evidence; `restart` the present incarnation, `claim/<seq>` when an
old half was taken after it had begun; `snapshot` the state at a half, and `index/` what is looked
up of all entries before that half (`xsc.ledger.index`). Beside them `ledger-peer/<peer>` is the
newest incarnation of a peer, `ledger-heard/<peer>` the own one in which it told its history, and
`ledger-for/<seq>` the leases that an entry is for, which only people read; `ledger-loop/<id>` is a
loop that this node has signed, until both its edges are booked.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Final, ParamSpec, TypeVar

from xsc.base import encoding, errors, ids
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, read_claimed, sign
from xsc.ledger import audit, recovery, validation
from xsc.ledger.audit import Replay
from xsc.ledger.entry import Half, open_half
from xsc.ledger.incarnation import (
    Incarnation,
    Restart,
    carried_hash,
    open_incarnation,
    open_restart,
)
from xsc.ledger.index import INDEX, Index
from xsc.ledger.loop import SignedLoop, open_loop
from xsc.ledger.snapshot import SNAPSHOT_BYTES_MAX, Snapshot, restored, snapshot_of
from xsc.ledger.state import LedgerState, append, begin
from xsc.terms.voucher import Voucher

LEDGER_CONFLICTS_KEPT = 16
"""Kept as evidence for each peer; one proves the point, more only fill the disk."""

P = ParamSpec("P")
T = TypeVar("T")

_ROOT: Final = b"ledger/"
HALF: Final = _ROOT + b"half/"
OTHER: Final = _ROOT + b"other/"
VOUCHER: Final = _ROOT + b"voucher/"
CONFLICT: Final = _ROOT + b"conflict/"
MARK: Final = _ROOT + b"mark"
SNAPSHOT: Final = _ROOT + b"snapshot"
RESTART: Final = _ROOT + b"restart"
CLAIM: Final = _ROOT + b"claim/"
FOR: Final = b"ledger-for/"
PEER: Final = b"ledger-peer/"
HEARD: Final = b"ledger-heard/"
LOOP: Final = b"ledger-loop/"

SLICE: Final = 64
"""Entries that are read in one go."""
STEP: Final = 8
"""Entries that are replayed in one go: so long, nothing else runs, a millisecond or two."""
PAGE: Final = 2**14
"""Rows of the index that are written in one go where all of it is made anew."""
END: Final = 2**64 - 1
"""Above every number."""


def key_of(prefix: bytes, seq: int) -> bytes:
    """Return the key of a numbered row."""
    return prefix + seq.to_bytes(8, "big")


def rows_of(item: recovery.Old) -> list[Change]:
    """Return the rows of a settled entry."""
    seq = item.half.record.seq
    return [
        (key_of(HALF, seq), item.half.raw),
        (key_of(OTHER, seq), item.other.raw),
        (key_of(VOUCHER, seq), item.voucher.raw),
    ]


def _error(refusal: validation.Refusal) -> errors.XscError:
    """Return the error that tells the market why nothing was booked."""
    kinds: dict[validation.RefusalCode, type[errors.XscError]] = {
        "limit_exceeded": errors.CreditExceeded,
        "voucher_wrong": errors.ReceiptInvalid,
    }
    return kinds.get(refusal.code, errors.ArgumentInvalid)(refusal.sentence)


class Rows:
    """What the store has of the chain of one node, in slices."""

    def __init__(self, store: KeyValue, me: bytes, network: bytes) -> None:
        self._store = store
        self._me = me
        self._network = network

    def table(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows under a prefix, their keys without it."""
        for key, raw in self._store.scan(prefix, prefix_end(prefix)):
            yield key[len(prefix) :], raw

    def _numbered(self, prefix: bytes, first: int, stop: int) -> Iterator[tuple[int, bytes]]:
        for key, raw in self._store.scan(key_of(prefix, first), key_of(prefix, stop)):
            yield int.from_bytes(key[len(prefix) :], "big"), raw

    def stored(self, first: int = 0, stop: int = END) -> Iterator[audit.Stored]:
        """Yield what there is under the numbers from one on and before another."""
        while first < stop:
            page = [*islice(self._numbered(HALF, first, stop), SLICE)]
            end = page[-1][0] + 1 if len(page) == SLICE else stop
            halves = dict(page)
            others, vouchers = (dict(self._numbered(at, first, end)) for at in (OTHER, VOUCHER))
            for seq in sorted(halves | others | vouchers):
                yield audit.Stored(seq, halves.get(seq), others.get(seq), vouchers.get(seq))
            first = end

    def newest(self, before: int | None) -> Iterator[int]:
        """Yield the numbers of own halves, the highest first; those below one."""
        stop = key_of(HALF, END if before is None else before)
        for key, _ in self._store.scan(HALF, stop, reverse=True):
            yield int.from_bytes(key[-8:], "big")

    def _one(self, seq: int) -> audit.Stored:
        get = self._store.get
        return audit.Stored(seq, *(get(key_of(each, seq)) for each in (HALF, OTHER, VOUCHER)))

    def claims(self) -> dict[int, bytes]:
        """Return the turn of each claim by its number."""
        return {int.from_bytes(key, "big"): raw for key, raw in self.table(CLAIM)}

    def restart(self) -> Restart | None:
        """Return what the present incarnation began with; None in the first one.

        Raises:
            LedgerDamaged: the row is damaged.
        """
        raw = self._store.get(RESTART)
        if raw is None:
            return None
        try:
            return open_restart(raw, author=self._me, network=self._network)
        except (errors.PeerError, errors.LimitError) as fault:
            raise errors.LedgerDamaged(
                f"the restart of the ledger is damaged: {fault.message}"
            ) from None

    def begin(self, replay: Replay) -> Iterator[bool]:
        """Begin the present incarnation with all that it took along; yield now and then.

        Raises:
            LedgerDamaged: it is not all there.
        """
        restart = self.restart()
        if restart is None:
            return
        begin(replay.state, restart)
        claims, carried = self.claims(), []
        for row in self.stored(0, replay.state.first_seq):
            if row.seq not in claims:
                carried.append(replay.carry(row))
                if len(carried) % STEP == 0:
                    yield True
        if carried_hash(restart.noted, carried) != restart.incarnation.record.carried:
            raise errors.LedgerDamaged(
                "the ledger does not hold what its incarnation took along",
                hint="restore the home from a backup, or recover it: xsc node recover",
            )

    def walk(self, replay: Replay, stop: int = END, claims: int = END) -> Iterator[bool]:
        """Take what follows, up to a number and so many claims; yield now and then.

        Raises:
            LedgerDamaged: names the first entry that breaks a rule.
        """
        state = replay.state
        for seq in sorted(state.open):
            if seq not in replay.held:
                replay.answer(self._one(seq))
        turns = sorted(((turn, seq) for seq, turn in self.claims().items()), reverse=True)
        turns = turns[max(0, len(turns) - claims) : len(turns) - len(state.claims)]

        def take_claims(before_seq: int) -> None:
            while turns and int.from_bytes(turns[-1][0][:8], "big") <= before_seq:
                turn, seq = turns.pop()
                replay.carry(self._one(seq), turn)

        stray = None
        for row in self.stored(state.next_seq, stop):
            if row.half is None:
                stray = row.seq if stray is None else stray
                continue
            take_claims(row.seq)
            replay.take(row)
            if row.seq % STEP == 0:
                yield True
        take_claims(state.next_seq)
        if stray is not None:
            raise audit.stray(stray)
        yield True


class Chain:
    """The chain of one node.

    Args:
        context: whose chain it is.
        store: other tables may be in it.
        recovering: sign nothing until a restart.

    Raises:
        LedgerDamaged: the stored chain breaks a rule.
    """

    def __init__(self, context: Context, store: KeyValue, *, recovering: bool) -> None:
        self._key = context.key
        self.me = context.key.node_id
        self.network = context.network
        self._executor = context.executor
        self._log = context.log
        self.store = store
        self.rows = Rows(store, self.me, self.network)
        self.table = self.rows.table
        self.on_change: Callable[[], None] = lambda: None
        """Called when a balance or a limit has changed."""
        self.recovering = recovering
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()
        self._certain = True
        self.is_read = False
        """Whether somebody verifies the ledger: so long, no snapshot is written."""
        self.restart: Restart | None = None
        """What the present incarnation began with; None in the first one."""
        self.state = self.load()
        self._forks: dict[bytes, set[bytes]] = {}
        """By peer, halves that prove, with a kept one, that it keeps two ledgers."""
        for key, raw in self.table(CONFLICT):
            if audit.is_fork(raw, self.network):
                self._forks.setdefault(key[: ids.ID_BYTES], set()).add(key[ids.ID_BYTES :])

    def read(self, prefix: bytes, seq: int) -> bytes:
        """Return a numbered row.

        Raises:
            LedgerDamaged: it is missing.
        """
        raw = self.store.get(key_of(prefix, seq))
        if raw is None:
            raise errors.LedgerDamaged(
                f"a part of entry {seq} of the ledger is missing",
                hint="restore the home from a backup",
            )
        return raw

    def own(self, seq: int) -> Signed[Half]:
        """Return an own half.

        Raises:
            LedgerDamaged: it is missing or damaged.
        """
        raw = self.read(HALF, seq)
        try:
            return read_claimed(raw, Half, network=self.network)
        except (errors.PeerError, errors.LimitError) as fault:
            raise errors.LedgerDamaged(
                f"entry {seq} of the ledger is damaged: {fault.message}"
            ) from None

    def incarnation_of(self, peer: bytes) -> Signed[Incarnation] | None:
        """Return the newest incarnation of a peer that this node was told of."""
        raw = self.store.get(PEER + peer)
        if raw is None:
            return None
        return open_incarnation(raw, author=peer, network=self.network)

    def load(self) -> LedgerState:
        """Return the state that the stored rows give, and take over the restart among them.

        Raises:
            LedgerDamaged: the stored chain breaks a rule.
        """
        self.restart = self.rows.restart()
        raw = self.store.get(SNAPSHOT)
        try:
            state = self._replayed(raw)
        except errors.LedgerDamaged as fault:
            if raw is None:
                raise
            # All that it says follows from the halves: nothing is lost without it.
            self._log.warning("ledger.snapshot_wrong", reason=fault.message)
            self.store.write([(SNAPSHOT, None)], sync=False)
            state = self._replayed(None)
        for key, raw in self.table(CONFLICT):
            audit.check_conflict(key, raw, self.network, signatures=False)
        try:
            for key, raw in self.table(LOOP):
                state.loops[key] = open_loop(raw, network=self.network)
        except (errors.PeerError, errors.LimitError) as fault:
            raise errors.LedgerDamaged(
                f"the loop {ids.short(key)} is damaged: {fault.message}",
                hint="restore the home from a backup",
            ) from None
        return state

    def _replayed(self, snapshot: bytes | None) -> LedgerState:
        """Return what a snapshot and the halves after it give; without one, all halves."""
        if snapshot is not None:
            state = restored(self.open_snapshot(snapshot), me=self.me, index=Index(self.store))
            replay = Replay(state, self.network)
            deque(self.rows.walk(replay), 0)
        else:
            while page := [INDEX + key for key, _ in islice(self.table(INDEX), PAGE)]:
                self.store.write([(key, None) for key in page], sync=False)
            state = LedgerState(self.me, index=Index(self.store))
            replay = Replay(state, self.network)
            for _ in itertools.chain(self.rows.begin(replay), self.rows.walk(replay)):
                replay.unverified.clear()
                if len(state.index.changes) >= PAGE:
                    self.store.write(state.index.rows(), sync=False)
                    state.index.changes = {}
        audit.check_end(state, self.store.get(MARK))
        return state

    def open_snapshot(self, raw: bytes) -> Snapshot:
        """Return a snapshot of this node.

        Raises:
            LedgerDamaged: it is none.
        """
        try:
            found = open_signed(
                raw,
                Snapshot,
                network=self.network,
                author=self.me,
                size_max=SNAPSHOT_BYTES_MAX,
            )
        except (errors.PeerError, errors.LimitError):
            raise audit.index_damaged() from None
        return found.record

    async def snapshot(self) -> None:
        """Write the state as it is now: the next start reads it, and the halves after it."""
        await self.exclusive(self._snapshot)

    async def _snapshot(self) -> None:
        index = self.state.index
        # Who verifies the ledger reads the rows of the snapshot before.
        if index.changes and not self.is_read:
            signed = sign(snapshot_of(self.state), self._key, self.network)
            await self.write([(SNAPSHOT, signed.raw), *index.rows()])
            index.changes = {}

    async def exclusive(
        self, step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a step while no other runs, and to its end even if the caller is cancelled.

        A write that was begun would otherwise reach the disk and not the state, and
        the next half would fork the chain.
        """
        task = asyncio.ensure_future(self._alone(step, *args, **kwargs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _alone(self, step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._lock:
            if not self._certain:
                self.state = await self._executor.run(self.load)
                self._certain = True
            return await step(*args, **kwargs)

    async def close(self) -> None:
        """Wait until nothing is being written."""
        while self._running:
            await asyncio.wait(self._running)

    async def write(self, changes: list[Change]) -> None:
        """Write and sync. After a failure the state is unknown and is read again."""
        self._certain = False
        await self._executor.run(self.store.write, changes, sync=True)
        self._certain = True

    async def extend(
        self,
        own: Signed[Half],
        voucher: Signed[Voucher] | None = None,
        *,
        initiator: Signed[Half] | None = None,
        note: bytes | None = None,
        limit_micro: int | None = None,
    ) -> None:
        """Append an own half with its voucher and the half that it answers, in one synced write.

        Args:
            own: the next half of the own chain.
            voucher: what it rests on.
            initiator: the peer's half that it answers.
            note: what people are told of it.
            limit_micro: what its peer may owe; None of what adds no debt to this node.

        Raises:
            Recovering: this node signs nothing before its restart.
            CreditExceeded, ReceiptInvalid, ArgumentInvalid: a rule is broken; nothing
                is written.
        """
        if self.recovering:
            raise errors.Recovering("this node is recovering its ledger and signs nothing yet")
        refusal = validation.check_own_next(
            self.state, own, voucher=voucher, initiator=initiator, limit_micro=limit_micro
        )
        if refusal is not None:
            raise _error(refusal)
        seq = own.record.seq
        mark = audit.ChainEnd(seq + 1, own.id, self.state.claims_head)
        changes: list[Change] = [(key_of(HALF, seq), own.raw), (MARK, audit.chain_end_bytes(mark))]
        if voucher is not None:
            changes.append((key_of(VOUCHER, seq), voucher.raw))
        if initiator is not None:
            changes.append((key_of(OTHER, seq), initiator.raw))
        if note is not None:
            changes.append((key_of(FOR, seq), note))
        loop = None
        if voucher is not None and own.record.clears:
            # Who learns that it is complete by the first of its two edges has the other to book.
            loop = open_loop(voucher.raw, network=self.network)
            changes.append((LOOP + loop.id, loop.raw))
        await self.write(changes)
        append(self.state, own, initiator)
        if loop is not None:
            self.state.loops[loop.id] = loop

    async def keep_loop(self, loop: SignedLoop) -> None:
        """Keep what members have signed of a loop; from now on, it counts."""
        self.state.loops[loop.id] = loop
        await self.write([(LOOP + loop.id, loop.raw)])

    async def drop_loop(self, loop_id: bytes) -> None:
        """Forget a loop that is booked with both neighbours: the entries have it."""
        await self.write([(LOOP + loop_id, None)])
        self.state.loops.pop(loop_id, None)

    async def keep_fork(self, half: Signed[Half]) -> None:
        """Keep a half together with one of the same author that contradicts it."""
        seen = self.state.near(half.author, half.record.seq)
        for seq in (half.record.seq, half.record.seq - 1, half.record.seq + 1):
            if seq in seen:
                await self._keep(self.read(OTHER, seen[seq].seq), half)
                return

    def fork(self, peer: bytes) -> bytes | None:
        """Return the hash of what proves that a peer keeps two ledgers; None without any."""
        halves = self._forks.get(peer)
        return encoding.tagged_sha256("ledger_fork", *sorted(halves)) if halves else None

    def conflicts(self) -> int:
        """Return how many conflicting entries are kept as evidence."""
        return sum(1 for _ in self.table(CONFLICT))

    async def keep_conflict(self, half: Signed[Half], told: Signed[Incarnation] | None) -> None:
        """Keep a half whose xid another half has already, if both are of one incarnation."""
        entry = self.state.entries.get(half.author, half.record.xid)
        assert entry is not None
        known = self.read(OTHER, entry.seq)
        first = 0 if told is None else told.record.first_seq
        kept = open_half(known, network=self.network)
        if (kept.record.seq < first) == (half.record.seq < first):
            await self._keep(known, half)

    async def _keep(self, kept: bytes, other: Signed[Half]) -> None:
        """Keep evidence against a peer, up to LEDGER_CONFLICTS_KEPT of each."""
        prefix = CONFLICT + other.author
        held = [key for key, _ in self.store.scan(prefix, prefix_end(prefix))]
        raw = audit.conflict_bytes(kept, other.raw)
        is_fork = audit.is_fork(raw, self.network)
        is_full = len(held) >= LEDGER_CONFLICTS_KEPT and prefix + other.id not in held
        if not is_full or is_fork:
            # A further fork takes the place of another row: what was lifted was not this.
            gone = held[:1] if is_full else []
            await self.write([(prefix + other.id, raw), *((key, None) for key in gone)])
            if is_fork:
                forks = self._forks.setdefault(other.author, set())
                forks -= {key[len(prefix) :] for key in gone}
                forks.add(other.id)
        self._log.error("ledger.conflict", peer=ids.short(other.author), entry=other.record.seq)
