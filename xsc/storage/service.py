"""Stores the objects of this node and keeps them whole: put, open, stat, ls, rm, repair.

Connects the parts of storage. The host's side is `xsc.storage.shardstore.server`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, TypeVar

from xsc.api import objects as shown
from xsc.api.market import MONTH_MS
from xsc.base import errors, limits, peering
from xsc.base.ids import short
from xsc.base.progress import Watch, unwatched
from xsc.base.turns import sliced
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.storage.catalogue import finder, names
from xsc.storage.catalogue.objects import ObjectCatalogue, ObjectEntry
from xsc.storage.object import durability, erasure, expiry, inventory
from xsc.storage.object.capability import (
    SECRET_BYTES,
    VerifyCapability,
    parse_read,
    parse_verify,
    verify_key,
)
from xsc.storage.object.held import Held
from xsc.storage.object.placement import (
    State,
    column_state,
    condition,
    default_contract,
    likely_columns,
    losses_survived,
)
from xsc.storage.ports import ChargeRead, Hosts, Leases
from xsc.storage.repair import assignment, custodian, possession, repairer
from xsc.storage.repair.drain import Departures, Drain
from xsc.storage.repair.maintained_object import MaintainedObjects, OwnObjects, Settings
from xsc.storage.repair.mover import Progress
from xsc.storage.repair.node_watch import NodeWatch
from xsc.storage.shardstore import server, store
from xsc.storage.transfer import deep_read, get, read_ahead_cache
from xsc.storage.transfer.host_client import HostClient, together
from xsc.storage.transfer.journal import Kept, ResumeJournal, ResumeJournals
from xsc.storage.transfer.locality import Referred, open_reference, refer, spared_bytes
from xsc.storage.transfer.put import Upload, Uploaded
from xsc.terms.storage_receipt import DeletionReceipt

UNFOUND_MARGIN = -1
"""Of an object that a recovery did not find."""


@dataclass(frozen=True, slots=True)
class RmResult:
    """Which hosts confirmed a deletion, and which could not be reached."""

    confirmed: tuple[bytes, ...]
    unreachable: tuple[bytes, ...]
    receipts: tuple[Signed[DeletionReceipt], ...] = ()
    """Of the peers that confirmed; the own node gives none to itself."""
    name: str = ""
    """Its name; empty for files of directories and internal objects."""
    given_up: bool = False
    """Whether a silent host is not asked any more, because it has dropped the object by itself."""

    @property
    def partly(self) -> bool:
        """Whether some host has still to confirm: run `rm` again."""
        return bool(self.unreachable)


class Retried(NamedTuple):
    """Numbers of objects whose deletion was retried."""

    confirmed: int
    open: int
    given_up: int
    """Their last hosts stayed silent until they must have dropped the objects by themselves."""


def best_columns(
    located: get.Located, answers: Mapping[bytes, inventory.HeldObject | None], *, placed: bool
) -> tuple[list[bytes | None], list[State]]:
    """Return for each column the node with its best copy, and the state of that copy.

    Where no placement says which of several silent nodes has a column, each is named once.

    Args:
        located: the object, and who may hold its columns.
        answers: what these said.
        placed: whether its owner's placement names them, and no search.
    """
    rank: list[State] = ["ok", "corrupt", "missing", "unreachable"]
    columns: list[bytes | None] = []
    states: list[State] = []
    for column, nodes in enumerate(located.holders):
        told = [
            (rank.index(column_state(located.manifest, column, answers[node])), node)
            for node in nodes
            # Every copy of an inline object is the same: each node that was found counts for one
            # column. By the placement it counts for those that it was given.
            if placed or located.manifest.inline is None or node not in columns
        ]
        state = rank[min(told)[0]] if told else "missing"
        best = [node for place, node in told if rank[place] == state]
        if state == "unreachable" and not placed:
            best = [node for node in best if node not in columns]
        columns.append(best[0] if best else None)
        states.append(state)
    return columns, states


T = TypeVar("T")
Prove: TypeAlias = Callable[
    [VerifyCapability, Sequence[bytes | None]], Awaitable[list[shown.Proof]]
]
"""Challenges the nodes of an object's columns, and returns what came of it."""
PROVEN: Mapping[str, State] = {
    "bad_proof": "corrupt",
    "missing": "missing",
    "timeout": "unreachable",
    "unreachable": "unreachable",
}
"""What an outcome says of columns that were not proven; one that says nothing is not there."""
READ_AT_ONCE = 32
"""Small objects: of more, each would wait for its hosts so long that others are asked as well."""


def in_order(row: shown.Object) -> tuple[int, str, str]:
    """Return by what objects are listed."""
    return row.created_ms, row.name, row.capability


class StorageService:
    """Stores, opens, lists and removes the objects of this node, and keeps them whole."""

    def __init__(
        self,
        context: Context,
        *,
        hosts: Hosts,
        leases: Leases,
        node: store.StorageNode,
        departures: Departures,
        settings: Settings,
        charge_read: ChargeRead,
        weight_ppm: Callable[[bytes], int] = lambda _: 0,
        custodian_for: Callable[[bytes], bool] = lambda _: True,
    ) -> None:
        """Connect the parts of storage.

        Args:
            context: of this node.
            hosts: the peers that lease storage to this node.
            leases: those that this node granted.
            node: its shard store.
            departures: which nodes leave.
            settings: what the operator decided.
            charge_read: charges what is read from the disk for a caller.
            weight_ppm: returns how much this node recognises a peer.
            custodian_for: returns whether this node may be the custodian of a peer's objects.
        """
        self._context = context
        self._own = context.key.node_id
        self._hosts = hosts
        self._settings = settings
        self.catalogue = ObjectCatalogue(context)
        self._client = client = HostClient(
            context, hosts=hosts, leaving=departures.leaving, lease_grace_ms=settings.lease_grace_ms
        )
        grace_ms = settings.repair_grace_ms
        watch = NodeWatch(context.clock, client, grace_ms)
        self.drain = drain = Drain(
            context,
            hosts=hosts,
            node=node,
            departures=departures,
            watch=watch,
            grace_ms=grace_ms,
        )
        departures.on_change = self.node_changed
        self._shard_server = server.ShardServer(
            context,
            leases=leases,
            node=node,
            check_room=departures.check_room,
            released=drain.keep,
            charge_read=charge_read,
        )
        self.leaf = self._shard_server.leaf
        self._finder = finder.ObjectFinder(context, client, self.catalogue.placement)
        self.adoption = finder.Adoption(self.catalogue, self._finder)
        self._owned = OwnObjects(self.catalogue, self._own)
        self.repairer = self._repairer(self._owned, watch)
        self.assignment = assignment.CustodianAssignment(
            context,
            client,
            objects=self._owned,
            repairer=self.repairer,
            weight_ppm=weight_ppm,
        )
        owners = NodeWatch(context.clock, client, grace_ms)
        self.custodian = custodian.Custodian(
            context,
            client,
            owners,
            accepts=custodian_for,
            budget_bytes=settings.guard_bytes,
        )
        self.custody_repairer = self._repairer(self.custodian, owners)
        self.possessions = possession.Possessions(
            client,
            self._finder,
            self.catalogue,
            self.custodian,
            own=self.repairer,
            custody=self.custody_repairer,
        )
        self.resume_journals = ResumeJournals(context, client)
        self.read_ahead = read_ahead_cache.ReadAheadCache()
        self._reading_together = asyncio.Semaphore(READ_AT_ONCE)

    def _repairer(self, objects: MaintainedObjects, watch: NodeWatch) -> repairer.Repairer:
        return repairer.Repairer(
            self._context,
            self._client,
            objects,
            settings=self._settings,
            finder=self._finder,
            watch=watch,
            drain=self.drain,
        )

    def node_changed(self) -> None:
        """Take note that a peer came up or went down, or is leaving."""
        self.repairer.node_changed()
        self.custody_repairer.node_changed()
        self.drain.wake()

    def node_up(self, node: bytes) -> None:
        """Take note that a peer has come up: how it was before it was down counts no more."""
        self._client.forget(node)
        self.adoption.node_up()

    async def leases_denied(self, leases: Collection[bytes]) -> None:
        """Look at once at what lies under leases that their host does not know any more."""
        self.repairer.look_at(
            [
                ref
                async for ref, entry in sliced(self.catalogue.entries())
                if any(item.lease_id in leases for item in entry.held)
            ]
        )

    # Customer: putting

    def default_contract(self, code: tuple[int, int]) -> durability.Contract:
        """Return the default contract: as configured, else what all known nodes could keep."""
        if self._settings.survive is not None:
            return self._settings.survive
        return default_contract(erasure.Code(*code), 1 + len(self._hosts.peers()))

    async def put(
        self,
        source: AsyncIterator[bytes],
        *,
        name: str,
        size_hint: int | None = None,
        contract: durability.Contract | None = None,
        code: tuple[int, int] = (4, 2),
        resume: bytes | None = None,
    ) -> Uploaded:
        """Store a stream; return once every host has confirmed with a receipt.

        Args:
            source: the bytes, in chunks of any size.
            name: what `ls` shows.
            size_hint: the length where it is known; a wrong one costs time, nothing else.
            contract: refuse, before anything is sent, where losing that much
                could lose the object. None: the default contract.
            code: k data and m parity shards.
            resume: an id of 32 bytes, the same for the same content and options: a put of
                that id which broke off goes on, and what it has stored is not sent again.

        Raises:
            UploadChanged: the put that broke off had another content; it is gone now.
            DurabilityUnreachable: no placement at the known nodes keeps the contract.
            CreditExceeded, SpaceExhausted, NoOffers: too few of them take it now, and why;
                or nobody takes a failed host's place.
        """
        if not name.startswith(names.HIDDEN):
            names.check_name(name)
        began_ms = self._context.clock.monotonic_ms()
        contract = self.default_contract(code) if contract is None else contract
        secret = self._context.entropy.token(SECRET_BYTES)
        locate = VerifyCapability(verify_key(secret), bytes(32)).locate
        turn = self.resume_journals.turn(resume or locate, resumes=resume is not None)
        async with turn as journal:
            kept = None if resume is None else await self._kept(resume, journal)
            upload = Upload(
                self._client,
                self._context.key,
                self._context.entropy,
                code=erasure.Code(*code),
                contract=contract,
                journal=journal,
                secret=secret if kept is None else kept.head.secret,
                kept=kept,
            )
            done = await upload.run(source, size_hint)
            version = await self.catalogue.add(done, name, await journal.forget())
        self.repairer.note_placed(done.placement)
        for warning in done.warnings:
            self._context.log.warning("storage.put_warning", warning=warning)
        rent = sum(self._hosts.lease_price(item.lease_id) * item.size_bytes for item in done.held)
        self._context.log.info(
            "storage.put",
            size_bytes=done.size_bytes,
            held_bytes=sum(item.size_bytes for item in done.held),
            hosts=len(set(done.hosts)),
            month_micro=rent * MONTH_MS // (limits.EPOCH_MS * limits.PRICE_BYTES),
            duration_ms=self._context.clock.monotonic_ms() - began_ms,
        )
        return replace(done, version=version)

    async def _kept(self, resume: bytes, journal: ResumeJournal) -> Kept | None:
        """Return what a put can go on with."""
        try:
            kept = await journal.going_on()
        except errors.StoreDamaged as fault:
            await self.resume_journals.give_up(resume, fault)
            kept = None
        if kept is None:
            await self.resume_journals.set_apart(resume)
        return kept

    # Customer: finding and reading

    async def drop_gone(self, ref: bytes) -> bool:
        """Take an object off the list where no other host has it any more; say whether it did.

        For a list of the past: what a newer one lacks was deleted, if its hosts agree. An
        object of which this node alone is the host stays.
        """
        entry = self.catalogue.entry(ref)
        if entry is None or entry.deleting:
            return False
        verify = parse_verify(entry.capability)
        others = {item.node for item in entry.held} - {self._own}
        try:
            for node in sorted(others):
                if await self._client.find(node, verify.locate, ref) is not None:
                    return False
        except errors.XscError:
            return False
        if others:
            await self.rm(entry.capability)
        return bool(others)

    def orders(self) -> tuple[Counter[bytes], set[bytes]]:
        """Return what the own records name under each lease, and where something was on its way.

        The first are bytes of objects, objects in custody and puts under way; the second are leases
        of the transfers that a crash may have cut off.
        """
        held, doubts = self.resume_journals.orders()
        for records in (self.catalogue.entries(), self.custodian.store.objects()):
            for _, record in records:
                for item in record.held:
                    held[item.lease_id] += item.size_bytes
                    if not item.size_bytes:
                        doubts.add(item.lease_id)
        for listed in self.catalogue.unfound():
            for host in listed.held:
                held[host.lease_id] += host.size_bytes
        return held, doubts

    async def open(self, capability: str) -> get.ObjectReader:
        """Return a reader of an object.

        Raises:
            CapabilityInvalid: not a read capability.
            ObjectUnknown: nobody who answers knows it.
        """
        read = parse_read(capability)
        return get.ObjectReader(
            self._client,
            await self._finder.locate(read.verify),
            read.content_key,
            self.read_ahead,
            search=partial(self._finder.search, read.verify),
        )

    async def contents(self, capabilities: Sequence[str]) -> list[bytes]:
        """Return all of some small objects: what they ask of the same hosts travels together.

        Raises:
            TooLarge: together they have more than a segment; nothing was fetched.
            XscError: as `open` and `ObjectReader.stream`, of the first that cannot be read.
        """
        if len(capabilities) > limits.READ_TOGETHER_MAX:
            raise errors.TooLarge(f"at most {limits.READ_TOGETHER_MAX} objects are read together")

        async def opened(capability: str) -> get.ObjectReader:
            async with self._reading_together:
                return await self.open(capability)

        async def read(reader: get.ObjectReader) -> bytes:
            async with self._reading_together:
                return await reader.whole()

        readers = await together(map(opened, capabilities))
        if sum(reader.size_bytes for reader in readers) > limits.SEGMENT_BYTES:
            raise errors.TooLarge(
                f"objects that are read together have at most {limits.SEGMENT_BYTES} bytes"
            )
        return await together(map(read, readers))

    async def run_read_ahead(self) -> None:
        """Forget what readers that went away did not come back for, until cancelled."""
        while True:
            await self._context.clock.sleep_ms(limits.READ_AHEAD_KEPT_MS // 2)
            self.read_ahead.expire(self._context.clock.monotonic_ms())

    async def refer(self, capability: str) -> Referred:
        """Return what lets others read an object, and whom of them it spares bytes.

        Raises:
            CapabilityInvalid, ObjectUnknown: as `open`.
        """
        read = parse_read(capability)
        located = await self._finder.locate(read.verify)
        columns = likely_columns(located.holders, (), self._own)
        return Referred(
            read.manifest_hash,
            located.manifest.size_bytes,
            refer(located, columns, read.content_key),
            spared_bytes(located.manifest, columns),
        )

    async def read_reference(self, raw: bytes, size_max: int) -> tuple[bytes, int]:
        """Read an object that another node refers to, own shards first.

        Return it, and how many bytes of it came from others.

        Raises:
            TooLarge: it has more than `size_max` bytes; nothing was fetched.
            RecordInvalid: the reference is wrong.
            ShardsInsufficient: too few shards can be fetched from here.
        """
        located, content_key = open_reference(raw)
        if located.manifest.size_bytes > size_max:
            raise errors.TooLarge(f"the object is over {size_max} bytes")
        cache = read_ahead_cache.ReadAheadCache()
        reader = get.ObjectReader(self._client, located, content_key, cache, own_first=True)
        return await reader.whole(), reader.received_bytes

    # Customer: looking after

    async def stat(self, capability: str) -> shown.Stat:
        """Return what the hosts say of an object; a verify capability is enough.

        Raises:
            CapabilityInvalid, ObjectUnknown: as `open`.
        """
        found, _ = await self._stat(parse_verify(capability))
        return found

    async def _stat(self, verify: VerifyCapability) -> tuple[shown.Stat, get.Located]:
        located = await self._finder.locate(verify)
        manifest = located.manifest
        is_own = self.catalogue.placement(verify) is not None
        if manifest.inline is not None and not is_own:
            located = await self._finder.search(verify, located)
        answers = await self._finder.ask(chain(*located.holders), verify, manifest)
        best = partial(best_columns, placed=is_own)
        columns, states = await self._context.executor.run(best, located, answers)
        if is_own and manifest.inline is None and set(states) & {"missing", "corrupt"}:
            # A custodian may have built them again elsewhere.
            found = await self._finder.search(verify, located)
            both = zip(located.holders, found.holders, strict=True)
            holders = tuple(tuple(dict.fromkeys((*own, *other))) for own, other in both)
            located = replace(located, holders=holders)
            fresh = {*chain(*holders)} - answers.keys()
            answers |= await self._finder.ask(fresh, verify, manifest)
            columns, states = await self._context.executor.run(best, located, answers)
        holding = {node for node, state in zip(columns, states, strict=True) if state == "ok"}
        up = {node for node in self._hosts.peers() if self._hosts.is_up(node)}
        entry = self.catalogue.entry(verify.manifest_hash)
        ends = expiry.told_ends(answers) if entry is None else self._own_ends(entry)
        # What was asked just now is known better than by the last probes.
        up -= {node for node, held in answers.items() if held is None}
        up |= {self._own} | {node for node, held in answers.items() if held is not None}
        whole = condition(states, manifest.k, len(up - holding), inline=manifest.inline is not None)
        said = shown.Stat(
            size_bytes=manifest.size_bytes,
            code=shown.Code(k=manifest.k, m=manifest.m),
            hosts=[
                shown.Host(shard=column, node=node, state=state)
                for column, (node, state) in enumerate(zip(columns, states, strict=True))
            ],
            readable=whole.readable,
            margin=whole.margin,
            healable=whole.healable,
            ends_ms=expiry.first_end(ends),
            ending=self._ending(ends),
        )
        return said, located

    def _own_ends(self, entry: ObjectEntry) -> list[shown.Ending]:
        held = ((item.node, item.lease_id) for item in entry.held if item.size_bytes)
        return expiry.own_ends(held, self._own, self._hosts.lease_end)

    def _denied(self, entry: ObjectEntry) -> set[bytes]:
        """Return the hosts that have signed that they know none of the leases of an object."""
        leases: dict[bytes, list[bytes]] = {}
        for item in entry.held:
            if item.size_bytes:
                leases.setdefault(item.node, []).append(item.lease_id)
        return {node for node, ids in leases.items() if all(map(self._hosts.is_denied, ids))}

    def _ending(self, ends: Sequence[shown.Ending]) -> list[shown.Ending]:
        return expiry.ending(ends, self._context.clock.now_ms() + self._settings.warned_ms)

    async def check(
        self,
        capability: str,
        *,
        deep: bool,
        lives_ms: Sequence[int],
        repair_ms: int,
        prove: Prove | None = None,
        watch: Watch = unwatched,
    ) -> shown.Checked:
        """Say what an object's placement is worth, and with `deep` read every shard of it.

        A verify capability is enough: nothing is deciphered.

        Args:
            capability: of the object.
            deep: fetch and verify every shard of every column.
            lives_ms: mean time to the loss of a failure domain for good, by kind, for the estimate.
            repair_ms: mean time until a lost column is rebuilt, likewise.
            prove: challenges the nodes of its columns.
            watch: of the bytes that are read with `deep`.

        Raises:
            CapabilityInvalid, ObjectUnknown: as `open`.
        """
        verify = parse_verify(capability)
        found, located = await self._stat(verify)
        proofs = [] if prove is None else await prove(verify, [each.node for each in found.hosts])
        unproven = {shard: PROVEN[p.outcome] for p in proofs for shard in p.shards}
        read_bytes = 0
        bad: list[deep_read.BadShard] = []
        if deep:
            columns = [host.node for host in found.hosts]
            read_bytes, bad = await deep_read.read_every_shard(
                self._client, located, columns, watch=watch
            )
        broken = {fault.column for fault in bad}
        states: list[State] = [
            host.state
            if host.state != "ok"
            else "corrupt"
            if host.shard in broken
            else unproven.get(host.shard, "ok")
            for host in found.hosts
        ]
        nodes = [
            host.node
            for host, state in zip(found.hosts, states, strict=True)
            if state == "ok" and host.node is not None
        ]
        await self._hosts.learn_labels(nodes)
        live = self._client.labels_of(nodes)
        spares = len(live) - found.code.k
        contract = located.manifest.contract
        survives = durability.survival(live, spares) if spares > 0 else durability.Contract()
        hosts = zip(found.hosts, states, strict=True)
        told = {each.name: getattr(found, each.name) for each in fields(found)}
        if broken or unproven:
            told |= {"readable": spares >= 0, "margin": spares, "healable": spares >= 0}
        told["hosts"] = [replace(host, state=state) for host, state in hosts]
        return shown.Checked(
            **told,
            survives=survives.shown_for(contract).to_text(),
            domains={
                kind: shown.Domains(known=each.known, unknown=each.unknown)
                for kind, each in zip(durability.KINDS, durability.domains_of(live), strict=True)
            },
            contract=contract.to_text() if contract != durability.Contract() else None,
            contract_kept=survives.meets(contract),
            yearly_loss_ppb=await self._context.executor.run(
                partial(
                    durability.yearly_loss_ppb, live, spares, lives_ms=lives_ms, repair_ms=repair_ms
                )
            ),
            read_bytes=read_bytes,
            proofs=proofs,
            bad=[
                shown.BadShard(
                    segment=each.segment, shard=each.column, node=each.node, reason=each.reason
                )
                for each in bad
            ],
        )

    async def repair(self, capability: str, progress: Progress | None = None) -> shown.Repaired:
        """Mend one object that this node stored, now.

        Raises:
            CapabilityInvalid, ObjectUnknown: as `open`.
            NotAllowed: this node does not look after it.
        """
        verify = parse_verify(capability)
        self.repairer.watch.look()
        done = await self.repairer.repair(verify.manifest_hash, progress)
        if done is None:
            raise errors.NotAllowed(
                "this node does not look after that object",
                hint="the node that stored it does, and those that it asked to",
            )
        return done

    def margins(self) -> Counter[int]:
        """Return how many objects have a margin, by the hosts that answer now."""
        found = self.repairer.margins()
        if unfound := len(self.catalogue.unfound()):
            found[UNFOUND_MARGIN] += unfound
        return found

    def ls(self) -> list[shown.Object]:
        """Return the objects that this node stored, oldest first."""
        return sorted(self.rows(), key=in_order)

    def rows(self) -> Iterator[shown.Object]:
        """Yield the same in no order: for who lets other tasks run meanwhile."""

        def row(entry: ObjectEntry, **found: Any) -> shown.Object:  # noqa: ANN401 (its fields)
            ends = self._own_ends(entry)
            return shown.Object(
                name=entry.name,
                version=entry.version,
                capability=entry.capability,
                size_bytes=entry.size_bytes,
                created_ms=entry.created_ms,
                ends_ms=expiry.first_end(ends),
                ending=self._ending(ends),
                **found,
            )

        for _, entry in self.catalogue.entries():
            if not entry.deleting:
                hosts, lost = entry.placement.columns, self._denied(entry)
                up = [node for node in hosts if self._client.is_up(node) and node not in lost]
                margin = len(up) - entry.placement.k
                survives_nodes = losses_survived(up, max(0, margin))
                yield row(entry, margin=margin, survives_nodes=survives_nodes, hosts=hosts)
        for unfound in self.catalogue.unfound():
            entry = self.catalogue.entry_of_unfound(unfound)
            yield row(entry, margin=UNFOUND_MARGIN, survives_nodes=0, hosts=())

    async def rm(self, capability: str) -> RmResult:
        """Delete an object at every host; hosts that are silent are asked by the next `rm`.

        Raises:
            CapabilityInvalid, ObjectUnknown: as `open`.
            NotAllowed: another node stored it.
        """
        verify = parse_verify(capability)
        ref = verify.manifest_hash
        await self.catalogue.begin_deletion(ref)
        # A repair under way stops, and writes what is where, before this begins.
        async with self._owned.turns.of(ref), self.catalogue.rows.of(ref):
            return await self._rm(verify)

    async def _rm(self, verify: VerifyCapability) -> RmResult:
        ref = verify.manifest_hash
        entry = self.catalogue.entry(ref)
        if entry is None:
            located = await self._finder.locate(verify)
            if located.manifest.owner != self._own:
                raise errors.NotAllowed("only the node that stored an object can delete it")
            nodes = {node for nodes in located.holders for node in nodes}
            held = tuple(Held(node, b"", 0) for node in sorted(nodes))
        else:
            held = entry.held
        left, receipts = await self._client.delete_all(verify.locate, held)
        began_ms, over = self.catalogue.deletion_began_ms(ref), list[Held]()
        for item in left if entry is not None else ():
            if self._client.has_dropped(item.node, item.lease_id, began_ms):
                over.append(item)
                await self._client.note_freed(*item)
                self._context.log.info(
                    "storage.deletion_over", peer=short(item.node), object=short(ref)
                )
        confirmed = {item.node for item in held} - {item.node for item in left}
        left = tuple(item for item in left if item not in over)
        # The own node gives no receipt to itself.
        others = tuple(receipt for receipt in receipts if receipt.author != self._own)
        await self.catalogue.note_deletion(ref, entry, left)
        await self.assignment.release(ref)
        name = "" if entry is None or entry.name.startswith(names.HIDDEN) else entry.name
        silent = sorted({item.node for item in left})
        return RmResult(tuple(sorted(confirmed)), tuple(silent), others, name, bool(over))

    async def retry_deletions(self) -> Retried:
        """Ask again where a deletion was not confirmed."""
        done = left = given_up = 0
        for ref in [ref async for ref, entry in sliced(self.catalogue.entries()) if entry.deleting]:
            async with self._owned.turns.of(ref), self.catalogue.rows.of(ref):
                entry = self.catalogue.entry(ref)
                if entry is None:
                    continue  # Somebody else has finished it meanwhile.
                result = await self._rm(parse_verify(entry.capability))
            given_up += result.given_up and not result.partly
            done += not (result.given_up or result.partly)
            left += result.partly
        return Retried(done, left, given_up)

    # Host

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {
            **self._shard_server.handlers(),
            **self.custodian.handlers(),
            **self.assignment.handlers(),
            **self.drain.handlers(),
        }

    def group_handlers(self) -> dict[str, peering.GroupHandler]:
        """Return what answers several calls that came together."""
        return self._shard_server.group_handlers()
