"""Keeps the proofs of forks that this node found or was shown, and what its operator pardoned.

One proof of each author is kept. `ledger-fork/<author>`, synced: the proof, its number, and the
number up to which the operator pardoned. The rules are in `fork`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from xsc.base import encoding, ids
from xsc.base.errors import LedgerDamaged, NotFound, ProofInvalid, RecordInvalid
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.identity.context import Context
from xsc.identity.envelope import Count, Record
from xsc.ledger.fork import Fork, open_fork

FORK: Final = b"ledger-fork/"


class Kept(Record):
    """What is kept of one author."""

    proof: bytes
    seq: Count
    """Of the fork."""
    pardoned_seq: Count | None = None
    """Forks up to this number are pardoned."""

    @property
    def counts(self) -> bool:
        """Whether it bars its author."""
        return self.pardoned_seq is None or self.seq > self.pardoned_seq


class Forks:
    """The proofs that one node has.

    Raises:
        LedgerDamaged: a kept proof does not hold.
    """

    def __init__(self, context: Context, store: KeyValue) -> None:
        self._context = context
        self._store = store
        self.on_change: Callable[[bytes], None] = lambda _: None
        """Called with an author of whom a proof begins or ends to count."""
        self._writing = asyncio.Lock()
        self._kept = {author: self._read(author, raw) for author, raw in self._stored().items()}

    def _stored(self) -> dict[bytes, bytes]:
        rows = self._store.scan(FORK, prefix_end(FORK))
        return {key[len(FORK) :]: raw for key, raw in rows}

    def _read(self, author: bytes, raw: bytes) -> Kept:
        try:
            kept = Kept.from_bytes(raw)
            if open_fork(kept.proof, network=self._context.network) == Fork(author, kept.seq):
                return kept
        except (RecordInvalid, ProofInvalid):
            pass
        raise _damaged(author)

    async def check(self) -> int:
        """Read all proofs again, and return how many there are.

        Raises:
            LedgerDamaged: they are not what this node works with.
        """
        async with self._writing:
            known = {author: kept.to_bytes() for author, kept in self._kept.items()}
            if wrong := self._stored().items() ^ known.items():
                raise _damaged(min(wrong)[0])
            return len(known)

    def of(self, author: bytes) -> bytes | None:
        """Return the hash of the proof that an author forked its ledger; None where none counts."""
        kept = self._kept.get(author)
        if kept is None or not kept.counts:
            return None
        return encoding.tagged_sha256("ledger_fork", kept.proof)

    def all(self) -> dict[bytes, bytes]:
        """Return the proofs that count, by author."""
        return {author: kept.proof for author, kept in self._kept.items() if kept.counts}

    async def keep(self, proof: bytes, author: bytes | None = None) -> None:
        """Keep a proof against an author, if it is given, unless what is kept counts already.

        Raises:
            ProofInvalid: it shows nothing, or something of another node.
        """
        fork = open_fork(proof, network=self._context.network)
        if author not in {None, fork.author}:
            raise ProofInvalid("the proof is against another node than its path says")
        before = self._kept.get(fork.author)
        pardoned_seq = None if before is None else before.pardoned_seq
        kept = Kept(proof=proof, seq=fork.seq, pardoned_seq=pardoned_seq)
        if kept.counts and (before is None or not before.counts):
            await self._write(fork.author, kept)
            self._context.log.error("ledger.fork", peer=ids.short(fork.author), entry=fork.seq)

    async def pardon(self, author: bytes, seq: int) -> int:
        """Hold no fork up to a number against its author any more; return the number.

        Raises:
            NotFound: none is held against it.
        """
        if self.of(author) is None:
            raise NotFound(
                f"no fork is held against {ids.short(author)}",
                hint="`xsc health why PEER` shows what is",
            )
        kept = self._kept[author]
        seq = max(seq, kept.seq)
        await self._write(author, kept.model_copy(update={"pardoned_seq": seq}))
        return seq

    async def _write(self, author: bytes, kept: Kept) -> None:
        async with self._writing:
            row = (FORK + author, kept.to_bytes())
            await self._context.executor.run(self._store.write, [row], sync=True)
            self._kept[author] = kept
        self.on_change(author)


def _damaged(author: bytes) -> LedgerDamaged:
    return LedgerDamaged(
        f"the proof that {ids.short(author)} forked its ledger is damaged",
        hint="restore the home from a backup",
    )
