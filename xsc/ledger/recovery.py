"""Rebuilds a node's own chain from what its peers hold of it.

A half that moves something stands at the peer beside the peer's own. Halves that
concern their author alone (a limit, a withdrawal, a debt not answered yet) stand
nowhere else, and the chain would have gaps: so with each entry its author also
tells the halves before it that nobody has, sealed under a key of its identity.
That is the trail. Peers keep it and cannot read it. Laws: docs/design/directory.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from xsc.base.encoding import Value, decode, domain, encode
from xsc.base.errors import LedgerDamaged, RecordInvalid, XscError
from xsc.base.fields import take_bytes, take_opt_bytes
from xsc.base.limits import LEDGER_TRAIL_BYTES_MAX
from xsc.identity.envelope import Signed
from xsc.identity.keys import KeyPair
from xsc.ledger.audit import Rows, mark_bytes, open_voucher, replay
from xsc.ledger.entry import Half, open_half
from xsc.ledger.validation import check_counter, check_voucher

TRAIL_NONCE_BYTES = 12
_TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Step:
    """An own half that nobody else has, and the voucher under it."""

    half: bytes
    voucher: bytes | None


@dataclass(frozen=True, slots=True)
class Shown:
    """An own half as a peer shows it, its own beside it, checked one by one."""

    half: Signed[Half]
    other: bytes
    voucher: bytes
    trail: tuple[Step, ...]


def seal_trail(steps: Sequence[Step], key: KeyPair, nonce: bytes) -> bytes | None:
    """Return steps sealed for their author; None where there are none.

    Steps that are too many to tell, the oldest, are left out.
    """
    kept: list[Value] = []
    size = TRAIL_NONCE_BYTES + _TAG_BYTES + 64
    for step in steps:
        size += len(step.half) + len(step.voucher or b"") + 16
        if size > LEDGER_TRAIL_BYTES_MAX:
            break
        kept.append([step.half, step.voucher])
    if not kept:
        return None
    plain = encode({"v": 1, "steps": kept})
    return nonce + AESGCM(key.derive("ledger/trail")).encrypt(nonce, plain, domain("ledger-trail"))


def open_trail(raw: bytes, key: KeyPair) -> list[Step]:
    """Return the steps of a trail.

    Raises:
        RecordInvalid: it does not open under this identity, or breaks its form.
    """
    nonce, sealed = raw[:TRAIL_NONCE_BYTES], raw[TRAIL_NONCE_BYTES:]
    try:
        plain = AESGCM(key.derive("ledger/trail")).decrypt(nonce, sealed, domain("ledger-trail"))
    except (InvalidTag, ValueError):
        raise RecordInvalid("the trail does not open under this identity") from None
    match decode(plain, size_max=LEDGER_TRAIL_BYTES_MAX):
        case {"v": 1, "steps": list(steps)}:
            return [_step(item) for item in steps]
    raise RecordInvalid("the trail is of no known form")


def _step(item: Value) -> Step:
    match item:
        case [bytes(half), None]:
            return Step(half, None)
        case [bytes(half), bytes(voucher)]:
            return Step(half, voucher)
    raise RecordInvalid("a step of the trail is of no known form")


def check_shown(
    item: Mapping[str, Value], *, peer: bytes, key: KeyPair, network: bytes
) -> Shown | None:
    """Return an item of a peer's history where it holds by itself, else None."""
    try:
        half = open_half(take_bytes(item, "half"), network=network)
        other = open_half(take_bytes(item, "other"), network=network)
        voucher = open_voucher(take_bytes(item, "voucher"), network=network)
        raw = take_opt_bytes(item, "trail")
        trail = [] if raw is None else open_trail(raw, key)
    except XscError:
        return None
    if half.author != key.node_id or other.author != peer:
        return None
    first, answer = (half, other) if half.record.link is None else (other, half)
    if check_counter(first, answer) is not None or check_voucher(first.record, voucher) is not None:
        return None
    return Shown(half, other.raw, voucher.raw, tuple(trail))


def rebuild(known: Rows, shown: Sequence[Shown], *, me: bytes, network: bytes) -> Rows:
    """Return the chain that the own rows and what peers show add up to, replayed.

    Raises:
        LedgerDamaged: an entry is missing, two stand in one place, or a rule is broken.
    """
    halves, others = dict(known.halves), dict(known.others)
    vouchers = dict(known.vouchers)

    def put(half: Signed[Half], voucher: bytes | None) -> None:
        seq = half.record.seq
        if halves.setdefault(seq, half.raw) != half.raw:
            raise LedgerDamaged(
                f"two different entries of this node stand in place {seq}: its ledger was forked",
                hint="a copy of this home has signed entries of its own",
            )
        if voucher is not None:
            vouchers.setdefault(seq, voucher)

    for item in shown:
        put(item.half, item.voucher)
        others.setdefault(item.half.record.seq, item.other)
        for step in item.trail:
            own = open_half(step.half, network=network)
            if own.author != me:
                raise LedgerDamaged("a trail of this node holds an entry of another")
            put(own, step.voucher)
    missing = [seq for seq in range(max(halves, default=-1) + 1) if seq not in halves]
    if missing:
        raise LedgerDamaged(
            f"entry {missing[0]} of this node's ledger is missing at all peers that answered",
            hint="try again when the silent peers are back",
        )
    if not halves:
        return known
    last = open_half(halves[max(halves)], network=network)
    rows = Rows(
        mark=mark_bytes(last),
        halves=halves,
        others=others,
        vouchers=vouchers,
        conflicts=known.conflicts,
    )
    replay(rows, me=me, network=network, signatures=True)
    return rows
