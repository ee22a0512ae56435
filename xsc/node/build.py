"""Puts the services together and starts them in order.

The daemon and the simulation call the same `build`; they differ in the parts
that they hand in (docs/glossary.md, "port"). A service is passed the ones made
before it; what it needs of a later one is bound late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from xsc.allocation import allocating, commitments, declaring, explaining, program, published
from xsc.allocation.records import Records
from xsc.api import home as api
from xsc.api.endpoint import filled
from xsc.api.problems import Problem
from xsc.base import bounded, errors, ids, keyvalue, peering
from xsc.base.clock import Clock, Entropy, Executor
from xsc.base.limits import (
    ALLOCATION_LOOK_MS,
    LEASE_TIMEOUT_MS,
    MFUEL,
    PPM,
    PROBE_TIMEOUT_MS,
    STORAGE_QUESTION_TIMEOUT_MS,
)
from xsc.compute.deployments.listing import ServiceListing
from xsc.compute.deployments.service import DeploymentService
from xsc.compute.jobs.evidence import EvidenceStore
from xsc.compute.jobs.executor import RUN
from xsc.compute.service import ComputeService
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import Sandbox
from xsc.dashboard.session import Sessions
from xsc.db.group import GroupCommit
from xsc.health.attending import Attended
from xsc.health.challenge import SLOT_MS
from xsc.health.challenging import ANSWER_BOUNDS as PROOF_BOUNDS
from xsc.health.challenging import ChallengeService
from xsc.health.scoring import LEARN_MS, Scores
from xsc.health.service import HealthService
from xsc.identity.keys import KeyPair
from xsc.ledger import checkpoints
from xsc.ledger.checkpoints import LOOK_MS
from xsc.ledger.gossip import ForkGossip
from xsc.ledger.limits import LimitSettings, Trust
from xsc.ledger.proposals import PROPOSE
from xsc.ledger.service import LedgerService
from xsc.ledger.verifying import Checking
from xsc.market.auction import Bid, reserve
from xsc.market.lease_store import used_leases
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.pricing import PriceList, domain
from xsc.market.service import MarketService
from xsc.monitor import alerts, events, history, watch
from xsc.net.service import PeerNet
from xsc.net.transport.port import Transport
from xsc.node import circle, directory, jobs, programs, tasks
from xsc.node.config import Config
from xsc.programs import functions, provenance
from xsc.programs import running as programs_running
from xsc.programs.service import CellSyncManager, ComputeRuntimeManager
from xsc.space import following, intervals, paths, sync
from xsc.space.store import SpaceStore
from xsc.storage.catalogue.heads import DirectoryHeadStore
from xsc.storage.object.messages import ANSWER_BOUNDS, DELETE, FIND, GET, HOLDS, KEEP, PUT, STAT
from xsc.storage.repair.custodian import GUARD, UNGUARD
from xsc.storage.repair.drain import Departures
from xsc.storage.service import StorageService
from xsc.storage.shardstore.store import StorageNode
from xsc.storage.sweeper import Sweeper
from xsc.terms.pricing import Ladder
from xsc.terms.quote import Kind
from xsc.terms.slot import STEP, AvailabilitySlot, EntitlementKey

SWEEP_INTERVAL_MS = 3_600_000
"""Between two rounds in which a host looks for what it need not keep."""

RECLAIM_INTERVAL_MS = 10_000
RECLAIM_PAUSE_MS = 20
"""Between two slices of a compaction, for writers."""
FAULTS_KEPT = 256
"""Answers that broke off, of which it is known why."""
DAY_MS = 86_400_000
_OFFER_PAUSES_MS = (100, 200, 400, 800)
"""Between looks for what a peer offers that has published nothing yet."""
SPACE_COMPACT_INTERVAL_MS = 6 * 3_600_000


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything of a node that touches the world."""

    clock: Clock
    entropy: Entropy
    executor: Executor
    transport: Transport
    stores: keyvalue.Stores
    sandbox: Sandbox
    log: events.CountedLog
    disk_free_bytes: Callable[[], int]
    """What the disk under the bodies has left, less the share that is kept free."""
    checking: Checking | None = None
    """Of the ledger's signatures, where more than this process is to do it."""


def trust_in(node: Node, peer: bytes) -> Trust:
    """Return by what a peer's limit rises: on whose word it is known, and mutual recognition."""
    info = node.peers.roster.get(peer)
    if info is None:
        return Trust("stranger")
    if info.blocked or node.scores.grade(peer) == "barred":
        return Trust("barred")
    mutual_ppm = node.commitments.recognition_ppm(peer)
    return Trust("direct" if info.through is None else "introduced", mutual_ppm)


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """What the node has to offer: shard store and sandbox, as the market asks for them.

    A node that leaves offers nothing.
    """

    shards: StorageNode
    disk_free_bytes: Callable[[], int]
    steps_a_second: int
    departures: Departures

    def level(self, kind: Kind) -> int:
        """Return what there is of a kind in all: bytes, or fuel a second."""
        return self.shards.writer.capacity_bytes if kind == "storage" else self.steps_a_second

    def free(self, kind: Kind) -> int:
        """Return the bytes neither held nor reserved, at most what the disk has left; or all fuel.

        Leases, not running jobs, take fuel from it, and the market counts those.
        """
        if self.departures.here:
            return 0
        if kind == "compute":
            return self.steps_a_second
        # What is being written takes from the disk, too, and may not be there yet.
        on_disk = self.disk_free_bytes() - self.shards.writer.reserved_bytes
        return max(0, min(self.shards.writer.free_bytes, on_disk))


def market_settings(config: Config) -> MarketSettings:
    """Return what the operator decided, as the market takes it."""
    storage, compute = config.storage_price_micro, config.compute_price_micro
    return filled(
        MarketSettings,
        config,
        prices=filled(PriceList, config, storage=storage, compute=compute),
        price_max={
            "storage": config.storage_price_max_micro,
            "compute": config.compute_price_max_micro,
        },
        lease_warning_ms=config.warned_ms,
    )


class Providers:
    """Those who give capacity under leases, as storage's `Hosts` and compute's `ServiceLeases`."""

    def __init__(self, market: MarketService, health: HealthService, peers: peering.Peers) -> None:
        self.peers = peers.peers
        self.is_up = health.is_up
        self.is_absent = health.is_absent
        self.response_ms = health.response_ms
        self.report = health.report
        self.labels = market.providers.labels
        self.learn_labels = market.providers.learn_labels
        self.lease_hosts = market.buyer.lease_hosts
        self.unplaced = market.default_need.refused
        self.placed = market.default_need.placed
        self.lease_compute = market.buyer.lease_compute
        self.lease_service = market.buyer.lease_service
        self.lease_providers = market.buyer.lease_providers
        self.lease_end = market.signing.end_of
        self.lease_price = partial(market.store.price, "customer")
        self.used = market.buyer.used
        self.spent = market.buyer.spent
        self.unused = market.buyer.unused
        self.refused = market.buyer.refused
        self.is_denied = market.buyer.is_denied
        self.price_and_room = market.buyer.price_and_room
        self.rates_at = market.default_need.rates_at


class _Published:
    """What nodes have published, as the market asks for it; what is not here is fetched."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._silent: set[bytes] = set()
        """Nodes that were waited for, and published nothing."""
        self.tier = node.commitments.tier
        self.quote = node.commitments.quote
        self.labels = node.commitments.labels

    async def learn(self, nodes: Sequence[bytes], *, anew: bool = False) -> None:
        """Fetch what nodes that are up have published, where it is not here yet, or anew.

        One that has just come is waited for, once: it publishes what it offers in a moment.
        """
        for pause_ms in _OFFER_PAUSES_MS:
            unknown = [node for node in nodes if anew or self.labels(node) is None]
            await asyncio.gather(*(self._fetch(node) for node in unknown))
            unknown = [node for node in unknown if self.labels(node) is None]
            if anew or self._silent.issuperset(unknown):
                return
            await self._node.clock.sleep_ms(pause_ms)
        self._silent.update(unknown)

    async def _fetch(self, node: bytes) -> None:
        try:
            async with asyncio.timeout(LEASE_TIMEOUT_MS / 1_000):
                await self._node.following.read(node, paths.UserSpacePaths.COMMITMENT, anew=True)
                with suppress(errors.NotFound):  # Without one it recognises nobody.
                    # It says on which tier this node is served.
                    await self._node.following.read(
                        node, paths.UserSpacePaths.RECOGNITION, anew=True
                    )
        except (errors.XscError, TimeoutError) as fault:
            self._node.log.info("market.no_offer_heard", peer=ids.short(node), fault=repr(fault))


class Node:
    """The services of one node, connected: starts them in order, and stops them."""

    def __init__(
        self, config: Config, key: KeyPair, network: str, parts: Parts, *, recovering: bool = False
    ) -> None:
        """Put the services together; nothing runs before `start`."""
        self.config = config
        self.key = key
        self.network = network
        self.clock = parts.clock
        self.log = parts.log
        self.parts = parts
        self.watch = watch.Watch(parts.clock)
        self.sessions = Sessions(parts.clock, parts.entropy)
        self.tasks = tasks.Tasks(parts.clock, parts.log)
        self.started_ms = parts.clock.monotonic_ms()
        self.api_url = ""
        self.home = Path()
        """Where its files are, set by who starts it there."""
        self.faults: bounded.Bounded[str, Problem] = bounded.Bounded(FAULTS_KEPT)
        """Why answers of the API broke off, by the ids of the requests."""
        self.ended: asyncio.Future[errors.XscError | None] = (
            asyncio.get_running_loop().create_future()
        )
        """Set once the node is to stop, to the reason where it may not go on."""
        self._make_net()
        self._make_ledger(recovering=recovering)
        self._make_space()
        self._make_market()
        self._make_allocation()
        self._make_storage()
        self._make_compute()
        self._make_programs()
        self._make_monitor()
        self._answer_peers()

    def _make_net(self) -> None:
        """Make what calls peers and answers them."""
        config, parts = self.config, self.parts
        self._state_commit = GroupCommit(parts.stores.state, parts.executor)
        self.peers = PeerNet(
            key=self.key,
            network_name=self.network,
            clock=parts.clock,
            entropy=parts.entropy,
            executor=parts.executor,
            transport=parts.transport,
            log=parts.log,
            state=parts.stores.state,
            commit=self._state_commit.commit,
            name=config.name,
            advertise=config.advertise,
            accepts=config.accept_peers == "introduced",
        )

    def _make_ledger(self, *, recovering: bool) -> None:
        """Make the services that know how peers are, and what is owed."""
        config, parts, context = self.config, self.parts, self.peers.context
        self.ledger = LedgerService(
            context,
            credit=LimitSettings(
                config.starter_credit_micro,
                config.recognised_credit_ppm,
                config.repaid_credit_ppm,
                config.credit_max_starters,
            ),
            trust=partial(trust_in, self),
            recovering=recovering,
            shares_with=self.peers.roster.shares_with,
            checking=parts.checking,
        )
        self.scores = Scores(
            context,
            self.peers.roster,
            # Those who know it are made later.
            recognition_ppm=lambda peer: self.commitments.recognition_ppm(peer),  # noqa: PLW0108
            fork=self.ledger.chain.forks.of,
        )
        self.health = HealthService(
            context,
            scores=self.scores,
            peers=self.peers.roster,
            once=self.tasks.once,
            # The market, which knows it, is made later.
            domain_of=lambda peer: self.market.providers.domain(peer),  # noqa: PLW0108
            interval_ms=config.probe_interval_ms,
            timeout_ms=min(config.probe_interval_ms, PROBE_TIMEOUT_MS),
        )
        attended = Attended(context.clock, self.peers, self.health.is_there)
        self._attending = replace(context, caller=attended)

    def _make_space(self) -> None:
        """Make the space, what this node says of itself in it, and what it follows of peers."""
        config, parts, context = self.config, self.parts, self.peers.context
        self.space = SpaceStore(
            parts.stores.space,
            context,
            introducer_of=self.peers.roster.introducer_of,
            keep_versions=config.keep_versions,
            keep_ms=config.keep_days * DAY_MS,
        )
        self.commitments = commitments.Commitments(
            context,
            self.space,
            self.peers.roster,
            posted=self._posted,
            by_default=self._by_default,
            on_withdrawn=self._need_withdrawn,
            # Whom a node follows depends on its recognition.
            on_recognised=self._recognition_changed,
            before_stand=self._before_stand,
            site=config.site,
            owner=config.owner,
        )
        self.sync = sync.SpaceSync(
            self.space, context, spend=self.peers.server.charge_work, blame=self._blame_replica
        )
        self.intervals = intervals.Intervals(
            self.space, context, peers=self.peers.peers, is_direct=self.peers.roster.is_direct
        )
        self.following = following.Following(
            context,
            self.space,
            self.sync,
            self.peers.roster,
            self.commitments,
            start=self.tasks.start,
            is_up=self.health.is_up,
        )
        self.circle = circle.CircleSync(
            self.peers,
            self.space,
            self.sync,
            before_write=self.intervals.get,
            blame=self._blame_replica,
        )
        known = checkpoints.Circle(
            self.peers.roster,
            self.health.is_up,
            self.commitments.weight_ppm,
            self.space,
            self._before_stand,
            self.ledger.seals.seal_all,
        )
        self.checkpoints = checkpoints.Checkpoints(context, self.ledger.chain, known)
        self.forks = ForkGossip(context, self.ledger.chain, self.checkpoints, known)
        self.ledger.chain.forks.on_change = self.scores.forked

    def _make_market(self) -> None:
        """Make what offers the capacity of this node, and leases that of others."""
        config, parts, context = self.config, self.parts, self.peers.context
        self.shards = StorageNode(
            capacity_bytes=config.storage_capacity_bytes,
            bodies=parts.stores.bodies,
            index=parts.stores.index,
            executor=parts.executor,
            log=parts.log,
        )
        self.departures = Departures(self.space, self.space.owners(), self.space.told, context.log)
        self.capacity = NodeCapacity(
            self.shards,
            parts.disk_free_bytes,
            config.compute_workers * config.worker_speed_mfuel * MFUEL,
            self.departures,
        )
        self._ports = MarketPorts(
            peers=self.peers.roster,
            credit=self.ledger,
            quality=self.health,
            standing=_Published(self),
            capacity=self.capacity,
            leaving=self.departures.leaving,
            needs=lambda: self.commitments.own.needs,
            need_of=lambda who, kind, named: declaring.need_of(
                self.commitments.heard.of(who).commitment, kind, named
            ),
            on_need=self.commitments.stir,
        )
        self.market = MarketService(
            self._attending,
            self._ports,
            settings=market_settings(config),
        )
        self.parts.sandbox.keep_workers(self.market.headroom.cleared_workers)
        self._providers = Providers(self.market, self.health, self.peers.roster)

    def _make_allocation(self) -> None:
        """Make what clears slots and needs."""
        config, context = self.config, self.peers.context
        records = Records(
            context,
            space=self.space,
            read=self.following.read,
            heard=self.commitments.heard,
            once=self.tasks.once,
            report=self.health.report,
            shares_with=self.peers.roster.shares_with,
        )
        self.allocator = allocating.Allocator(
            context,
            space=self.space,
            commitments=self.commitments,
            peers=self.peers.roster,
            market=self.market.headroom,
            records=records,
            is_up=self.health.is_up,
            on_offered=self.market.signing.wake,
            held=self.market.signing.held_steps,
            look_ms=min(ALLOCATION_LOOK_MS, config.storage_lease_ms // 64),
        )
        self._ports.granted = lambda: self.allocator.granted
        self._ports.received = self.allocator.offered
        self.explaining = explaining.Explaining(
            context,
            records=records,
            heard=self.commitments.heard,
            peers=self.peers.roster,
            is_up=self.health.is_up,
            drawn=self.drawn_steps,
        )

    def _posted(self, kind: Kind, reserve: int | None) -> Ladder:
        """Return the prices of an offer at a reserve, or at the present one for None."""
        return self.market.headroom.pricing().ladder(kind, reserve)

    def _need_withdrawn(self, kind: Kind) -> None:
        """Wait no more for room that was refused, if that is the need that was withdrawn."""
        if kind == "storage":
            self.market.default_need.withdraw()

    def _by_default(self, role: type[declaring.Either], kind: Kind) -> dict[str, Any]:
        """Return what this node offers or needs of a kind by default, at its prices of now.

        For what runs at a provider that its owner has chosen, it pays the most that it pays at all.
        """
        if role is AvailabilitySlot:
            level = 0 if self.config.offer == "none" else self.capacity.level(kind)
            return declaring.offered(kind, level, self._posted(kind, None))
        if kind == "compute":
            need = declaring.standing_need(self.commitments.own, kind)
            parts = () if need is None else need.parts
            rates = self.services.owner.rates({node: steps * STEP[kind] for node, steps in parts})
            return declaring.needed(kind, rates, self.config.compute_price_max_micro)
        short_bytes, spread = self.market.default_need.short()
        held = self.market.default_need.held()
        return declaring.needed(kind, held, self._storage_price(), short_bytes, spread)

    def _storage_price(self) -> int:
        """Return what a put would pay at most now, by what peers offer by default."""
        heard, bids = self.commitments.heard, []
        for peer in self.peers.roster.peers():
            there = heard.of(peer)
            slot = declaring.standing_slot(there.commitment, "storage")
            if slot is not None:
                tier, _ = published.standing(there, heard.of(self.key.node_id))
                where = domain(slot.location, slot.owner, peer)
                bids.append(Bid(peer, slot.ladder.rung(tier), PPM, where))
        own_price = self.market.headroom.pricing().unit_price("storage")
        return reserve(bids, declaring.OBJECT_HOSTS, own_price, self.config.storage_price_max_micro)

    async def _before_stand(self) -> bool:
        """Get an interval for what is published, and say whether there is anybody to tell."""
        if not self.peers.peers():
            return False
        await self.intervals.get()
        return True

    def _make_storage(self) -> None:
        """Make the services that store objects and publish the directory."""
        config, context = self.config, self.peers.context
        self.storage = StorageService(
            self._attending,
            hosts=self._providers,
            leases=self.market.granter,
            node=self.shards,
            departures=self.departures,
            settings=config,
            charge_read=self.peers.server.charge_read,
            weight_ppm=self.commitments.weight_ppm,
            custodian_for=self._custodian_for,
        )
        self._ports.on_denied = self.storage.leases_denied
        self.challenges = ChallengeService(
            context,
            self.health,
            self.storage.possessions,
            leaf=self.storage.leaf,
            payments=self.market.settlement,
        )
        self._ports.custodians = self.storage.assignment.custodians
        self._ports.prove = self.challenges.challenge
        self.sweeper = Sweeper(
            context,
            node=self.shards,
            leases=self.market.granter,
            grace_ms=config.lease_grace_ms,
            leftover_ms=config.leftover_after_ms,
        )
        self.heads = DirectoryHeadStore(context)
        self.directory = directory.DirectoryKeeper(
            context,
            peers=self.peers,
            storage=self.storage,
            ledger=self.ledger,
            background=self.tasks.once,
            on_old_copy=self.end,
        )
        self.ledger.payments.left = self.market.headroom.credit_left
        self.ledger.proposals.leases_of = partial(used_leases, self.market.store)

    def _make_compute(self) -> None:
        """Make the services that run jobs and deployments."""
        config, parts = self.config, self.parts
        self.evidence = EvidenceStore(self.peers.network, parts.stores.state)
        self.storage.drain.copies = self.directory.copies_beside
        self.compute = ComputeService(
            self._attending,
            leases=self._providers,
            book=self.market.granter,
            sandbox=parts.sandbox,
            evidence=self.evidence,
            inputs=self.storage,
            compile_ms=config.compile_limit_ms,
        )
        self.compute.runner.limits = Limits(config.fuel, config.memory_bytes, config.timeout_ms)
        self.job_inputs = jobs.JobInputs(self.storage, parts.executor)
        self.services = DeploymentService(
            self._attending,
            leases=self._providers,
            book=self.market.granter,
            runner=self.compute.runner,
            serving=bool(config.services_listen),
            compile_ms=config.compile_limit_ms,
            on_change=self.commitments.stir,
        )
        self.modules = jobs.Modules(parts.executor, self.services)
        self.listing = ServiceListing(self.services.registry, self.space)

    def _make_programs(self) -> None:
        """Make what runs programs on the space."""
        context = self.peers.context
        self.programs = ComputeRuntimeManager(
            programs_running.Ports(
                context,
                space=self.space,
                peers=self.following,
                find=self.find,
                sandbox=programs.Exports(self.compute.runner),
                recorder=provenance.Recorder(self.space, self.key, context.network),
            ),
            start=self.tasks.start,
            functions=functions.Functions(),
        )
        self.cells = CellSyncManager(self.programs, self.space)

    def _make_monitor(self) -> None:
        """Make what tells the operator, and keeps what was measured."""
        context = self.peers.context
        self.alerts = alerts.Alerts(context, self.config.notify, self.name_of)
        self.works = watch.Works()
        self.history = history.History(context)

    def _answer_peers(self) -> None:
        """Have the services answer what peers ask once they are served, and what this node asks."""
        for service in (
            self.ledger,
            self.checkpoints,
            self.forks,
            self.health,
            self.challenges,
            self.market,
            self.storage,
            self.heads,
            self.compute,
            self.services,
            self.sync.answering,
            self.intervals,
        ):
            self.peers.server.register(service.handlers())
        self.peers.server.register_groups(self.storage.group_handlers())
        self.peers.server.bound_answers({**ANSWER_BOUNDS, **PROOF_BOUNDS})
        self.peers.share(PUT, GUARD)
        self.peers.share(DELETE, UNGUARD, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS)
        self.peers.share(STAT, FIND, HOLDS, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS)
        self.peers.share(GET, KEEP)
        self.peers.share(RUN, halves=True)
        self.peers.share(PROPOSE, halves=True)

    def _custodian_for(self, peer: bytes) -> bool:
        """Say whether this node looks after objects of a peer while that is away."""
        if self.config.guard == "recognised":
            return self.commitments.weight_ppm(peer) > 0
        return self.config.guard == "all"

    def find(self, text: str) -> bytes:
        """Return the node that a name, an id or the beginning of one means; itself included.

        Raises:
            PeerUnknown: none, or more than one.
        """
        own = ids.to_text(self.key.node_id)
        if text == self.config.name or (len(text) >= 4 and own.startswith(text)):
            return self.key.node_id
        return self.peers.roster.find(text)

    def name_of(self, node: bytes) -> str:
        """Return a node's name; the short id of one that is no peer any more."""
        if node == self.key.node_id:
            return self.config.name
        try:
            return self.peers.roster.info(node).name
        except errors.PeerUnknown:
            return ids.short(node)

    def peer_names(self) -> dict[str, str]:
        """Return the name of every known peer, and of this node, by short id."""
        known = {ids.short(peer): self.name_of(peer) for peer in self.peers.roster.all_peers()}
        return known | {ids.short(self.key.node_id): self.config.name}

    async def join(self, invitation: str, name: str | None = None) -> bytes:
        """Become a peer of the node that issued an invitation, and get an interval from it.

        Raises:
            InvitationInvalid, PeerSilent: the peer does not take it, or does not answer.
        """
        peer = await self.peers.join(invitation, name)
        # Before anything else runs: it is asked before the first write.
        if self.space.clock is None:
            await self.space.invited_by(peer)
        return peer

    def drawn_steps(self) -> dict[EntitlementKey, int]:
        """Return the steps that leases have drawn of entitlements, here and at others."""
        taken = self.market.store.drawn_steps("customer", self.clock.now_ms())
        return taken | self.market.headroom.drawn_steps()

    @property
    def peer_url(self) -> str:
        """Where the peer surface listens; there is TLS off loopback."""
        scheme = "http" if self.parts.transport.fingerprint is None else "https"
        return f"{scheme}://{self.parts.transport.addresses()[0]}"

    async def start(self) -> None:
        """Read what was kept, serve the peers, and begin the loops.

        Raises:
            XscError: why it cannot start; what was started is stopped again.
        """
        try:
            await self.compute.start()
            await self.shards.start()
            self.commitments.start()
            # What was granted ahead of use is kept free from the first request on.
            self.allocator.start()
            await self.market.start()
            self.market.granter.reconcile(self.shards.usage)
            if not self.market.store.complete:
                self.market.buyer.reconcile(*self.storage.orders())
            await self.services.start()
            # Nothing is signed before those who answer were asked for this ledger's end.
            # Their claims are heard when each is found to be up.
            await self.ledger.confirm_head(self.peers.peers(), claims=False)
            self.peers.roster.on_change(self._peer_changed)
            self.health.on_change(self._health_changed)
            await self.peers.start()
        except errors.XscError:
            await self.stop()
            raise
        for peer in self.peers.peers():
            self.health.watch(peer)
        start = self.tasks.start
        start("circle", self.circle.take)
        start("publish", self.circle.publish)
        start("seek", self.circle.seek)
        self.following.begin()
        await self.programs.open()
        # The allocation is a program, beside its rule.
        own, again = map(programs.allocation_function, (self.allocator.state_of, program.state_of))
        self.allocator.program = self.programs.serve(programs.ALLOCATION, [own], [again])
        self.tasks.once("interval", self.intervals.get)
        self.tasks.once("survey", self.shards.compactor.survey)
        start("space", self.sync.answering.run)
        start("health", self.health.run)
        start("commitment", self.commitments.run)
        start("allocator", self.allocator.run)
        start("signing", self.market.signing.run)
        start("market", self.market.run)
        start("ledger", self.ledger.run)
        start("loops", self.ledger.loops.run)
        start("loops_daily", self.ledger.loops.run_daily)
        start("payments", self.ledger.payments.run)
        start("directory", self.directory.run)
        start("repair", self.storage.repairer.run)
        start("custodians", self.storage.assignment.run)
        start("custody", self.storage.custodian.run)
        start("repair_in_custody", self.storage.custody_repairer.run)
        start("drain", self.storage.drain.run)
        start("services", self.services.run)
        start("listing", self.listing.run)
        start("unfound", self.storage.adoption.run)
        start("resume_journals", self.storage.resume_journals.run)
        start("read_ahead", self.storage.run_read_ahead)
        self.tasks.every("space_compact", SPACE_COMPACT_INTERVAL_MS, self._compact_space)
        self.tasks.every("reclaim", RECLAIM_INTERVAL_MS, self._reclaim)
        self.tasks.every("sweep", SWEEP_INTERVAL_MS, self._sweep)
        self.tasks.every("challenges", SLOT_MS, self.challenges.round)
        self.tasks.every("scores", LEARN_MS, self.health.learn)
        self.tasks.every("checkpoints", LOOK_MS, self.checkpoints.round)
        self.tasks.every("forks", LOOK_MS, self.forks.round)
        self.log.info("node.started", node=self.key.node_id, name=self.config.name)

    async def _reclaim(self, *, everything: bool = False) -> None:
        """Return the space of deleted bodies to the disk, while all else runs."""
        pause = partial(self.clock.sleep_ms, RECLAIM_PAUSE_MS)
        await self.shards.compactor.compact(pause, everything=everything)

    async def _sweep(self) -> None:
        """Drop what need not be kept, and ask again for deletions that were not confirmed."""
        await self.sweeper.round()
        await self.storage.retry_deletions()

    async def _compact_space(self) -> None:
        """Drop old tombstones and versions of the space, and return their room to the disk."""
        await self.sync.evict()
        left = await self.space.compact()
        self.log.info("space.compacted", records=left.records, disk_bytes=left.disk_bytes)

    async def collect_garbage(self) -> api.Collected:
        """Do at once what the background does in time.

        Raises:
            StoreDamaged, SpaceExhausted: the databases cannot be read or written.
        """
        swept = await self.sweeper.round(everything=True)
        retried = await self.storage.retry_deletions()
        dead = await self.shards.compactor.survey()
        await self._reclaim(everything=True)
        return filled(
            api.Collected,
            swept,
            deletions_confirmed=retried.confirmed,
            deletions_open=retried.open,
            deletions_given_up=retried.given_up,
            reclaimed_bytes=dead,
        )

    def end(self, fault: errors.XscError | None = None) -> None:
        """Have the node stopped; with a fault, since it may not go on."""
        if not self.ended.done():
            self.ended.set_result(fault)

    async def _confirm_head(self, peer: bytes) -> None:
        """End the node where a peer that came back shows that this home is an old copy."""
        try:
            await self.ledger.confirm_head([peer])
        except errors.LedgerDamaged as fault:
            self.log.error("node.home_is_an_old_copy", fault=fault.message)
            self.end(fault)

    def _recognition_changed(self) -> None:
        self.following.recognised()
        self.allocator.wake()

    def _peer_changed(self, peer: bytes, what: str) -> None:
        self.directory.wake()
        self.following.update()
        self.allocator.wake()
        if what == "added":
            self.departures.look_at(peer)
            self.health.watch(peer)
            self.commitments.stir()
        elif what in {"removed", "blocked"}:
            self.health.forget(peer)
            self.challenges.forget(peer)
        if what == "removed":
            self.tasks.once("recognition", lambda: self.commitments.recognise(peer, 0))

    def _blame_replica(self, peer: bytes, fault: errors.XscError) -> None:
        if isinstance(fault, errors.RecordInvalid | errors.SignatureInvalid):
            self.health.report(peer, "integrity", f"space: {fault.message}")

    def _health_changed(self, peer: bytes, up: bool) -> None:
        self.directory.wake()
        self.storage.node_changed()
        self.allocator.wake()
        if up:
            self.storage.node_up(peer)
            self.tasks.once("head", lambda: self._confirm_head(peer))
            self.tasks.once("leases", lambda: self.market.settlement.agree(peer))

    async def stop_recovering(self) -> None:
        """End a node that was never started: it only asked its peers."""
        await self.tasks.stop()
        await self._close(
            self.peers.stop, self.ledger.close, self._state_commit.settle, self.space.close
        )

    async def stop(self) -> None:
        """Serve nobody any more, end the loops, let what runs finish, close the stores."""
        # What was stored last has its name at the peers, too.
        await self.directory.told()
        await self.tasks.stop()
        await self.services.stop()
        self.sync.answering.end()
        await self._close(
            # It settles what is owed, which needs the peers.
            self.market.close,
            self.peers.stop,
            self.compute.stop,
            self.ledger.close,
            self.space.close,
            self._state_commit.settle,
            self.shards.close,
        )
        self.log.info("node.stopped", node=self.key.node_id)

    async def _close(self, *services: Callable[[], Awaitable[None]]) -> None:
        """Close services in their order, and then what they have used."""
        for close in services:
            try:
                await close()
            except errors.XscError as fault:  # a full disk keeps nothing else open
                self.log.warning("node.not_closed", reason=fault.message)
        self.parts.executor.close()
        self.parts.stores.close()
