"""Finds objects: the manifest, and which nodes have which columns; those of a recovery, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from xsc.base import clock, errors
from xsc.base.ids import short
from xsc.identity.context import Context
from xsc.storage.catalogue.directory import DirectoryEntry
from xsc.storage.catalogue.objects import ObjectCatalogue
from xsc.storage.object import erasure, inventory
from xsc.storage.object.capability import VerifyCapability, parse_read
from xsc.storage.object.manifest import Manifest, hash_of, open_manifest
from xsc.storage.object.placement import Placement
from xsc.storage.transfer import get, host_client

FIND_GRACE_MS = 100
"""How long others may still say what they hold, once enough is known to read the object."""

T = TypeVar("T")


class ObjectFinder:
    """Finds objects in the own list, else by asking this node and every peer."""

    def __init__(
        self,
        context: Context,
        client: host_client.HostClient,
        own: Callable[[VerifyCapability], tuple[Placement, bytes] | None],
    ) -> None:
        self._context = context
        self._client = client
        self._own = own
        """Returns placement and sealed manifest of an object that this node stored."""

    async def _opened(
        self,
        capability: VerifyCapability,
        sealed: erasure.Buffer,
        holders: Sequence[tuple[bytes, ...]] = (),
    ) -> get.Located:
        executor = self._context.executor
        manifest = await clock.run_sized(executor, len(sealed), open_manifest, sealed, capability)
        nobody = ((),) * (manifest.k + manifest.m)
        return get.Located(capability.locate, manifest, bytes(sealed), tuple(holders) or nobody)

    async def locate(self, capability: VerifyCapability) -> get.Located:
        """Find an object and who has its columns: by the own placement, or by asking all peers.

        Raises:
            ObjectUnknown: no node that answers knows it.
        """
        own = self._own(capability)
        if own is not None:
            placement, sealed = own
            return await self._opened(capability, sealed, [(node,) for node in placement.columns])
        found = await self.find(capability)
        if found.manifest.inline is not None:
            return found
        return await self.search(capability, found, thorough=False)

    async def find(self, capability: VerifyCapability) -> get.Located:
        """Find the manifest of an object: in the own state, or at any peer.

        Raises:
            ObjectUnknown: no node that answers knows it.
        """
        own = self._own(capability)
        if own is not None:
            return await self._opened(capability, own[1])

        async def ask(node: bytes) -> get.Located | None:
            sealed = await self._client.find(node, capability.locate, capability.manifest_hash)
            if sealed is None:
                return None
            try:
                return await self._opened(capability, sealed)
            except errors.XscError as fault:
                if node == self._client.own:
                    raise
                self._context.log.warning(
                    "storage.find_wrong", peer=short(node), reason=fault.message
                )
                if hash_of(bytes(sealed)) != capability.manifest_hash:
                    # Else its author sealed what nobody can read: its host cannot see that.
                    self._client.hosts.report(node, "integrity", "record_invalid")
                return None

        said, silent = await self._ask_all(ask, enough=bool, grace_ms=0)
        if said:
            return next(iter(said.values()))
        named = f"; silent: {', '.join(sorted(short(node) for node in silent))}" if silent else ""
        raise errors.ObjectUnknown(
            f"no node that answered knows this object{named}",
            hint="try again when the silent peers are back" if silent else "",
        )

    async def search(
        self, capability: VerifyCapability, located: get.Located, *, thorough: bool = True
    ) -> get.Located:
        """Ask every peer which columns it has. What it says is verified when it is read.

        Args:
            capability: of the object.
            located: its manifest.
            thorough: wait for all that may answer. Else, once k columns are named, wait only for
                those that are quick: what one liar says may be enough.
        """
        manifest = located.manifest
        n = manifest.k + manifest.m
        roots = get.roots_of(manifest, 0) if manifest.inline is None else ()

        async def ask(node: bytes) -> frozenset[int] | None:
            holds = await self._client.holds(
                node, capability.locate, manifest.generation, capability.manifest_hash, roots
            )
            if manifest.inline is not None:
                return frozenset(range(n)) if holds.record else None
            return holds.columns or None

        def enough(said: Mapping[bytes, frozenset[int]]) -> bool:
            return not thorough and len(frozenset().union(*said.values())) >= manifest.k

        said, silent = await self._ask_all(ask, enough=enough, grace_ms=FIND_GRACE_MS)
        holders = tuple(
            # A column that no node says it has may be at those that are silent.
            tuple(sorted(node for node, columns in said.items() if column in columns))
            or tuple(sorted(silent))
            for column in range(n)
        )
        if manifest.inline is not None:
            holders = ((*sorted(said), *sorted(silent)),) * n
        return replace(located, holders=holders)

    async def _ask_all(
        self,
        ask: Callable[[bytes], Coroutine[Any, Any, T | None]],
        *,
        enough: Callable[[Mapping[bytes, T]], bool],
        grace_ms: int,
    ) -> tuple[dict[bytes, T], list[bytes]]:
        """Ask this node and every peer; return what each said, and who was silent.

        Once enough is said, the others have a grace to answer.
        """
        hosts = self._client.hosts
        peers = sorted(hosts.peers(), key=lambda peer: not hosts.is_up(peer))
        running = {asyncio.create_task(ask(node)): node for node in [self._client.own, *peers]}
        said: dict[bytes, T] = {}
        silent: list[bytes] = []

        def collect() -> None:
            for task in [task for task in running if task.done()]:
                node = running.pop(task)
                try:
                    answer = task.result()
                except (errors.UnavailableError, errors.PeerUnknown):
                    silent.append(node)
                    continue
                except errors.XscError as fault:
                    self._context.log.warning(
                        "storage.find_failed", peer=short(node), reason=fault.message
                    )
                    continue
                if answer is not None:
                    said[node] = answer

        try:
            while running and not enough(said):
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                collect()
            # Who was late before is not waited for.
            on_time = {
                task: node
                for task, node in running.items()
                if grace_ms and not self._client.late_since_ms(node)
            }
            await host_client.let_end(on_time, self._context.clock, grace_ms)
            collect()
            for task, node in on_time.items():
                if task in running:
                    self._client.note_late(node)
        finally:
            await host_client.stop_all(running)
        return said, silent

    async def ask(
        self, nodes: Iterable[bytes], capability: VerifyCapability, manifest: Manifest
    ) -> dict[bytes, inventory.HeldObject | None]:
        """Return what each node says that it has of an object; None if it is silent."""
        ordered = sorted(set(nodes))
        said = await host_client.together(
            self._stat(node, capability, manifest) for node in ordered
        )
        return dict(zip(ordered, said, strict=True))

    async def _stat(
        self, node: bytes, capability: VerifyCapability, manifest: Manifest
    ) -> inventory.HeldObject | None:
        try:
            return await self._client.stat(
                node, capability.locate, manifest, capability.manifest_hash
            )
        except (errors.UnavailableError, errors.PeerUnknown):
            return None
        except errors.XscError as fault:
            if fault.retryable:
                return None
            # A host that cannot say what it has, has nothing that can be counted on.
            self._context.log.warning("storage.stat_failed", peer=short(node), reason=fault.message)
            state = "corrupt" if isinstance(fault, errors.CorruptionError) else "missing"
            return inventory.HeldObject((), cast(Any, state))


class Adoption:
    """Finds objects of a directory; looks again for those that were not found."""

    def __init__(self, catalogue: ObjectCatalogue, finder: ObjectFinder) -> None:
        self._catalogue = catalogue
        self._finder = finder
        self._came_up = asyncio.Event()

    def node_up(self) -> None:
        """Look again: a peer has come up."""
        self._came_up.set()

    async def run(self) -> None:
        """Look for what a recovery did not find whenever a peer came up, until cancelled."""
        while True:
            await self._came_up.wait()
            self._came_up.clear()
            for item in self._catalogue.unfound():
                try:
                    located = await self._find(item)
                except errors.ObjectUnknown:
                    continue
                await self._catalogue.adopt_unfound(item, located)

    async def adopt(self, listed: DirectoryEntry) -> None:
        """Write an object into the own list, as its hosts have it.

        Raises:
            ObjectUnknown: no host that answered has it.
        """
        await self._catalogue.adopt(listed, await self._find(listed))

    async def _find(self, listed: DirectoryEntry) -> get.Located:
        verify = parse_read(listed.capability).verify
        return await self._finder.search(verify, await self._finder.find(verify))
