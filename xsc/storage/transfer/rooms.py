"""Finds the room that the columns of a put need: hosts at first, and others where some fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xsc.api.market import PassedOver
from xsc.base import errors
from xsc.base.limits import INLINE_BYTES_MAX
from xsc.base.refusals import refusal
from xsc.storage.object.durability import Contract, attainable, survival
from xsc.storage.object.erasure import Code
from xsc.storage.object.placement import host_bytes, record_bytes, shortfall
from xsc.storage.transfer.host_client import HostClient
from xsc.terms.lease import LeaseHandle

PLAN_HOSTS_MAX = 32
"""Over how many nodes a placement is planned where the cheapest do not do."""


class RoomSearch:
    """Asks nodes for the room that one put needs; remembers who gave none, and why."""

    def __init__(self, client: HostClient, code: Code, contract: Contract) -> None:
        self._client = client
        self._code = code
        self._contract = contract
        self.size_hint = 0
        """The length of the stream, as far as it is known."""
        self._refused: dict[bytes, errors.XscError] = {}
        self.passed_over: dict[tuple[bytes, bytes | None], PassedOver] = {}
        self._asked: dict[int, int] = {}
        """By room that was asked for, how many nodes more were to give it; in this order."""

    # How much

    def note_size(self, read_bytes: int) -> None:
        """Expect twice as much again where the stream is longer than was expected."""
        if read_bytes > self.size_hint:
            self.size_hint = 2 * read_bytes

    def size_for(self, hosts: int) -> int:
        """Return the room that is needed at each of so many hosts."""
        size = host_bytes(self.size_hint, self._code, hosts)
        if self.size_hint <= INLINE_BYTES_MAX:
            size = 0
        return size + record_bytes(self.size_hint, self._code)

    def note_unplaced(self, gone: Mapping[bytes, errors.XscError]) -> None:
        """Note what was refused for want of room: it is needed until it is placed.

        That is the first choice alone: whatever was asked for after it was to do in its stead. Who
        was chosen and had no room left for the bytes is lacking, too.
        """
        full = {
            node
            for node, fault in {**self._refused, **gone}.items()
            if isinstance(fault, errors.SpaceExhausted) and node != self._client.own
        }
        short = [(size, nodes) for size, nodes in self._asked.items() if nodes]
        if full and short:
            room_bytes, lacking = short[0]
            lacking = max(lacking, len(full & gone.keys()))
            self._client.hosts.unplaced(room_bytes, min(self._code.n, lacking, len(full)))

    def note_placed(self) -> None:
        """Note that all room was given; a try before may have asked for more than this one."""
        for room_bytes in {*self._asked, self.size_for(self._code.n)}:
            self._client.hosts.placed(room_bytes)

    # Where

    async def lease(
        self, size_bytes: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> Sequence[LeaseHandle]:
        """Return room at up to so many nodes, at least one; note who gave none, and why.

        Raises:
            CreditExceeded, SpaceExhausted, NoOffers: not even one.
        """
        offered = await self._client.hosts.lease_hosts(
            size_bytes=size_bytes, count=count, exclude=exclude
        )
        self._refused |= offered.refused
        for each in offered.passed_over:
            self.passed_over[each.node, each.lease_id] = each
        lacking = count - len(offered.leases)
        self._asked[size_bytes] = max(lacking, self._asked.get(size_bytes, 0))
        if not offered.leases:
            raise refusal(offered.refused, "no node offers the room that is needed")
        return offered.leases

    async def at(self, node: bytes, hosts: int, there_bytes: int) -> LeaseHandle | None:
        """Return room at one host for what it lacks, under another lease where it takes one."""
        lacking = self.size_for(hosts) - there_bytes
        more = lacking if lacking > 0 else there_bytes
        before = self._asked.get(more, 0)
        others = frozenset({self._client.own, *self._client.hosts.peers()} - {node})
        lease = await self._one(more, others)
        if lease is None:
            # Another host is asked for the whole column next.
            self._asked[more] = before
        return lease

    async def elsewhere(self, taken: frozenset[bytes], least_bytes: int) -> LeaseHandle | None:
        """Return room for a column at a node that is not taken."""
        return await self._one(max(self.size_for(self._code.n), least_bytes), taken)

    async def _one(self, size_bytes: int, exclude: frozenset[bytes]) -> LeaseHandle | None:
        try:
            leases = await self.lease(size_bytes, 1, exclude)
        except (errors.NoOffers, errors.LimitError):
            return None
        return leases[0] if leases[0].node not in exclude else None

    # The contract

    def keeps(self, columns: Sequence[bytes]) -> bool:
        """Say whether a placement keeps the contract."""
        return survival(self._client.labels_of(columns), self._code.m).meets(self._contract)

    async def require(
        self, columns: Sequence[bytes], gone: Mapping[bytes, errors.XscError]
    ) -> None:
        """Return if a placement keeps the contract.

        Raises:
            XscError: as `refusal`.
        """
        if not self.keeps(columns):
            raise await self.refusal(list(dict.fromkeys(columns)), gone)

    async def refusal(
        self, nodes: Sequence[bytes], gone: Mapping[bytes, errors.XscError]
    ) -> errors.XscError:
        """Return why the contract cannot be kept, and what can be with these nodes as they are.

        It is for the caller to change what could not be kept if all known nodes were up, each
        that has not said its site and owner yet at a site and of an owner of its own.
        """
        code, contract = self._code, self._contract
        left = [node for node in nodes if node not in gone]
        works = attainable(self._client.labels_of(left), code.n, code.m, contract)
        less = f"`--survive {works.to_text()}` accepts what works now"
        if works == contract:
            less = "put it again: the nodes that are left can keep it in other places"
        known = [self._client.own, *self._client.hosts.peers()][:PLAN_HOSTS_MAX]
        heard = await self._client.hosts.learn_labels(known)
        hosts = [
            host
            if host.node in heard
            else host._replace(site=host.node.hex(), owner=host.node.hex())
            for host in self._client.labels_of(known)
        ]
        never = shortfall(hosts, code, contract)
        refused = {
            node: fault for node, fault in {**self._refused, **gone}.items() if node not in left
        }
        if never is not None or not refused:
            reason = (
                f"no placement survives {contract.to_text()}" if never is None else never.reason
            )
            hints = [less] if never is None else [never.hint, less]
            return errors.DurabilityUnreachable(reason, hint="; ".join(hints))
        return refusal(refused, f"the contract {contract.to_text()} cannot be kept now", also=less)
