"""Verifies a ledger from its first half on, in slices, while bookings go on.

It ends at the half that was the last when it began. What the store had then stays as it was, but
for answers, which are left out where they came later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xsc.api.ledger import Verified
from xsc.base.clock import Executor
from xsc.base.errors import LedgerDamaged, SignatureInvalid
from xsc.identity.envelope import Unverified
from xsc.identity.keys import verify as check_signature
from xsc.ledger import audit
from xsc.ledger.audit import Past, Replay
from xsc.ledger.chain import CONFLICT, SNAPSHOT, Chain, Pinned
from xsc.ledger.index import INDEX, Index
from xsc.ledger.snapshot import snapshot_of
from xsc.ledger.state import LedgerState


async def verify(chain: Chain, executor: Executor) -> Verified:
    """Return what was verified.

    Raises:
        LedgerDamaged: names the first entry that breaks a rule.
    """
    pinned = await chain.exclusive(chain.pin)
    try:
        past = Past(Index(chain.store), pinned.index, pinned.claims)
        state = LedgerState(chain.me, index=past)
        past.replay = replay = Replay(state, chain.network)
        steps = _steps(chain, pinned, replay, past)
        while await executor.run(next, steps, False):
            read, replay.unverified = replay.unverified, []
            await executor.run(_check, read)
    except LedgerDamaged:
        # The next start replays it all: where only snapshot or index is wrong, both are made anew.
        await chain.exclusive(chain.write, [(SNAPSHOT, None)])
        raise
    finally:
        chain.is_read = False
    conflicts = chain.conflicts()
    settled, peers = sum(state.dealt.values()), len({*state.balances, *state.limits})
    return Verified(
        entries=state.halves,
        settled=settled,
        peers=peers,
        conflicts=conflicts,
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


def _steps(chain: Chain, pinned: Pinned, replay: Replay, past: Past) -> Iterator[bool]:
    """Replay it all; yield after each slice."""
    for key, raw in chain.table(CONFLICT):
        audit.check_conflict(key, raw, chain.network, signatures=True)
        yield True
    state, now = replay.state, pinned.now
    for _ in chain.rows.begin(replay):
        yield True
        if pinned.snapshot is not None:
            past.compare()
    if pinned.snapshot is not None:
        said = chain.open_snapshot(pinned.snapshot)
        replay.held = {seq for seq, *_ in said.open}
        for _ in chain.rows.walk(replay, said.next_seq, len(said.claims)):
            yield True
            past.compare()
        past.compare(last=True)
        if snapshot_of(state) != said:
            raise audit.index_damaged()
    if sum(1 for _ in chain.table(INDEX)) != past.compared:
        raise audit.index_damaged()
    replay.held = {seq for seq, *_ in now.open}
    yield from chain.rows.walk(replay, now.next_seq, len(now.claims))
    audit.check_end(state, pinned.mark)
    if snapshot_of(state) != now or past.changes != pinned.changes:
        raise audit.index_damaged()
