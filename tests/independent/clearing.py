"""Recomputes a packed clearing record from its bytes, and shares no code with `xsc`.

It reads the record and what it names with `cbor2`, decides who matches, divides by the definition
of the rule (the least units / weight first, found by bisection over whole numbers), and prices the
auction by holding it again without each winner. Signatures are not checked here.
"""

import base64
import hashlib
from fractions import Fraction
from math import lcm

import cbor2

ORDER = ["mutual", "one_way", "open"]


def hash_of(what, *parts):
    return hashlib.sha256(b"XSC/1/" + what.encode() + b"\0" + b"".join(parts)).digest()


def lot(salt, customer):
    return hash_of("clearing/lot", salt, customer)


def salt_of(record):
    day = record["at_ms"] // 86_400_000
    slot_id = record["slot"]["slot_id"]
    return hash_of("clearing/salt", slot_id, day.to_bytes(8, "big"))


def standing(weights, one, other):
    """How `other` stands at `one`: tier and weight."""
    mine, theirs = weights[one].get(other, 0), weights[other].get(one, 0)
    if min(mine, theirs) >= 10_000:
        return "mutual", min(mine, theirs)
    return ("one_way", mine) if mine else ("open", 1)


def unpack(packed):
    numbers, value, shift, at, windows = [], 0, 0, 0, []
    for byte in packed:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        windows.append((at + gap, at + gap + length))
        at += gap + length
    return windows


def accepts(who, other, node, tier):
    """Whether the other side meets the filters of a slot or need."""
    met = {
        "node": lambda value: base64.b32encode(node).decode().lower().rstrip("=") == value,
        "owner": lambda value: other["owner"].casefold() == value.casefold(),
        "location": lambda value: other["location"].casefold() == value.casefold(),
        "tier": lambda value: value in ORDER and ORDER.index(tier) <= ORDER.index(value),
    }
    return all(name in met and met[name](value) for name, value in who["filters"])


def matches(record, need, customer, weights):
    slot, provider = record["slot"], record["provider"]
    start, end = record["window"]
    windows = unpack(need["windows_packed"]) or [(0, need["valid_until_ms"])]
    places = {place.casefold() for place in (slot["location"], need["location"]) if place}
    return (
        slot["kind"] == need["kind"]
        and need["valid_until_ms"] > record["at_ms"]
        and any(a < end and start < b for a, b in windows)
        and len(places) < 2
        and accepts(slot, need, customer, standing(weights, provider, customer)[0])
        and accepts(need, slot, provider, standing(weights, customer, provider)[0])
    )


def share(capacity, claims):
    """claims: {id: (weight, need)}. The next unit goes to the least (units + 1) / weight."""
    scale = lcm(*(weight for weight, _ in claims.values())) if claims else 1

    def at(level):
        return {i: min(n, level * w // scale) for i, (w, n) in claims.items()}

    low, high = 0, scale * (1 + max((n for _, n in claims.values()), default=0))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sum(at(middle).values()) <= capacity else (low, middle)
    units, more = at(low), at(low + 1)
    for i in sorted(claims):
        if more[i] > units[i] and sum(units.values()) < capacity:
            units[i] += 1
    return units


def proportional(capacity, claims, damping):
    parts = {i: Fraction(w * n * damping[i], 10**6) for i, (w, n) in claims.items()}
    weights = sum(w for w, _ in claims.values())
    whole = max(sum(parts.values()) / weights, Fraction(1, 10_000)) * weights if claims else 1
    return {i: min(n, int(capacity * parts[i] / whole)) for i, (_, n) in claims.items()}


def stage(capacity, bids, rule, salt):
    """bids: [(customer, need, weight, units, price, damping)] of one tier."""
    claims, damping = {}, {}
    for customer, _, weight, units, _, damp in bids:
        key = lot(salt, customer)
        claims[key], damping[key] = (weight, claims.get(key, (0, 0))[1] + units), damp
    by_need = rule == "proportional"
    got = proportional(capacity, claims, damping) if by_need else share(capacity, claims)
    given = {}
    for bid in sorted(bids, key=lambda b: (b[0], -b[4], b[1])):
        given[bid[:2]] = min(bid[3], got[lot(salt, bid[0])])
        got[lot(salt, bid[0])] -= given[bid[:2]]
    return given


def outcome(capacity, reserve, bids):
    """bids: [(customer, need, units, price)] by rank. Return (worth, units by bid)."""
    worth, got = 0, []
    for _, _, units, price in bids:
        got.append(min(units, capacity))
        capacity -= got[-1]
        worth += got[-1] * (price - reserve)
    return worth, got


def auction(capacity, reserve, bids, salt):
    """Vickrey: who wins pays the reserve, and what the others would gain if it were not there."""
    ranked = sorted(
        (bid for bid in bids if bid[3] >= reserve), key=lambda b: (-b[3], lot(salt, b[0]), b[1])
    )
    worth, got = outcome(capacity, reserve, ranked)
    lines, won = {}, [(bid, units) for bid, units in zip(ranked, got, strict=True) if units]
    for customer in {bid[0] for bid, _ in won}:
        own = [(bid, units) for bid, units in won if bid[0] == customer]
        gain = sum((bid[3] - reserve) * units for bid, units in own)
        without, _ = outcome(capacity, reserve, [b for b in ranked if b[0] != customer])
        lost = without - (worth - gain)
        price = reserve - (-lost // sum(units for _, units in own))
        lines |= {bid[:2]: (units, price) for bid, units in own}
    return lines


def recompute(raw):
    """Return {customer: [(need, tier, units, price)]} by the rule, and as the record says."""
    proof = cbor2.loads(cbor2.loads(raw)["body"])
    record = cbor2.loads(cbor2.loads(proof["clearing"])["body"])
    named = {hash_of("clearing/named", each["record"]): each["value"] for each in proof["named"]}
    slot, salt, provider = record["slot"], salt_of(record), record["provider"]
    weights, needs, damping = {}, {}, {}
    for said in (record, *record["participants"]):
        node = said.get("customer", provider)
        published = cbor2.loads(named[said["commitment"]])
        given = said["recognition"] and cbor2.loads(named[said["recognition"]])["weights"]
        weights[node] = dict(given or [])
        needs[node] = {need["slot_id"]: need for need in published["needs"]}
        damping[node] = published["damping_ppm"]
    bids = []
    for customer, said in ((said["customer"], said) for said in record["participants"]):
        for need_id, units in said["eligible"]:
            need = needs[customer][need_id]
            assert matches(record, need, customer, weights), "a need does not match"
            assert units <= dict(need["caps"]).get(provider, need["quantity"]), "above its cap"
            tier, weight = standing(weights, provider, customer)
            stated = need["price_max"], damping[customer]
            bids.append((customer, need_id, weight, units, *stated, tier))
    rest, result = record["capacity"], {said["customer"]: [] for said in record["participants"]}
    served = {}
    for tier, price in (("mutual", slot["price_mutual"]), ("one_way", slot["price_one_way"])):
        members = [bid[:6] for bid in bids if bid[6] == tier and bid[4] >= price]
        given = stage(rest, members, slot["rule"], salt)
        rest -= sum(given.values())
        served |= {key: units for key, units in given.items() if units}
        for (customer, need), units in sorted(given.items()):
            result[customer] += [(need, tier, units, price)] if units else []
    residual = [(*bid[:2], bid[3] - served.get(bid[:2], 0), bid[4]) for bid in bids]
    sold = auction(rest, slot["reserve"], residual, salt)
    for (customer, need), (units, price) in sorted(sold.items()):
        result[customer].append((need, "open", units, price))
    participants = record["participants"]
    return result, {said["customer"]: list(map(tuple, said["lines"])) for said in participants}
