"""A second implementation of the clearing of slots, from docs/design.

What divides a slot and the auction were written before their author saw the code. It shares no
code with `xsc`. `clear` divides one slot; a `Provider` clears all of its slots, by commitments,
recognition and leases; `recompute` checks a packed clearing record, but for its signatures.
Commitments are dicts, as their bytes decode. Names in brackets are rules: of allocation.md, or of
the page that stands before them.
"""

import base64
import hashlib
from fractions import Fraction
from typing import NamedTuple

import cbor2

TIERS = ("mutual", "one_way", "open")


class Bid(NamedTuple):
    customer: bytes
    need: bytes
    units: int
    price_max: int


class Line(NamedTuple):
    customer: bytes
    need: bytes
    tier: str
    """Of the customer; that of the stage is TIERS[stage]."""
    stage: int
    units: int
    price: int


def hashed(tag, *parts):
    return hashlib.sha256(b"XSC/1/" + tag.encode() + b"\0" + b"".join(parts)).digest()


def salt_of(slot_id, at_ms):
    """[C6]"""
    return hashed("clearing/salt", slot_id, (at_ms // 86_400_000).to_bytes(8, "big"))


def standing_of(given, taken):
    """Return tier and weight of whom a node gives one weight, and who gives it another [N2]."""
    if min(given, taken) >= 10_000:
        return "mutual", min(given, taken)
    return ("one_way", given) if given else ("open", 1)


def by_weight(capacity, claims):
    """Return units and denominator [D1, D3]; claims: {id: (weight, need, damping)}."""
    level, rest, weights = None, Fraction(capacity), sum(w for w, _, _ in claims.values())
    for weight, need, _ in sorted(claims.values(), key=lambda of: Fraction(of[1], of[0])):
        if rest * weight < need * weights:
            level = rest / weights
            break
        rest, weights = rest - need, weights - weight
    units = {c: n if level is None else min(n, int(level * w)) for c, (w, n, _) in claims.items()}
    for _ in range(min(capacity, sum(n for _, n, _ in claims.values())) - sum(units.values())):
        waiting = [c for c, (_, n, _) in claims.items() if units[c] < n]
        units[min(waiting, key=lambda c: (-Fraction(claims[c][0], units[c] + 1), c))] += 1
    return units, sum(w for w, _, _ in claims.values())


def by_formula(capacity, claims):
    """The same of `proportional` [D2, D3]."""
    weights = sum(w for w, _, _ in claims.values())
    shares = {c: Fraction(w * n * d, weights * 1_000_000) for c, (w, n, d) in claims.items()}
    denominator = sum(shares.values(), Fraction(0))
    level = capacity / max(denominator, Fraction(1, 10_000))
    units = {c: min(n, int(level * shares[c])) for c, (_, n, _) in claims.items()}
    return units, int(denominator * 1_000_000)


def divide(rule, capacity, claims, stage):
    claims = {c: of for c, of in claims.items() if of[1]}
    if rule == "proportional" and stage and not capacity:
        return dict.fromkeys(claims, 0), 0
    return (by_formula if rule == "proportional" else by_weight)(capacity, claims)


def clear(slot, capacity, bids, standings, salt):
    """Return the lines of one slot, by customer, need and stage, and its stages [C2 to C4].

    Args:
        slot: its prices and rule.
        capacity: what is divided.
        bids: one a need.
        standings: tier, weight and damping by customer.
        salt: under which ties fall.
    """
    left = {bid[:2]: bid for bid in bids if bid.units}
    lots = {customer: hashed("clearing/lot", salt, customer) for customer, _ in left}
    lines, stages = [], []
    for stage, price in enumerate((slot["price_mutual"], slot["price_one_way"])):
        members, claims = {}, {}
        for bid in left.values():
            if standings[bid.customer][0] == TIERS[stage] and bid.price_max >= price:
                members.setdefault(bid.customer, []).append(bid)
        for c, mine in members.items():
            claims[lots[c]] = standings[c][1], sum(bid.units for bid in mine), standings[c][2]
        given, denominator = divide(slot["rule"], capacity, claims, stage)
        stages.append((capacity, sum(given.values()), denominator))
        capacity -= sum(given.values())
        for customer, mine in members.items():
            for bid in sorted(mine, key=lambda bid: (-bid.price_max, bid.need)):
                units = min(given[lots[customer]], bid.units)
                given[lots[customer]] -= units
                left[bid[:2]] = bid._replace(units=bid.units - units)
                lines.append(Line(*bid[:2], TIERS[stage], stage, units, price))
    sold = auction(slot["reserve"], capacity, left.values(), lots)
    lines += [
        Line(*bid[:2], standings[bid.customer][0], 2, bid.units, price) for bid, price in sold
    ]
    stages.append((capacity, sum(bid.units for bid, _ in sold), 0))
    return sorted(
        (x for x in lines if x.units), key=lambda x: (x.customer, x.need, x.stage)
    ), stages


def joined(lines):
    """Return what needs are granted in all: customer, need, first stage, units, price [C9]."""
    found = {}
    for line in lines:
        stage, units, cost = found.get(line[:2], (line.stage, 0, 0))
        found[line[:2]] = stage, units + line.units, cost + line.units * line.price
    return [
        (*who, TIERS[stage], units, -(-cost // units))
        for who, (stage, units, cost) in found.items()
    ]


def auction(reserve, capacity, bids, lots):
    """Return each bid that won, with the units that it got, and their price [C3, C4]."""
    ranked = [bid for bid in bids if bid.price_max >= reserve]
    won, unsold, prices = [], [], {}
    for bid in sorted(ranked, key=lambda bid: (-bid.price_max, lots[bid.customer], bid.need)):
        units = min(capacity, bid.units)
        capacity -= units
        won += [bid._replace(units=units)] if units else []
        unsold.append(bid._replace(units=bid.units - units))
    for customer in {bid.customer for bid in won}:
        whole = units = sum(bid.units for bid in won if bid.customer == customer)
        lost = 0
        for bid in unsold:
            if bid.customer != customer:
                lost += min(units, bid.units) * (bid.price_max - reserve)
                units -= min(units, bid.units)
        prices[customer] = reserve - (-lost // whole)
    return [(bid, prices[bid.customer]) for bid in won]


def now_of(slot, at_ms):
    """Return the window that a moment is in, or None [slots F3, M2]"""
    windows = slot["windows"] or [(0, slot["valid_until_ms"])]
    return next(((begin, end) for begin, end in windows if begin <= at_ms < end), None)


def meets(filters, other, node, tier):
    """[slots M4]"""
    is_met = {
        "node": lambda value: base64.b32encode(node).decode().lower().rstrip("=") == value,
        "owner": lambda value: other["owner"].casefold() == value.casefold(),
        "location": lambda value: other["location"].casefold() == value.casefold(),
        "tier": lambda value: value in TIERS and TIERS.index(tier) <= TIERS.index(value),
    }
    return all(name in is_met and is_met[name](value) for name, value in filters)


def accepted(need, provider):
    """Return the most that a need accepts of a provider [slots F6, F7]."""
    parts, caps = dict(need["parts"]), dict(need["caps"])
    share = -(-(need["quantity"] - sum(parts.values())) // need["spread"])
    return min(parts.get(provider, 0) + share, caps.get(provider, need["quantity"]))


class Provider:
    """One node that clears its slots at a time, by what all nodes publish."""

    def __init__(self, node, commitments, weights, at_ms):
        self.node, self.commitments, self.weights, self.at_ms = node, commitments, weights, at_ms

    def standing(self, one, other):
        """Return tier and weight of one node at another."""
        given = self.weights.get(other, {}).get(one, 0)
        return standing_of(given, self.weights.get(one, {}).get(other, 0))

    def bids(self, slot):
        """Yield a bid of what each need that matches now accepts [slots M1]."""
        me = self.node
        for customer, said in self.commitments.items():
            for need in said["needs"]:
                places = {of["location"].casefold() for of in (slot, need)} - {""}
                if (
                    now_of(slot, self.at_ms)
                    and now_of(need, self.at_ms)
                    and slot["kind"] == need["kind"]
                    and customer != me
                    and len(places) < 2
                    and meets(slot["filters"], need, customer, self.standing(customer, me)[0])
                    and meets(need["filters"], slot, me, self.standing(me, customer)[0])
                ):
                    units = accepted(need, me)
                    yield Bid(customer, need["slot_id"], units, need["price_max"])

    def clear(self, slot, capacity, bids):
        said, me = self.commitments, self.node
        standings = {who: (*self.standing(who, me), said[who]["damping_ppm"]) for who in said}
        return clear(slot, capacity, bids, standings, salt_of(slot["slot_id"], self.at_ms))

    def clear_all(self, pinned):
        """Yield slot, capacity and lines of all slots, where credit and room abound.

        Args:
            pinned: {slot: {(customer, need): units}}, of leases in the first half of their term.
        """
        granted = {}
        for slot in self.commitments[self.node]["slots"]:
            if now_of(slot, self.at_ms) is None:
                continue
            kept = pinned.get(slot["slot_id"], {})
            bids, whole = {}, [bid[:2] for bid in self.bids(slot)]
            for bid in self.bids(slot):
                units = bid.units - granted.get(bid[:2], 0)
                bids |= {bid[:2]: bid._replace(units=units)} if units > 0 else {}
            stays, short = {who for who in kept if who[0] not in {each for each, _ in bids}}, {None}
            while short:  # [entitlements E3]
                capacity = max(0, slot["quantity"] - sum(kept[who] for who in stays))
                taking = [bid for who, bid in bids.items() if who not in stays]
                lines, _ = self.clear(slot, capacity, taking)
                got = {who: sum(line.units for line in lines if line[:2] == who) for who in bids}
                short = {who for who in kept.keys() - stays if got.get(who, 0) < kept[who]}
                stays |= short
                for one in {who[0] for who in short}:
                    beyond = sum(kept[who] - got.get(who, 0) for who in short if who[0] == one)
                    for who in sorted(bids.keys() - stays) if beyond else ():
                        if who[0] == one:
                            less = min(beyond, got[who])
                            beyond, units = beyond - less, got[who] - less
                            bids[who] = bids[who]._replace(units=units)
                bids = {who: bid for who, bid in bids.items() if bid.units}
            for who in {*whole, *kept}:
                more = max(got.get(who, 0), kept.get(who, 0))
                granted[who] = granted.get(who, 0) + more
            yield slot["slot_id"], capacity, lines


def recompute(raw):
    """Return the lines and stages that a packed record comes to [P1, P2]."""
    proof = cbor2.loads(cbor2.loads(raw)["body"])
    record = cbor2.loads(cbor2.loads(proof["clearing"])["body"])
    return outcome(record, {name_of(each): each["value"] for each in proof["named"]})


def name_of(published):
    """Return how records name a value of a space [P1]."""
    return hashed("clearing/named", published["record"])


def outcome(record, named):
    """Return the lines and stages that a record comes to, with the values that it names."""
    slot, commitments, weights = record["slot"], {}, {}
    for who, said, given in (record["provider"], *record["participants"]):
        commitments[who] = cbor2.loads(named[said])
        weights[who] = dict(cbor2.loads(named[given])["weights"] if given else ())
    provider, bids = Provider(record["provider"][0], commitments, weights, record["at_ms"]), []
    matching = {bid[:2]: bid for bid in provider.bids(slot)}
    for customer, need, units in record["eligible"]:
        bids.append(matching[customer, need]._replace(units=units))
        assert units <= matching[customer, need].units, "more than the need accepts"
    return provider.clear(slot, record["capacity"], bids)
