"""The ledger: balances, entries, verification, settling now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from itertools import islice

from xsc.api import endpoint
from xsc.api import ledger as api
from xsc.base import errors, ids, units
from xsc.ledger import cube
from xsc.ledger.checkpoint import quorum
from xsc.ledger.loop import SignedLoop
from xsc.ledger.payments import PeerAccount
from xsc.ledger.statement import FORMATS, known_peers, say_debt
from xsc.node import passports
from xsc.node.api.serving import Download
from xsc.node.build import Node
from xsc.node.routes.market import known_lease

PIECE_LINES = 256


def shared_through(node: Node, peer: bytes) -> str | None:
    """Return the introducer with whose other peers a peer shares one credit; None where none do."""
    sharing = node.ledger.shares_with(peer)
    if len(sharing) < 2:
        return None
    # One that was removed still shares; what is left of its word is with the others.
    return next(filter(None, map(node.peers.roster.introducer_of, sharing)), None)


def _shared_credits(node: Node) -> list[api.SharedCredit]:
    """Return each credit that several peers share, once."""
    groups: dict[str, bytes] = {}
    for peer in known_peers(node.ledger.chain.state):
        if (through := shared_through(node, peer)) is not None:
            groups.setdefault(through, peer)
    found = []
    for through, one in sorted(groups.items()):
        sharing = node.ledger.shares_with(one)
        # An operator can set a limit of one of them; what all owe counts against each.
        limit, widest = max((node.ledger.limit(peer), peer) for peer in sharing)
        found.append(
            api.SharedCredit(
                through=through,
                name=node.name_of(ids.from_text(through)),
                limit_micro=limit,
                left_micro=node.market.headroom.credit_left(widest),
                peers=_named(sharing),
            )
        )
    return found


def _paid(node: Node, peer: bytes) -> int:
    payment = node.ledger.payments.waiting(peer)
    return 0 if payment is None else node.ledger.payments.left_micro(payment)


async def balance(node: Node, asked: api.Accounts) -> api.Balances:
    """Show what this node and each peer owe one another."""

    async def standing(peer: bytes) -> PeerAccount | None:
        """Ask a peer that is up how this node's account stands there."""
        if asked.heard:
            return node.ledger.payments.accounts.get(peer)
        return await node.ledger.payments.standing(peer) if node.health.is_up(peer) else None

    ledger, known = node.ledger, known_peers(node.ledger.chain.state)
    standings = await asyncio.gather(*map(standing, known))
    rows = [
        api.Balance(
            peer=peer,
            balance_micro=ledger.balance(peer),
            unproven_micro=ledger.chain.state.unproven_micro(peer),
            clearing_micro=ledger.chain.state.clearing(peer),
            limit_micro=ledger.limit(peer),
            credit_left_micro=ledger.credit_left(peer),
            left_micro=node.market.headroom.credit_left(peer),
            shared_through=shared_through(node, peer),
            own_limit_micro=None if own is None else own.limit_micro,
            own_left_micro=None if own is None else own.left_micro,
            paid_micro=_paid(node, peer),
            heard_paid_micro=ledger.payments.heard(peer),
            entries=ledger.chain.state.dealt.get(peer, 0),
            says=say_debt(node.name_of(peer), ledger.balance(peer)),
        )
        for peer, own in zip(known, standings, strict=True)
    ]
    total = sum(row.balance_micro for row in rows)
    return api.Balances(balances=rows, shared=_shared_credits(node), total_micro=total)


async def log(node: Node, asked: api.Page) -> api.Entries:
    """List entries, the newest first."""
    peer = None if asked.peer is None else node.find(asked.peer)
    # One more says whether there is more.
    found = node.ledger.entries(limit=asked.limit + 1, before=asked.before, peer=peer)
    return api.Entries(entries=found[: asked.limit], more=len(found) > asked.limit)


async def flows(node: Node, asked: api.Booked) -> list[api.Flow]:
    """Sum up what was earned and spent by peer, from memory."""
    return node.ledger.chain.state.flows.since(node.clock.now_ms() - asked.within_ms)


def _span(node: Node, month: str | None) -> tuple[int, int]:
    return units.parse_month(month or units.format_time(node.clock.now_ms())[:7])


async def statement(node: Node, asked: api.Month) -> api.Statement:
    """Show what was booked in a month."""
    head, rows = node.ledger.booked(*_span(node, asked.month), node.name_of)
    payments = await node.parts.executor.run(lambda: [*rows])
    return replace(head, payments=payments)


async def export(node: Node, asked: api.Export) -> Download:
    """Return what was booked as a file."""
    span = (0, 2**63 - 1) if asked.month is None else _span(node, asked.month)
    lines = FORMATS[asked.format](*node.ledger.booked(*span, node.name_of))

    async def pieces(_: int, __: int) -> AsyncGenerator[bytes | memoryview, None]:
        # So many at a time: reading keeps nobody else waiting.
        while piece := await node.parts.executor.run(lambda: "".join(islice(lines, PIECE_LINES))):
            yield piece.encode()

    return Download(pieces)


async def verify(node: Node, _: endpoint.Nothing) -> api.Verified:
    """Replay the ledger."""
    return await node.ledger.verify()


async def entry(node: Node, asked: endpoint.Id) -> bytes:
    """Return one settled entry."""
    try:
        entry_id = ids.from_text(asked.id)
    except errors.ArgumentInvalid:
        raise errors.ArgumentInvalid(
            f"'{asked.id[:80]}' is no id of an entry", hint="`xsc ledger log` shows them"
        ) from None
    return node.ledger.export(entry_id)


async def passport(node: Node, asked: endpoint.Id) -> bytes:
    """Return a passport."""
    return await passports.passport(node, known_lease(node, asked.id))


async def settle(node: Node, _: endpoint.Nothing) -> api.Settlement:
    """Settle now what is owed."""
    before = {(row.role, row.peer): row.settled_micro for row in node.market.store.accounts()}
    await node.market.settlement.settle_all()
    after, settled = node.market.store.accounts(), []
    for row in after:
        amount_micro = row.settled_micro - before.get((row.role, row.peer), 0)
        if amount_micro > 0:
            settled.append(api.Settled(role=row.role, peer=row.peer, amount_micro=amount_micro))
    owed = {(row.role, row.peer): node.market.owed_micro(row) for row in after}
    left = {party: micro for party, micro in owed.items() if micro > 0}
    return api.Settlement(
        settled=settled,
        pending=len({peer for _, peer in left}),
        pending_micro=sum(left.values()),
    )


def _named(nodes: Iterable[bytes]) -> list[endpoint.NamedPeer]:
    return [endpoint.NamedPeer(id=each) for each in nodes]


def _loop(node: Node, loop: SignedLoop) -> api.Loop:
    waits = node.ledger.loops.waits_for(loop)
    return api.Loop(
        members=_named(loop.record.members),
        amount_micro=loop.record.amount_micro,
        state="unsigned" if not loop.is_complete else "unbooked" if waits else "booked",
        waits_for=_named(waits),
    )


async def clear(node: Node, _: endpoint.Nothing) -> api.Loops:
    """Take off debts that go around."""
    found = {loop.id: loop for loop in await node.ledger.loops.clear()}
    state = node.ledger.chain.state
    with_debts = (peer for peer, micro in sorted(state.balances.items()) if micro)
    return api.Loops(
        loops=[_loop(node, loop) for loop in (found | state.loops).values()],
        silent=_named(peer for peer in with_debts if not node.health.is_up(peer)),
    )


async def checkpoint(node: Node, _: endpoint.Nothing) -> api.Checkpoint:
    """Sign how the ledger is, and have that co-signed."""
    await node.ledger.seals.seal_all()
    last = await node.checkpoints.sign()
    await node.forks.round()
    if last is None:
        return api.Checkpoint(size=0, root=None, cosigners=[], needed=0, complete=True, text="")
    known = {peer[:16]: peer for peer in node.peers.roster.all_peers()}
    signed = {by[:16] for by in last.signatures}
    return api.Checkpoint(
        size=last.size,
        root=last.root,
        cosigners=[
            api.Cosigner(
                id=(peer := known.get(prefix)),
                name="" if peer is None else node.name_of(peer),
                signed=prefix in signed,
            )
            for prefix in last.cosigners
        ],
        needed=quorum(len(last.cosigners)),
        complete=last.is_complete,
        text=last.raw.decode(),
    )


async def cubes(node: Node, asked: api.CubesAsked) -> list[api.Cubes]:
    """Show what is sealed with each peer, and compare it where that is asked."""
    balances = node.ledger.chain.state.balances
    with_peers = sorted(balances) if asked.peer is None else [node.find(asked.peer)]
    found = (_cubes_with(node, peer, compare=asked.compare) for peer in with_peers)
    return list(await asyncio.gather(*found))


async def _cubes_with(node: Node, peer: bytes, *, compare: bool) -> api.Cubes:
    made, sealed = await node.ledger.seals.with_peer(peer)
    how: api.Compared = "-"
    shared: int | None = None
    place: int | None = None
    if compare:
        try:
            found = await node.ledger.seals.compare(peer)
            how = "apart"
            if found is not None:
                shared, place = found
                how = "same" if place is None else "differs"
        except errors.LedgerDamaged:
            raise
        except errors.PeerSilent:
            how = "silent"
        except errors.XscError:
            how = "wrong"
    chain = node.ledger.chain
    entry_id = None if place is None else made.read(0, place)
    seq = None if entry_id is None else chain.state.number_of(entry_id)
    own = None if seq is None else chain.own(seq)
    return api.Cubes(
        peer=peer,
        sealed=sealed,
        unsealed=sum(1 for _ in node.ledger.seals.unsealed(peer)),
        levels=_drawn(sealed, place),
        compared=how,
        shared=shared,
        entry_id=entry_id,
        created_ms=None if own is None else own.record.created_ms,
    )


def _drawn(sealed: int, differs: int | None) -> list[api.CubeLevel]:
    """Return the cubes that are being filled, or those of an entry; the highest first."""
    levels = []
    for level in range(cube.top_level(sealed + 1), 0, -1):
        below = cube.CUBE ** (level - 1)
        index = (sealed if differs is None else differs) // below // cube.CUBE
        levels.append(
            api.CubeLevel(
                level=level,
                index=index,
                full=min(cube.CUBE, sealed // below - index * cube.CUBE),
                differs=None if differs is None else differs // below % cube.CUBE,
            )
        )
    return levels


async def pardon(node: Node, asked: api.Pardon) -> api.Pardoned:
    """Hold a fork against its author no more."""
    peer = node.peers.roster.find(asked.peer)
    return api.Pardoned(peer=peer, through_seq=await node.forks.pardon(peer))


async def off_books(node: Node, asked: api.Payment) -> api.PaymentHeard:
    """Report a payment outside of XSC."""
    peer = node.peers.roster.find(asked.peer)
    booked = await node.ledger.payments.say(peer, asked.amount_micro)
    return api.PaymentHeard(
        peer=peer,
        amount_micro=asked.amount_micro,
        state="booked" if booked else "waits" if asked.amount_micro else "withdrawn",
        heard_paid_micro=node.ledger.payments.heard(peer),
        balance_micro=node.ledger.balance(peer),
    )


async def limits(node: Node, _: endpoint.Nothing) -> list[api.PeerLimit]:
    """Show what each limit is made of."""
    known = {*node.peers.roster.all_peers(), *known_peers(node.ledger.chain.state)}
    return [
        endpoint.filled(
            api.PeerLimit,
            node.ledger.limit_terms(peer),
            peer=peer,
            shared_through=shared_through(node, peer),
            owed_micro=node.ledger.chain.state.exposure(peer),
        )
        for peer in sorted(known)
    ]


async def limit(node: Node, asked: api.Limit) -> api.LimitSet:
    """Set what a peer may owe."""
    peer = node.peers.roster.find(asked.peer)
    await node.ledger.set_limit(peer, asked.limit_micro)
    return api.LimitSet(
        peer=peer,
        limit_micro=node.ledger.limit(peer),
        credit_left_micro=node.ledger.credit_left(peer),
        shared_through=shared_through(node, peer),
    )
