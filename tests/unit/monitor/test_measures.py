"""Measures agree with the rest of the API, and cost no peer a call."""

from prometheus_client.parser import text_string_to_metric_families

from tests.sim.network import content, put, run
from tests.unit.node.test_routes import Api
from xsc.api.endpoint import Nothing
from xsc.base.ids import short
from xsc.base.limits import MIB
from xsc.node.routes import monitor

QUICK = {"repair_interval": "30s", "repair_grace": "60s"}


async def measured(world, api):
    await world.clock.sleep_ms(1_000)
    return await api.call("GET", "/v1/measures")


def test_measures_say_what_the_rest_of_the_api_says():
    async def play(world):
        owner = world.nodes[0]
        api = Api(owner)
        for _ in range(3):
            await put(owner, content(MIB))
        await world.clock.sleep_ms(60_000)
        told = await measured(world, api)
        objects = (await api.call("GET", "/v1/objects"))["objects"]
        assert told["margins"] == [{"margin": 2, "objects": 3}]
        assert {row["margin"] for row in objects} == {2}
        status = await api.call("GET", "/v1/status")
        assert told["status"]["storage"] == status["storage"]
        balances = {
            row["peer"]: row for row in (await api.call("GET", "/v1/ledger/balance"))["balances"]
        }
        for row in told["peers"]:
            if row["peer"] in balances:
                assert row["balance_micro"] == balances[row["peer"]]["balance_micro"]
                assert row["limit_micro"] == balances[row["peer"]]["limit_micro"]
        leases = [
            r
            for r in (await api.call("GET", "/v1/market/leases"))["leases"]
            if r["state"] == "open"
        ]
        for role in ("customer", "provider"):
            mine = [row for row in leases if row["role"] == role and row["kind"] == "storage"]
            (row,) = [
                r for r in told["leases"] if r["role"] == role and r["kind"] == "storage"
            ] or [None]
            assert (row or {"leases": 0})["leases"] == len(mine)
            assert (row or {"leased_bytes": 0})["leased_bytes"] == sum(r["held"] for r in mine)

    run(3, 6, play, QUICK)


def test_a_lost_host_shows_in_the_margins():
    async def play(world):
        owner = world.nodes[0]
        await put(owner, content(MIB))
        await world.crash(5)
        await world.until(lambda: owner.storage.margins() == {1: 1})

    run(4, 6, play, {"repair_grace": "1d"})


def test_measures_and_metrics_call_nobody_and_name_no_object():
    async def play(world):
        owner = world.nodes[0]
        api = Api(owner)
        capability = await put(owner, content(MIB))
        # The simulated clock does not move, so nothing else runs meanwhile.
        before = owner.peers.traffic.sent_bytes
        found = await monitor.measures(owner, Nothing())
        text = await monitor.metrics(owner, Nothing())
        assert owner.peers.traffic.sent_bytes == before
        assert found is await monitor.measures(owner, Nothing())
        assert text is await monitor.metrics(owner, Nothing())
        assert "object" not in {
            each.labels.get("name")
            for f in text_string_to_metric_families(text)
            for each in f.samples
        }
        assert capability not in text
        told = await api.call("GET", "/v1/measures")
        families = {each.name: each for each in text_string_to_metric_families(text)}
        assert families["xsc_peers_known"].samples[0].value == told["status"]["peers"]["known"]
        series = sum(len(each.samples) for each in families.values())
        for _ in range(20):
            await put(owner, content(1_000))
        await world.clock.sleep_ms(1_000)
        text = await monitor.metrics(owner, Nothing())
        more = sum(len(each.samples) for each in text_string_to_metric_families(text))
        assert more <= series + 12  # kinds of events and of leases, never objects

    run(5, 6, play, QUICK)


def test_the_log_of_the_api_has_no_secret_and_nothing_that_steers_a_terminal():
    async def play(world):
        node = world.nodes[0]
        node.log.warning(
            "net.strange", peer=b"p" * 32, reason="\x1b[2J", secret="s3cret", key="k3y"
        )
        (*_, last) = (await Api(node).call("GET", "/v1/log"))["lines"]
        at_ms = node.clock.now_ms()
        says = f"net strange (peer {short(b'p' * 32)}): ?[2J"
        assert last == {"at_ms": at_ms, "level": "warning", "event": "net.strange", "says": says}

    run(6, 2, play)
