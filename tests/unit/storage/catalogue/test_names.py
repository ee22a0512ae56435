"""Names, versions, and what a verify capability may do."""

import pytest

from tests.unit.storage.world import World, content, get, put
from xsc.base.errors import ArgumentInvalid, CapabilityInvalid, ObjectUnknown, StoreDamaged
from xsc.storage.catalogue.names import NAME_CHARS_MAX, NAMES, check_name, listed
from xsc.storage.object.capability import parse_read


async def test_the_same_name_again_is_a_new_version_and_the_old_one_stays():
    world = await World(7).start()
    service = world[0].service
    first = await put(world[0], content(10), name="a")
    second = await put(world[0], content(6000), name="a")
    assert (first.version, second.version) == (1, 2)
    assert service.catalogue.named("a") == [second.capability, first.capability]
    assert await get(world[0], service.catalogue.named("a", 1)[0]) == content(10)
    assert await get(world[0], service.catalogue.named("a")[0]) == content(6000)
    rows = listed(service.ls(), "", versions=False)
    assert [(row.name, row.version) for row in rows] == [("a", 2)]
    rows = listed(service.ls(), "", versions=True)
    assert [(row.name, row.version) for row in rows] == [("a", 1), ("a", 2)]


async def test_a_number_is_never_given_twice():
    world = await World(7).start()
    for expected in (1, 2, 3):
        done = await put(world[0], content(10), name="a")
        assert done.version == expected
        await world[0].service.rm(done.capability)
    with pytest.raises(ObjectUnknown):
        world[0].service.catalogue.named("a")
    with pytest.raises(ObjectUnknown):
        world[0].service.catalogue.named("a", 1)


async def test_what_some_host_still_holds_is_found_by_who_deletes_it_alone():
    world = await World(7).start()
    done = await put(world[0], content(10), name="a")
    world[3].up = False
    assert (await world[0].service.rm(done.capability)).partly
    with pytest.raises(ObjectUnknown):
        world[0].service.catalogue.named("a")
    assert world[0].service.catalogue.named("a", deleting=True) == [done.capability]
    world[3].up = True
    assert not (await world[0].service.rm(done.capability)).partly
    with pytest.raises(ObjectUnknown):
        world[0].service.catalogue.named("a", deleting=True)


async def test_names_that_begin_alike_are_apart_and_listed_by_their_beginning():
    world = await World(7).start()
    for name in ("a", "a/b", "ab", "c", "", ""):
        await put(world[0], content(10), name=name)
    assert len(world[0].service.catalogue.named("a")) == 1
    rows = world[0].service.ls()
    assert sorted(row.name for row in listed(rows, "a", versions=False)) == ["a", "a/b", "ab"]
    assert len(listed(rows, "", versions=False)) == 6, "objects without a name hide none"
    with pytest.raises(ObjectUnknown):
        world[0].service.catalogue.named("")


async def test_names_do_not_reach_hosts():
    world = await World(7).start()
    await put(world[0], content(10), name="unmistakable-name")
    await put(world[0], content(6000), name="unmistakable-name")
    for host in world.hosts[1:]:
        for store in (host.bodies, host.index, host.state):
            for key, value in store.scan(b""):
                assert b"unmistakable" not in key + value


async def test_a_damaged_count_of_versions_is_told():
    world = await World(7).start()
    await put(world[0], content(10), name="a")
    (key,) = [key for key, _ in world[0].state.scan(NAMES) if len(key) == len(NAMES) + 32]
    for wrong in (b"\x00", b"\xa1\x61v\x02"):
        world[0].state.write([(key, wrong)], sync=True)
        with pytest.raises(StoreDamaged):
            await put(world[0], content(10), name="a")


@pytest.mark.parametrize("name", ["a\0", "\0", "x" * (NAME_CHARS_MAX + 1)])
def test_names_that_are_none(name):
    with pytest.raises(ArgumentInvalid):
        check_name(name)


@pytest.mark.parametrize("name", ["", "a", "x" * NAME_CHARS_MAX, "größe/ö", "../x"])
def test_names(name):
    check_name(name)


async def test_a_verify_capability_checks_and_never_reads():
    world = await World(8).start()
    done = await put(world[0], content(9000), name="a")
    narrow = parse_read(done.capability).verify.to_text()
    for host in (world[0], world[7]):
        assert (await host.service.stat(narrow)).readable
        with pytest.raises(CapabilityInvalid, match="not read it"):
            await host.service.open(narrow)
