"""A stored book replays to the same state, and each row that does not fit is named."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.unit.ledger.circle import NETWORK, Circle, Member, collect, digest, voucher
from xsc.base.encoding import decode, encode
from xsc.base.errors import EntryRefused, LedgerDamaged, PeerSilent, ProofInvalid, RecordInvalid
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import read_claimed, sign
from xsc.identity.keys import network_id
from xsc.ledger.audit import (
    chain_end_bytes,
    verify_settled,
)
from xsc.ledger.entry import (
    GENESIS,
    Half,
    SettledEntry,
    counter_half,
    open_half,
)
from xsc.ledger.incarnation import Claim, open_restart, restart_bytes
from xsc.ledger.proposals import PROPOSE
from xsc.terms.voucher import Voucher, off_books_account

AMOUNT = 100


@pytest.fixture
def circle():
    return Circle(3)


@pytest.fixture
async def a(circle):
    """Return a node with a half of each kind, and a peer that signed two halves in one place."""
    a, b, c = circle.members
    await collect(b, a, AMOUNT, account=1)
    await a.ledger.set_limit(c.id, None)
    await collect(a, c, 500, account=3)
    circle.fate = lambda: "request lost"
    with pytest.raises(PeerSilent):
        await collect(a, c, 7, account=4)
    circle.fate = lambda: "pass"
    half = open_half(
        next(decode(raw)["half"] for _, peer, _, raw in circle.sent if peer == a.id),
        network=NETWORK,
    )
    other = sign(half.record.model_copy(update={"created_ms": 1}), b.key, NETWORK)
    header = {"v": 1, "half": other.raw, "voucher": voucher(a, b, AMOUNT).raw}
    with pytest.raises(EntryRefused):
        await circle.deliver(b.id, a.id, PROPOSE, encode(header))
    return a


@pytest.fixture
async def restarted(a, circle):
    """Return the node after it lost its book and B was silent; B's entry is a claim by now."""
    _, b, c = circle.members
    await collect(c, a, 20, account=5)
    circle.gone.add(b.id)
    await a.come_back(a.ledger.noted())
    await collect(c, a, 25, of=45, account=5)
    circle.gone.clear()
    await a.ledger.confirm_head([b.id])
    await collect(c, a, 5, of=50, account=5)
    return a


async def audited(member, rows=None, *, signatures=True, snapshot=False):
    """Read a book with other rows: at a start, or while the node works with the right ones."""
    right = member.rows()
    rows = rows or right
    store = MemoryKeyValue()
    store.write([*right.rows(), *member.beside()], sync=True)
    reader = Member(member.circle, member.number, store)
    if snapshot:
        await reader.ledger.chain.snapshot()
    store.write([(key, None) for key, _ in right.rows()], sync=True)
    store.write(rows.rows(), sync=True)
    if signatures:
        await reader.ledger.verify()
    else:
        reader.ledger = reader.start()
    return SimpleNamespace(
        state=reader.ledger.chain.state,
        settled=reader.ledger.settled_entries(),
    )


async def damaged(member, says, **changed):
    """Check that a book with other rows is refused, with signatures and without."""
    rows = replace(member.rows(), **changed)
    for signatures in (True, False):
        with pytest.raises(LedgerDamaged, match=says):
            await audited(member, rows, signatures=signatures)
    with pytest.raises(LedgerDamaged, match=f"{says}|does not follow from its entries"):
        await audited(member, rows, snapshot=True)


def without(table, *keys):
    return {key: raw for key, raw in table.items() if key not in keys}


def by_kind(rows, kind, *, answers=False):
    """Return the numbers of the own halves of a kind."""
    halves = {seq: open_half(raw, network=NETWORK).record for seq, raw in rows.halves.items()}
    return [
        seq
        for seq, half in sorted(halves.items())
        if half.kind == kind and (half.link is not None) == answers
    ]


@pytest.mark.parametrize("signatures", [True, False])
async def test_a_book_replays_to_the_state_that_the_service_has(a, signatures):
    found = await audited(a, signatures=signatures)
    assert digest(found.state) == digest(a.ledger.chain.state)
    assert found.settled == 2
    assert found.state.next_seq == len(a.rows().halves) == 4


@pytest.mark.parametrize("signatures", [True, False])
async def test_a_book_that_began_anew_replays_with_what_it_took_along(restarted, signatures):
    rows = restarted.rows()
    assert len(by_kind(rows, "claim")) == 2
    assert min(rows.halves) < restarted.ledger.chain.state.first_seq
    found = await audited(restarted, rows, signatures=signatures)
    assert digest(found.state) == digest(restarted.ledger.chain.state)
    assert found.settled == 5


async def test_an_empty_store_is_an_empty_book(circle):
    member = circle.members[0]
    found = await audited(member)
    assert (found.state.next_seq, found.settled) == (0, 0)


@pytest.mark.parametrize(
    "mark",
    [
        b"",
        b"\xff",
        encode(1),
        encode({"v": 2, "next_seq": 5, "head": GENESIS}),
        encode({"v": 1, "next_seq": 5, "head": GENESIS, "more": 0}),
        encode({"v": 1, "next_seq": "5", "head": GENESIS}),
    ],
)
async def test_a_damaged_mark_is_named(a, mark):
    await damaged(a, "does not end where it should", mark=mark)


async def test_the_mark_says_where_the_chain_ends(a):
    rows = a.rows()
    state = (await audited(a)).state
    right = (state.next_seq, state.head)
    assert rows.mark == chain_end_bytes(*right)
    for wrong in ((3, right[1]), (5, right[1]), (right[0], GENESIS)):
        await damaged(a, "entry 4 .* does not end where it should", mark=chain_end_bytes(*wrong))
    await damaged(a, "does not end where it should", mark=None)
    # Only the last half is missing, and its vouchers with it.
    await damaged(
        a,
        "entry 3 .* (does not end where it should|is missing)",
        halves=without(rows.halves, 3),
        vouchers=without(rows.vouchers, 3),
    )


async def test_a_mark_in_an_empty_store_is_damage(circle):
    nothing = chain_end_bytes(1, GENESIS)
    await damaged(circle.members[0], "does not end", mark=nothing)


async def test_a_missing_half_is_named(a):
    for seq in range(3):
        rows = a.rows()
        await damaged(a, f"entry {seq} of .*: it is missing", halves=without(rows.halves, seq))


async def test_a_post_has_a_voucher_and_no_other_half_has_one(a):
    rows = a.rows()
    (own,) = by_kind(rows, "post", answers=True)
    for seq in (own, *by_kind(rows, "post")):
        await damaged(
            a, f"entry {seq} .*a voucher is missing", vouchers=without(rows.vouchers, seq)
        )
    spare = rows.vouchers[own]
    for kind in ("open", "limit"):
        for seq in by_kind(rows, kind):
            await damaged(a, f"entry {seq} .*one too many", vouchers={**rows.vouchers, seq: spare})


async def test_the_answer_beside_a_post_says_what_was_proposed(a, circle):
    _, b, c = circle.members
    rows = a.rows()
    (seq, waits) = by_kind(rows, "post")
    answer = open_half(rows.others[seq], network=NETWORK).record

    def beside(place, key=c.key, **changed):
        half = sign(answer.model_copy(update=changed), key, NETWORK)
        return {**rows.others, place: half.raw}

    await damaged(a, f"entry {seq} .* does not say what was", others=beside(seq, amount_micro=499))
    await damaged(a, f"entry {seq} .* another entry", others=beside(seq, link=GENESIS))
    await damaged(a, f"entry {waits} .* (another entry|never taken)", others=beside(waits))
    # Two answers in one place of the peer's chain.
    post = open_half(rows.halves[waits], network=NETWORK)
    again = counter_half(post, seq=answer.seq, prev=answer.prev, created_ms=0)
    others = {**rows.others, waits: sign(again, c.key, NETWORK).raw}
    await damaged(a, f"entry {waits} .* (signed another entry|never taken)", others=others)
    with pytest.raises(LedgerDamaged):
        await audited(a, replace(rows, others=beside(seq, key=b.key)))


async def test_what_concerns_its_author_alone_has_no_answer(a, circle):
    rows = a.rows()
    (first, *_) = by_kind(rows, "open")
    half = open_half(rows.halves[first], network=NETWORK)
    peer = next(member for member in circle.members if member.id == half.record.peer)
    answer = sign(counter_half(half, seq=9, prev=b"p" * 32, created_ms=0), peer.key, NETWORK)
    await damaged(a, f"entry {first} .* answers nothing", others={**rows.others, first: answer.raw})


async def test_the_half_that_an_answer_is_to_must_be_there(a):
    rows = a.rows()
    (seq,) = by_kind(rows, "post", answers=True)
    await damaged(a, f"entry {seq} .* answers is missing", others=without(rows.others, seq))


async def test_signatures_are_verified_only_where_that_is_asked(a):
    rows = a.rows()
    for table in ("halves", "others", "vouchers"):
        for seq, raw in getattr(rows, table).items():
            fields = decode(raw)
            forged = encode({**fields, "sig": bytes(64)})
            bad = replace(rows, **{table: {**getattr(rows, table), seq: forged}})
            with pytest.raises(LedgerDamaged, match=f"entry {seq} "):
                await audited(a, bad)
            assert (await audited(a, bad, signatures=False)).settled == 2


async def test_a_claim_is_over_the_entries_that_it_names(restarted):
    rows = restarted.rows()
    numbers = by_kind(rows, "claim")
    for seq in numbers:
        said = Claim.from_bytes(rows.vouchers[seq])

        async def wrong(says, raw, seq=seq):
            await damaged(restarted, f"entry {seq} .*{says}", vouchers={**rows.vouchers, seq: raw})

        for changed in ({"start": said.start - 1}, {"seqs": said.seqs[:-1]}):
            await wrong("other entries", said.model_copy(update=changed).to_bytes())
        await wrong("claim is wrong", encode({"v": 1}))
        missing = without(rows.vouchers, seq)
        await damaged(restarted, f"entry {seq} .*a voucher is missing", vouchers=missing)
    first, second = (Claim.from_bytes(rows.vouchers[seq]).model_dump() for seq in numbers)
    both = Claim(seqs=(*first["seqs"], *second["seqs"]), start=first["start"]).to_bytes()
    vouchers = {**rows.vouchers, numbers[0]: both}
    await damaged(restarted, f"entry {numbers[0]} .*other entries", vouchers=vouchers)
    # One that a claim before has taken.
    twice = Claim(seqs=(*second["seqs"], first["seqs"][0]), start=second["start"]).to_bytes()
    vouchers = {**rows.vouchers, numbers[1]: twice}
    await damaged(restarted, f"entry {first['seqs'][0]} .*both parties signed", vouchers=vouchers)


async def test_the_entries_of_a_claim_are_taken_in_their_order(circle):
    a, b, _ = circle.members
    for number in range(1, 5):
        await collect(a, b, 10 * number, account=number)
    circle.gone.add(b.id)
    await a.come_back(a.ledger.noted())
    circle.gone.clear()
    await a.ledger.confirm_head([b.id])
    rows = a.rows()
    (seq, *_) = [
        seq
        for seq in by_kind(rows, "claim")
        if open_half(rows.halves[seq], network=NETWORK).record.peer == b.id
    ]
    said = Claim.from_bytes(rows.vouchers[seq])
    assert len(said.seqs) == 4
    for signatures in (True, False):
        found = await audited(a, signatures=signatures)
        assert digest(found.state) == digest(a.ledger.chain.state)
        assert found.settled == 4
    turned = said.model_copy(update={"seqs": said.seqs[::-1]}).to_bytes()
    await damaged(a, "other entries", vouchers={**rows.vouchers, seq: turned})


async def test_an_old_entry_that_nothing_claims_is_found(restarted):
    rows = restarted.rows()
    first_seq = restarted.ledger.chain.state.first_seq
    old = next(seq for seq in sorted(rows.halves) if seq < first_seq)
    tables = {name: dict(getattr(rows, name)) for name in ("halves", "others", "vouchers")}
    more = {name: {**table, old + 500: table[old]} for name, table in tables.items()}
    with pytest.raises(LedgerDamaged, match=f"entry {old + 500} .*nothing claims it"):
        await audited(restarted, replace(rows, **more))


async def test_claims_are_taken_where_they_stand_in_the_chain(a, circle):
    _, b, c = circle.members
    circle.gone |= {b.id, c.id}
    await a.come_back(a.ledger.noted())
    circle.gone.discard(c.id)
    await a.ledger.confirm_head([c.id])
    await collect(a, c, 8, of=508, account=3)
    circle.gone.clear()
    await a.ledger.confirm_head([b.id])
    rows = a.rows()
    assert len(by_kind(rows, "claim")) == 2
    for signatures in (True, False):
        assert digest((await audited(a, signatures=signatures)).state) == digest(
            a.ledger.chain.state
        )


async def test_a_damaged_restart_is_named(restarted, circle):
    rows = restarted.rows()
    b = circle.members[1]
    began = open_restart(rows.restart, author=restarted.id, network=NETWORK)
    record = began.incarnation.record
    of_b = replace(began, incarnation=sign(record, b.key, NETWORK))
    await damaged(restarted, "restart of the ledger is damaged", restart=b"")
    await damaged(restarted, "restart of the ledger is damaged", restart=restart_bytes(of_b))
    other = sign(record.model_copy(update={"noted": GENESIS}), restarted.key, NETWORK)
    await damaged(
        restarted,
        "restart of the ledger is damaged",
        restart=restart_bytes(replace(began, incarnation=other)),
    )
    await damaged(restarted, " missing", restart=None)


async def test_what_was_taken_along_is_whole(restarted):
    rows = restarted.rows()
    first_seq = (await audited(restarted)).state.first_seq
    carried = sorted(seq for seq in rows.halves if seq < first_seq)
    assert len(carried) == 3
    (seq, later, _) = carried
    tables = {name: getattr(rows, name) for name in ("halves", "others", "vouchers")}
    await damaged(
        restarted,
        f"entry {seq} .*it is missing",
        **{name: without(table, seq) for name, table in tables.items()},
    )
    for old in carried:
        for name in ("others", "vouchers"):
            parts = {name: without(tables[name], old)}
            await damaged(restarted, f"entry {old} .* both parties signed", **parts)
        forged = {**rows.halves, old: b"?"}
        await damaged(restarted, f"entry {old} of", halves=forged)
    for name in ("halves", "others"):
        swapped = {**tables[name], seq: tables[name][later], later: tables[name][seq]}
        await damaged(restarted, f"entry ({seq}|{later}) ", **{name: swapped})
    swapped = {**rows.vouchers, seq: rows.vouchers[later], later: rows.vouchers[seq]}
    await damaged(restarted, ".* is not the one that the entry names", vouchers=swapped)


async def test_an_old_entry_has_its_own_number_and_author(restarted):
    rows = restarted.rows()
    first_seq = restarted.ledger.chain.state.first_seq
    tables = {name: dict(getattr(rows, name)) for name in ("halves", "others", "vouchers")}
    claim = by_kind(rows, "claim")[0]
    said = Claim.from_bytes(rows.vouchers[claim])
    seq = said.seqs[0]
    # The two halves are swapped: each is in the other's table.
    turned = {
        "halves": {**tables["halves"], seq: tables["others"][seq]},
        "others": {**tables["others"], seq: tables["halves"][seq]},
    }
    await damaged(restarted, f"entry {seq} .* not this node's", **turned)
    # The same entry under another number.
    moved = {
        name: {**without(table, seq), seq + 1_000: table[seq]} for name, table in tables.items()
    }
    named = said.model_copy(update={"seqs": (seq + 1_000, *said.seqs[1:])}).to_bytes()
    moved["vouchers"][claim] = named
    await damaged(restarted, f"entry {seq + 1_000} .* of another number", **moved)
    # One of the present incarnation.
    new = next(s for s in by_kind(rows, "post", answers=True) if s >= first_seq)
    named = said.model_copy(update={"seqs": (new, *said.seqs[1:])}).to_bytes()
    vouchers = {**rows.vouchers, claim: named}
    await damaged(restarted, f"entry {new} .* both parties signed", vouchers=vouchers)


async def test_a_record_of_the_own_store_is_read_without_its_signature(a):
    raw = next(iter(a.rows().halves.values()))
    half = read_claimed(raw, Half, network=NETWORK)
    assert half == open_half(raw, network=NETWORK)
    for wrong in (encode(1), encode({"body": b""}), b"", raw[:-1]):
        with pytest.raises(RecordInvalid):
            read_claimed(wrong, Half, network=NETWORK)
    with pytest.raises(RecordInvalid, match="of another network"):
        read_claimed(raw, Half, network=network_id("other"))


# Exported entries


class Export:
    """An entry between two nodes, and what an exported copy of it consists of."""

    def __init__(self, circle, *, account=b"l" * 32, created_ms=1_700_000_000_000):
        self.creditor, self.debtor, self.stranger = circle.members
        said = Voucher(
            account=account,
            provider=self.creditor.id,
            customer=self.debtor.id,
            number=1,
            amount_micro=AMOUNT,
            count=None,
            until_ms=0,
        )
        self.voucher = sign(said, self.debtor.key, NETWORK)
        self.post = Half(
            kind="post",
            credit=self.creditor.id,
            debit=self.debtor.id,
            peer=self.debtor.id,
            seq=3,
            prev=b"p" * 32,
            amount_micro=AMOUNT,
            account=account,
            receipt=self.voucher.id,
            created_ms=0,
        )
        self.created_ms = created_ms

    def raw(self, *, by=None, answer=None, under=None, **changed):
        half = sign(self.post.model_copy(update=changed), self.creditor.key, NETWORK)
        said = counter_half(half, seq=0, prev=GENESIS, created_ms=self.created_ms)
        counter = sign(said.model_copy(update=answer or {}), self.debtor.key, NETWORK)
        exported = SettledEntry(
            half=half.raw, counter=counter.raw, voucher=(under or self.voucher).raw
        )
        return sign(exported, (by or self.creditor).key, NETWORK).raw

    def refused(self, says, **how):
        with pytest.raises(ProofInvalid, match=says):
            verify_settled(self.raw(**how))


def test_an_export_says_what_it_proves(circle):
    made = Export(circle)
    for by in (made.creditor, made.debtor):
        text = verify_settled(made.raw(by=by))
        assert "owes" in text
        assert "0.0001 credits for leases, in account" in text
        assert text.endswith("signed by both, answered 2023-11-14 22:13:20 UTC")
    assert "0.000099 credits for" in verify_settled(made.raw(amount_micro=AMOUNT - 1))


def test_an_export_that_does_not_hold_is_refused(circle):
    made = Export(circle)
    a, b, c = circle.members
    made.refused("to another entry", answer={"link": GENESIS})
    made.refused("what was proposed", answer={"amount_micro": 1})
    made.refused("not the one that the entry names", under=voucher(b, a, AMOUNT, number=2))
    made.refused("not the one that the entry names", receipt=b"r" * 32)
    made.refused("a stranger exported it", by=c)
    made.refused("over more than the voucher", amount_micro=AMOUNT + 1)
    made.refused("names what it rests on, no other", kind="void")
    made.refused("no debt that its creditor booked", amount_micro=0)
    made.refused("unit 7 is not that of", unit=7)
    # The creditor signs that it owes, under a voucher of its own.
    said = made.voucher.record.model_copy(update={"provider": b.id, "customer": a.id})
    under = sign(said, a.key, NETWORK)
    turned = {"debit": a.id, "credit": b.id, "receipt": under.id}
    made.refused("no debt that its creditor booked", under=under, **turned)
    for raw in (b"", made.raw()[:-1], sign(made.post, a.key, NETWORK).raw):
        with pytest.raises(ProofInvalid, match="does not hold"):
            verify_settled(raw)


def test_an_answer_to_an_answer_is_no_debt(circle):
    made = Export(circle)
    made.refused("no debt that its creditor booked", link=b"k" * 32, answer=None)


def test_a_payment_off_the_books_says_the_payer_paid(circle):
    a, b, _ = circle.members
    made = Export(circle, account=off_books_account(a.id, b.id))
    said = made.voucher.record

    def under(report):  # Nobody signs it but the two, who name it in their halves.
        return replace(made.voucher, raw=report.to_bytes())

    assert "paid" in verify_settled(made.raw(under=under(said)))
    assert "off the books" in verify_settled(made.raw(under=under(said)))
    other = said.model_copy(update={"amount_micro": AMOUNT + 1})
    made.refused("not the one that the entry names", under=under(other))
    made.refused("over more than the voucher", under=under(said), amount_micro=AMOUNT + 1)
    made.refused("this voucher is wrong")
    other = Export(circle, account=off_books_account(b.id, a.id))
    assert "owes" in verify_settled(other.raw())


def test_no_moment_is_too_late_for_words(circle):
    last_ms = 253_402_300_799_999
    for created_ms in (last_ms, last_ms + 1, 2**63 - 1):
        made = Export(circle, created_ms=created_ms)
        assert verify_settled(made.raw()).endswith("answered 9999-12-31 23:59:59 UTC")


def test_a_limit_is_no_debt(circle):
    a, b, _ = circle.members
    made = Export(circle)
    half = Half(
        kind="limit",
        credit=a.id,
        peer=b.id,
        debit=b.id,
        seq=0,
        prev=GENESIS,
        amount_micro=AMOUNT,
        created_ms=0,
    )
    for more in ({}, {"account": b"l" * 32, "receipt": made.voucher.id}):
        made.post = half.model_copy(update=more)
        made.refused("does not hold")
