"""Cubes: what two nodes seal, in which order, and how they find what differs."""

import hashlib
import random
from collections import Counter

import pytest

from tests.strategies import vectors
from tests.unit.ledger.circle import NETWORK, Circle, voucher
from xsc.base.encoding import decode, encode
from xsc.base.errors import EntryRefused, LedgerDamaged, PeerSilent, RecordInvalid
from xsc.base.keyvalue import prefix_end
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import sign
from xsc.ledger.audit import verify_settled
from xsc.ledger.cube import (
    CUBE,
    LEVEL_MAX,
    SEALED_MAX,
    Ask,
    Cells,
    cube_hash,
    face_hash,
    history,
    seal_hash,
    search,
)
from xsc.ledger.entry import UNIT_NONE, Half, open_half
from xsc.ledger.incarnation import Noted
from xsc.ledger.index import INDEX, SEAL, SHARED
from xsc.ledger.proposals import PROPOSE
from xsc.ledger.seals import CUBES


def sha(text):
    return hashlib.sha256(text.encode()).digest()


# The rule


def cells_of(entry_ids, step=SEALED_MAX):
    """The cells of a history that was sealed by so many entries at once."""
    cells = Cells(b"history")
    for before in range(0, len(entry_ids), step):
        cells.add(entry_ids[before : before + step])
    return cells


def full(cells):
    """All full cells, by level and index."""
    return {
        (level, index): cells.read(level, index)
        for level in range(LEVEL_MAX + 1)
        for index in range(cells.count(level))
    }


class Changed(Cells):
    """A view of the same cells with one entry changed, and the cubes above it."""

    def __init__(self, cells, position):
        super().__init__(cells.history)
        self.cells = cells
        self.over = {(0, position): sha(f"other {position}")}
        level, index = 1, position // CUBE
        while index < cells.count(level):
            faces = self.hashes(cells.count(), Ask(level, index))
            self.over[level, index] = cube_hash(level, index, faces)
            level, index = level + 1, index // CUBE

    def read(self, level, index):
        return self.over.get((level, index)) or self.cells.read(level, index)


def find(own, theirs, count, lie=lambda right: right):
    """What a search finds, and the hashes that it was sent at each level.

    `lie` is what becomes of the hashes of faces.
    """
    sent = Counter()
    running = search(own, count)
    try:
        ask = next(running)
        while True:
            answer = theirs.hashes(count, ask)
            if ask.face is None:
                answer = lie(answer)
            sent[ask.level] += len(answer)
            ask = running.send(answer)
    except StopIteration as end:
        return end.value, sent


def test_the_vectors_of_cubes_hold():
    vector = vectors("ledger")["cubes"]
    entries = sorted(sha(f"entry {number}") for number in range(27))
    faces = [face_hash(entries[at : at + 9]) for at in (0, 9, 18)]
    assert [face.hex() for face in faces] == vector["faces"]
    assert cube_hash(vector["level"], vector["index"], faces).hex() == vector["cube"]
    cells = [sha(f"cube {number}") for number in range(27)]
    faces = [face_hash(cells[at : at + 9]) for at in (0, 9, 18)]
    upper = cube_hash(vector["upper_level"], vector["upper_index"], faces)
    assert upper.hex() == vector["upper_cube"]
    assert seal_hash(entries[:3]).hex() == vector["seal_of_the_first_three"]
    both = vectors("ledger")
    first = {bytes.fromhex(both[who]): vector[f"{who}_first"] for who in ("creditor", "debtor")}
    assert history(first).hex() == vector["history"]


def test_the_first_difference_is_found_at_every_place_by_12_hashes_a_level():
    """At every size up to some, and at every place of a larger one."""
    ids = [sha(f"entry {number}") for number in range(2_000)]
    for count in [*range(120), 728, 729, 730, 2_000]:
        cells = cells_of(ids[:count])
        place, sent = find(cells, cells, count)
        assert place is None
        assert all(number <= 12 for number in sent.values())
        for position in range(count):
            place, sent = find(cells, Changed(cells, position), count)
            assert place == position
            assert max(sent.values()) <= 12


def test_of_many_differences_the_first_is_found():
    ids = [sha(f"entry {number}") for number in range(800)]
    rng = random.Random(1)
    own = cells_of(ids)
    for _ in range(40):
        others = list(ids)
        places = rng.sample(range(800), rng.randint(1, 30))
        for place in places:
            others[place] = sha(f"other {place}")
        theirs = cells_of(others)
        assert find(own, theirs, 800)[0] == min(places)


def test_half_a_million_entries_take_48_hashes():
    count = CUBE**4
    assert count == 531_441
    cells = cells_of([number.to_bytes(32, "big") for number in range(count)])
    for position in (0, 8, 9, 26, 27, 364_500, count - 28, count - 1):
        place, sent = find(cells, Changed(cells, position), count)
        assert place == position
        assert sum(sent.values()) == 48
    same = find(cells, cells, count)
    assert same == (None, {4: 3})


def test_a_peer_whose_hashes_contradict_each_other_is_found_out():
    ids = [sha(f"entry {number}") for number in range(800)]
    own = cells_of(ids)
    for lie in (lambda _: [b"?" * 32] * 3, lambda _: [], lambda right: [*right, b"?" * 32]):
        with pytest.raises(RecordInvalid):
            find(own, own, 800, lie)


# What the seed's cubes did wrong


def test_the_seeds_fork_by_order_of_arrival_cannot_happen():
    """There, each node put entries where they fitted as they came: 14 cubes and 19, none shared."""
    ids = [sha(f"entry {number}") for number in range(200)]
    rng = random.Random(2)
    seen = set()
    for _ in range(10):
        arrived = rng.sample(ids, len(ids))
        waiting, cells = set(arrived), Cells(b"history")
        for _ in range(4):
            named = sorted(waiting)[:50]
            waiting -= {*named}
            cells.add(named)
        seen.add(tuple(full(cells).items()))
    assert len(seen) == 1


def test_the_seeds_duplicated_last_leaf_is_no_longer_a_second_list_of_one_root():
    """There, the last of an odd number was hashed twice: [a, b, c] and [a, b, c, c] were one."""
    ids = [sha(f"entry {number}") for number in range(27)]
    for short in range(9):
        with pytest.raises(AssertionError):
            face_hash(ids[:short])
    with pytest.raises(AssertionError):
        face_hash(ids[:10])
    faces = [face_hash(ids[at : at + 9]) for at in (0, 9, 18)]
    with pytest.raises(AssertionError):
        cube_hash(1, 0, faces[:2])
    # A cell is not taken for what is below it, at another level or in another place.
    assert len({cube_hash(level, at, faces) for level in (1, 2) for at in (0, 1)}) == 4
    assert face_hash(faces * 3) not in {cube_hash(level, 0, faces) for level in range(4)}
    twice = cells_of([*ids, ids[26]])
    assert find(twice, cells_of(ids), 27)[0] is None
    assert (twice.count(), cells_of(ids).count()) == (28, 27)


def test_the_seeds_open_partial_cubes_have_no_hash():
    """There, a cube that was not full had a root, which changed with each entry."""
    ids = [sha(f"entry {number}") for number in range(CUBE**2 + 40)]
    for count in range(len(ids)):
        found = {at for at in full(cells_of(ids[:count])) if at[0]}
        assert found == {
            (level, index) for level in (1, 2) for index in range(count // CUBE**level)
        }
    cells = full(cells_of(ids))
    for step in (1, 7, 27, 80):
        assert full(cells_of(ids, step)) == cells, "how much was sealed at once is no matter"


# At the door of two nodes


@pytest.fixture
def circle():
    return Circle(3)


@pytest.fixture
def low(circle):
    """The one of the first two that starts their seals."""
    return min(circle.members[:2], key=lambda member: member.id)


@pytest.fixture
def high(circle):
    return max(circle.members[:2], key=lambda member: member.id)


async def trade(one, other, numbers):
    """Book entries in both directions, each in an account of its own."""
    for number in numbers:
        creditor, debtor = (one, other) if number % 3 else (other, one)
        await book(creditor, debtor, number)


async def book(creditor, debtor, number):
    account = sha(f"account {number}")
    said = voucher(debtor, creditor, 1 + number).record.model_copy(update={"account": account})
    await creditor.ledger.collect(sign(said, debtor.key, NETWORK).raw)


async def rows(member, other):
    """All full cells that a node has with another."""
    made, count = await member.ledger.seals.with_peer(other.id)
    assert count == made.count()
    return full(made)


async def compared(member, other):
    return await member.ledger.seals.compare(other.id)


async def test_both_nodes_have_the_same_cubes_and_sealing_moves_nothing(low, high):
    await trade(low, high, range(100))
    before = [(one.ledger.balance(two.id), one.ledger.limit(two.id), one.ledger.credit_left(two.id))
              for one, two in ((low, high), (high, low))]  # fmt: skip
    await high.ledger.seals.seal_all()
    assert await rows(high, low) == {}, "the node of the lower id starts"
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low)
    assert len(await rows(low, high)) == 100 + 3
    for one, two in ((low, high), (high, low)):
        assert [*one.ledger.seals.unsealed(two.id)] == []
        assert await compared(one, two) == (100, None)
        report = await one.ledger.verify()
        assert report.settled == 100
    assert before == [
        (one.ledger.balance(two.id), one.ledger.limit(two.id), one.ledger.credit_left(two.id))
        for one, two in ((low, high), (high, low))
    ]
    assert sum(flow.earned_micro for flow in low.ledger.chain.state.flows.since(0)) == sum(
        1 + number for number in range(100) if number % 3
    )
    newest = low.ledger.entries(limit=1)[0]
    assert (newest.kind, newest.state, newest.amount_micro) == ("seal", "settled", 0)
    assert "sealed what they signed before" in verify_settled(low.ledger.export(newest.entry_id))
    assert low.log.events.count("ledger.paid") == 100


async def test_sealed_cubes_never_change(low, high):
    kept = {}
    for turn in range(8):
        await trade(low, high, range(turn * 11, turn * 11 + 11))
        await low.ledger.seals.seal_all()
        assert (await rows(low, high)).items() >= kept.items()
        kept = await rows(low, high)
        low.crash()
        high.crash()
    assert await rows(high, low) == kept
    # Within one seal by id, and seal by seal.
    ids = [row for key, row in sorted(kept.items()) if key[0] == 0]
    for turn in range(8):
        part = ids[turn * 11 : turn * 11 + 11]
        assert part == sorted(part)


async def test_what_only_one_of_both_has_settled_waits_and_is_sealed_later(circle, low, high):
    await book(low, high, 1)
    circle.fate = lambda: "answer lost"
    with pytest.raises(PeerSilent):
        await book(high, low, 2)
    circle.fate = lambda: "pass"
    # The lower one has both halves, the other waits for its answer.
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == {}
    assert "ledger.unsealed" in low.log.events
    # An open seal holds up no payment.
    await book(low, high, 3)
    assert low.ledger.balance(high.id) == 2 + 4 - 3
    await high.ledger.retry_pending()
    await low.ledger.retry_pending()
    assert len(await rows(low, high)) == 2
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low)
    assert len(await rows(low, high)) == 3


async def test_an_open_seal_does_not_delay_what_waits_to_be_booked(circle, low, high):
    await book(low, high, 1)
    circle.fate = lambda: "request lost"
    await low.ledger.seals.seal_all()
    with pytest.raises(PeerSilent):
        await book(low, high, 2)
    circle.fate = lambda: "pass"
    circle.sent.clear()
    assert await low.ledger.retry_pending() == 2
    kinds = [
        open_half(decode(sent[3])["half"], network=NETWORK).record.kind for sent in circle.sent
    ]
    assert kinds == ["post", "seal"]


async def test_the_same_seal_again_gets_the_same_answer(circle, low, high):
    await trade(low, high, range(5))
    circle.fate = lambda: "answer lost"
    await low.ledger.seals.seal_all()
    assert (len(await rows(low, high)), len(await rows(high, low))) == (0, 5)
    for one, two in ((low, high), (high, low)):
        with pytest.raises(PeerSilent):
            await compared(one, two)
    circle.fate = lambda: "twice"
    assert await compared(low, high) == (0, None)
    low.crash()
    await low.ledger.retry_pending()
    assert await rows(low, high) == await rows(high, low)
    assert [row.kind for row in high.ledger.entries()].count("seal") == 1
    for member in (low, high):
        assert (await member.ledger.verify()).forks == 0


async def test_the_first_entry_that_differs_is_named(low, high):
    await trade(low, high, range(200))
    await low.ledger.seals.seal_all()
    # An entry of the last of three seals is another on the disk of one node.
    await high.ledger.chain.snapshot()
    key, raw = shared(high)[170]
    high.store.write([(key, bytes([raw[0] ^ 1]) + raw[1:])], sync=True)
    place = await compared(low, high)
    assert place is not None
    assert place == await compared(high, low)
    assert place[0] == 200
    assert place[1] is not None
    assert 162 <= place[1] < 200
    made, _ = await high.ledger.seals.with_peer(low.id)
    others, _ = await low.ledger.seals.with_peer(high.id)
    own, theirs = ([each.read(0, at) for at in range(200)] for each in (made, others))
    assert place[1] == next(at for at in range(200) if own[at] != theirs[at])
    with pytest.raises(LedgerDamaged):
        await high.ledger.verify()


def shared(member):
    prefix = INDEX + SHARED
    return [*member.store.scan(prefix, prefix_end(prefix))]


async def test_every_flipped_byte_of_the_cubes_is_found(low, high):
    await trade(low, high, range(28))
    await low.ledger.seals.seal_all()
    await book(low, high, 28)
    await low.ledger.chain.snapshot()
    seals = [*low.store.scan(INDEX + SEAL, prefix_end(INDEX + SEAL))]
    assert (len(shared(low)), len(seals)) == (29, 1)
    for key, raw in [*shared(low)[:2], *shared(low)[-1:], *seals]:
        for place in range(len(raw)):
            flipped = raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :]
            low.store.write([(key, flipped)], sync=True)
            with pytest.raises(LedgerDamaged):
                await low.ledger.verify()
        other = key[:-1] + bytes([key[-1] ^ 128])
        for changes in ([(key, None)], [(key, None), (other, raw)]):
            low.store.write([*changes], sync=True)
            with pytest.raises(LedgerDamaged):
                await low.ledger.verify()
            low.store.write([(key, raw), (other, None)], sync=True)


async def propose(circle, author, other, entry_ids, below, **changes):
    """Send a seal that its author signed, whatever its own ledger says."""
    state = author.ledger.chain.state
    voucher = changes.pop("voucher", b"")
    said = {
        "kind": "seal",
        "unit": UNIT_NONE,
        "credit": author.id,
        "debit": other.id,
        "peer": other.id,
        "seq": state.next_seq,
        "prev": state.head,
        "amount_micro": below,
        "account": author.ledger.seals.history(other.id),
        "receipt": seal_hash(entry_ids),
        "created_ms": 1,
    } | changes
    half = sign(Half.model_construct(**said), author.key, NETWORK)
    header = {"v": 1, "half": half.raw, "voucher": voucher}
    return await circle.deliver(author.id, other.id, PROPOSE, encode(header))


async def test_a_seal_that_lies_is_refused_and_leaves_nothing(circle, low, high):
    await trade(low, high, range(6))
    await low.ledger.seals.seal_all()
    await trade(low, high, range(6, 12))
    third = circle.members[2]
    await book(third, high, 50)
    waiting = [*low.ledger.seals.unsealed(high.id)]
    below, ids = waiting[-1][0] + 1, sorted(entry_id for _, entry_id in waiting)
    sealed = [row for key, row in sorted((await rows(low, high)).items()) if key[0] == 0]
    foreign = [entry_id for _, entry_id in high.ledger.seals.unsealed(third.id)]
    count, before = high.ledger.count(), await rows(high, low)
    start = low.ledger.chain.state.sealed[high.id]
    lies = [
        ([sha("no entry")], below, {}),
        (ids[:-1], below, {}),
        (sorted([*ids, sealed[0]]), below, {}),
        (sorted([*ids, *foreign]), below, {}),
        (ids, below - 1, {}),
        (ids, 1, {}),
        (sorted(sealed), start, {}),
        ([], start, {}),
        ([], 0, {}),
        (ids, low.ledger.chain.state.next_seq + 1, {}),
        (ids, 2**63 - 1, {}),
        (ids[::-1], below, {}),
        (ids, below, {"receipt": sha("another")}),
        (ids, below, {"account": sha("another")}),
        (ids, below, {"account": history({low.id: 1, high.id: 0})}),
        (ids, below, {"kind": "post"}),
        (ids, below, {"voucher": b"x"}),
    ]
    for lie, number, changes in lies:
        with pytest.raises((EntryRefused, RecordInvalid)):
            await propose(circle, low, high, lie, number, **changes)
    with pytest.raises(RecordInvalid, match="lower id"):
        await propose(circle, high, low, ids, below)
    assert (high.ledger.count(), await rows(high, low)) == (count, before)
    await high.ledger.verify()
    await propose(circle, low, high, sorted(one for _, one in waiting[:2]), waiting[1][0] + 1)
    assert len(await rows(high, low)) == 8


async def test_nothing_comes_among_what_is_sealed(circle, low, high):
    """A number below a seal of its author is refused, in a proposal and in an answer."""
    await trade(low, high, range(6))
    circle.fate = lambda: "request lost"
    with pytest.raises(PeerSilent):
        await book(high, low, 7)
    circle.fate = lambda: "pass"
    await low.ledger.seals.seal_all()
    kept = await rows(high, low)
    assert len(kept) == 6
    account = sha("account 8")
    said = voucher(high, low, 9).record.model_copy(update={"account": account})
    under = sign(said, high.key, NETWORK)
    half = Half(
        kind="post",
        peer=high.id,
        debit=high.id,
        credit=low.id,
        seq=low.ledger.chain.state.sealed[high.id] - 1,
        prev=sha("before"),
        amount_micro=9,
        account=account,
        receipt=under.id,
    )
    header = {"v": 1, "half": sign(half, low.key, NETWORK).raw, "voucher": under.raw}
    with pytest.raises(EntryRefused, match="sealed"):
        await circle.deliver(low.id, high.id, PROPOSE, encode(header))

    def lie(reply):
        if "counter" in reply.header:
            right = open_half(reply.header["counter"], network=NETWORK).record
            wrong = right.model_copy(update={"seq": half.seq, "prev": half.prev})
            reply.header["counter"] = sign(wrong, low.key, NETWORK).raw

    circle.change = lie
    assert await high.ledger.retry_pending() == 0
    circle.change = lambda _: None
    assert await rows(high, low) == kept
    await high.ledger.verify()
    assert await high.ledger.retry_pending() == 1
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low)
    assert len(await rows(low, high)) == 7


async def test_what_waits_for_an_answer_and_what_comes_after_it_is_sealed_later(circle, low, high):
    await book(low, high, 1)
    circle.fate = lambda: "answer lost"
    with pytest.raises(PeerSilent):
        await book(low, high, 2)
    circle.fate = lambda: "pass"
    await book(low, high, 4)
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low)
    assert len(await rows(low, high)) == 1
    await low.ledger.retry_pending()
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low)
    assert len(await rows(low, high)) == 3


async def test_a_refusal_of_a_seal_costs_its_author_nothing_more(circle, low, high):
    """A peer that refuses for ever has this node sign one seal, and not one at each attempt."""
    await trade(low, high, range(3))
    high.ledger.chain.state.sealed[low.id] = 100
    for _ in range(5):
        await low.ledger.seals.seal_all()
        await low.ledger.retry_pending()
    kinds = [row.kind for row in low.ledger.entries(limit=100)]
    assert kinds.count("seal") == 1
    assert "void" not in kinds


async def test_a_peer_is_answered_of_its_own_history_only_and_so_much_at_most(circle, low, high):
    await trade(low, high, range(40))
    await low.ledger.seals.seal_all()
    own = low.ledger.seals.history(high.id)
    ask = {"v": 1, "history": own, "count": 40, "level": 1, "place": 0, "face": None}

    async def answer(caller, **changes):
        header = encode(ask | changes)
        return (await circle.deliver(caller.id, low.id, CUBES, header)).header

    assert len((await answer(high))["hashes"]) == 3
    assert len((await answer(high, face=2))["hashes"]) == 9
    assert len((await answer(high, place=1))["hashes"]) == 1
    assert len((await answer(high, place=1, face=1))["hashes"]) == 4
    assert (await answer(high, count=2, face=0))["hashes"] == (await answer(high, face=0))[
        "hashes"
    ][:2]
    for nothing in (
        {"level": 0},
        {"level": LEVEL_MAX},
        {"place": 2**63 - 1},
        {"history": sha("x")},
    ):
        assert (await answer(high, **nothing))["hashes"] == []
    assert await answer(circle.members[2]) == {
        "v": 1,
        "history": low.ledger.seals.history(circle.members[2].id),
        "count": 0,
        "hashes": [],
    }
    for bad in (
        {"level": LEVEL_MAX + 1},
        {"face": 3},
        {"place": -1},
        {"history": None},
        {"count": "x"},
    ):
        with pytest.raises(RecordInvalid):
            await answer(high, **bad)


@pytest.mark.parametrize("lost", ["low", "high"])
async def test_after_a_restart_the_cubes_begin_anew_on_both_sides(circle, low, high, lost):
    await trade(low, high, range(30))
    await low.ledger.seals.seal_all()
    await trade(low, high, range(30, 35))
    who = low if lost == "low" else high
    other = high if who is low else low
    await who.come_back()
    for member in (low, high):
        peer = high if member is low else low
        assert await rows(member, peer) == {}
        assert [*member.ledger.seals.unsealed(peer.id)] == []
        assert await compared(member, peer) == (0, None)
    assert who.ledger.balance(other.id) == -other.ledger.balance(who.id)
    await trade(low, high, range(35, 65))
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low)
    assert len(await rows(low, high)) == 30 + 1
    for member in (low, high):
        await member.ledger.verify()
        member.crash()
        await member.ledger.confirm_head([high.id if member is low else low.id])
    assert (await compared(low, high) or ())[1:] == (None,)


async def test_what_is_booked_before_a_peer_is_told_of_a_restart_is_sealed_all_the_same(
    circle, low, high
):
    """Seals and entries of before and after it may cross the word of the new incarnation."""
    await trade(low, high, range(3))
    circle.fate = lambda: "request lost"
    await low.ledger.seals.seal_all()
    circle.fate = lambda: "pass"
    high.store = MemoryKeyValue()
    high.ledger = high.start()
    await high.ledger.restart([low.id, circle.members[2].id], Noted())
    await trade(low, high, range(3, 6))
    assert await compared(low, high) is None
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low) == {}
    await high.ledger.confirm_head([low.id])
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low)
    assert len(await rows(low, high)) == 3
    assert await compared(high, low) == (3, None)
    await low.ledger.retry_pending()
    states = [row.state for row in low.ledger.entries(limit=100) if row.kind == "seal"]
    assert states == ["settled", "void"]  # the newest first
    for member in (low, high):
        await member.ledger.verify()
    # A restart after the answer was written and before it arrived.
    await book(low, high, 7)
    circle.fate = lambda: "answer lost"
    await low.ledger.seals.seal_all()
    circle.fate = lambda: "pass"
    await low.come_back()
    assert await rows(low, high) == await rows(high, low) == {}
    # It has lost what it was told of the other's restart, too, which tells it where it sees it.
    await high.ledger.confirm_head([low.id])
    await book(low, high, 8)
    await low.ledger.seals.seal_all()
    assert await rows(low, high) == await rows(high, low)
    assert len(await rows(low, high)) == 1
