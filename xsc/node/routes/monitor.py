"""What the node measures of itself, without asking anybody."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from xsc.api import monitor as api
from xsc.api import serial
from xsc.api.endpoint import Nothing, filled
from xsc.base.fields import take_int
from xsc.base.grade import GRADES
from xsc.health.service import HealthRow
from xsc.market.lease import Role
from xsc.monitor import exposition
from xsc.monitor.events import Line
from xsc.monitor.history import SAMPLE_MS
from xsc.node.api.app import with_names
from xsc.node.build import Node, market_settings
from xsc.node.logging import sentence, without_secrets
from xsc.node.routes import market
from xsc.node.routes.status import status_with
from xsc.terms.quote import KINDS, Kind

LOOK_MS = 15_000
"""Between two looks for alerts."""
LOOKS_A_SAMPLE = 4


async def measures(node: Node, _: Nothing) -> api.Measures:
    """Say what the node measures of itself; all who ask within a second hear the same."""
    found = node.watch.fresh()
    if found is None:
        found = node.watch.last = _measured(node, node.clock.now_ms())
    return found


async def metrics(node: Node, asked: Nothing) -> str:
    """Say the same as metrics of Prometheus."""
    found = await measures(node, asked)
    if node.watch.told is None or node.watch.told[0] is not found:
        text = exposition.to_text(serial.document(found, node.name_of))
        node.watch.told = found, text
    return node.watch.told[1]


def _measured(node: Node, now_ms: int) -> api.Measures:
    peers, steps = node.health.table(), market.own_steps(node)
    return api.Measures(
        at_ms=now_ms,
        status=status_with(node, peers, steps),
        margins=[
            api.Margin(margin=margin, objects=objects)
            for margin, objects in sorted(node.storage.margins().items())
        ],
        kinds=_kinds(node, steps),
        leases=_leases(node),
        peers=_peers(node, peers),
        events=node.log.counts(),
        proofs=_proofs(node),
        queue_delay_ms=take_int(node.compute.describe(), "queue_ms"),
        loop_delay_ms=node.watch.loop_delay_ms,
    )


def _proofs(node: Node) -> int:
    false = node.allocator.records.false_clearings()
    return len(false) + len(node.ledger.chain.forks.all()) + node.evidence.count()


def _kinds(node: Node, steps: market.OwnSteps) -> list[api.KindMeasures]:
    sums = defaultdict[tuple[str, str], Counter[str]](Counter)
    reserves: dict[str, int] = {}
    for slot in market.own_slots(node, steps):
        counted = sums[slot.role, slot.kind]
        counted.update(quantity=slot.quantity, granted=slot.granted or 0, used=slot.used or 0)
        if slot.role == "offer":
            reserves[slot.kind] = min(slot.price_micro, reserves.get(slot.kind, slot.price_micro))
    return [
        api.KindMeasures(
            kind=kind,
            offered=sums["offer", kind]["quantity"],
            granted=sums["offer", kind]["granted"],
            drawn=sums["offer", kind]["used"],
            needed=sums["need", kind]["quantity"],
            received=sums["need", kind]["granted"],
            reserve_micro=reserves.get(kind, 0),
            price_max_micro=market_settings(node.config).price_max[kind],
        )
        for kind in KINDS
    ]


def _leases(node: Node) -> list[api.LeaseMeasures]:
    sums = defaultdict[tuple[Role, Kind], Counter[str]](Counter)
    for view in node.market.leases():
        terms = view.entry.terms
        if view.status == "open":
            held = view.use.held_bytes
            counted = sums[view.entry.role, terms.kind]
            counted.update(leases=1, held=held, weight=held + 1, price=terms.price * (held + 1))
    return [
        api.LeaseMeasures(
            role=role,
            kind=kind,
            leases=counted["leases"],
            leased_bytes=counted["held"],
            lease_price_micro=counted["price"] // counted["weight"],
        )
        for (role, kind), counted in sorted(sums.items())
    ]


def _age_ms(at_ms: int | None, now_ms: int) -> int | None:
    return None if at_ms is None else max(0, now_ms - at_ms)


def _peers(node: Node, rows: Sequence[HealthRow]) -> list[api.PeerMeasures]:
    now_ms = node.clock.now_ms()
    ages = {peer: max(0, now_ms - seen) for peer, seen in node.sync.asking.seen_ms.items()}
    accounts = node.ledger.payments.accounts
    proven = {row.node: node.challenges.summary(row.node) for row in rows}
    return [
        filled(
            api.PeerMeasures,
            row,
            proven[row.node],
            node.market.unproven(row.node),
            peer=row.node,
            own_limit_micro=accounts[row.node].limit_micro if row.node in accounts else None,
            grade_level=GRADES.index(row.grade),
            up=node.health.is_up(row.node),
            balance_micro=node.ledger.balance(row.node),
            limit_micro=node.ledger.limit(row.node),
            proven_age_ms=_age_ms(proven[row.node].proven_ms, now_ms),
            head_age_ms=ages.get(row.node),
        )
        for row in rows
    ]


async def alerts(node: Node, _: Nothing) -> list[api.Alert]:
    """List what needs the operator."""
    return [
        filled(api.Alert, each, id=each.key, peer=each.peer or None, told=len(each.told))
        for each in node.alerts.shown()
    ]


async def acknowledge(node: Node, asked: api.Acknowledge) -> api.Acknowledged:
    """Show alerts no longer."""
    return api.Acknowledged(alerts=await node.alerts.acknowledge(asked.id))


async def test(node: Node, _: Nothing) -> api.Tested:
    """Send a test alert to each target of notify."""
    return api.Tested(targets=await node.alerts.test())


async def log(node: Node, _: Nothing) -> list[api.LogLine]:
    """Show the last lines of the log."""
    named = node.peer_names()

    def says(line: Line) -> str:
        told = sentence(line.level, line.event, without_secrets(line.fields))
        return with_names(told.removeprefix(f"{line.level}: "), named)

    return [
        api.LogLine(at_ms=line.at_ms, level=line.level, event=line.event, says=says(line))
        for line in node.log.last()
    ]


async def work(node: Node, _: Nothing) -> list[api.Work]:
    """Say how far work is that a request named."""
    return node.works.rows()


async def history(node: Node, asked: api.Within) -> list[api.Sample]:
    """Show what was measured every minute."""
    since_ms = node.clock.now_ms() - asked.within_ms
    samples = asked.within_ms // SAMPLE_MS + 1
    return await node.history.read(since_ms, samples, asked.points, node.peers.roster.all_peers())


async def run(node: Node) -> None:
    """Look for alerts, and keep a sample a minute, until cancelled."""
    while True:
        for look in range(LOOKS_A_SAMPLE):
            found = await measures(node, Nothing())
            if not look:
                await node.history.add(found)
            await node.alerts.look(found)
            await node.clock.sleep_ms(LOOK_MS)
