"""Plans a new incarnation of a ledger from the entries that its peers hold.

Both parties keep an entry that books something, so the peers together show the whole
ledger, except for what a silent peer holds or a dishonest one hides. The directory head
says how much that is; it is listed as unproven, and taken when it is shown.
Laws: docs/design/ledger.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xsc.base import errors, fields, limits
from xsc.base.encoding import Value
from xsc.identity.envelope import Signed
from xsc.ledger import audit, entry
from xsc.ledger.incarnation import Incarnation, Noted, Restart, carried_hash
from xsc.ledger.loop import open_voucher
from xsc.ledger.state import LedgerState, next_claim
from xsc.ledger.validation import check_old
from xsc.terms.voucher import Voucher


@dataclass(frozen=True, slots=True)
class Old:
    """A half of an earlier incarnation, the other party's half, and their voucher."""

    half: Signed[entry.Half]
    other: Signed[entry.Half]
    voucher: Signed[Voucher]


def check_shown(item: Mapping[str, Value], *, peer: bytes, me: bytes, network: bytes) -> Old | None:
    """Return an item of a peer's history where it holds by itself, else None."""
    try:
        half = entry.open_half(fields.take_bytes(item, "half"), network=network)
        other = entry.open_half(fields.take_bytes(item, "other"), network=network)
        raw = fields.take_bytes(item, "voucher")
        voucher = open_voucher(raw, half.record, network=network)
    except errors.XscError:
        return None
    if half.author != me or other.author != peer or check_old(half, other, voucher) is not None:
        return None
    return Old(half, other, voucher)


def known_entries(rows: Iterable[audit.Stored], *, network: bytes) -> list[Old]:
    """Return the settled entries of the own ledger.

    Raises:
        PeerError, LimitError: a row is damaged.
    """
    found = []
    for row in rows:
        if row.half is not None and row.other is not None and row.voucher is not None:
            half = entry.open_half(row.half, network=network)
            if half.record.kind == "seal":
                continue
            voucher = open_voucher(row.voucher, half.record, network=network)
            found.append(Old(half, entry.open_half(row.other, network=network), voucher))
    return found


def merged(entries: Iterable[Old]) -> list[Old]:
    """Return one entry for each number, the first that was given, in order of number."""
    found: dict[int, Old] = {}
    for item in entries:
        found.setdefault(item.half.record.seq, item)
    return [found[seq] for seq in sorted(found)]


def lacks_incarnation(known: Restart | None, told: Signed[Incarnation] | None) -> bool:
    """Return whether a peer was told an incarnation of this node that its own ledger lacks.

    Args:
        known: the restart in the own ledger; None in the first incarnation.
        told: the newest one that the peer was told; None for none.
    """
    if told is None:
        return False
    if known is None:
        return told.record.first_seq > 0
    own = known.incarnation
    first, own_first = told.record.first_seq, own.record.first_seq
    return first > own_first or (first == own_first and told.raw != own.raw)


def turns_of(state: LedgerState, late: Sequence[Old]) -> tuple[list[bytes], bytes]:
    """Return the row of each claim that is taken now, and the hash over all claims with them."""
    turns, claims_head = [], state.claims_head
    for number, item in enumerate(late, len(state.claims)):
        turns.append(audit.claim_bytes(state.next_seq, number))
        claims_head = next_claim(claims_head, turns[-1], item.half.id, item.other.id)
    return turns, claims_head


def plan(old: Sequence[Old], noted: Noted, *, highest_seq: int, now_ms: int) -> Incarnation:
    """Return the incarnation that follows on what is known.

    Args:
        old: what is taken along, in order of number.
        noted: what the directory says of the ledger.
        highest_seq: above every number that is known to have been used.
        now_ms: the time. It is the number, too: two restarts of which the second does not
            know the first have two numbers all the same.
    """
    known = max(highest_seq, noted.next_seq)
    last = old[-1].half if old else None
    return Incarnation(
        first_seq=max(now_ms, known + limits.INCARNATION_GAP),
        proven_seq=0 if last is None else last.record.seq,
        proven=entry.GENESIS if last is None else last.id,
        carried=carried_hash(noted, ((item.half.id, item.other.id) for item in old)),
        created_ms=now_ms,
    )
