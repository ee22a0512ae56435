"""The laws of storage, over whole nodes and any order of what can happen to them.

One stateful model: nodes that put, read, delete, repair, crash, are cut off, lose bytes,
come and go, beside a plain dict of what was acknowledged. What must hold is in the
invariants and in `settle`. A step is drawn by Hypothesis, time is virtual, and an oracle
reads the disks of all nodes to know what still lies where.

`TEST_LAWS_EXAMPLES` and `TEST_LAWS_STEPS` make it longer, and different each time
(CONTRIBUTING.md).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.sim.loop import SimulatedLoop, finish
from tests.sim.network import World, content, stream
from xsc.base.encoding import decode
from xsc.base.errors import ObjectUnknown, XscError
from xsc.base.limits import SEGMENT_BYTES
from xsc.base.merkle import root_of
from xsc.identity.envelope import open_signed
from xsc.identity.keys import network_id
from xsc.net.calls import batch
from xsc.net.calls.frame import Reply, unpack
from xsc.storage.catalogue.objects import MANIFESTS
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.manifest import Manifest, hash_of, open_manifest
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Body
from xsc.storage.transfer.get import roots_of
from xsc.storage.transfer.host_client import together
from xsc.terms.storage_receipt import DeletionOrder, StorageReceipt

EXAMPLES = int(os.environ.get("TEST_LAWS_EXAMPLES", "0"))
STEPS = int(os.environ.get("TEST_LAWS_STEPS", "20"))
NETWORK = network_id("simulation")
NODES = 8
NODES_MAX = 10
DOWN_MAX = 2
OBJECTS_MAX = 8
SETTINGS = {
    "storage_capacity": "16GiB",
    "starter_credit": "100000",
    "repair_grace": "60s",
    "repair_interval": "5min",
    "probe_interval": "30s",
}
SIZES = (0, 1, 4_096, 4_097, 70_000, 300_001)
LARGE = (SEGMENT_BYTES, 2 * SEGMENT_BYTES + 17)
SEEDS = st.integers(0, 10**6)
MOMENTS_MS = st.integers(1, 250)


@dataclass
class Kept:
    """An object that was acknowledged, and how it can be found on the disks."""

    capability: str
    data: bytes
    owner: int
    name: str
    locate: bytes
    manifest_hash: bytes
    manifest: Manifest


@dataclass
class Receipts:
    """What hosts said that they hold, by host, customer and place; deletions end it."""

    held: dict[tuple, StorageReceipt] = field(default_factory=dict)
    ended_ms: dict[tuple[int, bytes], int] = field(default_factory=dict)


def place_of(body: Body) -> tuple[bytes, bytes, int, int]:
    """Customer, object, segment and column of a shard."""
    segment, column, customer = formats.column_of_key(body.index_key)
    return customer, formats.owner_of(body.index_key)[0], segment, column


class Bodies:
    """What lies on a disk; roots are computed once a value."""

    def __init__(self) -> None:
        self._roots: dict[bytes, bytes] = {}

    def of(self, disk) -> list[Body]:
        return [
            formats.decode_body(raw)
            for _, raw in disk.bodies.scan(formats.BODIES, formats.BODIES + b"\xff" * 9)
        ]

    def is_whole(self, body: Body) -> bool:
        data = bytes(body.data)
        if data not in self._roots:
            self._roots[data] = root_of(data)
        return self._roots[data] == body.proof


class Laws(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: SimulatedLoop | None = None
        self.kept: dict[str, Kept] = {}
        self.gone: dict[str, Kept] = {}
        self.unsure = 0
        self.receipts = Receipts()
        self.bodies = Bodies()
        self.lost: set[int] = set()
        self.bitten: set[tuple[int, bytes]] = set()
        self.number = 0

    def do(self, work):
        assert self.loop is not None
        return self.loop.run_until_complete(work)

    @initialize(seed=SEEDS, least=st.integers(0, 5), more=st.integers(0, 40))
    def begin(self, seed, least, more):
        self.world = World(seed, NODES, SETTINGS)
        self.loop = SimulatedLoop(self.world.clock)
        self.world.net.delay_ms = (least, least + more)
        self.do(self.world.start())
        self._watch()

    def teardown(self):
        if self.loop is None:
            return
        try:
            if sys.exc_info()[0] is None:
                self.settle()
        finally:
            self.do(together(node.tasks.stop() for node in self.world.nodes))
            finish(self.loop)

    # Who and what there is

    def up(self) -> list[int]:
        return [index for index in range(self.world.count) if self.is_up(index)]

    def is_up(self, index: int) -> bool:
        return self.world.net.is_up(self.world.name(index))

    def down(self) -> list[int]:
        return [i for i in range(self.world.count) if not self.is_up(i) and i not in self.lost]

    def pick(self, indexes: list[int], draw: int) -> int:
        return sorted(indexes)[draw % len(indexes)]

    def reaches(self, one: int, other: int) -> bool:
        pair = frozenset((self.world.name(one), self.world.name(other)))
        return one == other or (
            self.is_up(one) and self.is_up(other) and pair not in self.world.net._cut
        )

    @property
    def healthy(self) -> bool:
        """Nobody is away, and everybody sees it so."""
        here = self.up()
        ids = {index: self.world.nodes[index].key.node_id for index in here}
        return (
            not self.down()
            and not self.world.net._cut
            and all(
                self.world.nodes[one].health.is_up(ids[other])
                for one in here
                for other in here
                if one != other
            )
        )

    def meets(self) -> None:
        """Let nodes that came while others were away be known to those."""
        for one in self.up():
            for other in self.up():
                node, peer = self.world.nodes[one], self.world.nodes[other]
                if one < other and peer.key.node_id not in node.peers.peers():
                    self.do(self._join(node, peer))

    async def _join(self, node, peer) -> None:
        await peer.peers.join(node.peers.invite(60_000))

    def note(self, capability: str, data: bytes, owner: int, name: str) -> None:
        verify = parse_verify(capability)
        sealed = self.world.disks[owner].state.get(MANIFESTS + verify.manifest_hash)
        assert sealed is not None, "an acknowledged object is on its owner's disk"
        self.kept[capability] = Kept(
            capability,
            data,
            owner,
            name,
            verify.locate,
            verify.manifest_hash,
            open_manifest(sealed, verify),
        )

    def next_content(self, size: int) -> bytes:
        self.number += 1
        return content(size, seed=self.number)

    # The oracle

    def good(self, index: int, kept: Kept, column: int) -> bool:
        """Say whether a node's disk holds a whole column of an object."""
        wanted = {
            segment: roots_of(kept.manifest, segment)[column]
            for segment in range(len(kept.manifest.nonces))
        }
        for body in self.bodies.of(self.world.disks[index]):
            if not body.is_shard:
                continue
            _, locate, segment, at = place_of(body)
            if (
                (locate, at) == (kept.locate, column)
                and body.proof == wanted.get(segment)
                and self.bodies.is_whole(body)
            ):
                del wanted[segment]
        return not wanted

    def must_read(self, reader: int, kept: Kept) -> bool:
        """Say whether an object is within what it survives, as a reader sees the network.

        Wherever its columns are, and whoever stored them: no placement counts.
        """
        near = [index for index in self.up() if self.reaches(reader, index)]
        records = [
            body
            for index in near
            for body in self.bodies.of(self.world.disks[index])
            if not body.is_shard and hash_of(body.data) == kept.manifest_hash
        ]
        if kept.manifest.inline is not None:
            return bool(records) or reader == kept.owner
        code = kept.manifest
        good = {
            column
            for column in range(code.k + code.m)
            for index in near
            if self.good(index, kept, column)
        }
        return len(good) >= code.k and (bool(records) or reader == kept.owner)

    # What the hosts say

    def _watch(self) -> None:
        exchange = self.world.net.exchange

        async def watched(source, target, request):
            self._sent(target, request.path, b"".join(request.body))
            response = await exchange(source, target, request)
            if response.status == 200:
                self._answered(target, request.path, response)
            return response

        self.world.net.exchange = watched

    def _sent(self, target: str, path: str, body: bytes) -> None:
        if path.endswith("storage.delete"):
            host = int(target.removeprefix("node-"))
            raw = unpack(memoryview(body)).header["order"]
            locate = open_signed(raw, DeletionOrder, network=NETWORK).record.locate
            self.receipts.ended_ms[host, locate] = self.world.clock.now_ms()
            for place in [p for p in self.receipts.held if p[0] == host and p[2] == locate]:
                del self.receipts.held[place]

    def _answered(self, target: str, path: str, response) -> None:
        if path.endswith("storage.put"):
            headers = [unpack(memoryview(b"".join(response.body))).header]
        elif path.endswith(batch.METHOD):
            frame = unpack(memoryview(b"".join(response.body)))
            reply = Reply(frame.header, [part.data for part in frame.parts])
            answers = batch.unpack_answers(reply, len(frame.header["answers"]))
            headers = [decode(a.header) for a in answers if a.status == 200]
        else:
            return
        host = int(target.removeprefix("node-"))
        for header in headers:
            if "receipt" not in header:
                continue
            receipt = open_signed(header["receipt"], StorageReceipt, network=NETWORK).record
            # A deletion that was sent meanwhile may have come first, or not.
            if receipt.stored_ms <= self.receipts.ended_ms.get((host, receipt.locate), -1):
                continue
            for shard in receipt.shards:
                place = (host, receipt.customer, receipt.locate, shard.segment, shard.column)
                self.receipts.held[place] = receipt

    # Storing

    def _put(self, owner: int, data: bytes, name: str) -> None:
        node = self.world.nodes[owner]
        healthy = self.healthy
        try:
            done = self.do(node.storage.put(stream(data), name=name, size_hint=len(data)))
        except XscError:
            assert not healthy, "a put failed while every node was there"
        else:
            self.note(done.capability, data, owner, name)

    @precondition(lambda self: len(self.kept) < OBJECTS_MAX)
    @rule(owner=SEEDS, size=st.sampled_from(SIZES), name=st.sampled_from("abc"))
    def put(self, owner, size, name):
        """Under a few names: every other put is a new version of one."""
        self._put(self.pick(self.up(), owner), self.next_content(size), name)

    @precondition(lambda self: len(self.kept) < OBJECTS_MAX)
    @rule(
        owner=SEEDS,
        size=st.sampled_from(LARGE),
        moment_ms=MOMENTS_MS,
        what=st.sampled_from(["client", "owner", "host"]),
        host=SEEDS,
    )
    def put_that_is_broken_off_goes_on(self, owner, size, moment_ms, what, host):
        index = self.pick(self.up(), owner)
        data = self.next_content(size)
        upload = self.number.to_bytes(32, "big")

        async def begin():
            storage = self.world.nodes[index].storage
            source = stream(data)
            return await storage.put(source, name="on", size_hint=len(data), resume=upload)

        async def broken():
            putting = asyncio.ensure_future(begin())
            await self.world.clock.sleep_ms(moment_ms)
            dies = {"owner": index, "host": self.pick(self.up(), host)}.get(what)
            if dies is not None:
                await self.world.crash(dies)
            if dies in (None, index):
                putting.cancel()
            return (await asyncio.gather(putting, return_exceptions=True))[0]

        done = self.do(broken())
        if not self.is_up(index):
            self.do(self.world.restart(index))
        for _ in range(2):
            if not isinstance(done, BaseException):
                break
            assert isinstance(done, XscError | asyncio.CancelledError), done
            healthy = self.healthy
            try:
                done = self.do(begin())
            except XscError as fault:
                done = fault
            assert not (healthy and isinstance(done, XscError)), f"a put cannot go on: {done}"
        if isinstance(done, BaseException):
            self.unsure += 1
        else:
            self.note(done.capability, data, index, "on")

    @precondition(lambda self: self.owned())
    @rule(which=SEEDS)
    def delete(self, which):
        kept = self.owned()[which % len(self.owned())]
        self.do(self.world.nodes[kept.owner].storage.rm(kept.capability))
        self.gone[kept.capability] = self.kept.pop(kept.capability)

    @precondition(lambda self: self.owned() and len(self.down()) < DOWN_MAX)
    @rule(which=SEEDS, moment_ms=MOMENTS_MS, owner_dies=st.booleans(), host=SEEDS)
    def delete_and_crash(self, which, moment_ms, owner_dies, host):
        kept = self.owned()[which % len(self.owned())]

        async def play():
            deleting = asyncio.ensure_future(
                self.world.nodes[kept.owner].storage.rm(kept.capability)
            )
            await self.world.clock.sleep_ms(moment_ms)
            dies = kept.owner if owner_dies else self.pick(self.up(), host)
            await self.world.crash(dies)
            if dies == kept.owner:
                deleting.cancel()
            await asyncio.gather(deleting, return_exceptions=True)

        self.do(play())
        if not self.is_up(kept.owner):
            self.do(self.world.restart(kept.owner))
        entry = self.world.nodes[kept.owner].storage.catalogue.entry(kept.manifest_hash)
        if entry is None or entry.deleting:
            self.gone[kept.capability] = self.kept.pop(kept.capability)

    def owned(self) -> list[Kept]:
        """Return the objects whose owner is there."""
        return [kept for kept in self.kept.values() if self.is_up(kept.owner)]

    # Reading

    async def _read(self, reader: int, kept: Kept, start: int, stop: int) -> bytes:
        opened = await self.world.nodes[reader].storage.open(kept.capability)
        return b"".join([bytes(chunk) async for chunk in opened.stream(start, stop)])

    def _check_read(self, reader: int, kept: Kept, start: int, stop: int) -> None:
        # Before and after: what a repair moves meanwhile may be on its way.
        must = self.must_read(reader, kept)
        try:
            data = self.do(self._read(reader, kept, start, stop))
        except XscError as fault:
            reason = f"node-{reader} cannot read what is there: {fault.message}"
        else:
            assert data == kept.data[start:stop], "wrong bytes"
            return
        assert not (must and self.must_read(reader, kept)), reason

    @precondition(lambda self: self.kept)
    @rule(which=SEEDS, reader=SEEDS)
    def get(self, which, reader):
        kept = list(self.kept.values())[which % len(self.kept)]
        self._check_read(self.pick(self.up(), reader), kept, 0, len(kept.data))

    @precondition(lambda self: self.kept)
    @rule(which=SEEDS, reader=SEEDS, start=SEEDS, length=SEEDS)
    def get_a_range(self, which, reader, start, length):
        kept = list(self.kept.values())[which % len(self.kept)]
        low = start % (len(kept.data) + 1)
        high = low + length % (len(kept.data) - low + 1)
        self._check_read(self.pick(self.up(), reader), kept, low, high)

    # Trouble

    @precondition(lambda self: len(self.down()) < DOWN_MAX)
    @rule(index=SEEDS)
    def crash(self, index):
        self.do(self.world.crash(self.pick(self.up(), index)))

    @precondition(lambda self: self.down())
    @rule(index=SEEDS)
    def restart(self, index):
        self.do(self.world.restart(self.pick(self.down(), index)))
        if not self.world.net._cut:
            self.meets()

    @precondition(lambda self: not self.world.net._cut)
    @rule(index=SEEDS, others=st.sets(st.integers(0, NODES_MAX - 1), min_size=1))
    def cut_off(self, index, others):
        one = self.pick(self.up(), index)
        for other in others - {one}:
            self.world.net.partition(self.world.name(one), self.world.name(other))

    @precondition(lambda self: self.world.net._cut)
    @rule()
    def heal(self):
        self.world.net.heal()
        self.meets()

    @precondition(lambda self: self.kept)
    @rule(which=SEEDS, host=SEEDS, body=SEEDS, place=SEEDS)
    def corrupt(self, which, host, body, place):
        """Change one byte of what a host stores of an object."""
        kept = list(self.kept.values())[which % len(self.kept)]
        index = self.pick(self.up(), host)
        values = self.world.disks[index].bodies
        found = [
            key
            for key, raw in values.scan(formats.BODIES, formats.BODIES + b"\xff" * 9)
            if (shard := formats.decode_body(raw)).is_shard and place_of(shard)[1] == kept.locate
        ]
        if not found:
            return
        key = found[body % len(found)]
        raw = bytearray(values.get(key))
        head = 2 + int.from_bytes(raw[:2], "big")
        raw[head + place % (len(raw) - head)] ^= 1
        values.write([(key, bytes(raw))], sync=True)
        self.bitten.add((index, key))

    @precondition(lambda self: self.world.count < NODES_MAX and not self.world.net._cut)
    @rule()
    def join(self):
        self.do(self.world.join())

    @precondition(lambda self: self.world.count - len(self.lost) > NODES and not self.down())
    @rule(index=SEEDS)
    def leave(self, index):
        """For good, and with its disk; whoever read by its objects reads on, but not as owner."""
        gone = self.pick(self.up(), index)
        self.do(self.world.lose(gone))
        self.lost.add(gone)
        for place in [place for place in self.receipts.held if place[0] == gone]:
            del self.receipts.held[place]

    @rule(seconds=st.integers(1, 200))
    def time_passes(self, seconds):
        self.do(self.world.clock.sleep_ms(seconds * 1000))

    @precondition(lambda self: self.owned())
    @rule(which=SEEDS)
    def repair(self, which):
        kept = self.owned()[which % len(self.owned())]
        try:
            self.do(self.world.nodes[kept.owner].storage.repair(kept.capability))
        except XscError:
            assert not self.must_read(kept.owner, kept), "what can be read can be looked at"

    # What holds at any time

    @invariant()
    def accounting_is_a_full_scan(self):
        if self.loop is None:
            return
        for index in self.up():
            node = self.world.nodes[index]
            audit = self.do(node.shards.audit())
            assert not audit.index_faults, audit.index_faults
            assert not audit.unreadable
            assert audit.bytes_held == audit.bytes_counted == node.shards.used_bytes
            assert sum(node.shards.usage.values()) == node.shards.used_bytes
            assert node.shards.used_bytes <= node.shards.writer.capacity_bytes

    @invariant()
    def receipts_exist_only_for_what_can_be_read_back(self):
        if self.loop is None:
            return
        there: dict[int, set[tuple]] = defaultdict(set)
        for index in range(self.world.count):
            for key, raw in self.world.disks[index].bodies.scan(
                formats.BODIES, formats.BODIES + b"\xff" * 9
            ):
                body = formats.decode_body(raw)
                if body.is_shard and ((index, key) in self.bitten or self.bodies.is_whole(body)):
                    there[index].add(place_of(body))
        for place in self.receipts.held:
            assert place[1:] in there[place[0]], "a receipt for what is not on the disk"

    @invariant()
    def the_list_is_what_was_acknowledged(self):
        if self.loop is None:
            return
        for index in self.up():
            storage = self.world.nodes[index].storage
            listed = {row.capability for row in storage.ls() if not row.name.startswith(".")}
            mine = {kept.capability for kept in self.kept.values() if kept.owner == index}
            assert mine <= listed
            assert len(listed - mine) <= self.unsure
            assert listed.isdisjoint(self.gone)

    @invariant()
    def what_was_deleted_is_gone_for_its_owner(self):
        if self.loop is None:
            return
        for kept in self.gone.values():
            if self.is_up(kept.owner):
                try:
                    self.do(self.world.nodes[kept.owner].storage.open(kept.capability))
                except (ObjectUnknown, XscError):
                    continue
                raise AssertionError("its owner opened what it had deleted")

    # What holds once all are back

    def settle(self):
        """Everybody is back, time passes: all is whole, what was deleted takes no byte."""
        self.world.net.heal()
        for index in self.down():
            self.do(self.world.restart(index))
        self.meets()
        self.do(self.world.until(lambda: self.healthy, 300_000))
        ids = {node.key.node_id: index for index, node in enumerate(self.world.nodes)}
        self.do(self.world.clock.sleep_ms(self.world.nodes[0].config.moved_kept_ms + 10_000))
        for index in self.up():
            self.do(self.world.nodes[index].storage.retry_deletions())
        for index in self.up():
            node = self.world.nodes[index]
            assert node.shards.writer.reserved_bytes == 0
            for _, entry in node.storage.catalogue.entries():
                # Who is gone for good can confirm nothing.
                left = {ids[at.node] for at in entry.held} if entry.deleting else set()
                assert left <= self.lost, "a deletion is not completed"
        for kept in self.kept.values():
            for reader in self.up():
                self._check_read(reader, kept, 0, len(kept.data))
        ended = {kept.locate for kept in self.gone.values() if kept.owner not in self.lost}
        for index in self.up():
            for body in self.bodies.of(self.world.disks[index]):
                assert formats.owner_of(body.index_key)[0] not in ended, (
                    f"node-{index} keeps what was deleted"
                )
        self._books_agree()

    def _books_agree(self) -> None:
        """Customers and hosts count the same bytes under every lease."""
        ids = {node.key.node_id: index for index, node in enumerate(self.world.nodes)}
        for index in self.up():
            named, _ = self.world.nodes[index].storage.orders()
            for lease in self.world.nodes[index].market.leases():
                host = ids.get(lease.entry.peer)
                if lease.entry.role != "customer" or host is None or not self.is_up(host):
                    continue
                views = {v.entry.id: v for v in self.world.nodes[host].market.leases()}
                held = self.world.nodes[host].shards.usage.get(lease.entry.id, 0)
                theirs = views[lease.entry.id].use.held_bytes if lease.entry.id in views else 0
                assert theirs == held, "a host bills what it does not hold"
                # What a put that was killed left behind no record names.
                low, high = named[lease.entry.id], max(held, named[lease.entry.id])
                assert named[lease.entry.id] <= held, "a record names what is not there"
                assert low <= lease.use.held_bytes <= high, "a host is not paid, or paid too much"


Laws.TestCase.settings = settings(
    max_examples=EXAMPLES or 2,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
# The bound of all tests, but for the long run.
test_laws = pytest.mark.timeout(0 if EXAMPLES else 300)(Laws.TestCase)
