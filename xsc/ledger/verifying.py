"""Verifies a ledger from its first half on, in slices, while bookings go on.

It ends at the half that was the last when it began. What the store had then stays as it was, but
for answers, which are left out where they came later.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from xsc.api.ledger import Verified
from xsc.base.clock import Executor
from xsc.base.errors import LedgerDamaged, SignatureInvalid
from xsc.identity.envelope import Unverified
from xsc.identity.keys import verify as check_signature
from xsc.ledger import audit
from xsc.ledger.audit import Past, Replay
from xsc.ledger.chain import CONFLICT, MARK, OTHER, SNAPSHOT, Chain, key_of
from xsc.ledger.index import INDEX, Index
from xsc.ledger.snapshot import snapshot_of
from xsc.ledger.state import LedgerState


async def verify(chain: Chain, executor: Executor) -> Verified:
    """Return what was verified.

    Raises:
        LedgerDamaged: names the first entry that breaks a rule.
    """
    try:
        replay, steps = await chain.exclusive(_begin, chain)
        while await executor.run(next, steps, False):
            read, replay.unverified = replay.unverified, []
            await executor.run(_check, read)
    except LedgerDamaged:
        # The next start replays it all: where only snapshot or index is wrong, both are made anew.
        await chain.exclusive(chain.write, [(SNAPSHOT, None)])
        raise
    finally:
        chain.is_read = False
    state = replay.state
    settled, peers = sum(state.dealt.values()), len({*state.balances, *state.limits})
    return Verified(
        entries=state.halves,
        settled=settled,
        peers=peers,
        conflicts=chain.conflicts(),
        head=state.head,
        text=f"{state.halves} entries with {peers} peers verified: {settled} settled, "
        f"{len(state.open)} open; signatures, chain, counter-halves and replay agree",
    )


def _check(read: Sequence[tuple[int, Unverified]]) -> None:
    for seq, unverified in read:
        try:
            check_signature(*unverified)
        except SignatureInvalid as fault:
            raise audit.damaged(seq, fault.message) from None


async def _begin(chain: Chain) -> tuple[Replay, Iterator[bool]]:
    """Begin while nothing is written; until the end, no snapshot is."""
    chain.is_read = True
    past = Past(chain.state.index, chain.rows.claims())
    past.replay = replay = Replay(LedgerState(chain.me, index=past), chain.network)
    steps = _steps(chain, replay, past)
    next(steps)
    return replay, steps


def _steps(chain: Chain, replay: Replay, past: Past) -> Iterator[bool]:
    """Replay it all; yield once the present state is known, and after each slice.

    Raises:
        LedgerDamaged: something does not fit, or is stored that the node does not know of.
    """
    state, rows, stored = replay.state, chain.rows, Index(chain.store)
    now, changes = snapshot_of(chain.state), dict(chain.state.index.changes)
    mark, raw = chain.store.get(MARK), chain.store.get(SNAPSHOT)
    for row in rows.stored(now.next_seq):
        raise audit.stray(row.seq)
    for seq, *_ in now.open:
        if chain.store.get(key_of(OTHER, seq)) is not None:
            raise audit.damaged(seq, "the store has an answer to it that was never taken")
    yield True
    for key, evidence in chain.table(CONFLICT):
        audit.check_conflict(key, evidence, chain.network, signatures=True)
    count = 0
    if raw is None:
        yield from rows.begin(replay)
    else:
        said = chain.open_snapshot(raw)
        replay.held = {seq for seq, *_ in said.open}
        for _ in itertools.chain(
            rows.begin(replay), rows.walk(replay, said.next_seq, len(said.claims))
        ):
            yield True
            count += past.compared(stored, last=False)
        count += past.compared(stored, last=True)
        if snapshot_of(state) != said:
            raise audit.index_damaged()
    if sum(1 for _ in chain.table(INDEX)) != count:
        raise audit.index_damaged()
    replay.held = {seq for seq, *_ in now.open}
    yield from rows.walk(replay, now.next_seq, len(now.claims))
    audit.check_end(state, mark)
    if snapshot_of(state) != now or past.changes != changes:
        raise audit.index_damaged()
