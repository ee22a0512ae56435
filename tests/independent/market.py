"""A checker of slots, needs, leases and bills, written from docs/design without the code.

It shares no code with `xsc`. It reads what nodes publish in their spaces, the leases of storage
that they signed, and the count and the voucher of each pair; `faults` says what does not follow.
Names in brackets are rules: of market.md, or of the page that stands before them.
"""

import hashlib
from itertools import pairwise
from math import lcm
from typing import NamedTuple

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.independent import clearing

STEP = 64 * 2**20
LATE_MS = 30 * 24 * 3_600_000
PRICED = 2**30 * 3_600_000
"""Byte-milliseconds that a price is for."""
WORTH = lcm(PRICED, 10**9 * 1_000)
"""Parts of a micro-credit in which use is counted, of storage and of compute."""
COMMITMENT, RECOGNITION = "allocation/commitment", "allocation/recognition"
RUNGS = {"mutual": "price_mutual", "one_way": "price_one_way", "open": "reserve"}


class Broken(Exception):
    """A record is none, or is not what it says."""


class Lease(NamedTuple):
    """One term of a lease: one that is renewed has several, of one id."""

    id: bytes
    provider: bytes
    customer: bytes
    slot: bytes
    window: list
    tier: str
    need: bytes | None
    number: int
    level: int
    price: int
    start_ms: int
    end_ms: int
    clearing: bytes | None


def hashed(tag, *parts):
    return hashlib.sha256(b"XSC/1/" + tag.encode() + b"\0" + b"".join(parts)).digest()


def opened(raw, kind):
    """Return author and fields of a record that its author signed alone [identity]."""
    envelope = cbor2.loads(raw)
    signed = b"XSC/1/sig/" + kind.encode() + b"\0" + envelope["net"]
    try:
        key = Ed25519PublicKey.from_public_bytes(envelope["by"])
        key.verify(envelope["sig"], signed + hashlib.sha256(envelope["body"]).digest())
    except InvalidSignature:
        raise Broken(f"a {kind} is not signed by its author") from None
    return envelope["by"], cbor2.loads(envelope["body"])


def lease_of(raw):
    """Return a lease that both its parties signed [L1]."""
    provider, granted = opened(raw, "lease")
    customer, asked = opened(granted["request"], "lease_request")
    if (asked["provider"], asked["customer"]) != (provider, customer):
        raise Broken("a lease is between others than those who signed it")
    if not (asked["need"] is not None) <= granted["level"] <= asked["level"]:
        raise Broken("a lease is of another level than was asked for")
    names = ("slot", "window", "tier", "need", "number")
    return Lease(
        asked["lease_id"],
        provider,
        customer,
        *(asked[name] for name in names),
        granted["level"],
        *(asked[name] for name in ("price", "start_ms", "end_ms")),
        granted["clearing"],
    )


class Published:
    """What all nodes publish, or did. `spaces`: by node, pairs of path and value."""

    def __init__(self, spaces):
        self.commitments = {node: [] for node in spaces}
        self.weights = {node: {} for node in spaces}
        self.clearings = {node: {} for node in spaces}
        self.named = {}
        for node, rows in spaces.items():
            for path, value in rows:
                if path == COMMITMENT:
                    self.commitments[node].append(cbor2.loads(value))
                elif path == RECOGNITION:
                    self.weights[node] = dict(cbor2.loads(value)["weights"])
                elif path.startswith("market/named/"):
                    said = cbor2.loads(value)
                    self.named[clearing.name_of(said)] = said["value"]
                elif path.startswith("market/clearings/"):
                    author, record = opened(value, "clearing")
                    if author != node:
                        raise Broken("a clearing is signed by another than its provider")
                    self.clearings[node][hashed("clearing", cbor2.loads(value)["body"])] = record

    def of(self, node, what, **fields):
        """Return the slots or needs that a node published, in all versions, with those fields."""
        return [
            each
            for said in self.commitments[node]
            for each in said[what]
            if each["kind"] == "storage" and fields.items() <= each.items()
        ]

    def tier(self, provider, customer):
        """[allocation N2]"""
        given = self.weights[provider].get(customer, 0)
        taken = self.weights[customer].get(provider, 0)
        return "mutual" if min(given, taken) >= 10_000 else "one_way" if given else "open"

    def granted(self, lease):
        """Yield tier, units and price of what clearings granted the need of a lease there [P1].

        It is the clearing that the lease names; its next terms name none.
        """
        records = self.clearings[lease.provider]
        named = [records.get(lease.clearing)] if lease.clearing else records.values()
        for record in filter(None, named):
            begins, ends = lease.window
            if record["slot"]["slot_id"] != lease.slot or not begins <= record["at_ms"] < ends:
                continue
            lines, _ = clearing.outcome(record, self.named)
            for customer, need_id, *granted in clearing.joined(lines):
                if (customer, need_id) == (lease.customer, lease.need):
                    yield granted


def lease_faults(lease, published):
    """Yield what is wrong with a lease by itself: its slot, its need, its price."""
    slots = [
        slot
        for slot in published.of(lease.provider, "slots", slot_id=lease.slot)
        if any(
            begin <= lease.window[0] and lease.window[1] <= end
            for begin, end in slot["windows"] or [[0, slot["valid_until_ms"]]]
        )
    ]
    if not slots:
        yield "it names no slot that its provider published"
    if lease.tier != published.tier(lease.provider, lease.customer):
        yield "its tier is not what both published"
    posted = {slot[RUNGS[lease.tier]] for slot in slots}
    if lease.need is None:
        # For now: the request is the need [L1]. Strangers may be paid more, by an auction.
        if lease.price not in posted and (
            lease.tier != "open" or lease.price < min(posted, default=0)
        ):
            yield "its price is not what its provider posted"
        return
    needs = published.of(lease.customer, "needs", slot_id=lease.need, number=lease.number)
    if not any(lease.price <= need["price_max"] for need in needs):
        yield "it names no need that its customer published at that price"
    cleared = {(tier, price) for tier, _, price in published.granted(lease)}
    if not cleared:
        yield "no clearing granted it"
    elif (lease.tier, lease.price) not in cleared and (lease.clearing or lease.price not in posted):
        yield "its price is not what was cleared"


def terms_of(leases):
    """Return the terms of each lease, by its id, in their order."""
    found = {}
    for lease in sorted(leases, key=lambda each: each.start_ms):
        found.setdefault(lease.id, []).append(lease)
    return found


def spans(terms, until_ms):
    """Yield each term of a lease with its time: to its end, or until the next one begins [N4]."""
    starts = [lease.start_ms for lease in terms] + [until_ms]
    for lease, (start, then) in zip(terms, pairwise(starts), strict=True):
        yield lease, start, max(start, min(then, lease.end_ms, until_ms))


def most(leases, ends):
    """Return the most that leases have at any moment: what is kept free for them."""
    levels = [
        (start, end, lease.level)
        for lease_id, terms in terms_of(leases).items()
        for lease, start, end in spans(terms, ends.get(lease_id, terms[-1].end_ms))
    ]
    return max(
        (
            sum(level for start, end, level in levels if start <= now_ms < end)
            for now_ms, _, _ in levels
        ),
        default=0,
    )


def sum_faults(leases, published, ends):
    """Yield which leases come to more than a slot, a grant or a need."""
    cleared = [lease for lease in leases if lease.need is not None]
    for provider, slot_id in {(lease.provider, lease.slot) for lease in cleared}:
        mine = [x for x in cleared if (x.provider, x.slot) == (provider, slot_id)]
        slots = published.of(provider, "slots", slot_id=slot_id)
        if most(mine, ends) > STEP * max((slot["quantity"] for slot in slots), default=0):
            yield "the leases of a slot come to more than it"
    drawn = {}
    for lease in cleared:
        key = lease.provider, lease.slot, lease.customer, lease.need
        drawn.setdefault(key, []).append(lease)
    for (provider, _, customer, need_id), mine in drawn.items():
        units = max(
            (units for lease in mine for _, units, _ in published.granted(lease)), default=0
        )
        if most(mine, ends) > STEP * units:
            yield "the leases of a need come to more than a clearing granted"
        needs = published.of(customer, "needs", slot_id=need_id)
        parts = [dict(need["parts"]) for need in needs]
        accepted = [
            part.get(provider, 0) - (sum(part.values()) - need["quantity"]) // need["spread"]
            for need, part in zip(needs, parts, strict=True)
        ]
        if most(mine, ends) > STEP * max(accepted, default=0):
            yield "the leases of a need come to more than it accepts of a provider"
    for customer, need_id in {(key[2], key[3]) for key in drawn}:
        mine = [x for key, of in drawn.items() for x in of if key[2:] == (customer, need_id)]
        needs = published.of(customer, "needs", slot_id=need_id)
        if most(mine, ends) > STEP * max((need["quantity"] for need in needs), default=0):
            yield "the leases of a need come to more than it states"


def bill_faults(raw_count, raw_voucher, leases, published):
    """Yield what is wrong with what a pair settles: use, sum and voucher [V1, V3, U1]."""
    provider, count = opened(raw_count, "lease_count")
    customer, voucher = opened(raw_voucher, "voucher")
    if (count["provider"], count["customer"]) != (provider, customer):
        yield "the count is not of the pair that signed"
    if voucher["account"] != hashed("leases", provider, customer):
        yield "the voucher is of another account"
    if voucher["count"] != hashed("lease_count", cbor2.loads(raw_count)["body"]):
        yield "the voucher pays another count"
    known = terms_of(
        x
        for x in leases
        if (x.provider, x.customer) == (provider, customer) and x.start_ms < count["counted_ms"]
    )
    lines = {line["lease_id"]: line for line in count["leases"]}
    if known.keys() - lines.keys():
        yield "the count leaves a lease out"
    if lines.keys() - known.keys():
        yield "the count names a lease that was not signed"
    for lease_id in known.keys() & lines.keys():
        line, terms = lines[lease_id], known[lease_id]
        used, until_ms = int.from_bytes(line["used"], "big"), count["counted_ms"]
        last, part = terms[-1], WORTH // PRICED
        # One for now keeps nothing free, and has at most the whole slot.
        slots = published.of(provider, "slots", slot_id=last.slot)
        room = last.level or STEP * max((slot["quantity"] for slot in slots), default=0)
        kept = sum(
            (x.level or room) * x.price * (end - start) for x, start, end in spans(terms, until_ms)
        )
        late_ms = min(max(0, until_ms - last.end_ms), LATE_MS)
        if used > (kept + room * last.price * late_ms) * part:
            yield "more is counted than level times time"
        is_whole = {x.level for x in terms} == {line["level"]} != {0} and not late_ms
        if is_whole and used != kept * part:
            yield "what was kept free all the time is not what is counted"
    if int.from_bytes(count["closed"], "big"):
        yield "what forgotten leases came to is in no record"
    owed = sum(int.from_bytes(line["used"], "big") for line in lines.values()) // WORTH
    # Of what was for bytes held, only what is proven is paid: that is in no record.
    if not owed >= count["amount_micro"] == voucher["amount_micro"]:
        yield "what is paid is not what was used"


def faults(spaces, raw_leases, accounts):
    """Return what does not follow from what was published and signed; nothing where all does.

    Args:
        spaces: by node, pairs of path and value: those that were replaced, too.
        raw_leases: the signed leases of storage, of all their terms.
        accounts: the signed count and voucher of each pair that owes something.
    """
    published = Published(spaces)
    leases = list({(x.id, x.start_ms): x for x in map(lease_of, raw_leases)}.values())
    found = [fault for lease in leases for fault in lease_faults(lease, published)]
    ends = {}
    for raw_count, raw_voucher in accounts:
        _, count = opened(raw_count, "lease_count")
        ends |= {line["lease_id"]: line["end_ms"] for line in count["leases"]}
        found += bill_faults(raw_count, raw_voucher, leases, published)
    return found + list(sum_faults(leases, published, ends))
