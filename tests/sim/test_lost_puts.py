"""Whole honest nodes: the answers of one host to puts are lost for a while; nobody is at fault."""

import contextlib

from tests.sim.network import content, put, run
from xsc.base.errors import PeerSilent, XscError
from xsc.base.limits import MIB


def test_an_honest_host_is_not_reported_where_answers_to_puts_are_lost():
    async def play(world):
        exchange, lost, seen = world.net.exchange, [True], []
        reports = []
        for index, node in enumerate(world.nodes):
            honest = node.health.report

            def report(peer, dimension, what, *, evidence=b"", index=index, honest=honest):
                reports.append((index, world.index_of(peer), what))
                honest(peer, dimension, what, evidence=evidence)

            node.health.report = report
            node.market._node.ports.quality.report = report

        async def losing(source, target, request):
            response = await exchange(source, target, request)
            is_put = "storage.put" in request.path or "batch" in request.path
            if lost and is_put and (source, target) == ("node-0", "node-1"):
                seen.append(request.path)
                raise PeerSilent("the answer was lost")
            return response

        node = world.nodes[0]
        await put(node, content(20 * MIB, 1))
        await world.clock.sleep_ms(30_000)
        world.net.exchange = losing
        for number in range(3):
            with contextlib.suppress(XscError):
                await put(node, content(20 * MIB, 2 + number))
            await world.clock.sleep_ms(60_000)
        lost.clear()
        await world.skip(600_000, 60_000)
        assert seen
        assert not [each for each in reports if each[2] in ("lease_count", "lease_denial")]

    run(93, 7, play, {"storage_capacity": "2GiB"})
