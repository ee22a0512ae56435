"""What a ledger that began anew keeps, takes late, and cannot be made to say."""

import hashlib
import itertools

import pytest

from tests.strategies import vectors
from tests.unit.ledger.circle import (
    NETWORK,
    STARTER,
    Circle,
    collect,
    digest,
    pay,
    put,
    rows_of,
    voucher,
)
from xsc.base.encoding import decode, encode
from xsc.base.errors import (
    CreditExceeded,
    EntryRefused,
    LedgerDamaged,
    PeerError,
    PeerSilent,
    RecordInvalid,
)
from xsc.base.limits import AMOUNT_MAX, DIRECTORY_HEAD_BYTES_MAX, INCARNATION_GAP, PEER_TIMEOUT_MS
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.ledger import incarnation
from xsc.ledger.entry import Half, open_half
from xsc.ledger.exchange import HEAD, HISTORY, HISTORY_TIMEOUT_MS
from xsc.ledger.incarnation import (
    NOTED_ACCOUNTS_MAX,
    Claim,
    Incarnation,
    Noted,
    NotedAccount,
    claim_hash,
    open_incarnation,
    open_noted,
    plan,
    worth_noting,
)
from xsc.ledger.proposals import PROPOSE
from xsc.terms.voucher import off_books_account


@pytest.fixture
def circle():
    return Circle(3)


@pytest.fixture
def a(circle):
    return circle.members[0]


@pytest.fixture
def b(circle):
    return circle.members[1]


@pytest.fixture
def c(circle):
    return circle.members[2]


def forks(circle):
    return [
        key
        for member in circle.members
        for key, _ in member.store.scan(b"ledger-fork/", b"ledger-fork0")
    ]


async def sound(circle, *, agreed=True):
    """Check that every book replays, nobody counts as a forger, and each two agree."""
    for p in circle.members:
        assert digest(p.start().chain.state) == digest(p.ledger.chain.state)
        assert (await p.ledger.verify()).forks == 0
        for q in circle.members if agreed else ():
            assert p.ledger.balance(q.id) == -q.ledger.balance(p.id)
    assert forks(circle) == []


async def debts(a, b, c):
    """A owes B 100 by its first entry; B owes A 30; C owes A 500."""
    await collect(b, a, 100, account=1)
    await collect(a, b, 30, account=2)
    await collect(a, c, 500, account=3)


async def test_debts_stay_and_what_a_dead_peer_held_is_unproven_by_peer_and_amount(circle, a, b, c):
    await debts(a, b, c)
    await a.ledger.set_limit(c.id, 777)
    noted = a.ledger.noted()
    assert open_noted(noted.to_bytes()) == noted
    circle.gone.add(b.id)
    done = await a.come_back(noted)
    assert (done.silent, done.unproven) == ((b.id,), {b.id: -70})
    assert (a.ledger.balance(b.id), a.ledger.balance(c.id)) == (0, 500)
    assert (a.ledger.limit(c.id), a.ledger.credit_left(c.id)) == (777, 277)
    assert await collect(a, c, 20, account=4) == 20, "the chain goes on"
    await sound(circle, agreed=False)


@pytest.mark.parametrize("over", [0, 1])
def test_a_head_notes_so_many_accounts_and_the_largest_where_there_are_more(over):
    ids = [number.to_bytes(32, "big") for number in range(NOTED_ACCOUNTS_MAX + over)]
    accounts = [NotedAccount(peer, AMOUNT_MAX - at, AMOUNT_MAX) for at, peer in enumerate(ids)]
    accounts[7] = NotedAccount(ids[7], 0, None)
    kept = worth_noting(accounts)
    raw = Noted(next_seq=9, accounts=kept).to_bytes()
    assert len(raw) <= DIRECTORY_HEAD_BYTES_MAX // 2
    assert open_noted(raw).accounts == kept
    left = {*accounts} - {*kept}
    assert left == {*accounts[7 : 7 + over]}
    if over:
        with pytest.raises(RecordInvalid):
            open_noted(Noted.model_construct(v=1, next_seq=9, accounts=tuple(accounts)).to_bytes())


def test_a_small_balance_is_noted_before_a_limit_and_a_limit_before_nothing():
    ids = [number.to_bytes(32, "big") for number in range(NOTED_ACCOUNTS_MAX)]
    full = [NotedAccount(peer, -2, None) for peer in ids[3:]]
    least, limited, zero, unlimited = (
        NotedAccount(b"\xff" * 31 + bytes([at]), balance, limit)
        for at, (balance, limit) in enumerate([(1, None), (0, 5), (0, STARTER), (0, None)])
    )
    kept = worth_noting([*full, unlimited, zero, limited, least])
    assert {least, limited, zero} <= {*kept}
    assert unlimited not in kept
    kept = worth_noting([*full, full[0], unlimited, limited, least])
    assert {least, limited} <= {*kept}
    assert unlimited not in kept


async def test_a_ledger_notes_no_more_than_a_recovery_reads(monkeypatch, circle, a, b, c):
    await debts(a, b, c)
    monkeypatch.setattr(incarnation, "NOTED_ACCOUNTS_MAX", 1)
    noted = a.ledger.noted()
    assert [item.peer for item in noted.accounts] == [c.id], "the larger balance"
    assert open_noted(noted.to_bytes()) == noted


async def test_a_late_half_becomes_a_claim_and_both_books_agree_again(circle, a, b, c):
    await debts(a, b, c)
    circle.gone.add(b.id)
    await a.come_back(a.ledger.noted())
    await collect(a, c, 20, account=4)
    circle.gone.clear()
    assert await a.ledger.confirm_head([b.id]) == 1
    rows = {row.seq: row for row in a.ledger.entries(peer=b.id) if row.kind == "post"}
    assert [(rows[seq].state, rows[seq].amount_micro) for seq in sorted(rows)] == [
        ("settled", 100),
        ("settled", 30),
    ]
    assert a.ledger.balance(b.id) == -70
    assert a.ledger.chain.state.unproven_micro(b.id) == 0
    await collect(b, a, 50, of=150, account=1)
    await collect(a, b, 1, of=31, account=2)
    await sound(circle)
    # And a second time, with all that was taken late.
    await a.come_back(a.ledger.noted())
    await sound(circle)
    posts = [row for row in a.ledger.entries() if row.kind == "post"]
    assert {row.state for row in posts} == {"settled"}


async def test_nothing_is_booked_with_a_peer_that_was_not_heard(circle, a, b, c):
    await collect(b, a, 100, account=1)
    circle.gone.add(b.id)
    await a.come_back(a.ledger.noted())
    circle.gone.clear()
    good = circle.deliver

    async def deaf(caller, peer, method, raw):
        if method == HISTORY:
            raise PeerSilent("no answer")
        return await good(caller, peer, method, raw)

    circle.deliver = deaf
    # Not refused: a refusal would be for good, and the amount follows from what is not known.
    with pytest.raises(PeerSilent):
        await collect(b, a, 50, of=150, account=1)
    with pytest.raises(PeerSilent):
        await collect(a, b, 5, account=2)
    circle.deliver = good
    assert await b.ledger.retry_pending() == 1
    assert a.ledger.balance(b.id) == -150
    await sound(circle)


def crawl(circle, peer):
    """Have a peer show its history an item a page, each just in time."""
    good = circle.deliver

    async def slow(caller, asked, method, raw):
        reply = await good(caller, asked, method, raw)
        if (asked, method) == (peer.id, HISTORY):
            circle.clock.advance_to(circle.clock.now_ms() + PEER_TIMEOUT_MS - 1_000)
            items = reply.header["items"]
            reply.header.update(items=items[:1], more=len(items) > 1)
        return reply

    circle.deliver = slow


async def test_who_crawls_counts_as_silent_and_what_it_has_shown_is_kept(circle, a, b, c):
    for number in range(1, 13):
        await collect(b, a, 10, of=10 * number)
    crawl(circle, b)
    before_ms = circle.clock.now_ms()
    a.store = MemoryKeyValue()
    a.ledger = a.start()
    done = await a.ledger.restart([b.id, c.id], Noted())
    assert circle.clock.now_ms() - before_ms < HISTORY_TIMEOUT_MS + PEER_TIMEOUT_MS
    assert done.silent == (b.id,)
    assert a.ledger.balance(b.id) == -50
    # It is asked on from where it was, so that a slow one comes to the end, too.
    balances = []
    for number in range(5):
        circle.gone = {b.id} if number == 1 else set()
        before_ms = circle.clock.now_ms()
        heard = await a.ledger.confirm_head([b.id])
        assert circle.clock.now_ms() - before_ms < HISTORY_TIMEOUT_MS + PEER_TIMEOUT_MS
        balances.append((heard, a.ledger.balance(b.id)))
    assert balances == [(0, -100), (0, -100), (1, -120), (1, -120), (1, -120)]
    assert await collect(b, a, 10, of=130) == 130
    await sound(circle)


async def test_a_number_that_no_entry_has_ends_no_recovery(circle, a, b, c):
    await collect(b, a, 10)
    await collect(a, c, 500)
    good = circle.deliver

    async def lie(caller, peer, method, raw):
        reply = await good(caller, peer, method, raw)
        if peer == b.id and method == HISTORY:
            items = [reply.header["items"][0], {"seq": 2**63 - 1}]
            reply.header.update(items=items, more=True)
        return reply

    circle.deliver = lie
    a.store = MemoryKeyValue()
    a.ledger = a.start()
    done = await a.ledger.restart([b.id, c.id], Noted())
    assert done.silent == (b.id,)
    assert a.ledger.balance(c.id) == 500
    circle.deliver = good
    assert await a.ledger.confirm_head([b.id]) == 1
    assert a.ledger.balance(b.id) == -10
    await sound(circle)


async def test_who_never_restarted_asks_nobody_for_old_entries(circle, a, b, c):
    await collect(b, a, 100)
    good = circle.deliver

    async def lie(caller, peer, method, raw):
        reply = await good(caller, peer, method, raw)
        if method == HEAD:
            reply.header["entries"] = 2**31
        return reply

    circle.deliver = lie
    assert await a.ledger.confirm_head([b.id, c.id]) == 2
    assert HISTORY not in {method for _, _, method, _ in circle.sent}


async def test_who_hides_a_debt_gains_no_credit_by_it(circle, a, b, c):
    await collect(a, b, STARTER - 10, account=1)
    circle.gone.add(b.id)
    await a.come_back(a.ledger.noted())
    circle.gone.clear()
    hide(circle, b)
    with pytest.raises(CreditExceeded):
        await collect(a, b, 11, account=2)
    assert a.ledger.credit_left(b.id) == 10
    assert await collect(a, b, 10, account=2) == 10
    circle.deliver = type(circle).deliver.__get__(circle)
    await a.ledger.confirm_head([b.id])
    assert (a.ledger.balance(b.id), a.ledger.credit_left(b.id)) == (STARTER, 0)
    await sound(circle)


async def test_who_hides_that_it_was_paid_in_money_gains_no_credit_by_it(circle, a, b):
    await collect(b, a, STARTER, account=1)
    await pay(a, b, STARTER)
    await collect(a, b, STARTER, account=2)
    assert a.ledger.credit_left(b.id) == 0
    hide(circle, b, off_books_account(a.id, b.id))
    await a.come_back(a.ledger.noted())
    assert a.ledger.chain.state.unproven_micro(b.id) == STARTER
    assert a.ledger.credit_left(b.id) == 0


def hide(circle, member, account=None):
    """Have a member show nothing of what it holds, or of an account."""
    good = circle.deliver

    def is_shown(item):
        return account not in {None, open_half(item["half"], network=NETWORK).record.account}

    async def hiding(caller, peer, method, raw):
        reply = await good(caller, peer, method, raw)
        if peer == member.id and method == HISTORY:
            shown = [item for item in reply.header["items"] if is_shown(item)]
            reply.header.update(items=shown, more=False)
        return reply

    circle.deliver = hiding


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1, 2])))
async def test_what_was_hidden_and_booked_anew_counts_once(circle, a, b, order):
    """Of three entries under one account any come late, in any order, after a fourth."""
    for number in range(3):
        await collect(b, a, 100, of=100 * (number + 1))
    hide(circle, b)
    await a.come_back(a.ledger.noted())
    shown = type(circle).deliver.__get__(circle)
    header = (await shown(a.id, b.id, HISTORY, encode({"v": 1, "start": 0}))).header
    # B, who hid them, has A sign for all of it once more: its own book would not.
    b.store, kept = MemoryKeyValue(), b.store
    b.ledger = b.start()
    await collect(b, a, 350)
    assert a.ledger.balance(b.id) == -350
    b.store = kept
    b.ledger = b.start()
    for number in order:

        async def one(caller, peer, method, raw, number=number):
            reply = await shown(caller, peer, method, raw)
            if method == HISTORY:
                reply.header.update(items=[header["items"][number]], more=False)
            return reply

        circle.deliver = one
        await a.ledger.exchange._claims_of(b.id)
    assert a.ledger.balance(b.id) == -350
    posts = [row for row in a.ledger.entries() if row.kind == "post"]
    assert [row.state for row in posts] == ["settled"] + ["covered"] * 3
    assert digest(a.start().chain.state) == digest(a.ledger.chain.state)
    await a.ledger.verify()


async def test_a_claim_beside_an_open_entry_counts_the_same_at_every_start(circle, a, b, c):
    await collect(a, b, 100)
    hide(circle, b)
    await a.come_back(a.ledger.noted())
    hidden, circle.deliver = circle.deliver, type(circle).deliver.__get__(circle)
    circle.fate = lambda: "request lost"
    with pytest.raises(PeerSilent):
        await collect(a, b, 150)  # B hid the 100 in this account
    circle.fate = lambda: "pass"
    await a.ledger.exchange._claims_of(b.id)
    assert a.ledger.credit_left(b.id) == STARTER - 150
    assert digest(a.start().chain.state) == digest(a.ledger.chain.state)
    assert await a.ledger.retry_pending() == 0, "an honest debtor owes 50 more, not 150"
    assert digest(a.start().chain.state) == digest(a.ledger.chain.state)
    assert hidden is not None
    await a.ledger.verify()


async def test_an_open_entry_is_given_up_and_comes_back_as_a_claim_where_it_was_answered(
    circle, a, b, c
):
    circle.fate = lambda: "answer lost"
    with pytest.raises(PeerSilent):
        await collect(a, b, 100)
    circle.fate = lambda: "pass"
    await a.ledger.restart([b.id, c.id], Noted())  # a home of the past, as after a backup
    assert (a.ledger.balance(b.id), len(a.ledger.chain.state.open)) == (100, 0)
    assert await collect(a, b, 100) == 100
    await sound(circle)


async def test_a_lower_incarnation_is_refused_and_proves_nothing(circle, a, b, c):
    await collect(b, a, 100, account=1)
    await collect(a, b, 30, account=2)
    old = MemoryKeyValue()
    old.write(list(a.store.scan(b"")), sync=True)
    await a.come_back(a.ledger.noted())
    a.store, kept = old, a.store
    copy = a.start()
    with pytest.raises(LedgerDamaged, match="old copy"):
        await copy.confirm_head([b.id])
    a.ledger, real = copy, a.ledger
    with pytest.raises(EntryRefused, match="this is lower"):
        await collect(a, b, 5, account=3)
    a.store, a.ledger = kept, real
    assert b.ledger.balance(a.id) == 70
    await collect(a, b, 5, account=4)
    await sound(circle)


async def test_a_forged_old_or_second_incarnation_changes_nothing(circle, a, b, c):
    await collect(a, b, 100)
    await a.come_back()
    first = b.store.get(b"ledger-peer/" + a.id)
    await a.ledger.restart([b.id, c.id], a.ledger.noted())
    await a.ledger.confirm_head([b.id])
    second = b.store.get(b"ledger-peer/" + a.id)
    number = open_incarnation(second, author=a.id, network=NETWORK).record.first_seq
    assert number > open_incarnation(first, author=a.id, network=NETWORK).record.first_seq

    def made(key, **changes):
        record = open_incarnation(second, author=a.id, network=NETWORK).record
        return sign(record.model_copy(update=changes), key, NETWORK).raw

    before = digest(b.ledger.chain.state)
    for raw in (made(c.key), made(c.key, first_seq=2**62), b"", second[:-1]):
        with pytest.raises(PeerError):
            await tell(circle, a.id, b, raw)
    with pytest.raises(PeerError):
        await tell(circle, c.id, b, second)
    for raw in (first, made(a.key, created_ms=5), made(a.key, first_seq=0)):
        answer = await tell(circle, a.id, b, raw)
        assert answer.header["incarnation"] == second, "and its author sees what stands"
    assert b.store.get(b"ledger-peer/" + a.id) == second
    assert digest(b.ledger.chain.state) == before
    assert b.ledger.balance(a.id) == -100


async def tell(circle, caller, member, raw):
    return await circle.deliver(caller, member.id, HEAD, encode({"v": 1, "incarnation": raw}))


async def test_restarts_without_end_give_no_credit_and_wipe_no_debt(circle, a, b, c):
    await collect(a, b, STARTER, account=1)
    for number in range(2, 8):
        circle.gone.add(a.id)
        await b.come_back()
        circle.gone.clear()
        await b.ledger.confirm_head([a.id, c.id])
        assert a.ledger.credit_left(b.id) == 0
        with pytest.raises(CreditExceeded):
            await collect(a, b, 1, account=number)
    assert (a.ledger.balance(b.id), b.ledger.balance(a.id)) == (STARTER, -STARTER)
    await sound(circle)


async def test_what_is_unproven_is_not_forgotten_by_the_next_restart(circle, a, b, c):
    await debts(a, b, c)
    circle.gone.add(b.id)
    for _ in range(3):
        done = await a.come_back(a.ledger.noted())
        assert done.unproven == {b.id: -70}
        await collect(a, c, 1, account=9)
    circle.gone.clear()
    await a.ledger.confirm_head([b.id])
    assert [a.ledger.chain.state.unproven_micro(peer.id) for peer in (b, c)] == [0, 0]
    await sound(circle)


async def test_every_flipped_byte_and_every_lost_row_of_a_restarted_book_is_found(circle, a, b, c):
    await collect(b, a, 100, account=1)
    await collect(a, c, 500, account=3)
    circle.gone.add(b.id)
    await a.come_back(a.ledger.noted())
    circle.gone.clear()
    await a.ledger.confirm_head([b.id])
    await collect(c, a, 20, account=4)
    rows = rows_of(a)
    assert {key.split(b"/")[1] for key in rows} == {
        b"entry",
        b"mark",
        b"restart",
    }
    for key, raw in rows.items():
        for place in range(0, len(raw), 3):
            flipped = raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :]
            put(a, {**rows, key: flipped})
            with pytest.raises(LedgerDamaged):
                await a.start().verify()
        put(a, {at: row for at, row in rows.items() if at != key})
        with pytest.raises(LedgerDamaged):
            a.start()
    put(a, rows)
    await a.start().verify()


@pytest.mark.parametrize("now_ms", [0, 10**12])
def test_a_new_number_is_above_all_that_may_have_been_signed(now_ms):
    noted = Noted(next_seq=70, accounts=(NotedAccount(b"p" * 32, 5, None),))
    made = plan(noted, highest_seq=9, now_ms=now_ms)
    assert made.first_seq == max(now_ms, 70 + INCARNATION_GAP)
    assert plan(Noted(), highest_seq=2**40, now_ms=now_ms).first_seq >= 2**40 + INCARNATION_GAP


async def test_a_first_half_follows_on_its_incarnation(circle, a, b, c):
    await a.come_back()
    began = a.ledger.chain.restart.incarnation.record
    paid = voucher(b, a, 7, account=5)
    post = Half(
        kind="post",
        credit=a.id,
        debit=b.id,
        peer=b.id,
        seq=began.first_seq,
        prev=b"?" * 32,
        amount_micro=7,
        account=bytes([5]) * 32,
        receipt=paid.id,
        created_ms=0,
    )
    header = {"v": 1, "half": sign(post, a.key, NETWORK).raw, "voucher": paid.raw}
    with pytest.raises(EntryRefused, match="follows on its record"):
        await circle.deliver(a.id, b.id, PROPOSE, encode(header))
    seq, prev = a.ledger.head()
    good = sign(post.model_copy(update={"seq": seq, "prev": prev}), a.key, NETWORK)
    await circle.deliver(a.id, b.id, PROPOSE, encode(header | {"half": good.raw}))
    assert b.ledger.balance(a.id) == -7


async def test_one_voucher_in_two_incarnations_books_once_and_is_no_evidence(circle, a, b, c):
    await collect(a, b, 100)
    hide(circle, b)
    await a.come_back()
    with pytest.raises(EntryRefused, match="leaves 0"):
        await collect(a, b, 100)
    assert forks(circle) == []
    assert decode(circle.sent[-1][3])


def test_formats_of_version_1_are_read_and_written():
    kept = vectors("ledger")["incarnation"]
    noted = Noted(
        next_seq=70,
        accounts=(NotedAccount(b"p" * 32, -5, None), NotedAccount(b"q" * 32, 2**53, 10)),
    )
    assert noted.to_bytes().hex() == kept["said"]
    assert open_noted(bytes.fromhex(kept["said"])) == noted
    record = Incarnation(
        first_seq=1_700_000_000_000,
        noted=hashlib.sha256(noted.to_bytes()).digest(),
        created_ms=1_700_000_000_000,
    )
    raw = bytes.fromhex(kept["signed"])
    key = KeyPair(b"\1" * 32)
    assert sign(record, key, NETWORK).raw == raw
    assert open_incarnation(raw, author=key.node_id, network=NETWORK).record == record


def test_the_hash_of_a_claim_is_as_its_page_says():
    claim = Claim(seqs=(4, 9), start=10)
    taken = [(b"h" * 32, b"o" * 32), (b"i" * 32, b"p" * 32)]
    listed = encode({"v": 1, "seqs": [4, 9], "start": 10})
    ids = b"".join(one for pair in taken for one in pair)
    assert (
        claim_hash(claim, taken) == hashlib.sha256(b"XSC/1/ledger_claim\0" + listed + ids).digest()
    )


@pytest.mark.parametrize(
    "value",
    [
        {"v": 2, "next_seq": 0, "accounts": []},
        {"v": 1, "next_seq": -1, "accounts": []},
        {"v": 1, "next_seq": 0, "accounts": [[b"short", 0, None]]},
        {"v": 1, "next_seq": 0, "accounts": [[b"p" * 32, 2**63, None]]},
        {"v": 1, "next_seq": 0, "accounts": [[b"p" * 32, 0, -1]]},
        {"v": 1, "next_seq": 0, "accounts": [{}]},
        [],
    ],
)
def test_what_is_noted_has_one_form(value):
    with pytest.raises(RecordInvalid):
        open_noted(encode(value))
