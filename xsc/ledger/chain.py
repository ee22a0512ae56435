"""The chain of the own halves: kept in the store, and in memory as the state that they give.

A step checks and changes the state, and says which rows change. Steps that come while the disk
syncs are run together after that: with one signature over all their halves, and one synced write.
After a failed write the state is read again from the store.

Keys, all under "ledger/": `entry/<seq>` the own half with what is beside it (`EntryRow`), `mark`
the end of the chain, `restart` the present incarnation; `snapshot` the state at a half, and
`index/` what is looked up of all entries before that half (`xsc.ledger.index`). Beside them
`ledger-peer/<peer>` is the newest incarnation of a peer, `ledger-for/<seq>` the leases that an
entry is for, which only people read; `ledger-loop/<id>` a loop that this node has signed, until
both its edges are booked, `ledger-signed/<peer>` the last checkpoint of a peer that this node
signed or knows of.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, ParamSpec, TypeVar, cast

from xsc.base import errors, gather, ids
from xsc.base.encoding import tagged_sha256
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, read_claimed, seal, sign
from xsc.ledger import audit, validation
from xsc.ledger.audit import Replay
from xsc.ledger.entry import EntryRow, Half, intact
from xsc.ledger.fork import fork_bytes
from xsc.ledger.forks import Forks
from xsc.ledger.incarnation import (
    CLAIM_BYTES_MAX,
    Incarnation,
    Restart,
    open_incarnation,
    open_restart,
    restart_bytes,
)
from xsc.ledger.index import INDEX, Index
from xsc.ledger.loop import SignedLoop, open_loop
from xsc.ledger.state import (
    SNAPSHOT_BYTES_MAX,
    LedgerState,
    Snapshot,
    append,
    begin,
    restored,
    snapshot_of,
)
from xsc.terms.voucher import Voucher

P = ParamSpec("P")
T = TypeVar("T")

_ROOT: Final = b"ledger/"
ENTRY: Final = _ROOT + b"entry/"
MARK: Final = _ROOT + b"mark"
SNAPSHOT: Final = _ROOT + b"snapshot"
RESTART: Final = _ROOT + b"restart"
FOR: Final = b"ledger-for/"
TILE: Final = b"ledger-tile/"
PEER: Final = b"ledger-peer/"
LOOP: Final = b"ledger-loop/"
SIGNED: Final = b"ledger-signed/"

SLICE: Final = 64
"""Entries that are read in one go."""
STEP: Final = 16
"""Entries that are replayed in one go: so long, nothing else runs, some five milliseconds. To go
from one to the next takes as long as two entries."""
PAGE: Final = 2**14
"""Rows of the index that are written in one go where all of it is made anew."""
END: Final = 2**64 - 1
"""Above every number."""
STEPS_MAX: Final = 64
"""Steps whose changes are written together."""
JOINT_MAX: Final = 16
"""Halves under one signature: the proof of a fork has the way to it of two."""


def key_of(prefix: bytes, seq: int) -> bytes:
    """Return the key of a numbered row."""
    return prefix + seq.to_bytes(8, "big")


def row_of(item: audit.Old) -> Change:
    """Return the row of a settled entry."""
    row = EntryRow(half=item.half.raw, other=item.other.raw, voucher=item.voucher.raw)
    return key_of(ENTRY, item.half.record.seq), row.to_bytes()


def _opened(seq: int, raw: bytes) -> EntryRow:
    with intact(audit.entry_of(seq)):
        return EntryRow.from_bytes(raw, size_max=CLAIM_BYTES_MAX)


def _error(refusal: validation.Refusal) -> errors.XscError:
    """Return the error that tells the market why nothing was booked."""
    kinds: dict[str, type[errors.XscError]] = {
        "limit_exceeded": errors.CreditExceeded,
        "voucher_wrong": errors.ReceiptInvalid,
    }
    return kinds.get(refusal.code, errors.ArgumentInvalid)(refusal.sentence)


class Rows:
    """What the store has of the chain of one node."""

    def __init__(self, store: KeyValue, me: bytes, network: bytes) -> None:
        self.store = store
        self.me = me
        self.network = network
        self._unwritten: dict[bytes, bytes | None] = {}
        """Rows that are on their way to the disk."""

    def get(self, key: bytes) -> bytes | None:
        """Return a row, also one that is on its way to the disk.

        Only what is on the disk is sent: `commit` a step that finds out what there is, and send it
        then.
        """
        unwritten = self._unwritten  # Threads read, too, and the rows are replaced.
        return unwritten[key] if key in unwritten else self.store.get(key)

    def table(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows under a prefix, their keys without it."""
        for key, raw in self.store.scan(prefix, prefix_end(prefix)):
            yield key[len(prefix) :], raw

    def stored(self, first: int = 0, stop: int = END) -> Iterator[tuple[int, EntryRow]]:
        """Yield the rows of the numbers from one on and before another.

        Raises:
            LedgerDamaged: a row cannot be read.
        """
        while first < stop:
            rows = self.store.scan(key_of(ENTRY, first), key_of(ENTRY, stop))
            page = [(int.from_bytes(key[-8:], "big"), raw) for key, raw in islice(rows, SLICE)]
            for seq, raw in page:
                yield seq, _opened(seq, raw)
            first = page[-1][0] + 1 if len(page) == SLICE else stop

    def newest(self, before: int | None) -> Iterator[int]:
        """Yield the numbers of own halves, the highest first; those below one."""
        stop = key_of(ENTRY, END if before is None else before)
        for key, _ in self.store.scan(ENTRY, stop, reverse=True):
            yield int.from_bytes(key[-8:], "big")

    def find(self, seq: int) -> EntryRow | None:
        """Return the row of a number; None where there is none.

        Raises:
            LedgerDamaged: it cannot be read.
        """
        raw = self.get(key_of(ENTRY, seq))
        return None if raw is None else _opened(seq, raw)

    def row(self, seq: int) -> EntryRow:
        """Return the row of a number.

        Raises:
            LedgerDamaged: it is missing, or cannot be read.
        """
        if (row := self.find(seq)) is None:
            raise audit.missing(seq)
        return row

    def other(self, seq: int) -> bytes:
        """Return the peer's half beside an own one.

        Raises:
            LedgerDamaged: it is missing.
        """
        if (other := self.row(seq).other) is None:
            raise audit.damaged(seq, "a part of it is missing")
        return other

    def own(self, seq: int, row: EntryRow | None = None) -> Signed[Half]:
        """Return an own half; from its row, where that was read.

        Raises:
            LedgerDamaged: it is missing or damaged.
        """
        with intact(audit.entry_of(seq)):
            return read_claimed((row or self.row(seq)).half, Half, network=self.network)

    def read_restart(self) -> Restart | None:
        """Return what the present incarnation began with; None in the first one.

        Raises:
            LedgerDamaged: the row is damaged.
        """
        raw = self.store.get(RESTART)
        if raw is None:
            return None
        with intact("the restart of the ledger"):
            return open_restart(raw, author=self.me, network=self.network)

    def replay(self, replay: Replay, stop: int = END) -> Iterator[bool]:
        """Take what follows on a state, up to a number; yield now and then.

        Raises:
            LedgerDamaged: names the first entry that breaks a rule.
        """
        state = replay.state
        if not state.next_seq and (restart := self.read_restart()) is not None:
            begin(state, restart)
        for seq in sorted(state.open):
            if seq not in replay.held:
                replay.answer(seq, self.row(seq))
        for seq, row in self.stored(state.next_seq, stop):
            if (claim := replay.take(seq, row)) is not None:
                taken = []
                for old in claim.seqs:
                    taken.append(replay.take_old(old, self.row(old)))
                    if len(taken) % STEP == 0:
                        yield True
                replay.end_claim(claim, taken)
            if seq % STEP == 0:
                yield True
        yield True

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


class Chain(Rows):
    """The chain of one node.

    Args:
        context: whose chain it is.
        store: other tables may be in it.
        recovering: sign nothing until a restart.

    Raises:
        LedgerDamaged: the stored chain breaks a rule.
    """

    def __init__(self, context: Context, store: KeyValue, *, recovering: bool) -> None:
        super().__init__(store, context.key.node_id, context.network)
        self._key = context.key
        self._clock = context.clock
        self._executor = context.executor
        self._log = context.log
        self.on_change: Callable[[], None] = lambda: None
        """Called when something has changed."""
        self.recovering = recovering
        self._steps: gather.Gather[None, Callable[[], Any], Any] = gather.Gather(
            self._run,
            size_of=lambda step: STEPS_MAX + 1 if inspect.iscoroutinefunction(step) else 1,
            size_max=STEPS_MAX,
        )
        self._unsigned: list[tuple[Half, bytes, bytes | None, bytes | None]] = []
        """Halves of the steps that run, their canonical bytes, what is beside and under each."""
        self._certain = True
        self.snapshots_wait = False
        """While somebody verifies the ledger, and after damage was found: the next start replays
        it all."""
        self.restart: Restart | None = None
        """What the present incarnation began with; None in the first one."""
        self.state = self.load()
        self.forks = Forks(context, store)

    def incarnation_of(self, peer: bytes) -> Signed[Incarnation] | None:
        """Return the newest incarnation of a peer that this node was told of."""
        raw = self.get(PEER + peer)
        if raw is None:
            return None
        return open_incarnation(raw, author=peer, network=self.network)

    def keep_incarnation(self, told: Signed[Incarnation]) -> None:
        """Keep a peer's incarnation if its number is the highest so far, in a step."""
        known = self.incarnation_of(told.author)
        if known is not None and told.record.first_seq <= known.record.first_seq:
            return
        self.put([(PEER + told.author, told.raw)])
        self._log.warning(
            "ledger.restarted", peer=ids.short(told.author), first_seq=told.record.first_seq
        )

    def first_of(self, peer: bytes) -> int:
        """Return the number of the first half in a peer's newest incarnation, as far as told."""
        told = self.incarnation_of(peer)
        return 0 if told is None else told.record.first_seq

    def load(self) -> LedgerState:
        """Return the state that the stored rows give, and take over the restart among them.

        Raises:
            LedgerDamaged: the stored chain breaks a rule.
        """
        self._unwritten, self._unsigned = {}, []
        self.restart = self.read_restart()
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
        for key, raw in [*self.table(LOOP)]:
            with intact(f"the loop {ids.short(key)}"):
                loop = open_loop(raw, network=self.network)
            if not state.keep_loop(loop):
                # What booked its last edge here came by a claim.
                self.store.write([(LOOP + key, None)], sync=False)
        return state

    def _replayed(self, snapshot: bytes | None) -> LedgerState:
        """Return what a snapshot and the halves after it give; without one, all halves."""
        if snapshot is not None:
            state = restored(self.open_snapshot(snapshot), me=self.me, index=Index(self.store))
            replay = Replay(state, self.network)
            deque(self.replay(replay), 0)
        else:
            while page := [INDEX + key for key, _ in islice(self.table(INDEX), PAGE)]:
                self.store.write([(key, None) for key in page], sync=False)
            state = LedgerState(self.me, index=Index(self.store))
            replay = Replay(state, self.network)
            for _ in self.replay(replay):
                replay.unverified.clear()
                if len(state.index.changes) >= PAGE:
                    self.store.write(state.index.rows(), sync=False)
                    state.index.changes = {}
        audit.check_end(state, self.store.get(MARK))
        return state

    async def begin_anew(self, restart: Restart, kept: Iterable[audit.Old]) -> None:
        """Begin an incarnation with these entries alone, in a step that runs alone."""
        signed = restart.incarnation
        changes: list[Change] = [(SNAPSHOT, None), (RESTART, restart_bytes(restart))]
        changes.append((MARK, audit.chain_end_bytes(signed.record.first_seq, signed.id)))
        for prefix in (ENTRY, FOR, TILE):
            changes += [(prefix + key, None) for key, _ in self.table(prefix)]
        await self.write([*changes, *map(row_of, kept)])
        self.state = await self._executor.run(self.load)

    async def snapshot(self) -> None:
        """Write the state as it is now: the next start reads it, and the halves after it."""
        await self.exclusive(self.write_snapshot)

    async def write_snapshot(self) -> None:
        """Do so, in a step that runs alone."""
        index = self.state.index
        # Who verifies the ledger reads the rows of the snapshot before.
        if index.changes and not self.snapshots_wait:
            signed = sign(snapshot_of(self.state), self._key, self.network)
            await self.write([(SNAPSHOT, signed.raw), *index.rows()])
            index.changes = {}

    async def commit(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step while no other runs; return once its changes are on the disk.

        It goes to its end even if the caller is cancelled meanwhile. It changes nothing before an
        error. Where the disk fails, so does everything that was to be written with it.
        """
        return cast("T", await self._steps.submit(None, partial(step, *args, **kwargs)))

    async def exclusive(
        self, step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do as `commit` with a step that awaits, alone: all before it is on the disk."""
        return cast("T", await self.commit(step, *args, **kwargs))

    async def _run(self, _: None, steps: Sequence[Callable[[], Any]]) -> list[Any]:
        if not self._certain:
            self.state = await self._executor.run(self.load)
        self._certain = False
        found: list[Any] = []
        for step in steps:
            try:
                outcome = step()
                found.append(await outcome if inspect.isawaitable(outcome) else outcome)
            except errors.XscError as fault:
                found.append(fault)
        await self.write()
        self._certain = True
        return found

    async def write(self, changes: Iterable[Change] = ()) -> None:
        """Write and sync at once, in a step that runs alone."""
        self.put(changes)
        while new := self._unsigned[:JOINT_MAX]:
            del self._unsigned[:JOINT_MAX]
            sealed = seal([(half, body) for half, body, *_ in new], self._key, self.network)
            for own, (*_, other, voucher) in zip(sealed, new, strict=True):
                row = EntryRow(half=own.raw, other=other, voucher=voucher)
                self._unwritten[key_of(ENTRY, own.record.seq)] = row.to_bytes()
        if self._unwritten:
            try:
                await self._executor.run(self.store.write, [*self._unwritten.items()], sync=True)
            except Exception:
                # At once: nothing of it is written later, and no entry of it proposed again.
                self.state = await self._executor.run(self.load)
                raise
            self._unwritten = {}
            self.on_change()

    async def close(self) -> None:
        """Wait until nothing is being written."""
        await self._steps.idle()

    def put(self, changes: Iterable[Change]) -> None:
        """Have rows written with the step that runs."""
        self._unwritten |= dict(changes)

    def extend(
        self,
        content: Half,
        voucher: Signed[Voucher] | None = None,
        *,
        initiator: Signed[Half] | None = None,
        claim: bytes | None = None,
        note: bytes | None = None,
        limit_micro: int | None = None,
    ) -> Half:
        """Append an own half with its voucher and the half that it answers, in a step.

        Args:
            content: what the half says; its place and time are those of now.
            voucher: what it rests on.
            initiator: the peer's half that it answers; the step has checked it.
            claim: what a claim takes.
            note: what people are told of it.
            limit_micro: what its peer may owe; None of what adds no debt to this node.

        Raises:
            Recovering: this node signs nothing before its restart.
            CreditExceeded, ReceiptInvalid, ArgumentInvalid: a rule is broken; nothing
                is changed.
        """
        if self.recovering:
            raise errors.Recovering("this node is recovering its ledger and signs nothing yet")
        seq = self.state.next_seq
        place = {"seq": seq, "prev": self.state.head, "created_ms": self._clock.now_ms()}
        half = content.model_copy(update=place)
        body = half.to_bytes()
        own = Signed(half, self.me, self.network, tagged_sha256(Half.KIND, body), b"")
        if initiator is None:
            refusal = validation.check_own_next(
                self.state, own, voucher=voucher, limit_micro=limit_micro
            )
            if refusal is not None:
                raise _error(refusal)
        other, under = None if initiator is None else initiator.raw, claim
        if voucher is not None:
            under = voucher.raw
        self._unsigned.append((half, body, other, under))
        self.put([(MARK, audit.chain_end_bytes(seq + 1, own.id))])
        if note is not None:
            self.put([(key_of(FOR, seq), note)])
        append(self.state, own, initiator)
        if voucher is not None and half.clears:
            # Who learns that it is complete by the first of its two edges has the other to book.
            self.keep_loop(open_loop(voucher.raw, network=self.network))
        return half

    def keep_loop(self, loop: SignedLoop) -> None:
        """Keep what members have signed of a loop until both its edges here are booked, in a step.

        After that, the entries have it.
        """
        known = self.state.loops.get(loop.id)
        if self.state.keep_loop(loop):
            self.put([(LOOP + loop.id, loop.raw)])
        elif known is not None:
            self.put([(LOOP + loop.id, None)])

    def contradicted(self, half: Signed[Half]) -> bytes | None:
        """Return the half of the same author and number that this ledger has, if it is another."""
        seen = self.state.seen.get(half.author, half.record.seq)
        return None if seen is None or seen.id == half.id else self.other(seen.seq)

    async def keep_fork(self, half: Signed[Half]) -> None:
        """Keep a half that was refused as a proof, if it is one with what its author signed before.

        One that only does not follow on another may be of another incarnation.
        """
        self._log.error("ledger.conflict", peer=ids.short(half.author), entry=half.record.seq)
        if (known := self.contradicted(half)) is not None:
            await self.forks.keep(fork_bytes(known, half.raw))


class Part:
    """What works on the chain of one node, with its peers."""

    def __init__(self, context: Context, chain: Chain) -> None:
        self._key = context.key
        self._own = context.key.node_id
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._executor = context.executor
        self._caller = context.caller
        self._log = context.log
        self._chain = chain
