"""The chain of the own halves: kept in the store, and in memory as the state that they give.

Every change is one synced write. It is made while no other is under way, and after a
failed write the state is read again from the store.

Keys, all under "ledger/": `half/<seq>` own halves, `other/<seq>` the peer's half
beside it, `voucher/<seq>` what it rests on, `mark` the end of the chain,
`restart` the present incarnation, `claim/<seq>` when an
old half was taken after it had begun. Beside them `ledger-peer/<peer>` is the newest
incarnation of a peer, `ledger-heard/<peer>` the own one in which it told its history, and
`ledger-for/<seq>` the leases that an entry is for, which only people read; `ledger-loop/<id>` is a
loop that this node has signed, until both its edges are booked, `ledger-signed/<peer>` the
last checkpoint of a peer that this node signed or knows of. `ledger-seal/<history><position>`
is the own half of the seal that begins there, `ledger-unsealed/<peer><entry>` the own half of an
entry that no seal names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, ParamSpec, TypeVar

from xsc.base import errors, ids
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.ledger import audit, cube, recovery, validation
from xsc.ledger.entry import Half
from xsc.ledger.fork import fork_bytes
from xsc.ledger.forks import Forks
from xsc.ledger.incarnation import Incarnation, Restart, open_incarnation, open_restart
from xsc.ledger.loop import SignedLoop, open_loop
from xsc.ledger.state import LedgerState, append
from xsc.terms.voucher import Voucher

P = ParamSpec("P")
T = TypeVar("T")

_ROOT: Final = b"ledger/"
HALF: Final = _ROOT + b"half/"
OTHER: Final = _ROOT + b"other/"
VOUCHER: Final = _ROOT + b"voucher/"
MARK: Final = _ROOT + b"mark"
RESTART: Final = _ROOT + b"restart"
CLAIM: Final = _ROOT + b"claim/"
FOR: Final = b"ledger-for/"
PEER: Final = b"ledger-peer/"
HEARD: Final = b"ledger-heard/"
LOOP: Final = b"ledger-loop/"
SIGNED: Final = b"ledger-signed/"
SEAL: Final = b"ledger-seal/"
UNSEALED: Final = b"ledger-unsealed/"


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
        self._me = context.key.node_id
        self._network = context.network
        self._executor = context.executor
        self._log = context.log
        self.store = store
        self.on_change: Callable[[], None] = lambda: None
        """Called when a balance or a limit has changed."""
        self.recovering = recovering
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()
        self._certain = True
        self.restart: Restart | None = None
        """What the present incarnation began with; None in the first one."""
        self.state = self.load()
        self.forks = Forks(store, context.executor, context.network, context.log)

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
            return audit.trusted(raw, Half, self._network)
        except (errors.PeerError, errors.LimitError) as fault:
            raise errors.LedgerDamaged(
                f"entry {seq} of the ledger is damaged: {fault.message}"
            ) from None

    def incarnation_of(self, peer: bytes) -> Signed[Incarnation] | None:
        """Return the newest incarnation of a peer that this node was told of."""
        raw = self.store.get(PEER + peer)
        if raw is None:
            return None
        return open_incarnation(raw, author=peer, network=self._network)

    def first_of(self, peer: bytes) -> int:
        """Return the number of the first half in a peer's newest incarnation, as far as told."""
        raw = self.store.get(PEER + peer)
        if raw is None:
            return 0
        return audit.trusted(raw, Incarnation, self._network).record.first_seq

    def table(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows under a prefix, their keys without it."""
        for key, raw in self.store.scan(prefix, prefix_end(prefix)):
            yield key[len(prefix) :], raw

    def rows(self) -> audit.StoredRows:
        """Return everything that the store has of this ledger."""

        def numbered(prefix: bytes) -> dict[int, bytes]:
            return {int.from_bytes(key, "big"): raw for key, raw in self.table(prefix)}

        return audit.StoredRows(
            mark=self.store.get(MARK),
            halves=numbered(HALF),
            others=numbered(OTHER),
            vouchers=numbered(VOUCHER),
            restart=self.store.get(RESTART),
            claims=numbered(CLAIM),
        )

    def load(self) -> LedgerState:
        """Return the state that the stored rows give, and take over the restart among them.

        Raises:
            LedgerDamaged: the stored chain breaks a rule.
        """
        rows = self.rows()
        state = audit.replay(rows, me=self._me, network=self._network, signatures=False).state
        if rows.restart is not None:
            self.restart = open_restart(rows.restart, author=self._me, network=self._network)
        try:
            for key, raw in self.table(LOOP):
                state.loops[key] = open_loop(raw, network=self._network)
        except (errors.PeerError, errors.LimitError) as fault:
            raise errors.LedgerDamaged(
                f"the loop {ids.short(key)} is damaged: {fault.message}",
                hint="restore the home from a backup",
            ) from None
        return state

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
            under = b"" if voucher is None else voucher.raw
            changes += self.answered(own.record, initiator, initiator.id, under)
        if note is not None:
            changes.append((key_of(FOR, seq), note))
        loop = None
        if voucher is not None and own.record.clears:
            # Who learns that it is complete by the first of its two edges has the other to book.
            loop = open_loop(voucher.raw, network=self._network)
            changes.append((LOOP + loop.id, loop.raw))
        await self.write(changes)
        append(self.state, own, initiator)
        if loop is not None:
            self.state.loops[loop.id] = loop

    def history(self, peer: bytes) -> bytes:
        """Return what names the sealed history with a peer, as far as both incarnations are known.

        It is the account of its seals, too.
        """
        return cube.history({self._me: self.state.first_seq, peer: self.first_of(peer)})

    def sealed(self, peer: bytes) -> int:
        """Return how many entries are sealed with a peer."""
        debtor, creditor = max(self._me, peer), min(self._me, peer)
        return self.state.settled_under(self.history(peer), debtor=debtor, creditor=creditor)

    def answered(
        self, own: Half, other: Signed[Half], entry_id: bytes, under: bytes
    ) -> list[Change]:
        """Return the rows that change where an entry comes to have both halves.

        Args:
            own: the own half.
            other: the peer's.
            entry_id: of the one that came first.
            under: the row of its voucher, or of what it seals.
        """
        changes: list[Change] = [(key_of(OTHER, own.seq), other.raw)]
        row, unsealed = own.seq.to_bytes(8, "big"), UNSEALED + own.peer
        if own.kind == "seal":
            assert own.account is not None
            sealed = cube.open_sealed(under)
            changes.append((key_of(SEAL + own.account, sealed.before), row))
            changes += [(unsealed + named, None) for named in sealed.entry_ids]
        elif other.record.seq >= self.first_of(own.peer):
            changes.append((unsealed + entry_id, row))
        return changes

    def unsealed(self, peer: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the entries that wait for a seal, in order of id, and the numbers of own halves."""
        for entry_id, row in self.table(UNSEALED + peer):
            yield entry_id, int.from_bytes(row, "big")

    async def keep_loop(self, loop: SignedLoop) -> None:
        """Keep what members have signed of a loop; from now on, it counts."""
        self.state.loops[loop.id] = loop
        await self.write([(LOOP + loop.id, loop.raw)])

    async def drop_loop(self, loop_id: bytes) -> None:
        """Forget a loop that is booked with both neighbours: the entries have it."""
        await self.write([(LOOP + loop_id, None)])
        self.state.loops.pop(loop_id, None)

    def contradicted(self, half: Signed[Half]) -> bytes | None:
        """Return the half of the same author and number that this ledger has, if it is another."""
        seen = self.state.seen.get(half.author, {}).get(half.record.seq)
        return None if seen is None or seen.id == half.id else self.read(OTHER, seen.seq)

    async def keep_fork(self, half: Signed[Half]) -> None:
        """Keep a half that was refused as a proof, if it is one with what its author signed before.

        One that only does not follow on another may be of another incarnation.
        """
        self._log.error("ledger.conflict", peer=ids.short(half.author), entry=half.record.seq)
        if (known := self.contradicted(half)) is not None:
            await self.forks.keep(fork_bytes(known, half.raw))
