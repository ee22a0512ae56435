"""Says what should lie at hosts, reads it, and has what is lost repaired.

For challenges (docs/design/health.md): the objects of this node, and those in its custody whose
owners are absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from xsc.base import errors, ids, limits, turns
from xsc.base.clock import Executor, run_sized
from xsc.base.merkle import root_of
from xsc.storage.catalogue.finder import ObjectFinder
from xsc.storage.catalogue.objects import ObjectCatalogue, ObjectEntry
from xsc.storage.object import inventory, segment
from xsc.storage.object.capability import VerifyCapability, parse_verify
from xsc.storage.object.erasure import Code
from xsc.storage.object.held import Held
from xsc.storage.object.manifest import hash_of, root_at
from xsc.storage.repair.custodian import Custodian
from xsc.storage.repair.repairer import Repairer
from xsc.storage.transfer import get, host_client
from xsc.terms.possession import (
    MANIFEST_COLUMN,
    Extent,
    Holding,
    Root,
    extent_name,
)


class _Kept(NamedTuple):
    """An object as far as its extents follow from it."""

    locate: bytes
    columns: tuple[bytes, ...]
    k: int
    size_bytes: int
    sealed_bytes: int
    hosts: frozenset[bytes]
    """Those that should have what they were given."""
    own_hosts: frozenset[bytes] = frozenset()
    """Of an object in custody: those to which this node gave it."""

    def extents(self, host: bytes) -> list[Extent]:
        """Return what a host should have of it."""
        if host not in self.columns or host not in self.hosts:
            return []
        locate, sealed = self.locate, self.sealed_bytes
        extents = [Extent(extent_name(locate, MANIFEST_COLUMN), 1, sealed, sealed)]
        if self.size_bytes > limits.INLINE_BYTES_MAX:
            count = segment.count(self.size_bytes)
            last = segment.length_of(count - 1, self.size_bytes)
            code = Code(self.k, len(self.columns) - self.k)
            sizes = count, code.shard_bytes(limits.SEGMENT_BYTES), code.shard_bytes(last)
            extents += [
                Extent(extent_name(locate, column), *sizes)
                for column, node in enumerate(self.columns)
                if node == host
            ]
        return extents


async def _root_in(executor: Executor, located: get.Located, extent: Extent, body: int) -> Root:
    generation, sealed = located.manifest.generation, located.sealed
    if extent.column == MANIFEST_COLUMN:
        root = await run_sized(executor, len(sealed), root_of, sealed)
        return Root(generation, root, hash_of(sealed))
    return Root(generation, root_at(located.manifest, body, extent.column), None)


def unproven(
    host: bytes, nodes: Sequence[bytes | None], outcome: str, names: Collection[bytes]
) -> list[int]:
    """Return the columns of an object that its host has not proven.

    Args:
        host: it.
        nodes: of the columns.
        outcome: of the challenge.
        names: of the extents that failed; none where it did not answer.
    """
    at_host = [column for column, node in enumerate(nodes) if node == host]
    if outcome in {"ok", "prober_void"}:
        return []
    failed = {int.from_bytes(name[ids.ID_BYTES :], "big") for name in names}
    # Without its manifest nothing is left of an object that has no shards; of others, a copy less.
    return [column for column in at_host if not failed - {MANIFEST_COLUMN} or column in failed]


class Possessions:
    """The extents of own objects and of those in custody."""

    def __init__(
        self,
        client: host_client.HostClient,
        finder: ObjectFinder,
        catalogue: ObjectCatalogue,
        custodian: Custodian,
        *,
        own: Repairer,
        custody: Repairer,
    ) -> None:
        self._client = client
        self._finder = finder
        self._catalogue = catalogue
        self._custodian = custodian
        self._own = own
        self._custody = custody
        self._sizes: dict[bytes, tuple[tuple[int, int], int, int]] = {}
        """Of objects in custody: their codes, their bytes, and those of their sealed manifests."""

    # What should lie at hosts

    async def held(self, hosts: Collection[bytes]) -> dict[tuple[bytes, bytes], Holding]:
        """Return what this node looks after at hosts, by host and customer."""
        found = {}
        for place, extents in (await self._refs_at(hosts)).items():
            # Of two objects of one locate id the first is listed: own ones come before others.
            listed = {extent.name: extent for extent in reversed(extents)}
            refs = {name: extents[extent] for name, extent in listed.items()}
            found[place] = Holding([*listed.values()], partial(self._root, refs))
        return found

    async def _refs_at(
        self, hosts: Collection[bytes]
    ) -> dict[tuple[bytes, bytes], dict[Extent, bytes]]:
        """Return what should lie at hosts, by host and customer: extents, and their objects."""
        found: dict[tuple[bytes, bytes], dict[Extent, bytes]] = {}
        wanted = frozenset(hosts) - {self._client.own}

        def add(customer: bytes, ref: bytes, kept: _Kept) -> None:
            for host in wanted.intersection(kept.columns):
                if extents := kept.extents(host):
                    found.setdefault((host, customer), {}).update(dict.fromkeys(extents, ref))

        async for ref, entry in turns.sliced(self._catalogue.entries()):
            if not entry.deleting and not wanted.isdisjoint(entry.placement.columns):
                add(self._client.own, ref, self._of_entry(ref, entry))
        custody = [item async for item in turns.sliced(self._custodian.refs())]
        for ref, placement, _ in custody:
            if not wanted.isdisjoint(placement.columns):
                kept = await self._of_custody(ref)
                if kept is not None:
                    # Of what it stored itself it is the customer.
                    add(ref[: ids.ID_BYTES], ref, kept._replace(hosts=kept.hosts - kept.own_hosts))
                    add(self._client.own, ref, kept._replace(hosts=kept.own_hosts))
        for ref in self._sizes.keys() - {ref for ref, _, _ in custody}:
            self._sizes.pop(ref, None)
        return found

    def _hosts(self, held: Iterable[Held]) -> frozenset[bytes]:
        """Return those that have something under a lease of this node."""
        return frozenset(
            item.node
            for item in held
            if item.size_bytes
            and not self._client.has_dropped(item.node, item.lease_id)
            and not self._client.hosts.is_denied(item.lease_id)
        )

    def _of_entry(self, ref: bytes, entry: ObjectEntry) -> _Kept:
        hosts = self._hosts(entry.held)
        placement, locate = entry.placement, parse_verify(entry.capability).locate
        sealed = self._catalogue.sealed_bytes(ref)
        return _Kept(locate, placement.columns, placement.k, entry.size_bytes, sealed, hosts)

    async def _of_custody(self, ref: bytes) -> _Kept | None:
        kept = self._custodian.load(ref)
        if kept is None:
            return None
        if ref not in self._sizes:
            try:
                located = await self._finder.find(kept.capability)
            except errors.XscError:
                return None  # A survey says so.
            manifest = located.manifest
            code = manifest.k, manifest.k + manifest.m
            self._sizes[ref] = code, manifest.size_bytes, len(located.sealed)
        placement, (code, size_bytes, sealed_bytes) = kept.placement, self._sizes[ref]
        if (placement.k, len(placement.columns)) != code:
            return None  # What its owner said of it cannot be.
        return _Kept(
            kept.capability.locate,
            placement.columns,
            placement.k,
            size_bytes,
            sealed_bytes,
            # It is not this node's turn, but what it stored itself is to be proven.
            frozenset() if kept.only_clean else frozenset(placement.columns),
            self._hosts(kept.held),
        )

    async def _root(self, refs: dict[bytes, bytes], extent: Extent, body: int) -> Root | None:
        """Return what proves a body of an extent; None where its object is looked after no more."""
        ref = refs[extent.name]
        kept = self._repairer_of(ref).load(ref)
        if kept is None:
            return None
        try:
            located = await self._finder.find(kept.capability)
        except errors.XscError:
            return None  # A survey says so.
        return await _root_in(self._client.executor, located, extent, body)

    def _repairer_of(self, ref: bytes) -> Repairer:
        return self._own if len(ref) == ids.ID_BYTES else self._custody

    async def of_object(
        self, verify: VerifyCapability, nodes: Iterable[bytes | None]
    ) -> tuple[bytes, dict[bytes, Holding]]:
        """Return an object's owner, and what the nodes of its columns should have, but this one.

        Raises:
            ObjectUnknown: no node that answers knows it.
        """
        located = await self._finder.find(verify)
        manifest, sealed = located.manifest, len(located.sealed)
        columns = tuple(b"" if node is None else node for node in nodes)
        hosts = frozenset(columns) - {b"", self._client.own}
        kept = _Kept(verify.locate, columns, manifest.k, manifest.size_bytes, sealed, hosts)
        root = partial(_root_in, self._client.executor, located)
        return manifest.owner, {host: Holding(kept.extents(host), root) for host in sorted(hosts)}

    # What was lost

    async def lost(
        self, host: bytes, customer: bytes, names: Collection[bytes] | None
    ) -> frozenset[bytes]:
        """Have extents at a host count as lost; return those that it should still have."""
        refs = (await self._refs_at([host])).get((host, customer), {})
        still = {
            extent: ref for extent, ref in refs.items() if names is None or extent.name in names
        }
        extents_of = Counter(refs.values())
        for extent, ref in still.items():
            repairer = self._repairer_of(ref)
            kept = repairer.load(ref)
            if kept is None:
                continue
            columns = {extent.column} - {MANIFEST_COLUMN}
            if extents_of[ref] == 1:
                # An object that has no shards: its manifest is all that there is.
                columns = {c for c, node in enumerate(kept.placement.columns) if node == host}
            repairer.note_unreadable(ref, {(column, host) for column in columns})
        # Of the others hosts say more than of leaves, and what they say they have is read.
        for repairer in (self._own, self._custody):
            here = {ref for ref in refs.values() if self._repairer_of(ref) is repairer}
            repairer.look_at(here if still else ())
        return frozenset(extent.name for extent in still)

    # Reading

    async def whole(self, host: bytes, extent: Extent, body: int, root: Root) -> None:
        """Read a whole body from a host.

        Raises:
            ShardMismatch: the host gave other bytes.
            ShardsInsufficient: it says that it does not have it.
            XscError: what it answered, or that it is silent.
        """
        if root.manifest is None:
            size = extent.size_of(body)
            want = inventory.Wanted(body, extent.column, root.root, size_bytes=size)
            await self._client.fetch(host, extent.locate, root.generation, want)
            return
        sealed = await self._client.find(host, extent.locate, root.manifest)
        if sealed is None:
            raise errors.ShardsInsufficient("the host does not have the manifest")
        if hash_of(sealed) != root.manifest:
            raise errors.ShardMismatch("the host gave another manifest")
