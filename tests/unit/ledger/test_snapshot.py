"""A start from a snapshot is a replay of all; what does not follow from the halves is found."""

import json
from pathlib import Path

import pytest

from tests.unit.ledger.circle import (
    NETWORK,
    Circle,
    Member,
    collect,
    digest,
    put,
    replayed,
    rows_of,
    voucher,
)
from xsc.base.encoding import decode, encode
from xsc.base.errors import EntryRefused, LedgerDamaged, PeerSilent, StoreDamaged
from xsc.db.leveldb import LevelDBKeyValue
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair, network_id
from xsc.ledger.chain import ENTRY, SLICE, SNAPSHOT
from xsc.ledger.entry import GENESIS, open_half
from xsc.ledger.index import INDEX
from xsc.ledger.proposals import PROPOSE
from xsc.ledger.state import Snapshot, snapshot_of

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "ledger.json").read_text())


@pytest.fixture
def circle():
    return Circle(3)


async def story(circle, *, lost=True):
    """Give a node halves of each kind: settled both ways, open, void, and a peer that forked."""
    a, b, c = circle.members
    await collect(a, b, 100, account=1)
    await collect(c, a, 40, account=2)
    await a.ledger.set_limit(c.id, 777)
    b.store, kept = MemoryKeyValue(), b.store
    b.ledger = b.start()
    with pytest.raises(EntryRefused):
        await collect(a, b, 50, of=150, account=1)
    b.store = kept
    b.ledger = b.start()
    half = open_half(
        next(
            decode(raw)["half"]
            for _, peer, name, raw in circle.sent
            if (peer, name) == (a.id, PROPOSE)
        ),
        network=NETWORK,
    )
    other = sign(half.record.model_copy(update={"created_ms": 1}), c.key, NETWORK)
    header = {"v": 1, "half": other.raw, "voucher": voucher(a, c, 40, account=2).raw}
    with pytest.raises(EntryRefused):
        await circle.deliver(c.id, a.id, PROPOSE, encode(header))
    if lost:
        circle.fate = lambda: "answer lost"
        with pytest.raises(PeerSilent):
            await collect(a, c, 7, account=4)
        circle.fate = lambda: "pass"
    return a


def test_a_snapshot_is_the_pinned_bytes():
    kept = VECTOR["snapshot"]
    key = KeyPair(bytes.fromhex(VECTOR["creditor_seed"]))
    raw = bytes.fromhex(kept["signed"])
    signed = open_signed(raw, Snapshot, network=bytes.fromhex(VECTOR["network"]))
    assert signed.id.hex() == kept["id"]
    assert signed.author == key.node_id
    made = Snapshot(**signed.record.model_dump(exclude={"v"}))
    assert sign(made, key, signed.network).raw == raw
    assert made.to_bytes().hex() == kept["body"]
    assert (made.next_seq, made.halves, made.balances[0][1]) == (7, 8, -250_000)


async def test_a_start_reads_the_snapshot_and_what_follows(circle):
    a = await story(circle)
    await a.ledger.chain.snapshot()
    _, b, c = circle.members
    await collect(b, a, 5, account=6)
    await a.ledger.retry_pending()
    assert a.ledger.balance(c.id) == 7 - 40, "an answer to what was open at the snapshot"
    before = digest(a.ledger.chain.state)
    assert before == digest(replayed(a))
    # Nothing of what was before is read.
    rows = rows_of(a)
    put(a, {key: raw for key, raw in rows.items() if key != ENTRY + bytes(8)})
    a.crash()
    assert digest(a.ledger.chain.state) == before
    with pytest.raises(LedgerDamaged, match=r"entry 0 .* is missing"):
        await a.ledger.verify()
    with pytest.raises(LedgerDamaged, match=r"entry 0 .* is missing"):
        a.start()
    put(a, rows)
    a.crash()
    await a.ledger.verify()
    assert [row.state for row in a.ledger.entries()][:2] == ["settled", "settled"]


async def test_what_was_taken_late_is_in_a_snapshot(circle):
    a, b, _ = circle.members
    for number in range(1, 4):
        await collect(b, a, 10 * number, account=number)
    circle.gone.add(b.id)
    await a.ledger.chain.snapshot()
    noted = a.ledger.noted()
    a.store.write([(key, None) for key, _ in a.store.scan(ENTRY + bytes(7) + b"\1")], sync=True)
    await a.come_back(noted)
    circle.gone.clear()
    whole = circle.deliver

    async def first_only(caller, peer, method, raw):
        reply = await whole(caller, peer, method, raw)
        if method == "ledger.history":
            reply.header.update(items=reply.header["items"][:1], more=False)
        return reply

    circle.deliver = first_only
    await a.ledger.exchange._claims_of(b.id)
    await a.ledger.chain.snapshot()
    circle.deliver = whole
    await a.ledger.exchange._claims_of(b.id)
    assert sum(a.ledger.chain.state.dealt.values()) == 3
    before = digest(a.ledger.chain.state)
    assert digest(a.start().chain.state) == before == digest(replayed(a))
    await a.ledger.verify()
    # A second loss forgets snapshot and index with the rest.
    await a.ledger.restart([b.id], a.ledger.noted())
    assert SNAPSHOT not in rows_of(a)
    assert digest(a.ledger.chain.state) == digest(replayed(a))
    await a.ledger.chain.snapshot()
    assert digest(a.start().chain.state) == digest(a.ledger.chain.state)
    await a.ledger.verify()


@pytest.mark.parametrize(
    "what",
    [
        "balance",
        "later",
        "beyond",
        "earlier",
        "open",
        "other chain",
        "stranger",
        "network",
        "bytes",
        "none",
    ],
)
async def test_a_snapshot_that_does_not_follow_from_its_chain_is_found_and_made_anew(circle, what):
    a = await story(circle)
    _, b, c = circle.members
    await a.ledger.chain.snapshot()
    earlier = rows_of(a)[SNAPSHOT]
    await collect(b, a, 5, account=6)
    await a.ledger.chain.snapshot()
    await collect(b, a, 6, of=11, account=6)
    said = open_signed(rows_of(a)[SNAPSHOT], Snapshot, network=NETWORK).record
    await c.ledger.chain.snapshot()
    wrong = {
        "balance": {"balances": tuple((peer, micro + 1) for peer, micro in said.balances)},
        "later": {"next_seq": said.next_seq + 1, "head": a.ledger.head()[1]},
        "beyond": {"next_seq": said.next_seq + 2},
        "open": {"open": ()},
        "other chain": snapshot_of(c.ledger.chain.state).model_dump(exclude={"v"}),
    }.get(what, {})
    key, network = (b.key if what == "stranger" else a.key), NETWORK
    if what == "network":
        network = network_id("other")
    raw = sign(said.model_copy(update=wrong), key, network).raw
    raw = {"bytes": b"?", "earlier": earlier, "none": None}.get(what, raw)
    right, entries = digest(a.ledger.chain.state), rows_of(a)
    a.store.write([(SNAPSHOT, raw)], sync=True)
    if what in ("stranger", "network", "bytes"):
        with pytest.raises(LedgerDamaged, match="does not follow from its entries"):
            await a.ledger.verify()
        assert SNAPSHOT not in rows_of(a), "the next start replays it all"
    else:
        # The node does not work with it: one that was verified takes its place.
        await a.ledger.verify()
        assert digest(a.start().chain.state) == right
        a.store.write([(SNAPSHOT, raw)], sync=True)
        if raw is not None:
            with pytest.raises(LedgerDamaged, match="does not follow from its entries"):
                await a.ledger.verify()
            assert SNAPSHOT not in rows_of(a), "the next start replays it all"
    entries.pop(SNAPSHOT)
    put(a, entries if raw is None else {**entries, SNAPSHOT: raw})
    a.crash()
    if what in ("balance", "open", "later"):
        # Nobody but this node could sign it: only who verifies looks so far back.
        with pytest.raises(LedgerDamaged):
            await a.ledger.verify()
        a.crash()
    elif what not in ("none", "earlier"):
        assert "ledger.snapshot_wrong" in a.log.events
    assert digest(a.ledger.chain.state) == right
    await a.ledger.chain.snapshot()
    await a.ledger.verify()


@pytest.mark.parametrize("what", ["index", "half"])
async def test_damage_that_was_found_is_not_hidden_by_a_later_snapshot(circle, what):
    a = await story(circle)
    await a.ledger.chain.snapshot()
    start = INDEX if what == "index" else ENTRY
    key = next(key for key in rows_of(a) if key.startswith(start))
    a.store.write([(key, None)], sync=True)
    with pytest.raises(LedgerDamaged):
        await a.ledger.verify()
    await a.ledger.set_limit(circle.members[1].id, 7)
    await a.ledger.chain.snapshot()
    if what == "half":
        with pytest.raises(LedgerDamaged):
            a.start()
    else:
        a.crash()
        await a.ledger.verify()


async def test_a_row_of_the_index_that_does_not_follow_is_found_and_made_anew(circle):
    a = await story(circle)
    await a.ledger.chain.snapshot()
    right, rows = digest(a.ledger.chain.state), rows_of(a)
    kept = [key for key in rows if key.startswith(INDEX)]
    assert {key[len(INDEX) :][:1] for key in kept} == set(map(bytes, zip(b"ishdc")))
    for key in kept:
        for wrong in (
            {**rows, key + b"?": b""},
            {at: raw for at, raw in rows.items() if at != key},
        ):
            put(a, wrong)
            with pytest.raises(LedgerDamaged):
                await a.ledger.verify()
            a.crash()
            assert digest(a.ledger.chain.state) == right
            await a.ledger.chain.snapshot()
    await a.ledger.verify()


async def test_what_the_node_works_with_must_follow_from_its_entries(circle):
    a = await story(circle)
    for snapshot in (False, True):
        if snapshot:
            await a.ledger.chain.snapshot()
            await collect(circle.members[1], a, 5, account=6)
        state = a.ledger.chain.state
        state.balances[circle.members[1].id] += 1
        with pytest.raises(LedgerDamaged, match="does not follow"):
            await a.ledger.verify()
        a.crash()
        state = a.ledger.chain.state
        state.index.changes[min(state.index.changes)] = b"?"
        with pytest.raises(LedgerDamaged, match="does not follow"):
            await a.ledger.verify()
        a.crash()
        await a.ledger.verify()


async def test_every_flipped_byte_of_a_store_with_a_snapshot_is_found(circle):
    a = await story(circle)
    await a.ledger.chain.snapshot()
    await collect(circle.members[1], a, 5, account=6)
    await a.ledger.verify()
    rows = rows_of(a)
    assert len({key.split(b"/")[1] for key in rows}) == 4
    for key, raw in rows.items():
        for place in range(0, len(raw), 1 if len(raw) < 100 else 7):
            flipped = raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :]
            put(a, {**rows, key: flipped})
            with pytest.raises(LedgerDamaged):
                await a.ledger.verify()
    put(a, rows)
    await a.ledger.verify()


async def test_bookings_go_on_beside_a_verification(circle):
    a = await story(circle)
    _, b, c = circle.members
    for number in range(SLICE * 2):
        await collect(b, a, 1, of=number + 1, account=9)
        if number == SLICE:
            await a.ledger.chain.snapshot()
    before, settled = a.ledger.count(), a.ledger.settled_entries()
    executor, turns = a.ledger._executor, []

    class Between:
        """Has something booked, answered and asked for before each slice."""

        async def run(self, function, *args):
            turns.append(function)
            number = len(turns)
            await collect(c, a, 1, of=number, account=10)
            await collect(a, b, 1, of=number, account=11)
            await a.ledger.retry_pending()
            await a.ledger.chain.snapshot()
            return await executor.run(function, *args)

    a.ledger._executor = Between()
    report = await a.ledger.verify()
    assert len(turns) > 4
    assert (report.entries, report.settled) == (before, settled)
    assert "1 open" in report.text, "it was answered meanwhile"
    a.ledger._executor = executor
    assert not a.ledger.chain.state.open
    await a.ledger.chain.snapshot()
    assert (await a.ledger.verify()).entries == a.ledger.count() > before
    assert digest(a.start().chain.state) == digest(a.ledger.chain.state) == digest(replayed(a))


async def test_a_database_cut_at_any_byte_is_a_book_of_before(circle, tmp_path):
    a, b, _ = circle.members
    place = tmp_path / "db"
    store = LevelDBKeyValue(place)
    member = Member(circle, a.number, store)
    circle.members[0] = member
    for number in range(1, 6):
        await collect(member, b, number, account=number)
        if number % 2 == 0:
            await member.ledger.chain.snapshot()
        await collect(b, member, 1, of=number, account=9)
    rows = dict(member.ledger.chain.stored())
    heads = [GENESIS, *(open_half(row.half, network=NETWORK).id for row in rows.values())]
    store.close()
    (log,) = place.glob("*.log")
    raw, found = log.read_bytes(), set()
    for end in {*range(0, len(raw), 211), *range(len(raw) - 40, len(raw) + 1)}:
        cut = tmp_path / str(end)
        cut.mkdir()
        for file in place.iterdir():
            (cut / file.name).write_bytes(file.read_bytes() if file != log else raw[:end])
        try:
            again = LevelDBKeyValue(cut)
        except StoreDamaged:
            continue
        member = Member(circle, a.number, again)
        await member.ledger.verify()
        assert digest(member.ledger.chain.state) == digest(replayed(member))
        number, head = member.ledger.head()
        assert head == heads[number], "a book of before, whole"
        found.add(number)
        again.close()
    assert found == {*range(len(heads))}
