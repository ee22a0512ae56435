"""Placements under one signature: each counts as if signed alone, and nothing else does."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.storage.test_service import Request
from tests.unit.storage.world import NETWORK, World, content, get, put
from xsc.base.encoding import decode, encode
from xsc.base.errors import RecordInvalid, SignatureInvalid, XscError
from xsc.base.limits import SEALED_PLACEMENTS_MAX, SEALS_KEPT
from xsc.base.merkle import root_of
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.identity.keys import KeyPair, network_id
from xsc.storage import messages
from xsc.storage.delegation import open_placement, open_sent, valid_placements
from xsc.storage.manifest import hash_of
from xsc.storage.messages import ObjectRecord, put_message
from xsc.storage.placement import Placement
from xsc.storage.placement_seal import (
    GATHER_TURNS,
    PlacementSeal,
    PlacementSealer,
    PlacementSeals,
)

OWNER, OTHER = KeyPair(b"o" * 32), KeyPair(b"x" * 32)


def ids(count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(count)]


def seal_of(*placements: bytes, owner: KeyPair = OWNER) -> bytes:
    return sign(PlacementSeal(owner=owner.node_id, placements=placements), owner, NETWORK).raw


def forged(signed: Signed[Placement]) -> bytes:
    """Return a placement with a signature that does not hold."""
    value = decode(signed.raw)
    assert isinstance(value, dict)
    return encode({**value, "sig": bytes(64)})


@pytest.mark.parametrize("count", [1, 2, SEALED_PLACEMENTS_MAX, SEALED_PLACEMENTS_MAX + 1, 70])
async def test_placements_of_some_turns_stand_under_one_seal(count):
    sealer, seals = PlacementSealer(OWNER, NETWORK), PlacementSeals(NETWORK)
    given = []
    for number, ref in enumerate(ids(count)):
        given.append(asyncio.create_task(sealer.seal(ref)))
        if number < GATHER_TURNS - 1:
            await asyncio.sleep(0)
    raws = await asyncio.gather(*given)
    full, rest = divmod(count, SEALED_PLACEMENTS_MAX)
    assert len({raw for raw in raws if raw is not None}) == full + (rest > 1)
    assert raws.count(None) == (rest == 1)
    for ref, raw in zip(ids(count), raws, strict=True):
        assert raw is None or ref in seals.covered(raw, OWNER.node_id)
    # What comes later has a moment of its own.
    assert await sealer.seal(bytes(32)) is None


async def test_who_gives_up_is_in_no_seal_and_takes_nobody_along():
    sealer = PlacementSealer(OWNER, NETWORK)
    first, second, third = (asyncio.create_task(sealer.seal(ref)) for ref in ids(3))
    await asyncio.sleep(0)
    first.cancel()
    raw = await second
    assert raw == await third == seal_of(*ids(3)[1:])
    with pytest.raises(asyncio.CancelledError):
        await first


def test_only_the_owners_seal_in_this_network_counts():
    seals, (one, two) = PlacementSeals(NETWORK), ids(2)
    raw = seal_of(one, two)
    assert seals.covered(raw, OWNER.node_id) == {one, two}
    for fault, wrong, owner in (
        (SignatureInvalid, raw, OTHER),
        (SignatureInvalid, seal_of(one, owner=OTHER), OWNER),
        (
            RecordInvalid,
            sign(PlacementSeal(owner=OTHER.node_id, placements=(one,)), OWNER, NETWORK).raw,
            OWNER,
        ),
        (
            RecordInvalid,
            sign(
                PlacementSeal(owner=OWNER.node_id, placements=(one,)), OWNER, network_id("other")
            ).raw,
            OWNER,
        ),
        (RecordInvalid, b"", OWNER),
    ):
        with pytest.raises(fault):
            seals.covered(wrong, owner.node_id)


def test_every_changed_byte_of_a_seal_is_refused():
    raw = seal_of(*ids(2))
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with pytest.raises(XscError):
            PlacementSeals(NETWORK).covered(changed, OWNER.node_id)


def test_few_seals_are_remembered():
    seals = PlacementSeals(NETWORK)
    for ref in ids(SEALS_KEPT + 9):
        seals.covered(seal_of(ref), OWNER.node_id)
    assert len(seals._known) == SEALS_KEPT


def test_ids_in_a_seal_are_bounded():
    fields = {"v": 1, "owner": OWNER.node_id}
    many = ids(SEALED_PLACEMENTS_MAX + 1)
    assert PlacementSeal.from_value({**fields, "placements": [*many[:-1]]})
    for wrong in ([], [*many], [b"short"]):
        with pytest.raises(RecordInvalid):
            PlacementSeal.from_value({**fields, "placements": wrong})


class Sealed(Request):
    """A put from node 0 to node 1 under a seal."""

    async def send_sealed(self, signed: Signed[Placement], seal: bytes | None, raw=None, sender=0):
        sealed = b"sealed"
        record = ObjectRecord(
            sealed, root_of(sealed), b"", raw or signed.raw, signed.id, 1, seal=seal
        )
        lease = self.world[sender].lease_id(self.world[1].id)
        header, parts = put_message(lease, self.locate, 0, self.shards, record)
        return await self.world[sender].call(self.world[1].id, messages.PUT, header, parts)


async def test_no_placement_stands_for_another():
    world = await World(3).start()
    request, owner = Sealed(world), world[0].key
    signed = request.placement()
    seal = seal_of(signed.id, *ids(2), owner=owner)
    other = request.placement(generation=2)
    theirs = request.placement(signer=2)
    for fault, wrong in (
        # Not in the seal: its own signature decides.
        (SignatureInvalid, request.send_sealed(other, seal, forged(other))),
        (SignatureInvalid, request.send_sealed(signed, None, forged(signed))),
        # In a seal of somebody else, or sent by somebody else.
        (SignatureInvalid, request.send_sealed(signed, seal_of(signed.id, owner=world[2].key))),
        (SignatureInvalid, request.send_sealed(signed, seal, sender=2)),
        (SignatureInvalid, request.send_sealed(theirs, seal_of(theirs.id, owner=owner))),
        (RecordInvalid, request.send_sealed(signed, b"no seal")),
    ):
        with pytest.raises(fault):
            await wrong
    for change in ({"locate": bytes(32)}, {"owner": bytes(32)}, {"columns": (bytes(32),) * 6}):
        wrong_place = request.placement(**change)
        with pytest.raises(RecordInvalid):
            await request.send_sealed(wrong_place, seal_of(wrong_place.id, owner=owner))
    assert world[1].node.used_bytes == 0
    assert world[1].book.used == {}
    await request.send_sealed(signed, seal)
    # And one that the seal does not name, but whose own signature holds.
    await request.send_sealed(request.placement(generation=3), seal)


async def test_a_placement_without_a_signature_of_its_own_harms_only_its_owner():
    world = await World(3).start()
    request = Sealed(world)
    signed = request.placement()
    await request.send_sealed(signed, seal_of(signed.id, owner=world[0].key), forged(signed))
    with pytest.raises(SignatureInvalid):
        open_placement(forged(signed), NETWORK)
    good = request.placement(generation=2)
    kept = [forged(signed), good.raw, b"", b"no placement"]
    assert [placed.raw for placed in valid_placements(kept, NETWORK)] == [good.raw]


async def test_a_host_shows_nobody_a_placement_whose_own_signature_does_not_hold():
    world = await World(3).start()
    request = Sealed(world)
    signed = request.placement()
    await request.send_sealed(signed, seal_of(signed.id, owner=world[0].key), forged(signed))
    manifest_hash = hash_of(b"sealed")
    assert await world[1].node.find(request.locate, manifest_hash) is not None
    ask = {"locate": request.locate, "manifest": manifest_hash}
    answer = await world[2].call(world[1].id, messages.FIND, ask)
    # As if it had none: nothing that its reader could hold against it.
    assert (answer.header, list(answer.parts)) == ({"placements": []}, [])


def test_a_seal_over_its_id_does_not_save_a_placement_of_another_network_or_kind():
    placement = Placement(
        locate=b"l" * 32,
        owner=OWNER.node_id,
        generation=1,
        k=1,
        m=0,
        code_generation=0,
        columns=(b"h" * 32,),
        segments=0,
    )
    signed = sign(placement, OWNER, NETWORK)
    assert open_sent(forged(signed), NETWORK, OWNER.node_id, [signed.id]).id == signed.id
    with pytest.raises(RecordInvalid):
        open_sent(forged(signed), network_id("other"), OWNER.node_id, [signed.id])
    other = sign(PlacementSeal(owner=OWNER.node_id, placements=(bytes(32),)), OWNER, NETWORK)
    with pytest.raises(RecordInvalid):
        open_sent(other.raw, NETWORK, OWNER.node_id, [other.id])


def noted(world):
    """Return what the headers of puts will be added to as hosts get them."""
    headers = []
    for host in world.hosts[1:]:
        take = host.service.handlers()[messages.PUT]

        async def note(caller, header, parts, take=take):
            headers.append(header)
            return await take(caller, header, parts)

        handlers = {**host.service.handlers(), messages.PUT: note}
        host.service.handlers = lambda handlers=handlers: handlers
    return headers


async def test_puts_that_come_together_carry_seals_and_their_placements_hold_alone():
    world = await World(8).start()
    seen = noted(world)
    done = await asyncio.gather(*(put(world[0], content(1_000 + n)) for n in range(8)))
    assert len({header["placement_seal"] for header in seen}) == 1
    for header in seen:
        open_signed(header["placement"], Placement, network=NETWORK, author=world[0].id)
    for number, one in enumerate(done):
        assert await get(world[7], one.capability) == content(1_000 + number)


async def test_a_put_alone_says_nothing_that_releases_before_seals_did_not():
    world = await World(8).start()
    headers = noted(world)
    await put(world[0], content(1_000))
    assert headers
    for header in headers:
        assert set(header) == {"lease", "locate", "generation", "shards", "placement", "seal"}
