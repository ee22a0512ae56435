import asyncio
from collections import Counter

import pytest

from tests.settle import settle, turns
from tests.unit.ledger.circle import NETWORK, STARTER, Circle, collect, digest, voucher
from xsc.base.clock import InlineExecutor
from xsc.base.encoding import decode, encode
from xsc.base.errors import (
    ArgumentInvalid,
    CreditExceeded,
    EntryRefused,
    LedgerDamaged,
    NotFound,
    PeerSilent,
    ProofInvalid,
    ReceiptInvalid,
    SignatureInvalid,
    StoreDamaged,
)
from xsc.base.limits import LEDGER_RETRY_MS
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.ledger.audit import verify_settled
from xsc.ledger.chain import ENTRY, JOINT_MAX, SNAPSHOT, key_of
from xsc.ledger.entry import open_half
from xsc.ledger.exchange import HEAD, HISTORY
from xsc.ledger.fork import fork_bytes
from xsc.ledger.proposals import PROPOSE
from xsc.ledger.statement import known_peers

LEASE = bytes([1]) * 32


@pytest.fixture
def circle():
    return Circle()


@pytest.fixture
def a(circle):
    return circle.members[0]


@pytest.fixture
def b(circle):
    return circle.members[1]


async def test_both_books_say_the_same(a, b):
    assert await collect(a, b, 300) == 300
    assert (a.ledger.balance(b.id), b.ledger.balance(a.id)) == (300, -300)
    assert (a.ledger.settled(LEASE), b.ledger.settled(LEASE)) == (300, 300)
    assert (a.ledger.credit_left(b.id), a.ledger.limit(b.id)) == (STARTER - 300, STARTER)
    assert b.ledger.credit_left(a.id) == STARTER + 300
    assert await collect(b, a, 100, account=2) == 100
    assert (a.ledger.balance(b.id), b.ledger.balance(a.id)) == (200, -200)
    for member in (a, b):
        report = await member.ledger.verify()
        assert (report.settled, report.peers) == (2, 1)
        assert " 0 open" in report.text
        assert report.head == member.ledger.head()[1]


async def test_a_lease_is_settled_voucher_by_voucher(a, b):
    assert await collect(a, b, 100) == 100
    assert await collect(a, b, 50, of=150) == 150
    assert await collect(a, b, 50, of=150) == 150, "it leaves nothing"
    assert a.ledger.balance(b.id) == 150


async def test_the_same_voucher_books_once(a, b):
    for _ in range(3):
        assert await collect(a, b, 100) == 100
    assert a.ledger.balance(b.id) == 100


async def test_what_the_debtor_never_signed_is_not_written(a, b, circle):
    good = voucher(b, a, 10)
    stranger = KeyPair(b"s" * 32)
    for wrong in (
        sign(good.record, a.key, NETWORK),
        sign(good.record, stranger, NETWORK),
        sign(good.record.model_copy(update={"provider": stranger.node_id}), b.key, NETWORK),
    ):
        with pytest.raises(ReceiptInvalid):
            await a.ledger.collect(wrong.raw)
    raw = good.raw
    place = raw.index(b"csig") + 10
    broken = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
    with pytest.raises(SignatureInvalid):
        await a.ledger.collect(broken)
    with pytest.raises(ArgumentInvalid, match="itself"):
        await a.ledger.collect(voucher(a, b, 10).raw)
    assert circle.sent == []


async def test_the_limit_is_kept_and_can_be_set(a, b):
    with pytest.raises(CreditExceeded, match="pass the limit of 1000000"):
        await collect(a, b, STARTER + 1)
    assert await collect(a, b, STARTER) == STARTER
    await a.ledger.set_limit(b.id, 10)
    assert a.ledger.credit_left(b.id) == 10 - STARTER
    with pytest.raises(CreditExceeded):
        await collect(a, b, 1, account=2)
    await a.ledger.set_limit(b.id, STARTER + 1)
    assert await collect(a, b, 1, account=2) == 1
    a.crash()
    assert a.ledger.limit(b.id) == STARTER + 1
    for peer, amount in ((a.id, 1), (b.id, -1), (b.id, 2**63)):
        with pytest.raises(ArgumentInvalid):
            await a.ledger.set_limit(peer, amount)
    await a.ledger.verify()


async def test_a_lost_answer_is_fetched_again(a, b, circle):
    circle.fate = lambda: "answer lost"
    with pytest.raises(PeerSilent):
        await collect(a, b, 100)
    assert (a.ledger.balance(b.id), b.ledger.balance(a.id)) == (0, -100)
    assert (len(a.ledger.chain.state.open), a.ledger.credit_left(b.id)) == (1, STARTER - 100)
    assert await a.ledger.retry_pending() == 0
    circle.fate = lambda: "pass"
    assert await a.ledger.retry_pending() == 1
    assert (a.ledger.balance(b.id), len(a.ledger.chain.state.open)) == (100, 0)
    assert "ledger.unanswered" in a.log.events
    assert await a.ledger.retry_pending() == 0


async def test_the_next_voucher_of_a_lease_waits_for_the_one_before(a, b, circle):
    circle.fate = lambda: "answer lost"
    with pytest.raises(PeerSilent):
        await collect(a, b, 100)
    with pytest.raises(PeerSilent):
        await collect(a, b, 50, of=150)
    circle.fate = lambda: "pass"
    assert await collect(a, b, 50, of=150) == 150
    assert b.ledger.balance(a.id) == -150


async def test_a_refused_entry_is_withdrawn_and_counts_for_nothing(a, b, circle):
    await collect(a, b, 100)
    # B forgets what it settled, as after a restore from an old copy without its peers' help.
    circle.members[1].store = MemoryKeyValue()
    b.ledger = b.start()
    with pytest.raises(EntryRefused, match="leaves 150"):
        await collect(a, b, 50, of=150)
    assert (len(a.ledger.chain.state.open), a.ledger.balance(b.id)) == (0, 100)
    assert a.ledger.credit_left(b.id) == STARTER - 100
    assert [row.state for row in a.ledger.entries()] == ["noted", "void", "settled"]
    before = digest(a.ledger.chain.state)
    a.crash()
    assert digest(a.ledger.chain.state) == before
    await a.ledger.verify()


async def test_another_body_of_one_number_is_refused_and_a_fork(a, b, circle):
    await collect(a, b, 100)
    half = open_half(decode(circle.sent[-1][3])["half"], network=NETWORK)
    for created_ms in range(4):
        other = sign(half.record.model_copy(update={"created_ms": created_ms}), a.key, NETWORK)
        header = {"v": 1, "half": other.raw, "voucher": voucher(b, a, 100).raw}
        for _ in range(2):
            with pytest.raises(EntryRefused, match="signed another entry"):
                await circle.deliver(a.id, b.id, PROPOSE, encode(header))
    report = await b.ledger.verify()
    assert (report.forks, report.settled) == (1, 1)
    assert "ledger.conflict" in b.log.events
    b.crash()
    assert b.ledger.balance(a.id) == -100


async def test_a_forked_chain_is_kept_as_a_proof(a, b, circle):
    await collect(a, b, 100)
    half = open_half(decode(circle.sent[-1][3])["half"], network=NETWORK)
    more = voucher(b, a, 10, account=2)
    changes = {
        "amount_micro": 10,
        "account": more.record.account,
        "receipt": more.id,
    }
    fork = sign(half.record.model_copy(update=changes), a.key, NETWORK)
    header = {"v": 1, "half": fork.raw, "voucher": more.raw}
    with pytest.raises(EntryRefused, match="signed another entry"):
        await circle.deliver(a.id, b.id, PROPOSE, encode(header))
    assert (await b.ledger.verify()).forks == 1


async def test_a_stored_proof_that_the_node_does_not_work_with_is_found(a, b, circle):
    await collect(a, b, 100)
    half = open_half(decode(circle.sent[-1][3])["half"], network=NETWORK)
    other = sign(half.record.model_copy(update={"created_ms": 5}), a.key, NETWORK)
    await b.ledger.chain.forks.keep(fork_bytes(half.raw, other.raw))
    ((key, raw),) = b.store.scan(b"ledger-fork/", b"ledger-fork0")
    b.store.write([(key[:-1] + bytes([key[-1] ^ 1]), raw)], sync=True)
    with pytest.raises(LedgerDamaged, match="the proof that"):
        await b.ledger.verify()


async def test_nobody_proposes_for_another(a, b, circle):
    await collect(a, b, 100)
    stolen = circle.sent[-1][3]
    with pytest.raises(EntryRefused, match="creditor itself"):
        await circle.deliver(b.id, b.id, PROPOSE, stolen)


async def test_an_answer_that_does_not_fit_leaves_the_entry_open(a, b, circle):
    await collect(a, b, 5, account=9)

    def wrong(reply):
        half = open_half(reply.header["counter"], network=NETWORK)
        changed = half.record.model_copy(update={"amount_micro": 1})
        reply.header["counter"] = sign(changed, b.key, NETWORK).raw

    circle.change = wrong
    with pytest.raises(ReceiptInvalid, match="does not say what was proposed"):
        await collect(a, b, 100)

    def forked(reply):
        half = open_half(reply.header["counter"], network=NETWORK)
        changed = half.record.model_copy(update={"seq": 0})
        reply.header["counter"] = sign(changed, b.key, NETWORK).raw

    circle.change = forked
    with pytest.raises(ReceiptInvalid, match="two ledgers"):
        await collect(a, b, 100)
    assert (len(a.ledger.chain.state.open), a.ledger.balance(b.id)) == (1, 5)
    circle.change = lambda reply: None
    assert await collect(a, b, 100) == 100
    assert (await a.ledger.verify()).forks == 1


async def test_entries_and_statement(circle):
    circle = Circle(3)
    a, b, c = circle.members
    await collect(a, b, 100)
    await collect(a, c, 7, account=3)
    await a.ledger.set_limit(c.id, None)
    await collect(b, a, 30, account=2)
    circle.fate = lambda: "request lost"
    with pytest.raises(PeerSilent):
        await collect(a, b, 1, account=4)
    rows = a.ledger.entries()
    assert [(r.kind, r.direction, r.amount_micro, r.state) for r in rows] == [
        ("post", "in", 1, "open"),
        ("post", "out", 30, "settled"),
        ("open", "-", STARTER, "noted"),
        ("post", "in", 7, "settled"),
        ("post", "in", 100, "settled"),
    ]
    assert [row.seq for row in a.ledger.entries(limit=2)] == [4, 3]
    assert [row.seq for row in a.ledger.entries(peer=c.id)] == [2, 1]
    assert a.ledger.entries(limit=0) == []
    assert a.ledger.entries(peer=b"?" * 32) == []
    assert rows[1].entry_id == b.ledger.entries(limit=1)[0].entry_id
    state = a.ledger.chain.state
    assert known_peers(state) == sorted([b.id, c.id])
    assert (a.ledger.balance(b.id), state.exposure(b.id), state.dealt[b.id]) == (70, 71, 2)
    assert a.ledger.credit_left(b.id) == STARTER + 30 // 2 - 71, "half of what it repaid"


async def test_an_exported_entry_proves_itself(a, b):
    await a.ledger.set_limit(b.id, None)
    await collect(a, b, 250_000)
    entry_id = a.ledger.entries(limit=1)[0].entry_id
    from_a, from_b = a.ledger.export(entry_id), b.ledger.export(entry_id)
    assert verify_settled(from_a) == verify_settled(from_b)
    assert "0.25 credits" in verify_settled(from_a)
    for unknown in (b"?" * 32, a.ledger.entries()[1].entry_id):
        with pytest.raises(NotFound):
            a.ledger.export(unknown)
    for place in range(0, len(from_a), 7):
        broken = from_a[:place] + bytes([from_a[place] ^ 4]) + from_a[place + 1 :]
        with pytest.raises(ProofInvalid):
            verify_settled(broken)
    with pytest.raises(ProofInvalid):
        verify_settled(from_a[:-1])


async def test_every_flipped_byte_of_the_store_is_found(a, b, circle):
    await collect(a, b, 100)
    half = open_half(decode(circle.sent[-1][3])["half"], network=NETWORK)
    other = sign(half.record.model_copy(update={"created_ms": 1}), a.key, NETWORK)
    header = {"v": 1, "half": other.raw, "voucher": voucher(b, a, 100).raw}
    with pytest.raises(EntryRefused):
        await circle.deliver(a.id, b.id, PROPOSE, encode(header))
    assert (await b.ledger.verify()).forks == 1
    rows = [*b.store.scan(b"ledger/", b"ledger0"), *b.store.scan(b"ledger-fork/", b"ledger-fork0")]
    assert len(rows) == 9
    for key, raw in rows:
        for place in range(len(raw)):
            flipped = raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :]
            b.store.write([(key, flipped)], sync=True)
            with pytest.raises(LedgerDamaged):
                await b.ledger.verify()
        b.store.write([(key, None)], sync=True)
        if not key.startswith((b"ledger-fork/", SNAPSHOT)):
            with pytest.raises(LedgerDamaged):
                await b.ledger.verify()
        b.store.write([(key, raw)], sync=True)
    await b.ledger.verify()


async def test_damage_is_named_by_its_entry(a, b):
    for number in range(1, 5):
        await collect(a, b, 10, account=number)
    key, raw = next(a.store.scan(key_of(ENTRY, 2)))
    a.store.write([(key, raw[:-1] + bytes([raw[-1] ^ 1]))], sync=True)
    with pytest.raises(LedgerDamaged, match="entry 2 of the ledger"):
        await a.ledger.verify()
    a.store.write([(key, None)], sync=True)
    with pytest.raises(LedgerDamaged, match="entry 2 of the ledger is damaged: it is missing"):
        a.start()


async def test_the_last_entry_cannot_vanish_unnoticed(a, b):
    for number in range(2):
        await collect(a, b, 10, account=number)
    a.store.write([(key_of(ENTRY, 1), None)], sync=True)
    with pytest.raises(LedgerDamaged, match="does not end where it should"):
        a.start()
    a.store.write([(b"ledger/mark", None)], sync=True)
    with pytest.raises(LedgerDamaged):
        a.start()


async def test_a_ledger_of_another_network_or_node_is_refused(circle, a, b):
    await collect(a, b, 10)
    b.key, kept = a.key, b.key
    with pytest.raises(LedgerDamaged):
        b.start()
    b.key = kept
    b.start()


async def test_a_restored_old_copy_is_noticed_before_it_forks(circle, a, b):
    await collect(a, b, 10)
    old = list(b.store.scan(b""))
    await collect(a, b, 10, account=2)
    assert await b.ledger.confirm_head([a.id]) == 1
    for key, _ in list(b.store.scan(b"")):
        b.store.write([(key, None)], sync=True)
    b.store.write(old, sync=True)
    b.crash()
    with pytest.raises(LedgerDamaged, match="old copy"):
        await b.ledger.confirm_head([a.id])
    circle.fate = lambda: "request lost"
    assert await b.ledger.confirm_head([a.id]) == 0
    nobody = Circle(3).members[2]
    head = await circle.deliver(nobody.id, a.id, HEAD, encode({"v": 1}))
    assert head.header["yours"] is None


async def test_open_entries_are_proposed_again_by_themselves(circle, a, b):
    circle.fate = lambda: "request lost"
    with pytest.raises(PeerSilent):
        await collect(a, b, 100)
    task = asyncio.create_task(a.ledger.run())
    await settle()
    circle.fate = lambda: "pass"
    assert len(a.ledger.chain.state.open) == 1
    circle.clock.advance_to(circle.clock.now_ms() + LEDGER_RETRY_MS)
    await settle()
    assert len(a.ledger.chain.state.open) == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await a.ledger.close()


class SlowExecutor(InlineExecutor):
    """Like a thread: work ends later than it was begun, also where nobody waits any more."""

    def __init__(self):
        self.tasks = set()

    async def run(self, function, *args, **kwargs):
        async def work():
            await turns(9 if kwargs else 1)  # writes are slower than reads
            return function(*args, **kwargs)

        task = asyncio.ensure_future(work())
        self.tasks.add(task)
        return await asyncio.shield(task)


async def test_many_at_once_make_one_chain(circle):
    circle = Circle(4)
    for member in circle.members:
        member.ledger.chain._executor = SlowExecutor()
    debts = [(p, q) for p in circle.members for q in circle.members if p is not q] * 3
    await asyncio.gather(
        *(collect(p, q, 10 + account, account=account + 1) for account, (p, q) in enumerate(debts))
    )
    for p in circle.members:
        await p.ledger.verify()
        for q in circle.members:
            assert p.ledger.balance(q.id) == -q.ledger.balance(p.id)


async def test_a_cancelled_call_never_parts_disk_and_state(circle, a, b):
    a.ledger.chain._executor = SlowExecutor()
    for steps in range(20):
        task = asyncio.create_task(collect(a, b, 10, account=steps + 1))
        await turns(steps)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await a.ledger.set_limit(b.id, 10_000 + steps)
        await a.ledger.verify()
    await a.ledger.retry_pending()
    await a.ledger.verify()
    assert a.ledger.balance(b.id) == -b.ledger.balance(a.id)


class Held(InlineExecutor):
    """Has each write wait for a gate."""

    gate = None

    async def run(self, function, *args, **named):
        if self.gate is not None and function.__name__ == "write":
            await self.gate.wait()
        return await super().run(function, *args, **named)


class Failing:
    """A store that fails at each write, before or after it reached the disk."""

    def __init__(self, store, written):
        self.store, self.written = store, written

    def __getattr__(self, name):
        return getattr(self.store, name)

    def write(self, changes, *, sync):
        if self.written:
            self.store.write(changes, sync=sync)
        raise OSError("the disk is full")


async def test_steps_that_wait_for_the_disk_share_a_write_and_a_signature(circle, a, b):
    for member in (a, b):
        member.ledger.chain._executor = SlowExecutor()
    writes = []
    write = a.ledger.chain.store.write
    a.ledger.chain.store.write = lambda changes, sync: writes.append(write(changes, sync=sync))
    numbers = range(1, 41)
    booked = (collect(a, b, 5, account=number) for number in numbers)
    assert await asyncio.gather(*booked) == [5] * 40
    assert len(writes) < 20
    raws = [row.half for _, row in a.ledger.chain.stored()]
    signatures = Counter(decode(raw)["sig"] for raw in raws)
    assert len(signatures) < 10
    assert max(signatures.values()) == JOINT_MAX
    assert a.ledger.balance(b.id) == -b.ledger.balance(a.id) == 200
    for member in (a, b):
        await member.ledger.verify()
    # Of two that one signature is over, two others make a proof of at most 1 KiB.
    shared = [raw for raw in raws if len(decode(raw).get("path", ())) == 4]
    assert len(fork_bytes(*shared[:2])) <= 1_024


@pytest.mark.parametrize("written", [False, True])
async def test_where_the_disk_fails_nothing_of_that_write_counts(circle, a, b, written):
    assert await collect(a, b, 3, account=1) == 3
    whole = a.ledger.chain.store
    a.ledger.chain.store = Failing(whole, written)
    tasks = [collect(a, b, 5, account=number) for number in range(2, 9)]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(one) for one in found} == {OSError}
    a.ledger.chain.store = whole
    assert len(b.ledger.chain.state.open) == 0
    for number in range(2, 9):
        assert await collect(a, b, 5, account=number) == 5
    assert a.ledger.balance(b.id) == -b.ledger.balance(a.id) == 38
    for member in (a, b):
        await member.ledger.verify()


async def test_an_entry_that_the_disk_does_not_have_is_never_sent(circle, a, b):
    """Not while it is written, and not after that failed: its number is used again."""
    assert await collect(a, b, 3, account=1) == 3
    held, written = Held(), a.ledger.chain.store
    a.executor = held
    a.ledger = a.start()
    a.ledger.chain.store = Failing(written, written=False)
    held.gate, sent = asyncio.Event(), len(circle.sent)
    task = asyncio.create_task(collect(a, b, 5, account=2))
    await turns(20)
    asked = asyncio.create_task(a.ledger.retry_pending())
    shown = asyncio.create_task(a.ledger.handlers()[HISTORY](b.id, {"v": 1, "start": 0}, ()))
    await turns(20)
    held.gate.set()
    with pytest.raises(OSError, match="full"):
        await task
    a.ledger.chain.store = written
    await asyncio.gather(asked, shown, return_exceptions=True)
    await a.ledger.retry_pending()
    assert PROPOSE not in [method for _, _, method, _ in circle.sent[sent:]]
    assert (
        len((await a.ledger.handlers()[HISTORY](b.id, {"v": 1, "start": 0}, ()))[0]["items"]) == 1
    )
    assert await collect(a, b, 7, account=3) == 7
    for member in (a, b):
        await member.ledger.verify()


async def test_what_a_step_that_runs_alone_could_not_write_is_not_written_after_it(circle, a):
    chain, whole = a.ledger.chain, a.ledger.chain.store

    class Once(Failing):
        def write(self, changes, *, sync):
            chain.store = whole
            raise StoreDamaged("the disk is full")

    chain.store = Once(whole, written=False)
    with pytest.raises(StoreDamaged):
        await chain.exclusive(chain.write, [(b"a row", b"of it")])
    assert whole.get(b"a row") is None
    await a.ledger.verify()


async def test_after_a_failed_write_the_disk_is_asked(circle, a, b):
    whole = a.ledger.chain.store
    for written in (False, True):
        a.ledger.chain.store = Failing(whole, written)
        with pytest.raises(OSError, match="full"):
            await a.ledger.set_limit(b.id, 4)
        a.ledger.chain.store = whole
        if written:
            with pytest.raises(CreditExceeded):
                await collect(a, b, 5, account=2)
        else:
            assert await collect(a, b, 3) == 3
        assert (await a.ledger.verify()).entries == (2 if written else 1)
