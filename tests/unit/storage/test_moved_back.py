"""What becomes of a column that comes back to a host which still has it under an ended lease."""

from tests.unit.storage.test_races import play
from tests.unit.storage.world import End, content, finished, put
from xsc.base.errors import RateLimited
from xsc.base.merkle import root_of
from xsc.storage.object.capability import parse_verify


def test_a_column_that_came_back_moves_on_while_its_host_keeps_it_under_the_ended_lease():
    async def story(world):
        owner, host, spare, later = world[0], world[1], world[7], world[8]
        ref = parse_verify((await put(owner, content(400_000))).capability).manifest_hash
        repairer, given = owner.service.repairer, owner.lease_id

        def refuse_deletions(method, _number):
            if method == "storage.delete":
                raise RateLimited("too many deletions")

        async def repaired():
            repairer.watch.look()
            await finished(world, repairer.repair(ref))
            return owner.service.catalogue.entry(ref).placement.columns

        # Its lease ends: the column moves, and the host is not told yet that it may delete it.
        later.up = False
        repairer.watch.look()
        ended, end_ms = given(host.id), world.clock.now_ms()
        owner.ends[ended] = End(end_ms, "a clearing granted its room to others")
        host.book.ends_ms[ended] = end_ms
        host.before = refuse_deletions
        columns = await repaired()
        assert spare.id in columns
        assert host.id not in columns
        # It comes back under another lease; the host keeps what it has, under the ended one.
        owner.lease_id = lambda node: root_of(b"another") if node == host.id else given(node)
        await spare.leave()
        assert host.id in await repaired()
        # That still counts: the column leaves for where there is room.
        later.up = True
        await repaired()
        assert host.id not in await repaired()

    play(story, 9)
