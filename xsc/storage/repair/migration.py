"""Migration planner: to which nodes columns move.

In this order: a displaced column goes to a node that has no column of the object,
chosen so that the object survives as much as possible (`durability`), its contract
first; then, if the contract is broken and can be kept, as few columns as possible
move; then nodes with several columns give some to others. Columns are planned one
at a time, each on the result of the last, so that a node that has no room is left
out of the next plan. Design: docs/design/storage-repair.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

from xsc.storage.object.durability import Contract, HostLabels, plan_around, survival

MOVES_TRIED_MAX: Final = 256
"""Limit of the choices of columns that are tried; beyond it nothing moves."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the columns of an object are, or are planned to be."""

    columns: tuple[bytes, ...]
    """The node of each column."""
    displaced: frozenset[int]
    """Columns that are lost or must leave their node."""
    m: int
    own: bytes
    """This node; it takes a column only if no other node is as good."""
    doubled: bool
    """Whether some node held several columns before anything was planned."""
    labels: Mapping[bytes, HostLabels]
    """Of the nodes that gave labels."""
    contract: Contract = Contract()  # noqa: RUF009 (a frozen value)
    """The contract."""
    movable: bool = False
    """Whether good columns may move so that the contract is kept."""

    def host(self, node: bytes) -> HostLabels:
        """Return a node with its labels."""
        return self.labels.get(node) or HostLabels(node)

    def placed(self, column: int, node: bytes) -> Layout:
        """Return the layout with a column at another node."""
        columns = list(self.columns)
        columns[column] = node
        return replace(self, columns=tuple(columns), displaced=self.displaced - {column})

    @property
    def keeps_contract(self) -> bool:
        """Whether the columns that are not displaced keep the contract."""
        live = [self.host(n) for c, n in enumerate(self.columns) if c not in self.displaced]
        spares = self.m - len(self.displaced)
        return survival(live, spares).meets(self.contract) if spares >= 0 else False


@dataclass(frozen=True, slots=True)
class Move:
    """A column that must move, and the nodes that may take it."""

    column: int
    targets: frozenset[bytes]
    """All of them are equally good."""


@dataclass(frozen=True, slots=True)
class _Filling:
    """A plan for the columns without a node."""

    placing: int
    meets: bool
    spread: int
    """How many nodes have a column then."""
    kept: Counter[bytes]
    new: tuple[bytes, ...]
    """Nodes that get one more column, the preferred first."""
    survives: Contract


def next_move(layout: Layout, available: Collection[bytes]) -> Move | None:
    """Return the next column to move; None if nothing can be improved.

    Args:
        layout: the object.
        available: nodes that are up and may be given columns.
    """
    able = frozenset(available)
    if layout.displaced:
        return _place_displaced(layout, able)
    return _restore_contract(layout, able) or _balance(layout, able)


def _fill(layout: Layout, kept: Counter[bytes], targets: frozenset[bytes]) -> _Filling | None:
    """Plan for all columns that are not kept, or for as many as there is room."""
    most = len(layout.columns) if layout.doubled else 1
    nodes = [*sorted(targets - {layout.own}), *sorted(targets & {layout.own})]
    nodes += sorted(node for node in kept if kept[node] and node not in targets)
    bounds = tuple((kept[node], max(kept[node], most if node in targets else 0)) for node in nodes)
    wanted = len(layout.columns) - kept.total()
    placing = min(wanted, sum(limit for _, limit in bounds) - kept.total())
    if placing <= 0:
        return None
    hosts = tuple(layout.host(node) for node in nodes)
    n, m = kept.total() + placing, max(0, layout.m - (wanted - placing))
    held = plan_around(hosts, bounds, n, m, layout.contract)
    held = held or plan_around(hosts, bounds, n, m, Contract()) or _evenly(bounds, n)
    after = [host for host, count in zip(hosts, held, strict=True) for _ in range(count)]
    new = tuple(node for node, has in zip(nodes, held, strict=True) if has > kept[node])
    survives = survival(after, m)
    # Asked of the plan: a planner that gave up does not know whether there is a better one.
    meets = survives.meets(layout.contract)
    return _Filling(placing, meets, len({*after}), kept, new, survives)


def _evenly(bounds: Sequence[tuple[int, int]], n: int) -> tuple[int, ...]:
    """Return how many of n columns each node holds, the preferred ones first, as even as they may.

    For what the planner gives up: an object that is too wide, or labels that are too many.
    """
    held = [kept for kept, _ in bounds]
    for level in range(1, n + 1):
        for index, (_, most) in enumerate(bounds):
            if held[index] < min(level, most) and sum(held) < n:
                held[index] += 1
    return tuple(held)


def _equivalent(
    layout: Layout, filled: _Filling, node: bytes, targets: frozenset[bytes]
) -> set[bytes]:
    """Return the nodes that are exactly as good as one of a plan."""
    host = layout.host(node)
    return {
        other
        for other in targets
        if layout.host(other)[1:] == host[1:]
        and filled.kept[other] == filled.kept[node]
        and (other == layout.own) == (node == layout.own)
    }


def _place_displaced(layout: Layout, able: frozenset[bytes]) -> Move | None:
    kept = Counter(n for c, n in enumerate(layout.columns) if c not in layout.displaced)
    # A node that lost a column may lose it again.
    losers = {layout.columns[column] for column in layout.displaced}
    choices = (able - {layout.own} - losers, able - {layout.own}, able)
    plans = [(plan, among) for among in choices if (plan := _fill(layout, kept, among))]
    if not plans:
        return None
    filled, targets = max(plans, key=lambda each: (each[0].placing, each[0].meets, each[0].spread))
    column = min(layout.displaced)
    before = layout.columns[column]
    node = next((node for node in filled.new if node != before), filled.new[0])
    alike = _equivalent(layout, filled, node, targets)
    return Move(column, frozenset((alike - {before}) or alike))


def _nodes_to_relieve(layout: Layout, moves: int) -> Iterator[tuple[bytes, ...]]:
    """Yield choices of nodes that give up columns; equivalent choices only once."""
    held = Counter(layout.columns)
    seen: set[tuple[tuple[object, ...], ...]] = set()
    for nodes in combinations(sorted(layout.columns), moves):
        given = Counter(nodes)
        kinds = tuple(sorted((*layout.host(n)[1:], held[n] * 256 + given[n]) for n in given))
        if kinds not in seen:
            seen.add(kinds)
            yield nodes


def _restore_contract(layout: Layout, able: frozenset[bytes]) -> Move | None:
    """Return the first of the fewest moves after which the contract is kept; None if none do."""
    if not layout.movable or layout.keeps_contract:
        return None
    free = _fill(layout, Counter(), able | frozenset(layout.columns))
    if free is None or not free.meets:
        return None
    tried = 0
    for moves in range(1, len(layout.columns) + 1):
        best: tuple[_Filling, tuple[bytes, ...], frozenset[bytes]] | None = None
        for targets in (able - {layout.own}, able):
            for nodes in _nodes_to_relieve(layout, moves):
                tried += 1
                if tried > MOVES_TRIED_MAX:
                    return None
                kept = Counter(layout.columns) - Counter(nodes)
                filled = _fill(layout, kept, targets - {*nodes})
                if filled is None or not filled.meets or filled.placing < moves:
                    continue
                if best is None or filled.survives > best[0].survives:
                    best = filled, nodes, targets
            if best is not None:
                filled, given, among = best
                alike = _equivalent(layout, filled, filled.new[0], among) - {*given}
                column = max(c for c, holder in enumerate(layout.columns) if holder in given)
                return Move(column, frozenset(alike))
    return None


def _balance(layout: Layout, able: frozenset[bytes]) -> Move | None:
    """Return a move from the node with most columns to one with at least two fewer.

    None that would let the object survive less of any kind.
    """
    load = Counter(layout.columns)
    if not able or not load:
        return None
    fewest = min(load[node] for node in able)
    least = {node for node in able if load[node] == fewest}
    most = max(load.values())
    if most - fewest < 2:
        return None
    crowded = max(node for node, held in load.items() if held == most)
    column = max(c for c, node in enumerate(layout.columns) if node == crowded)
    before = _survives(layout)
    moved = {node: layout.placed(column, node) for node in (least - {layout.own}) or least}
    worth = {node: _survives(after) for node, after in moved.items()}
    best = max((survives for survives in worth.values() if survives.meets(before)), default=None)
    found = frozenset(node for node, survives in worth.items() if survives == best)
    return Move(column, found) if found else None


def _survives(layout: Layout) -> Contract:
    return survival([layout.host(node) for node in layout.columns], layout.m)
