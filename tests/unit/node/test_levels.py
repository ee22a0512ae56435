"""Levels as the API takes and shows them: steps, workers, totals by kind, convergence."""

import json
from dataclasses import replace

import pytest

from tests.sim.network import run
from tests.sim.test_slots import SETTINGS, mutual, need, of, offer
from tests.unit.node.test_routes import Api
from xsc.api.endpoint import Id
from xsc.api.market import Edit
from xsc.base.errors import ArgumentInvalid, NotFound
from xsc.base.ids import to_text
from xsc.base.limits import EPOCH_MS, GIB, MFUEL, SLOT_STEP_BYTES, SLOT_STEP_FUEL
from xsc.node.routes import market
from xsc.space.itc import join_events

UNIT = {"storage": "bytes", "compute": "fuel_per_s"}
STEP = {"storage": SLOT_STEP_BYTES, "compute": SLOT_STEP_FUEL}


async def send(api, path, **body):
    return await api.call("POST", path, body=json.dumps(body).encode())


def test_an_offer_rounds_down_to_a_step_and_a_need_up():
    async def play(world):
        node = world.nodes[0]
        api = Api(node)

        async def stated(role, kind, **level):
            """Return the level of what was stated, as it is shown and as it is published."""
            made = await send(api, "/v1/market/slots", role=role, kind=kind, **level)
            rows = (await api.call("GET", "/v1/market/slots"))["slots"]
            (row,) = (row for row in rows if row["id"] == made["id"])
            assert row["unit"] == UNIT[kind]
            (there,) = (*node.commitments.own.slots, *node.commitments.own.needs)
            assert there.quantity * STEP[kind] == row["quantity"]
            await node.commitments.withdraw(there.slot_id)
            return there.quantity

        for kind, step in STEP.items():
            for level, down, up in (
                (step, 1, 1),
                (step + 1, 1, 2),
                (2 * step - 1, 1, 2),
                (2 * step, 2, 2),
                (step * (2**33 - 1), 2**33 - 1, 2**33 - 1),
            ):
                assert await stated("offer", kind, quantity=level, price_micro=0) == down
                assert await stated("need", kind, quantity=level, price_micro=0) == up
            assert await stated("need", kind, quantity=1, unit=UNIT[kind]) == 1
        # SETTINGS: a worker runs 2000 Mfuel/s.
        assert await stated("offer", "compute", workers=1) == 200
        assert await stated("need", "compute", workers=3) == 600

    run(41, 1, play, SETTINGS)


def test_a_need_that_pays_nothing_is_warned_of_and_an_offer_for_nothing_is_not():
    async def play(world):
        api = Api(world.nodes[0])

        async def warned(role, **stated):
            body = {"kind": "compute", "quantity": 10 * MFUEL, **stated}
            return await send(api, "/v1/market/slots", role=role, **body)

        said = ["it pays nothing, so it matches only offers for nothing"]
        assert (await warned("need", price_micro=0))["warnings"] == said
        assert (await warned("offer", price_micro=0))["warnings"] == []
        made = await warned("need", price_micro=1)
        assert made["warnings"] == []
        changed = await market.edit(world.nodes[0], Edit(id=made["id"], price_micro=0))
        assert changed.warnings == said

    run(45, 1, play, SETTINGS)


def test_an_offer_of_more_than_the_node_has_is_warned_of():
    async def play(world):
        node = world.nodes[0]
        for kind, step in STEP.items():
            most = node.capacity.level(kind)
            level = most - most % step
            for over, said in ((0, []), (step, ["this node has "])):
                body = {"role": "offer", "kind": kind, "quantity": level + over, "price_micro": 1}
                made = await send(Api(node), "/v1/market/slots", **body)
                assert [text[:14] for text in made["warnings"]] == said

    run(46, 1, play, SETTINGS)


def test_what_a_small_level_comes_to_a_day_is_not_rounded_down_each_hour():
    async def play(world):
        body = {"role": "offer", "kind": "storage", "quantity": SLOT_STEP_BYTES, "price_micro": 15}
        made = await send(Api(world.nodes[0]), "/v1/market/slots", **body)
        assert (made["day_micro"], made["month_micro"]) == (15 * 24 // 16, 15 * 24 * 30 // 16)

    run(46, 1, play, SETTINGS)


@pytest.mark.parametrize("role", ["offer", "need"])
@pytest.mark.parametrize("kind", ["storage", "compute"])
def test_what_a_level_comes_to_is_that_of_its_time_alone(role, kind):
    async def play(world):
        node = world.nodes[0]
        # What a level costs an hour at that price.
        level, hour_micro = {"storage": (GIB, 10_000), "compute": (10 * MFUEL, 360_000)}[kind]

        async def hours(begin=None, end=None, every=None):
            """Return for how many hours a level comes to what is said of a day, and of 30."""
            now_ms = node.clock.now_ms()
            times = {"every": every} if every else {}
            if begin is not None:
                times["from_ms"] = now_ms + begin * EPOCH_MS
            if end is not None:
                times["to_ms"] = now_ms + end * EPOCH_MS
            body = {"role": role, "kind": kind, "quantity": level, "price_micro": 10_000, **times}
            made = await send(Api(node), "/v1/market/slots", **body)
            return tuple(round(made[of] / hour_micro) for of in ("day_micro", "month_micro"))

        assert await hours() == (24, 720)
        assert await hours(end=1) == (1, 1)
        assert await hours(begin=1, end=3) == (2, 2)
        assert await hours(begin=23, end=26) == (1, 3)
        assert await hours(begin=25, end=26) == (0, 1)
        if kind == "compute":
            assert await hours(every="daily 01:00-03:00") == (2, 60)

    run(48, 1, play, SETTINGS)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"kind": "storage", "quantity": SLOT_STEP_BYTES - 1}, "63.9 MiB is less than a step"),
        ({"kind": "compute", "quantity": SLOT_STEP_FUEL - 1}, "less than a step of 10 Mfuel/s"),
        ({"kind": "storage", "quantity": 0}, "less than a step"),
        ({"kind": "storage", "quantity": -SLOT_STEP_BYTES}, "less than a step"),
        ({"kind": "compute", "workers": 0}, "less than a step"),
        ({"kind": "compute", "workers": -1}, "less than a step"),
        ({"kind": "storage", "quantity": 2**63}, "more than any slot"),
        ({"kind": "compute", "quantity": 2**63}, "more than any slot"),
        ({"kind": "storage", "quantity": SLOT_STEP_BYTES * 2**33}, "more than any slot"),
        ({"kind": "compute", "workers": 2**63}, "more than any slot"),
        ({"kind": "storage", "workers": 1}, "stated is no storage"),
        ({"kind": "storage", "quantity": GIB, "workers": 1}, "stated is no storage"),
        ({"kind": "compute", "quantity": 10 * MFUEL, "workers": 1}, "in place of a quantity"),
        ({"kind": "compute", "quantity": GIB, "unit": "bytes"}, "stated is no compute"),
        ({"kind": "storage", "quantity": GIB, "unit": "fuel_per_s"}, "stated is no storage"),
        ({"kind": "storage"}, "quantity is missing"),
        ({"kind": "storage", "quantity": "1GiB"}, "quantity"),
        ({"kind": "storage", "quantity": 1.5e9}, "quantity"),
    ],
    ids=str,
)
def test_a_level_that_is_none_is_refused_and_changes_nothing(body, says):
    async def play(world):
        node = world.nodes[0]
        api = Api(node)
        await offer(node, 3)
        before = node.commitments.own
        with pytest.raises(ArgumentInvalid, match=says):
            await send(api, "/v1/market/slots", role="offer", **body)
        assert node.commitments.own == before

    run(42, 1, play, SETTINGS)


def test_what_names_nothing_that_could_be_explained_is_not_found():
    async def play(world):
        node = world.nodes[0]
        with pytest.raises(NotFound, match="no need, slot or clearing"):
            await market.why(node, Id(id="nobody"))
        assert (await market.why(node, Id(id=node.config.name))).why == []

    run(47, 1, play, SETTINGS)


def test_totals_are_by_kind_and_who_offers_nothing_has_converged():
    async def play(world):
        provider, customer, friend = world.nodes
        await mutual(provider, customer, friend)
        await offer(provider, 100)
        await offer(provider, 50, "compute")
        await need(customer, 60)
        await need(customer, 30, "compute")
        await world.until(lambda: of(provider, customer) == 90)
        api = Api(provider)
        await world.until(lambda: provider.allocator.state.converged)
        shown = await api.call("GET", "/v1/allocation")
        assert shown["recipient_totals"] == {
            to_text(customer.key.node_id): {
                "storage": 60 * SLOT_STEP_BYTES,
                "compute": 30 * SLOT_STEP_FUEL,
            }
        }
        # Two of them offer nothing, and one of these needs nothing either.
        assert (shown["converged"], shown["network_converged"]) == (True, True)
        for node in (customer, friend):
            shown = await Api(node).call("GET", "/v1/allocation")
            assert (shown["converged"], shown["recipient_totals"]) == (True, {})
        found = (await api.call("GET", "/v1/allocation/groups"))["groups"]
        names = [to_text(node.key.node_id) for node in (provider, customer, friend)]
        assert found["all_mutual_partners"] == sorted(names[1:])
        assert found["active_participants"] == [names[1]]
        assert set(found["has_system_converged"]) == set(names[:2])

    run(43, 3, play, SETTINGS)


def test_a_commitment_whose_author_had_heard_more_is_not_of_the_cut():
    async def play(world):
        looker, author, third = world.nodes
        for node in (author, third):  # into one domain, as after a recovery
            node.space.causality.own = None
            await node.intervals.ask([looker.key.node_id])
        await mutual(*world.nodes)
        for node in world.nodes:
            await need(node, 1)
        api = Api(looker)

        async def shown():
            rows = (await api.call("GET", "/v1/allocation/consistent"))["commitments"]
            return {row["node"]: (row["consistent"], row["unheard"], row["needs"]) for row in rows}

        ids = [to_text(node.key.node_id) for node in world.nodes]
        await world.until(
            lambda: all(
                looker.commitments.heard.of(n.key.node_id).commitment.needs for n in world.nodes
            )
        )
        assert await shown() == dict.fromkeys(ids, (True, [], 1))
        # The author had heard of events of the third node that have come to nobody else.
        more = third.space.clock
        for _ in range(100):
            more = more.tick()

        def hear(node):
            causality = node.space.causality
            event = join_events(causality.own.clock.event, more.event)
            causality.own = replace(causality.own, clock=replace(causality.own.clock, event=event))

        hear(author)
        await need(author, 1)
        await world.until(
            lambda: len(looker.commitments.heard.of(author.key.node_id).commitment.needs) == 2
        )
        assert await shown() == {
            ids[0]: (True, [], 1),
            ids[1]: (False, [ids[2]], 2),
            ids[2]: (True, [], 1),
        }
        hear(third)
        await need(third, 1)
        await world.until(
            lambda: len(looker.commitments.heard.of(third.key.node_id).commitment.needs) == 2
        )
        assert (await shown())[ids[1]] == (True, [], 2)

    run(44, 3, play, SETTINGS)
