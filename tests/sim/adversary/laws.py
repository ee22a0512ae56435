"""What must hold beside a peer that signs whatever it likes, read off disks, books and calls.

The laws know nothing of what the adversary did. An oracle reads the disks of the
honest nodes; calls between honest nodes are watched; fuel is counted where it burns.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from tests.sim.network import World
from xsc.base import encoding
from xsc.base.clock import Clock, InlineExecutor
from xsc.base.errors import RecordInvalid, SandboxFailed
from xsc.base.limits import (
    COMPILE_BYTE_FUEL,
    EPOCH_MS,
    HEAD_BYTES_MAX,
    KIB,
    LEASES_A_CUSTOMER_MAX,
    PEER_BODY_BYTES_MAX,
    PEER_REQUESTS_A_SECOND_MAX,
    PEER_REQUESTS_IN_FLIGHT_MAX,
    REQUEST_UNITS,
    STORED_OVERHEAD_BYTES_A_PEER_MAX,
)
from xsc.base.log import SilentLog
from xsc.compute.deployments.registry import SERVICES_A_PEER_MAX
from xsc.compute.jobs.orders import ORDERS_REMEMBERED_A_PEER_MAX
from xsc.compute.wasm.engine import ENGINE, ENGINE_CONFIG
from xsc.compute.wasm.sandbox import Job, OutputWatch, SandboxResult
from xsc.compute.worker import frames
from xsc.compute.worker.local import LocalSandbox
from xsc.identity import envelope
from xsc.identity.envelope import open_signed
from xsc.ledger.cube import seal_hash
from xsc.ledger.index import SEAL
from xsc.market import lease as leases
from xsc.market.lease import LeaseEntry
from xsc.net.calls import batch, frame, server
from xsc.net.calls.costs import COSTS, HEAD_KIB_UNITS, OTHER
from xsc.net.calls.frame import LENGTH_BYTES, Reply, head_of, unpack
from xsc.net.transport.memory import MemoryTransport
from xsc.net.transport.port import Arrival, Handler, RawRequest, RawResponse
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.manifest import Manifest
from xsc.storage.repair.custodian import CUSTODY_OBJECTS_A_PEER_MAX
from xsc.storage.shardstore import bodies as formats
from xsc.storage.transfer.get import roots_of
from xsc.terms.pricing import WORTH, compute_amount, fuel_steps, slot_amount
from xsc.terms.slot import NeedSlot
from xsc.terms.storage_receipt import DeletionOrder
from xsc.terms.voucher import Voucher

UNFOUNDED = {"not_allowed", "record_invalid", "signature_invalid", "receipt_invalid", "peer_error"}
"""Errors that no honest node gives to another's honest call."""
FOUNDED = {("storage.put", "not_allowed")}
"""Unless a put has failed, and is deleted while some of it is still on its way."""


class LawBroken(AssertionError):
    """A law does not hold; the first word names it."""


ENDS = ("storage.delete", "storage.unguard")
"""With these a customer ends what a host keeps for it."""
UNREAD = {
    "too_large",
    "rate_limited",
    "replay_refused",
    "clock_skewed",
    "unauthorized",
    "signature_invalid",
}
"""How a request is refused before its header is decoded."""
DECODERS = (frame, batch, server, envelope)
"""Modules that decode what comes from peers."""
LEFT_OUT: set[str] = set()
"""Laws that are not looked at, to see what else breaks where these do."""


def expect(holds: object, law: str, text: str = "") -> None:
    if not holds and law not in LEFT_OUT:
        raise LawBroken(f"{law}: {text}")


@dataclass
class Kept:
    """An object that was acknowledged."""

    capability: str
    data: bytes
    owner: int
    locate: bytes
    manifest_hash: bytes
    manifest: Manifest
    open_to_adversary: str = ""
    """"reads", "checks" or nothing."""


class WatchedLog(SilentLog):
    """Keeps what an operator must look at."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, object]]] = []

    def error(self, event: str, **fields: object) -> None:
        if event not in {"ledger.conflict", "ledger.fork"}:
            # That one is proof of what a peer did.
            self.errors.append((event, fields))


class MeteredSandbox(LocalSandbox):
    """Counts what it burns by customer, and reads results back as the pool reads a worker's."""

    def __init__(self, executor: Any) -> None:
        super().__init__(executor)
        self.burnt_steps: Counter[bytes] = Counter()
        self.largest_steps: Counter[bytes] = Counter()
        """Of one order."""
        self.lost: list[str] = []
        """Why a worker's result was none."""

    async def run(self, job: Job, watch: OutputWatch | None = None) -> SandboxResult:
        result = await super().run(job, watch)
        compiling = len(job.module) * COMPILE_BYTE_FUEL if result.compiled else 0
        fuel = min(job.limits.fuel, result.fuel_used + compiling)
        steps = fuel_steps(fuel, job.limits.memory_bytes)
        self.burnt_steps[job.customer] += steps
        self.largest_steps[job.customer] = max(self.largest_steps[job.customer], steps)
        try:
            raw = frames.to_frame(frames.result_message(result))[frames.PREFIX_BYTES :]
            frames.result_of(frames.from_frame(raw), job, ENGINE, ENGINE_CONFIG)
        except RecordInvalid as fault:
            self.lost.append(fault.message)
            raise SandboxFailed(f"the worker of the job is lost: {fault.message}") from None
        return result


DECODED_A_SECOND_BYTES = 4 * KIB * PEER_REQUESTS_A_SECOND_MAX * REQUEST_UNITS // HEAD_KIB_UNITS
"""A second's quota and a burst of it, of heads and of the records within."""


class LoopMeter:
    """Counts what the event loops of honest nodes decode of what the adversary has sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._node: ContextVar[int | None] = ContextVar("node", default=None)
        """For which node a task decodes what came from the adversary."""
        self._in_thread: ContextVar[bool] = ContextVar("in_thread", default=False)
        self._decode = {module: module.decode for module in DECODERS}
        self.largest: Counter[int] = Counter()
        """Bytes decoded at once, by node."""
        self.by_second: Counter[tuple[int, int]] = Counter()
        for module, decode in self._decode.items():
            module.decode = self._counting(decode)  # type: ignore[attr-defined]

    def close(self) -> None:
        for module, decode in self._decode.items():
            module.decode = decode  # type: ignore[attr-defined]

    def _counting(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        def counting(raw: bytes, **options: Any) -> Any:
            node = self._node.get()
            if node is not None and not self._in_thread.get():
                self.largest[node] = max(self.largest[node], len(raw))
                self.by_second[node, self._clock.monotonic_ms() // 1000] += len(raw)
            return decode(raw, **options)

        return counting

    def of(self, node: int | None) -> None:
        """Count what this task decodes from now on for a node; None for nobody."""
        self._node.set(node)

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run something as a thread would."""
        token = self._in_thread.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            self._in_thread.reset(token)


class MeteredExecutor(InlineExecutor):
    """What it runs does not keep the event loop from running."""

    def __init__(self, meter: LoopMeter) -> None:
        self.run = meter.run  # type: ignore[method-assign]


class MeteredTransport(MemoryTransport):
    """Tells the meter what a node gets of the adversary."""

    def meter(self, meter: LoopMeter, node: int, foe: str) -> MeteredTransport:
        self._meter, self._node, self._foe = meter, node, foe
        return self

    async def send(
        self, address: str, fingerprint: bytes | None, request: RawRequest, timeout_ms: int
    ) -> RawResponse:
        answer = await super().send(address, fingerprint, request, timeout_ms)
        self._meter.of(self._node if address.startswith(f"{self._foe}:") else None)
        return answer

    async def serve(self, handler: Handler) -> None:
        async def metered(arrival: Arrival) -> RawResponse:
            self._meter.of(self._node if arrival.source == self._foe else None)
            return await handler(arrival)

        await super().serve(metered)


def _ended_by(request: RawRequest) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls of a request, also of a batch, that end what a host keeps."""
    method = request.path.rsplit("/", 1)[-1]
    if method not in (*ENDS, batch.METHOD):
        return []
    header = unpack(memoryview(b"".join(request.body))).header
    calls = [(method, header)]
    if method == batch.METHOD:
        calls = [
            (call["method"], encoding.decode(call["header"], size_max=PEER_BODY_BYTES_MAX))
            for call in header["calls"]
            if call["method"] in ENDS
        ]
    return calls


@dataclass
class Oracle:
    """What lies on the disks and stands in the books of honest nodes."""

    world: World
    adversary: int
    logs: dict[int, WatchedLog] = field(default_factory=dict)
    sandboxes: dict[int, MeteredSandbox] = field(default_factory=dict)
    billed: dict[int, dict[bytes, int]] = field(default_factory=lambda: defaultdict(dict))
    vouchers: dict[int, dict[bytes, int]] = field(default_factory=lambda: defaultdict(dict))
    """The most that each honest node has signed for, by account with the adversary."""
    at_once: dict[int, dict[bytes, LeaseEntry]] = field(default_factory=lambda: defaultdict(dict))
    """By node, the leases for now that it took."""
    stated: dict[int, list[tuple[int, NeedSlot]]] = field(default_factory=lambda: defaultdict(list))
    """By honest node, what it has ever said that it needs, and since when."""
    ended: set[tuple[int, bytes, bytes]] = field(default_factory=set)
    """Host, customer and object, of what a customer has deleted, in whole or in part."""
    there: dict[int, set[tuple[bytes, bytes, int, int]]] = field(default_factory=dict)
    """By honest host, what lay there for honest customers at the last look."""
    refusals: list[str] = field(default_factory=list)
    deletions: list[str] = field(default_factory=list)
    """Orders of honest nodes, of what does not lie whole elsewhere."""
    kept: list[Kept] = field(default_factory=list)
    wards: dict[int, set[tuple[bytes, bytes]]] = field(default_factory=dict)
    """By honest custodian, owner and object of what it guarded at the last look."""
    unguarded: set[tuple[int, bytes, bytes]] = field(default_factory=set)
    """Custodian, owner and object, of what an owner has ended."""
    given: dict[tuple[int, bytes], set[int]] = field(default_factory=lambda: defaultdict(set))
    """By node and peer: the weights that its operator gave it, in ppm."""
    meter: LoopMeter | None = None
    over: list[str] = field(default_factory=list)
    """Requests that were read though their headers are over the bound of the method."""
    _bodies: dict[bytes, tuple[Any, bool]] = field(default_factory=dict)

    @cached_property
    def foe(self) -> bytes:
        return self.world.key(self.adversary).node_id

    def honest(self) -> list[int]:
        return [index for index in range(self.world.count) if index != self.adversary]

    def up(self) -> list[int]:
        return [i for i in self.honest() if self.world.net.is_up(self.world.name(i))]

    @staticmethod
    def number(name: str) -> int:
        return int(name.removeprefix("node-"))

    # Disks

    def bodies(self, index: int) -> list[tuple[Any, bool, int]]:
        """Return what lies on a disk, whether it is whole, and how many bytes it takes."""
        found = []
        for key, raw in self.world.disks[index].bodies.scan(
            formats.BODIES, formats.BODIES + b"\xff" * 9
        ):
            if raw not in self._bodies:
                body = formats.decode_body(raw)
                locate, customer = formats.owner_of(body.index_key)
                segment, column, _ = (
                    formats.column_of_key(body.index_key) if body.is_shard else (None, None, b"")
                )
                self._bodies[raw] = (
                    SimpleNamespace(
                        locate=locate,
                        customer=customer,
                        segment=segment,
                        column=column,
                        lease_id=body.lease_id,
                        proof=body.proof,
                    ),
                    not body.is_shard or body.is_whole,
                )
            found.append((*self._bodies[raw], len(key) + len(raw)))
        return found

    def columns(
        self, kept: Kept, nodes: Iterable[int], counts: Callable[[int, Any], bool] = lambda *_: True
    ) -> set[int]:
        """Return the columns of an object that lie whole on the disks of some nodes.

        Of an object without shards, the nodes that hold its manifest.
        """
        found: set[int] = set()
        segments = range(len(kept.manifest.nonces))
        for index in nodes:
            there = set()
            for body, whole, _ in self.bodies(index):
                if body.locate != kept.locate or not whole or not counts(index, body):
                    continue
                if body.column is None:
                    if kept.manifest.inline is not None and (body.proof == kept.manifest_hash):
                        found.add(index)
                elif body.segment in segments and (
                    (body.column, body.proof) in enumerate(roots_of(kept.manifest, body.segment))
                ):
                    there.add((body.segment, body.column))
            found |= {
                column
                for column in {column for _, column in there}
                if all((segment, column) in there for segment in segments)
            }
        return found

    # Calls between honest nodes

    def watch(self) -> None:
        exchange = self.world.net.exchange

        async def watched(source: str, target: str, request: RawRequest) -> RawResponse:
            if self.meter is not None:
                self.meter.of(None)  # What is read here is read by nobody.
            foe = self.world.name(self.adversary)
            if target == foe and request.path.endswith("market.account"):
                self._note_voucher(source, request)
            for method, header in _ended_by(request) if source != foe else ():
                customer = self.world.nodes[self.number(source)].key.node_id
                if method == "storage.unguard":
                    self.unguarded.add((self.number(target), customer, header["object"]))
                    continue
                order = open_signed(header["order"], DeletionOrder, network=None).record
                self.ended.add((self.number(target), customer, order.locate))
                # Who says that it is called where another is, has that one refuse it.
                if target != foe and order.host == self.world.key(self.number(target)).node_id:
                    self._judge_deletion(self.number(target), customer, order)
            response = await exchange(source, target, request)
            if foe not in (source, target):
                self._judge(source, target, request, response)
            elif source == foe:
                self._measure(target, request, response)
                if response.status == 200:
                    self._weigh(target, request, response)
            return response

        self.world.net.exchange = watched  # type: ignore[method-assign]

    def _judge_deletion(self, host: int, customer: bytes, order: DeletionOrder) -> None:
        def goes(index: int, body: Any) -> bool:
            return (index, body.customer) == (host, customer) and (
                not order.columns or body.column in order.columns
            )

        for kept in self.kept:
            if kept.locate != order.locate or not self.is_listed(kept):
                continue
            whole = self.columns(kept, [host], goes)
            if kept.manifest.inline is not None:
                # Each of its hosts has all of it.
                whole = whole and set(range(kept.manifest.k + kept.manifest.m))
            every = range(self.world.count)
            left = self.columns(kept, every, lambda index, body: not goes(index, body))
            if kept.manifest.inline is not None:
                left = set(range(len(left)))
            if whole - left:
                self.deletions.append(
                    f"node-{host} is to delete columns {sorted(whole)}; elsewhere: {sorted(left)}"
                )

    def is_listed(self, kept: Kept) -> bool:
        entry = self.world.nodes[kept.owner].storage.catalogue.entry(kept.manifest_hash)
        return entry is not None and not entry.deleting

    def _note_voucher(self, source: str, request: RawRequest) -> None:
        raw = unpack(memoryview(b"".join(request.body))).header["voucher"]
        if raw is None:
            return
        voucher = open_signed(raw, Voucher, network=None).record
        signed = self.vouchers[self.number(source)]
        signed[voucher.account] = max(voucher.amount_micro, signed.get(voucher.account, 0))

    def _judge(self, source: str, target: str, request: RawRequest, response: RawResponse) -> None:
        answers = [(request.path, response.status, b"".join(response.body))]
        if request.path.endswith(batch.METHOD) and response.status == 200:
            asked = unpack(memoryview(b"".join(request.body))).header["calls"]
            whole = unpack(memoryview(answers[0][2]))
            reply = Reply(whole.header, [part.data for part in whole.parts])
            some = batch.unpack_answers(reply, len(asked))
            answers = [
                (call["method"], answer.status, bytes(answer.header))
                for call, answer in zip(asked, some, strict=True)
            ]
        for path, status, body in answers:
            code = json.loads(body).get("code") if status not in (200, batch.ALONE) else ""
            method = path.rsplit("/", 1)[-1]
            if code in UNFOUNDED and (method, code) not in FOUNDED:
                detail = json.loads(body).get("detail")
                self.refusals.append(f"{source} {method} at {target}: {code} ({detail})")

    def _measure(self, target: str, request: RawRequest, response: RawResponse) -> None:
        if response.status != 200:
            code = json.loads(b"".join(response.body)).get("code")
            if code in UNREAD:
                return
        method = request.path.rsplit("/", 1)[-1]
        head = len(head_of(memoryview(b"".join(request.body)))) - LENGTH_BYTES
        most = COSTS.get(method, OTHER).asked
        if head > most:
            self.over.append(f"{target} reads {method} with {head} bytes of header, above {most}")

    def _weigh(self, target: str, request: RawRequest, response: RawResponse) -> None:
        body = b"".join(response.body)
        parts = [bytes(part.data) for part in unpack(memoryview(body)).parts]
        told = sum(map(len, parts)) - sum(map(len, set(parts)))
        if told > KIB:
            self.refusals.append(f"{target} answers {request.path} with {told} bytes twice")

    # The laws that are checked after every step

    def check(self) -> None:
        self.all_live()
        self.nobody_is_turned_away()
        self.nothing_is_lost()
        self.nothing_is_given_up()
        self.custody_stands()
        self.only_customers_delete()
        self.nothing_is_free()
        self.nobody_pays_more_than_was_signed()
        self.nobody_owes_more_than_it_stated()
        self.cubes_are_of_entries()
        self.nobody_honest_is_barred()
        self.shares_hold()
        self.recognition_is_the_operators()
        self.loops_turn()

    def all_live(self) -> None:
        for index in self.up():
            failed = self.world.nodes[index].ended
            if failed.done():
                expect(False, "alive", f"node-{index} ends: {failed.result().message}")
        for index, log in self.logs.items():
            if log.errors:
                event, fields = log.errors[0]
                expect(False, "alive", f"node-{index} reports {event} {fields}")
        for index, sandbox in self.sandboxes.items():
            expect(not sandbox.lost, "alive", f"node-{index} loses a worker: {sandbox.lost}")

    def nobody_is_turned_away(self) -> None:
        expect(not self.refusals, "answers", "; ".join(self.refusals[:3]))

    def nothing_is_given_up(self) -> None:
        """Who deletes a whole column knows that every column lies elsewhere."""
        expect(not self.deletions, "proven", "; ".join(self.deletions[:3]))

    def custody_stands(self) -> None:
        """What is guarded for an honest owner stays guarded until that owner ends it."""
        known = {kept.manifest_hash for kept in self.kept}
        for index in self.up():
            now = {
                (ward.owner, parse_verify(ward.capability).manifest_hash)
                for _, ward in self.world.nodes[index].storage.custodian.store.objects()
                if ward.owner != self.foe
            }
            for owner, ref in self.wards.get(index, set()) - now:
                expect(
                    ref not in known or (index, owner, ref) in self.unguarded,
                    "guarded",
                    f"node-{index} guards an object of an honest node no longer",
                )
            self.wards[index] = now

    def nothing_is_lost(self) -> None:
        for kept in self.kept:
            left = self.columns(kept, self.honest())
            expect(
                len(left) >= kept.manifest.k,
                "kept",
                f"of an object of node-{kept.owner} ({kept.open_to_adversary}) honest disks have "
                f"columns {sorted(left)} only",
            )
            expect(
                self.is_listed(kept),
                "kept",
                f"node-{kept.owner} does not list an object that it stored",
            )

    def only_customers_delete(self) -> None:
        """What an honest host has of an honest customer goes when that customer says so."""
        for index in self.honest():
            now = {
                (body.customer, body.locate, body.segment, body.column)
                for body, _, _ in self.bodies(index)
                if body.column is not None and body.customer != self.foe
            }
            own = self.world.key(index).node_id
            for customer, locate, segment, column in self.there.get(index, set()) - now:
                expect(
                    customer == own or (index, customer, locate) in self.ended,
                    "dropped",
                    f"node-{index} dropped segment {segment}, column {column} of another's object",
                )
            self.there[index] = now

    def nothing_is_free(self) -> None:
        for index in self.up():
            market = self.world.nodes[index].market
            entries = [e for e in market.store.all("provider") if e.terms.customer == self.foe]
            mine = {entry.terms.lease_id for entry in entries}
            taken = 0
            for body, _, size in self.bodies(index):
                if body.customer == self.foe:
                    taken += size
                    expect(
                        body.lease_id in mine,
                        "billed",
                        f"node-{index} holds what the adversary has under no lease of its own",
                    )
                else:
                    expect(body.lease_id not in mine, "billed", "a customer uses another's lease")
            held = sum(entry.use.held_bytes for entry in entries)
            expect(
                taken <= 2 * held + STORED_OVERHEAD_BYTES_A_PEER_MAX,
                "billed",
                f"node-{index} bills {held} bytes of {taken} that it holds for the adversary",
            )
            for entry in entries:
                if entry.terms.kind == "compute":
                    use = leases.advance(entry.terms, entry.use, self.world.clock.now_ms())
                    self.billed[index][entry.id] = use.used // WORTH
            price = min((e.terms.price for e in entries if e.terms.kind == "compute"), default=0)
            sandbox = self.sandboxes[index]
            worth = compute_amount(price, sandbox.burnt_steps[self.foe])
            order = compute_amount(price, sandbox.largest_steps[self.foe])
            paid = sum(self.billed[index].values())
            expect(
                worth <= paid + order + len(self.billed[index]) + 1,
                "billed",
                f"node-{index} ran for {worth} micro-credits and bills {paid}; an order is {order}",
            )

    def nobody_pays_more_than_was_signed(self) -> None:
        for index in self.up():
            node = self.world.nodes[index]
            vouchers = self.vouchers[index]
            for account, signed in vouchers.items():
                settled = node.ledger.settled(account)
                expect(
                    settled <= signed,
                    "owed",
                    f"node-{index} has settled {settled} of an account, and signed for {signed}",
                )
            expect(
                -node.ledger.balance(self.foe) <= sum(vouchers.values()),
                "owed",
                f"node-{index} owes {-node.ledger.balance(self.foe)} and signed for {vouchers}",
            )
            expect(
                node.ledger.credit_left(self.foe) >= 0,
                "owed",
                f"the adversary owes node-{index} more than its limit",
            )

    def nobody_honest_is_barred(self) -> None:
        """No proof is against a node that signed one ledger; no mark is of more than one."""
        for index in self.up():
            barred = self.world.nodes[index].ledger.chain.forks.all().keys() - {self.foe}
            expect(not barred, "barred", f"node-{index} holds a fork against an honest node")

    def cubes_are_of_entries(self) -> None:
        """Each seal is over what it was signed for, and no entry is in two."""
        for index in self.up():
            ledger = self.world.nodes[index].ledger
            chain = ledger.chain
            for peer in chain.state.dealt:
                history, found = ledger.seals.history(peer), []
                halves = [chain.own(seq).record for seq in chain.state.flows.newest(peer, None)]
                seals = {
                    half.amount_micro: half.receipt
                    for half in halves
                    if half.account == history and half.seq not in chain.state.open
                }
                key = SEAL + history
                for at, begins in chain.state.index.scan(key, key + b"\xff" * 8):
                    below = int.from_bytes(at[-8:], "big")
                    rows = ledger.seals.shared(peer, int.from_bytes(begins, "big"), below)
                    entry_ids = sorted(entry_id for _, entry_id in rows)
                    expect(seals[below] == seal_hash(entry_ids), "sealed", f"node-{index}: {below}")
                    found += entry_ids
                expect(len({*found}) == len(found), "sealed", f"node-{index}: an entry twice")

    def nobody_owes_more_than_it_stated(self) -> None:
        """What is signed is within what the needs allow, and what was leased for now.

        Level times price, for the time that has passed; of compute for now what ran.
        """
        now_ms = self.world.clock.now_ms()
        for index, needs in self.stated.items():
            allowed = 0
            for stated_ms, need in needs:
                price_ms = need.price_max * (now_ms - stated_ms)
                allowed += slot_amount(need.kind, price_ms, need.quantity) // EPOCH_MS
            for entry in self.world.nodes[index].market.store.all("customer"):
                if not entry.terms.cleared:
                    self.at_once[index][entry.terms.lease_id] = entry
            for entry in self.at_once[index].values():
                allowed += leases.advance(entry.terms, entry.use, now_ms).used // WORTH + 1
            signed = sum(self.vouchers[index].values())
            expect(signed <= allowed, "stated", f"node-{index} signed {signed}, allows {allowed}")

    def shares_hold(self) -> None:
        """What one peer holds of a node, against the numbers in `xsc.base.limits`."""
        for index in self.up():
            node, now_ms = self.world.nodes[index], self.world.clock.now_ms()
            shares = {
                "requests": (
                    node.peers.server.quota.places.held(self.foe),
                    PEER_REQUESTS_IN_FLIGHT_MAX,
                ),
                "leases": (
                    sum(
                        entry.terms.customer == self.foe and not entry.is_over(now_ms)
                        for entry in node.market.store.all("provider")
                    ),
                    LEASES_A_CUSTOMER_MAX,
                ),
                "wards": (
                    sum(
                        ward.owner == self.foe for _, ward in node.storage.custodian.store.objects()
                    ),
                    CUSTODY_OBJECTS_A_PEER_MAX,
                ),
                "services": (
                    sum(view.owner == self.foe for view in node.services.views()),
                    SERVICES_A_PEER_MAX,
                ),
                "orders": (
                    node.compute._job_executor._orders._of_customer[self.foe],
                    ORDERS_REMEMBERED_A_PEER_MAX,
                ),
            }
            for name, (held, most) in shares.items():
                expect(held <= most, "shares", f"the adversary has {held} {name} of node-{index}")

    def loops_turn(self) -> None:
        """Nothing that the adversary sends keeps an event loop busy."""
        assert self.meter is not None
        expect(not self.over, "loop", "; ".join(self.over[:3]))
        for node, size in self.meter.largest.items():
            expect(
                size <= HEAD_BYTES_MAX,
                "loop",
                f"node-{node} decodes {size} bytes at once on its event loop",
            )
        for (node, second), size in self.meter.by_second.items():
            expect(
                size <= DECODED_A_SECOND_BYTES,
                "loop",
                f"node-{node} decodes {size} bytes in second {second}",
            )
        self.meter.by_second.clear()

    def recognition_is_the_operators(self) -> None:
        """Nobody else says what a node recognises, to itself or to others."""
        keys = [self.world.key(index).node_id for index in range(self.world.count)]
        honest = [index for index, peer in enumerate(keys) if peer != self.foe]
        for index in self.up():
            node = self.world.nodes[index]
            for peer, ppm in node.commitments.heard.of(node.key.node_id).weights.items():
                expect(
                    ppm in self.given[index, peer],
                    "recognition",
                    f"node-{index} gives {ppm} ppm, which nobody told it to",
                )
            for other in honest:
                theirs = node.commitments.their_weight_ppm(keys[other])
                expect(
                    theirs in {0, *self.given[other, node.key.node_id]},
                    "recognition",
                    f"node-{index} believes that node-{other} gives it {theirs} ppm",
                )
