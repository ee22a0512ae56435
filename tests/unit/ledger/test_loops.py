"""Debts that go around: all members book a loop that is complete, and none one that is not."""

import asyncio
import contextlib
import json
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import ValidationError

from tests.settle import settle, turns
from tests.strategies import VECTORS
from tests.unit.ledger.circle import NETWORK, STARTER, Circle, collect
from xsc.base.clock import InlineExecutor
from xsc.base.encoding import decode, encode
from xsc.base.errors import (
    ArgumentInvalid,
    CreditExceeded,
    EntryRefused,
    LedgerDamaged,
    PeerSilent,
    RecordInvalid,
    StoreDamaged,
)
from xsc.identity.envelope import sign
from xsc.ledger.audit import verify_settled
from xsc.ledger.chain import LOOP as STORED
from xsc.ledger.entry import Half, open_half
from xsc.ledger.incarnation import Noted
from xsc.ledger.loop import (
    LOOP_FAN_MAX,
    LOOP_MEMBERS_MAX,
    LOOP_MICRO_MIN,
    LOOP_SHARE,
    OFFER_TIMEOUT_MS,
    Loop,
    SignedLoop,
    begin,
    next_members,
    open_loop,
)
from xsc.ledger.loops import LOOP, OFFER
from xsc.ledger.proposals import PROPOSE

DEBT = 500_000


def run(story):
    return asyncio.run(story)


async def ring(count, amounts=None):
    """Return members of which each owes the next one, the last one the first."""
    circle = Circle(count)
    owed = amounts or [DEBT] * count
    for index, member in enumerate(circle.members):
        await collect(circle.members[(index + 1) % count], member, owed[index])
    return circle


def nets(circle):
    return [
        sum(member.ledger.balance(other.id) for other in circle.members)
        for member in circle.members
    ]


def debts(circle):
    """Return what each owes the next, as it and as the next has it."""
    around = [*circle.members, circle.members[0]]
    return [(-a.ledger.balance(b.id), b.ledger.balance(a.id)) for a, b in pairwise(around)]


async def go_on(member):
    """Let a member go on with its loops, as after a start."""
    loops = member.ledger.loops
    await asyncio.gather(*map(loops._go_on, [*member.ledger.chain.state.loops]))


async def work(circle):
    """Let all go on with their loops, until nobody has anything to do."""
    for _ in range(12):
        for member in circle.members:
            if member.id not in circle.gone:
                await go_on(member)
                await member.ledger.retry_pending()


def signed_by(members, amount, *, xid=b"x" * 16, signers=None):
    """Return a loop that those have signed."""
    loop = Loop(members=tuple(m.id for m in members), amount_micro=amount, xid=xid)
    keys = {member.id: member.key for member in members}
    found = None
    for signer in loop.signers[: len(members) if signers is None else signers]:
        own = sign(loop, keys[signer], NETWORK)
        found = begin(own) if found is None else found.signed(own)
    return found


@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_loop_takes_the_least_debt_off_all_and_no_position_changes(count):
    async def play():
        amounts = [DEBT + 1_000 * index for index in range(count)]
        circle = await ring(count, amounts)
        before = nets(circle)
        (loop,) = await circle.members[0].ledger.loops.clear()
        assert loop.record.amount_micro == DEBT
        await work(circle)
        assert debts(circle) == [(amount - DEBT, amount - DEBT) for amount in amounts]
        assert nets(circle) == before
        for member in circle.members:
            assert not member.ledger.chain.state.loops
            await member.ledger.verify()
            member.crash()
        assert debts(circle) == [(amount - DEBT, amount - DEBT) for amount in amounts]
        assert not await circle.members[1].ledger.loops.clear()

    run(play())


def test_six_debts_that_go_around_are_too_many():
    async def play():
        circle = await ring(6)
        assert not await circle.members[0].ledger.loops.clear()
        assert not any(member.ledger.chain.state.loops for member in circle.members)

    run(play())


def test_an_entry_of_a_loop_is_exported_and_proves_itself():
    async def play():
        circle = await ring(3)
        await circle.members[0].ledger.loops.clear()
        await work(circle)
        (row,) = circle.members[0].ledger.entries(limit=1)
        text = verify_settled(circle.members[0].ledger.export(row.entry_id))
        assert "a loop took 0.5 credits off" in text

    run(play())


@pytest.mark.parametrize("silent_after", range(1, 20))
def test_a_member_that_dies_at_any_message_and_returns_after_a_month(silent_after):
    """Nothing is booked, or everything once it is back; until then what was signed counts."""

    async def play(dead):
        circle = await ring(4)
        left = [silent_after]

        def fate():
            left[0] -= 1
            if left[0] == 0:
                circle.gone.add(circle.members[dead].id)
            return "pass"

        circle.fate = fate
        before = nets(circle)
        await circle.members[0].ledger.loops.clear()
        await work(circle)
        circle.fate = lambda: "pass"
        state = circle.members[1].ledger.chain.state
        for loop in state.loops.values():
            # What is signed and not booked is not there for another loop.
            assert state.clearable(circle.members[0].id, circle.members[2].id)[1] < DEBT, loop
        circle.clock.advance_to(circle.clock.now_ms() + 30 * 24 * 3_600_000)
        circle.members[dead].crash()
        circle.gone.clear()
        for _ in range(2):
            for member in circle.members:
                await go_on(member)
                await member.ledger.retry_pending()
            await work(circle)
        books = debts(circle)
        assert books in ([(DEBT, DEBT)] * 4, [(0, 0)] * 4)
        assert nets(circle) == before
        for member in circle.members:
            assert not member.ledger.chain.state.loops
            await member.ledger.verify()

    for dead in range(4):
        run(play(dead))


def test_nobody_signs_or_books_what_does_not_follow():
    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        handler = b.ledger.handlers()

        async def told(loop, caller, method=LOOP):
            assert method
            return await handler[LOOP](caller.id, {"v": 1, "loop": loop.raw}, ())

        # c signs before b; b signs only what c, whom it owes, shows, and within its debts.
        with pytest.raises(EntryRefused, match="turn"):
            await told(signed_by([a, b, c], DEBT, signers=2), a)
        with pytest.raises(EntryRefused, match="turn"):
            await told(signed_by([a, b, c], DEBT, signers=1), c)
        with pytest.raises(EntryRefused, match="debts"):
            await told(signed_by([a, b, c], DEBT + 1, signers=2), c)
        with pytest.raises(EntryRefused, match="debts"):
            await told(signed_by([c, b, a], DEBT, signers=2), a)
        loop = signed_by([a, b, c], DEBT, signers=2)
        for raw in (
            encode([]),
            encode(loop.envelopes[0]),
            encode([1]),
            encode([*loop.envelopes][::-1]),
            encode([loop.envelopes[0], loop.envelopes[0]]),
            encode([loop.envelopes[0], signed_by([a, b, c], DEBT - 1, signers=2).envelopes[1]]),
        ):
            with pytest.raises(RecordInvalid):
                open_loop(raw, network=NETWORK)
        with pytest.raises(RecordInvalid, match="no member"):
            await handler[LOOP](
                a.id, {"v": 1, "loop": signed_by([a, c, Circle(9).members[8]], DEBT).raw}, ()
            )
        # A debt that is in a loop is in no second one, and one signed twice is the same loop.
        answer, _ = await told(loop, c)
        assert open_loop(answer["loop"], network=NETWORK).is_complete
        assert (await told(loop, c))[0] == answer
        with pytest.raises(EntryRefused, match="debts"):
            await told(signed_by([a, b, c], DEBT, xid=b"y" * 16, signers=2), c)

    run(play())


def test_what_is_signed_is_on_the_disk_before_it_is_shown():
    class Held(InlineExecutor):
        gate = None

        async def run(self, function, *args, **named):
            if self.gate is not None and function.__name__ == "write":
                await self.gate.wait()
                raise StoreDamaged("the disk is full")
            return await super().run(function, *args, **named)

    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        c.executor = held = Held()
        c.ledger = c.start()
        going = asyncio.create_task(c.ledger.loops.run())
        await turns(20)
        held.gate, sent = asyncio.Event(), len(circle.sent)
        loop = signed_by([a, b, c], DEBT, signers=1)
        header = {"v": 1, "loop": loop.raw}
        told = asyncio.create_task(c.ledger.handlers()[LOOP](a.id, header, ()))
        await turns(60)
        held.gate.set()
        with pytest.raises(StoreDamaged):
            await told
        held.gate = None
        await turns(60)
        assert not [method for by, _, method, _ in circle.sent[sent:] if by == c.id]
        assert loop.id not in c.ledger.chain.state.loops
        going.cancel()

    run(play())


def test_an_incomplete_loop_or_one_of_others_books_nothing():
    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        loop = signed_by([a, b, c], DEBT)
        for wrong in (
            SignedLoop(loop.record, loop.id, NETWORK, loop.envelopes[:2]),
            signed_by([c, b, a], DEBT),
        ):
            half = entry_of(a, b, wrong)
            with pytest.raises(RecordInvalid):
                await b.ledger.handlers()["ledger.propose"](
                    a.id, {"v": 1, "half": half.raw, "voucher": wrong.raw}, ()
                )
        assert debts(circle) == [(DEBT, DEBT)] * 3

    run(play())


def entry_of(debtor, creditor, loop):
    """Return the half with which who owes proposes to book a loop."""
    state = debtor.ledger.chain.state
    half = Half(
        kind="post",
        credit=debtor.id,
        debit=creditor.id,
        peer=creditor.id,
        seq=state.next_seq,
        prev=state.head,
        amount_micro=loop.record.amount_micro,
        account=loop.id,
        receipt=loop.id,
        created_ms=0,
    )
    return sign(half, debtor.key, NETWORK)


def test_what_is_signed_counts_against_the_limit_until_it_is_booked():
    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        loop = signed_by([b, c, a], DEBT, signers=2)
        await a.ledger.handlers()[LOOP](
            b.id, {"v": 1, "loop": signed_by([b, c, a], DEBT, signers=1).raw}, ()
        )
        assert a.ledger.chain.state.loops.keys() == {loop.id}
        await a.ledger.set_limit(b.id, STARTER)
        assert a.ledger.credit_left(b.id) == STARTER
        await collect(a, b, STARTER, account=9)
        with pytest.raises(CreditExceeded):
            await collect(a, b, 1, of=STARTER + 1, account=9)
        # And yet the loop is booked once it is complete, whatever the limit is by then.
        await a.ledger.set_limit(b.id, 0)
        done = signed_by([b, c, a], DEBT)
        await a.ledger.handlers()[LOOP](b.id, {"v": 1, "loop": done.raw}, ())
        await work(circle)
        assert debts(circle)[0] == (-STARTER, -STARTER)
        assert debts(circle)[1:] == [(0, 0)] * 2
        await a.ledger.verify()
        for member in circle.members:  # A statement of any month sums up to the same.
            sums = member.ledger.chain.state.flows.balances(2**62)
            assert all(sums[other] == member.ledger.balance(other) for other in sums)
            assert sums

    run(play())


def test_a_loop_takes_a_sixteenth_of_the_lesser_debt_or_all_that_is_free():
    """Else who never signs would hold up large debts by many small loops."""

    async def play():
        circle = await ring(3, [DEBT, DEBT, DEBT + 5])
        a, b, c = circle.members
        least, signed = DEBT // LOOP_SHARE, 0

        async def show(amount):
            loop = signed_by([b, c, a], amount, xid=bytes([signed]) * 16, signers=1)
            await a.ledger.handlers()[LOOP](b.id, {"v": 1, "loop": loop.raw}, ())

        for amount in (1_000, least - 1):
            with pytest.raises(EntryRefused):
                await show(amount)
        while DEBT - signed * (least + 7) > least:
            await show(least + 7)
            signed += 1
        rest = DEBT - signed * (least + 7)
        assert LOOP_MICRO_MIN < rest < least
        with pytest.raises(EntryRefused):
            await show(rest - 1)
        await show(rest)
        assert len(a.ledger.chain.state.loops) == signed + 1 == LOOP_SHARE
        signed += 1
        with pytest.raises(EntryRefused):
            await show(LOOP_MICRO_MIN)

    run(play())


def test_small_loops_that_are_never_signed_block_no_large_debt():
    """So did eight of a thousandth with any debt, for ever."""

    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        for number in range(8):
            loop = signed_by([b, c, a], 1_000, xid=bytes([number]) * 16, signers=1)
            with contextlib.suppress(EntryRefused):
                await a.ledger.handlers()[LOOP](b.id, {"v": 1, "loop": loop.raw}, ())
        await a.ledger.loops.clear()
        await work(circle)
        assert debts(circle) == [(0, 0)] * 3

    run(play())


def test_an_offer_that_is_not_the_own_one_ends_no_search():
    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        before = a.ledger.handlers

        async def disturb():
            path = [a.id, b.id, c.id]
            for search in (bytes(16), b"s" * 16):
                header = {"v": 1, "path": path, "amount_micro": 1, "left_ms": 0, "search": search}
                answer, _ = await before()[OFFER](c.id, header, ())
                assert answer["loop"] is None

        asked = circle.deliver

        async def deliver(caller, peer, method, raw):
            if method == OFFER:
                await disturb()
            return await asked(caller, peer, method, raw)

        circle.deliver = deliver
        assert await a.ledger.loops.clear()

    run(play())


def test_a_loop_that_is_booked_is_not_found_again():
    async def play():
        circle = await ring(3)
        a = circle.members[0]
        (loop,) = await a.ledger.loops.clear()
        await work(circle)
        for index, member in enumerate(circle.members):
            creditor = circle.members[(index + 1) % 3]
            await collect(creditor, member, DEBT, account=7 + index)

        def show_again(reply):
            if "loop" in reply.header:
                reply.header["loop"] = loop.raw

        circle.change = show_again
        assert not await a.ledger.loops.clear()

    run(play())


def test_the_beginning_of_a_loop_replaces_no_complete_one():
    async def play():
        circle = await ring(4)
        a, x, h, _ = circle.members
        some = 2 * DEBT // 5
        begun = signed_by(circle.members, some, signers=2)  # as a and b have signed it

        def begin_again(reply):
            if "loop" in reply.header:
                reply.header["loop"] = begun.raw

        circle.change = begin_again
        header = {
            "v": 1,
            "path": [a.id, x.id],
            "amount_micro": some,
            "left_ms": OFFER_TIMEOUT_MS,
            "search": bytes(16),
        }
        answer, _ = await h.ledger.handlers()[OFFER](x.id, header, ())
        assert len(open_loop(answer["loop"], network=NETWORK).envelopes) == 3
        whole = signed_by(circle.members, some)
        await h.ledger.handlers()[LOOP](x.id, {"v": 1, "loop": whole.raw}, ())
        assert (await h.ledger.handlers()[OFFER](x.id, header, ()))[0]["loop"] is None
        assert h.ledger.chain.state.loops[whole.id].is_complete
        h.crash()
        assert h.ledger.chain.state.loops[whole.id].is_complete
        circle.change = lambda _: None
        await work(circle)
        assert debts(circle) == [(DEBT - some, DEBT - some)] * 4

    run(play())


def test_refused_loops_stay_open_and_cost_a_message_at_each_turn():
    """Nothing can undo them; whoever refuses holds up nothing else, and each counts once."""

    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        chain = b.ledger.chain
        loops = [signed_by(circle.members, DEBT // 4, xid=bytes([n]) * 16) for n in range(3)]
        for loop in loops:
            await chain.commit(chain.keep_loop, loop)
        await collect(b, c, 7, account=70)
        usual = c.ledger.handlers()
        refuses = [True]

        async def refuse(caller, header, parts):
            half = open_half(header["half"], network=NETWORK).record
            if refuses[0] and half.clears:
                raise EntryRefused("no")
            return await usual[PROPOSE](caller, header, parts)

        c.ledger.handlers = lambda: {**usual, PROPOSE: refuse}
        await go_on(b)
        circle.gone.add(c.id)
        with pytest.raises(PeerSilent):
            await collect(b, c, 9, account=71)
        circle.gone.clear()
        count = b.ledger.count()
        for turn in range(5):
            circle.sent.clear()
            await b.ledger.retry_pending()
            proposed = [method for _, _, method, _ in circle.sent]
            assert proposed == [PROPOSE] * (2 if turn == 0 else 1), "what is not refused is first"
        assert b.ledger.count() == count
        assert [b.ledger.loops.waits_for(loop) for loop in loops] == [[a.id, c.id]] * 3
        assert chain.state.clearing(c.id) == 3 * (DEBT // 4) == -chain.state.clearing(a.id)
        assert chain.state.exposure(c.id) == 16 - DEBT + 3 * (DEBT // 4)
        refuses[0] = False
        assert await b.ledger.retry_pending() == 3
        await work(circle)
        assert debts(circle)[2] == (DEBT // 4, DEBT // 4)

    run(play())


def test_members_go_on_by_themselves_at_a_start_and_at_news():
    async def play(learned):
        circle = await ring(4)
        a = circle.members[0]
        if not learned:
            done = signed_by(circle.members, DEBT)
            await a.ledger.chain.commit(a.ledger.chain.keep_loop, done)
        running = [asyncio.create_task(each.ledger.loops.run()) for each in circle.members]
        if learned:
            assert await a.ledger.loops.clear()
        await settle()
        assert debts(circle) == [(0, 0)] * 4
        for member in circle.members:
            assert not member.ledger.chain.state.loops
            assert not [*member.ledger.chain.table(STORED)]
        for each in running:
            each.cancel()

    run(play(learned=False))
    run(play(learned=True))


def test_what_a_complete_loop_takes_off_is_not_paid_in_money():
    """It would be paid twice, once the loop is booked."""

    async def play():
        a, b, c = (await ring(3)).members
        chain = b.ledger.chain
        await chain.commit(chain.keep_loop, signed_by([a, b, c], DEBT - 4_000))
        assert (chain.state.clearing(a.id), chain.state.clearing(c.id)) == (
            4_000 - DEBT,
            DEBT - 4_000,
        )
        for peer in (a.id, c.id):
            with pytest.raises(ArgumentInvalid, match="are taken off by a loop"):
                await b.ledger.payments.say(peer, 4_001)
            assert not await b.ledger.payments.say(peer, 4_000)

    run(play())


def test_a_false_offer_is_refused_and_an_origin_closes_only_its_own():
    async def play():
        circle = await ring(3)
        a, b, c = circle.members

        async def offer(path, caller=c, to=a):
            header = {
                "v": 1,
                "path": path,
                "amount_micro": DEBT,
                "left_ms": 1_000,
                "search": b"s" * 16,
            }
            return (await to.ledger.handlers()[OFFER](caller.id, header, ()))[0]["loop"]

        for path in ([], [c.id, b.id], [c.id, c.id], [b"short", c.id, 1][:1], [b"x" * 32] * 6):
            with pytest.raises(RecordInvalid):
                await offer(path)
        assert await offer([a.id, b.id, c.id]) is None
        assert await offer([b.id, a.id, c.id]) is None
        assert not any(member.ledger.chain.state.loops for member in circle.members)

    run(play())


def test_a_refused_loop_stays_and_is_booked_by_who_comes_to_reason():
    """A member that has signed and refuses to book holds nobody else up."""

    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        done = signed_by([a, b, c], DEBT)
        usual = b.ledger.proposals.on_propose

        async def refuses(*_):
            raise EntryRefused("no")

        b.ledger.proposals.on_propose = refuses
        await a.ledger.handlers()[LOOP](b.id, {"v": 1, "loop": done.raw}, ())
        await work(circle)
        assert debts(circle) == [(DEBT, DEBT), (0, 0), (0, 0)]
        b.ledger.proposals.on_propose = usual
        await a.ledger.retry_pending()
        await work(circle)
        assert debts(circle) == [(0, 0)] * 3
        for member in circle.members:
            await member.ledger.verify()

    run(play())


def test_who_lost_its_disk_books_what_it_had_signed():
    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        done = signed_by([a, b, c], DEBT)
        await c.ledger.handlers()[LOOP](b.id, {"v": 1, "loop": done.raw}, ())
        await b.come_back(Noted())
        await work(circle)
        for member in circle.members:
            await go_on(member)
        await work(circle)
        assert debts(circle) == [(0, 0)] * 3
        await b.ledger.verify()

    run(play())


def test_a_flipped_byte_of_a_stored_loop_is_found():
    async def play():
        circle = await ring(3)
        a, b, c = circle.members
        await a.ledger.handlers()[LOOP](
            b.id, {"v": 1, "loop": signed_by([b, c, a], DEBT, signers=1).raw}, ()
        )
        ((key, raw),) = a.store.scan(b"ledger-loop/", b"ledger-loop0")
        for place in range(0, len(raw), 7):
            bad = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
            a.store.write([(key, bad)], sync=True)
            with pytest.raises(LedgerDamaged):
                a.start()
        a.store.write([(key, raw)], sync=True)
        a.start()
        assert decode(raw)

    run(play())


class Market(RuleBasedStateMachine):
    """Nodes that run up debts, look for loops, go silent, crash and come back."""

    @initialize(amounts=st.lists(st.integers(1_000, 9_000), min_size=7, max_size=7))
    def begin(self, amounts):
        self.loop = asyncio.new_event_loop()
        self.circle = Circle(4)
        self.account = 0
        self.fates = []
        self.circle.fate = lambda: self.fates.pop() if self.fates else "pass"
        for (debtor, creditor), amount in zip(
            [(0, 1), (1, 2), (2, 0), (2, 3), (3, 0), (3, 1), (1, 0)], amounts, strict=True
        ):
            self.owe(debtor, creditor, amount)

    def do(self, step):
        return self.loop.run_until_complete(step)

    def owe(self, debtor, creditor, amount):
        self.account += 1
        members = self.circle.members
        with contextlib.suppress(PeerSilent, CreditExceeded):
            self.do(
                collect(
                    members[creditor],
                    members[debtor],
                    amount,
                    account=self.account % 250 + 1,
                )
            )

    @rule(pair=st.permutations(range(4)), amount=st.integers(1, 9_000))
    def use(self, pair, amount):
        if self.account < 240:
            self.owe(pair[0], pair[1], amount)

    @rule(
        who=st.integers(0, 3),
        fates=st.lists(
            st.sampled_from(["pass", "pass", "request lost", "answer lost", "twice"]), max_size=12
        ),
    )
    def clear(self, who, fates):
        """No member loses: no debt grows or changes sides, and none is used twice."""
        if self.circle.members[who].id in self.circle.gone:
            return
        before = self.debts_in_the_end()
        self.fates = fates
        self.do(self.circle.members[who].ledger.loops.clear())
        self.fates = []
        for was, now in zip(before, self.debts_in_the_end(), strict=True):
            assert min(was, 0) <= now <= max(was, 0)

    def debts_in_the_end(self):
        """Return what each has with each other once all that it has signed is booked."""
        states = [member.ledger.chain.state for member in self.circle.members]
        return [
            state.balances.get(other.id, 0) + sum(state.unbooked.get(other.id, {}).values())
            for state in states
            for other in self.circle.members
        ]

    @rule(who=st.integers(0, 3))
    def go_silent(self, who):
        self.circle.gone.add(self.circle.members[who].id)

    @rule(who=st.integers(0, 3))
    def crash(self, who):
        self.circle.members[who].crash()

    @rule()
    def all_come_back(self):
        self.circle.gone.clear()
        self.finish()

    def finish(self):
        async def story():
            for _ in range(3):
                for member in self.circle.members:
                    await go_on(member)
                await work(self.circle)

        self.do(story())
        complete, unfinished = set(), {}
        for member in self.circle.members:
            for loop in member.ledger.chain.state.loops.values():
                unfinished[loop.id] = loop
                complete |= {loop.id} if loop.is_complete else set()
        assert not complete
        # Each is booked by all of its members, or by none.
        booked = {}
        for member in self.circle.members:
            for row in member.ledger.entries(limit=1_000):
                half = member.ledger.chain.own(row.seq).record
                if half.clears and row.seq not in member.ledger.chain.state.voided:
                    booked.setdefault(half.account, []).append((half.debit, half.credit))
        for edges in booked.values():
            assert len(edges) == 2 * len({*edges}) >= 6
            # Who is owed less by it owes less by it.
            assert {debtor for debtor, _ in edges} == {creditor for _, creditor in edges}
        assert not booked.keys() & unfinished.keys()
        total = sum(nets(self.circle))
        assert total == 0
        for member in self.circle.members:
            self.do(member.ledger.verify())

    @invariant()
    def no_limit_is_passed(self):
        if not hasattr(self, "circle"):
            return
        for member in self.circle.members:
            for other in self.circle.members:
                assert member.ledger.chain.state.exposure(other.id) <= STARTER

    @invariant()
    def what_is_unbooked_follows_from_loops_and_entries(self):
        if not hasattr(self, "circle"):
            return
        for member in self.circle.members:
            state, expected = member.ledger.chain.state, {}
            for loop in state.loops.values():
                before, after = loop.record.before(member.id), loop.record.after(member.id)
                micro = loop.record.amount_micro
                if not state.settled_under(loop.id, debtor=member.id, creditor=before):
                    expected.setdefault(before, {})[loop.id] = -micro
                if not state.settled_under(loop.id, debtor=after, creditor=member.id):
                    expected.setdefault(after, {})[loop.id] = micro
                assert loop.id in expected.get(before, {}) | expected.get(after, {})
            assert {peer: found for peer, found in state.unbooked.items() if found} == expected

    def teardown(self):
        if hasattr(self, "circle"):
            self.circle.gone.clear()
            self.finish()
            self.loop.close()


Market.TestCase.settings = settings(deadline=None, stateful_step_count=15)
TestMarket = Market.TestCase


def test_the_vector_of_a_loop():
    vectors = json.loads((VECTORS / "ledger.json").read_text())
    vector = vectors["loop"]
    loop = open_loop(bytes.fromhex(vector["signed"]), network=bytes.fromhex(vectors["network"]))
    assert loop.is_complete
    assert loop.id.hex() == vector["id"]
    assert loop.record.to_bytes().hex() == vector["body"]
    assert loop.record.amount_micro == vector["amount_micro"]


def test_an_offer_goes_to_its_origin_first_and_to_few_of_the_largest_creditors():
    debts = {bytes([number]): number for number in range(1, 20)}
    assert next_members(debts, [b"o", b"p"]) == [bytes([n]) for n in (19, 18, 17, 16)]
    assert len(next_members(debts, [b"o"])) == LOOP_FAN_MAX
    assert next_members(debts | {b"o": 1}, [b"o", b"p"])[0] == b"o"
    assert b"o" not in next_members(debts | {b"o": 99}, [b"o"]), "two are no loop"
    full = [b"o", *(bytes([number]) for number in range(1, LOOP_MEMBERS_MAX - 1))]
    assert next_members(debts | {b"o": 1}, full) == [b"o"], "one more would be too many"


def test_a_loop_takes_off_no_less_than_its_entries_are_worth():
    members = tuple(bytes([number]) * 32 for number in range(3))
    Loop(members=members, amount_micro=LOOP_MICRO_MIN, xid=bytes(16))
    with pytest.raises(ValidationError):
        Loop(members=members, amount_micro=LOOP_MICRO_MIN - 1, xid=bytes(16))


def test_one_search_finds_so_many_loops_and_no_more(monkeypatch):
    async def play(most):
        monkeypatch.setattr("xsc.ledger.loops.LOOPS_FOUND_MAX", most)
        circle = await ring(3)
        return len(await circle.members[0].ledger.loops.clear())

    assert [run(play(most)) for most in (0, 1)] == [0, 1]


@pytest.mark.parametrize("junk", [b"short", 7, None, [bytes(32)]])
def test_an_offer_with_a_member_that_is_no_node_is_refused(junk):
    async def play():
        a, b, _ = (await ring(3)).members
        header = {"v": 1, "path": [junk, b.id], "amount_micro": DEBT, "left_ms": 1_000}
        with pytest.raises(RecordInvalid):
            await a.ledger.handlers()[OFFER](b.id, header, ())

    run(play())
