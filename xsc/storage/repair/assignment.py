"""Assigns custodians to the own objects: peers that keep them whole while this node is away.

    storage/told/<manifest hash>            the custodians of an own object
    storage/asked/<manifest hash>           others that were asked, and whose answer was lost

The custodian's side is `xsc.storage.repair.custodian`.
Design: docs/design/storage-repair.md, W1 to W6.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import ClassVar, Final

from xsc.base import encoding, errors, fields, keyvalue, limits, merkle, peering, turns
from xsc.base.ids import ID_BYTES, short
from xsc.identity.context import Context
from xsc.identity.envelope import Id32, Record
from xsc.storage.repair.custodian import GUARD, HEALED, UNGUARD, custody_message
from xsc.storage.repair.maintained_object import MaintainedObject, MaintainedObjects
from xsc.storage.repair.repairer import Repairer
from xsc.storage.transfer import deletions, host_client

CUSTODIAN_RETRY_MS = 600_000
"""A node that refused custody is asked again after that."""

ASSIGNED: Final = b"storage/told/"
IN_DOUBT: Final = b"storage/asked/"


class AssignedCustodians(Record):
    """The custodians of an object in the order of their turns, then those that were replaced."""

    KIND: ClassVar[str] = "told"

    nodes: tuple[Id32, ...]


def custodians_in_order(
    up: Collection[bytes], hosts: Collection[bytes], weight_ppm: Callable[[bytes], int]
) -> list[bytes]:
    """Return whom to ask: the most recognised first, then nodes that hold none of the object."""
    return sorted(up, key=lambda node: (-weight_ppm(node), node in hosts, node))


class CustodianAssignment:
    """Asks peers to be custodians of own objects, and tells them when an object is deleted."""

    def __init__(
        self,
        context: Context,
        client: host_client.HostClient,
        *,
        objects: MaintainedObjects,
        repairer: Repairer,
        weight_ppm: Callable[[bytes], int],
    ) -> None:
        self._context = context
        self._client = client
        self._state = context.state
        self._commit = context.commit
        self._objects = objects
        self._repairer = repairer
        self._weight_ppm = weight_ppm
        self._refused: dict[bytes, tuple[str, int]] = {}
        """By peer that did not agree last: why, and when it may be asked again."""
        self._asking: turns.Turns[bytes] = turns.Turns()
        """By object: held while peers are asked to be its custodians, or told to stop."""

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers custodians, by method."""
        return {HEALED: self.on_healed}

    async def run(self) -> None:
        """Keep custodians assigned to every own object, until cancelled."""
        while True:
            await self._context.clock.sleep_ms(self._repairer.watch.look_ms)
            await self.ask_all()
            await self.release_all()

    # Asking

    async def ask_all(self) -> None:
        """Hand objects with too few custodians to more of them."""
        leaving = self._client.leaving()
        now_ms = self._context.clock.monotonic_ms()
        peers = self._client.hosts.peers()
        self._refused = {node: why for node, why in self._refused.items() if node in peers}
        up = [
            node
            for node in peers
            if self._client.is_up(node) and node not in leaving and self._may_ask(node, now_ms)
        ]
        asked = []
        async for ref, _, _ in turns.sliced(self._objects.refs()):
            custodians = self._assigned(ref)[: limits.CUSTODIANS]
            standing = len(custodians) - len(self._gone(custodians))
            if standing >= min(limits.CUSTODIANS, len(up)):
                continue
            asked.append(self._ask(ref, up))
            if len(asked) == limits.BATCH_CALLS_MAX:
                # Calls made together share requests, and their results share syncs.
                await host_client.together(asked)
                asked = []
        await host_client.together(asked)

    def _gone(self, nodes: Collection[bytes]) -> frozenset[bytes]:
        return self._repairer.watch.gone(nodes) | self._client.leaving().intersection(nodes)

    def _assigned(self, ref: bytes, kept: bytes = ASSIGNED) -> tuple[bytes, ...]:
        raw = self._state.get(kept + ref)
        return () if raw is None else self._nodes(raw)

    @staticmethod
    def _nodes(raw: bytes) -> tuple[bytes, ...]:
        try:
            return AssignedCustodians.from_bytes(raw).nodes
        except errors.RecordInvalid as fault:
            raise errors.StoreDamaged(f"a list of custodians is damaged: {fault.message}") from None

    def custodians(self) -> frozenset[bytes]:
        """Return the custodians of all own objects."""
        rows = self._state.scan(ASSIGNED, keyvalue.prefix_end(ASSIGNED))
        return frozenset(node for _, raw in rows for node in self._nodes(raw))

    async def _write(self, ref: bytes, nodes: tuple[bytes, ...], kept: bytes = ASSIGNED) -> None:
        row = AssignedCustodians(nodes=nodes).to_bytes() if nodes else None
        await self._commit([(kept + ref, row)])

    async def _ask(self, ref: bytes, up: Sequence[bytes]) -> None:
        async with self._asking.of(ref):
            # Loaded only now: the object may have been deleted while this waited.
            maintained, assigned = self._objects.load(ref), self._assigned(ref)
            if maintained is None:
                return
            agreed, silent = await self._agreed(maintained, up, assigned)
            # Who was replaced keeps it in custody until it is told of the deletion.
            nodes = tuple(dict.fromkeys((*agreed, *assigned)))
            if nodes != assigned:
                await self._write(ref, nodes)
            # And so may who was silent, as its answer may be all that was lost.
            doubted = self._assigned(ref, IN_DOUBT)
            left = tuple(node for node in dict.fromkeys((*doubted, *silent)) if node not in nodes)
            if left != doubted:
                await self._write(ref, left, IN_DOUBT)

    async def _agreed(
        self, maintained: MaintainedObject, up: Sequence[bytes], assigned: tuple[bytes, ...]
    ) -> tuple[list[bytes], list[bytes]]:
        """Ask peers until there are enough custodians; return who agreed, and who was silent."""
        gone = self._gone(assigned)
        keep = [node for node in assigned if node not in gone]
        hosts = maintained.placement.columns
        fresh = custodians_in_order(set(up) - set(keep), hosts, self._weight_ppm)
        agreed, silent = list[bytes](), list[bytes]()
        for node in [*keep, *fresh]:
            if len(agreed) == limits.CUSTODIANS:
                break
            if not self._may_ask(node, self._context.clock.monotonic_ms()):
                continue
            header = custody_message(maintained.capability, maintained.placement, agreed)
            try:
                await self._context.caller.call(node, GUARD, header)
            except errors.XscError as fault:
                self._note_refusal(node, fault)
                if isinstance(fault, errors.UnavailableError):
                    silent.append(node)
                continue
            self._refused.pop(node, None)
            agreed.append(node)
        return agreed, silent

    def _note_refusal(self, node: bytes, fault: errors.XscError) -> None:
        """Do not ask for a while a peer that refused.

        Log why a peer is no custodian, once: it is asked for every object, again and again.
        """
        if node not in self._refused or self._refused[node][0] != fault.code:
            self._context.log.info("custody.refused", peer=short(node), reason=fault.message)
        again_ms = self._context.clock.monotonic_ms()
        if isinstance(fault, (errors.NotAllowed, errors.RateLimited)):
            again_ms += CUSTODIAN_RETRY_MS
        self._refused[node] = fault.code, again_ms

    def _may_ask(self, node: bytes, now_ms: int) -> bool:
        return node not in self._refused or self._refused[node][1] <= now_ms

    # Ending

    async def release(self, ref: bytes) -> None:
        """Tell the custodians of a deleted object; those that are silent are told later."""
        async with self._asking.of(ref):
            for kept in (ASSIGNED, IN_DOUBT):
                assigned = self._assigned(ref, kept)
                left = tuple([node for node in assigned if not await self._released(ref, node)])
                if left != assigned:
                    await self._write(ref, left, kept)

    async def _released(self, ref: bytes, node: bytes) -> bool:
        """Tell a custodian; return whether it need not be told again."""
        try:
            await self._context.caller.call(node, UNGUARD, {"object": ref})
        except errors.XscError as fault:
            self._context.log.info("custody.end_not_told", peer=short(node), reason=fault.message)
            # It has nothing in custody for this node, or cannot be asked any more.
            return isinstance(fault, (errors.NotAllowed, errors.PeerUnknown))
        return True

    async def release_all(self) -> None:
        """Tell custodians that are up again of the deletions that they missed."""
        scans = (self._state.scan(k, keyvalue.prefix_end(k)) for k in (ASSIGNED, IN_DOUBT))
        ended = {
            ref
            async for ref in turns.sliced(key[-ID_BYTES:] for key, _ in chain(*scans))
            if deletions.was_ended(self._state, ref)
        }
        peers = set(self._client.hosts.peers())
        for ref in ended:
            nodes = (*self._assigned(ref), *self._assigned(ref, IN_DOUBT))
            if any(node not in peers or self._client.is_up(node) for node in nodes):
                await self.release(ref)

    # What custodians say

    async def _resigned(self, ref: bytes, custodian: bytes) -> None:
        async with self._asking.of(ref):
            assigned = self._assigned(ref)
            if custodian in assigned:
                self._note_refusal(custodian, errors.NotAllowed("it has resigned"))
                left = tuple(node for node in assigned if node != custodian)
                await self._write(ref, left)

    async def on_healed(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        """Note that a node keeps copies of an object, or resigns; answer what it may do with them.

        A report is a reason to look and nothing else: what is where, the hosts say. The caller
        need not be a custodian any more, or its consent may have been lost on the way. The
        answer `release` lets it delete one column of its own, `ended` all of them, because the
        object was deleted. About an unknown object both are False.
        """
        ref = fields.take_bytes(header, "object", size=ID_BYTES)
        if fields.take_bool(header, "resigns"):
            await self._resigned(ref, caller)
            return {"ended": False, "release": False}, []
        known = self._objects.load(ref) is not None
        release = known and self._repairer.reported(ref, caller)
        ended = not known and deletions.was_ended(self._state, ref)
        return {"ended": ended, "release": release}, []
