from tests.unit.ledger.circle import NETWORK, digest
from xsc.base.limits import AMOUNT_MAX
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.ledger.entry import GENESIS, Half, counter_half, void_half
from xsc.ledger.incarnation import Incarnation
from xsc.ledger.state import LedgerState, append, settle, take_old
from xsc.ledger.validation import (
    check_chain,
    check_counter,
    check_incarnation,
    check_old,
    check_own_next,
    check_proposal,
)
from xsc.terms.voucher import Voucher

A, B, C = (KeyPair(bytes([n]) * 32) for n in (1, 2, 3))
LEASE = b"l" * 32


def voucher(amount=100, *, by=B, customer=None, provider=A, account=LEASE, number=1):
    said = Voucher(
        account=account,
        provider=provider.node_id,
        customer=(customer or by).node_id,
        number=number,
        amount_micro=amount,
        count=None,
        until_ms=0,
    )
    return sign(said, by, NETWORK)


def post(under, *, by=A, debtor=B, seq=0, prev=GENESIS, **other):
    half = Half(
        kind="post",
        credit=by.node_id,
        debit=debtor.node_id,
        peer=debtor.node_id,
        seq=seq,
        prev=prev,
        amount_micro=under.record.amount_micro,
        account=under.record.account,
        receipt=under.id,
        created_ms=0,
    )
    return sign(half.model_copy(update=other), by, NETWORK)


def limit(kind="limit", *, state, amount=1_000, peer=B):
    half = Half(
        kind=kind,
        credit=A.node_id,
        peer=peer.node_id,
        debit=peer.node_id,
        seq=state.next_seq,
        prev=state.head,
        amount_micro=amount,
        created_ms=0,
    )
    return sign(half, A, NETWORK)


def code(refusal):
    return refusal.code if refusal is not None else None


def proposed(half, under=None, *, state=None, caller=A):
    state = state or LedgerState(B.node_id)
    return code(check_proposal(state, half, caller.node_id, under or voucher()))


def answered(state, half, under):
    """Let B answer a proposal, in its state."""
    answer = counter_half(half, seq=state.next_seq, prev=state.head, created_ms=0)
    own = sign(answer, B, NETWORK)
    assert check_own_next(state, own, voucher=under, initiator=half) is None
    append(state, own, half)
    return own


def test_a_debtor_answers_what_its_voucher_says():
    assert proposed(post(voucher())) is None


def test_the_first_rule_broken_is_named_in_a_fixed_order():
    foreign = sign(
        post(voucher()).record.model_copy(update={"peer": A.node_id}), B, NETWORK
    )  # B, the debtor, proposes its own debt
    cases = [
        (post(voucher()), {"caller": C}, "creditor_not_caller"),
        (foreign, {"caller": B}, "creditor_not_caller"),
        (post(voucher(), debtor=C), {}, "debtor_not_me"),
        (post(voucher(), link=GENESIS), {}, "fields_wrong"),
        (post(voucher(), kind="limit", account=None, receipt=None), {}, "kind_unknown"),
        (post(voucher(), amount_micro=0), {}, "amount_zero"),
        (post(voucher()), {"under": voucher(number=2)}, "voucher_wrong"),
        (post(voucher(), account=b"m" * 32), {}, "voucher_wrong"),
        (post(voucher(by=C)), {"under": voucher(by=C)}, "voucher_wrong"),
        (
            post(voucher(by=C, customer=B)),
            {"under": voucher(by=C, customer=B)},
            "voucher_wrong",
        ),
        (post(voucher(provider=C)), {"under": voucher(provider=C)}, "voucher_wrong"),
        (post(voucher(), prev=b"p" * 32), {}, "fork"),
        (post(voucher(), amount_micro=99), {}, "amount_wrong"),
        (post(voucher(), amount_micro=101), {}, "amount_wrong"),
    ]
    for half, how, wanted in cases:
        assert proposed(half, **how) == wanted


def test_what_is_settled_is_not_owed_again():
    state = LedgerState(B.node_id)
    first = post(voucher(100))
    answered(state, first, voucher(100))
    again = voucher(150, number=2)
    later = {"seq": 1, "prev": first.id}
    assert proposed(post(again, **later), again, state=state) == "amount_wrong"
    assert proposed(post(again, amount_micro=50, **later), again, state=state) is None
    assert state.balances[A.node_id] == -100


def test_the_same_number_is_the_same_entry_or_a_fork():
    state = LedgerState(B.node_id)
    first = post(voucher())
    answered(state, first, voucher())
    assert proposed(first, state=state) == "exists"
    other = voucher(200, number=2)
    assert proposed(post(other), other, state=state) == "fork"
    assert proposed(post(voucher(), created_ms=1), state=state) == "fork"


def test_two_halves_in_one_place_are_a_fork():
    state = LedgerState(B.node_id)
    first = post(voucher(), seq=5, prev=b"4" * 32)
    answered(state, first, voucher())

    def seen(**how):
        return code(check_chain(state, post(voucher(), **how)))

    assert code(check_chain(state, first)) == "exists"
    assert seen(seq=5, prev=b"4" * 32, created_ms=1) == "fork"
    assert seen(seq=6, prev=b"5" * 32) == "fork"
    assert seen(seq=6, prev=first.id) is None
    assert seen(seq=4, prev=b"3" * 32) == "fork"
    assert seen(seq=7, prev=b"6" * 32) is None


def test_a_balance_stays_within_63_bits():
    state = LedgerState(B.node_id, balances={A.node_id: -AMOUNT_MAX})
    assert proposed(post(voucher(1)), voucher(1), state=state) == "amount_overflow"
    state = LedgerState(B.node_id, balances={A.node_id: 1 - AMOUNT_MAX})
    assert proposed(post(voucher(1)), voucher(1), state=state) is None
    assert proposed(post(voucher(AMOUNT_MAX)), voucher(AMOUNT_MAX)) is None


def test_an_old_entry_is_one_that_both_signed_whoever_shows_it():
    half, under = post(voucher()), voucher()

    def answer(by=B, to=half, **other):
        made = counter_half(to, seq=4, prev=GENESIS, created_ms=9)
        return sign(made.model_copy(update=other), by, NETWORK)

    assert check_old(half, answer(), under) is None
    assert check_old(answer(), half, under) is None
    assert code(check_old(half, half, under)) == "answer_wrong"
    assert code(check_old(half, answer(amount_micro=9), under)) == "answer_wrong"
    assert code(check_old(answer(link=GENESIS), half, under)) == "answer_wrong"
    assert code(check_old(half, answer(), voucher(number=2))) == "voucher_wrong"
    assert code(check_old(half, answer(), voucher(by=C, customer=B))) == "voucher_wrong"
    void = post(voucher(), kind="void")
    assert code(check_old(void, answer(to=void), under)) == "kind_unknown"


def test_a_new_half_is_of_its_authors_present_incarnation():
    record = Incarnation(first_seq=50, noted=GENESIS, created_ms=0)
    told = sign(record, A, NETWORK)

    def checked(seq, prev=b"p" * 32, known=told):
        return code(check_incarnation(known, post(voucher(), seq=seq, prev=prev)))

    assert checked(0, GENESIS, None) is checked(49, known=None) is None
    assert checked(49) == "incarnation_over"
    assert checked(50) == "fork"
    assert checked(50, told.id) is None
    assert checked(51) is None


def test_a_half_that_speaks_for_another_is_not_the_own():
    state = LedgerState(A.node_id)
    of_b = limit(state=state, peer=C).record.model_copy(update={"credit": B.node_id})
    assert of_b.author == B.node_id
    assert code(check_own_next(state, sign(of_b, A, NETWORK))) == "author_wrong"
    assert code(check_own_next(state, sign(limit(state=state).record, B, NETWORK))) == (
        "author_wrong"
    )


def test_what_is_owed_to_a_peer_is_lent_by_it_without_a_limit():
    state = LedgerState(A.node_id, balances={B.node_id: -100})
    assert check_own_next(state, post(voucher(100)), voucher=voucher(100), limit_micro=0) is None
    more = check_own_next(state, post(voucher(101)), voucher=voucher(101), limit_micro=0)
    assert code(more) == "limit_exceeded"
    assert check_own_next(state, post(voucher(101)), voucher=voucher(101)) is None, "of long ago"


def old(amount, under, *, seq=0):
    """Return an entry of an incarnation before, as A has it: its half and B's answer."""
    half = post(under, seq=seq, amount_micro=amount)
    made = counter_half(half, seq=7 + seq, prev=GENESIS, created_ms=0)
    return half, sign(made, B, NETWORK)


def test_an_old_entry_counts_as_far_as_its_debtor_promised():
    for promised, covered in ((100, set()), (99, {0}), (0, {0})):
        state = LedgerState(A.node_id)
        under = voucher(promised)
        half, answer = old(100, under)
        take_old(state, half, answer, under.record)
        assert state.covered == covered
        assert state.balances.get(B.node_id, 0) == (0 if covered else 100)
        assert state.seen.get(B.node_id, 7).id == answer.id, "counted or not, it was seen"
    state = LedgerState(A.node_id)
    under = voucher(0)
    half, answer = old(1, under)
    take_old(state, half, answer, under.record)
    assert state.covered == {0}


def test_what_was_noted_shows_the_old_halves_before_it():
    for noted_seq, shown in ((3, {}), (4, {B.node_id: 100})):
        state = LedgerState(A.node_id, noted={B.node_id: 100}, noted_seq=noted_seq)
        under = voucher()
        take_old(state, *old(100, under, seq=3), under.record)
        assert state.shown == shown
        assert state.unproven_micro(B.node_id) == 100 - sum(shown.values())


def test_what_the_own_side_owes_unproven_lends_the_peer_nothing():
    state = LedgerState(A.node_id, noted={B.node_id: -50})
    assert state.unproven_micro(B.node_id) == -50
    assert state.exposure(B.node_id) == 0


def test_an_answer_says_what_was_proposed():
    half = post(voucher())

    def answer(by=B, **other):
        made = counter_half(half, seq=0, prev=GENESIS, created_ms=9)
        return sign(made.model_copy(update=other), by, NETWORK)

    assert check_counter(half, answer()) is None
    for wrong in (
        {"link": GENESIS},
        {"link": None},
        {"amount_micro": 99},
        {"account": GENESIS},
        {"kind": "void"},
        {"receipt": None},
        {"debit": C.node_id, "by": C},
        {"peer": B.node_id, "by": A},
    ):
        assert code(check_counter(half, answer(**wrong))) == "answer_wrong"
    other_network = sign(answer().record, B, network_id("other"))
    assert code(check_counter(half, other_network)) == "answer_wrong"


def test_the_creditor_keeps_its_limit_with_what_is_unanswered():
    state = LedgerState(A.node_id)

    def next_post(amount, account, **how):
        under = voucher(amount, account=account)
        half = post(under, seq=state.next_seq, prev=state.head, **how)
        return half, under

    def check(half, under, limit_micro=100):
        return check_own_next(state, half, voucher=under, limit_micro=limit_micro)

    half, under = next_post(1, b"1" * 32)
    assert code(check(half, under, 0)) == "limit_exceeded"
    append(state, limit(state=state, amount=100))
    assert state.limits == {B.node_id: 100}
    half, under = next_post(60, b"1" * 32)
    assert check(half, under) is None
    append(state, half)
    assert (state.exposure(B.node_id), state.balances) == (60, {})
    more, under = next_post(41, b"2" * 32)
    assert code(check(more, under)) == "limit_exceeded"
    fits, under = next_post(40, b"2" * 32)
    assert check(fits, under) is None
    busy, under = next_post(1, b"1" * 32)
    assert code(check_own_next(state, busy, voucher=under)) == "account_busy"
    settle(
        state, half.record, sign(counter_half(half, seq=0, prev=GENESIS, created_ms=0), B, NETWORK)
    )
    assert (state.exposure(B.node_id), state.balances[B.node_id]) == (60, 60)


def test_what_cannot_stand_next_in_the_own_chain():
    state = LedgerState(A.node_id)
    append(state, limit(state=state))
    at = {"seq": 1, "prev": state.head}
    good, under = post(voucher(), **at), voucher()
    assert check_own_next(state, good, voucher=under) is None

    def refused(half, **how):
        return code(check_own_next(state, half, **({"voucher": under} | how)))

    assert refused(post(voucher(by=A, provider=B), by=B, debtor=A, **at)) == "author_wrong"
    assert refused(post(voucher(), seq=2, prev=state.head)) == "sequence_wrong"
    assert refused(post(voucher(), seq=1, prev=GENESIS)) == "previous_wrong"
    assert refused(good, voucher=None) == "voucher_wrong"
    assert refused(good, voucher=voucher(number=9)) == "voucher_wrong"
    assert refused(good, initiator=good) == "fields_wrong"
    assert refused(post(voucher(), amount_micro=0, **at)) == "amount_zero"
    assert refused(post(voucher(), amount_micro=7, **at)) == "amount_wrong"
    assert refused(limit("open", state=state), voucher=None) is None
    own_debt = post(voucher(), debit=A.node_id, credit=B.node_id, **at)
    assert refused(own_debt) == "fields_wrong"
    link = post(voucher(), link=GENESIS, **at)
    assert refused(link) == "answer_wrong"
    assert refused(link, initiator=good) == "answer_wrong"


def test_only_an_unanswered_entry_is_withdrawn():
    state = LedgerState(A.node_id)
    append(state, limit(state=state))
    half = post(voucher(), seq=1, prev=state.head)
    append(state, half)

    def void(**other):
        made = void_half(half.record, seq=state.next_seq, prev=state.head, created_ms=0)
        return sign(made.model_copy(update=other), A, NETWORK)

    assert code(check_own_next(state, void(account=b"n" * 32))) == "nothing_to_void"
    assert code(check_own_next(state, void(amount_micro=1))) == "nothing_to_void"
    assert check_own_next(state, void()) is None
    before = digest(state)
    append(state, void())
    assert digest(state) != before
    assert (state.exposure(B.node_id), state.open, state.voided) == (0, {}, {1})
    assert code(check_own_next(state, void())) == "nothing_to_void"
