"""What is kept free under leases: counted as they change, and what counting all of them gives."""

from collections import Counter
from dataclasses import replace
from random import Random

from tests.unit.allocation.clearings import steps_of
from tests.unit.market.test_lease_entry import CUSTOMER, END, OTHER, T0, entry
from xsc.base.limits import COMPUTE_LEASE_MS, EPOCH_MS, GIB
from xsc.market.lease import LeaseUse, hold, spend
from xsc.market.lease_entry import kept_free
from xsc.market.reserved import Reserved
from xsc.terms.lease import Draw

DRAW = Draw(slot=b"s" * 16, start_ms=0, end_ms=T0, need=b"n" * 16, number=1, tier="open")


def kept(*entries):
    reserved = Reserved()
    for each in entries:
        each.told = reserved.change
        reserved.change(each)
    return reserved


def test_reservations_add_up_by_customer_and_kind():
    entries = [
        entry(),
        entry(number=2, quantity=GIB),
        entry(number=3, customer=OTHER),
        entry(number=4, kind="compute", quantity=5),
        entry(number=5, use=LeaseUse(T0)),
    ]
    reserved = kept(*entries)
    assert reserved.at("storage", T0) == ({CUSTOMER: 11 * GIB, OTHER: 10 * GIB}, 0)
    assert reserved.at("compute", T0) == ({}, 0)
    drawing = kept(entry(draw=DRAW), *entries[1:])
    assert drawing.at("storage", T0) == ({CUSTOMER: GIB, OTHER: 10 * GIB}, 10 * GIB)


def plainly(entries, kind, now_ms):
    shares, entitled = Counter(), 0
    for each in entries:
        if each.terms.kind == kind:
            quantity = kept_free(each, now_ms)
            if each.draw is None:
                shares[each.terms.customer] += quantity
            else:
                entitled += quantity
    return {customer: units for customer, units in shares.items() if units}, entitled


def test_what_is_kept_is_what_counting_all_leases_gives():
    random = Random(9)
    for _ in range(30):
        reserved, entries, now_ms = Reserved(), {}, T0
        for number in range(60):
            now_ms += random.choice([0, 0, 1, COMPUTE_LEASE_MS // 2, EPOCH_MS, 9 * EPOCH_MS])
            now_ms -= random.choice([0, 0, 0, EPOCH_MS])
            what = random.choice(["new", "new", "use", "work", "renew", "lapse", "forget"])
            known = list(entries.values())
            if what == "new" or not known:
                kind = random.choice(["storage", "compute"])
                end_ms = now_ms + (COMPUTE_LEASE_MS if kind == "compute" else END - T0)
                each = entry(
                    kind=kind,
                    number=number,
                    customer=random.choice([CUSTOMER, OTHER]),
                    start_ms=now_ms,
                    end_ms=end_ms,
                    draw=random.choice([None, None, DRAW]),
                )
                each.told = reserved.change
                reserved.change(each)
                entries[number] = each
                continue
            each = random.choice(known)
            if what == "use" and each.terms.kind == "storage":
                each.use = hold(each.terms, each.use, random.randint(-GIB, 3 * GIB), now_ms)
            elif what == "use":
                each.use = spend(each.terms, each.use, 100, now_ms)
            elif what == "work":
                each.reserved = random.choice([0, GIB])
            elif what == "lapse":
                each.use = replace(each.use, lapsed=not each.use.lapsed)
            elif what == "renew":
                each.terms = replace(each.terms, end_ms=each.terms.end_ms + EPOCH_MS)
            else:
                del entries[each.terms.lease_id[0]]
                each.told = None
                reserved.forget(each)
            for kind in ("storage", "compute"):
                right = plainly(entries.values(), kind, now_ms)
                assert reserved.at(kind, now_ms) == right


def test_what_is_kept_is_asked_for_without_a_look_at_every_lease():
    taken = []
    for count in (20, 250):
        entries = [entry(number=number) for number in range(count)]
        reserved = kept(*entries)
        reserved.at("storage", T0)
        entries[7].reserved = 5
        taken.append(steps_of(lambda reserved=reserved: reserved.at("storage", T0)))
    assert taken[0] == taken[1]
