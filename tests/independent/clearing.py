"""A second implementation of the clearing of slots, from docs/design.

What divides a window and the auction were written before their author saw the code. It shares no
code with `xsc`. `clear` divides one window; a `Provider` clears all of its windows, by commitments,
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
    """Return units, denominator and level [D1, D3]; claims: {id: (weight, need, damping)}."""
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
    return units, Fraction(sum(w for w, _, _ in claims.values())), level


def by_formula(capacity, claims):
    """The same of `proportional` [D2, D3]."""
    weights = sum(w for w, _, _ in claims.values())
    shares = {c: Fraction(w * n * d, weights * 1_000_000) for c, (w, n, d) in claims.items()}
    denominator = sum(shares.values(), Fraction(0))
    level = capacity / max(denominator, Fraction(1, 10_000))
    units = {c: min(n, int(level * shares[c])) for c, (_, n, _) in claims.items()}
    return units, denominator, level if any(units[c] < claims[c][1] for c in claims) else None


def divide(rule, capacity, claims, stage):
    claims = {c: of for c, of in claims.items() if of[1]}
    if rule == "proportional" and stage and not capacity:
        return dict.fromkeys(claims, 0), Fraction(0), None
    return (by_formula if rule == "proportional" else by_weight)(capacity, claims)


def clear(slot, capacity, bids, standings, salt):
    """Return the lines of one window, by customer, stage and need, and its stages [C2 to C4].

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
        given, *report = divide(slot["rule"], capacity, claims, stage)
        stages.append((capacity, sum(given.values()), *report))
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
    stages.append((capacity, sum(bid.units for bid, _ in sold), Fraction(0), None))
    return sorted(
        (x for x in lines if x.units), key=lambda x: (x.customer, x.stage, x.need)
    ), stages


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


def windows_of(slot):
    """[slots F4, M2]"""
    moments, number, shift = [0], 0, 0
    for byte in slot["windows_packed"]:
        number, shift = number + ((byte & 127) << shift), shift + 7
        if byte < 128:
            moments.append(moments[-1] + number)
            number, shift = 0, 0
    return list(zip(moments[1::2], moments[2::2], strict=True)) or [(0, slot["valid_until_ms"])]


def common(window, windows):
    """Return the time from the first common moment to the last, or None [slots M2]."""
    both = [(max(window[0], begin), min(window[1], end)) for begin, end in windows]
    both = [(begin, end) for begin, end in both if begin < end]
    return (both[0][0], both[-1][1]) if both else None


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


def next_common(kind, window, windows, at_ms):
    """Return when what is granted of a window is leased; of compute its next piece [slots M2]."""
    if kind == "storage":
        return common(window, windows)
    pieces = []
    for starts, ends in sorted(windows):
        begin, end = max(window[0], starts), min(window[1], ends)
        if begin < end:
            if pieces and pieces[-1][1] == begin:
                begin = pieces.pop()[0]
            pieces.append((begin, end))
    ahead = [each for each in pieces if each[1] > at_ms] or pieces[-1:]
    return ahead[0] if ahead else None


def most(held, time):
    """Return the most of (who, begin, end, units) at any moment of a time [G3]."""
    moments = {time[0]} | {begin for _, begin, _, _ in held if time[0] < begin < time[1]}
    return max(sum(u for _, begin, end, u in held if begin <= now < end) for now in moments)


class Provider:
    """One node that clears its slots at a time, by what all nodes publish."""

    def __init__(self, node, commitments, weights, at_ms):
        self.node, self.commitments, self.weights, self.at_ms = node, commitments, weights, at_ms

    def standing(self, one, other):
        """Return tier and weight of one node at another."""
        given = self.weights.get(other, {}).get(one, 0)
        return standing_of(given, self.weights.get(one, {}).get(other, 0))

    def bids(self, slot, window):
        """Yield a bid of what each need that matches accepts, and their common time [slots M1]."""
        me = self.node
        for customer, said in self.commitments.items():
            for need in said["needs"]:
                time = next_common(slot["kind"], window, windows_of(need), self.at_ms)
                places = {of["location"].casefold() for of in (slot, need)} - {""}
                if (
                    time is not None
                    and min(time[1], need["valid_until_ms"]) > self.at_ms
                    and slot["kind"] == need["kind"]
                    and customer != me
                    and len(places) < 2
                    and meets(slot["filters"], need, customer, self.standing(customer, me)[0])
                    and meets(need["filters"], slot, me, self.standing(me, customer)[0])
                ):
                    units = accepted(need, me)
                    yield Bid(customer, need["slot_id"], units, need["price_max"]), time

    def clear(self, slot, capacity, bids):
        said, me = self.commitments, self.node
        standings = {who: (*self.standing(who, me), said[who]["damping_ppm"]) for who in said}
        return clear(slot, capacity, bids, standings, salt_of(slot["slot_id"], self.at_ms))

    def clear_all(self, drawn, pinned):
        """Yield slot, window, capacity and lines of all windows, where credit and room abound.

        Args:
            drawn: {(slot, start): {(customer, need): units}}: what leases have of a window.
            pinned: the same of those in the first half of their term.
        """
        windows, granted = [], []
        for slot in self.commitments[self.node]["slots"]:
            ahead = [window for window in windows_of(slot) if window[1] > self.at_ms]
            windows += [(window, slot["slot_id"], slot) for window in ahead[:8]]
        for window, slot_id, slot in sorted(windows, key=lambda of: (of[0][0], of[1])):
            has, kept = (of.get((slot_id, window[0]), {}) for of in (drawn, pinned))
            bids, times = {}, {}
            for bid, time in self.bids(slot, window):
                who = bid[:2]
                units = bid.units - most([of for of in granted if of[0] == who], time)
                if self.standing(bid.customer, self.node)[0] == "open" and time[0] > self.at_ms:
                    units = min(units, has.get(who, 0))  # [entitlements E10]
                times[who] = time
                bids |= {who: bid._replace(units=units)} if units > 0 else {}
            short = {None}
            while short:  # [entitlements E3]
                stays = sum(kept[who] for who in kept.keys() - bids.keys())
                capacity = max(0, slot["quantity"] - stays)
                lines, _ = self.clear(slot, capacity, bids.values())
                got = {who: sum(line.units for line in lines if line[:2] == who) for who in bids}
                short = {who for who in bids if got[who] < kept.get(who, 0)}
                bids = {who: bid for who, bid in bids.items() if who not in short}
            got = {who: max(got.get(who, 0), kept.get(who, 0)) for who in times}
            granted += [(who, *times[who], got[who]) for who in times]
            yield slot_id, window, capacity, lines


def recompute(raw):
    """Return the lines and stages of a packed record, by the rules and as it says [P1, P2]."""
    proof = cbor2.loads(cbor2.loads(raw)["body"])
    record = cbor2.loads(cbor2.loads(proof["clearing"])["body"])
    named = {hashed("clearing/named", each["record"]): each["value"] for each in proof["named"]}
    slot, node, commitments, weights = record["slot"], record["provider"], {}, {}
    for said in (record, *record["participants"]):
        who, given = said.get("customer", node), said["recognition"]
        commitments[who] = cbor2.loads(named[said["commitment"]])
        weights[who] = dict(cbor2.loads(named[given])["weights"] if given else ())
    provider = Provider(node, commitments, weights, record["at_ms"])
    matching = {bid[:2]: bid for bid, _ in provider.bids(slot, record["window"])}
    bids, told = [], []
    for said in record["participants"]:
        told += [(said["customer"], *line) for line in said["lines"]]
        for need, units in said["eligible"]:
            bids.append(matching[said["customer"], need]._replace(units=units))
            assert units <= matching[bids[-1][:2]].units, "more than the need accepts"
    lines, stages = provider.clear(slot, record["capacity"], bids)
    lines = [(*line[:2], TIERS[line.stage], line.units, line.price) for line in lines]
    told_stages = []
    for of in record["tiers"]:
        pair = [of["denominator"], of["level"]]
        pair = [of and Fraction(*(int.from_bytes(part, "big") for part in of)) for of in pair]
        told_stages.append((of["capacity"], of["given"], *pair))
    return (lines, stages), (told, told_stages)
