"""Guardians: peers that keep an object whole while its owner is away.

The owner hands a verify capability and its signed placement to a few peers; that
they may repair follows from the placement (`xsc.storage.delegation`). A guardian
does nothing while the owner answers. Once the owner has been silent for longer
than the grace, once more for each guardian before this one, it repairs like an
owner does (`mender`) and pays with leases of its own. When the owner is back, it
takes over what was repaired, places the object anew, and the guardian deletes
what it pays for.

    storage/ward/<manifest hash>     what this node guards for others
    storage/told/<manifest hash>     who guards an own object
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated, ClassVar, Final

from pydantic import Field

from xsc.base.encoding import Value
from xsc.base.errors import (
    NotAllowed,
    PeerUnknown,
    RateLimited,
    RecordInvalid,
    StoreDamaged,
    XscError,
)
from xsc.base.fields import take_bool, take_bytes, take_int, take_str
from xsc.base.ids import ID_BYTES, short
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import (
    BATCH_CALLS_MAX,
    GUARD_RETRY_MS,
    GUARDIANS,
    LEASE_RESCUE_MS,
    LEASE_TURN_MS,
    RECORD_BYTES_MAX,
    STORAGE_QUESTION_TIMEOUT_MS,
    WARD_BYTES_A_PEER_MAX,
    WARDS_A_PEER_MAX,
)
from xsc.base.merkle import Part
from xsc.base.peering import Caller
from xsc.base.turns import Turns, sliced
from xsc.base.units import format_size
from xsc.identity.envelope import Id32, Record
from xsc.storage.capability import VerifyCapability, parse
from xsc.storage.delegation import open_placement
from xsc.storage.deletions import was_ended
from xsc.storage.erasure import Buffer
from xsc.storage.held import HeldAt
from xsc.storage.mender import Charge, Mender
from xsc.storage.pipeline import Held
from xsc.storage.ports import Commit
from xsc.storage.reach import Reach, together

GUARD: Final = "storage.guard"
UNGUARD: Final = "storage.unguard"
HEALED: Final = "storage.healed"
RESIGN: Final = "storage.resign"
WARDS: Final = b"storage/ward/"
TOLD: Final = b"storage/told/"
_WARD_BYTES_MAX: Final = 4 * RECORD_BYTES_MAX


class Ward(Record):
    """An object that this node guards for its owner."""

    KIND: ClassVar[str] = "ward"

    capability: str
    """To verify: it does not read."""
    owner: Id32
    turn: Annotated[int, Field(ge=0, lt=256)]
    """How many guardians come before this one."""
    placement: bytes
    held: tuple[HeldAt, ...]
    ended: bool
    """The owner wants it guarded no more; what is held is still to be deleted."""


class Told(Record):
    """The guardians of an object, in order."""

    KIND: ClassVar[str] = "told"

    nodes: tuple[Id32, ...]


def guardians_in_order(
    up: Collection[bytes], hosts: Collection[bytes], weight_ppm: Callable[[bytes], int]
) -> list[bytes]:
    """Return whom to ask: the most recognised first, then nodes that hold none of the object."""
    return sorted(up, key=lambda node: (-weight_ppm(node), node in hosts, node))


def guard_message(capability: VerifyCapability, placement: bytes, turn: int) -> dict[str, Value]:
    """Return the header of a `storage.guard`."""
    return {"capability": capability.to_text(), "placement": placement, "turn": turn}


class Guards:
    """Both sides: whom this node asked, and what it guards. The keeper of the latter's mender."""

    def __init__(
        self,
        *,
        reach: Reach,
        caller: Caller,
        state: KeyValue,
        commit: Commit,
        weight_ppm: Callable[[bytes], int],
        own: Callable[[], Iterable[tuple[bytes, bytes]]],
        load: Callable[[bytes], Charge | None],
        grace_ms: int,
        leaving: Callable[[], frozenset[bytes]],
        accepts: Callable[[bytes], bool],
    ) -> None:
        self._leaving = leaving
        self._reach = reach
        self._caller = caller
        self._state = state
        self._commit = commit
        self._weight_ppm = weight_ppm
        self._own = own
        self._load = load
        self._grace_ms = grace_ms
        self._accepts = accepts
        self._refused: dict[bytes, int] = {}
        """When a node that guards nothing for this one may be asked again."""
        self.mender: Mender | None = None
        """Knows for how long owners have been silent; set once it is made."""
        self.owner: Mender | None = None
        """Looks after the own objects; set once it is made."""
        self._counted: tuple[Counter[bytes], Counter[bytes]] | None = None
        self._asking: Turns[bytes] = Turns()
        """By object of this node: held while others are asked to guard it, or told to stop."""
        self._turns: Turns[bytes] = Turns()
        """By ward: held from its reading until it is written, and while it is ended."""

    # The owner's side

    async def run(self) -> None:
        """Keep every own object guarded, until cancelled."""
        while True:
            await self._reach.clock.sleep_ms(max(1_000, min(30_000, self._grace_ms // 4)))
            await self.ask_all()
            await self.release_all()
            await self.resign_all()
            await self.end_all()
            await self.report_all()

    async def ask_all(self) -> None:
        """Hand objects that have too few guardians to more of them."""
        leaving = self._leaving()
        now_ms = self._reach.clock.monotonic_ms()
        self._refused = {node: at for node, at in self._refused.items() if at > now_ms}
        up = [
            node
            for node in self._reach.hosts.peers()
            if self._reach.is_up(node) and node not in leaving and node not in self._refused
        ]
        asked = []
        async for ref, _ in sliced(self._own()):
            told = self._told(ref)
            if len(told) >= min(GUARDIANS, len(up)) and not self._gone(told):
                continue
            asked.append(self._ask(ref, up))
            if len(asked) == BATCH_CALLS_MAX:
                # Together their calls share requests, and what was agreed shares syncs.
                await together(asked)
                asked = []
        await together(asked)

    def _gone(self, nodes: Collection[bytes]) -> frozenset[bytes]:
        leaving = self._leaving().intersection(nodes)
        return leaving if self.mender is None else self.mender.gone(nodes) | leaving

    def _told(self, ref: bytes) -> tuple[bytes, ...]:
        raw = self._state.get(TOLD + ref)
        if raw is None:
            return ()
        try:
            return Told.from_bytes(raw).nodes
        except RecordInvalid as fault:
            raise StoreDamaged(f"a list of guardians is damaged: {fault.message}") from None

    async def _ask(self, ref: bytes, up: Sequence[bytes]) -> None:
        async with self._asking.of(ref):
            # Only now: who waited for the turn may have deleted it.
            charge, told = self._load(ref), self._told(ref)
            if charge is None:
                return
            agreed = await self._agreed(charge, up, told)
            if agreed != told:
                await self._commit([(TOLD + ref, Told(nodes=agreed).to_bytes())])

    async def _agreed(
        self, charge: Charge, up: Sequence[bytes], told: tuple[bytes, ...]
    ) -> tuple[bytes, ...]:
        """Return who guards an object once those that should have been asked."""
        placement = open_placement(charge.placement, self._reach.network).placement
        if placement.delegate != charge.capability.delegate.node_id:
            return told
        gone = self._gone(told)
        keep = [node for node in told if node not in gone]
        fresh = guardians_in_order(set(up) - set(keep), placement.columns, self._weight_ppm)
        agreed: list[bytes] = []
        for node in [*keep, *fresh]:
            if len(agreed) == GUARDIANS:
                break
            if node in self._refused:
                continue
            header = guard_message(charge.capability, charge.placement, len(agreed))
            try:
                await self._caller.call(node, GUARD, header)
            except XscError as fault:
                self._reach.log.info("storage_not_guarded", peer=short(node), reason=fault.message)
                if isinstance(fault, (NotAllowed, RateLimited)):
                    self._refused[node] = self._reach.clock.monotonic_ms() + GUARD_RETRY_MS
                continue
            agreed.append(node)
        return tuple(agreed)

    async def release(self, ref: bytes) -> None:
        """Tell the guardians of an object that is deleted; the silent are told when they are up."""
        async with self._asking.of(ref):
            told = self._told(ref)
            left = tuple([node for node in told if not await self._released(ref, node)])
            if left != told:
                row = Told(nodes=left).to_bytes() if left else None
                await self._commit([(TOLD + ref, row)])

    async def _released(self, ref: bytes, node: bytes) -> bool:
        """Tell a guardian; say whether it need not be told again."""
        try:
            await self._caller.call(
                node, UNGUARD, {"object": ref}, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
            )
        except XscError as fault:
            self._reach.log.info("storage_not_released", peer=short(node), reason=fault.message)
            # Else it guards nothing of this node, or cannot be asked any more.
            return isinstance(fault, (NotAllowed, PeerUnknown))
        return True

    async def release_all(self) -> None:
        """Tell guardians that are up again of what was deleted meanwhile."""
        rows = self._state.scan(TOLD, prefix_end(TOLD))
        ended = [
            ref
            async for ref in sliced(key.removeprefix(TOLD) for key, _ in rows)
            if was_ended(self._state, ref)
        ]
        peers = set(self._reach.hosts.peers())
        for ref in ended:
            if any(node not in peers or self._reach.is_up(node) for node in self._told(ref)):
                await self.release(ref)

    # The guardian's side

    def wards(self) -> Iterator[tuple[bytes, Ward]]:
        """Yield what this node guards, by manifest hash."""
        for key, raw in self._state.scan(WARDS, prefix_end(WARDS)):
            yield key.removeprefix(WARDS), self._parse(raw)

    def _ward(self, ref: bytes) -> Ward | None:
        raw = self._state.get(WARDS + ref)
        return None if raw is None else self._parse(raw)

    @staticmethod
    def _parse(raw: bytes) -> Ward:
        try:
            return Ward.from_bytes(raw, size_max=_WARD_BYTES_MAX)
        except RecordInvalid as fault:
            raise StoreDamaged(f"the list of wards is damaged: {fault.message}") from None

    def _acts(self, ward: Ward) -> bool:
        """Say whether it is this node's turn: the owner is silent, and so long."""
        if self.mender is None or self._reach.own in self._leaving():
            return False
        if not self._accepts(ward.owner):
            return False
        return self.mender.silent_ms(ward.owner) >= self._grace_ms * (1 + ward.turn)

    def refs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the wards to look at: of owners that are away, or with something to give back."""
        return (
            (ref, ward.placement)
            for ref, ward in self.wards()
            if not ward.ended and (ward.held or self._acts(ward))
        )

    def load(self, ref: bytes) -> Charge | None:
        """Return a ward as a charge."""
        ward = self._ward(ref)
        if ward is None or ward.ended:
            return None
        capability = parse(ward.capability)
        assert isinstance(capability, VerifyCapability)
        held = tuple(Held(item.node, item.lease_id, item.size_bytes) for item in ward.held)
        acts = self._acts(ward)
        rescue_ms = LEASE_RESCUE_MS - min(ward.turn, GUARDIANS - 1) * LEASE_TURN_MS
        return Charge(ref, capability, None, ward.placement, held, rescue_ms, only_clean=not acts)

    async def save(self, ref: bytes, placement: bytes, held: tuple[Held, ...]) -> bool:
        """Keep what became of a ward; of one that has ended, what is to be given back."""
        kept = tuple(
            HeldAt(node=item.node, lease_id=item.lease_id, size_bytes=item.size_bytes)
            for item in held
        )
        async with self._turns.of(ref):
            ward = self._ward(ref)
            if ward is None:
                return False
            change = ward.model_copy(update={"placement": placement, "held": kept})
            await self._put(ref, ward.owner, ward, change)
        return not ward.ended

    async def on_guard(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """Take an object of the caller into guard.

        Raises:
            RecordInvalid, SignatureInvalid: not the caller's object, or not delegated.
            NotAllowed: it does not guard for this caller, by its operator's word.
            RateLimited: it guards enough for this caller.
        """
        if not self._accepts(caller):
            raise NotAllowed("this node guards nothing for that peer")
        capability = parse(take_str(header, "capability"))
        if not isinstance(capability, VerifyCapability):
            raise RecordInvalid("a guardian takes no capability that reads")
        raw = take_bytes(header, "placement")
        placement = open_placement(raw, self._reach.network, caller).placement
        if placement.locate != capability.locate:
            raise RecordInvalid("the placement is of another object than the capability")
        if placement.delegate != capability.delegate.node_id:
            raise RecordInvalid("the owner's placement does not delegate to this capability")
        ref = capability.manifest_hash
        turn = take_int(header, "turn", most=255)
        async with self._turns.of(ref):
            known = self._ward(ref)
            if known is not None and known.owner != caller:
                raise NotAllowed("another node has that object guarded here")
            ward = Ward(
                capability=capability.to_text(),
                owner=caller,
                turn=turn,
                placement=raw if known is None else known.placement,
                held=() if known is None else known.held,
                ended=False,
            )
            if known is None:
                self._check_room(ward)
            await self._put(ref, caller, known, ward)
        return {}, []

    def _check_room(self, ward: Ward) -> None:
        """Return if one more ward may be kept for its owner.

        Raises:
            RateLimited: this node guards enough for it.
        """
        wards, size = self._counts()
        if wards[ward.owner] >= WARDS_A_PEER_MAX:
            raise RateLimited(f"this node guards {WARDS_A_PEER_MAX} objects for one peer")
        if size[ward.owner] + len(ward.to_bytes()) > WARD_BYTES_A_PEER_MAX:
            most = format_size(WARD_BYTES_A_PEER_MAX)
            raise RateLimited(f"this node keeps {most} of placements that it guards for one peer")

    async def _put(self, ref: bytes, owner: bytes, known: Ward | None, ward: Ward | None) -> None:
        """Keep a ward in the place of what is known, or nothing, and count it."""
        row = None if ward is None else ward.to_bytes()
        more = (ward is not None) - (known is not None)
        more_bytes = len(row or b"") - (0 if known is None else len(known.to_bytes()))
        # Before it is written: of many at once none passes the bound.
        wards, size = self._counts()
        wards[owner] += more
        size[owner] += more_bytes
        try:
            await self._commit([(WARDS + ref, row)])
        except XscError:
            wards[owner] -= more
            size[owner] -= more_bytes
            raise

    def _counts(self) -> tuple[Counter[bytes], Counter[bytes]]:
        """Return wards and the bytes of their rows by owner; counted once, then kept up."""
        if self._counted is None:
            wards, size = Counter[bytes](), Counter[bytes]()
            for _, ward in self.wards():
                wards[ward.owner] += 1
                size[ward.owner] += len(ward.to_bytes())
            self._counted = wards, size
        return self._counted

    async def on_unguard(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """End a guard; what is held for it is deleted in the background."""
        ref = take_bytes(header, "object", size=ID_BYTES)
        async with self._turns.of(ref):
            ward = self._ward(ref)
            if ward is None or ward.owner != caller:
                raise NotAllowed("nothing is guarded here for that node")
            ended = ward.model_copy(update={"ended": True}) if ward.held else None
            await self._put(ref, caller, ward, ended)
        return {}, []

    async def resign_all(self) -> None:
        """Tell owners of what this node guards no longer; what it pays for they take over first."""
        for ref, ward in [item async for item in sliced(self.wards())]:
            if ward.ended or ward.held or self._accepts(ward.owner):
                continue
            if not self._reach.is_up(ward.owner):
                continue
            try:
                await self._caller.call(
                    ward.owner, RESIGN, {"object": ref}, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
                )
            except XscError as fault:
                peer = short(ward.owner)
                self._reach.log.info("storage_not_resigned", peer=peer, reason=fault.message)
                continue
            async with self._turns.of(ref):
                # The call took its time: it may have ended, or be paid for by now.
                now = self._ward(ref)
                if now is not None and not now.held:
                    await self._put(ref, now.owner, now, None)

    async def on_resign(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """Learn, as the owner, that a guardian guards an object no longer."""
        ref = take_bytes(header, "object", size=ID_BYTES)
        async with self._asking.of(ref):
            told = self._told(ref)
            if caller in told:
                self._refused[caller] = self._reach.clock.monotonic_ms() + GUARD_RETRY_MS
                left = Told(nodes=tuple(node for node in told if node != caller))
                await self._commit([(TOLD + ref, left.to_bytes())])
        return {}, []

    async def report_all(self) -> None:
        """Tell owners that are back what was repaired for them, until they take it over."""
        for ref, ward in [item async for item in sliced(self.wards())]:
            if ward.ended or not ward.held or not self._reach.is_up(ward.owner):
                continue
            if not open_placement(ward.placement, self._reach.network).repairs:
                continue
            header: dict[str, Value] = {"object": ref, "placement": ward.placement}
            try:
                reply = await self._caller.call(
                    ward.owner, HEALED, header, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
                )
                ended = "ended" in reply.header and take_bool(reply.header, "ended")
            except XscError as fault:
                peer = short(ward.owner)
                self._reach.log.info("storage_not_reported", peer=peer, reason=fault.message)
                continue
            if ended:
                # It was deleted, and this node did not hear of it.
                async with self._turns.of(ref):
                    now = self._ward(ref)
                    if now is not None:
                        ended_now = now.model_copy(update={"ended": True})
                        await self._put(ref, now.owner, now, ended_now)

    async def on_healed(
        self, _caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """Learn, as the owner, where an object lies since it was repaired; say if it is deleted.

        Raises:
            NotAllowed: no object of this node.
            RecordInvalid, SignatureInvalid: not a placement that this node delegated.
        """
        ref = take_bytes(header, "object", size=ID_BYTES)
        charge = self._load(ref)
        if charge is None and was_ended(self._state, ref):
            return {"ended": True}, []
        if charge is None:
            raise NotAllowed("this node has stored no such object")
        placed = open_placement(
            take_bytes(header, "placement"), self._reach.network, self._reach.own
        )
        if placed.placement.locate != charge.capability.locate:
            raise RecordInvalid("the placement is of another object")
        if self.owner is not None:
            await self.owner.adopt(ref, placed)
        return {"ended": False}, []

    async def end_all(self) -> None:
        """Delete what is held for guards that have ended."""
        for ref in [ref async for ref, ward in sliced(self.wards()) if ward.ended]:
            # Who mends it stops, and says what lies where by then.
            async with self._apart(ref), self._turns.of(ref):
                ward = self._ward(ref)
                if ward is None or not ward.ended:
                    continue
                left = await self._give_back(ward)
                rest = ward.model_copy(update={"held": left}) if left else None
                await self._put(ref, ward.owner, ward, rest)

    def _apart(self, ref: bytes) -> AbstractAsyncContextManager[object]:
        return nullcontext() if self.mender is None else self.mender.apart(ref)

    async def _give_back(self, ward: Ward) -> tuple[HeldAt, ...]:
        """Delete what is held for a ward; return what lies at hosts that did not confirm it."""
        capability = parse(ward.capability)
        assert isinstance(capability, VerifyCapability)
        left: list[HeldAt] = []
        for node in dict.fromkeys(item.node for item in ward.held):
            items = [item for item in ward.held if item.node == node]
            try:
                await self._reach.delete(node, capability.locate, final=False)
            except NotAllowed:
                pass  # Others have something there, this node has nothing (left).
            except XscError:
                over = [i for i in items if self._reach.has_dropped(node, i.lease_id)]
                left += [item for item in items if item not in over]
                items = over
            for item in items:
                await self._reach.note_freed(node, item.lease_id, item.size_bytes)
        return tuple(left)
