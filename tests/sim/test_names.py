"""Versions of a name, and the files of stored directories, as the node keeps them."""

import pytest

from tests.sim.network import content, get, run, stream
from xsc.base.errors import ObjectUnknown
from xsc.storage.catalogue.names import PART, listed


async def put(node, name, size):
    return (await node.storage.put(stream(content(size)), name=name)).capability


def test_an_older_version_becomes_the_newest_and_stays_it():
    async def play(world):
        node = world.nodes[0]
        first, second, third = [await put(node, "a", size) for size in (1, 5000, 3)]
        assert await node.storage.catalogue.restore("a", 1) == 4
        await world.crash(0)
        node = await world.restart(0)
        assert node.storage.catalogue.named("a") == [first, third, second]
        assert node.storage.catalogue.named("a", 4) == [first]
        with pytest.raises(ObjectUnknown):
            node.storage.catalogue.named("a", 1)
        for name, version in (("a", 1), ("a", 9), ("b", 1)):
            with pytest.raises(ObjectUnknown):
                await node.storage.catalogue.restore(name, version)
        assert await get(node, first) == content(1)
        assert [row.version for row in listed(node.storage.ls(), "", versions=False)] == [4]
        await node.storage.rm(first)
        assert node.storage.catalogue.named("a") == [third, second]
        assert (await node.storage.put(stream(b"x"), name="a")).version == 5

    run(41, 1, play)


def test_files_of_directories_are_in_no_list_but_in_the_directory():
    async def play(world):
        node = world.nodes[0]
        capability = await put(node, f"{PART}tree/file", 5000)
        await put(node, "a", 10)
        assert [row.name for row in listed(node.storage.ls(), "", versions=True)] == ["a"]
        assert node.storage.catalogue.directory()[0].capability == capability

    run(42, 1, play)
