"""The rules of alerts: what needs the operator, since when, and who is told of it.

Plain functions from measures, what was known and the time to what is known now. An alert is raised
once its condition has held for a while. It is kept until its condition is over and the operator has
acknowledged it. The same one is told at most once within `TOLD_AGAIN_MS`, however often it
comes and goes. docs/design/monitoring.md
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, Literal, TypeAlias

from xsc.api.monitor import Measures
from xsc.base.grade import UNTRUSTED
from xsc.base.limits import PPM
from xsc.base.units import is_near
from xsc.identity.envelope import Count, Record

Kind: TypeAlias = Literal[
    "margin",
    "unreadable",
    "lease",
    "debt",
    "own_debt",
    "disk",
    "unreachable",
    "proof",
    "grade",
    "lost",
]
MINUTE_MS: Final = 60_000
HELD_MS: Final[Mapping[Kind, int]] = {
    "margin": MINUTE_MS,
    "unreadable": MINUTE_MS,
    "disk": MINUTE_MS,
    "unreachable": 5 * MINUTE_MS,
}
"""How long a condition holds before it is an alert; all others are one at once."""
TOLD_AGAIN_MS: Final = 60 * MINUTE_MS
SHOWN_AGAIN_MS: Final = 5 * MINUTE_MS
"""How long one that was acknowledged is over before it is shown again where it comes again."""
RETRY_MS: Final = MINUTE_MS
"""Until a message that could not be sent is tried again; twice as long after each try."""
RETRY_MS_MAX: Final = 60 * MINUTE_MS
KEPT_MS: Final = 30 * 24 * 60 * MINUTE_MS
"""How long an alert is kept that is over and that nobody acknowledged."""
DISK_PPM: Final = 50_000
"""The share of the capacity that the disk must have left."""


class Alert(Record):
    """A condition that needs the operator."""

    kind: Kind
    peer: bytes = b""
    """Whom it is about; empty where about no peer in particular."""
    says: str
    count: Count = 0
    """Of what there is so much; where there is more it is shown again."""
    told_count: Count = 0
    """How much there was when targets were told."""
    since_ms: Count
    over_ms: Count | None = None
    """When its condition was over."""
    raised: bool = False
    acknowledged: bool = False
    told: tuple[str, ...] = ()
    """The targets that have heard of it, by their hashes."""
    tried_ms: Count = 0
    """When somebody was told last, or could not be."""
    tries: Count = 0
    """How often in a row somebody could not be told."""

    @property
    def key(self) -> str:
        """What it is: of a kind and a peer there is one."""
        return f"{self.kind}/{self.peer.hex()}"

    @property
    def is_shown(self) -> bool:
        """Whether the operator is to see it."""
        return self.raised and not self.acknowledged


def conditions(measures: Measures, now_ms: int) -> Iterator[Alert]:
    """Yield what needs the operator now."""

    def found(kind: Kind, says: str, peer: bytes = b"", count: int = 0) -> Alert:
        return Alert(kind=kind, peer=peer, says=says, since_ms=now_ms, count=count)

    status = measures.status
    bare = sum(row.objects for row in measures.margins if row.margin < 1)
    lost = sum(row.objects for row in measures.margins if row.margin < 0)
    ending = status.leases.ending
    if bare:
        yield found("margin", f"objects without a shard to spare: {bare}", count=bare)
    if lost:
        yield found("unreadable", f"objects that cannot be read now: {lost}", count=lost)
    if ending:
        yield found("lease", f"leases that end and could not be renewed: {ending}", count=ending)
    for row in measures.peers:
        if is_near(row.balance_micro, row.limit_micro):
            yield found("debt", "it owes this node more than 80 % of its limit", row.peer)
        if row.own_limit_micro is not None and is_near(-row.balance_micro, row.own_limit_micro):
            yield found("own_debt", "this node owes it more than 80 % of the limit there", row.peer)
        if row.outcome in {"missing", "bad_proof"}:
            yield found("lost", "it has not got what it stores for this node", row.peer)
        if row.grade in UNTRUSTED:
            yield found("grade", f"it is {row.grade}: `xsc health why` says why", row.peer)
    storage = status.storage
    if storage.disk_free_bytes * PPM < storage.capacity_bytes * DISK_PPM:
        yield found("disk", "the disk has less left than 5 % of the capacity")
    if status.peers.not_reached_by and not status.peers.reached_by:
        yield found("unreachable", "no peer reaches this node")
    if measures.proofs:
        says = f"records that prove a peer wrong: {measures.proofs}"
        yield found("proof", says, count=measures.proofs)


def step(known: Iterable[Alert], found: Iterable[Alert], now_ms: int) -> dict[str, Alert]:
    """Return the alerts of now, by their keys."""
    before = {alert.key: alert for alert in known}
    after = {}
    for each in found:
        kept = before.pop(each.key, None)
        kept = each if kept is None else kept
        is_late = not _was_of_late(kept, now_ms)
        if kept.over_ms is not None and is_late and kept.acknowledged:
            kept = each
        change: dict[str, object] = {"says": each.says, "over_ms": None}
        if each.count > kept.count or _was_over(kept, now_ms):
            change |= {"acknowledged": False, "count": each.count}
        if is_late and (kept.over_ms is not None or each.count > kept.told_count):
            change |= {"told": (), "tries": 0}
        held_ms = now_ms - kept.since_ms
        # Where the clock was set back it has held since now.
        if held_ms < 0:
            change["since_ms"] = now_ms
        change["raised"] = kept.raised or held_ms >= HELD_MS.get(each.kind, 0)
        after[each.key] = kept.model_copy(update=change)
    for key, kept in before.items():
        over_ms = now_ms if kept.over_ms is None else min(kept.over_ms, now_ms)
        is_done = kept.acknowledged and not _was_of_late(kept, now_ms)
        if kept.raised and not is_done and now_ms - over_ms < KEPT_MS:
            after[key] = kept.model_copy(update={"over_ms": over_ms})
    return after


def _was_over(alert: Alert, now_ms: int) -> bool:
    """Say whether an alert was over for a while: one that only flickers stays acknowledged."""
    return alert.over_ms is not None and not 0 <= now_ms - alert.over_ms < SHOWN_AGAIN_MS


def _was_of_late(alert: Alert, now_ms: int) -> bool:
    """Say whether an alert held, or somebody was told of it, within the last hour."""
    last_ms = max(alert.tried_ms, alert.over_ms or 0)
    return 0 <= now_ms - last_ms < TOLD_AGAIN_MS


def due(
    alerts: Iterable[Alert], targets: Collection[str], now_ms: int
) -> list[tuple[Alert, list[str]]]:
    """Return which alerts are to be told of now, each with the targets that have not heard."""
    shown = [each for each in alerts if each.is_shown and each.over_ms is None]
    unheard = [
        (alert, [target for target in targets if target not in alert.told])
        for alert in shown
        if _may_try(alert, now_ms)
    ]
    return [(alert, left) for alert, left in unheard if left]


def _may_try(alert: Alert, now_ms: int) -> bool:
    if not alert.tries:
        return True
    pause_ms = min(RETRY_MS << min(alert.tries - 1, 10), RETRY_MS_MAX)
    return not 0 <= now_ms - alert.tried_ms < pause_ms


def told(alert: Alert, heard: Collection[str], failed: bool, now_ms: int) -> Alert:
    """Return an alert after targets were told of it, or could not be."""
    return alert.model_copy(
        update={
            "told": (*alert.told, *sorted(heard)),
            "tried_ms": now_ms,
            "told_count": alert.count,
            "tries": alert.tries + 1 if failed else 0,
        }
    )
