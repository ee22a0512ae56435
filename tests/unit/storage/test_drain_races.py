"""A node that leaves: words, counts and proofs that come at once, and what cannot be checked."""

import asyncio

import pytest

from tests.unit.storage.test_races import play
from tests.unit.storage.world import NETWORK, Lease, content, finished, put
from xsc.base.errors import RecordInvalid, SpaceExhausted
from xsc.base.limits import SEGMENT_BYTES
from xsc.base.merkle import root_of
from xsc.identity.envelope import sign
from xsc.storage import bodies
from xsc.storage.capability import parse_verify
from xsc.storage.delegation import open_placement, rank_of
from xsc.storage.drain import LEAVING, MOVED, OWN, PROVED, DrainState
from xsc.storage.leaving import Leaving
from xsc.storage.messages import ObjectRecord
from xsc.storage.placement import Placement
from xsc.storage.proving import ATTEST
from xsc.terms.storage_receipt import StorageReceipt


def kept_word(host):
    return DrainState.from_bytes(host.state.get(OWN))


def test_a_deletion_that_comes_with_the_cancelling_does_not_undo_it():
    async def story(world):
        drain = world[1].service.drain
        await drain.begin()
        await drain.note_deleted(b"a" * 32, 5)
        assert kept_word(world[1]).released_bytes == 5
        await asyncio.gather(drain.cancel(), drain.note_deleted(b"b" * 32, 5))
        assert not drain.active
        assert not kept_word(world[1]).leaving, "as a restart would read it"

    play(story)


def test_a_proof_that_comes_with_the_cancelling_is_not_kept_for_the_next_leave():
    async def story(world):
        owner, leaver = world[0], world[1]
        done = await put(owner, content(50_000), code=(1, 1))
        assert leaver.id in done.hosts
        owner.service.mender.look()
        await leaver.service.drain.begin()
        await leaver.service.drain.tell()
        cancelling = []

        def begun(method, _):
            if method == MOVED and not cancelling:
                cancelling.append(asyncio.ensure_future(leaver.service.drain.cancel()))

        leaver.before = begun
        ref = parse_verify(done.capability).manifest_hash
        assert (await owner.service.mender.mend(ref)).moved
        await finished(world, world.clock.sleep_ms(60_000))
        await owner.service.mender.mend(ref)
        await asyncio.gather(*cancelling)
        assert cancelling
        assert not list(leaver.state.scan(PROVED, PROVED + b"\xff"))
        await leaver.service.drain.begin()
        await leaver.service.drain.count()
        assert (await leaver.service.drain.status()).moved_objects == 0

    play(story, 5)


def test_a_word_that_could_not_be_kept_is_heard_when_it_is_said_again():
    async def story(world):
        host, leaver = world[0], world[1]
        raw = sign(Leaving(leaving=True, said_ms=1), leaver.key, NETWORK).raw
        drain, write = host.service.drain, host.state.write

        def full(_changes, *, sync):
            raise SpaceExhausted("the disk is full")

        host.state.write = full
        with pytest.raises(SpaceExhausted):
            await leaver.call(host.id, LEAVING, {"said": raw})
        assert drain.leaving() == frozenset()
        host.state.write = write
        await leaver.call(host.id, LEAVING, {"said": raw})
        assert drain.leaving() == {leaver.id}

    play(story)


def test_a_proof_that_nothing_here_can_be_held_against_is_refused():
    async def story(world):
        owner, leaver, thief = world[0], world[1], world[2]
        verify = parse_verify((await put(owner, content(1_000), code=(1, 1))).capability)
        await leaver.service.drain.begin()
        placement = Placement(
            locate=verify.locate,
            owner=thief.id,
            generation=1,
            k=1,
            m=1,
            code_generation=0,
            columns=(thief.id, thief.id),
            segments=0,
        )
        placed = sign(placement, thief.key, NETWORK)
        receipt = StorageReceipt(
            host=thief.id,
            customer=thief.id,
            lease_id=bytes(32),
            locate=verify.locate,
            generation=0,
            shards=(),
            manifest=verify.manifest_hash,
            placement=placed.id,
            stored_ms=1,
        )
        header = {"placement": placed.raw, "receipt": sign(receipt, thief.key, NETWORK).raw}
        with pytest.raises(RecordInvalid, match="another owner"):
            await thief.call(leaver.id, MOVED, header)
        for key, raw in list(leaver.bodies.scan(bodies.BODIES, bodies.BODIES + b"\xff")):
            leaver.bodies.write([(key, raw[:-1] + bytes([raw[-1] ^ 1]))], sync=True)
        with pytest.raises(RecordInvalid, match="damaged"):
            await thief.call(leaver.id, MOVED, header)
        assert (await leaver.service.drain.count()).left_objects == 1

    play(story)


def test_what_another_customer_placed_under_that_id_keeps_nobody_from_proving():
    """Whoever has a lease can store a placement of its own beside the record that it found."""

    async def story(world):
        owner, leaver, thief = world[0], world[1], world[5]
        done = await put(owner, content(50_000), code=(1, 1))
        verify = parse_verify(done.capability)
        owner.service.mender.look()
        await leaver.service.drain.begin()
        await leaver.service.drain.tell()
        assert (await owner.service.mender.mend(verify.manifest_hash)).moved
        placed = open_placement(owner.service.entry(verify.manifest_hash).placement, NETWORK)
        for node in set(placed.placement.columns):
            found = await world.by_id[node].node.find(verify.locate, verify.manifest_hash)
            own = placed.placement.model_copy(update={"owner": thief.id, "generation": 2**40})
            raw = sign(own, thief.key, NETWORK)
            record = ObjectRecord(
                sealed=bytes(found.sealed),
                sealed_root=root_of(found.sealed),
                manifest_hash=verify.manifest_hash,
                placement=raw.raw,
                placement_id=raw.id,
                placement_generation=rank_of(2**40),
            )
            lease = Lease(node, thief.lease_id(node))
            await thief.service._reach.store(lease, verify.locate, 0, shards=[], record=record)
        await finished(world, world.clock.sleep_ms(61_000))
        await owner.service.mender.mend(verify.manifest_hash)
        look = await leaver.service.drain.count()
        assert look.left_objects == 0

    play(story, 6)


def test_a_deletion_waits_for_one_page_of_a_proof_and_not_for_all(monkeypatch):
    """Each page has the new host read megabytes; there can be thousands."""
    for module in ("leaving", "proving"):
        monkeypatch.setattr(f"xsc.storage.{module}.DRAIN_PAGE_SEGMENTS", 1)

    async def story(world):
        owner, leaver = world[0], world[1]
        done = await put(owner, content(3 * SEGMENT_BYTES), code=(1, 1))
        owner.service.mender.look()
        await leaver.service.drain.begin()
        await leaver.service.drain.tell()
        ref = parse_verify(done.capability).manifest_hash
        assert (await finished(world, owner.service.mender.mend(ref))).moved
        deleting = []

        def attested(method, _):
            if method == ATTEST and not deleting:
                deleting.append(asyncio.ensure_future(owner.service.rm(done.capability)))

        for host in world.hosts[2:]:
            host.before = attested
            host.delay = lambda method: 5 * (method == ATTEST)
        await finished(world, owner.service.mender.mend(ref))
        assert not (await finished(world, deleting[0])).partly
        asked = [method for _, method in owner.calls].count(ATTEST)
        assert 1 <= asked < 3
        assert not any(host.node.used_bytes for host in world.hosts)

    play(story, 4)
