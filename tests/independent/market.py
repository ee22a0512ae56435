"""A checker of slots, needs, leases and bills, written from docs/design without the code.

It shares no code with `xsc`. It reads what nodes publish in their spaces, the leases of storage
that they signed, and the count and the voucher of each pair; `faults` says what does not follow.
Names in brackets are rules: of market.md, or of the page that stands before them.
"""

import hashlib
from fractions import Fraction
from typing import NamedTuple

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

STEP = 64 * 2**20
PRICED = 2**30 * 3_600_000
"""Byte-milliseconds that a price is for."""
COMMITMENT, RECOGNITION = "allocation/commitment", "allocation/recognition"
LATE_MS = 30 * 24 * 3_600_000
RUNGS = {"mutual": "price_mutual", "one_way": "price_one_way", "open": "reserve"}


class Broken(Exception):
    """A record is none, or is not what it says."""


class Lease(NamedTuple):
    id: bytes
    provider: bytes
    customer: bytes
    quantity: int
    price: int
    start_ms: int
    end_ms: int
    renews: bytes | None
    quote: dict | None
    draw: dict | None
    clearing: bytes | None
    asked: dict


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
    quoter, quote = (provider, None) if asked["draw"] else opened(asked["quote"], "quote")
    parties = [(each["provider"], each["customer"]) for each in (asked, quote) if each]
    if quoter != provider or set(parties) != {(provider, customer)}:
        raise Broken("a lease is between others than those who signed it")
    if not asked["quantity_min"] <= granted["quantity"] <= asked["quantity"]:
        raise Broken("a lease is of another quantity than was asked for")
    return Lease(
        asked["lease_id"],
        provider,
        customer,
        granted["quantity"],
        asked["price"],
        asked["start_ms"],
        asked["end_ms"],
        asked["renews"],
        quote,
        asked["draw"],
        granted["clearing"],
        asked,
    )


class Published:
    """What all nodes publish, or did. `spaces`: by node, pairs of path and value."""

    def __init__(self, spaces):
        self.commitments = {node: [] for node in spaces}
        self.weights = {node: {} for node in spaces}
        self.clearings = {node: {} for node in spaces}
        for node, rows in spaces.items():
            for path, value in rows:
                if path == COMMITMENT:
                    self.commitments[node].append(cbor2.loads(value))
                elif path == RECOGNITION:
                    self.weights[node] = dict(cbor2.loads(value)["weights"])
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
        """Yield tier, units and price of what the clearing grants that a lease names [P1]."""
        draw, record = lease.draw, self.clearings[lease.provider].get(lease.clearing)
        if record is None or record["slot"]["slot_id"] != draw["slot"]:
            return
        for said in record["participants"]:
            lines = [line[1:] for line in said["lines"] if line[0] == draw["need"]]
            if (said["customer"], list(record["window"]), bool(lines)) == (
                lease.customer,
                [draw["start_ms"], draw["end_ms"]],
                True,
            ):
                units = sum(line[1] for line in lines)
                price = -(-sum(line[1] * line[2] for line in lines) // units)
                yield lines[0][0], units, price


def lease_faults(lease, published):
    """Yield what is wrong with a lease by itself: its slot, its need, its price."""
    quote, tier = lease.quote, (lease.draw or lease.quote)["tier"]
    if quote and (quote["price"] != quote[RUNGS[tier]] or lease.price < quote["price"]):
        yield "its price is not that of its quote"
    if tier != published.tier(lease.provider, lease.customer):
        yield "its tier is not what both published"
    if lease.draw is None:
        # For now: of the standing slot, at the rung of its ladder; the request is the need [L1].
        slots = published.of(lease.provider, "slots", standing=True)
        cleared = {
            line[3]
            for r in published.clearings[lease.provider].values()
            for p in r["participants"]
            for line in p["lines"]
        }
        if not any(
            (slot["price_mutual"], slot["price_one_way"])
            == (quote["price_mutual"], quote["price_one_way"])
            and quote["reserve"] in {slot["reserve"], *cleared}
            for slot in slots
        ):
            yield "it is of no slot that its provider published at that price"
        if tier != "open" and lease.price != quote["price"]:
            yield "who recognises its customer is paid more than its rung"
        return
    slots = published.of(lease.provider, "slots", slot_id=lease.draw["slot"])
    stated = {"slot_id": lease.draw["need"], "number": lease.draw["number"]}
    needs = published.of(lease.customer, "needs", **stated)
    if not slots:
        yield "it names no slot that its provider published"
    if not any(lease.price <= need["price_max"] for need in needs):
        yield "it names no need that its customer published at that price"
    if (tier, lease.price) not in {(of, price) for of, _, price in published.granted(lease)}:
        yield "its price is not what was cleared"


def moments(leases, ends):
    """Yield at each moment the levels that leases have at most, by the first that each renews.

    A lease that renews another takes the level of what comes over, so that both have no more than
    the larger of them [N4].
    """
    by_id = {lease.id: lease for lease in leases}

    def root(lease):
        return root(by_id[lease.renews]) if lease.renews in by_id else lease.id

    for now_ms in sorted({lease.start_ms for lease in leases}):
        levels = {}
        for lease in leases:
            if lease.start_ms <= now_ms < ends.get(lease.id, lease.end_ms):
                levels[root(lease)] = max(levels.get(root(lease), 0), lease.quantity)
        yield now_ms, sum(levels.values())


def most(leases, ends):
    return max((level for _, level in moments(leases, ends)), default=0)


def sum_faults(leases, published, ends):
    """Yield which leases come to more than a slot, a grant or a need."""
    for provider in {lease.provider for lease in leases}:
        mine = [lease for lease in leases if lease.provider == provider]
        slots = published.of(provider, "slots", standing=True)
        if most(mine, ends) > STEP * max((slot["quantity"] for slot in slots), default=0):
            yield "the leases of a provider come to more than its slot"
    drawn = {}
    for lease in leases:
        if lease.draw is not None:
            key = lease.provider, lease.draw["slot"], lease.customer, lease.draw["need"]
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


def bill_faults(raw_count, raw_voucher, leases):
    """Yield what is wrong with what a pair settles: use, sum and voucher [V1, V3, U1]."""
    provider, count = opened(raw_count, "lease_count")
    customer, voucher = opened(raw_voucher, "voucher")
    if (count["provider"], count["customer"]) != (provider, customer):
        yield "the count is not of the pair that signed"
    if voucher["account"] != hashed("leases", provider, customer):
        yield "the voucher is of another account"
    if voucher["count"] != hashed("lease_count", cbor2.loads(raw_count)["body"]):
        yield "the voucher pays another count"
    known = {
        lease.id: lease
        for lease in leases
        if (lease.provider, lease.customer) == (provider, customer)
    }
    lines = {line["lease_id"]: line for line in count["leases"]}
    if {x.id for x in known.values() if x.start_ms < count["counted_ms"]} - lines.keys():
        yield "the count leaves a lease out"
    owed = Fraction(0)
    for lease_id, line in lines.items():
        lease, used = known.get(lease_id), int.from_bytes(line["used"], "big")
        if lease is None:
            yield "the count names a lease that was not signed"
            continue
        time_ms = min(count["counted_ms"], lease.end_ms) - lease.start_ms
        late_ms = min(max(0, count["counted_ms"] - lease.end_ms), LATE_MS)
        if used > lease.quantity * (time_ms + late_ms):
            yield "more is counted than quantity times time"
        is_whole = line["level"] == lease.quantity and not late_ms
        if is_whole and used != lease.quantity * time_ms:
            yield "what was kept free all the time is not what is counted"
        owed += Fraction(lease.price * used, PRICED)
    if int.from_bytes(count["closed"], "big"):
        yield "what forgotten leases came to is in no record"
    if not int(owed) == count["amount_micro"] == voucher["amount_micro"]:
        yield "what is paid is not price times use"


def faults(spaces, raw_leases, accounts):
    """Return what does not follow from what was published and signed; nothing where all does.

    Args:
        spaces: by node, pairs of path and value: those that were replaced, too.
        raw_leases: the signed leases of storage.
        accounts: the signed count and voucher of each pair that owes something.
    """
    published = Published(spaces)
    leases = list({lease.id: lease for lease in map(lease_of, raw_leases)}.values())
    found = [fault for lease in leases for fault in lease_faults(lease, published)]
    ends = {}
    for raw_count, raw_voucher in accounts:
        _, count = opened(raw_count, "lease_count")
        ends |= {line["lease_id"]: line["end_ms"] for line in count["leases"]}
        found += bill_faults(raw_count, raw_voucher, leases)
    return found + list(sum_faults(leases, published, ends))
