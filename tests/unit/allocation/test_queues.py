"""The queues of a node's windows: kept from change to change, and what looking at all gives."""

from random import Random

from tests.unit.allocation.clearings import HOUR, NOW_MS, need, slot, steps_of
from xsc.allocation import granting
from xsc.allocation.clearing_record import Published
from xsc.allocation.granting import Now, Pass
from xsc.allocation.queues import Queues, windows_ahead
from xsc.terms.clearing import SpaceValue
from xsc.terms.slot import Commitment, pack_windows

OWN = bytes(32)
NODES = [bytes([number]) * 32 for number in range(1, 9)]
NOTHING = SpaceValue(record=b"", value=b"")


def hours(random, count):
    edges = sorted(random.sample(range(1, 40), 2 * count))
    return [
        (NOW_MS + at * HOUR, NOW_MS + to * HOUR)
        for at, to in zip(edges[::2], edges[1::2], strict=True)
    ]


def some_slots(random):
    return tuple(
        slot(
            slot_id=bytes([0, number]) * 8,
            windows_packed=pack_windows(hours(random, random.randint(1, 3))),
            filters=random.choice([(), (), (("tier", "one_way"),)]),
        )
        for number in range(random.randint(1, 3))
    )


def one_need(random, number):
    windows = hours(random, random.randint(0, 2))
    ends = windows[-1][1] if windows else NOW_MS + random.randint(5, 40) * HOUR
    return need(
        1 + number,
        windows_packed=pack_windows(windows),
        caps=random.choice([(), (), ((OWN, 0),), ((OWN, 3),)]),
        valid_until_ms=ends,
    )


def said(random, node):
    needs = tuple(one_need(random, number) for number in range(random.randint(0, 3)))
    weights = {OWN: random.choice([9_999, 50_000])} if random.random() < 0.5 else {}
    return Published(node, Commitment(needs=needs), NOTHING, weights)


def salt_of(key):
    return (key[0] + key[1].to_bytes(16, "big")).ljust(32)


def seen(queues, own, now_ms):
    """Return who may take part in each window, and with which needs."""
    queues.pass_time(now_ms)
    found = {}
    for _, key in windows_ahead(own.commitment.slots, now_ms):
        queue = queues.of(key, salt_of(key))
        found[key] = [(taker, queue.asks(taker.published.node)) for taker in queue]
        assert len(queue) == len(found[key])
    return found


def test_the_queues_are_what_looking_at_all_gives():
    random = Random(3)
    for _ in range(40):
        kept, now_ms, others = Queues(OWN), NOW_MS, {}
        own = Published(OWN, Commitment(slots=some_slots(random)), NOTHING)
        kept.change_own(own, now_ms)
        for _ in range(25):
            what = random.choice(["say", "say", "say", "go", "own", "weights", "time"])
            node = random.choice(NODES)
            if what == "say":
                others[node] = said(random, node)
            elif what == "go":
                others.pop(node, None)
            elif what == "time":
                now_ms += random.randint(1, 4 * HOUR)
            else:
                slots = some_slots(random) if what == "own" else own.commitment.slots
                friends = {node: random.choice([5_000, 60_000])} if what == "weights" else {}
                own = Published(OWN, Commitment(slots=slots), NOTHING, friends)
            kept.change_own(own, now_ms)
            for each in NODES:
                kept.change(each, others.get(each), now_ms)
            anew = Queues(OWN)
            anew.change_own(own, now_ms)
            for other in others.values():
                anew.change(other.node, other, now_ms)
            assert seen(kept, own, now_ms) == seen(anew, own, now_ms)


def test_a_change_of_one_customer_takes_no_look_at_the_others():
    random = Random(5)
    own = Published(OWN, Commitment(slots=(slot(),)), NOTHING)
    taken = []
    for count in (30, 600):
        queues = Queues(OWN)
        queues.change_own(own, NOW_MS)
        for number in range(1, count):
            node = number.to_bytes(32, "big")
            queues.change(node, Published(node, Commitment(needs=(need(),)), NOTHING), NOW_MS)
        assert [len(asks) for asks in seen(queues, own, NOW_MS).values()] == [count - 1]
        node = random.randrange(1, count).to_bytes(32, "big")
        other = Published(node, Commitment(needs=(need(quantity=7),)), NOTHING)
        taken.append(steps_of(lambda queues=queues, o=other: queues.change(o.node, o, NOW_MS)))
    assert taken[1] <= taken[0] + 100


class Limited:
    """Room for so many quanta in all."""

    def __init__(self, quanta):
        self.quanta = quanta

    def left(self, _kind, _window):
        return self.quanta

    def take(self, _kind, _window, quanta):
        self.quanta = max(0, self.quanta - quanta)


def played(queues, own, before, facts, last=None):
    now_ms, drawn, credit, room = facts
    now = Now(now_ms, own, drawn, lambda node: credit.get(node, 900), Limited(room))
    made = Pass(now, queues, before, salt_of, last)
    for _ in made.run():
        pass
    return made


def test_a_round_that_goes_on_from_the_last_one_comes_to_the_same():
    random = Random(11)
    again = 0
    for _ in range(30):
        kept, now_ms, others, before, seen = Queues(OWN), NOW_MS, {}, {}, None
        own = Published(OWN, Commitment(slots=some_slots(random)), NOTHING)
        drawn, credit, room = {}, {}, 300
        for _ in range(25):
            node = random.choice(NODES)
            what = random.choice(["say", "own", "friend", "time", "draw", "credit", "room"])
            if what == "say":
                others[node] = said(random, node)
            elif what == "own":
                some = tuple(each for each in some_slots(random) if random.random() < 0.5)
                slots = some or own.commitment.slots[:1]
                own = Published(OWN, Commitment(slots=slots), NOTHING, own.weights)
            elif what == "friend":
                own = Published(
                    OWN, own.commitment, NOTHING, {node: random.choice([5_000, 60_000])}
                )
            elif what == "time":
                now_ms += random.choice([1, HOUR, 9 * HOUR])
            elif what == "credit":
                credit = {each: random.choice([0, 200, 900]) for each in NODES}
            elif what == "room":
                room = random.choice([20, 100, 300])
            kept.change_own(own, now_ms)
            anew = Queues(OWN)
            anew.change_own(own, now_ms)
            for each in NODES:
                kept.change(each, others.get(each), now_ms)
                anew.change(each, others.get(each), now_ms)
            facts = now_ms, dict(drawn), dict(credit), room
            made, whole = played(kept, own, before, facts, seen), played(anew, own, before, facts)
            assert (made.cleared, made.fresh) == (whole.cleared, whole.fresh)
            assert made.granted == whole.granted
            again += len(made.cleared) - len(made.fresh)
            # Now and then the outcome cannot be written.
            seen, before = made.seen, made.cleared if random.random() < 0.8 else before
            for each in made.granted:
                if what == "draw" and random.random() < 0.5:
                    drawn[each.key] = random.randint(0, each.quantity)
    assert again > 100, "some windows were not cleared anew"


def test_needs_of_many_windows_take_steps_for_each_own_window_and_no_more():
    minutes = [(NOW_MS + at * 600_000, NOW_MS + at * 600_000 + 60_000) for at in range(400)]
    needs = tuple(
        need(1 + n, quantity=10**6, windows_packed=pack_windows(minutes), valid_until_ms=2**42)
        for n in range(2)
    )
    greedy = Published(NODES[0], Commitment(needs=needs), NOTHING)
    taken = []
    for count in (4, 16):
        days = [(NOW_MS + at * 6 * HOUR, NOW_MS + (at * 6 + 3) * HOUR) for at in range(8)]
        slots = tuple(
            slot(
                slot_id=bytes([0, n]) * 8,
                quantity=10,
                windows_packed=pack_windows(days),
                valid_until_ms=days[-1][1],
            )
            for n in range(count)
        )
        own = Published(OWN, Commitment(slots=slots), NOTHING, {greedy.node: 50_000})
        queues = Queues(OWN)
        queues.change_own(own, NOW_MS)
        queues.change(greedy.node, greedy, NOW_MS)
        facts = NOW_MS, {}, {greedy.node: 10**9}, 10**9
        made = []
        taken.append(
            steps_of(lambda q=queues, o=own, f=facts, m=made: m.append(played(q, o, {}, f)))
        )
        assert len(made[0].granted) >= 8 * count
    assert taken[1] <= 5 * taken[0]


def test_one_customer_leaves_others_what_one_state_can_grant(monkeypatch):
    present = pack_windows([(NOW_MS, NOW_MS + HOUR)])
    slots = tuple(
        slot(slot_id=bytes([0, n]) * 8, windows_packed=present, quantity=10) for n in range(4)
    )
    asked = tuple(need(1 + n, quantity=8) for n in range(4))
    for limit, weights, most in (
        (None, {}, 7),
        ("ALLOCATIONS_A_STRANGER_MAX", {}, 3),
        ("ALLOCATIONS_A_CUSTOMER_MAX", {NODES[0]: 5_000}, 5),
    ):
        if limit is not None:
            monkeypatch.setattr(granting, limit, most)
        own = Published(OWN, Commitment(slots=slots), NOTHING, weights)
        queues = Queues(OWN)
        queues.change_own(own, NOW_MS)
        queues.change(NODES[0], Published(NODES[0], Commitment(needs=asked), NOTHING), NOW_MS)
        facts = NOW_MS, {}, {NODES[0]: 10**6}, 10**6
        made = played(queues, own, {}, facts)
        assert len(made.granted) == most
        again = played(queues, own, made.cleared, facts, made.seen)
        assert again.granted == made.granted
