"""Plans a new incarnation of a ledger from the entries that its peers hold.

Both parties keep an entry that books something, so the peers together show the whole
ledger, except for what a silent peer holds or a dishonest one hides. The directory head
says how much that is; it is listed as unproven, and taken when it is shown.
Laws: docs/design/ledger.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xsc.base import errors, fields, limits
from xsc.base.encoding import Value
from xsc.identity.envelope import Signed
from xsc.ledger import audit, entry
from xsc.ledger.incarnation import Incarnation, Noted, Restart
from xsc.ledger.loop import open_voucher
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
        if half.author != me or other.author != peer:
            return None
        voucher = open_voucher(fields.take_bytes(item, "voucher"), half.record, network=network)
    except errors.XscError:
        return None
    return Old(half, other, voucher) if check_old(half, other, voucher) is None else None


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


def plan(
    last: Signed[entry.Half] | None, noted: Noted, *, highest_seq: int, now_ms: int
) -> Incarnation:
    """Return the incarnation that follows on what is known.

    Args:
        last: the last half that is proven.
        noted: what the directory says of the ledger.
        highest_seq: above every number that is known to have been used.
        now_ms: the time. It is the number, too: two restarts of which the second does not
            know the first have two numbers all the same.
    """
    known = max(highest_seq, noted.next_seq)
    return Incarnation(
        first_seq=max(now_ms, known + limits.INCARNATION_GAP),
        proven_seq=0 if last is None else last.record.seq,
        proven=entry.GENESIS if last is None else last.id,
        noted=hashlib.sha256(noted.to_bytes()).digest(),
        created_ms=now_ms,
    )
