"""The laws of payment by proofs: no order of challenges pays more than was held, and nobody gains
by skipping one."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from tests.properties.test_lease import START, STORAGE, C, P, entry_of
from xsc.base.limits import EPOCH_MS, MIB
from xsc.market import account as accounts
from xsc.market import lease, proof
from xsc.market.account import Account
from xsc.market.lease import advance, hold
from xsc.terms.pricing import WORTH

HOURS = 400
TERMS = STORAGE.model_copy(update={"end_ms": START + (HOURS + 24) * EPOCH_MS})
CONTAINED = 24
"""Hours after which silence counts as missing."""


@dataclass
class Side:
    """One side of a pair, as challenges come."""

    role: str
    account: Account = field(init=False)
    entry: object = field(init=False)
    now_ms: int = START

    def __post_init__(self):
        self.account, self.entry = Account(self.role, P, C), entry_of(self.role, TERMS)
        self.account.proven_ms = START
        self.entry.use = hold(TERMS, self.entry.use, 64 * MIB, START)

    def at(self, hour):
        self.now_ms = START + hour * EPOCH_MS

    def decide(self, ok, at_hour=None):
        at_ms = self.now_ms if at_hour is None else START + at_hour * EPOCH_MS
        proof.decide(self.account, [self.entry], at_ms, self.now_ms, ok=ok)

    @property
    def paid(self):
        return accounts.due_micro(self.account, [self.entry], self.now_ms)

    @property
    def counted(self):
        return advance(TERMS, self.entry.use, self.now_ms).used // WORTH


EVENTS = st.lists(st.sampled_from(["ok", "bad", "silence", "skip"]), min_size=1, max_size=60)


@given(EVENTS)
def test_what_is_paid_never_falls_and_is_never_more_than_the_count(events):
    side, last = Side("customer"), 0
    for hour, event in enumerate(events, 1):
        side.at(hour)
        before = side.paid
        assert before == last, "time alone pays nothing"
        if event in {"ok", "bad"}:
            side.decide(event == "ok")
        assert last <= side.paid <= side.counted
        if event == "bad":
            assert side.paid == last, "all since the last ok is void"
        last = side.paid


@given(EVENTS)
def test_both_sides_agree_after_each_answer(events):
    customer, provider = Side("customer"), Side("provider")
    for hour, event in enumerate(events, 1):
        for side in (customer, provider):
            side.at(hour)
            if event in {"ok", "bad"}:
                side.decide(event == "ok")
        assert customer.paid == provider.paid


@given(EVENTS, st.data())
def test_no_customer_gains_by_skipping_a_challenge(events, data):
    """It puts off what it pays: the next ok pays what it did not ask for, and void is what was."""
    honest, lazy = Side("customer"), Side("customer")
    for hour, event in enumerate([*events, "ok"], 1):
        for side in (honest, lazy):
            side.at(hour)
        if event == "ok":
            honest.decide(ok=True)
            if hour == len(events) + 1 or not data.draw(st.booleans()):
                lazy.decide(ok=True)
    assert lazy.paid == honest.paid == honest.counted


@given(st.lists(st.booleans(), min_size=1, max_size=120), st.data())
def test_no_host_gains_by_silence(holds, data):
    """The same is asked again until it is answered: a host that knows what is drawn chooses when.

    It never is paid for an hour that was neither drawn for nor followed by a draw that it passed.
    """
    host, drawn, paid_hours = Side("customer"), None, set()
    last = 0
    for hour in range(1, len(holds) + 1):
        host.at(hour)
        drawn = hour - 1 if drawn is None else drawn
        if not data.draw(st.booleans()) and hour - 1 - drawn < CONTAINED:
            continue
        has = holds[drawn] and hour - 1 - drawn < CONTAINED
        host.decide(has, min(drawn + 1, hour) if has else None)
        if has:
            paid_hours |= set(range(last, drawn + 1))
        last = drawn + 1 if has else hour
        drawn = None
    an_hour = lease.worth(TERMS, 64 * MIB * EPOCH_MS)
    # Each hour was decided by one draw, made when that hour was over, and by no other.
    assert host.paid == len(paid_hours) * an_hour // WORTH
