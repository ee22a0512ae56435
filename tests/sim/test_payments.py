"""A debt paid off the books: both operators say so, the creditor signs, nobody else can."""

import pytest

from tests.sim.network import content, put, run
from xsc.base.errors import ArgumentInvalid, EntryRefused
from xsc.base.limits import EPOCH_MS, LEDGER_RETRY_MS, MIB
from xsc.identity.envelope import Signed
from xsc.ledger import payments
from xsc.ledger.audit import verify_settled
from xsc.ledger.payments import ACCOUNT, AGAIN_MS
from xsc.terms.voucher import Voucher

DEBTOR, CREDITOR = 0, 1
SETTINGS = {
    "settle_interval": "1h",
    "starter_credit": "1000",
    "storage_price_gib_hour": "10240",
    "storage_price_max_gib_hour": "40960",
}


async def indebted(world):
    """Let a node owe another something; return both, and how much."""
    debtor, creditor = world.nodes[DEBTOR], world.nodes[CREDITOR]
    await put(debtor, content(40 * MIB))
    await world.skip(2 * EPOCH_MS, EPOCH_MS)
    await debtor.market.settlement.settle_all()
    owed = creditor.ledger.balance(debtor.key.node_id)
    assert owed > 100
    assert debtor.ledger.balance(creditor.key.node_id) == -owed
    return debtor, creditor, owed


def books(debtor, creditor):
    """Return what is owed, as each of both has it."""
    return (
        -debtor.ledger.balance(creditor.key.node_id),
        creditor.ledger.balance(debtor.key.node_id),
    )


def report(amount_micro, *, is_payer=True, before_micro=0, said_ms=1):
    """Return what makes of a node and a peer what the node's operator reports, as it is sent."""

    def of(own, peer):
        around = (own, peer) if is_payer else (peer, own)
        return payments.report(*around, before_micro + amount_micro, said_ms).to_value()

    return of


async def ask(node, peer, paid):
    """Return what a peer answers to a report."""
    said = paid and paid(node.key.node_id, peer)
    return (await node.peers.call(peer, ACCOUNT, {"v": 1, "paid": said})).header


async def book_it(payer, payee, paid):
    """Have a payer book what it says its payee reported."""
    said = Voucher.from_value(paid)
    under = Signed(said, payee, payer.peers.network, said.id, said.to_bytes())
    await payer.ledger.proposals.book(under)


def story(play, seed=61, settings=None):
    run(seed, 3, play, {**SETTINGS, **(settings or {})})


@pytest.mark.parametrize("first", ["debtor", "creditor"])
def test_what_both_operators_say_was_paid_is_taken_off_and_signed_by_both(first):
    async def play(world):
        debtor, creditor, owed = await indebted(world)
        sides = [(debtor, creditor), (creditor, debtor)]
        (one, other) = sides if first == "debtor" else sides[::-1]
        assert not await one[0].ledger.payments.say(one[1].key.node_id, 60)
        assert books(debtor, creditor) == (owed, owed)
        # The debtor's word is shown to the creditor; the creditor's is not there to be echoed.
        heard = 60 if first == "debtor" else 0
        assert other[0].ledger.payments.heard(other[1].key.node_id) == heard
        assert await other[0].ledger.payments.say(other[1].key.node_id, 60)
        assert books(debtor, creditor) == (owed - 60, owed - 60)
        for node in (debtor, creditor):
            peer = creditor if node is debtor else debtor
            assert node.ledger.payments.waiting(peer.key.node_id) is None
            (row,) = node.ledger.entries(limit=1)
            assert (row.kind, row.amount_micro, row.state) == ("paid", 60, "settled")
            await node.ledger.verify()
            text = verify_settled(node.ledger.export(row.entry_id))
            assert "signed by both" in text
            assert "credits off the books" in text
        # The same again is another payment, which both must speak of again.
        await world.clock.sleep_ms(2 * LEDGER_RETRY_MS)
        assert books(debtor, creditor) == (owed - 60, owed - 60)
        assert not await one[0].ledger.payments.say(one[1].key.node_id, 60)
        assert await other[0].ledger.payments.say(other[1].key.node_id, owed - 60) is False
        assert books(debtor, creditor) == (owed - 60, owed - 60)

    story(play)


def test_nobody_wipes_its_own_debt_by_a_word():
    """A debtor that says, signs and books what it likes owes what it owed."""

    async def play(world):
        debtor, creditor, owed = await indebted(world)
        me, peer = debtor.key.node_id, creditor.key.node_id
        for amount in (1, owed):
            assert not await debtor.ledger.payments.say(peer, amount)
        # A report of its own making, or none of the creditor's operator.
        for _ in range(2):
            with pytest.raises(EntryRefused, match="does not say now that this was paid"):
                await book_it(debtor, peer, report(owed)(me, peer))
        for is_payer in (True, False):
            told = await ask(debtor, peer, report(owed, is_payer=is_payer))
            assert told["paid"] is None
        await world.clock.sleep_ms(3 * LEDGER_RETRY_MS)
        assert books(debtor, creditor) == (owed, owed)
        # What the creditor's operator says of another amount is another payment.
        assert not await creditor.ledger.payments.say(me, owed - 1)
        assert books(debtor, creditor) == (owed, owed)

    story(play)


def test_a_creditor_alone_books_no_payment_and_no_more_than_is_owed():
    async def play(world):
        debtor, creditor, owed = await indebted(world)
        assert not await creditor.ledger.payments.say(debtor.key.node_id, 5)
        await world.clock.sleep_ms(2 * LEDGER_RETRY_MS)
        assert books(debtor, creditor) == (owed, owed)
        for node, peer in ((debtor, creditor), (creditor, debtor)):
            with pytest.raises(ArgumentInvalid, match="less than"):
                await node.ledger.payments.say(peer.key.node_id, owed + 1)
        with pytest.raises(ArgumentInvalid, match="neither"):
            await creditor.ledger.payments.say(world.nodes[2].key.node_id, 1)
        # Taken back, it does not count, whoever agrees later.
        assert not await creditor.ledger.payments.say(debtor.key.node_id, 0)
        assert not await debtor.ledger.payments.say(creditor.key.node_id, 5)
        assert books(debtor, creditor) == (owed, owed)

    story(play)


@pytest.mark.parametrize("then", [0, 5])
def test_what_the_creditors_operator_took_back_or_corrected_is_not_booked(then):
    """To have said it is not enough: the operator must say the amount when it is booked, too."""

    async def play(world):
        debtor, creditor, owed = await indebted(world)
        me, peer = debtor.key.node_id, creditor.key.node_id
        await creditor.ledger.payments.say(me, owed)
        told = (await ask(debtor, peer, report(owed)))["paid"]
        assert told["amount_micro"] == owed
        assert not await creditor.ledger.payments.say(me, then)

        with pytest.raises(EntryRefused, match="does not say now that this was paid"):
            await book_it(debtor, peer, told)
        assert books(debtor, creditor) == (owed, owed)
        # What was corrected is booked, and nothing more under the report of before.
        assert await debtor.ledger.payments.say(peer, 5) is (then == 5)
        with pytest.raises(EntryRefused, match="does not say now that this was paid"):
            await book_it(debtor, peer, told)
        await world.clock.sleep_ms(3 * LEDGER_RETRY_MS)
        assert books(debtor, creditor) == (owed - then, owed - then)
        # The same amount again is another report, which is booked.
        assert await debtor.ledger.payments.say(peer, owed - then) is False
        assert await creditor.ledger.payments.say(me, owed - then)
        assert books(debtor, creditor) == (0, 0)

    story(play)


def test_a_debtor_cannot_read_what_its_creditor_said_and_echo_it():
    async def play(world):
        debtor, creditor, owed = await indebted(world)
        me, peer = debtor.key.node_id, creditor.key.node_id
        assert not await creditor.ledger.payments.say(me, owed)
        echoed = report(owed)
        for paid in (
            None,
            report(owed - 1),
            report(owed, before_micro=1),
            report(owed, is_payer=False),
            echoed,
            report(1),
        ):
            told = (await ask(debtor, peer, paid))["paid"]
            assert (told is not None) is (paid is echoed)
            await world.clock.sleep_ms(2 * LEDGER_RETRY_MS)
            assert debtor.ledger.payments.heard(peer) == 0

    story(play)


def test_a_payment_that_its_creditor_says_twice_is_booked_once():
    """The first report was taken up while the creditor could not be asked."""

    async def play(world):
        debtor, creditor, owed = await indebted(world)
        me, peer = debtor.key.node_id, creditor.key.node_id
        await creditor.ledger.payments.say(me, 7)
        told = await ask(debtor, peer, report(7))
        await world.clock.sleep_ms(1)
        world.net.partition(world.name(DEBTOR), world.name(CREDITOR))
        await debtor.ledger.payments.say(peer, 7)
        await debtor.ledger.payments._hear(peer, told)
        assert len(debtor.ledger.chain.state.open) == 1
        await creditor.ledger.payments.say(me, 7)
        world.net.heal()
        # The first entry is refused, since the creditor said it anew; the next is tried an hour on.
        paid = (owed - 7, owed - 7)
        await world.until(lambda: books(debtor, creditor) == paid, within_ms=2 * AGAIN_MS)
        await world.clock.sleep_ms(3 * LEDGER_RETRY_MS)
        assert books(debtor, creditor) == (owed - 7, owed - 7)
        assert len(debtor.ledger.chain.state.open) == 0

    story(play)


def test_a_payment_that_was_said_while_the_other_was_away_is_booked_by_itself():
    async def play(world):
        debtor, creditor, owed = await indebted(world)
        assert not await debtor.ledger.payments.say(creditor.key.node_id, 7)
        world.net.partition(world.name(DEBTOR), world.name(CREDITOR))
        assert not await creditor.ledger.payments.say(debtor.key.node_id, 7)
        await world.crash(DEBTOR)
        debtor = await world.restart(DEBTOR)
        assert books(debtor, creditor) == (owed, owed)
        world.net.heal()
        await world.until(lambda: books(debtor, creditor) == (owed - 7, owed - 7))
        await world.clock.sleep_ms(3 * LEDGER_RETRY_MS)
        assert books(debtor, creditor) == (owed - 7, owed - 7)

    story(play)


def test_a_payment_gives_room_up_to_the_limit_again():
    async def play(world):
        debtor, creditor, owed = await indebted(world)
        before = await debtor.ledger.payments.standing(creditor.key.node_id)
        assert before.limit_micro == creditor.ledger.limit(debtor.key.node_id)
        me = debtor.key.node_id
        assert before.left_micro == creditor.market.headroom.credit_left(me)
        await debtor.ledger.payments.say(creditor.key.node_id, owed)
        assert await creditor.ledger.payments.say(me, owed)
        after = await debtor.ledger.payments.standing(creditor.key.node_id)
        assert after.left_micro == before.left_micro + owed + owed // 2, "half of it is credit"
        await creditor.ledger.set_limit(me, 0)
        below = await debtor.ledger.payments.standing(creditor.key.node_id)
        assert below.limit_micro == 0
        assert below.left_micro < 0

    story(play)
