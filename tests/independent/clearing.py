"""Recomputes a clearing record from its bytes, and shares no code with `xsc`.

It reads the record with `cbor2`, decides who matches, divides by the definition of the rule (the
least units / weight first, found by bisection over whole numbers), and finds the auction's outcome
by trying every set of needs whose minimum could bind. Signatures are not checked here.
"""

import base64
import hashlib
from fractions import Fraction
from itertools import combinations
from math import lcm

import cbor2

ORDER = ["mutual", "one_way", "open"]


def lot(salt, *ids):
    return hashlib.sha256(b"XSC/1/clearing/lot\0" + salt + b"".join(ids)).digest()


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
        and slot["quantity"] >= need["quantity_min"]
        and need["quantity"] >= slot["quantity_min"]
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
    """bids: [(customer, need, weight, units, least, price, damping)] of one tier."""
    turn = 0
    while True:
        claims, damping = {}, {}
        for customer, _, weight, units, _, _, damp in bids:
            key = lot(salt, customer)
            claims[key], damping[key] = (weight, claims.get(key, (0, 0))[1] + units), damp
        by_need = rule == "proportional"
        got = proportional(capacity, claims, damping) if by_need else share(capacity, claims)
        given = {}
        for bid in sorted(bids, key=lambda b: (b[0], -b[5], b[1])):
            given[bid[:2]] = min(bid[3], got[lot(salt, bid[0])])
            got[lot(salt, bid[0])] -= given[bid[:2]]
        short = [bid for bid in bids if 0 < given[bid[:2]] < bid[4]]
        if not short:
            return given
        short.sort(key=lambda b: (b[2], lot(salt, b[0], b[1])))
        gone = short[: 1 if turn < 64 else (len(short) + 1) // 2]
        turn += 1
        bids = [bid for bid in bids if bid not in gone]


def outcome(capacity, reserve, bids):
    """bids: [(customer, need, units, least, price)] by rank. Return (worth, units, by bid)."""

    def filled(sure, out):
        got = [bid[3] if n in sure else 0 for n, bid in enumerate(bids)]
        rest = capacity - sum(got)
        for n, bid in enumerate(bids):
            if n not in out and rest >= 0:
                more = min(rest, bid[2] - got[n])
                got[n], rest = got[n] + more, rest - more
        if rest < 0 or any(0 < units < bid[3] for units, bid in zip(got, bids, strict=True)):
            return None
        worth = sum((bid[4] - reserve) * units for bid, units in zip(bids, got, strict=True))
        return worth, sum(got), got

    if plain := filled((), ()):
        return plain
    lumps = [n for n, bid in enumerate(bids) if bid[3] > 1]
    tried = (
        filled(sure, set(lumps) - set(sure))
        for size in range(len(lumps) + 1)
        for sure in combinations(lumps, size)
    )
    return max(result for result in tried if result)


def auction(capacity, reserve, bids, salt):
    ranked = [
        (customer, need, min(units, capacity), least, price)
        for customer, need, units, least, price in bids
        if price >= reserve and least <= capacity
    ]
    ranked.sort(key=lambda b: (-b[4], lot(salt, b[0], b[1])))
    worth, _, got = outcome(capacity, reserve, ranked)
    lines, won = {}, [(bid, units) for bid, units in zip(ranked, got, strict=True) if units]
    for customer in {bid[0] for bid, _ in won}:
        own = [(bid, units) for bid, units in won if bid[0] == customer]
        gain = sum((bid[4] - reserve) * units for bid, units in own)
        without = outcome(capacity, reserve, [b for b in ranked if b[0] != customer])[0]
        lost = without - (worth - gain)
        for bid, units in own:
            part = Fraction(lost * (bid[4] - reserve), gain) if lost else 0
            lines[bid[:2]] = (units, reserve - (-part // 1) if part else reserve)
    return lines


def recompute(raw):
    """Return {customer: [(need, tier, units, price)]} by the rule, and as the record says."""
    record = cbor2.loads(cbor2.loads(raw)["body"])
    slot, salt, provider = record["slot"], record["salt"], record["provider"]
    weights, needs, damping = {}, {}, {}
    for said in (record, *record["participants"]):
        node = said.get("customer", provider)
        published = cbor2.loads(said["commitment"]["value"])
        given = said["recognition"] and cbor2.loads(said["recognition"]["value"])["weights"]
        weights[node] = dict(given or [])
        needs[node] = {need["slot_id"]: need for need in published["needs"]}
        damping[node] = published["damping_ppm"]
    bids = []
    for customer, said in ((said["customer"], said) for said in record["participants"]):
        for need_id, units in said["eligible"]:
            need = needs[customer][need_id]
            assert matches(record, need, customer, weights), "a need does not match"
            assert units <= dict(need["caps"]).get(provider, need["quantity"]), "above its cap"
            if units >= need["quantity_min"]:
                tier, weight = standing(weights, provider, customer)
                stated = need["quantity_min"], need["price_max"], damping[customer]
                bids.append((customer, need_id, weight, units, *stated, tier))
    rest, result = record["capacity"], {said["customer"]: [] for said in record["participants"]}
    served = {}
    for tier, price in (("mutual", slot["price_mutual"]), ("one_way", slot["price_one_way"])):
        members = [bid[:7] for bid in bids if bid[7] == tier and bid[5] >= price]
        given = stage(rest, members, slot["rule"], salt)
        rest -= sum(given.values())
        served |= {key: units for key, units in given.items() if units}
        for (customer, need), units in sorted(given.items()):
            result[customer] += [(need, tier, units, price)] if units else []
    had = [(bid, served.get(bid[:2], 0)) for bid in bids]
    residual = [(*b[:2], b[3] - got, 0 if got else b[4], b[5]) for b, got in had if b[3] > got]
    sold = auction(rest, slot["reserve"], residual, salt)
    for (customer, need), (units, price) in sorted(sold.items()):
        result[customer].append((need, "open", units, price))
    participants = record["participants"]
    return result, {said["customer"]: list(map(tuple, said["lines"])) for said in participants}
