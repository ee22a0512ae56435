"""Puts an object: cut, encrypt, encode, send to every host, replace hosts that fail.

Touches hosts through `HostClient`. A few segments are on their way at any time, and
each waits for the signed receipts of all its hosts. The last segment goes only
when all others are stored, and carries the sealed manifest and the placement.

A host that fails is replaced by another node; what it held of earlier segments
is built again from the other hosts. Where fewer nodes are up than the code has
shards, its columns move to the hosts that are left, with a warning. An object
ends with every column stored, or is deleted again. docs/design/storage.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from xsc.api.market import PassedOver
from xsc.base.clock import Entropy, run_sized
from xsc.base.errors import (
    DurabilityUnreachable,
    LeaseExhausted,
    LimitError,
    NoOffers,
    SpaceExhausted,
    TooLarge,
    UnavailableError,
    UploadChanged,
    XscError,
)
from xsc.base.ids import short
from xsc.base.limits import INLINE_BYTES_MAX, OBJECT_BYTES_MAX, SEGMENT_BYTES, SEGMENTS_IN_FLIGHT
from xsc.base.merkle import root_of
from xsc.base.refusals import refusal
from xsc.base.units import held_bytes
from xsc.identity.keys import KeyPair
from xsc.storage.object import segment as segments
from xsc.storage.object.capability import (
    SECRET_BYTES,
    ReadCapability,
    VerifyCapability,
    content_key,
    verify_key,
)
from xsc.storage.object.durability import Contract, HostLabels, attainable, survival
from xsc.storage.object.durability import plan as plan_columns
from xsc.storage.object.erasure import Code, StorageShard, cut
from xsc.storage.object.held_shards import HAVE_MAX
from xsc.storage.object.inventory import Wanted
from xsc.storage.object.manifest import SealedSegment, build, hash_of, open_manifest, seal_manifest
from xsc.storage.object.messages import ObjectRecord
from xsc.storage.object.placement import (
    Placement,
    check_code,
    host_bytes,
    placement_of,
    record_bytes,
    shortfall,
    warnings_of,
)
from xsc.storage.object.rebuild import plan_rebuilds, rebuild
from xsc.storage.object.segment import NONCE_BYTES, Place
from xsc.storage.ports import HostLease
from xsc.storage.transfer.host_client import (
    HostClient,
    Source,
    let_end,
    requests_of,
    stop_all,
    together,
)
from xsc.storage.transfer.journal import (
    Head,
    Kept,
    KeptPlace,
    KeptSegment,
    KeptSlot,
    places,
    sealed_of,
)
from xsc.storage.transfer.race import in_order, race
from xsc.storage.transfer.resume import ResumeJournal

PUT_ENDS_MS = 10_000
"""How long segments may still be on their way whose client has gone."""

UNKNOWN_SIZE_BYTES = 4 * SEGMENT_BYTES
"""Room asked for at first for a stream of unknown length; it grows as the stream does."""
PLAN_HOSTS_MAX = 32
"""Over how many nodes a placement is planned where the cheapest do not do."""

MANIFEST_SEGMENT_BYTES = 250
"""What a segment adds to a manifest, about."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a host confirmed to hold of an object."""

    node: bytes
    lease_id: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An object that is stored whole."""

    capability: ReadCapability
    size_bytes: int
    sealed: bytes
    placement: Placement
    held: tuple[Held, ...]
    """By host and lease; hosts that failed on the way stand here too."""
    warnings: list[str]
    survives: Contract
    passed_over: tuple[PassedOver, ...]


@dataclass(frozen=True, slots=True)
class KeptLease:
    """A lease that an earlier put of the same content had."""

    node: bytes
    lease_id: bytes
    price: int


@dataclass(slots=True)
class _Slot:
    """A column, and the host that holds it for now: another where that one goes silent."""

    column: int
    lease: HostLease
    tries: int = 0
    """Rises when the host is replaced."""
    done: set[int] = field(default_factory=set)
    """Segments that this host, or the one before it, confirmed."""
    extended_at: int = -1
    """How much the host held when it was last asked for more room."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    before: frozenset[int] = frozenset()
    """Segments that its first host confirmed to the put that this one goes on with."""


async def cut_stream(source: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the stream in segments, and whether each is the last; empty is one empty segment.

    Raises:
        TooLarge: longer than any object can be.
    """
    pieces: list[memoryview] = []
    size = total = 0
    async for chunk in source:
        total += len(chunk)
        if total > OBJECT_BYTES_MAX:
            raise TooLarge(
                f"an object has at most {OBJECT_BYTES_MAX} bytes", hint="store it in several parts"
            )
        rest = memoryview(chunk)
        # Strictly more: the last segment is known only when something follows it, or nothing.
        while size + len(rest) > SEGMENT_BYTES:
            fits = SEGMENT_BYTES - size
            yield b"".join((*pieces, rest[:fits])), False
            rest = rest[fits:]
            pieces, size = [], 0
        pieces.append(rest)
        size += len(rest)
    yield b"".join(pieces), True


def _cut_segment(
    key: bytes, nonce: bytes, place: Place, plain: bytes, code: Code
) -> tuple[SealedSegment, list[StorageShard]]:
    ciphertext, tag = segments.seal(key, nonce, place, plain)
    shards = cut(ciphertext, code)
    return SealedSegment(nonce, tag, tuple(shard.root for shard in shards)), shards


def changed() -> UploadChanged:
    """Return the error of a put that goes on with another content."""
    return UploadChanged(
        "the content is not the one that the put which broke off had begun with",
        hint="nothing is left of that put; store it again",
    )


class Upload:
    """One put. Used once."""

    def __init__(
        self,
        client: HostClient,
        key: KeyPair,
        entropy: Entropy,
        *,
        code: Code,
        contract: Contract,
        journal: ResumeJournal | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._journal = journal
        self._trail: ResumeJournal | None = None
        self._kept = kept
        self._client = client
        self._key = key
        self._entropy = entropy
        self._code = code
        self._contract = contract
        kept = self._kept
        self._secret = entropy.token(SECRET_BYTES) if kept is None else kept.head.secret
        self._content_key = content_key(self._secret)
        keys = VerifyCapability(verify_key(self._secret), bytes(32))
        self._locate = keys.locate
        self._manifest_key = keys.manifest_key
        self._slots: list[_Slot] = []
        self._gone: dict[bytes, XscError] = {}
        """Hosts that failed, and how."""
        self._refused: dict[bytes, XscError] = {}
        """Nodes that gave no room, and why."""
        self._passed_over: dict[tuple[bytes, bytes | None], PassedOver] = {}
        self._asked: dict[int, int] = {}
        """By room that was asked for, how many nodes more were to give it; in this order."""
        self._choosing = asyncio.Lock()
        self._live: dict[int, list[StorageShard]] = {}
        self._sealed: dict[int, SealedSegment] = {}
        self._lengths: dict[int, int] = {}
        self._held: dict[tuple[bytes, bytes], int] = {}
        self._record: ObjectRecord | None = None
        self._recorded: dict[bytes, bytes] = {}
        """By host: under which lease it keeps the record."""
        self._recording: set[bytes] = set()
        self._last = -1
        self._size_hint = 0
        self._abandoned = False

    async def run(
        self, source: AsyncIterator[bytes], size_hint: int | None, trail: ResumeJournal
    ) -> Uploaded:
        """Store the stream.

        Args:
            source: the bytes, in chunks of any size.
            size_hint: the length where it is known.
            trail: keeps where something lies that must be deleted should this not end.

        Raises:
            DurabilityUnreachable: too few nodes for what must be survived; nothing was sent.
            NoOffers, SpaceExhausted: no host, or no other one where one failed.
            XscError: what the last host to try failed with.
        """
        pieces = cut_stream(source)
        self._trail = trail
        try:
            first, final = await anext(pieces)
            self._size_hint = len(first) if final else size_hint or UNKNOWN_SIZE_BYTES
            self._note_size(len(first))
            if self._kept is None:
                await self._choose()
            elif self._can_go_on(self._kept):
                await self._go_on(self._kept)
            else:
                # The id was given again with other options: what was stored is deleted.
                self._held = self._kept.held()
        except BaseException as fault:
            if isinstance(fault, XscError):
                self._note_unplaced()
            await _close(pieces)
            raise
        whole = False
        try:
            if self._kept is not None and (final or not self._can_go_on(self._kept)):
                raise changed()
            uploaded = await self._send(first, final, pieces)
            whole = True
        except XscError as fault:
            self._note_unplaced()
            # Somebody was silent: the same put again may go on where this one ended.
            self._abandoned = not isinstance(fault, UnavailableError)
            raise
        else:
            # A try that went on may have asked for less than the one that was refused.
            for room_bytes in {*self._asked, self._room(self._code.n)}:
                self._client.hosts.placed(room_bytes)
            return uploaded
        finally:
            await _close(pieces)
            if not whole and (self._journal is None or self._abandoned):
                await self._undo(trail)
            elif not whole and self._journal is not None and self._journal.begun:
                await self._uncount_records()

    @property
    def locate(self) -> bytes:
        """What hosts file the object under."""
        return self._locate

    # Going on

    def _can_go_on(self, kept: Kept) -> bool:
        """Say whether an earlier put has the same code, and its hosts keep the contract."""
        hosts = [slot.node for _, slot in sorted(kept.columns.items())]
        return kept.code == self._code and self._keeps(hosts)

    async def _go_on(self, kept: Kept) -> None:
        """Take up where an earlier put of the same content ended."""
        assert self._journal is not None
        self._size_hint = max(self._size_hint, sum(s.length for s in kept.segments.values()))
        self._held = dict(kept.held())
        await together(self._ask_for_rest(kept, *item) for item in kept.columns.items())
        whole = kept.whole()
        for column, slot in kept.columns.items():
            self._slots.append(
                _Slot(
                    column,
                    KeptLease(slot.node, slot.lease_id, slot.price),
                    done=set(whole),
                    before=frozenset(
                        index for index in kept.segments if kept.has(index, column, slot.node)
                    ),
                )
            )
        for index in whole:
            self._sealed[index] = sealed_of(kept.segments[index])
            self._lengths[index] = kept.segments[index].length
        self._journal.moved(self._head())
        self._client.log.info("storage.put_goes_on", segments=len(whole))

    async def _ask_for_rest(self, kept: Kept, column: int, slot: KeptSlot) -> None:
        """Learn from a host what it stored of a column before its receipt could be kept."""
        assert self._journal is not None
        lease = KeptLease(slot.node, slot.lease_id, slot.price)
        missing = [
            Wanted(index, column, segment.roots[column])
            for index, segment in sorted(kept.segments.items())
            if not kept.has(index, column, slot.node)
        ]

        def size_of(want: Wanted) -> int:
            return self._code.shard_bytes(kept.segments[want.segment].length)

        held: set[tuple[int, int]] = set()
        for start in range(0, len(missing), HAVE_MAX):
            asked = missing[start : start + HAVE_MAX]
            try:
                held |= await self._client.held_shards(
                    lease, self._locate, self._code.generation, asked, size_of
                )
            except XscError as fault:
                # What it does not confirm is sent again.
                self._client.log.info(
                    "storage.host_not_asked", peer=short(slot.node), code=fault.code
                )
                break
        for index, _ in sorted(held):
            size = held_bytes(size_of(Wanted(index, column, b"")))
            place = KeptPlace(node=slot.node, lease_id=slot.lease_id, size_bytes=size)
            kept.acks[index, column] = place
            self._journal.acked(index, column, place)
            known = (slot.node, slot.lease_id)
            self._held[known] = self._held.get(known, 0) + size

    def _head(self) -> Head:
        return self._head_of(self._held)

    def _head_of(self, held: Mapping[tuple[bytes, bytes], int]) -> Head:
        assert self._trail is not None
        return Head(
            secret=self._secret,
            k=self._code.k,
            m=self._code.m,
            touched_ms=self._trail.now_ms(),
            slots=tuple(
                KeptSlot(
                    columns=(slot.column,),
                    node=slot.lease.node,
                    lease_id=slot.lease.lease_id,
                    price=slot.lease.price,
                )
                for slot in self._slots
            ),
            places=places(held),
        )

    async def _same(self, index: int, place: Place, plain: bytes) -> KeptSegment | None:
        """Return how a segment was sealed before, or None for one that is new.

        Raises:
            UploadChanged: it was sealed with another content.
        """
        kept = None if self._kept is None else self._kept.segments.get(index)
        if kept is None:
            return None
        _, tag = await run_sized(
            self._client.executor,
            len(plain),
            segments.seal,
            self._content_key,
            kept.nonce,
            place,
            plain,
        )
        if (tag, len(plain)) != (kept.tag, kept.length):
            raise changed()
        return kept

    # Hosts

    def _note_size(self, read_bytes: int) -> None:
        """Expect twice as much again where the stream is longer than was expected."""
        if read_bytes > self._size_hint:
            self._size_hint = 2 * read_bytes

    def _note_unplaced(self) -> None:
        """Note what was refused for want of room: it is needed until it is placed.

        That is the first choice alone: whatever was asked for after it was to do in its stead. Who
        was chosen and had no room left for the bytes is lacking, too.
        """
        full = {
            node
            for node, fault in {**self._refused, **self._gone}.items()
            if isinstance(fault, SpaceExhausted) and node != self._client.own
        }
        short = [(size, nodes) for size, nodes in self._asked.items() if nodes]
        if full and short:
            room_bytes, lacking = short[0]
            lacking = max(lacking, len(full & {*self._gone}))
            self._client.hosts.unplaced(room_bytes, min(self._code.n, lacking, len(full)))

    def _room(self, hosts: int) -> int:
        size = host_bytes(self._size_hint, self._code, hosts, SEGMENT_BYTES)
        if self._size_hint <= INLINE_BYTES_MAX:
            size = 0
        return size + record_bytes(self._size_hint, self._code, SEGMENT_BYTES)

    async def _choose(self) -> None:
        never = check_code(self._code, self._contract)
        if never is not None:
            raise DurabilityUnreachable(never.reason, hint=never.hint)
        n = self._code.n
        leases = await self._lease(self._room(n), n)
        columns = self._plan(leases)
        if len(leases) < n:
            # Each holds several columns, which was not known before.
            leases = await self._lease(self._room(len(leases)), len(leases))
            columns = self._plan(leases)
        elif columns is None:
            # Those that the auction preferred do not do: plan over everybody who has room.
            leases = await self._lease(self._room(n), PLAN_HOSTS_MAX)
            columns = self._plan(leases)
        if columns is None:
            raise await self._refusal([lease.node for lease in leases])
        by_node = {lease.node: lease for lease in leases}
        self._slots = [_Slot(column, by_node[node]) for column, node in enumerate(columns)]

    def _hosts_of(self, columns: Sequence[bytes]) -> list[HostLabels]:
        return [HostLabels(node, *self._client.hosts.labels(node)) for node in columns]

    def _plan(self, leases: Sequence[HostLease]) -> tuple[bytes, ...] | None:
        hosts = self._hosts_of([lease.node for lease in leases])
        return plan_columns(hosts, self._code.n, self._code.m, self._contract)

    async def _lease(
        self, size_bytes: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> Sequence[HostLease]:
        """Return room at up to so many nodes, at least one; note who gave none, and why.

        Raises:
            CreditExceeded, SpaceExhausted, NoOffers: not even one.
        """
        offered = await self._client.hosts.lease_hosts(
            size_bytes=size_bytes, count=count, exclude=exclude
        )
        self._refused |= offered.refused
        for each in offered.passed_over:
            self._passed_over[each.node, each.lease_id] = each
        lacking = count - len(offered.leases)
        self._asked[size_bytes] = max(lacking, self._asked.get(size_bytes, 0))
        if not offered.leases:
            raise refusal(offered.refused, "no node offers the room that is needed")
        return offered.leases

    def _keeps(self, columns: Sequence[bytes]) -> bool:
        return survival(self._hosts_of(columns), self._code.m).meets(self._contract)

    async def _require(self, columns: Sequence[bytes]) -> None:
        """Return if a placement keeps the contract.

        Raises:
            XscError: as `_refusal`.
        """
        if not self._keeps(columns):
            raise await self._refusal(list(dict.fromkeys(columns)))

    async def _refusal(self, nodes: Sequence[bytes]) -> XscError:
        """Return why the contract cannot be kept, and what can be with these nodes as they are.

        It is for the caller to change what could not be kept if all known nodes were up, each
        that has not said its site and owner yet at a site and of an owner of its own.
        """
        code, contract = self._code, self._contract
        left = [node for node in nodes if node not in self._gone]
        works = attainable(self._hosts_of(left), code.n, code.m, contract)
        less = f"`--survive {works.to_text()}` accepts what works now"
        if works == contract:
            less = "put it again: the nodes that are left can keep it in other places"
        known = [self._client.own, *self._client.hosts.peers()][:PLAN_HOSTS_MAX]
        heard = await self._client.hosts.learn_labels(known)
        hosts = [
            host
            if host.node in heard
            else host._replace(site=host.node.hex(), owner=host.node.hex())
            for host in self._hosts_of(known)
        ]
        never = shortfall(hosts, code, contract)
        refused = {
            node: fault
            for node, fault in {**self._refused, **self._gone}.items()
            if node not in left
        }
        if never is not None or not refused:
            reason = (
                f"no placement survives {contract.to_text()}" if never is None else never.reason
            )
            hints = [less] if never is None else [never.hint, less]
            return DurabilityUnreachable(reason, hint="; ".join(hints))
        return refusal(refused, f"the contract {contract.to_text()} cannot be kept now", also=less)

    def _columns(self) -> tuple[bytes, ...]:
        holders = {slot.column: slot.lease.node for slot in self._slots}
        return tuple(holders[column] for column in range(self._code.n))

    # Sending

    async def _send(
        self, first: bytes, final: bool, pieces: AsyncIterator[tuple[bytes, bool]]
    ) -> Uploaded:
        index, size = 0, 0
        plain = first
        running: set[asyncio.Task[None]] = set()
        try:
            while not final:
                while len(running) >= SEGMENTS_IN_FLIGHT:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in [task for task in running if task.done()]:
                        task.result()
                        running.discard(task)
                running.add(asyncio.create_task(self._segment(index, plain)))
                size += len(plain)
                index += 1
                plain, final = await anext(pieces)
                self._note_size(size + len(plain))
            if running:
                await asyncio.gather(*running)
        except BaseException as fault:
            if self._journal is not None and not isinstance(fault, XscError):
                # The client went away: what is on its way need not be sent again.
                await let_end(running, self._client.clock, PUT_ENDS_MS)
            raise
        finally:
            await stop_all(running)
        return await self._end(index, plain, size + len(plain))

    async def _cut(self, index: int, plain: bytes, *, final: bool) -> list[StorageShard]:
        place = Place(self._locate, index, len(plain), final)
        kept = await self._same(index, place, plain)
        nonce = self._entropy.token(NONCE_BYTES) if kept is None else kept.nonce
        self._lengths[index] = len(plain)
        self._sealed[index], shards = await run_sized(
            self._client.executor,
            len(plain),
            _cut_segment,
            self._content_key,
            nonce,
            place,
            plain,
            self._code,
        )
        if self._journal is not None and kept is None and not (final and index == 0):
            await self._journal.begin(self._head(), index, len(plain), self._sealed[index])
        return shards

    async def _segment(self, index: int, plain: bytes) -> None:
        if all(index in slot.done for slot in self._slots):
            # Stored by the put before: only that it is the same content is still to be seen.
            await self._same(index, Place(self._locate, index, len(plain), final=False), plain)
            return
        self._live[index] = await self._cut(index, plain, final=False)
        await together(self._store(slot, index) for slot in self._slots)
        del self._live[index]

    async def _end(self, index: int, plain: bytes, size: int) -> Uploaded:
        """Store the last segment, and the manifest with it."""
        self._last = index
        inline: bytes | None = None
        if size <= INLINE_BYTES_MAX:
            nonce = self._entropy.token(NONCE_BYTES)
            place = Place(self._locate, 0, size, final=True)
            ciphertext, tag = segments.seal(self._content_key, nonce, place, plain)
            inline = bytes(ciphertext)
            self._sealed[0] = SealedSegment(nonce, tag, ())
            self._live[0] = []
            self._lengths[0] = 0
        else:
            self._live[index] = await self._cut(index, plain, final=True)
        manifest = build(
            self._key.node_id,
            self._code,
            size,
            [self._sealed[number] for number in range(index + 1)],
            inline=inline,
            survive=self._contract,
        )
        sealed = None if self._kept is None else self._kept.sealed
        if sealed is not None:
            # Hosts may hold it already, and take no other under the same locate id.
            again = VerifyCapability(verify_key(self._secret), hash_of(sealed))
            if open_manifest(sealed, again) != manifest:
                raise changed()
        else:
            sealed = await run_sized(
                self._client.executor,
                (index + 1) * MANIFEST_SEGMENT_BYTES,
                seal_manifest,
                manifest,
                self._manifest_key,
                self._entropy.token(NONCE_BYTES),
            )
            if self._journal is not None and index:
                await self._journal.sealed(sealed)
        self._record = ObjectRecord(
            sealed=sealed, sealed_root=root_of(sealed), manifest_hash=hash_of(sealed)
        )
        await self._require(self._columns())
        await together(self._store(slot, index) for slot in self._slots)
        # Where the slot that was to bring the record to a host was moved elsewhere, another does.
        while lacking := [slot for slot in self._slots if slot.lease.node not in self._recorded]:
            await together(self._store(slot, index, again=True) for slot in lacking)
        columns = self._columns()
        await self._require(columns)
        return Uploaded(
            capability=ReadCapability(self._secret, hash_of(sealed)),
            size_bytes=size,
            sealed=sealed,
            placement=placement_of(manifest, columns),
            held=tuple(Held(node, lease, held) for (node, lease), held in self._held.items()),
            warnings=warnings_of(columns, self._code, self._client.own),
            survives=survival(self._hosts_of(columns), self._code.m),
            passed_over=tuple(
                each
                for (node, lease_id), each in self._passed_over.items()
                if (node, lease_id) not in self._held and (lease_id or node not in columns)
            ),
        )

    def _may_lie_at(self, lease: HostLease) -> None:
        """Note that something may lie there, whatever comes of it: an undo must ask that host."""
        place = (lease.node, lease.lease_id)
        if place in self._held:
            return
        if self._trail is not None and self._journal is None and self._last != 0:
            self._trail.lies_at(self._head_of(dict.fromkeys([*self._held, place], 0)))
        self._held[place] = 0

    async def _deliver(self, lease: HostLease, index: int, shards: Sequence[StorageShard]) -> None:
        """Store shards of a segment at a host, with the record where it is the last segment."""
        # Of several slots at one host, one brings the record.
        carries = index == self._last and lease.node not in {*self._recorded, *self._recording}
        record = self._record if carries else None
        place = (lease.node, lease.lease_id)
        if carries:
            self._recording.add(lease.node)
        try:
            for batch, carried in requests_of([(index, shard) for shard in shards], record):
                if not batch and carried is None:
                    continue
                stored = await self._client.store(
                    lease, self._locate, self._code.generation, shards=batch, record=carried
                )
                self._held[place] += stored
            if carries:
                self._recorded[lease.node] = lease.lease_id
        finally:
            if carries:
                self._recording.discard(lease.node)

    async def _uncount_records(self) -> None:
        """Count no record of a put that may go on: then it is sent, and counted, again."""
        size = 0 if self._record is None else self._record.held_bytes
        for node, lease_id in self._recorded.items():
            self._held[node, lease_id] -= size
            await self._client.note_freed(node, lease_id, size)
        assert self._journal is not None
        self._journal.moved(self._head())

    async def _store(self, slot: _Slot, index: int, *, again: bool = False) -> None:
        """Store a slot's column of a segment, at whatever host it has by then."""
        while True:
            tries, lease = slot.tries, slot.lease
            # No host is to blame where the own disk takes no note.
            self._may_lie_at(lease)
            try:
                shards = self._live[index]
                mine = shards[slot.column : slot.column + 1]
                if again or (index in slot.before and not tries):
                    mine = []
                await self._deliver(lease, index, mine)
            except XscError as fault:
                await self._replace(slot, tries, fault)
            else:
                if slot.tries == tries:
                    if mine:
                        self._acked(slot, index, mine)
                    slot.done.add(index)
                    return

    def _acked(self, slot: _Slot, index: int, shards: Sequence[StorageShard]) -> None:
        if self._journal is None or self._last == index == 0:
            return
        place = KeptPlace(
            node=slot.lease.node,
            lease_id=slot.lease.lease_id,
            size_bytes=held_bytes(sum(len(shard.data) for shard in shards), len(shards)),
        )
        self._journal.acked(index, slot.column, place)

    # Replacing

    async def _replace(self, slot: _Slot, tries: int, fault: XscError) -> None:
        async with slot.turn:
            if slot.tries != tries:
                return
            while True:
                slot.tries += 1
                denied = self._client.hosts.is_denied(slot.lease.lease_id)
                if isinstance(fault, LeaseExhausted) and not denied and await self._extend(slot):
                    return
                self._client.log.warning(
                    "storage.host_replaced", peer=short(slot.lease.node), reason=fault.code
                )
                self._gone[slot.lease.node] = fault
                slot.lease = await self._another(slot, fault)
                self._may_lie_at(slot.lease)
                try:
                    await self._refill(slot)
                except XscError as again:
                    fault = again
                else:
                    if self._journal is not None and self._last != 0:
                        self._journal.moved(self._head())
                    return

    async def _extend(self, slot: _Slot) -> bool:
        """Ask the same host for the room that is lacking, or as much again; False: it has none."""
        node = slot.lease.node
        held = self._held.get((node, slot.lease.lease_id), 0)
        if held == slot.extended_at:
            # The last extension did not let one more request through.
            return False
        slot.extended_at = held
        there = sum(size for (at, _), size in self._held.items() if at == node)
        lacking = self._room(len(set(self._columns()))) - there
        more = lacking if lacking > 0 else there
        before = self._asked.get(more, 0)
        lease = await self._lease_at(node, more)
        if lease is None:
            # Another host is asked for the whole column next.
            self._asked[more] = before
            return False
        slot.lease = lease
        return True

    async def _lease_at(self, node: bytes, size_bytes: int) -> HostLease | None:
        """Return room at one host, under another lease where it takes one; None: it has none."""
        others = {self._client.own, *self._client.hosts.peers()} - {node}
        try:
            leases = await self._lease(size_bytes, 1, frozenset(others))
        except (NoOffers, LimitError):
            return None
        return leases[0] if leases[0].node == node else None

    async def _another(self, slot: _Slot, fault: XscError) -> HostLease:
        """Return a host to take a slot over, one that holds nothing yet if there is one."""
        async with self._choosing:
            taken = frozenset({*(other.lease.node for other in self._slots), *self._gone})
            held = sum(
                held_bytes(self._code.shard_bytes(self._lengths[index])) for index in slot.done
            )
            size = max(self._room(self._code.n), held)
            try:
                leases = await self._lease(size, 1, taken)
            except (NoOffers, LimitError):
                leases = []
            for lease in leases:
                if lease.node not in taken:
                    slot.lease = lease
                    return lease
            node = slot.lease.node
            if self._client.hosts.is_denied(slot.lease.lease_id):
                # It has lost what it held, and may still be the only one that is left.
                again = await self._lease_at(node, size)
                if again is not None:
                    self._gone.pop(node, None)
                    slot.lease = again
                    return again
            return await self._double_up(slot, fault)

    async def _double_up(self, slot: _Slot, fault: XscError) -> HostLease:
        """Return the host with the fewest columns, where fewer nodes are up than there are shards.

        Raises:
            XscError: the fault, where no host is left; why the contract cannot be kept.
        """
        left = [
            other
            for other in self._slots
            if other is not slot and other.lease.node not in self._gone
        ]
        if not left:
            raise fault
        load = Counter(other.lease.node for other in left)
        chosen = min(left, key=lambda other: (load[other.lease.node], other.column))
        columns = list(self._columns())
        columns[slot.column] = chosen.lease.node
        await self._require(columns)
        slot.lease = chosen.lease
        return chosen.lease

    async def _refill(self, slot: _Slot) -> None:
        """Store at a slot's new host what the old one held."""
        for plan in plan_rebuilds(self._columns(), [slot.column], slot.done, set(self._gone)):
            index = plan.segment
            if index in self._live:
                shards = self._live[index]
                built = shards[slot.column : slot.column + 1]
            else:
                columns = self._columns()
                got = await race(
                    self._client,
                    locate=self._locate,
                    generation=self._code.generation,
                    segment=index,
                    roots=self._sealed[index].roots,
                    sources=in_order(
                        self._client,
                        [Source(column, columns[column]) for column in plan.sources],
                        self._code.k,
                    ),
                    k=self._code.k,
                    size_bytes=self._code.shard_bytes(self._lengths[index]),
                )
                built = await self._client.executor.run(
                    rebuild, got, self._code, self._lengths[index], plan.columns
                )
            await self._deliver(slot.lease, index, built)
            self._acked(slot, index, built)

    # Undoing

    async def _undo(self, trail: ResumeJournal) -> None:
        """Delete what was stored, as far as hosts can be reached; the rest is asked for again."""
        nodes = {node for node, _ in self._held}
        confirmed = await together(self._forget(node) for node in sorted(nodes))
        silent = {node for node in confirmed if node is not None}
        tell = self._client.log.warning if silent else self._client.log.info
        tell("storage.put_undone", hosts=len(nodes), left_at=[short(node) for node in silent])
        left = {place: size for place, size in self._held.items() if place[0] in silent}
        await trail.undone(self._head_of(left))

    async def _forget(self, node: bytes) -> bytes | None:
        """Delete at one host; return it where it did not confirm."""
        try:
            await self._client.delete(node, self._locate, final=True)
        except XscError:
            return node
        for (holder, lease_id), size in self._held.items():
            if holder == node:
                await self._client.note_freed(node, lease_id, size)
        return None


async def _close(pieces: AsyncIterator[tuple[bytes, bool]]) -> None:
    """End a generator that was not read to its end."""
    close = getattr(pieces, "aclose", None)
    if close is not None:
        await close()
