"""Which damaged shards are worth storing anew where they are."""

import pytest

from tests.sim.network import content, get, put, run
from xsc.base.errors import RecordInvalid
from xsc.base.limits import DAMAGED_TOLD_MAX, MIB, SEGMENT_BYTES
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.inventory import HeldColumn, HeldObject
from xsc.storage.object.manifest import Manifest, expected_digest
from xsc.storage.object.placement import column_states
from xsc.storage.repair.survey import Survey, damaged_segments, good_for
from xsc.storage.shardstore import bodies
from xsc.storage.transfer.get import Located

OWN, OTHER = b"o" * 32, b"x" * 32
NODES = [bytes([node]) * 32 for node in range(6)]


def manifest_of(segments):
    return Manifest(
        owner=OWN,
        k=4,
        m=2,
        generation=0,
        segment_bytes=SEGMENT_BYTES,
        size_bytes=segments * SEGMENT_BYTES,
        nonces=tuple(index.to_bytes(12, "big") for index in range(segments)),
        tags=(b"t" * 16,) * segments,
        roots=tuple(index.to_bytes(32, "big") for index in range(segments * 6)),
        inline=None,
        survive=(0,) * 4,
    )


def held(manifest, column, bad=(), *, customer=OWN, damaged=None, segments=None, digest=None):
    row = HeldColumn(
        customer,
        column,
        len(manifest.nonces) if segments is None else segments,
        expected_digest(manifest, column) if digest is None else digest,
        len(bad) if damaged is None else damaged,
        bad=tuple(bad),
    )
    return HeldObject((row,), "ok")


def answers_of(manifest, **change):
    answers = {node: held(manifest, column) for column, node in enumerate(NODES)}
    answers[NODES[2]] = held(manifest, 2, **change)
    return answers


@pytest.mark.parametrize(
    ("segments", "change", "patched"),
    [
        (8, {"bad": [3]}, (3,)),
        (8, {"bad": [3, 7]}, (3, 7)),
        (8, {"bad": [1, 3, 7]}, None),
        (2, {"bad": [1]}, (1,)),
        (1, {"bad": [0]}, None),
        (8, {"bad": [3], "customer": OTHER}, None),
        (8, {"bad": [3], "damaged": 2}, None),
        (8, {"bad": [], "damaged": 1}, None),
        (8, {"bad": [3], "digest": b"d" * 32}, None),
        (8, {"bad": []}, None),
    ],
)
def test_few_damaged_shards_of_an_own_column_are_patched(segments, change, patched):
    manifest = manifest_of(segments)
    found = damaged_segments(survey_of(manifest, answers_of(manifest, **change)))
    assert found == ({} if patched is None else {2: patched})


def survey_of(manifest, answers):
    states = column_states(manifest, NODES, answers)
    located = Located(b"L" * 32, manifest, b"", ())
    return Survey(None, located, NODES, states, answers, OWN, frozenset(), frozenset())


def good(manifest, answers, segment):
    return good_for(survey_of(manifest, answers), segment)


def test_a_damaged_column_still_serves_the_segments_that_are_well():
    manifest = manifest_of(8)
    answers = answers_of(manifest, bad=[3])
    answers[NODES[4]] = None
    assert good(manifest, answers, 3) == [0, 1, 3, 5]
    assert good(manifest, answers, 2) == [0, 1, 2, 3, 5]
    unsaid = answers_of(manifest, bad=[], damaged=1)
    assert 2 not in good(manifest, unsaid, 0)


def test_a_stat_names_damaged_segments():
    manifest = manifest_of(8)
    for bad in ((), (3,), tuple(range(DAMAGED_TOLD_MAX))):
        told = held(manifest, 2, bad)
        answer = messages.stat_answer(told, bytes(32))
        assert answer["columns"][0]["bad"] == [*bad]
        assert messages.read_stated(answer).columns == told.columns
    answer["columns"][0]["bad"].append(5)
    with pytest.raises(RecordInvalid):
        messages.read_stated(answer)
    answer["columns"][0]["bad"] = [-1]
    with pytest.raises(RecordInvalid):
        messages.read_stated(answer)


def damage(disk, locate, places):
    """Flip a byte of the data of some shards of a host."""
    hit = 0
    for key, raw in list(disk.bodies.scan(bodies.BODIES)):
        index_key = bodies.decode_body(raw).index_key if key.startswith(bodies.BODIES) else b""
        if not index_key.startswith(bodies.SHARDS + locate):
            continue
        segment, column, _ = bodies.column_of_key(index_key)
        if (column, segment) in places:
            disk.bodies.write([(key, raw[:-1] + bytes([raw[-1] ^ 1]))], sync=True)
            hit += 1
    return hit


def test_damage_in_every_column_is_repaired_in_place_and_nothing_else_is_sent():
    async def play(world):
        owner = world.nodes[0]
        data = content(2 * SEGMENT_BYTES + MIB)
        capability = await put(owner, data)
        locate = parse_verify(capability).locate
        before = (await owner.storage.stat(capability)).hosts
        # Two columns in each of three segments: no column is whole, and any segment readable.
        places = {(column, column // 2) for column in range(6)}
        assert sum(damage(disk, locate, places) for disk in world.disks) == 6
        stat = await owner.storage.stat(capability)
        assert {host.state for host in stat.hosts} == {"corrupt"}
        sent = len(world.net.trace)
        done = await owner.storage.repair(capability)
        assert (done.moved, done.left, done.patched) == ((), (), 6)
        puts = [event for event in world.net.trace[sent:] if event.path.endswith("storage.put")]
        assert sum(event.what == "sent" for event in puts) == 6
        stat = await owner.storage.stat(capability)
        assert stat.hosts == before, "every column is where it was"
        assert not any(node.shards.damaged for node in world.nodes)
        assert await get(world.nodes[3], capability) == data
        for lease in owner.market.store.all("customer"):
            host = next(n for n in world.nodes if n.key.node_id == lease.peer)
            assert lease.use.held_bytes == host.shards.usage.get(lease.id, 0)
        for node in world.nodes:
            for lease in node.market.store.all("provider"):
                assert lease.use.held_bytes == node.shards.usage.get(lease.id, 0)

    settings = {"repair_grace": "1h", "repair_interval": "1d", "probe_interval": "15s"}
    run(95, 7, play, settings)


def test_a_disk_that_lost_much_of_a_column_is_not_trusted_with_it():
    async def play(world):
        owner = world.nodes[0]
        data = content(2 * SEGMENT_BYTES + MIB)
        capability = await put(owner, data)
        locate = parse_verify(capability).locate
        hosts = (await owner.storage.stat(capability)).hosts
        places = {(2, 0), (2, 1)}
        assert sum(damage(disk, locate, places) for disk in world.disks) == 2
        done = await owner.storage.repair(capability)
        assert ([item.shard for item in done.moved], done.patched) == ([2], 0)
        assert done.moved[0].from_ == hosts[2].node
        assert done.moved[0].to != hosts[2].node
        assert await get(world.nodes[3], capability) == data

    settings = {"repair_grace": "1h", "repair_interval": "1d", "probe_interval": "15s"}
    run(96, 8, play, settings)
