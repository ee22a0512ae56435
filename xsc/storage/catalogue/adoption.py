"""Writes objects of a directory into the own list again, as a recovery finds them at hosts."""

from __future__ import annotations

import asyncio

from xsc.base.errors import ObjectUnknown
from xsc.storage.catalogue import directory, objects
from xsc.storage.catalogue.finder import ObjectFinder
from xsc.storage.object.capability import parse_read
from xsc.storage.transfer.get import Located


class Adoption:
    """Finds objects of a directory; looks again for those that were not found."""

    def __init__(self, catalogue: objects.ObjectCatalogue, finder: ObjectFinder) -> None:
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
                except ObjectUnknown:
                    continue
                await self._catalogue.adopt_unfound(item, located)

    async def adopt(self, listed: directory.DirectoryEntry) -> None:
        """Write an object into the own list, as its hosts have it.

        Raises:
            ObjectUnknown: no host that answered has it.
        """
        await self._catalogue.adopt(listed, await self._find(listed))

    async def _find(self, listed: directory.DirectoryEntry) -> Located:
        verify = parse_read(listed.capability).verify
        return await self._finder.search(verify, await self._finder.find(verify))
