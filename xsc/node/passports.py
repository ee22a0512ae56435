"""Puts the passport of a lease together: what this node has of it, as others signed it.

`xsc.node.offline.passport` checks one and shares nothing with this. docs/design/ledger.md, W1 to
W5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from xsc.base import encoding, errors, turns
from xsc.identity.envelope import Signed, open_signed
from xsc.ledger import tree
from xsc.ledger.checkpoints import Leaves
from xsc.ledger.entry import Half
from xsc.market.lease import LeaseEntry
from xsc.node.build import Node
from xsc.node.offline.passport import PASSPORT_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.terms.slot import Commitment
from xsc.terms.voucher import LeaseCount, leases_account

Parts: TypeAlias = Mapping[str, encoding.Value]
NONE: Final[Parts] = dict.fromkeys(
    ("slot", "need", "voucher", "count", "challenge", "half", "counter", "paid", "note")
)
LEFT_OUT: Final = ("challenge", "need", "slot")
"""What a passport goes without that would be too large, the first one first."""


def passport_bytes(lease: bytes, parts: Parts) -> bytes:
    """Return a passport of a signed lease and of what else there is."""
    whole = {"v": 1, "kind": "passport", "lease": lease, **NONE, "path": [], **parts}
    for name in LEFT_OUT:
        raw = encoding.encode(whole)
        if len(raw) <= PASSPORT_BYTES_MAX:
            break
        whole[name] = None
    return encoding.encode(whole)


async def passport(node: Node, lease_id: bytes) -> bytes:
    """Return the passport of a lease of this node, in either role.

    Raises:
        NotFound: no provider has signed such a lease.
        LedgerDamaged: the chain on the disk is not the one that this node works with.
    """
    entry = node.market.store.get("customer", lease_id) or node.market.store.get(
        "provider", lease_id
    )
    if entry is None or not entry.raw:
        raise errors.NotFound("this node has no such lease", hint="`xsc market leases` lists them")
    terms, account = entry.terms, node.market.store.account(entry.role, entry.peer)
    is_customer, count = entry.role == "customer", account.count
    if count is not None and not _names(node, count, lease_id):
        count = None
    is_held = terms.kind == "storage" and is_customer
    parts: dict[str, encoding.Value] = {
        "slot": _published(node, terms.provider, terms.slot),
        "need": None if terms.need is None else _published(node, terms.customer, terms.need),
        "voucher": account.voucher,
        "count": count,
        "challenge": node.challenges.shown(entry.peer) if is_held else None,
    }
    raw, own = entry.raw, await _last_entry(node, entry)
    if own is not None and account.voucher is not None:
        parts |= await _entry_parts(node, own)
    return passport_bytes(raw, parts)


def _names(node: Node, raw: bytes, lease_id: bytes) -> bool:
    count = open_signed(raw, LeaseCount, network=node.peers.network).record
    return any(line.lease_id == lease_id for line in count.leases)


def _published(node: Node, owner: bytes, wanted: bytes) -> encoding.Value:
    """Return record and value with which a node publishes a slot or need, if it still does."""
    found = node.commitments.heard.value(UserSpacePaths.COMMITMENT, owner)
    if found is None:
        return None
    both = Commitment.read(found.value).both
    return [found.record, found.value] if wanted in {each.slot_id for each in both} else None


async def _last_entry(node: Node, entry: LeaseEntry) -> Signed[Half] | None:
    """Return the own half of the last settled entry for leases with that provider."""
    state, terms = node.ledger.chain.state, entry.terms
    account = leases_account(terms.provider, terms.customer)
    async for _, seen in turns.sliced(state.seen.numbered(entry.peer, 0, reverse=True)):
        own = node.ledger.chain.own(seen.seq)
        if own.record.kind == "post" and own.record.account == account:
            return own
    return None


async def _entry_parts(node: Node, own: Signed[Half]) -> Parts:
    """Return both halves, the voucher, and what proves the own half under a checkpoint."""
    book, seq = node.ledger.chain, own.record.seq
    row, is_answer = book.row(seq), own.record.link is not None
    half, counter = (row.other, row.half) if is_answer else (row.half, row.other)
    parts = {"half": half, "counter": counter, "paid": row.voucher}
    at = seq - book.state.first_seq
    last = node.checkpoints.last()
    if last is None or last.size <= at:
        last = await node.checkpoints.sign()
    if at < 0 or last is None or last.size <= at:
        return parts  # It is of an earlier incarnation, which no checkpoint covers.
    top = Leaves(book).top
    path = await node.parts.executor.run(tree.prove_inclusion, at, last.size, top)
    return {**parts, "note": last.raw, "path": [*path]}
