"""Endpoints on whole nodes in one process: what they answer, and what they refuse."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from pydantic import TypeAdapter

from tests.sim.network import content, put, run
from tests.sim.test_slots import A_STEP, SETTINGS, leased, need, offer, recognise
from xsc.allocation.declaring import standing_need
from xsc.api.endpoint import Id
from xsc.base.errors import (
    ArgumentInvalid,
    CapabilityInvalid,
    NoOffers,
    NotAllowed,
    ObjectUnknown,
    XscError,
)
from xsc.base.ids import to_text
from xsc.base.limits import (
    MIB,
    PEER_REQUESTS_A_SECOND_MAX,
    REQUEST_UNITS,
    SLOT_STEP_BYTES,
    SYNCED_A_PEER_BYTES_MAX,
)
from xsc.net.calls.costs import COSTS
from xsc.node.api.serving import Server
from xsc.node.daemon import ANSWERS
from xsc.node.routes import ledger
from xsc.storage.object.capability import ReadCapability
from xsc.storage.repair.drain_proof import check_proof

QUICK = {"repair_grace": "60s", "repair_interval": "5min", "probe_interval": "15s"}


def serving(node):
    """Return what serves the endpoints of a node."""
    return Server(node, ANSWERS)


class Arriving(BaseProtocol):
    """Of a request in a test: its body is there already."""


def sent(body):
    """Return the body of a request that came whole."""
    stream = StreamReader(Arriving(asyncio.get_running_loop()), 2**16)
    stream.feed_data(body)
    stream.feed_eof()
    return stream


class Api:
    """The endpoints of a node by method and path, without a socket."""

    def __init__(self, node):
        routes = serving(node).routes()
        self.routes = {(route.method, route.path): route.handler for route in routes}
        self.endpoints = {(each.method, each.path): each for each in ANSWERS}

    async def call(self, method, path, *, body=b"", **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = make_mocked_request(method, path, headers=named, payload=sent(body))
        answer = await self.routes[method, path.partition("?")[0]](request)
        assert isinstance(answer, web.Response)
        told, endpoint = json.loads(answer.text), self.endpoints[method, path.partition("?")[0]]
        # What a node sends is what the client's model reads, and nothing beside it.
        for row in told[endpoint.rows] if endpoint.rows else [told]:
            assert TypeAdapter(endpoint.answer).validate_json(json.dumps(row))
        return told


async def quoting(api):
    """Return the nodes that quote a price."""
    return {row["node"] for row in (await api.call("GET", "/v1/market/quotes"))["quotes"]}


async def offered(api):
    """Return what a node says that it offers, of each kind."""
    status = await api.call("GET", "/v1/status")
    return status["storage"]["offered_bytes"], status["compute"]["offered_fuel_per_s"]


@pytest.mark.parametrize("text", ["²", "9" * 5_000, "-1", "1.0", "x", ""])
async def test_a_number_that_is_none_is_no_bug(text):
    said = "limit must be at least 1" if text == "-1" else "the request is wrong at limit: "
    with pytest.raises(ArgumentInvalid, match=said):
        await Api(SimpleNamespace(log=None)).call("GET", f"/v1/ledger/log?limit={text}")


@pytest.mark.parametrize(("name", "text"), [("XSC-Size", "abc"), ("XSC-Wait-For-Name", "2")])
async def test_a_header_is_refused_by_its_own_name(name, text):
    with pytest.raises(ArgumentInvalid, match=f"the request is wrong at {name}: it must be a"):
        await Api(SimpleNamespace(log=None)).call("POST", "/v1/objects", **{name: text})


@pytest.mark.parametrize("text", ["nope", "a" * 51, "..", "ABC"])
async def test_a_text_that_is_no_id_names_no_entry_of_the_ledger(text):
    with pytest.raises(ArgumentInvalid, match="is no id of an entry"):
        await ledger.entry(SimpleNamespace(), Id(id=text))


def test_the_ledger_is_read_by_pages():
    async def play(world):
        node, peer, other = world.nodes
        api = Api(node)
        for number in range(7):
            for each in (peer, other):
                await node.ledger.set_limit(each.key.node_id, number)

        async def pages(limit, rest=""):
            found, older = [], ""
            while True:
                answer = await api.call("GET", f"/v1/ledger/log?limit={limit}{rest}{older}")
                found.append([row["seq"] for row in answer["entries"]])
                assert len(found[-1]) == limit or not answer["more"]
                if not answer["more"]:
                    return found
                older = f"&before={found[-1][-1]}"

        assert await pages(4) == [[13, 12, 11, 10], [9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]
        assert await pages(7) == [[13, 12, 11, 10, 9, 8, 7], [6, 5, 4, 3, 2, 1, 0]]
        of_peer = f"&peer={to_text(peer.key.node_id)}"
        assert await pages(4, of_peer) == [[12, 10, 8, 6], [4, 2, 0]]
        assert await pages(1_000) == [list(range(13, -1, -1))]
        # What comes meanwhile moves no page.
        first = await api.call("GET", "/v1/ledger/log?limit=4")
        await node.ledger.set_limit(peer.key.node_id, 9)
        after = f"&before={first['entries'][-1]['seq']}"
        assert (await api.call("GET", f"/v1/ledger/log?limit=1{after}"))["entries"][0]["seq"] == 9
        for wrong in ("before=99", "before=-1", "before=x", "before=", f"before=13{of_peer}"):
            with pytest.raises(ArgumentInvalid, match=r"entry|wrong at before: |at least 0"):
                await api.call("GET", f"/v1/ledger/log?{wrong}")
        with pytest.raises(ArgumentInvalid, match="limit must be at most 1000, not 1001"):
            await api.call("GET", "/v1/ledger/log?limit=1001")

    run(5, 3, play)


def test_what_the_fields_of_a_put_say_is_heeded_or_refused():
    tree = "ab" * 32

    async def play(world):
        owner = world.nodes[0]
        api = Api(owner)
        for fields in (
            {},
            {"XSC_Name": "a%20b", "XSC_Size": "5"},
            {"XSC_Name": "a%20b", "XSC_Survive": "2nodes", "XSC_Code": "2,2"},
            {"XSC_Part": f"{tree}/{tree}", "XSC_Resume": tree},
        ):
            stored = await api.call("POST", "/v1/objects", body=b"hello", **fields)
            reader = await owner.storage.open(stored["capability"])
            assert b"".join([bytes(piece) async for piece in reader.stream(0, 5)]) == b"hello"
            assert stored["hosts"]
        for fields in (
            {"XSC_Name": "%00"},
            {"XSC_Size": "-1"},
            {"XSC_Size": str(2**63)},
            {"XSC_Survive": "9lives"},
            {"XSC_Survive": "7nodes"},
            {"XSC_Code": "0,1"},
            {"XSC_Code": "4,9999"},
            {"XSC_Part": "x"},
            {"XSC_Resume": "y"},
        ):
            with pytest.raises(XscError):
                await api.call("POST", "/v1/objects", body=b"hello", **fields)

    run(90, 7, play, QUICK)


def test_repair_says_what_moved_and_what_did_not():
    async def play(world):
        owner = world.nodes[0]
        api = Api(owner)
        capability = await put(owner, content(MIB))
        answer = await api.call("POST", "/v1/object/repair", XSC_Capability=capability)
        nothing = {"left": [], "reason": "", "patched": 0, "waiting": 0}
        assert answer == {"margin": 2, "moved": [], **nothing}
        hosts = [host.node for host in (await owner.storage.stat(capability)).hosts]
        own = owner.key.node_id
        (spare,) = {node.key.node_id for node in world.nodes} - {own, *hosts}
        victim = world.index_of(hosts[2])
        await world.crash(victim)
        for store in (world.disks[victim].bodies, world.disks[victim].index):
            store.write([(key, None) for key, _ in list(store.scan(b""))], sync=True)
        await world.restart(victim)
        await world.until(lambda: owner.health.is_up(hosts[2]))
        row = {"shard": 2, "from": to_text(hosts[2]), "to": to_text(spare)}
        answer = await api.call("POST", "/v1/object/repair", XSC_Capability=capability)
        assert answer == {"margin": 1, "moved": [row], **nothing}
        # Two more are lost, and only the owner itself is left to take one of them.
        for gone in (victim, world.index_of(hosts[4]), world.index_of(hosts[5])):
            await world.crash(gone)
        await world.until(
            lambda: len(owner.storage.repairer.watch.gone([hosts[4], hosts[5]])) == 2,
            within_ms=7_200_000,
        )
        answer = await api.call("POST", "/v1/object/repair", XSC_Capability=capability)
        lately = [item.shard for *_, done in owner.storage.repairer.recent for item in done.moved]
        assert sorted([*lately, *answer["left"]]) == [2, 4, 5]
        assert len(answer["left"]) == 1
        assert "no node that is up" in answer["reason"]

    run(91, 8, play, {"repair_grace": "10min", "repair_interval": "1d", "probe_interval": "1min"})


def test_repair_refuses_what_is_no_object_of_this_node():
    async def play(world):
        api = Api(world.nodes[1])
        with pytest.raises(CapabilityInvalid, match="does not begin with xsc:r:"):
            await api.call("POST", "/v1/object/repair")
        with pytest.raises(CapabilityInvalid):
            await api.call("POST", "/v1/object/repair", XSC_Capability="xsc:r:abc")
        theirs = await put(world.nodes[0], content(1))
        with pytest.raises(NotAllowed, match="does not look after"):
            await api.call("POST", "/v1/object/repair", XSC_Capability=theirs)
        unknown = ReadCapability(b"s" * 32, b"m" * 32).to_text()
        with pytest.raises((NotAllowed, ObjectUnknown)):
            await api.call("POST", "/v1/object/repair", XSC_Capability=unknown)

    run(92, 2, play, QUICK)


def test_drain_begins_says_how_far_it_is_and_can_be_cancelled():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        hosts = [host.node for host in (await world.nodes[0].storage.stat(capability)).hosts]
        leaver = next(n for n in world.nodes[1:] if n.key.node_id in hosts)
        api, leaver_id = Api(leaver), to_text(leaver.key.node_id)
        held = leaver.shards.used_bytes
        other = Api(world.nodes[0])
        assert leaver_id in await quoting(other)
        assert all(await offered(api))
        answer = await api.call("GET", "/v1/drain")
        assert (answer["state"], answer["total_bytes"], answer["peers"]) == ("staying", 0, 6)
        with pytest.raises(NotAllowed):
            await api.call("GET", "/v1/drain/proof")
        for wrong in ("x", "-1", "30001", "1.5", ""):
            with pytest.raises(ArgumentInvalid, match="wait_ms"):
                await api.call("GET", f"/v1/drain?wait_ms={wrong}")
        answer = await api.call("POST", "/v1/drain")
        assert answer["state"] == "leaving"
        assert (await api.call("GET", "/v1/status"))["state"] == "leaving"
        assert answer["total_bytes"] >= held > 0
        while answer["state"] == "leaving":
            before = world.clock.now_ms()
            answer = await api.call("GET", "/v1/drain?wait_ms=5000")
            assert world.clock.now_ms() - before <= 5_000
        assert (answer["state"], answer["left_bytes"], answer["peers_told"]) == ("done", 0, 6)
        assert (answer["released_objects"], answer["stuck"]) == (1, [])
        assert answer["released_bytes"] == held
        assert not await quoting(other) & {leaver_id}, "nothing that it has is for sale"
        assert len(await quoting(other)) == 5
        assert not any(await offered(api))
        leases = await world.nodes[0].market.buyer.lease_providers(fuel_steps=1, count=9)
        assert leaver.key.node_id not in {lease.node for lease in leases}
        peers = (await Api(world.nodes[0]).call("GET", "/v1/peers"))["peers"]
        assert [row["id"] for row in peers if row["state"] == "leaving"] == [leaver_id]
        proof, orders = check_proof(await leaver.storage.drain.proof())
        assert (len(orders), proof.record.left_objects) == (1, 0)
        assert proof.record.released_bytes == held
        assert (await api.call("DELETE", "/v1/drain"))["state"] == "staying"
        assert all(await offered(api))
        assert (await api.call("GET", "/v1/status"))["state"] == "running"

    run(93, 7, play, QUICK)


def test_an_estimate_is_what_an_auction_pays_and_nobody_above_the_maximum():
    async def play(world):
        api = Api(world.nodes[0])

        async def price(size, code="1,1"):
            answer = await api.call("GET", f"/v1/market/estimate?size_bytes={size}&code={code}")
            return answer["storage_price_micro"]

        own = frozenset({world.nodes[0].key.node_id})
        told = await price(1)
        assert 20 <= told <= 98, "of 10, 20 and 30: what the next one asks, by quality"
        assert await price(1, "4,2") == 98, "without a next one, what this node asks itself"
        got = await world.nodes[0].market.buyer.lease_hosts(size_bytes=1, count=2, exclude=own)
        assert max(host.price for host in got.leases) == told
        with pytest.raises(NoOffers) as caught:
            await api.call("GET", "/v1/market/estimate?fuel=1000")
        assert "compute_price_max_gfuel" in caught.value.hint
        for nothing in ("", "?duration_ms=5", "?size_bytes=1&code=0,1", "?fuel=-1"):
            with pytest.raises(ArgumentInvalid):
                await api.call("GET", f"/v1/market/estimate{nothing}")

    def prepare(world):
        for index, price in ((1, 30), (2, 10), (3, 99), (4, 20)):
            world.settings_of[index] = {"storage_price_gib_hour": str(price)}
        world.settings_of[0] = {
            "storage_price_max_gib_hour": "98",
            "compute_price_max_gfuel": "1",
        }

    run(94, 5, play, prepare=prepare)


async def stored_ahead(world):
    """Have a customer store something in 60 of 100 steps that it needs; return its need's id."""
    provider, customer = world.nodes
    await recognise(provider, customer)
    await offer(provider, 100)
    wanted = await need(customer, 60)
    await world.until(lambda: leased(provider, "provider") == leased(customer) == 60)
    await put(customer, content(24 * MIB))
    return wanted


def test_what_is_leased_is_shown_on_both_sides_whatever_is_granted_now():
    async def play(world):
        provider, customer = world.nodes
        wanted = await stored_ahead(world)
        here, there = Api(customer), Api(provider)

        async def shown(api, part):
            (slot,) = (await api.call("GET", "/v1/allocation"))["slots"]
            return [(row["node"], row["need"], row.get("drawn")) for row in slot[part]]

        (before,) = (await here.call("GET", "/v1/allocation/received"))["allocations"]
        who, drawn = to_text(customer.key.node_id), before["drawn"]
        assert drawn == 60 * SLOT_STEP_BYTES
        row = (who, to_text(wanted), drawn)
        assert await shown(here, "allocations") == await shown(there, "allocations") == [row]
        (slot,) = (await here.call("GET", "/v1/allocation"))["slots"]
        (line,) = slot["allocations"]
        assert (line["tier"], line["price"]) == ("one_way", 9 * A_STEP)
        # The provider offers nothing any more: what is stored is pinned, and granted no more.
        (offered,) = provider.commitments.own.slots
        await provider.commitments.withdraw(offered.slot_id)
        await world.until(lambda: not customer.allocator.received())
        answer = await here.call("GET", "/v1/allocation/received")
        (after,) = answer["allocations"]
        assert (after["quantity"], after["tier"], after["drawn"]) == (0, None, drawn)
        assert (after["node"], after["price"]) == (before["node"], 9 * A_STEP)
        assert answer["totals"] == {to_text(wanted): drawn}
        assert (await here.call("GET", "/v1/allocation/expected"))["allocations"] == []


def test_what_is_stored_is_needed_by_default_once_no_other_need_has_it():
    async def play(world):
        provider, customer = world.nodes
        wanted = await stored_ahead(world)
        assert standing_need(customer.commitments.own) is None, "another need has it"
        await customer.commitments.withdraw(wanted)
        await world.until(lambda: leased(provider, "provider") <= 1)
        await world.until(customer.allocator.received)
        standing = standing_need(customer.commitments.own)
        assert standing.parts == ((provider.key.node_id, 1),)
        (row,) = (await Api(customer).call("GET", "/v1/allocation/received"))["allocations"]
        assert (row["need"], row["drawn"]) == (to_text(standing.slot_id), SLOT_STEP_BYTES)
        (lease,) = customer.market.leases()
        assert to_text(lease.entry.terms.need) == to_text(wanted), (
            "what lies there needs no second one"
        )

    run(93, 2, play, SETTINGS)


def test_what_a_peer_had_this_node_do_is_shown_by_method():
    async def play(world):
        owner, host = world.nodes[:2]
        await put(owner, content(50_000))
        rows = {row["id"]: row for row in (await Api(host).call("GET", "/v1/peers"))["peers"]}
        row = rows[to_text(owner.key.node_id)]
        units = {spent["method"]: spent["units"] for spent in row["spent"]}
        assert units["storage.put"] >= COSTS["storage.put"].base
        # What is simulated takes no time.
        assert {spent["processor_us"] for spent in row["spent"]} == {0}
        most = PEER_REQUESTS_A_SECOND_MAX * REQUEST_UNITS
        assert most - sum(units.values()) <= row["units_left"] <= most
        assert 0 < row["synced_bytes_left"] <= SYNCED_A_PEER_BYTES_MAX

    run(5, 7, play)
