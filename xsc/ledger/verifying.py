"""Verifies a ledger from its first half on, in slices, while bookings go on.

It ends at the half that was the last when it began. What the store had then stays as it was, but
for answers, which are left out where they came later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, TypeAlias

from xsc.api.ledger import Verified
from xsc.base.clock import Executor
from xsc.base.errors import LedgerDamaged
from xsc.identity.keys import Check, Unverified, first_wrong
from xsc.ledger import audit
from xsc.ledger.audit import Past, Replay
from xsc.ledger.chain import MARK, SNAPSHOT, Chain
from xsc.ledger.index import Index
from xsc.ledger.state import LedgerState, snapshot_of

BATCH: Final = 256
"""Signatures that are checked in one go."""
SCANNED: Final = 256
"""Rows of the index that are read in one go."""
AHEAD: Final = 6
"""Batches that are being checked while others are read."""

Checking: TypeAlias = Callable[[], AbstractAsyncContextManager[Check]]
"""Makes ready to check many."""


async def verify(chain: Chain, executor: Executor, checking: Checking | None) -> Verified:
    """Return what was verified.

    Args:
        chain: the ledger.
        executor: reads and replays it.
        checking: of signatures; by the executor where None.

    Raises:
        LedgerDamaged: names the first entry that breaks a rule.
    """
    is_damaged = False
    try:
        replay, steps = await chain.exclusive(_begin, chain)
        async with (
            checking()
            if checking
            else nullcontext(lambda items: executor.run(first_wrong, items)) as check
        ):
            await _verify(executor, replay, steps, check)
    except LedgerDamaged:
        # The next start replays it all: where only snapshot or index is wrong, both are made anew.
        is_damaged = True
        await chain.exclusive(chain.write, [(SNAPSHOT, None)])
        raise
    finally:
        chain.snapshots_wait = is_damaged
    state = replay.state
    settled, peers = sum(state.dealt.values()), len({*state.balances, *state.limits})
    return Verified(
        entries=state.halves,
        settled=settled,
        peers=peers,
        forks=await chain.forks.check(),
        head=state.head,
        text=f"{state.halves} entries with {peers} peers verified: {settled} settled, "
        f"{len(state.open)} open; signatures, chain, counter-halves and replay agree",
    )


async def _verify(executor: Executor, replay: Replay, steps: Iterator[bool], check: Check) -> None:
    checks: deque[asyncio.Task[None]] = deque()
    wrong: LedgerDamaged | None = None
    more = True
    try:
        while more:
            try:
                more = await executor.run(next, steps, False)
            except LedgerDamaged as fault:
                # Whose signature does not fit is more to the point.
                wrong, more = fault, False
            if len(replay.unverified) >= BATCH or not more:
                read, replay.unverified = replay.unverified, []
                checks.append(asyncio.create_task(_check(check, read)))
            if len(checks) == AHEAD:
                await checks.popleft()
    finally:
        await asyncio.gather(*checks, return_exceptions=True)
    for each in checks:
        each.result()
    if wrong is not None:
        raise wrong


async def _check(check: Check, read: Sequence[tuple[int, Unverified]]) -> None:
    place = await check([unverified for _, unverified in read])
    if place is not None:
        raise audit.damaged(read[place][0], "the signature does not fit its author and content")


async def _begin(chain: Chain) -> tuple[Replay, Iterator[bool]]:
    """Write a snapshot, with which all is compared, and begin while nothing else is written."""
    if (raw := chain.store.get(SNAPSHOT)) is not None:
        chain.open_snapshot(raw)
    await chain.write_snapshot()
    chain.snapshots_wait = True
    there = Index(chain.store)
    there.changes = dict(chain.state.index.changes)
    past = Past(there)
    past.replay = replay = Replay(LedgerState(chain.me, index=past), chain.network)
    steps = _steps(chain, replay, past)
    next(steps)
    return replay, steps


def _steps(chain: Chain, replay: Replay, past: Past) -> Iterator[bool]:
    """Replay it all; yield once the present state is known, and after each slice.

    Raises:
        LedgerDamaged: something does not fit, or is stored that the node does not know of.
    """
    now, mark, raw = snapshot_of(chain.state), chain.store.get(MARK), chain.store.get(SNAPSHOT)
    for seq, _ in chain.stored(now.next_seq):
        raise audit.damaged(seq, "the chain ends before it")
    replay.held = {seq for seq, *_ in now.open}
    for seq in replay.held:
        if chain.row(seq).other is not None:
            raise audit.damaged(seq, "the store has an answer to it that was never taken")
    if raw is not None and chain.open_snapshot(raw) != now:
        raise audit.index_damaged()
    old = {seq for seq, _ in chain.stored(0, now.first_seq)}
    yield True
    for _ in chain.replay(replay, now.next_seq):
        past.forget()
        yield True
    audit.check_end(replay.state, mark)
    for seq in sorted(old - replay.old):
        raise audit.damaged(seq, "it is of an earlier incarnation, and nothing claims it")
    there = 0
    for number, row in enumerate(past.there.scan(b"", b"\xff")):
        there += hash(row)
        if number % SCANNED == 0:
            yield True
    if snapshot_of(replay.state) != now or past.made() != there:
        raise audit.index_damaged()
