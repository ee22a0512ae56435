"""The stateful model: a world with one liar in it, and steps that follow from a seed.

A world lives for ROUNDS seeds, because to start one costs as much as a seed. A seed
draws steps, of honest nodes and of the adversary; after each the laws are checked. Now
and then, and at the end of a world, the adversary falls silent, and everything that an
honest node does must work again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from tests.sim.adversary.forge import Forge
from tests.sim.adversary.laws import (
    Kept,
    LawBroken,
    LoopMeter,
    MeteredExecutor,
    MeteredSandbox,
    MeteredTransport,
    Oracle,
    WatchedLog,
    expect,
)
from tests.sim.adversary.messages import HEADERS, message, published
from tests.sim.adversary.proxy import Manner, Proxy
from tests.sim.loop import SimulatedLoop, finish
from tests.sim.network import World, content, get, put
from tests.unit.compute.programs import wasm
from xsc.allocation.declaring import Statement
from xsc.base.errors import XscError
from xsc.base.ids import to_text
from xsc.base.jobs import JobSpec
from xsc.base.limits import EPOCH_MS, OTHERS_GET_MS_MAX, OTHERS_PUT_MS_MAX, PEER_TIMEOUT_MS
from xsc.identity.keys import network_id
from xsc.node.build import Node, Parts
from xsc.space.limits import HEAD_INTERVAL_MS
from xsc.space.paths import UserSpacePaths
from xsc.space.store import SpaceStore
from xsc.storage.catalogue.objects import MANIFESTS
from xsc.storage.object.capability import ReadCapability, VerifyCapability, parse_verify
from xsc.storage.object.manifest import open_manifest
from xsc.storage.transfer.get import roots_of
from xsc.storage.transfer.host_client import together
from xsc.terms.pricing import PRICE_UNIT, SLOT_UNIT
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

ROUNDS = 10
"""Seeds that share a world."""
STEPS = 9
FOE = 0
NODES = 7
"""The adversary, and six honest nodes: with one of these away, an object can still be healed."""
OBJECTS_MAX = 6
SPACE_PATHS = ("nodes/one", "nodes/two", "nodes/three/four")
SIZES = (0, 1, 4_097, 20_000, 70_000)
SETTINGS = {
    "storage_capacity": "16GiB",
    # High enough for seconds and small runs to be worth micro-credits.
    "storage_price_gib_hour": "10240",
    "storage_price_max_gib_hour": "40960",
    "compute_price_gfuel": "10000",
    "compute_price_max_gfuel": "40000",
    "probe_interval": "60s",
    "repair_grace": "60s",
    "repair_interval": "10min",
    "settle_interval": "60s",
    "booking_interval": "60s",
    "services_listen": "8080",
    "moved_kept": "10s",
    "guard": "all",
}
RECOVERY_MS = 300_000


class HostileWorld(World):
    """Nodes of which one has a liar at its transport."""

    def __init__(self, seed: int, rng: Random) -> None:
        super().__init__(seed, NODES, SETTINGS)
        self.forge = Forge(rng, self.key(FOE), network_id("simulation"))
        self.forge.now_ms = self.clock.now_ms
        self.oracle = Oracle(self, FOE, meter=LoopMeter(self.clock))
        self.proxy: Proxy | None = None

    def parts(self, index: int, seed: bytes) -> Parts:
        parts = super().parts(index, seed)
        assert self.oracle.meter is not None
        executor = MeteredExecutor(self.oracle.meter)
        if index == FOE:
            # A loop of it can have begun in a task of an honest node, which is metered.
            self.proxy = Proxy(parts.transport, self.forge, self.clock)
            own = {"transport": self.proxy, "executor": executor}
            return Parts(**{**fields_of(parts), **own})
        transport = MeteredTransport(self.net, self.place(index)).meter(
            self.oracle.meter, index, self.name(FOE)
        )
        log, sandbox = WatchedLog(), MeteredSandbox(executor)
        self.oracle.logs[index], self.oracle.sandboxes[index] = log, sandbox
        own = {"log": log, "sandbox": sandbox, "executor": executor, "transport": transport}
        return Parts(**{**fields_of(parts), **own})


async def _write_unchecked(space: SpaceStore, path: str, value: bytes) -> None:
    """Write into an own space what its schemas may refuse."""
    async with space._turns.of(space.owner):
        await space._write(await space._table(space.owner), {path: value})


def fields_of(parts: Parts) -> dict[str, Any]:
    return {name: getattr(parts, name) for name in Parts.__slots__}


Step = Callable[["Play"], None]


class Play:
    """One world, and what happens in it. Every step writes a line to `story`."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.story: list[str] = []
        self.kept: list[Kept] = []
        self.number = seed * 1_000_000
        self.works: list[asyncio.Task[Any]] = []
        self.world = HostileWorld(seed, self.rng)
        self.oracle = self.world.oracle
        self.oracle.kept = self.kept
        self.loop = SimulatedLoop(self.world.clock)
        self.world.net.delay_ms = (1, 20)
        self.do(self._begin())

    async def _begin(self) -> None:
        await self.world.start()
        nodes = self.world.nodes
        for index in (1, 2):
            await self._recognise(index, self.oracle.foe)
        await nodes[FOE].commitments.recognise(nodes[1].key.node_id, 200_000)
        for node in nodes:
            for path in SPACE_PATHS:
                await node.space.put(path, self.rng.randbytes(20))
            await node.space.put("large", bytes(5_000))
        self.oracle.watch()

    def close(self) -> None:
        for work in self.works:
            work.cancel()
        self.do(together(node.tasks.stop() for node in self.world.nodes))
        finish(self.loop)
        if self.oracle.meter is not None:
            self.oracle.meter.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @property
    def proxy(self) -> Proxy:
        assert self.world.proxy is not None
        return self.world.proxy

    @property
    def forge(self) -> Forge:
        return self.world.forge

    def node(self, index: int) -> Node:
        return self.world.nodes[index]

    def pick(self, indexes: list[int]) -> int:
        return self.rng.choice(indexes)

    def tell(self, text: str) -> None:
        self.story.append(f"{self.world.clock.monotonic_ms():>9} {text}")

    # One seed

    def run(self, seed: int, steps: int = STEPS) -> None:
        """Play a seed.

        Raises:
            LawBroken: what does not hold, and after which steps.
        """
        self.rng.seed(seed)
        self.story = [f"seed {seed} in the world of {seed - seed % ROUNDS}"]
        self.behave()
        try:
            for _ in range(steps):
                names = list(MOVES)
                name = self.rng.choices(names, [MOVES[name][1] for name in names])[0]
                MOVES[name][0](self)
                self.oracle.check()
                self._read_one()
            if seed % ROUNDS == ROUNDS - 1:
                self.settle()
                self.oracle.check()
        except LawBroken as broken:
            lies = "\n  ".join(self.proxy.told[-12:])
            story = "\n  ".join(self.story)
            raise LawBroken(f"{broken}\n  {story}\n lies:\n  {lies}") from None

    # What honest nodes do

    def put(self) -> None:
        if len(self.kept) >= OBJECTS_MAX:
            return self.delete()
        owner = self.pick(self.oracle.up())
        opens = self.rng.choice(("reads", "checks", ""))
        try:
            self._put(owner, self.rng.choice(SIZES), opens)
        except XscError as fault:
            # Six columns, and five that would take one.
            expect(
                len(self.oracle.up()) < len(self.oracle.honest()), "put", f"{owner} cannot: {fault}"
            )
            self.tell(f"it fails: {fault}")
        return None

    def _put(self, owner: int, size: int, opens: str) -> Kept:
        self.number += 1
        data = content(size, seed=self.number)
        self.tell(f"node-{owner} puts {size} bytes ({opens or 'private'})")
        capability = self._timed(
            put(self.node(owner), data), OTHERS_PUT_MS_MAX, "put", f"node-{owner}"
        )
        verify = parse_verify(capability)
        sealed = self.world.disks[owner].state.get(MANIFESTS + verify.manifest_hash)
        assert sealed is not None
        manifest = open_manifest(sealed, verify)
        kept = Kept(capability, data, owner, verify.locate, verify.manifest_hash, manifest, opens)
        left = self.oracle.columns(kept, self.oracle.honest())
        expect(len(left) >= manifest.k, "put", f"columns {sorted(left)} only lie at honest nodes")
        if len(left) >= manifest.k:
            self.kept.append(kept)
        if opens:
            self.forge.hold(capability if opens == "reads" else verify.to_text())
        self.proxy.manifests[verify.locate] = manifest
        return kept

    def _timed(self, work: Coroutine[Any, Any, Any], most_ms: int, law: str, who: str) -> Any:
        """Do something that must succeed in time, whatever the adversary says meanwhile."""
        begun_ms = self.world.clock.monotonic_ms()

        async def bounded() -> Any:
            async with asyncio.timeout(4 * most_ms / 1000):
                return await work

        try:
            done = self.do(bounded())
        except XscError as fault:
            if law == "put":
                raise
            return expect(False, law, f"{who} cannot: {fault.code}: {fault.message}")
        except TimeoutError:
            return expect(False, law, f"{who} waits without end")
        except Exception as fault:  # noqa: BLE001 (whatever it is, it is a bug)
            return expect(False, law, f"{who} fails by {fault!r}")
        took_ms = self.world.clock.monotonic_ms() - begun_ms
        expect(took_ms <= most_ms, law, f"{who} took {took_ms} ms")
        return done

    def get(self) -> None:
        if self.kept:
            self._get(self.rng.choice(self.kept), self.pick(self.oracle.up()))

    def _read_one(self) -> None:
        """Have somebody read what the last step was about, or anything."""
        about = [kept for kept in self.kept if kept.locate == self.forge.focus.get("locate")]
        for kept in (about or self.kept)[-1:]:
            self._get(kept, self.pick(self.oracle.up()))

    def _get(self, kept: Kept, reader: int) -> None:
        least = 1 if kept.manifest.inline is not None else kept.manifest.k
        if len(self.oracle.columns(kept, self.oracle.up())) < least:
            return
        self.tell(f"node-{reader} reads {len(kept.data)} bytes of node-{kept.owner}")
        data = self._timed(
            get(self.node(reader), kept.capability), OTHERS_GET_MS_MAX, "get", f"node-{reader}"
        )
        expect(data in (kept.data, None), "get", "wrong bytes")

    def delete(self) -> None:
        mine = [kept for kept in self.kept if kept.owner in self.oracle.up()]
        if mine:
            kept = self.rng.choice(mine)
            self.tell(f"node-{kept.owner} deletes {len(kept.data)} bytes")
            self._timed(
                self.node(kept.owner).storage.rm(kept.capability),
                OTHERS_PUT_MS_MAX,
                "delete",
                f"node-{kept.owner}",
            )
            self.kept.remove(kept)

    def repair(self) -> None:
        mine = [kept for kept in self.kept if kept.owner in self.oracle.up()]
        if mine:
            kept = self.rng.choice(mine)
            self.tell(f"node-{kept.owner} repairs")
            self._timed(
                self.node(kept.owner).storage.repair(kept.capability),
                2 * OTHERS_PUT_MS_MAX,
                "repair",
                f"node-{kept.owner}",
            )

    def recognise(self) -> None:
        index = self.pick(self.oracle.up())
        peer = self.node(self.pick([i for i in range(NODES) if i != index])).key.node_id
        self.tell(f"node-{index} recognises")
        self._timed(self._recognise(index, peer), OTHERS_GET_MS_MAX, "recognise", f"node-{index}")

    async def _recognise(self, index: int, peer: bytes) -> None:
        ppm = self.rng.choice((0, 10_000, 100_000))
        self.oracle.given[index, peer].add(ppm)
        await self.node(index).commitments.recognise(peer, ppm)

    def write(self) -> None:
        """Write or delete own values, which all others follow."""
        index, path = self.pick(self.oracle.up()), self.rng.choice(SPACE_PATHS)
        space = self.node(index).space
        is_there = any(record.path == path for record in space.ls(path))
        if is_there and self.forge.chance(0.3):
            self.tell(f"node-{index} deletes {path}")
            self._timed(space.rm(path), OTHERS_GET_MS_MAX, "space", f"node-{index}")
        else:
            self.tell(f"node-{index} writes {path}")
            value = self.rng.randbytes(20)
            self._timed(space.put(path, value), OTHERS_GET_MS_MAX, "space", f"node-{index}")

    def compute(self) -> None:
        """Buy a run from the adversary: it may fail, and must not be paid for what it is not."""
        index = self.pick(self.oracle.up())
        self.tell(f"node-{index} has the adversary add")

        async def run() -> Any:
            on = to_text(self.oracle.foe)
            spec = JobSpec.invoke(wasm("add"), "add", ["1", "2"], fuel=1_000_000, on=on)
            done = await self.node(index).compute.run(spec)
            return done.results

        try:
            self.do(run())
        except XscError:
            return

    def crash(self) -> None:
        up = self.oracle.up()
        if len(up) < len(self.oracle.honest()):
            down = next(i for i in self.oracle.honest() if i not in up)
            self.tell(f"node-{down} comes back")
            self._timed(self._back(down), OTHERS_GET_MS_MAX, "alive", f"node-{down}")
            others = [self.node(i) for i in self.oracle.up() if i != down]
            back = self.node(down).key.node_id
            self.do(self.world.until(lambda: all(node.health.is_up(back) for node in others)))
        else:
            index = self.pick(up)
            self.tell(f"node-{index} goes down")
            self.do(self.world.crash(index))

    async def _back(self, index: int) -> None:
        """Restart a node, and wait until it sees the others: alone it stores at itself."""
        node = await self.world.restart(index)
        others = [self.world.nodes[i].key.node_id for i in self.oracle.up() if i != index]
        await self.world.until(lambda: all(node.health.is_up(other) for other in others))

    def away(self) -> None:
        """A node is away for longer than the grace: others repair what it held, and it is back."""
        if self.forge.chance(0.5):
            self.proxy.manner = Manner(boasts=1.0)
        if len(self.oracle.up()) == len(self.oracle.honest()):
            self.crash()
        self.do(self.world.clock.sleep_ms(200_000))
        self.crash()
        self.do(self.world.clock.sleep_ms(60_000))

    def wait(self) -> None:
        seconds = self.rng.choice((1, 5, 40, 100))
        self.tell(f"{seconds} s pass")
        self.do(self.world.clock.sleep_ms(seconds * 1000))

    def wait_long(self) -> None:
        self.tell("an epoch passes")
        self.do(self.world.skip(EPOCH_MS, EPOCH_MS))

    # What the adversary does

    def about(self, method: str) -> int:
        """Choose what the next messages are about, and return whom they go to."""
        forge, node, up = self.forge, self.node(FOE), self.oracle.up()
        target = self.pick(up)
        known = {kept.manifest_hash: kept for kept in self.kept}
        verify = [
            item.verify if isinstance(item, ReadCapability) else item
            for _, item in sorted(forge.capabilities.items())
        ]
        live = [item for item in verify if item.manifest_hash in known]
        chosen = self.rng.choice(live if live and forge.chance(0.8) else verify or [None])
        owner = None
        if chosen is not None and chosen.manifest_hash in known:
            owner = known[chosen.manifest_hash].owner
            target = owner if owner in up and forge.chance(0.5) else target
        if chosen is not None and forge.chance(0.25):
            # A capability that nobody made: any key with the manifest hash of another object.
            key = self.rng.choice((self.rng.randbytes(32), chosen.verify_key))
            chosen = VerifyCapability(key, self.rng.choice(list(known) or [bytes(32)]))
            owner = FOE
        there, me = self.node(target).key.node_id, self.oracle.foe
        forge.focus = dict.fromkeys(("provider", "host", "node", "peer", "debit"), there)
        forge.focus |= {"customer": me, "owner": me, "credit": me}
        kind = "compute" if method.startswith(("compute", "service")) else "storage"
        if forge.chance(0.8):
            self.deal("lease", kind, there)
        leases = [
            lease
            for role in ("customer", "provider")
            for lease in node.market.store.all(role)
            if lease.peer == there and lease.terms.kind == kind
            if not lease.is_over(self.world.clock.now_ms())
        ]
        if leases:
            newest = leases[-1] if forge.chance(0.6) else self.rng.choice(leases)
            forge.focus |= dict.fromkeys(("lease", "lease_id"), newest.terms.lease_id)
        if method.startswith("market"):
            forge.focus["kind"] = kind
        if method == "storage.delete":
            customers = [me, me if owner is None else self.node(owner).key.node_id]
            forge.focus |= {
                "customer": self.rng.choice(customers),
                "columns": self.rng.choice(((), (0,), (0, 1, 2, 3, 4, 5))),
                "final": False,
            }
        if method.startswith("space"):
            store = self.node(target).space
            forge.focus["space"] = [
                (of, record.path, record.digest)
                for of in store.owners()
                for record in store.ls("", of)
            ]
        # It may have any challenge answered: which of them a host takes it cannot read here.
        forge.focus["of_challenges"] = self.node(target).key.derive("challenge")
        forge.focus["epoch"] = self.world.clock.now_ms() // EPOCH_MS
        if method.startswith("service"):
            forge.focus["name"] = self.rng.choice(("a", "b"))
        for index in up:
            # Ids of leases are no secret.
            for lease in self.node(index).market.store.all("customer"):
                forge.learn(lease.terms.lease_id, "lease")
        forge.focus["seq"], forge.focus["prev"] = node.ledger.head()
        seals = self.node(target).ledger.seals
        forge.focus["cubes"] = seals.history(me), [*seals.unsealed(me)]
        if chosen is not None and chosen.manifest_hash in known:
            # Who may find and check an object knows the roots of its shards, and can ask for them.
            manifest = known[chosen.manifest_hash].manifest
            there_whole = self.oracle.columns(known[chosen.manifest_hash], [target])
            forge.focus["generation"] = manifest.generation
            forge.focus["shards"] = [
                {"segment": segment, "column": column, "root": root}
                for segment in range(len(manifest.nonces))
                for column, root in enumerate(roots_of(manifest, segment))
                if column in there_whole or forge.chance(0.2)
            ]
        if chosen is not None:
            forge.about(chosen, None if owner is None else self.node(owner).key.node_id)
        return target

    def publish(self) -> None:
        """Say in the adversary's own space where it is, and whom it introduces."""
        path, value = published(self.forge)
        self.tell(f"the adversary publishes {len(value)} bytes at {path}")
        self.do(_write_unchecked(self.node(FOE).space, path, value))

    def offer(self) -> None:
        """Have somebody need something, and offer it in many short windows or new slots."""
        rng, clock = self.rng, self.world.clock
        index, kind = self.pick(self.oracle.up()), rng.choice(("compute", "storage"))
        node, needs = self.node(index), self.oracle.stated[index]
        if not any(need.kind == kind for _, need in needs):
            price = rng.choice((40, 1_000)) * PRICE_UNIT[kind] // SLOT_UNIT[kind]
            # Less than hosts have: what a need takes leases on nobody else can put into.
            needed = Statement(quantity=100, price=price)
            stated_ms = clock.now_ms()
            stated = self.do(node.commitments.declare(NeedSlot, kind, needed))
            needs += [
                (stated_ms, need) for need in node.commitments.own.needs if need.slot_id == stated
            ]
        need = next(need for _, need in needs if need.kind == kind)
        step_ms, times = rng.choice(((3_000, 6), (9_000, 4)))
        begin_ms = clock.now_ms() + 1_000
        self.tell(f"the adversary offers {kind} to node-{index} in {times} x {step_ms} ms")
        slot_id = rng.randbytes(16)
        for start in range(begin_ms, begin_ms + times * step_ms, step_ms):
            # Of compute the next window of one slot, of storage a new slot.
            if kind == "storage":
                slot_id = rng.randbytes(16)
            self._offer(need, slot_id, (start, start + step_ms))
            self.do(clock.sleep_ms(step_ms))
        self.do(node.market.settlement.settle_all())

    def _offer(self, need: NeedSlot, slot_id: bytes, window: tuple[int, int]) -> None:
        slot = AvailabilitySlot(
            slot_id=slot_id,
            kind=need.kind,
            quantity=need.quantity,
            windows=(window,),
            price_mutual=need.price_max,
            price_one_way=need.price_max,
            reserve=need.price_max,
            valid_until_ms=window[1],
        )
        value = Commitment(slots=(slot,)).to_bytes()
        self.do(self.node(FOE).space.put(UserSpacePaths.COMMITMENT, value))

    def say(self) -> None:
        """Send messages of a method that somebody answers, each another, or one many times."""
        methods = sorted(self.node(1).peers.server.handlers)
        self._say(self.rng.choices(methods, [WEIGHTS.get(name, 1) for name in methods])[0])

    def ask(self) -> None:
        """Ask somebody everything that a space answers."""
        for method in sorted(self.node(1).peers.server.handlers):
            if method.startswith("space."):
                self._say(method)

    def _say(self, method: str) -> None:
        target = self.about(method)
        if method == "space.next" and self.forge.chance(0.5):
            self.publish()
        count = self.rng.choice((2, 6, 12))
        times = 100 if self.forge.chance(0.05) else 1
        messages = [message(self.forge, method) for _ in range(count // times or 1)]
        self.tell(f"the adversary sends {len(messages)} x {times} {method} to node-{target}")
        work = self.proxy.say(
            self.node(target).key.node_id,
            f"{self.world.name(target)}:1",
            method,
            [item for item in messages for _ in range(times)],
        )
        if self.forge.chance(0.3):
            self.works = [item for item in self.works if not item.done()]
            self.works.append(self.loop.create_task(work))
        else:
            self.story[-1] += f" -> {self.do(work)}"

    def say_again(self) -> None:
        path, answered, status = self.do(self.proxy.again())
        self.tell(f"the adversary repeats {path} -> {status}")
        expect(not (answered and status == 200), "replay", f"{path} was carried out twice")

    def deal(self, what: str = "", kind: str = "", at: bytes = b"") -> None:
        """Be a customer: store, read, buy runs, or ask for room of any size."""
        node, rng = self.node(FOE), self.rng
        what = what or rng.choice(("put", "room", "read", "run", "settle"))
        if not kind:
            self.tell(f"the adversary deals: {what}")

        async def work() -> None:
            if what == "put":
                self.forge.hold(await put(node, content(rng.choice(SIZES), rng.random())))
            elif what == "room":
                known = [size for size in self.forge.seen["available"] if isinstance(size, int)]
                size = rng.choice([1, 2**30, *known])
                await node.market.buyer.lease_hosts(size_bytes=max(1, size), count=NODES)
            elif what == "read":
                texts = [text for text in sorted(self.forge.capabilities) if ":r:" in text]
                if texts:
                    await get(node, rng.choice(texts))
            elif what == "run":
                on = to_text(self.node(self.pick(self.oracle.up())).key.node_id)
                spec = JobSpec.invoke(wasm("add"), "add", ["1", "2"], fuel=10**8, on=on)
                await node.compute.run(spec)
            elif what == "lease" and kind == "compute":
                await node.market.buyer.lease_compute(fuel_steps=10**8, on=at)
            elif what == "lease":
                await node.market.buyer.lease_hosts(size_bytes=1, count=NODES)
            else:
                await node.market.settlement.settle_all()

        async def bounded() -> None:
            async with asyncio.timeout(60):
                await work()

        try:
            self.do(bounded())
        except (XscError, TimeoutError):
            pass
        except Exception as fault:  # noqa: BLE001 (what lies to others may fool itself)
            self.tell(f"the adversary's own node fails by {fault!r}")

    def behave(self) -> None:
        """Behave otherwise for a while."""
        rng = self.rng
        methods = rng.choice((frozenset(), frozenset(rng.sample(sorted(HEADERS), 6))))
        self.proxy.manner = Manner(
            answers=rng.choice((0.0, 0.1, 0.5, 0.9)),
            requests=rng.choice((0.0, 0.1, 0.4)),
            probes=rng.random() < 0.1,
            boasts=rng.choice((0.0, 0.5, 1.0)),
            methods=methods,
        )
        self.tell(f"the adversary behaves: {self.proxy.manner}")

    # And at the end

    def settle(self) -> None:
        """The adversary falls silent: put, get, repair and publish work as if it were not there."""
        self.tell("the adversary falls silent")
        self.proxy.manner = Manner(silent=True)
        if len(self.oracle.up()) < len(self.oracle.honest()):
            self.crash()
        self.do(self.world.clock.sleep_ms(PEER_TIMEOUT_MS))
        self.do(self.world.until(self._all_see_all, RECOVERY_MS))
        for kept in self.kept:
            self._get(kept, self.pick(self.oracle.up()))
        owner = self.pick(self.oracle.up())
        try:
            self._get(self._put(owner, 20_000, ""), self.pick(self.oracle.up()))
        except XscError as fault:
            expect(False, "put", f"node-{owner} cannot: {fault.message}")
        self.repair()
        self.recognise()
        self.delete()
        for _ in range(RECOVERY_MS // HEAD_INTERVAL_MS):
            if not self._unlike():
                break
            self.do(self.world.clock.sleep_ms(HEAD_INTERVAL_MS))
        expect(not self._unlike(), "space", "; ".join(self._unlike()[:3]))
        for index in self.oracle.up():
            node = self.node(index)
            expect(not node.shards.writer.reserved_bytes, "recovers", "room stays reserved")
            running = len(self.world.net._up[self.world.name(index)]._running)
            expect(running <= NODES, "recovers", f"node-{index} has {running} handlers running")
        self.proxy.manner = Manner()

    def _unlike(self) -> list[str]:
        """Return who has of whom something else than that one has, of what all follow."""
        up = self.oracle.up()
        wrong = []
        for index in up:
            owner = self.node(index).key.node_id
            own = self.node(index).space.ls("nodes", owner)
            wrong += [
                f"node-{other} has of node-{index} something else than that one has"
                for other in up
                if self.node(other).space.ls("nodes", owner) != own
            ]
        return wrong

    def _all_see_all(self) -> bool:
        honest = [self.node(index) for index in self.oracle.up()]
        return all(
            one is other or one.health.is_up(other.key.node_id)
            for one in honest
            for other in honest
        )


MOVES: dict[str, tuple[Step, int]] = {
    "put": (Play.put, 4),
    "get": (Play.get, 4),
    "delete": (Play.delete, 1),
    "repair": (Play.repair, 1),
    "recognise": (Play.recognise, 1),
    "compute": (Play.compute, 1),
    "write": (Play.write, 2),
    "crash": (Play.crash, 2),
    "away": (Play.away, 2),
    "wait": (Play.wait, 3),
    "wait_long": (Play.wait_long, 1),
    "say": (Play.say, 16),
    "ask": (Play.ask, 2),
    "say_again": (Play.say_again, 1),
    "deal": (Play.deal, 5),
    "offer": (Play.offer, 2),
    "behave": (Play.behave, 3),
    "settle": (Play.settle, 1),
}
WEIGHTS = {
    "storage.put": 6,
    "storage.healed": 6,
    "storage.guard": 4,
    "storage.delete": 6,
    "storage.get": 3,
    "market.lease": 4,
    "compute.run": 6,
    "ledger.propose": 3,
    "market.account": 2,
}
"""How often a method is chosen, where that is not once: those that change most."""
