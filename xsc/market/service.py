"""The node on the market: quotes and grants leases, takes leases, and settles them.

As a provider it answers `market.quote`, gathers the `market.lease` requests of a
window and clears them together, counts what is used, checks `market.settle`
vouchers and books them through the ledger. As a customer it asks for quotes,
auctions, shares its leases between objects and runs, and sends vouchers.

What is promised or owed is on the disk before it is said. A booking is kept with
its amount until the ledger confirms it, and asked for again under the same
transfer id, so that a crash or a lost answer neither loses nor doubles it.
The rules are in `auction`, `clearing`, `lease`, `pricing` and `quote`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from xsc.base.clock import Clock, Entropy
from xsc.base.encoding import Value, tagged_sha256
from xsc.base.errors import (
    ArgumentInvalid,
    ComputeExhausted,
    CreditExceeded,
    EntryRefused,
    LeaseExhausted,
    NoOffers,
    NotAllowed,
    NotFound,
    PeerLeaving,
    PeerSilent,
    RateLimited,
    RecordInvalid,
    SpaceExhausted,
    XscError,
)
from xsc.base.fields import take_bytes, take_int, take_str
from xsc.base.gather import Gather
from xsc.base.ids import ID_BYTES, short
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import (
    CLEARING_WINDOW_MS,
    COMPUTE_LEASE_MICRO_MAX,
    COMPUTE_LEASE_RUNS,
    EPOCH_MS,
    LEASE_KEPT_MS,
    LEASE_REFUSED_MS,
    LEASE_REQUESTS_WAITING_A_CUSTOMER_MAX,
    LEASE_REQUESTS_WAITING_MAX,
    LEASE_TIMEOUT_MS,
    LEASE_WARNING_MS,
    LEASES_A_CUSTOMER_MAX,
    LEASES_DONE_A_CUSTOMER_MAX,
    NONCE_BYTES,
    PRICES_INTERVAL_MS,
    QUOTE_TIMEOUT_MS,
    ROOM_LEAST_BYTES,
    SETTLE_TIMEOUT_MS,
    SHARE_LEASES,
    STORAGE_LEASE_BYTES,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
    TIDY_MS,
    VOUCHERS_A_CUSTOMER_MAX,
    VOUCHERS_MS,
)
from xsc.base.log import Log
from xsc.base.merkle import Part
from xsc.base.peering import Caller, Handler, Peers
from xsc.base.refusals import refusal
from xsc.base.tally import Tally
from xsc.base.units import format_credits
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.market import lease as rules
from xsc.market import locality, room
from xsc.market.auction import QUALITY_PPM_LEAST, Bid, Held, Winner, dear, place, reserve
from xsc.market.clearing import Ask, affordable, by_lot, clear, within_credit
from xsc.market.denials import KNOWN, Denials
from xsc.market.lease_store import Booking, Entry, LeaseBook, Role
from xsc.market.ports import Capacity, Commit, Credit, Divide, Quality, Standing
from xsc.market.pricing import MarketPricing, PriceList, utilisation_ppm
from xsc.market.quote import domain_of, is_valid, make_quote, open_quote
from xsc.market.recall import HISTORY, Recall
from xsc.market.renewing import RENEW, LeaseEnd, Renewals
from xsc.terms.lease import OWN_LEASE, Lease, LeaseRequest
from xsc.terms.pricing import compute_amount
from xsc.terms.quote import Kind, Quote
from xsc.terms.voucher import Voucher

KINDS: Final[tuple[Kind, ...]] = ("storage", "compute")
_QUANTITY_MAX: Final = 2**63 - 1
_XID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class MarketSettings:
    """What the operator decides."""

    prices: PriceList
    storage_price_max: int
    """The most that is paid a quantum."""
    compute_price_max: int
    settle_interval_ms: int
    site: str = ""
    owner: str = ""
    lease_warning_ms: int = LEASE_WARNING_MS
    """So long before its end a lease that was not renewed is spoken of."""

    def price_max(self, kind: Kind) -> int:
        """Return the most that is paid a quantum of a kind."""
        return self.storage_price_max if kind == "storage" else self.compute_price_max


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease to use: at a peer, or OWN_LEASE at price 0 on the own node."""

    node: bytes
    lease_id: bytes
    price: int


@dataclass(frozen=True, slots=True)
class Offered:
    """Leases to use at distinct nodes, and why others gave none where they are too few."""

    leases: list[Granted]
    refused: dict[bytes, XscError]


@dataclass(frozen=True, slots=True)
class LeaseView:
    """One lease, for people."""

    role: Role
    kind: Kind
    peer: bytes
    lease_id: bytes
    status: rules.Status | Literal["denied"]
    """`denied`: this node is the customer, and the provider signed that it knows no such lease."""
    price: int
    quantity: int
    held_bytes: int
    used: int
    """Byte-epochs begun, or fuel steps spent."""
    due_micro: int
    settled_micro: int
    start_ms: int
    end_ms: int
    renewals: int = 0
    """How often it was renewed."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A lease request in the present window."""

    request: Signed[LeaseRequest]
    raw: bytes


@dataclass(frozen=True, slots=True)
class _KeptQuote:
    """A quote, and how both nodes recognised each other when it came."""

    quote: Signed[Quote]
    standing: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A lease that this node asked for."""

    request: LeaseRequest
    raw: bytes
    domain: bytes


def _kind(header: dict[str, Value]) -> Kind:
    text = take_str(header, "kind")
    for kind in KINDS:
        if text == kind:
            return kind
    raise RecordInvalid("the field 'kind' must be 'storage' or 'compute'")


def _xid(lease_id: bytes, booking: Booking) -> bytes:
    """Return the transfer id of a booking: the same for the same try, whenever it is made."""
    number, attempt = booking.number.to_bytes(8, "big"), booking.attempt.to_bytes(8, "big")
    return tagged_sha256("settle/xid", lease_id, number, attempt)[:_XID_BYTES]


_EXHAUSTED: dict[Kind, type[XscError]] = {
    "storage": SpaceExhausted,
    "compute": ComputeExhausted,
}
"""What a node says that has too little left to promise."""


class MarketService:
    """Implements the market ports of storage and compute: Hosts, Leases, ComputeLeases, Book."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        entropy: Entropy,
        caller: Caller,
        peers: Peers,
        credit: Credit,
        quality: Quality,
        standing: Standing,
        capacity: Capacity,
        divide: Divide,
        state: KeyValue,
        commit: Commit,
        log: Log,
        settings: MarketSettings,
    ) -> None:
        self._key = key
        self._own = key.node_id
        self._network = network
        self._clock = clock
        self._entropy = entropy
        self._caller = caller
        self._peers = peers
        self._credit = credit
        self._quality = quality
        self._standing = standing
        self._capacity = capacity
        self._divide = divide
        self._commit = commit
        self._log = log
        self._settings = settings
        self._book = LeaseBook(state, network)
        self._quotes: dict[tuple[Kind, bytes], _KeptQuote] = {}
        self._labels: dict[bytes, tuple[str, str]] = {}
        self._vouchers = Tally(VOUCHERS_A_CUSTOMER_MAX, VOUCHERS_MS)
        self._unheard: dict[tuple[Kind, bytes], _Asked] = {}
        """By kind and provider, the newest request whose answer was lost: it can be granted."""
        self._refused: dict[bytes, int] = {}
        """Until when a lease of storage is left alone at whose host a write found no room."""
        self._dear: frozenset[bytes] = frozenset()
        """Leases at hand that cost more than the same did at the last look."""
        self._at_limit: frozenset[bytes] = frozenset()
        """Customers that may come to owe nothing more, as of the last `tidy`."""
        self._leasing: dict[Kind, asyncio.Lock] = {kind: asyncio.Lock() for kind in KINDS}
        self._settling: defaultdict[tuple[Role, bytes], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: dict[bytes, tuple[_Waiting, asyncio.Future[bytes]]] = {}
        """The requests of the present windows and their leases, by lease."""
        self._windows: Gather[Kind, _Waiting, bytes] = Gather(
            self._clear_window,
            pause=lambda: self._clock.sleep_ms(CLEARING_WINDOW_MS),
            spawn=self._open_window,
            stopped=lambda: NoOffers("the provider stopped before it granted a lease"),
        )
        self._window_tasks: set[asyncio.Task[None]] = set()
        self.renewals = Renewals(
            key=key,
            network=network,
            clock=clock,
            caller=caller,
            credit=credit,
            quality=quality,
            book=self._book,
            locks=self._settling,
            desk=self,
            log=log,
            price_max=settings.storage_price_max,
            warning_ms=settings.lease_warning_ms,
        )
        self.recalls = Recall(
            own=self._own,
            network=network,
            clock=clock,
            caller=caller,
            credit=credit,
            book=self._book,
            state=state,
            log=log,
        )
        self.denials = Denials(
            key=key,
            network=network,
            clock=clock,
            caller=caller,
            book=self._book,
            report=self.report,
            log=log,
        )
        self.leaving: Callable[[], Collection[bytes]] = frozenset
        """Returns the nodes that are leaving: no room is taken there."""

    # Life

    async def start(self) -> None:
        """Read the leases that were kept, and what the ledger has booked of them.

        Raises:
            StoreDamaged: a kept lease cannot be read.
        """
        self._book.load()
        for entry in self._book.all("provider"):
            settled = self._credit.settled(entry.terms.lease_id)
            entry.use = replace(entry.use, settled_micro=settled)
        for entry in self._book.all("customer"):
            self._labels[entry.terms.provider] = self._labels_in(entry)

    def reconcile(self, held: Mapping[bytes, int]) -> None:
        """Take over what the shard store holds under each lease, once it has started.

        Uses are kept unsynced: after a power loss they may lag behind the bodies,
        which are synced. What is held decides.
        """
        for entry in self._book.all("provider"):
            if entry.terms.kind != "storage":
                continue
            delta = held.get(entry.terms.lease_id, 0) - entry.use.held_bytes
            if delta:
                self._log.warning(
                    "lease_use_reconciled", lease=short(entry.terms.lease_id), delta=delta
                )
                entry.use = rules.hold(entry.terms, entry.use, delta, self._clock.now_ms())
                self._book.save(entry)

    @property
    def counts_are_complete(self) -> bool:
        """Whether nothing of what was counted can be lost: the last process stopped in order."""
        return self._book.complete

    def reconcile_orders(self, held: Mapping[bytes, int], doubts: Mapping[bytes, int]) -> None:
        """Take over what the own records name under each lease of others, after a power loss.

        Uses are kept unsynced, the records are synced. They decide where something was on
        its way: the host tells it at the next look (`recounted`). Else they only raise a
        count, because it can hold what has no record yet.

        Args:
            held: bytes by lease.
            doubts: by lease, how many transfers were under way.
        """
        now_ms = self._clock.now_ms()
        for entry in self._book.all("customer"):
            terms, use = entry.terms, entry.use
            if terms.kind != "storage" or use.given_back:
                continue
            entry.doubts = doubts.get(terms.lease_id, 0)
            delta = held.get(terms.lease_id, 0) - use.held_bytes
            if not delta or (delta < 0 and not entry.doubts):
                continue
            self._log.warning("lease_count_restored", lease=short(terms.lease_id), delta=delta)
            # It was held since then, and is due for the time that the node was down.
            use = rules.hold(terms, use, delta, terms.start_ms + use.epoch * EPOCH_MS)
            entry.use = replace(use, touched_ms=now_ms)
            self._book.save(entry)

    def _labels_in(self, entry: Entry) -> tuple[str, str]:
        """Return the labels of the quote that a kept lease carries."""
        lease = open_signed(entry.raw, Lease, network=self._network).record
        request = open_signed(lease.request, LeaseRequest, network=self._network).record
        quote = open_signed(request.quote, Quote, network=self._network).record
        return quote.site, quote.owner

    async def run(self) -> None:
        """Settle at every interval, put away what is over, look at prices, until cancelled."""
        settle_ms = self._clock.monotonic_ms() + self._settings.settle_interval_ms
        prices_ms = self._clock.monotonic_ms() + PRICES_INTERVAL_MS
        while True:
            await self._clock.sleep_ms(min(TIDY_MS, self._settings.settle_interval_ms))
            self.tidy()
            await self.find_grants()
            if self._clock.monotonic_ms() >= settle_ms:
                await self.settle_all()
                settle_ms = self._clock.monotonic_ms() + self._settings.settle_interval_ms
            if self._clock.monotonic_ms() >= prices_ms:
                await self.look_at_prices()
                prices_ms = self._clock.monotonic_ms() + PRICES_INTERVAL_MS

    async def close(self) -> None:
        """Settle what can be settled, and end the windows that are open."""
        await self.settle_all()
        self._book.close()
        for task in self._window_tasks:
            task.cancel()
        await asyncio.gather(*self._window_tasks, return_exceptions=True)

    def handlers(self) -> dict[str, Handler]:
        """Return the methods that peers may call."""
        return {
            "market.quote": self._on_quote,
            "market.lease": self._on_lease,
            "market.settle": self._on_settle,
            RENEW: self.renewals.on_renew,
            HISTORY: self.recalls.on_history,
            KNOWN: self.denials.on_known,
        }

    def tidy(self) -> None:
        """Take back leases that hold nothing for long; forget those over and settled."""
        now_ms = self._clock.now_ms()
        roles: tuple[Role, ...] = ("customer", "provider")
        for role in roles:
            for entry in self._book.all(role):
                if entry.denial is not None:
                    if now_ms - entry.terms.end_ms >= LEASE_KEPT_MS:
                        self._forget(entry)
                    continue
                if role == "provider":
                    # What has lapsed is looked at once, not with every put.
                    entry.use = rules.advance(entry.terms, entry.use, now_ms)
                terms, use = entry.terms, entry.use
                idle = rules.is_idle(terms, use, now_ms) and not entry.reserved
                if idle and not use.given_back:
                    entry.use = replace(rules.advance(terms, use, now_ms), given_back=True)
                    self._book.save(entry)
                done = rules.status(terms, entry.use, now_ms) in ("settled", "expired")
                ended_ms = use.touched_ms if use.given_back else terms.end_ms
                # What is still held under it by then, its host has dropped.
                gone = role == "customer" and now_ms - ended_ms >= STORAGE_LEASE_MS
                kept = use.held_bytes > 0 and not gone
                if done and not kept and now_ms - ended_ms >= LEASE_KEPT_MS:
                    self._forget(entry)
        self._refused = {lease: until for lease, until in self._refused.items() if until > now_ms}
        self._look_at_limits()

    # What others see

    def leases(self) -> list[LeaseView]:
        """Return every lease known, in both roles."""
        now_ms = self._clock.now_ms()
        roles: tuple[Role, ...] = ("customer", "provider")
        return [self._view(entry, now_ms) for role in roles for entry in self._book.all(role)]

    def lease_record(self, lease_id: bytes) -> bytes:
        """Return the signed lease of that id, in either role, for `xsc verify`.

        Raises:
            NotFound: this node knows no such lease.
        """
        roles: tuple[Role, ...] = ("customer", "provider")
        for role in roles:
            if (entry := self._book.get(role, lease_id)) is not None:
                return entry.raw
        raise NotFound("this node has no such lease", hint="`xsc market leases` lists them")

    def _view(self, entry: Entry, now_ms: int) -> LeaseView:
        terms = entry.terms
        is_denied = entry.denial is not None
        use = entry.use if is_denied else rules.advance(terms, entry.use, now_ms)
        return LeaseView(
            entry.role,
            terms.kind,
            entry.peer,
            terms.lease_id,
            "denied" if is_denied else rules.status(terms, use, now_ms),
            terms.price,
            terms.quantity,
            use.held_bytes,
            use.used,
            rules.due_micro(terms, use),
            use.settled_micro,
            terms.start_ms,
            terms.end_ms,
            terms.renewals,
        )

    def renewal_record(self, lease_id: bytes) -> bytes:
        """Return the newest signed renewal of a lease, as `xsc verify` reads it.

        Raises:
            NotFound: no such lease, or it was never renewed.
        """
        roles: tuple[Role, ...] = ("customer", "provider")
        for role in roles:
            entry = self._book.get(role, lease_id)
            if entry is not None and entry.renewal is not None:
                return entry.renewal
        raise NotFound("this lease was not renewed")

    def denial_record(self, lease_id: bytes) -> bytes:
        """Return the provider's signed word that it does not know a lease, for `xsc verify`.

        Raises:
            NotFound: no such lease, or it was not denied.
        """
        entry = self._book.get("customer", lease_id)
        if entry is None or entry.denial is None:
            raise NotFound("no provider has denied this lease")
        return entry.denial

    def pricing(self) -> MarketPricing:
        """Return this node's prices at its present utilisation."""
        return MarketPricing(
            self._settings.prices,
            utilisation_ppm(self.free("storage"), self._capacity.storage_capacity_bytes()),
            utilisation_ppm(self.free("compute"), self._capacity.compute_capacity_steps()),
        )

    def free(self, kind: Kind) -> int:
        """Return what is neither used nor reserved: bytes, or fuel steps."""
        return self._unpromised(kind, sum(self._reserved(kind).values()))

    def _unpromised(self, kind: Kind, reserved: int) -> int:
        if kind == "storage":
            return max(0, self._capacity.storage_free_bytes() - reserved)
        return max(0, self._capacity.compute_steps_free() - reserved)

    def _reserved(self, kind: Kind) -> dict[bytes, int]:
        """Return what each customer has reserved and not used."""
        now_ms = self._clock.now_ms()
        found: defaultdict[bytes, int] = defaultdict(int)
        for entry in self._book.all("provider"):
            # Most leases have lapsed: every put under one of those comes by here.
            if entry.use.lapsed or entry.terms.kind != kind:
                continue
            if kept := self._kept_free(entry, now_ms):
                found[entry.terms.customer] += kept
        return found

    def _kept_free(self, entry: Entry, now_ms: int) -> int:
        """Return what is reserved under a lease; who has reached its limit keeps nothing free."""
        terms, use = entry.terms, entry.use
        if terms.kind == "compute":
            # What still runs outlives its lease.
            return max(entry.reserved, rules.reserved(terms, use, now_ms))
        if terms.customer in self._at_limit:
            return 0
        # What is being written has its room from the shard store already.
        return max(0, rules.reserved(terms, use, now_ms) - entry.reserved)

    def _room(self, kind: Kind) -> room.Room:
        reserved = self._reserved(kind)
        tier = self._standing.tier
        strangers = frozenset(customer for customer in reserved if tier(customer) == "open")
        return room.Room(kind, self._unpromised(kind, sum(reserved.values())), reserved, strangers)

    def _offered(self, kind: Kind, customer: bytes) -> int:
        """Return what a customer may still reserve."""
        return room.left(self._room(kind), customer, self._standing.tier(customer))

    async def offers(self, kind: Kind) -> list[Quote]:
        """Return the quotes of all peers that are up, cheapest first; kept ones while they hold."""
        up = [peer for peer in self._peers.peers() if self._quality.is_up(peer)]
        quotes, _ = await self._ask(kind, up, 0)
        return sorted(
            (quote.record for quote in quotes.values()),
            key=lambda quote: (quote.price, quote.provider),
        )

    def labels(self, node: bytes) -> tuple[str, str, str]:
        """Return the site and the owner of a node's newest quote, and the introducer it came by."""
        introducer = self._peers.introducer_of(node)
        if node == self._own:
            return self._settings.site, self._settings.owner, introducer
        return *self._labels.get(node, ("", "")), introducer

    async def learn_labels(self, nodes: Collection[bytes]) -> frozenset[bytes]:
        """Ask nodes that are up for a quote where none said its labels; return whose are known."""
        peers = [node for node in nodes if node not in self._labels and node != self._own]
        await self._ask("storage", [node for node in peers if self._quality.is_up(node)], 0)
        return frozenset(node for node in nodes if node == self._own or node in self._labels)

    def peers(self) -> Sequence[bytes]:
        """Return every known peer that is not blocked."""
        return self._peers.peers()

    def is_up(self, node: bytes) -> bool:
        """Return whether a node answered lately; this one always did."""
        return node == self._own or self._quality.is_up(node)

    def response_ms(self, node: bytes) -> int:
        """Return how long a node is expected to take for an answer."""
        return 0 if node == self._own else self._quality.response_ms(node)

    def report(self, node: bytes, what: str) -> None:
        """Take note of a wrong answer: it lowers the node's rank in auctions for days."""
        self._quality.report(node, what)

    def _rank(self, node: bytes) -> int:
        return max(QUALITY_PPM_LEAST, self._quality.quality_ppm(node))

    def _bid(self, quote: Quote, domain: bytes) -> Bid:
        """Return a quote as a bid; who recognises this node is paid its posted rung."""
        posted = quote.tier != "open"
        return Bid(quote.provider, quote.price, self._rank(quote.provider), domain, posted)

    # The provider's side: quotes and grants

    async def _on_quote(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        kind = _kind(header)
        quote = make_quote(
            provider=self._own,
            customer=caller,
            kind=kind,
            tier=self._standing.tier(caller),
            ladder=self.pricing().ladder(kind),
            available=self._offered(kind, caller),
            now_ms=self._clock.now_ms(),
            nonce=self._entropy.token(NONCE_BYTES),
            site=self._settings.site,
            owner=self._settings.owner,
        )
        return {"quote": sign(quote, self._key, self._network).raw}, ()

    async def _on_lease(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        raw = take_bytes(header, "request")
        request = open_signed(raw, LeaseRequest, network=self._network, author=caller)
        kind, lease_id = request.record.kind, request.record.lease_id
        known = self._book.get("provider", lease_id)
        if known is not None:
            if known.request_id != request.id:
                raise RecordInvalid("another lease has the same id")
            return {"lease": known.raw}, ()
        if lease_id in self._waiting:
            waiting, granted = self._waiting[lease_id]
            if waiting.request.id != request.id:
                raise RecordInvalid("another request has the same lease id")
        else:
            self._check_request(request.record)
            waiting = _Waiting(request, raw)
            granted = self._windows.submit(kind, waiting)
            granted.add_done_callback(lambda _: self._waiting.pop(lease_id))
            self._waiting[lease_id] = waiting, granted
        # Shielded: a caller that hangs up must not cancel what another waits for.
        return {"lease": await asyncio.shield(granted)}, ()

    def _check_request(self, request: LeaseRequest) -> None:
        now_ms = self._clock.now_ms()
        quote = open_quote(
            request.quote,
            network=self._network,
            provider=self._own,
            customer=request.customer,
            kind=request.kind,
            now_ms=now_ms,
        )
        if (refusal := rules.check_request(request, quote.record, now_ms)) is not None:
            raise RecordInvalid(refusal)
        used = self._book.get("customer", request.lease_id) is not None
        if used or self._credit.settled(request.lease_id) > 0:
            # What was settled under it before would pay for the new lease as well.
            raise RecordInvalid("the lease id was used before")
        waiting = [item.request.record for item, _ in self._waiting.values()]
        of_customer = sum(each.customer == request.customer for each in waiting)
        if (
            sum(each.kind == request.kind for each in waiting) >= LEASE_REQUESTS_WAITING_MAX
            or of_customer >= LEASE_REQUESTS_WAITING_A_CUSTOMER_MAX
        ):
            raise RateLimited("too many leases are asked for at this moment")
        of_customer += sum(
            not self._is_done(entry, now_ms)
            for entry in self._book.of("provider", request.customer)
        )
        if of_customer >= LEASES_A_CUSTOMER_MAX:
            raise RateLimited(
                f"one customer may have {LEASES_A_CUSTOMER_MAX} leases that are not settled",
                hint="settle what is owed under those that are over: `xsc market leases`",
            )

    def _is_done(self, entry: Entry, now_ms: int) -> bool:
        """Say whether a lease is over, and nothing is held or owed under it."""
        use = rules.advance(entry.terms, entry.use, now_ms)
        over = rules.status(entry.terms, use, now_ms) in ("settled", "expired")
        return over and not use.held_bytes and not entry.reserved and entry.booking is None

    def _open_window(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._window_tasks.add(task)
        task.add_done_callback(self._window_ended)
        return task

    def _window_ended(self, task: asyncio.Task[None]) -> None:
        self._window_tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._log.error("clearing_failed", fault=repr(fault))

    async def _clear_window(
        self, kind: Kind, waiting: Sequence[_Waiting]
    ) -> Sequence[bytes | XscError]:
        try:
            outcome = self._clear(kind, waiting)
        except XscError as fault:
            self._log.error("clearing_failed", fault=repr(fault))
            raise NoOffers("the provider could not grant leases") from fault
        return [outcome[item.request.record.lease_id] for item in waiting]

    def _clear(self, kind: Kind, waiting: Sequence[_Waiting]) -> dict[bytes, bytes | XscError]:
        now_ms = self._clock.now_ms()
        salt = self._entropy.token(NONCE_BYTES)
        asks = by_lot([self._ask_of(item.request.record) for item in waiting], salt)
        customers = {ask.customer for ask in asks}
        credit = {
            # Who shares its credit divides it with those of them that ask at the same time.
            customer: (self._credit.credit_left(customer) - self.exposure(customer))
            // len(customers.intersection(self._credit.shares_with(customer)))
            for customer in customers
        }
        affordable_asks, without_credit = within_credit(kind, asks, credit)
        space = self._room(kind)
        shared_asks, beyond_share = room.within_share(space, affordable_asks)
        # Strangers first divide what there is for them, and then have their part of all.
        strange = [ask for ask in shared_asks if ask.tier == "open"]
        for_strangers = min(space.free, max(room.strangers_left(space), room.LEAST[kind]))
        of_strangers = clear(strange, for_strangers, self._divide, salt)
        known = [ask for ask in shared_asks if ask.tier != "open"]
        clearing = clear(
            [*known, *room.granted(strange, of_strangers.grants)], space.free, self._divide, salt
        )
        outcome: dict[bytes, bytes | XscError] = {
            ask.lease_id: CreditExceeded(
                f"the lease could come to cost more than {format_credits(max(0, left))}, which is "
                "what this node may still owe there, its leases counted",
                hint="settle what is owed, or ask the provider for a higher limit",
            )
            for ask in asks
            if ask.lease_id in without_credit
            for left in (credit[ask.customer],)
        }
        for lease_id in beyond_share:
            outcome[lease_id] = _EXHAUSTED[kind](
                f"the lease would pass the share of free {kind} that this node may reserve there",
                hint="use what is reserved, ask for less at a time, or ask the provider's operator "
                "to recognise this node: `xsc peer recognise`",
            )
        for lease_id in clearing.refused | of_strangers.refused:
            outcome[lease_id] = _EXHAUSTED[kind](f"too little {kind} is left for this lease")
        made = []
        for item in waiting:
            quantity = clearing.grants.get(item.request.record.lease_id)
            if quantity is None:
                continue
            granted = sign(
                Lease(request=item.raw, quantity=quantity, granted_ms=now_ms),
                self._key,
                self._network,
            )
            made.append(self._book.entry_of("provider", granted.raw, now_ms))
            outcome[item.request.record.lease_id] = granted.raw
        if made:
            self._book.add(made)
        for customer in customers:
            self._forget_done(customer, now_ms)
        for entry in made:
            self._log.info(
                "lease_granted",
                kind=kind,
                customer=short(entry.terms.customer),
                quantity=entry.terms.quantity,
                price=entry.terms.price,
            )
        return outcome

    def _forget_done(self, customer: bytes, now_ms: int) -> None:
        """Forget a customer's oldest leases that are done, beyond those that may be remembered."""
        done = [e for e in self._book.of("provider", customer) if self._is_done(e, now_ms)]
        for entry in done[: max(0, len(done) - LEASES_DONE_A_CUSTOMER_MAX)]:
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        self._book.forget(entry)
        self._settling.pop((entry.role, entry.terms.lease_id), None)

    def _ask_of(self, request: LeaseRequest) -> Ask:
        tier = self._standing.tier(request.customer)
        weight = 1
        if tier == "mutual":
            weight = self._standing.mutual_ppm(request.customer)
        elif tier == "one_way":
            weight = self._standing.weight_ppm(request.customer)
        return Ask(
            request.lease_id,
            request.customer,
            tier,
            weight,
            request.quantity,
            request.quantity_min,
            request.price,
        )

    def exposure(self, customer: bytes) -> int:
        """Return what this node may come to lose to a customer and to who shares its credit."""
        now_ms = self._clock.now_ms()
        return sum(
            rules.exposure_micro(entry.terms, rules.advance(entry.terms, entry.use, now_ms), now_ms)
            for entry in self._sold_to(customer)
        )

    def _sold_to(self, customer: bytes) -> Iterator[Entry]:
        """Give the leases whose debts count together with a customer's."""
        for other in self._credit.shares_with(customer):
            yield from self._book.of("provider", other)

    def _owed(self, customer: bytes) -> int:
        """Return what a customer owes under all its leases and has not settled."""
        now_ms = self._clock.now_ms()
        return sum(
            rules.owed_micro(entry.terms, rules.advance(entry.terms, entry.use, now_ms), now_ms)
            for entry in self._sold_to(customer)
        )

    def _is_at_limit(self, customer: bytes) -> bool:
        """Say whether a customer may come to owe nothing more, under leases that cost something."""
        costs = any(entry.terms.price for entry in self._sold_to(customer))
        return costs and self._owed(customer) >= self._credit.credit_left(customer)

    def _look_at_limits(self) -> None:
        """Take note of who has reached its limit since the last look, and who is within again."""
        customers = {entry.peer for entry in self._book.all("provider")}
        before, self._at_limit = self._at_limit, frozenset(filter(self._is_at_limit, customers))
        for customer in sorted(self._at_limit - before):
            self._log.warning(
                "customer_at_limit",
                customer=short(customer),
                owed_micro=self._owed(customer),
                credit_left_micro=self._credit.credit_left(customer),
            )
        for customer in sorted(before - self._at_limit):
            self._log.info("customer_within_limit", customer=short(customer))

    def _check_limit(self, customer: bytes) -> None:
        """Refuse what is new to a customer that had reached its limit at the last look.

        Raises:
            CreditExceeded: it had.
        """
        if customer in self._at_limit:
            owed, left = self._owed(customer), self._credit.credit_left(customer)
            raise CreditExceeded(
                f"this node serves nothing more on credit: {format_credits(owed)} are not settled, "
                f"and {format_credits(max(0, left))} may still be owed here",
                hint="settle what is owed, or ask the provider for a higher limit",
            )

    # The provider's side: use

    async def _sync(self, entry: Entry) -> None:
        """Keep what became of a lease, on the disk on return."""
        await self._commit([self._book.use_row(entry)])
        if self._book.get(entry.role, entry.terms.lease_id) is entry:
            # What has changed meanwhile can have been written before that row.
            self._keep(entry)

    def _keep(self, entry: Entry) -> None:
        """Keep a change of use, unsynced, at the end of this turn of the event loop."""
        if self._book.touch(entry):
            asyncio.get_running_loop().call_soon(self._book.flush)

    def _mine(self, lease_id: bytes, customer: bytes, kind: Kind) -> Entry:
        entry = self._book.get("provider", lease_id)
        if entry is None or entry.terms.customer != customer or entry.terms.kind != kind:
            raise LeaseExhausted("this customer has no such lease here")
        if rules.is_over(entry.terms, entry.use, self._clock.now_ms()):
            raise LeaseExhausted("the lease is over", hint="take a new lease")
        return entry

    def admit(self, lease_id: bytes, customer: bytes, size_bytes: int) -> None:
        """Keep room under a lease for bytes that are being written, until `stored` is told.

        Raises:
            LeaseExhausted: no such lease of that customer, over, or without that room.
            CreditExceeded: the customer has reached its limit.
            SpaceExhausted: the own node has promised its room to others.
        """
        if lease_id == OWN_LEASE:
            if customer != self._own:
                raise LeaseExhausted("only the node itself stores without a lease")
            if size_bytes > self.free("storage"):
                raise SpaceExhausted("this node has no room left that is not promised")
            return
        entry = self._mine(lease_id, customer, "storage")
        self._check_limit(customer)
        if size_bytes > rules.room(entry.terms, entry.use) - entry.reserved:
            raise LeaseExhausted("the lease has no room for that", hint="take a further lease")
        reserved = rules.reserved(entry.terms, entry.use, self._clock.now_ms())
        if not reserved and size_bytes > self.free("storage"):
            raise LeaseExhausted(
                "the room of this lease was not used in time and is no longer free",
                hint="take a further lease, here or at another node",
            )
        entry.reserved += size_bytes

    def stored(self, lease_id: bytes, admitted_bytes: int, held_bytes: int) -> None:
        """Count what came of bytes that were admitted: as many are held more from now on."""
        entry = self._book.get("provider", lease_id)
        if entry is not None:
            entry.reserved = max(0, entry.reserved - admitted_bytes)
        self.settle_use(lease_id, held_bytes)

    def end_ms(self, lease_id: bytes) -> int | None:
        """Return when a lease that this node granted ends; None where it is not known."""
        entry = self._book.get("provider", lease_id)
        return None if entry is None else entry.terms.end_ms

    def lease_end(self, lease_id: bytes) -> LeaseEnd | None:
        """Return when a lease that this node took ends; None where it is not known."""
        return self.renewals.end_of(lease_id)

    def settle_use(self, lease_id: bytes, delta_bytes: int) -> None:
        """Change the bytes held: more (+) that were stored, fewer (-) that were deleted."""
        if lease_id == OWN_LEASE or not delta_bytes:
            return
        entry = self._book.get("provider", lease_id)
        if entry is None:
            self._log.warning("use_of_unknown_lease", lease=short(lease_id), delta=delta_bytes)
            return
        entry.use = rules.hold(entry.terms, entry.use, delta_bytes, self._clock.now_ms())
        self._keep(entry)

    def admit_compute(self, lease_id: bytes, customer: bytes, fuel_steps: int) -> int:
        """Reserve steps under a lease and return its price a quantum; 0 for the own node.

        Raises:
            LeaseExhausted: no such lease of that customer, over, or without those steps.
            CreditExceeded: the customer has reached its limit.
        """
        if lease_id == OWN_LEASE:
            if customer != self._own:
                raise LeaseExhausted("only the node itself runs without a lease")
            return 0
        entry = self._mine(lease_id, customer, "compute")
        self._check_limit(customer)
        if fuel_steps > rules.room(entry.terms, entry.use) - entry.reserved:
            raise LeaseExhausted("the lease has no fuel left for that", hint="take a new lease")
        entry.reserved += fuel_steps
        return entry.terms.price

    def used_compute(self, lease_id: bytes, reserved_steps: int, used_steps: int) -> None:
        """Turn a reservation into what was used of it, billed as its receipt says."""
        if lease_id == OWN_LEASE:
            return
        entry = self._book.get("provider", lease_id)
        if entry is None:
            self._log.warning("use_of_unknown_lease", lease=short(lease_id), steps=used_steps)
            return
        entry.reserved = max(0, entry.reserved - reserved_steps)
        amount = compute_amount(entry.terms.price, used_steps)
        entry.use = rules.spend(entry.terms, entry.use, used_steps, amount)
        self._keep(entry)

    # The provider's side: settlement

    async def _on_settle(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        raw = take_bytes(header, "voucher")
        voucher = open_signed(raw, Voucher, network=self._network, author=caller)
        entry = self._book.get("provider", voucher.record.lease_id)
        if entry is None or entry.terms.customer != caller:
            raise NotAllowed("this customer has no such lease here")
        async with self._settling["provider", entry.terms.lease_id]:
            await self._take_voucher(entry, voucher)
            await self._collect(entry)
        return {"settled_micro": entry.use.settled_micro}, ()

    async def _take_voucher(self, entry: Entry, voucher: Signed[Voucher]) -> None:
        """Keep a voucher that promises more than the last one; any other changes nothing."""
        if voucher.record.number < entry.use.voucher_number:
            return
        if voucher.record.number == entry.use.voucher_number:
            if voucher.raw != entry.voucher:
                raise RecordInvalid("two different vouchers bear the same number")
            return
        use = rules.advance(entry.terms, entry.use, self._clock.now_ms())
        if (refusal := rules.check_voucher(entry.terms, use, voucher.record)) is not None:
            raise RecordInvalid(refusal)
        if voucher.record.amount_micro == entry.use.voucher_micro:
            # It says nothing new: a customer could sign as many of those as it likes.
            return
        self._vouchers.count(entry.terms.customer, self._clock.monotonic_ms(), "vouchers")
        before = entry.use, entry.voucher
        entry.use, entry.voucher = rules.with_voucher(use, voucher.record), voucher.raw
        try:
            await self._sync(entry)
        except XscError:
            # It is not on the disk: sent again, it must not pass for known.
            use, entry.voucher = before
            entry.use = replace(
                entry.use,
                voucher_number=use.voucher_number,
                voucher_micro=use.voucher_micro,
            )
            raise

    async def _collect(self, entry: Entry) -> None:
        """Book what the newest voucher says beyond what is booked; under the lease's lock."""
        lease_id = entry.terms.lease_id
        while True:
            if entry.booking is None:
                settled = self._credit.settled(lease_id)
                if settled != entry.use.settled_micro:
                    entry.use = replace(entry.use, settled_micro=settled)
                    await self._sync(entry)
                if self._is_too_early(entry):
                    return
                if entry.voucher is None or entry.use.voucher_micro <= settled:
                    return
                entry.booking = Booking(
                    entry.use.voucher_number,
                    entry.refusals,
                    entry.use.voucher_micro - settled,
                    entry.voucher,
                )
                # Before it is asked for: the same number must never mean another amount.
                await self._sync(entry)
            booking = entry.booking
            try:
                settled = await self._credit.collect(
                    xid=_xid(lease_id, booking),
                    debtor=entry.terms.customer,
                    amount_micro=booking.amount_micro,
                    lease_id=lease_id,
                    voucher=booking.voucher,
                )
            except (EntryRefused, ArgumentInvalid):
                # It was not booked and never will be under this id. The next try asks the
                # ledger what is left and goes under another one.
                entry.booking = None
                entry.refusals += 1
                entry.refused, entry.refused_ms = entry.refused + 1, self._clock.monotonic_ms()
                await self._sync(entry)
                raise
            entry.booking, entry.refused = None, 0
            entry.use = replace(entry.use, settled_micro=settled)
            await self._sync(entry)
            self._log.info(
                "lease_settled",
                customer=short(entry.terms.customer),
                amount_micro=booking.amount_micro,
                settled_micro=settled,
            )

    def _is_too_early(self, entry: Entry) -> bool:
        """Say whether a booking was refused so lately that none is tried: each try is kept."""
        wait_ms = rules.retry_ms(entry.refused)
        return self._clock.monotonic_ms() < entry.refused_ms + wait_ms

    async def _collect_again(self, entry: Entry) -> None:
        async with self._settling["provider", entry.terms.lease_id]:
            try:
                await self._collect(entry)
            except XscError as fault:
                # Kept as it is and tried again at the next interval.
                self._log.warning("not_collected", customer=short(entry.peer), code=fault.code)

    # The customer's side: quotes and leases

    async def _ask(
        self, kind: Kind, peers: Sequence[bytes], quantity: int
    ) -> tuple[dict[bytes, Signed[Quote]], dict[bytes, XscError]]:
        """Return a valid quote of each peer that gives one, and what kept the others from it.

        A kept quote is good while it holds and offers enough, and both nodes recognise each
        other as they did.
        """
        now_ms = self._clock.now_ms()
        quotes: dict[bytes, Signed[Quote]] = {}
        missing = []
        for peer in peers:
            kept = self._quotes.get((kind, peer))
            if (
                kept is not None
                and kept.standing == self._standing_of(peer)
                and is_valid(kept.quote.record, now_ms, margin_ms=LEASE_TIMEOUT_MS)
                and kept.quote.record.available >= quantity
            ):
                quotes[peer] = kept.quote
            else:
                missing.append(peer)
        faults: dict[bytes, XscError] = {}
        answers = await asyncio.gather(*(self._fetch(kind, peer) for peer in missing))
        for peer, answer in zip(missing, answers, strict=True):
            if isinstance(answer, XscError):
                self._log.warning("no_quote", peer=short(peer), kind=kind, code=answer.code)
                self._quotes.pop((kind, peer), None)
                faults[peer] = answer
            else:
                quotes[peer] = answer
                self._quotes[kind, peer] = _KeptQuote(answer, self._standing_of(peer))
                self._labels[peer] = (answer.record.site, answer.record.owner)
        return quotes, faults

    def _standing_of(self, peer: bytes) -> tuple[int, int]:
        return self._standing.weight_ppm(peer), self._standing.their_weight_ppm(peer)

    async def fresh_quote(self, peer: bytes) -> Signed[Quote] | XscError:
        """Return a peer's quote for storage as of now, or why there is none."""
        return await self._fetch("storage", peer)

    async def _fetch(self, kind: Kind, peer: bytes) -> Signed[Quote] | XscError:
        try:
            reply = await self._caller.call(
                peer, "market.quote", {"kind": kind}, timeout_ms=QUOTE_TIMEOUT_MS
            )
            return open_quote(
                take_bytes(reply.header, "quote"),
                network=self._network,
                provider=peer,
                customer=self._own,
                kind=kind,
                now_ms=self._clock.now_ms(),
            )
        except XscError as fault:
            return fault

    async def _lease(
        self, quote: Signed[Quote], price: int, quantity: int, quantity_min: int
    ) -> Entry | XscError:
        """Ask for a lease under a quote and keep it; a refusal is returned."""
        kind, provider = quote.record.kind, quote.record.provider
        now_ms = self._clock.now_ms()
        request = LeaseRequest(
            lease_id=self._entropy.token(ID_BYTES),
            provider=provider,
            customer=self._own,
            kind=kind,
            quote=quote.raw,
            quantity=quantity,
            quantity_min=quantity_min,
            price=price,
            start_ms=now_ms,
            end_ms=now_ms + rules.LENGTH_MS[kind],
        )
        asked = _Asked(
            request, sign(request, self._key, self._network).raw, domain_of(quote.record)
        )
        # Whatever comes of it, the next look shall see what is left afterwards.
        self._quotes.pop((kind, provider), None)
        try:
            return await self._granted(asked)
        except asyncio.CancelledError:
            self._unheard[kind, provider] = asked
            raise
        except XscError as fault:
            if isinstance(fault, PeerSilent):
                self._unheard[kind, provider] = asked
            self._log.warning("no_lease", peer=short(provider), kind=kind, code=fault.code)
            return fault

    async def _granted(self, asked: _Asked) -> Entry:
        """Return the lease that a provider grants on a request, kept; the same one each time.

        Raises:
            XscError: it refuses, does not answer, or grants what was not asked for.
        """
        request = asked.request
        reply = await self._caller.call(
            request.provider, "market.lease", {"request": asked.raw}, timeout_ms=LEASE_TIMEOUT_MS
        )
        raw = take_bytes(reply.header, "lease")
        granted = open_signed(raw, Lease, network=self._network, author=request.provider)
        refusal = rules.check_grant(asked.raw, request, granted.record)
        if refusal is not None:
            raise RecordInvalid(refusal)
        known = self._book.get("customer", request.lease_id)
        if known is not None:
            return known
        entry = self._book.entry_of("customer", raw, request.start_ms, asked.domain)
        self._book.add([entry])
        return entry

    async def find_grants(self) -> None:
        """Ask again for leases whose answer was lost, by the same requests.

        One that was granted is used from then on; the provider keeps it for so long, empty.
        """
        now_ms = self._clock.now_ms()
        for at, asked in list(self._unheard.items()):
            kept_ms = min(asked.request.end_ms, asked.request.start_ms + STORAGE_LEASE_IDLE_MS)
            if now_ms >= kept_ms:
                del self._unheard[at]
            elif self._quality.is_up(asked.request.provider):
                del self._unheard[at]
                try:
                    await self._granted(asked)
                except PeerSilent:
                    self._unheard.setdefault(at, asked)
                except XscError as fault:
                    self._log.info("no_lost_lease", peer=short(at[1]), code=fault.code)

    async def look_at_prices(self) -> None:
        """Find the leases of storage that cost more than the same would now: others come first."""
        now_ms = self._clock.now_ms()
        held = [
            Held(entry.terms.lease_id, entry.terms.provider, entry.terms.price)
            for entry in self._book.all("customer")
            if entry.terms.kind == "storage"
            and entry.denial is None
            and rules.is_useful(entry.terms, entry.use, now_ms)
        ]
        up = [peer for peer in self._peers.peers() if held and self._quality.is_up(peer)]
        quotes, _ = await self._ask("storage", up, ROOM_LEAST_BYTES)
        bids = [
            self._bid(quote.record, node)
            for node, quote in quotes.items()
            if quote.record.available >= ROOM_LEAST_BYTES
        ]
        winners = self._won("storage", bids, len({lease.node for lease in held}))
        self._dear = dear(held, winners)

    def _won(self, kind: Kind, bids: Sequence[Bid], count: int) -> list[Winner]:
        """Return the winners of an auction of this node, and what they are paid."""
        own_price, price_max = self.pricing().unit_price(kind), self._settings.price_max(kind)
        seed = self._entropy.token(NONCE_BYTES)
        return place(bids, count, reserve(bids, count, own_price, price_max), seed=seed)

    def _usable(self, kind: Kind, quantity: int, nodes: Iterable[bytes]) -> list[Entry]:
        """Return leases with room at those nodes, one a node, best price for quality first.

        Of a node it is the cheapest, and of those the oldest.
        """
        now_ms = self._clock.now_ms()
        wanted = set(nodes)
        found: dict[bytes, Entry] = {}
        for entry in self._book.all("customer"):
            terms, use = entry.terms, entry.use
            before = found.get(terms.provider)
            if (
                terms.kind == kind
                and terms.provider in wanted
                and (before is None or terms.price < before.terms.price)
                and entry.denial is None
                and rules.is_useful(terms, use, now_ms)
                and self._refused.get(terms.lease_id, 0) <= now_ms
                and rules.room(terms, use) - entry.promised_at(now_ms) >= quantity
            ):
                found[terms.provider] = entry
        return sorted(found.values(), key=self._score)

    def _is_dear(self, entry: Entry) -> bool:
        return entry.terms.lease_id in self._dear

    def _score(self, entry: Entry) -> tuple[int, bytes]:
        node = entry.terms.provider
        return entry.terms.price * 2**40 // self._rank(node), node

    def _quantity(self, quote: Quote, price: int, least: int) -> int:
        """Return what to ask for where `least` is needed: modestly more, to be shared."""
        if quote.kind == "storage":
            wanted = STORAGE_LEASE_BYTES
        else:
            wanted = least * COMPUTE_LEASE_RUNS
            most = affordable("compute", price, COMPUTE_LEASE_MICRO_MAX)
            if most is not None:
                wanted = min(wanted, most)
        # A part of the share, so that a grant that gets lost does not use it up.
        wanted = max(least, min(wanted, quote.available // SHARE_LEASES))
        return min(wanted, quote.available, _QUANTITY_MAX)

    async def _auction(
        self,
        kind: Kind,
        nodes: Sequence[bytes],
        *,
        quantity: int,
        count: int,
        avoid: frozenset[bytes] | None,
        tried: set[bytes],
    ) -> tuple[list[Entry], dict[bytes, XscError]]:
        """Return up to `count` new leases at distinct nodes, and why others gave none.

        With `avoid`, hosts stand in distinct domains, none of those; with None, in any.
        Nodes that are asked for a lease, have too little or do not answer come to `tried`;
        nobody there is asked, the others bid again.
        """
        taken: list[Entry] = []
        faults: dict[bytes, XscError] = {}
        while len(taken) < count:
            rest = [node for node in nodes if node not in tried]
            quotes, unquoted = await self._ask(kind, rest, quantity)
            small = [n for n, quote in quotes.items() if quote.record.available < quantity]
            faults |= unquoted
            faults |= {
                node: _EXHAUSTED[kind](
                    f"{short(node)} has not so much {kind} left for this node, "
                    "beyond the share of a node",
                    hint=f"`xsc market offers {kind}` shows what it offers to this node; nodes "
                    "that it recognises have a larger share",
                )
                for node in small
            }
            tried.update(small, (node for node in rest if node not in quotes))
            used = {entry.domain for entry in taken} | (avoid or frozenset())
            bids = [
                self._bid(quote.record, domain_of(quote.record) if avoid is not None else node)
                for node, quote in quotes.items()
                if node not in tried and not (avoid is not None and domain_of(quote.record) in used)
            ]
            winners = self._won(kind, bids, count - len(taken))
            if not winners:
                faults |= {
                    bid.node: NoOffers(f"{short(bid.node)} asks {bid.price}, which is too much")
                    for bid in bids
                }
                break
            answers = await asyncio.gather(
                *(
                    self._lease(
                        quotes[winner.node],
                        winner.price,
                        self._quantity(quotes[winner.node].record, winner.price, quantity),
                        quantity,
                    )
                    for winner in winners
                )
            )
            tried.update(winner.node for winner in winners)
            for winner, answer in zip(winners, answers, strict=True):
                if isinstance(answer, XscError):
                    faults[winner.node] = answer
                else:
                    taken.append(answer)
        return taken, faults

    def _hand_out(self, entry: Entry, quantity: int) -> Granted:
        now_ms = self._clock.now_ms()
        entry.promise(quantity, now_ms)
        use = rules.advance(entry.terms, entry.use, now_ms)
        if use is not entry.use:
            # What a power loss takes of the count was held from here on, and not before.
            entry.use = use
            self._book.save(entry)
        return Granted(entry.terms.provider, entry.terms.lease_id, entry.terms.price)

    async def lease_hosts(
        self, *, size_bytes: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> Offered:
        """Return room for `size_bytes` at each of `count` distinct nodes, fewer where fewer exist.

        Distinct failure domains come first: leases at hand, then new ones by auction; then
        the same without regard to domains; the own node, which settles nothing, last. Where
        that is fewer, or none, it is said of every other node why it gave none.
        """
        if not 0 < size_bytes <= _QUANTITY_MAX:
            raise ArgumentInvalid("the size to lease is out of range")
        wanted = [peer for peer in self._peers.peers() if peer not in exclude]
        leaving = self.leaving()
        nodes = self._up(wanted, leaving)
        if len(nodes) < min(count, len(wanted)):
            await self._quality.probe_unknown()
            nodes = self._up(wanted, leaving)
        async with self._leasing["storage"]:
            chosen, faults = await self._choose("storage", nodes, size_bytes, count)
            hosts = [self._hand_out(entry, size_bytes) for entry in chosen]
        if len(hosts) < count and self._own not in exclude:
            if self._own not in leaving and self.free("storage") >= size_bytes:
                hosts.append(Granted(self._own, OWN_LEASE, 0))
            else:
                wanted.append(self._own)
                faults[self._own] = SpaceExhausted("this node has no room for that")
        refused: dict[bytes, XscError] = {}
        taken = {host.node for host in hosts}
        if len(hosts) < count:
            for node in wanted:
                if node in leaving:
                    refused[node] = PeerLeaving(f"{short(node)} leaves the network")
                elif node in faults and node not in taken:
                    refused[node] = faults[node]
                elif not self.is_up(node):
                    refused[node] = PeerSilent(f"{short(node)} does not answer")
        return Offered(hosts, refused)

    def _up(self, peers: Sequence[bytes], leaving: Collection[bytes]) -> list[bytes]:
        return [peer for peer in peers if peer not in leaving and self._quality.is_up(peer)]

    async def _choose(
        self, kind: Kind, nodes: Sequence[bytes], quantity: int, count: int
    ) -> tuple[list[Entry], dict[bytes, XscError]]:
        """Return leases with that room at up to `count` distinct nodes, and why others gave none.

        Distinct failure domains come first: leases at hand, new ones by auction, dear ones at
        hand; then the same without regard to domains.
        """
        chosen: list[Entry] = []
        faults: dict[bytes, XscError] = {}
        tried: set[bytes] = set()
        for by_domain in (True, False):
            for is_dear in (False, True):
                taken = {entry.terms.provider for entry in chosen}
                domains = {entry.domain for entry in chosen}
                for entry in self._usable(kind, quantity, set(nodes) - taken):
                    if (
                        len(chosen) < count
                        and self._is_dear(entry) == is_dear
                        and not (by_domain and entry.domain in domains)
                    ):
                        chosen.append(entry)
                        domains.add(entry.domain)
                if len(chosen) == count:
                    return chosen, faults
                if not is_dear:
                    taken = {entry.terms.provider for entry in chosen}
                    found, refused = await self._auction(
                        kind,
                        self._without_lease(kind, nodes, quantity, taken),
                        quantity=quantity,
                        count=count - len(chosen),
                        avoid=frozenset(domains) if by_domain else None,
                        tried=tried,
                    )
                    chosen += found
                    faults |= refused
        return chosen, faults

    def _without_lease(
        self, kind: Kind, nodes: Iterable[bytes], quantity: int, taken: set[bytes]
    ) -> list[bytes]:
        """Return the nodes that would have to be asked for a new lease, or whose lease is dear."""
        leased = {
            entry.terms.provider
            for entry in self._usable(kind, quantity, nodes)
            if not self._is_dear(entry)
        }
        return [node for node in nodes if node not in leased and node not in taken]

    async def _nearest(
        self, nodes: Sequence[bytes], fuel_steps: int, saved: Mapping[bytes, int]
    ) -> tuple[list[Entry], dict[bytes, XscError]]:
        """Return the lease that saves most bytes at about the best price, and what was refused.

        Beside leases at hand only nodes are asked that save more than any of those.
        """
        faults: dict[bytes, XscError] = {}
        refused: set[bytes] = set()
        while True:
            rest = [node for node in nodes if node not in refused]
            leases = {
                entry.terms.provider: entry for entry in self._usable("compute", fuel_steps, rest)
            }
            most = max((saved.get(node, 0) for node in leases), default=-1)
            wanted = [node for node in rest if node not in leases and saved.get(node, 0) > most]
            quotes, unquoted = await self._ask("compute", wanted, fuel_steps)
            faults |= unquoted
            refused.update(node for node in wanted if node not in quotes)
            bids = [
                Bid(node, entry.terms.price, self._rank(node), node, posted=True)
                for node, entry in leases.items()
            ]
            bids += [
                self._bid(quote.record, node)
                for node, quote in quotes.items()
                if quote.record.available >= fuel_steps
            ]
            price_max = locality.near_reserve(
                bids, self.pricing().unit_price("compute"), self._settings.price_max("compute")
            )
            chosen = locality.choose(bids, saved, price_max, seed=self._entropy.token(NONCE_BYTES))
            if chosen is None:
                return [], faults
            if chosen.node in leases:
                return [leases[chosen.node]], faults
            quote = quotes[chosen.node]
            quantity = self._quantity(quote.record, chosen.price, fuel_steps)
            answer = await self._lease(quote, chosen.price, quantity, fuel_steps)
            if not isinstance(answer, XscError):
                return [answer], faults
            faults[chosen.node] = answer
            refused.add(chosen.node)

    async def lease_compute(
        self, *, fuel_steps: int, on: bytes | None, saved: Mapping[bytes, int] | None = None
    ) -> Granted:
        """Return a lease with room for that many fuel steps, on that node or on the best.

        Where nodes are named that need not be sent so many bytes, such a one is the best that
        saves most of them at about the best price (`xsc.market.locality`).

        Raises:
            NoOffers: nobody offers it at a price within the reserve, or does not answer.
            CreditExceeded, ComputeExhausted: it was this that kept everybody from granting it.
        """
        if not 0 < fuel_steps <= _QUANTITY_MAX:
            raise ArgumentInvalid("the fuel to lease is out of range")
        faults: dict[bytes, XscError] = {}
        if on != self._own:
            async with self._leasing["compute"]:
                nodes = (
                    [on]
                    if on is not None
                    else [peer for peer in self._peers.peers() if self._quality.is_up(peer)]
                )
                taken: list[Entry] = []
                if saved and on is None:
                    taken, faults = await self._nearest(nodes, fuel_steps, saved)
                taken = taken or self._usable("compute", fuel_steps, nodes)
                if not taken:
                    taken, faults = await self._auction(
                        "compute", nodes, quantity=fuel_steps, count=1, avoid=None, tried=set()
                    )
                if taken:
                    return self._hand_out(taken[0], fuel_steps)
        if on in (None, self._own) and self.free("compute") >= fuel_steps:
            return Granted(self._own, OWN_LEASE, 0)
        if on == self._own:
            raise ComputeExhausted("this node has not so much fuel left that is not promised")
        raise refusal(faults, "no node offers the fuel that is needed")

    async def lease_providers(
        self, *, fuel_steps: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> list[Granted]:
        """Return leases for that many fuel steps at `count` peers, fewer where fewer exist.

        Distinct failure domains come first, as for `lease_hosts`; this node is none of them.

        Raises:
            NoOffers: nobody offers it at a price within the reserve, or does not answer.
            CreditExceeded, ComputeExhausted: it was this that kept everybody from granting it.
        """
        if not 0 < fuel_steps <= _QUANTITY_MAX:
            raise ArgumentInvalid("the fuel to lease is out of range")
        async with self._leasing["compute"]:
            up = [peer for peer in self._peers.peers() if self._quality.is_up(peer)]
            nodes = [peer for peer in up if peer not in exclude]
            chosen, faults = await self._choose("compute", nodes, fuel_steps, count)
            if not chosen:
                raise refusal(faults, "no node offers the fuel that is needed")
            return [self._hand_out(entry, fuel_steps) for entry in chosen]

    # The customer's side: use and settlement

    def _theirs(self, lease_id: bytes) -> Entry:
        entry = self._book.get("customer", lease_id)
        if entry is None:
            raise LeaseExhausted("this node has no such lease")
        return entry

    async def used(self, lease_id: bytes, delta_bytes: int) -> None:
        """Take note of bytes that a host confirmed to hold (+) or to have deleted (-).

        Raises:
            LeaseExhausted: no such lease.
        """
        if lease_id == OWN_LEASE:
            return
        entry = self._theirs(lease_id)
        entry.keep_promise(delta_bytes)
        entry.use = rules.hold(entry.terms, entry.use, delta_bytes, self._clock.now_ms())
        self._keep(entry)

    async def refused(self, lease_id: bytes) -> None:
        """Take note that a host takes no more under a lease: others come first for now.

        The host is asked whether it knows the lease at all; where it signs that it does not,
        so are its others.
        """
        self._refused[lease_id] = self._clock.now_ms() + LEASE_REFUSED_MS
        entry = self._book.get("customer", lease_id)
        if entry is not None and entry.denial is None:
            await self.denials.ask(entry.peer)

    def is_denied(self, lease_id: bytes) -> bool:
        """Return whether the host of a lease has signed that it does not know it."""
        entry = self._book.get("customer", lease_id)
        return entry is not None and entry.denial is not None

    async def recounted(self, lease_id: bytes, delta_bytes: int) -> None:
        """Take note that a host has held more (+) or less (-) than was counted.

        Raises:
            LeaseExhausted: no such lease.
        """
        entry, now_ms = self._theirs(lease_id), self._clock.now_ms()
        if delta_bytes > 0 and entry.doubts:
            entry.doubts -= 1
            since = entry.kept_epoch
            entry.use = rules.hold_since(entry.terms, entry.use, delta_bytes, since, now_ms)
        else:
            entry.use = rules.hold(entry.terms, entry.use, delta_bytes, now_ms)
        self._keep(entry)

    async def spent(self, lease_id: bytes, fuel_steps: int, amount_micro: int) -> None:
        """Take note of what a verified receipt bills.

        Raises:
            LeaseExhausted: no such lease.
        """
        if lease_id == OWN_LEASE:
            return
        entry = self._theirs(lease_id)
        entry.end_promise(fuel_steps)
        entry.use = rules.spend(entry.terms, entry.use, fuel_steps, amount_micro)
        self._keep(entry)
        await asyncio.sleep(0)  # it is kept before anybody hears of the result

    def price_and_room(self, lease_id: bytes, provider: bytes) -> tuple[int, int] | None:
        """Return the price a quantum of a compute lease taken there, and the steps left under it.

        None where no such lease is known.
        """
        entry = self._book.get("customer", lease_id)
        if entry is None or entry.peer != provider or entry.terms.kind != "compute":
            return None
        return entry.terms.price, rules.room(entry.terms, entry.use)

    async def settle_all(self) -> None:
        """Send what is owed to providers that are up, and book what customers signed."""
        await asyncio.gather(
            *(
                self._settle(entry)
                for entry in self._book.all("customer")
                if self._quality.is_up(entry.peer)
            ),
            *(
                self._collect_again(entry)
                for entry in self._book.all("provider")
                if entry.booking is not None or entry.use.voucher_micro > entry.use.settled_micro
            ),
        )

    async def _settle(self, entry: Entry) -> None:
        """Sign what is owed now and send it; what fails is sent again with the next."""
        async with self._settling["customer", entry.terms.lease_id]:
            if entry.denial is not None:
                return
            now_ms = self._clock.now_ms()
            use = rules.advance(entry.terms, entry.use, now_ms)
            voucher = rules.next_voucher(entry.terms, use, now_ms)
            if voucher is not None:
                entry.use = rules.with_voucher(use, voucher)
                entry.voucher = sign(voucher, self._key, self._network).raw
                # Before it is sent: a number must never stand over two amounts.
                await self._sync(entry)
            if entry.voucher is None or entry.use.settled_micro >= entry.use.voucher_micro:
                return
            try:
                reply = await self._caller.call(
                    entry.peer,
                    "market.settle",
                    {"voucher": entry.voucher},
                    timeout_ms=SETTLE_TIMEOUT_MS,
                )
                settled = take_int(reply.header, "settled_micro", most=entry.use.voucher_micro)
            except XscError as fault:
                self._log.warning("not_settled", peer=short(entry.peer), code=fault.code)
                if isinstance(fault, NotAllowed):
                    # It has signed the lease, which runs on unless it signs this, too.
                    await self.refused(entry.terms.lease_id)
                return
            entry.use = replace(entry.use, settled_micro=max(settled, entry.use.settled_micro))
            self._book.save(entry)
