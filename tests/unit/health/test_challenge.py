import hashlib
import json
import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from xsc.base.errors import RecordInvalid
from xsc.base.limits import EPOCH_MS, LEAF_BYTES
from xsc.base.merkle import leaf_hashes, prove_span, root_of
from xsc.health import challenge as rules
from xsc.health.challenge import (
    AGAIN_MIN,
    CONTAINED_MS,
    EVERYTHING,
    Challenged,
    Granted,
    Reveal,
    Round,
)
from xsc.terms.possession import (
    LEAVES_ASKED,
    MANIFEST_COLUMN,
    AskedLeaf,
    Extent,
    LeafProof,
    Proven,
    Root,
    counts_in,
    extent_name,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "challenge.json").read_text())
HOST, CUSTOMER, PROBER = b"h" * 32, b"c" * 32, b"p" * 32
ASKED = Round(HOST, CUSTOMER, PROBER, EVERYTHING, 472_222)


def shake(text, size=32):
    return hashlib.shake_256(text.encode()).digest(size)


def test_what_a_custodian_signs_is_what_was_computed_by_hand():
    ids = {name: shake(name) for name in ("host", "customer", "prober", "seed")}
    proven = Proven(**ids, leaves=1_000, at_ms=1_700_000_000_000)
    assert proven.to_bytes().hex() == VECTORS["proven"]


def some_extents(count, seed=1):
    draw = random.Random(seed)
    return [
        Extent(
            extent_name(draw.randbytes(32), draw.randrange(6)), draw.randrange(1, 4), 2**20, size
        )
        for size in (draw.randrange(1, 2**20) for _ in range(count))
    ]


def body_of(extent, number):
    return shake(f"{extent.name.hex()} {number}", extent.size_of(number))


def reveal_of(extents, asked=ASKED, host_nonce=b"n" * 32, nonce=b"m" * 32):
    """Return what an honest prober shows, with true roots."""
    pages = rules.pages_of(extents)
    index = rules.index_of(pages)
    seed = rules.seed_of(asked, nonce, host_nonce, rules.commitment_of(nonce, index))
    shown = tuple(pages[number] for number in rules.pages_drawn(index, seed))
    drawn = rules.leaves_drawn(index, shown, seed)
    return Reveal(
        customer=asked.customer,
        scope=asked.scope,
        epoch=asked.epoch,
        nonce=nonce,
        host_nonce=host_nonce,
        index=index,
        pages=shown,
        roots=tuple((0, root_of(body_of(extent, body)), None) for extent, body, _ in drawn),
    )


def proof_of(asked: AskedLeaf):
    data = body_of(asked.extent, asked.body)
    start = asked.leaf * LEAF_BYTES
    path = prove_span(leaf_hashes(data), asked.leaf, asked.leaf + 1)
    return LeafProof(data[start : start + LEAF_BYTES], tuple(path))


def answered(reveal, lacks=()):
    asked = reveal.asked(HOST, PROBER)
    proofs = [None if number in lacks else proof_of(leaf) for number, leaf in enumerate(asked)]
    said = rules.possession(reveal.seed(HOST, PROBER), asked, proofs, 1)
    return asked, said, [proof for proof in proofs if proof is not None]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_challenges_are_those_of_an_independent_computation(case):
    hexes = ("host", "customer", "prober", "scope")
    asked = Round(*(bytes.fromhex(case[name]) for name in hexes), case["epoch"])
    extents = [Extent(bytes.fromhex(name), *sizes) for name, *sizes in case["extents"]]
    pages = rules.pages_of(extents)
    index = rules.index_of(pages)
    assert index.hex() == case["index"]
    nonce = rules.nonce_of(shake("secret of prober"), asked)
    commitment = rules.commitment_of(nonce, index)
    host_nonce = rules.nonce_of(shake("secret of host"), asked, commitment)
    seed = rules.seed_of(asked, nonce, host_nonce, commitment)
    told = (nonce.hex(), commitment.hex(), host_nonce.hex(), seed.hex())
    assert told == tuple(case[name] for name in ("nonce", "commitment", "host_nonce", "seed"))
    assert rules.draw(seed, case["total"]) == case["draw"]
    drawn = rules.leaves_drawn(index, [pages[n] for n in rules.pages_drawn(index, seed)], seed)
    assert [[extent.name.hex(), body, leaf] for extent, body, leaf in drawn] == case["drawn"]
    leaves = [
        AskedLeaf(
            *place,
            Root(
                0,
                shake("root"),
                shake("manifest") if place[0].column == MANIFEST_COLUMN else None,
            ),
        )
        for place in drawn
    ]
    assert rules.asked_id(leaves).hex() == case["asked"]
    proofs = [LeafProof(shake(f"leaf {n}", 20), (shake("path"),)) for n in range(len(drawn))]
    assert rules.leaves_id(proofs).hex() == case["leaves"]


@pytest.mark.parametrize("total", [5, 7, 30, 1_000])
def test_the_draw_is_uniform(total):
    """Chi-square in exact integers: below what one in 10^6 fair draws passes."""
    draws, counts = 10_000, Counter()
    for number in range(draws):
        drawn = rules.draw(hashlib.sha256(b"%d %d" % (total, number)).digest(), total)
        assert len(set(drawn)) == LEAVES_ASKED
        assert all(0 <= each < total for each in drawn)
        counts.update(drawn)
    squares = sum((counts[n] * total - draws * LEAVES_ASKED) ** 2 for n in range(total))
    # Without replacement the variance is smaller by (total - 4) / (total - 1).
    chi = squares * (total - 1) / (draws * LEAVES_ASKED * total * (total - LEAVES_ASKED))
    free = total - 1
    assert chi < free + 5 * math.sqrt(2 * free) + 20


def test_a_share_that_is_missing_is_found_as_often_as_it_must_be():
    """1 - (1 - f)^4 within 3 sigma over 10^4 challenges."""
    extents, trials = some_extents(300), 10_000
    total = sum(counts_in(b"".join(extent.to_bytes() for extent in extents)))
    for percent in (1, 10, 50):
        lost = set(random.Random(percent).sample(range(total), total * percent // 100))
        found = sum(
            not lost.isdisjoint(rules.draw(hashlib.sha256(b"%d" % number).digest(), total))
            for number in range(trials)
        )
        chance = 1 - (1 - len(lost) / total) ** LEAVES_ASKED
        assert abs(found - trials * chance) <= 3 * math.sqrt(trials * chance * (1 - chance))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200])
def test_every_leaf_of_every_extent_can_be_drawn_and_no_other(count):
    extents = some_extents(count, seed=count)
    pages = rules.pages_of(extents)
    index = rules.index_of(pages)
    every = {
        (extent.name, body, leaf)
        for extent in extents
        for body in range(extent.bodies)
        for leaf in range(max(1, -(-extent.size_of(body) // LEAF_BYTES)))
    }
    assert sum(counts_in(b"".join(extent.to_bytes() for extent in extents))) == len(every)
    for number in range(200):
        seed = hashlib.sha256(b"%d" % number).digest()
        shown = [pages[page] for page in rules.pages_drawn(index, seed)]
        drawn = rules.leaves_drawn(index, shown, seed)
        places = [(extent.name, body, leaf) for extent, body, leaf in drawn]
        assert set(places) <= every
        assert len(set(places)) == min(LEAVES_ASKED, len(every))


def test_an_honest_answer_is_ok_and_admitted_losses_are_missing():
    reveal = reveal_of(some_extents(100))
    asked, said, proofs = answered(reveal)
    seed = reveal.seed(HOST, PROBER)
    assert rules.judge(seed, asked, said, proofs) == ("ok", frozenset())
    for number in range(LEAVES_ASKED):
        _, said, proofs = answered(reveal, lacks={number})
        failed = frozenset({asked[number].extent.name})
        assert rules.judge(seed, asked, said, proofs) == ("missing", failed)


def test_every_changed_byte_of_what_is_given_is_refused_or_a_bad_proof():
    reveal = reveal_of([Extent(extent_name(b"l" * 32, 1), 2, 40_000, 20_000)])
    asked, said, proofs = answered(reveal)
    seed = reveal.seed(HOST, PROBER)
    for number, (data, path) in enumerate(proofs):
        places = [(data, at) for at in range(0, len(data), 997)]
        places += [(step, at) for step in path for at in range(len(step))]
        for raw, at in places:
            changed = bytearray(raw)
            changed[at] ^= 1 + at % 255
            forged = list(proofs)
            if raw is data:
                forged[number] = LeafProof(bytes(changed), path)
            else:
                forged[number] = LeafProof(
                    data, tuple(bytes(changed) if step is raw else step for step in path)
                )
            with pytest.raises(RecordInvalid):
                rules.judge(seed, asked, said, forged)  # It is not what was signed.
            signed = rules.possession(seed, asked, forged, 1)
            outcome, failed = rules.judge(seed, asked, signed, forged)
            assert (outcome, failed) == ("bad_proof", {asked[number].extent.name})


def test_leaves_of_others_and_in_another_order_are_bad_proofs():
    reveal = reveal_of(some_extents(100))
    asked, _, proofs = answered(reveal)
    seed = reveal.seed(HOST, PROBER)
    other = reveal_of(some_extents(100, seed=2))
    _, _, foreign = answered(other)
    for forged in ([*proofs[1:], proofs[0]], [*proofs[:3], foreign[3]], proofs[::-1]):
        said = rules.possession(seed, asked, forged, 1)
        outcome, _ = rules.judge(seed, asked, said, forged)
        assert outcome == "bad_proof"


@pytest.mark.parametrize(
    "other",
    [
        ASKED._replace(prober=b"q" * 32),
        ASKED._replace(epoch=ASKED.epoch + 1),
        ASKED._replace(epoch=ASKED.epoch - 1),
        ASKED._replace(customer=b"d" * 32),
        ASKED._replace(host=b"i" * 32),
        ASKED._replace(scope=b"l" * 32),
    ],
)
def test_an_answer_to_another_challenge_is_none(other):
    reveal = reveal_of(some_extents(100))
    asked, said, proofs = answered(reveal)
    nonces = reveal.nonce, reveal.host_nonce
    seed = rules.seed_of(other, *nonces, rules.commitment_of(reveal.nonce, reveal.index))
    with pytest.raises(RecordInvalid):
        rules.judge(seed, asked, said, proofs)


def test_too_few_and_too_many_leaves_are_no_answer():
    reveal = reveal_of(some_extents(100))
    asked, said, proofs = answered(reveal)
    seed = reveal.seed(HOST, PROBER)
    for given in (proofs[:3], [*proofs, proofs[0]], []):
        with pytest.raises(RecordInvalid):
            rules.judge(seed, asked, said, given)
    with pytest.raises(RecordInvalid):
        rules.judge(seed, asked, said.model_copy(update={"states": ("ok",) * 3}), proofs)


def test_a_prober_that_grinds_its_nonce_cannot_choose_leaves():
    """Its nonce and list are fixed before it knows the host's nonce; another one is refused."""
    secret, granted, extents = b"s" * 32, Granted(64), some_extents(100)
    index = rules.index_of(rules.pages_of(extents))
    first = rules.commitment_of(b"m" * 32, index)
    assert granted.take(ASKED, first, ASKED.epoch)
    for number in range(1_000):
        commitment = rules.commitment_of(hashlib.sha256(b"%d" % number).digest(), index)
        assert not granted.take(ASKED, commitment, ASKED.epoch)
    assert granted.take(ASKED, first, ASKED.epoch), "the same may be asked again"
    # Without what the host answered to its commitment, it cannot show which leaves follow.
    wanted = rules.nonce_of(secret, ASKED, first)
    other = rules.nonce_of(secret, ASKED, rules.commitment_of(b"k" * 32, index))
    assert wanted != other


def test_a_host_takes_so_many_challenges_of_one_prober_an_interval():
    granted = Granted(3)
    places = [ASKED._replace(scope=bytes([number]) * 32) for number in range(1, 6)]
    assert [granted.take(place, b"c" * 32, ASKED.epoch) for place in places] == [
        True,
        True,
        True,
        False,
        False,
    ]
    other = places[4]._replace(prober=b"q" * 32)
    assert granted.take(other, b"c" * 32, ASKED.epoch), "others have their own"
    about_all = ASKED._replace(scope=rules.EVERYTHING)
    assert granted.take(about_all, b"c" * 32, ASKED.epoch), "what pays is counted apart"
    soon = ASKED.epoch + 1
    assert granted.take(places[4]._replace(epoch=soon), b"c" * 32, ASKED.epoch), "an hour each"
    later = ASKED.epoch + 2
    assert granted.take(places[4]._replace(epoch=later), b"c" * 32, later)
    for wrong in (ASKED.epoch - 2, ASKED.epoch + 2, 0, 2**62):
        assert not Granted(3).take(ASKED._replace(epoch=wrong), b"c" * 32, ASKED.epoch)


def changed_index(index, at, entry):
    size = len(index) // 2
    return index[: at * size] + entry + index[(at + 1) * size :]


def test_what_does_not_follow_from_the_list_is_refused():
    extents = some_extents(100)
    pages = rules.pages_of(extents)
    index = rules.index_of(pages)
    assert len(pages) == 2
    size = len(index) // 2
    reveal = reveal_of(extents)
    seed = reveal.seed(HOST, PROBER)
    assert rules.pages_drawn(index, seed) == [0, 1]
    swapped = index[size:] + index[:size]
    twice = index[:size] + index[:size]
    nothing = changed_index(index, 0, index[: size - 8] + bytes(8))
    for wrong in (b"", index[:-1], index + b"\0", swapped, twice, nothing):
        with pytest.raises(RecordInvalid):
            rules.leaves_drawn(wrong, pages, seed)
    # A draw out of more than 2**64 never ended, and a node with it.
    for leaves in (2**63, 2**64 - 1):
        many = changed_index(index, 0, index[: size - 8] + leaves.to_bytes(8, "big"))
        with pytest.raises(RecordInvalid, match="more leaves than there can be"):
            rules.pages_drawn(many, seed)
    extent = extents[0].to_bytes()
    for wrong in (
        pages[::-1],
        pages[:1],
        [*pages, pages[0]],
        [pages[0], pages[1][:-1]],
        [pages[0], pages[1] + extent],
        [pages[0], b""],
    ):
        with pytest.raises(RecordInvalid):
            rules.leaves_drawn(index, wrong, seed)
    # Pages that say themselves what their index says, and are no honest list.
    for forged in (
        [pages[0], pages[1] + pages[1][-46:]],  # An extent twice.
        [pages[0] + pages[1][46:92], pages[1]],  # One that belongs to the next page.
        [pages[0], pages[1][:46] + pages[1][:45:-1]],  # In no order.
    ):
        with pytest.raises(RecordInvalid):
            rules.leaves_drawn(rules.index_of(forged), forged, seed)
    more = changed_index(index, 1, index[size : 2 * size - 8] + (2**40).to_bytes(8, "big"))
    with pytest.raises(RecordInvalid, match="another number of leaves"):
        rules.leaves_drawn(more, [pages[n] for n in rules.pages_drawn(more, seed)], seed)


def test_no_more_than_so_many_leaves_are_drawn_whatever_is_listed():
    huge = Extent(extent_name(b"l" * 32, 0), 2**32 - 1, 2**20, 2**20)
    reveal = reveal_of([huge])
    assert len(reveal.asked(HOST, PROBER)) == LEAVES_ASKED
    roots = reveal.roots
    for wrong in (roots[:3], ()):
        with pytest.raises(RecordInvalid):
            reveal.model_copy(update={"roots": wrong}).asked(HOST, PROBER)
    with pytest.raises(RecordInvalid):
        Reveal.from_value(reveal.to_value() | {"roots": [[*root] for root in roots * 2]})


def test_a_challenge_about_one_object_draws_from_that_alone():
    extents = some_extents(3)
    asked = ASKED._replace(scope=extents[0].locate)
    honest = reveal_of(extents[:1], asked)
    assert {leaf.extent for leaf in honest.asked(HOST, PROBER)} == {extents[0]}
    with pytest.raises(RecordInvalid, match="another object"):
        reveal_of(extents, asked).asked(HOST, PROBER)


# What becomes of outcomes


def after(outcomes, step_ms=EPOCH_MS):
    row = None
    for number, outcome in enumerate(outcomes):
        row = rules.noted(row, outcome, number + 1, (number + 1) * step_ms)
    return row


def test_a_timeout_counts_as_missing_once_it_was_asked_again_for_a_day():
    hours = CONTAINED_MS // EPOCH_MS
    assert after(["timeout"] * hours).outcome == "timeout"
    assert after(["timeout"] * (hours + 1)).outcome == "missing"
    seldom = CONTAINED_MS
    assert after(["timeout"] * AGAIN_MIN, seldom).outcome == "timeout"
    assert after(["timeout"] * (AGAIN_MIN + 1), seldom).outcome == "missing"


def test_timeouts_alone_are_never_a_bad_proof():
    for outcomes in (["timeout"] * 200, ["timeout", "unreachable"] * 100):
        for length in range(1, len(outcomes)):
            assert after(outcomes[:length]).outcome != "bad_proof"


def test_an_answer_ends_all_that_silence_has_begun():
    row = after(["ok", "timeout", "timeout"])
    assert (row.silences, row.ok_ms, row.epoch) == (2, EPOCH_MS, 3)
    for void, silences, epoch in (("unreachable", 3, 3), ("prober_void", 2, 9)):
        noted = rules.noted(row, void, 9, 9 * EPOCH_MS)
        told = noted.silences, noted.silent_ms, noted.ok_ms, noted.epoch
        assert told == (silences, row.silent_ms, EPOCH_MS, epoch)
    for answer in ("ok", "missing", "bad_proof"):
        noted = rules.noted(row.model_copy(update={"again": b"x"}), answer, 9, 9 * EPOCH_MS)
        assert (noted.silences, noted.silent_ms, noted.again) == (0, None, b"")
        assert noted.ok_ms == (9 if answer == "ok" else 1) * EPOCH_MS


def test_each_host_has_its_turn_once_an_interval_and_they_are_spread():
    hosts = [shake(f"host {number}") for number in range(500)]
    for epoch in (472_222, 472_223):
        rows = [Challenged(epoch=epoch - 1, at_ms=1, outcome="ok")]
        turns = Counter()
        for host in hosts:
            due = [
                rules.is_due(PROBER, host, rows, epoch * EPOCH_MS + slot * rules.SLOT_MS)
                for slot in range(rules.SLOTS_AN_EPOCH)
            ]
            assert all(b >= a for a, b in pairwise(due)), "it stays due until it was asked"
            turns[due.index(True)] += 1
        assert len(turns) == rules.SLOTS_AN_EPOCH - 1
        assert max(turns.values()) < 3 * min(turns.values())
    now_ms = 472_223 * EPOCH_MS - 1
    assert not rules.is_due(
        PROBER, HOST, [Challenged(epoch=472_222, at_ms=1, outcome="ok")], now_ms
    )
    assert rules.is_due(PROBER, HOST, [], now_ms)
    ahead = [Challenged(epoch=999_999, at_ms=1, outcome="ok")]
    assert rules.is_due(PROBER, HOST, ahead, now_ms), "a clock that was ahead ends nothing"


def test_a_whole_body_is_read_once_in_thirty_days():
    row = Challenged(epoch=1, at_ms=1, outcome="ok", whole_ms=rules.WHOLE_MS * 7)
    assert rules.whole_is_due(None, 1)
    assert not rules.whole_is_due(row, rules.WHOLE_MS * 8 - 1)
    assert rules.whole_is_due(row, rules.WHOLE_MS * 8)


def test_an_answer_has_room_in_eighty_kib():
    leaf = AskedLeaf(
        Extent(extent_name(b"l" * 32, 0), 1, 2**22, 2**22), 0, 9, Root(0, b"r" * 32, None)
    )
    path = prove_span([b"x" * 32] * 256, 9, 10)
    size = LEAVES_ASKED * (LEAF_BYTES + 34 * len(path))
    said = rules.possession(b"s" * 32, [leaf], [None], 1)
    assert size + len(said.to_bytes()) + 1_024 <= 80 * 1_024
