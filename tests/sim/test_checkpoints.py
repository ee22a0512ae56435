"""Checkpoints of whole nodes are co-signed, and a forked ledger is found by who never met it."""

from dataclasses import replace

import pytest

from tests.sim.network import run
from tests.unit.ledger.test_tree import is_included
from xsc.base.errors import EntryRefused, LedgerDamaged, NotFound, PeerSilent
from xsc.base.keyvalue import prefix_end
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.ledger import tree
from xsc.ledger.chain import SNAPSHOT
from xsc.ledger.checkpoint import draw, is_listed, listed, open_checkpoint
from xsc.ledger.checkpoints import CHECKPOINT_MS, COSIGN, LOOK_MS, TILE, TILE_LEAVES, Leaves
from xsc.ledger.entry import GENESIS, Half, open_half
from xsc.ledger.fork import fork_bytes, open_fork
from xsc.ledger.gossip import COMPARE
from xsc.ledger.proposals import PROPOSE
from xsc.space.paths import UserSpacePaths, below
from xsc.terms.voucher import Voucher

SETTINGS = {"starter_credit": "1000", "probe_interval": "60s"}
DEBT = 500_000


def voucher(debtor, creditor, number):
    said = Voucher(
        account=bytes([number]) * 32,
        provider=creditor.key.node_id,
        customer=debtor.key.node_id,
        number=1,
        amount_micro=DEBT,
        until_ms=0,
        count=None,
    )
    return sign(said, debtor.key, debtor.peers.network)


async def book(creditor, debtor, number):
    await creditor.ledger.collect(voucher(debtor, creditor, number).raw)


async def recognised(world):
    for node in world.nodes:
        for other in world.nodes:
            if other is not node:
                await node.commitments.recognise(other.key.node_id, 100_000)


def published(node, owner):
    raw = node.space.get(UserSpacePaths.CHECKPOINT, owner.key.node_id).value
    return open_checkpoint(raw, network=node.peers.network)


def test_a_checkpoint_is_signed_by_itself_and_co_signed_by_those_that_it_names():
    async def play(world):
        await recognised(world)
        ada, bea, *others = world.nodes
        await book(ada, bea, 1)
        # The first of both to sign seals what both have booked: the next one is over that, too.
        await world.skip(2 * CHECKPOINT_MS + 2 * LOOK_MS, LOOK_MS)
        for author in (ada, bea):
            peers = [node.key.node_id for node in world.nodes if node is not author]
            found = published(others[0], author)
            assert found.cosigners == listed(draw(author.key.node_id, peers))
            assert len(found.cosigners) == 4
            assert found.size == author.ledger.chain.state.next_seq
            assert {*found.signatures} - {author.key.node_id} == {
                peer for peer in peers if is_listed(peer, found.cosigners)
            }
            leaves = Leaves(author.ledger.chain)
            last = found.size - 1
            path = tree.prove_inclusion(last, found.size, leaves.top)
            half = author.ledger.chain.own(last)
            assert is_included(half.id, last, found.size, found.root, path)

    run(1, 6, play, SETTINGS)


def test_with_fewer_than_four_recognised_peers_nobody_co_signs_and_payments_go_on():
    async def play(world):
        ada, bea, _ = world.nodes
        await book(ada, bea, 1)
        mark = await ada.checkpoints.sign()
        assert not mark.cosigners
        await book(ada, bea, 2)
        assert (await ada.checkpoints.sign()).size == mark.size + 1

    run(2, 3, play, SETTINGS)


def test_a_snapshot_is_written_with_each_checkpoint():
    async def play(world):
        ada, bea = world.nodes
        await book(ada, bea, 1)
        chain = ada.ledger.chain
        assert chain.store.get(SNAPSHOT) is None
        await world.skip(CHECKPOINT_MS + 2 * LOOK_MS, LOOK_MS)
        first = chain.open_snapshot(chain.store.get(SNAPSHOT))
        assert first.next_seq >= ada.checkpoints.last().size > 0
        await book(ada, bea, 2)
        await ada.checkpoints.sign()
        assert chain.open_snapshot(chain.store.get(SNAPSHOT)).next_seq > first.next_seq

    run(14, 2, play, SETTINGS)


def test_silent_co_signers_hold_up_nothing_and_sign_when_they_are_back():
    async def play(world):
        await recognised(world)
        ada, bea, *_ = world.nodes
        await book(ada, bea, 1)
        named = [
            index
            for index in range(1, 6)
            if (world.nodes[index].key.node_id)
            in draw(ada.key.node_id, [node.key.node_id for node in world.nodes[1:]])
        ]
        assert (await ada.checkpoints.sign()).is_complete
        for index in named[:2]:
            await world.crash(index)
        await world.skip(300_000, 30_000)
        await ada.ledger.set_limit(bea.key.node_id, 5)
        mark = await ada.checkpoints.sign()
        assert not mark.is_complete
        assert mark.signed_by(mark.cosigners) == 2
        for index in named[:2]:
            await world.restart(index)
        await world.until(lambda: world.sees_all(ada))
        done = await ada.checkpoints.sign()
        assert done.is_complete
        assert done.text == mark.text

    run(3, 6, play, SETTINGS)


def test_a_co_signer_signs_no_second_root_and_no_smaller_tree():
    async def play(world):
        await recognised(world)
        ada, bea, *_ = world.nodes
        for number in (1, 2):
            await book(ada, bea, number)
        mark = await ada.checkpoints.sign()
        signer = next(node for node in world.nodes if is_listed(node.key.node_id, mark.cosigners))

        async def ask(size, root):
            said = type(mark)(mark.network, mark.author, 0, size, root, mark.cosigners).signed(
                ada.key
            )
            header = {"v": 1, "checkpoint": said.raw, "old": mark.size, "path": []}
            return await ada.peers.call(signer.key.node_id, COSIGN, header)

        assert (await ask(mark.size, mark.root)).header["cosigned"]
        for size, words in ((1, "entries, and had"), (5, "not shown to continue")):
            with pytest.raises(EntryRefused, match=words):
                await ask(size, bytes(32))
        assert signer.ledger.chain.forks.of(ada.key.node_id) is None
        with pytest.raises(EntryRefused):
            await ask(mark.size, bytes(32))
        assert signer.ledger.chain.forks.of(ada.key.node_id) is not None

    run(4, 6, play, SETTINGS)


async def forked(world):
    """Let node 0 show node 1 and node 2 two halves of one number."""
    forker, *others = world.nodes
    shown = []
    for number, other in enumerate(others[:2]):
        promise = voucher(other, forker, number)
        half = sign(
            Half(
                kind="post",
                credit=forker.key.node_id,
                debit=other.key.node_id,
                peer=other.key.node_id,
                seq=0,
                prev=GENESIS,
                amount_micro=DEBT,
                account=bytes([number]) * 32,
                receipt=promise.id,
                created_ms=0,
            ),
            forker.key,
            forker.peers.network,
        )
        header = {"v": 1, "half": half.raw, "voucher": promise.raw}
        await forker.peers.call(other.key.node_id, PROPOSE, header)
        shown.append(half)
    return shown


def barred(world):
    who = world.nodes[0].key.node_id
    return [node.scores.grade(who) == "barred" for node in world.nodes[1:]]


def test_a_forked_ledger_is_found_and_barred_by_nodes_that_never_met_its_author():
    async def play(world):
        await forked(world)
        await world.until(lambda: all(barred(world)), 2 * LOOK_MS + 10_000)
        who = world.nodes[0].key.node_id
        for node in world.nodes[1:]:
            (proof,) = node.ledger.chain.forks.all().values()
            assert len(proof) <= 1_024
            assert open_fork(proof, network=None).author == who
            assert node.ledger.limit(who) == 0
            (event,) = node.scores.of(who).events
            assert (event.after, event.evidence) == ("barred", node.ledger.chain.forks.of(who))
        # Each operator pardons for itself.
        await world.nodes[3].forks.pardon(who)
        await world.clock.sleep_ms(LOOK_MS)
        assert barred(world) == [True, True, False]
        assert world.nodes[3].scores.of(who).events[-1].cause == "the operator pardoned its fork"
        with pytest.raises(NotFound):
            await world.nodes[3].forks.pardon(who)
        await world.crash(3)
        await world.restart(3)
        assert barred(world) == [True, True, False]

    run(5, 4, play, SETTINGS)


def test_a_message_that_is_lost_as_a_fork_is_found_only_delays_its_proof():
    async def play(world):
        lost = []
        for node in world.nodes[1:]:

            async def loses(caller, header, parts, on=node.peers.server.handlers[COMPARE]):
                if header["half"] and len(lost) < 2:
                    lost.append(header)
                    raise PeerSilent("it was lost")
                return await on(caller, header, parts)

            node.peers.server.handlers[COMPARE] = loses
        await forked(world)
        await world.until(lambda: all(barred(world)), 4 * LOOK_MS)
        assert len(lost) == 2, "one by each that has seen the forked ledger"

    run(15, 4, play, SETTINGS)


def test_what_was_pardoned_is_barred_again_by_a_later_fork():
    async def play(world):
        _, second = await forked(world)
        await world.until(lambda: all(barred(world)), 2 * LOOK_MS + 10_000)
        who = world.nodes[0].key
        for node in world.nodes[1:]:
            await node.forks.pardon(who.node_id)
        assert barred(world) == [False] * 3
        later = [
            sign(
                second.record.model_copy(update={"seq": 9, "created_ms": at}),
                who,
                second.network,
            ).raw
            for at in (1, 2)
        ]
        await world.nodes[1].ledger.chain.forks.keep(fork_bytes(*later))
        await world.until(lambda: all(barred(world)), 2 * LOOK_MS)

    run(6, 4, play, SETTINGS)


def test_who_asks_what_others_hold_learns_nothing_without_a_half_of_its_own():
    async def play(world):
        forker, ada, bea, _ = world.nodes
        await book(ada, forker, 1)
        asked = {"v": 1, "seen": [[forker.key.node_id, 0, bytes(32)]], "half": None}
        reply = await bea.peers.call(ada.key.node_id, COMPARE, asked)
        assert reply.header["half"] is None
        theirs = open_half(ada.ledger.chain.other(0), network=None)
        asked = {"v": 1, "seen": [], "half": theirs.raw}
        reply = await bea.peers.call(ada.key.node_id, COMPARE, asked)
        assert reply.header["half"] is None
        assert not any(barred(world))

    run(7, 4, play, SETTINGS)


def test_a_liar_that_says_to_have_halves_otherwise_is_shown_one_and_no_more():
    async def play(world):
        forker, ada, liar, _ = world.nodes
        shown = []

        async def lies(caller, header, _parts):
            shown.extend([caller] if header["half"] else [])
            return {"v": 1, "differ": [*range(len(header["seen"]))], "half": None}, ()

        liar.peers.server.handlers[COMPARE] = lies
        for number in range(1, 6):
            await book(ada, forker, number)
            await ada.forks.round()
        await world.clock.sleep_ms(3 * LOOK_MS)
        assert sorted(shown) == sorted({*shown}), "one by each"
        assert ada.key.node_id in shown
        assert not any(barred(world))

    run(9, 4, play, SETTINGS)


def test_a_checkpoint_of_another_incarnation_or_with_strange_signatures_changes_nothing():
    async def play(world):
        await recognised(world)
        ada, bea, *others = world.nodes
        await book(ada, bea, 1)
        mark = await ada.checkpoints.sign()
        await world.clock.sleep_ms(2 * LOOK_MS)
        last = mark
        own = [KeyPair(bytes([200 + number]) * 32) for number in range(4)]
        later = replace(
            last, first_seq=1, cosigners=listed([key.node_id for key in own]), signatures={}
        ).signed(ada.key)
        for key in own:
            later = later.signed(key, 1)
        await ada.space.put_all({UserSpacePaths.CHECKPOINT: later.raw})
        await world.clock.sleep_ms(2 * LOOK_MS)
        for node in others:
            assert node.checkpoints.last_of(ada.key.node_id).text == last.text
        # A co-signer's answer adds its own signature and no other.
        signer = next(node for node in world.nodes if is_listed(node.key.node_id, last.cosigners))

        async def pads(_caller, header, _parts):
            said = open_checkpoint(header["checkpoint"], network=last.network)
            for key in (*own, signer.key):
                said = said.signed(key, 1)
            return {"v": 1, "size": said.size, "cosigned": said.raw}, ()

        signer.peers.server.handlers[COSIGN] = pads
        await ada.ledger.set_limit(bea.key.node_id, 5)
        done = await ada.checkpoints.sign()
        assert done.is_complete
        assert not {key.node_id for key in own} & {*done.signatures}

    run(10, 6, play, SETTINGS)


def test_a_list_that_changes_where_a_tile_ends_is_signed():
    async def play(world):
        ada, bea, *_ = world.nodes
        while ada.ledger.chain.state.next_seq < TILE_LEAVES:
            await ada.ledger.set_limit(bea.key.node_id, ada.ledger.chain.state.next_seq)
        first = await ada.checkpoints.sign()
        assert not first.cosigners
        await recognised(world)
        again = await ada.checkpoints.sign()
        assert again.is_complete
        assert (again.size, again.root) == (TILE_LEAVES, first.root)

    run(11, 6, play, SETTINGS)


def test_a_copy_of_a_home_finds_that_it_signed_more_before_it_signs():
    async def play(world):
        await recognised(world)
        ada, bea, *_ = world.nodes
        await book(ada, bea, 1)
        disk = world.disks[0].after_crash()
        # Nobody but the co-signers hears of this entry.
        await ada.ledger.set_limit(bea.key.node_id, 5)
        assert (await ada.checkpoints.sign()).is_complete
        await world.crash(0)
        world.disks[0] = disk
        with pytest.raises(LedgerDamaged, match="old copy"):
            await world.restart(0)

    run(8, 6, play, SETTINGS)


def test_no_proof_is_kept_against_a_node_that_is_no_peer():
    async def play(world):
        ada, bea, *_ = world.nodes
        stranger = KeyPair(b"s" * 32)
        halves = [
            sign(
                Half(
                    kind="post",
                    credit=stranger.node_id,
                    debit=bea.key.node_id,
                    peer=bea.key.node_id,
                    seq=0,
                    prev=GENESIS,
                    amount_micro=number,
                    account=b"a" * 32,
                    receipt=b"r" * 32,
                    created_ms=0,
                ),
                stranger,
                bea.peers.network,
            ).raw
            for number in (1, 2)
        ]
        proof = fork_bytes(*halves)
        for author in (stranger.node_id, bea.key.node_id):
            await ada.space.put_all({below(UserSpacePaths.FORKS, author): proof})
        await ada.space.put_all({"ledger/forks/none": proof, "ledger/other": proof})
        await world.clock.sleep_ms(2 * LOOK_MS)
        for node in world.nodes:
            assert not node.ledger.chain.forks.all()
        assert not [*bea.parts.stores.state.scan(b"ledger-fork/", b"ledger-fork0")]

    run(12, 4, play, SETTINGS)


def test_a_node_whose_disk_is_damaged_signs_no_root_that_contradicts_its_own():
    async def play(world):
        ada, bea, *_ = world.nodes
        while ada.ledger.chain.state.next_seq < TILE_LEAVES + 5:
            await ada.ledger.set_limit(bea.key.node_id, ada.ledger.chain.state.next_seq)
        first = await ada.checkpoints.sign()
        ((key, _),) = ada.parts.stores.state.scan(TILE, prefix_end(TILE))
        ada.parts.stores.state.write([(key, bytes(32))], sync=True)
        # Also of the same size, where the list of co-signers has changed.
        await recognised(world)
        with pytest.raises(LedgerDamaged):
            await ada.checkpoints.sign()
        await ada.ledger.set_limit(bea.key.node_id, 7)
        with pytest.raises(LedgerDamaged):
            await ada.checkpoints.sign()
        assert ada.checkpoints.last().text == first.text

    run(13, 6, play, SETTINGS)
