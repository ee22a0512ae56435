"""What the hosts of an object say, and what has to be done because of it.

Rules only: `Surveyor` asks the hosts, `Repairer` carries out what these functions
decide. Where displaced columns go is planned in `xsc.storage.repair.migration`.
Design: docs/design/storage-repair.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from xsc.base import limits, units
from xsc.storage.object import durability, expiry, placement
from xsc.storage.object.held import Held, most_held, recounted
from xsc.storage.object.inventory import HeldColumn, HeldObject
from xsc.storage.object.manifest import Manifest, code_of, expected_digest
from xsc.storage.repair import maintained_object, migration
from xsc.storage.transfer import get


@dataclass(frozen=True, slots=True)
class Survey:
    """What the hosts of an object say, and what was known of the nodes at that moment."""

    maintained: maintained_object.MaintainedObject
    located: get.Located
    columns: tuple[bytes, ...]
    """The node of each column: as in the placement, or where it was found instead."""
    states: tuple[placement.State, ...]
    answers: Mapping[bytes, HeldObject | None]
    own: bytes
    """This node."""
    leaving: frozenset[bytes]
    """Nodes that leave the network."""
    displaced: frozenset[int]
    """Columns that are lost, on nodes that leave, or under leases that end (`expiring`)."""
    unpaid: frozenset[int] = frozenset()
    """Columns that stay where they are, but need a lease of this node: at the owner, those
    that others pay for; at a custodian, those that the owner did not renew."""
    expiring: frozenset[int] = frozenset()
    """Columns whose lease ends soon at a node that gives no other; part of `displaced`."""
    labels: Mapping[bytes, durability.HostLabels] | None = None
    """Nodes of which it is known where they are and whose, or that they do not say it; None
    where labels decide nothing."""
    up: frozenset[bytes] = frozenset()
    """Nodes that answer, of those at which this node pays for something."""
    dropped: frozenset[tuple[bytes, bytes]] = frozenset()
    """Host and lease of what silent hosts must have dropped by themselves since."""
    refusing: frozenset[bytes] = frozenset()
    """Nodes that did not renew a lease of this node which ends soon."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the object."""
        return self.located.manifest

    @property
    def is_whole(self) -> bool:
        """Whether every column is good where it is, and this node pays for what it must."""
        good = all(state == "ok" for state in self.states)
        return good and not (self.displaced or self.unpaid)

    @property
    def margin(self) -> int:
        """How many more columns may be lost; negative if the object cannot be rebuilt."""
        return sum(state == "ok" for state in self.states) - self.manifest.k

    @property
    def waiting(self) -> int:
        """How many columns are on silent nodes whose grace is not over."""
        return sum(
            state == "unreachable" and column not in self.displaced
            for column, state in enumerate(self.states)
        )

    @property
    def layout(self) -> migration.Layout:
        """The object as the migration planner needs it."""
        contract = self.manifest.contract
        labels = self.labels or {}
        return migration.Layout(
            columns=self.columns,
            displaced=self.displaced,
            m=self.manifest.m,
            own=self.own,
            doubled=len(set(self.columns)) < len(self.columns),
            labels=labels,
            contract=contract,
            # Custodians move only what is lost, and unknown labels move nothing.
            movable=self.maintained.is_own
            and (not any(contract[1:]) or labels.keys() >= set(self.columns)),
        )


def bytes_of_column(manifest: Manifest) -> int:
    """Return the bytes of the shards of one column; 0 for an inline object."""
    if manifest.inline is not None:
        return 0
    return placement.column_bytes(manifest.size_bytes, code_of(manifest))


def bytes_of_record(located: get.Located) -> int:
    """Return what the object record counts for at a host."""
    return units.held_bytes(len(located.sealed))


# Leases


def _good_copies(survey: Survey) -> Iterator[tuple[int, list[tuple[bytes, int | None]]]]:
    """Yield each good column, and who has it whole at its host until when."""
    for column, (node, state) in enumerate(zip(survey.columns, survey.states, strict=True)):
        held = survey.answers[node]
        if state == "ok" and held is not None:
            yield column, expiry.copies(survey.manifest, column, held)


def columns_paid_by_others(survey: Survey) -> frozenset[int]:
    """Return the good columns that their host has only under leases of other nodes."""
    return frozenset(
        column
        for column, copies in _good_copies(survey)
        if survey.own not in {customer for customer, _ in copies}
    )


def own_expiring(survey: Survey, until_ms: int) -> frozenset[int]:
    """Return the columns that their owner must move, because a lease was refused and ends by then.

    What the host says of the own copy decides where it says more than is known here.
    """
    found = set()
    for column, copies in _good_copies(survey):
        told = [end for customer, end in copies if customer == survey.own]
        is_kept = any(end is not None and end > until_ms for end in told)
        if survey.columns[column] in survey.refusing and not is_kept:
            found.add(column)
    return frozenset(found)


def custody_expiring(
    survey: Survey, now_ms: int, rescue_ms: int, last_ms: int
) -> tuple[frozenset[int], frozenset[int]]:
    """Return the columns that a custodian must keep where they are, and those it must move.

    A column is safe while the owner, a custodian before this one, or this node keeps it for
    longer than `rescue_ms`. It is kept where it is, under a lease of the custodian, unless it has
    one there already, which was not renewed, or the end is nearer than `last_ms` and the host has
    not given it one.
    """
    here, elsewhere = set(), set()
    trusted = {survey.own, survey.maintained.owner, *survey.maintained.before}
    for column, copies in _good_copies(survey):
        kept = [(customer, end) for customer, end in copies if customer in trusted]
        known = [end for _, end in kept if end is not None]
        if not copies or len(known) < len(kept):
            continue
        kept_ms = max(known, default=now_ms + last_ms + 1)
        if known and kept_ms > now_ms + rescue_ms:
            continue
        mine = any(customer == survey.own for customer, _ in kept)
        if mine or kept_ms <= now_ms + last_ms:
            elsewhere.add(column)
        else:
            here.add(column)
    return frozenset(here), frozenset(elsewhere)


def columns_to_pay_for(
    survey: Survey, now_ms: int, lease_ms: int
) -> tuple[frozenset[int], frozenset[int]]:
    """Return the columns that need a lease of this node where they are, and those elsewhere.

    Args:
        survey: of the object, before this is known.
        now_ms: the time.
        lease_ms: how long leases last.
    """
    if survey.maintained.only_clean:
        return frozenset(), frozenset()
    if survey.maintained.is_own:
        unpaid = columns_paid_by_others(survey)
        until_ms = now_ms + expiry.before_end(limits.LEASE_URGENT_MS, lease_ms)
        return unpaid, own_expiring(survey, until_ms) - unpaid
    return custody_expiring(
        survey,
        now_ms,
        rescue_ms=expiry.before_end(survey.maintained.rescue_ms, lease_ms),
        last_ms=expiry.before_end(limits.LEASE_LAST_MS, lease_ms),
    )


# What is recorded


def recounted_held(survey: Survey) -> tuple[Held, ...]:
    """Return what is held, corrected by what hosts say is stored under leases of this node."""
    column, record = bytes_of_column(survey.manifest), bytes_of_record(survey.located)
    held = survey.maintained.held
    for node, answer in survey.answers.items():
        if node != survey.own and answer is not None:
            most = most_held(answer, survey.own, column, record)
            held = recounted(held, node, answer.mine, most)
    return held


def found_placement(survey: Survey) -> placement.Placement:
    """Return the placement with the columns that were found at other nodes.

    An owner leaves out what it has still to take over from a custodian.
    """
    before = survey.maintained.placement.columns
    unpaid = survey.unpaid if survey.maintained.is_own else ()
    columns = [
        before[column] if column in unpaid else node for column, node in enumerate(survey.columns)
    ]
    if columns == [*before]:
        return survey.maintained.placement
    return placement.placement_of(survey.manifest, columns)


def nodes_without_manifest(survey: Survey) -> list[bytes]:
    """Return the hosts of columns that answer and do not have the manifest."""
    return [
        node
        for node, held in survey.answers.items()
        if held is not None
        and held.record != "ok"
        and node in survey.columns
        and node not in survey.leaving
    ]


def has_record(survey: Survey, node: bytes) -> bool:
    """Say whether a host has an object record of this node."""
    said = survey.answers.get(node)
    return said is not None and any(row.customer == survey.own for row in said.records)


def has_damaged_record(survey: Survey, node: bytes) -> bool:
    """Say whether a host has an object record of this node that it cannot read any more."""
    said = survey.answers.get(node)
    pays = any(item.node == node and item.size_bytes for item in survey.maintained.held)
    return said is not None and said.record == "corrupt" and pays


# Copies that are not needed any more


def former_hosts_up(survey: Survey) -> frozenset[bytes]:
    """Return the former hosts that can be asked now to delete what they have."""
    return maintained_object.former_hosts(survey.columns, survey.maintained.held) & survey.up


def dropped_by_hosts(survey: Survey) -> list[Held]:
    """Return what silent former hosts have dropped by themselves."""
    return [item for item in survey.maintained.held if (item.node, item.lease_id) in survey.dropped]


def surplus_by_host(survey: Survey) -> dict[bytes, frozenset[int]]:
    """Return the columns that hosts have for this node although they are placed elsewhere."""
    found = {}
    for node, held in survey.answers.items():
        if held is None or node not in survey.columns:
            continue
        mine = {row.column for row in held.columns if row.customer == survey.own}
        extra = [c for c, at in enumerate(survey.columns) if c in mine and at != node]
        if extra:
            found[node] = frozenset(extra)
    return found


def whole_columns(survey: Survey, said: HeldObject | None) -> frozenset[int]:
    """Return the columns that a host says to have whole for this node."""
    if said is None:
        return frozenset()
    own, manifest = survey.own, survey.manifest
    if manifest.inline is not None:
        return frozenset({0} if any(row.customer == own for row in said.records) else ())
    return frozenset(
        row.column
        for row in said.columns
        if row.customer == own
        and row.column < len(survey.columns)
        and row.digest == expected_digest(manifest, row.column)
    )


def may_delete_copy(survey: Survey, node: bytes, column: int) -> bool:
    """Say whether a good copy of a column may be deleted at a node.

    Not if the column is now at a node that has several: then the copy adds more safety. But where
    its lease is not renewed others wait for the room.
    """
    return (
        node in survey.leaving | survey.refusing
        or survey.columns.count(survey.columns[column]) == 1
    )


@dataclass(frozen=True, slots=True)
class CleanupPlan:
    """Copies that are not needed any more. An empty set of columns means all that is there."""

    broken: tuple[tuple[bytes, frozenset[int]], ...]
    """Host and columns that are no whole copies: to delete at once."""
    copies: tuple[tuple[bytes, frozenset[int]], ...]
    """Host and column of good copies: one may go, after every other column was read whole."""
    dropped: tuple[Held, ...]
    """What hosts have dropped by themselves: only the count of it has to go."""


def plan_cleanup(survey: Survey, answers: Mapping[bytes, HeldObject | None]) -> CleanupPlan:
    """Return which copies are not needed any more.

    Args:
        survey: of the object.
        answers: what its former hosts say.
    """
    broken: list[tuple[bytes, frozenset[int]]] = []
    copies: list[tuple[bytes, frozenset[int]]] = []
    for node, said in answers.items():
        if said is None:
            continue
        whole = whole_columns(survey, said)
        if not whole:
            broken.append((node, frozenset()))
        elif may_delete_copy(survey, node, min(whole)):
            # The last column goes together with all else that is there.
            copies.append((node, frozenset({min(whole)}) if len(whole) > 1 else frozenset()))
    for node, columns in sorted(surplus_by_host(survey).items()):
        whole = whole_columns(survey, survey.answers[node]) & columns
        if columns - whole:
            broken.append((node, columns - whole))
        copies += [
            (node, frozenset({column}))
            for column in sorted(whole)
            if may_delete_copy(survey, node, column)
        ]
    return CleanupPlan(tuple(broken), tuple(copies), tuple(dropped_by_hosts(survey)))


def needs_repair(survey: Survey, available: Collection[bytes], *, reported: bool) -> bool:
    """Say whether there is anything to do for an object.

    Args:
        survey: of it.
        available: nodes that may be given columns.
        reported: whether a custodian waits for a look at the copies that it keeps.
    """
    if recounted_held(survey) != survey.maintained.held:
        return True
    if survey.maintained.only_clean:
        return bool(former_hosts_up(survey))
    return bool(
        survey.displaced
        or survey.unpaid
        or (survey.maintained.is_own and nodes_without_manifest(survey))
        or former_hosts_up(survey)
        or surplus_by_host(survey)
        or reported
        or dropped_by_hosts(survey)
        or migration.next_move(survey.layout, available) is not None
    )


DAMAGED_SHARE_MAX: Final = 4
"""One segment in that many may be damaged. A disk that lost more gets no column."""


def _row(manifest: Manifest, column: int, held: HeldObject | None) -> HeldColumn | None:
    """Return the row of a column that was stored whole, by any customer."""
    if held is None or manifest.inline is not None:
        return None
    digest = expected_digest(manifest, column)
    rows = [row for row in held.columns if (row.column, row.digest) == (column, digest)]
    return min(rows, key=lambda row: row.damaged, default=None)


def damaged_segments(survey: Survey) -> dict[int, tuple[int, ...]]:
    """Return the segments to store again, by column; only columns of this customer."""
    found = {}
    for column, node in enumerate(survey.columns):
        row = _row(survey.manifest, column, survey.answers.get(node))
        if row is None or row.customer != survey.own or not row.bad:
            continue
        if len(row.bad) == row.damaged <= max(1, row.segments // DAMAGED_SHARE_MAX) < row.segments:
            found[column] = row.bad
    return found


def good_for(survey: Survey, segment: int) -> list[int]:
    """Return the columns that are good, or whose hosts name damage in other segments alone."""
    found = []
    for column, (node, state) in enumerate(zip(survey.columns, survey.states, strict=True)):
        row = _row(survey.manifest, column, survey.answers.get(node))
        damaged_elsewhere = (
            row is not None and row.bad and segment not in row.bad and len(row.bad) == row.damaged
        )
        if state == "ok" or damaged_elsewhere:
            found.append(column)
    return found
