"""Laws of the ledger: whatever is lost, repeated, late or killed, both books end up equal."""

import asyncio
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.ledger.circle import STARTER, Circle, Member, collect, digest, replayed
from xsc.base.errors import CreditExceeded, EntryRefused, PeerSilent
from xsc.db.memory import MemoryKeyValue

FATES = ["pass", "request lost", "answer lost", "twice"]
AMOUNTS = st.sampled_from([1, 7_000, 50_000, STARTER * 2 // 3])
SIDES = st.sampled_from([(0, 1), (1, 0), (0, 2), (2, 1), (1, 2)])


def books_agree(circle: Circle) -> None:
    """Both parties of every account hold the same amounts, with opposite signs."""
    for p in circle.members:
        for q in circle.members:
            if p is q:
                continue
            assert p.ledger.balance(q.id) == -q.ledger.balance(p.id)
    assert sum(p.ledger.balance(q.id) for p in circle.members for q in circle.members) == 0


def limits_hold(circle: Circle) -> None:
    """No peer owes more than it was allowed, not even if all that is open were answered."""
    for p in circle.members:
        for q in circle.members:
            waiting = [each for each in p.ledger.chain.state.open.values() if each.debtor == q.id]
            most = p.ledger.balance(q.id) + sum(each.amount_micro for each in waiting)
            assert most <= p.ledger.limit(q.id)
            assert p.ledger.credit_left(q.id) >= 0


async def cubes_agree(circle: Circle, member: Member) -> None:
    """All that both have booked is sealed, in one order."""
    for other in circle.members:
        if other is not member:
            found = await member.ledger.seals.compare(other.id)
            assert [*member.ledger.seals.unsealed(other.id)] == []
            assert found is not None
            assert found[1] is None
            if not any(each.ledger.chain.restart for each in (member, other)):
                assert found[0] == member.ledger.chain.state.dealt.get(other.id, 0)


def nothing_is_refused(member: Member) -> None:
    """No node withdraws what another signed for: all of them are honest."""
    rows = member.ledger.entries(limit=1_000)
    assert [row for row in rows if (row.kind, row.state) == ("post", "void")] == []


def replays_equal(member: Member) -> None:
    """A snapshot and what follows, and all halves alone, give what the node works with."""
    now = digest(member.ledger.chain.state)
    assert digest(member.start().chain.state) == now == digest(replayed(member))


class Books(RuleBasedStateMachine):
    """Three nodes, a lossy network, and power failures."""

    def __init__(self):
        super().__init__()
        self.circle = Circle(3)
        self.fates: deque[str] = deque()
        self.circle.fate = lambda: self.fates.popleft() if self.fates else "pass"
        self.owed: dict[tuple[int, int, int], int] = {}
        self.booked: dict[tuple[int, int, int], int] = {}
        self.loop = asyncio.new_event_loop()

    def teardown(self):
        async def end():
            self.fates.clear()
            for member in self.circle.members:
                await member.ledger.seals.seal_all()  # While some of it has no answer.
            for member in self.circle.members:
                await member.ledger.retry_pending()
            books_agree(self.circle)
            everybody = [member.id for member in self.circle.members]
            for member in self.circle.members:
                await member.ledger.confirm_head([node for node in everybody if node != member.id])
            for member in self.circle.members:
                await member.ledger.seals.seal_all()
            for member in self.circle.members:
                await cubes_agree(self.circle, member)
                assert len(member.ledger.chain.state.open) == 0
                nothing_is_refused(member)
                report = await member.ledger.verify()
                assert report.forks == 0

        self.loop.run_until_complete(end())
        self.loop.close()

    @rule(
        side=SIDES,
        debts=st.lists(st.tuples(st.integers(1, 2), AMOUNTS), min_size=1, max_size=3),
        fates=st.lists(st.sampled_from(FATES), max_size=4),
    )
    def settle(self, side, debts, fates):
        """The creditor collects what new vouchers leave; now and then nobody answers."""
        self.fates.extend(fates)
        for account, more in debts:
            self.collect(side, account, more)
        self.fates.clear()

    def collect(self, side, account, more):
        creditor, debtor = (self.circle.members[index] for index in side)
        place, number = (*side, account), side[0] * 100 + side[1] * 10 + account
        settled = creditor.ledger.settled(bytes([number]) * 32)
        assert settled >= self.booked.get(place, 0)
        total = max(self.owed.get(place, 0), settled) + more
        try:
            got = self.loop.run_until_complete(
                collect(creditor, debtor, total - settled, of=total, account=number)
            )
        except PeerSilent:
            self.owed[place] = total
        except CreditExceeded:
            pass
        else:
            assert got == total
            self.owed[place] = self.booked[place] = total

    @rule(index=st.integers(0, 2), fates=st.lists(st.sampled_from(FATES), max_size=3))
    def retry(self, index, fates):
        """One node proposes again what is open."""
        self.fates.extend(fates)
        self.loop.run_until_complete(self.circle.members[index].ledger.retry_pending())
        self.fates.clear()

    @rule(index=st.integers(0, 2), fates=st.lists(st.sampled_from(FATES), max_size=3))
    def seal(self, index, fates):
        """One node seals what it has with the others."""
        self.fates.extend(fates)
        self.loop.run_until_complete(self.circle.members[index].ledger.seals.seal_all())
        self.fates.clear()

    @rule(data=st.data())
    def late(self, data):
        """A message of long ago arrives once more, however it had fared."""
        if not self.circle.sent:
            return
        caller, peer, method, raw = data.draw(st.sampled_from(self.circle.sent))
        try:
            self.loop.run_until_complete(self.circle.deliver(caller, peer, method, raw))
        except EntryRefused as fault:
            # What is not settled here yet is sealed later.
            if "does not wait" in fault.message:
                return
            raise AssertionError("an honest proposal was refused") from None

    @rule(index=st.integers(0, 2))
    def crash(self, index):
        """The power fails at one node."""
        member = self.circle.members[index]
        before = digest(member.ledger.chain.state)
        member.crash()
        assert digest(member.ledger.chain.state) == before

    @rule(index=st.integers(0, 2))
    def snapshot(self, index):
        """One node writes a snapshot."""
        self.loop.run_until_complete(self.circle.members[index].ledger.chain.snapshot())

    @rule(index=st.integers(0, 2))
    def restart(self, index):
        """One node starts again, and verifies all."""
        member = self.circle.members[index]
        replays_equal(member)
        member.ledger = member.start()
        self.loop.run_until_complete(member.ledger.verify())

    @rule(index=st.integers(0, 2), silent=st.integers(0, 2))
    def lose(self, index, silent):
        """One node loses its disk; one peer is silent until the end of its recovery."""
        member = self.circle.members[index]
        noted = member.ledger.noted()
        self.circle.gone = {self.circle.members[silent].id} - {member.id}
        self.loop.run_until_complete(member.come_back(noted))
        self.circle.gone = set()
        others = [other.id for other in self.circle.members if other is not member]
        self.loop.run_until_complete(member.ledger.confirm_head(others))
        self.circle.sent.clear()  # What is of an earlier incarnation is refused.
        replays_equal(member)

    @invariant()
    def laws(self):
        limits_hold(self.circle)
        for place, amount in self.booked.items():
            # What was acknowledged to the creditor both have on disk.
            number = place[0] * 100 + place[1] * 10 + place[2]
            for index in place[:2]:
                assert self.circle.members[index].ledger.settled(bytes([number]) * 32) >= amount


Books.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBooks = Books.TestCase


class Killed(BaseException):
    """The process dies."""


class Mortal(MemoryKeyValue):
    """A store whose process dies at its n-th write, before or after it reached the disk."""

    def __init__(self):
        super().__init__()
        self.writes_left: int | None = None
        self.after = False

    def write(self, changes, *, sync):
        if self.writes_left == 0:
            self.writes_left = None
            if self.after:
                super().write(changes, sync=sync)
            raise Killed
        if self.writes_left is not None:
            self.writes_left -= 1
        super().write(changes, sync=sync)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("after", [False, True])
async def test_a_kill_at_any_write_loses_nothing_acknowledged(who, after):
    reached = 0
    for write in range(30):
        circle = Circle(2)
        for member in circle.members:
            member.store = Mortal()
            member.ledger = member.start()
        a, b = circle.members
        victim = circle.members[who]
        victim.store.writes_left, victim.store.after = write, after
        acknowledged: dict[int, int] = {}
        steps = [(a, b, 100, 100, 1), (b, a, 40, 40, 2), (a, b, 50, 150, 1), (a, b, 7, 7, 3)]
        try:
            for creditor, debtor, amount, of, account in steps:
                acknowledged[account] = await collect(
                    creditor, debtor, amount, of=of, account=account
                )
                await victim.ledger.chain.snapshot()
            await a.ledger.set_limit(b.id, 500)
            await b.ledger.set_limit(a.id, 500)
            for member in circle.members:
                await member.ledger.seals.seal_all()
        except Killed:
            reached += 1
        else:
            break
        victim.crash()
        for member in circle.members:
            await member.ledger.retry_pending()
            replays_equal(member)
        books_agree(circle)
        for account, amount in acknowledged.items():
            assert a.ledger.settled(bytes([account]) * 32) >= amount
            assert b.ledger.settled(bytes([account]) * 32) >= amount
        for creditor, debtor, amount, of, account in steps:
            assert await collect(
                creditor, debtor, amount, of=of, account=account
            ) == creditor.ledger.settled(bytes([account]) * 32)
        assert a.ledger.balance(b.id) == 117
        for member in circle.members:
            assert (await member.ledger.verify()).forks == 0
        books_agree(circle)
        for member in circle.members:
            await member.ledger.seals.seal_all()
        for member in circle.members:
            await cubes_agree(circle, member)
    # The first entry opens the account in its own write. The second node starts the seal, and
    # writes its answer, too; four are snapshots.
    assert reached == 6 + (who == 0) * 2 + (1 + who) + 4


@given(order=st.permutations(range(6)), twice=st.lists(st.integers(0, 5), max_size=4))
@settings(max_examples=40, deadline=None)
def test_delivered_halves_commute(order, twice):
    """Six proposals, in any order and some of them again, leave the debtor with one balance."""

    async def go():
        circle = Circle(2)
        a, b = circle.members
        circle.fate = lambda: "request lost"
        for number in range(6):
            with pytest.raises(PeerSilent):
                await collect(a, b, 10 + number, account=number)
        sent = list(circle.sent)
        for index in [*order, *twice]:
            await circle.deliver(*sent[index])
        assert b.ledger.balance(a.id) == -sum(range(10, 16))
        circle.fate = lambda: "pass"
        assert await a.ledger.retry_pending() == 6
        books_agree(circle)
        for member in circle.members:
            await member.ledger.verify()
            replays_equal(member)

    asyncio.run(go())


@given(debts=st.lists(st.tuples(AMOUNTS, st.booleans()), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_no_sum_of_debts_passes_the_limit(debts):
    """What the debtor has not answered counts, too."""

    async def go():
        circle = Circle(2)
        a, b = circle.members
        owed = 0
        for account, (amount, lost) in enumerate(debts):
            passes = owed + amount > STARTER
            circle.fate = lambda lost=lost: "request lost" if lost else "pass"
            try:
                await collect(a, b, amount, account=account)
            except CreditExceeded:
                assert passes
                continue
            except PeerSilent:
                assert lost
            assert not passes
            owed += amount
            limits_hold(circle)
        circle.fate = lambda: "pass"
        await a.ledger.retry_pending()
        assert a.ledger.balance(b.id) == owed

    asyncio.run(go())


def test_vouchers_of_one_lease_may_be_lost_but_the_last():
    """Cumulative vouchers: settling each or only the last gives the same book (law M-2)."""

    async def go(taken):
        circle = Circle(2)
        a, b = circle.members
        settled = 0
        for total in taken:
            settled = await collect(a, b, total - settled, of=total)
        return a.ledger.balance(b.id), b.ledger.balance(a.id)

    vouchers = [10, 25, 70]
    books = {
        asyncio.run(go([v for n, v in enumerate(vouchers) if kept >> n & 1]))
        for kept in range(4, 8)
    }
    assert books == {(70, -70)}
