"""How likely it is that an object is lost within a year.

Nodes, sites and owners are each lost for good once in their life on average, at any
moment alike and each by itself; with a site all of its nodes are lost. What is lost is
rebuilt at the end of every round, at nodes like those lost. A round is twice the time
that a repair takes, so that a lost column waits as long as that for it on average. The
object is lost with the first round that takes more columns than may be lost.

That is exact for up to nine nodes, in integers, and up to OVERLAPS_MAX domains that
overlap others; beyond, some of these are taken for one, and the figure is too high,
never too low. A domain that one node has to itself adds nothing to what that node
risks; one that names no site counts so. It is an estimate for people, never a
promise. Introducers are not in it: deceit has no mean time. Design: docs/design/storage.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from xsc.base.units import ceil_div
from xsc.storage.object.durability import HostLabels

OVERLAPS_MAX = 8
"""Failure domains that overlap others, up to which the yearly loss of an object is exact."""

YEAR_MS: Final = 365 * 86_400_000
PPB: Final = 1_000_000_000
_ONE: Final = 10**30
"""Chances are whole numbers of 10^-30."""


def yearly_loss_ppb(
    columns: Sequence[HostLabels], m: int, *, lives_ms: Sequence[int], repair_ms: int
) -> int:
    """Return the chance that an object is lost within a year, in parts per billion, rounded up.

    Args:
        columns: the host of each column that is there.
        m: how many of those may be lost; below 0 it is lost.
        lives_ms: mean time to the loss for good of a domain, by kind (`durability.KINDS`); kinds
            beyond them are left out.
        repair_ms: mean time until a lost column is rebuilt.
    """
    if m < 0:
        return PPB
    rounds, rest_ms = divmod(YEAR_MS, 2 * repair_ms)
    kept = _power(_kept(columns, m, _chances(lives_ms, 2 * repair_ms)), rounds)
    kept = kept * _kept(columns, m, _chances(lives_ms, rest_ms)) // _ONE
    return ceil_div((_ONE - kept) * PPB, _ONE)


def _chances(lives_ms: Sequence[int], span_ms: int) -> list[int]:
    """Return by kind how likely a domain outlives a span: exp(-span / life)."""
    return [_exp(span_ms * _ONE // life_ms) for life_ms in lives_ms]


def _exp(exponent: int) -> int:
    """Return e to minus that power."""
    if exponent > 70 * _ONE:
        return 0
    halvings = (exponent // _ONE).bit_length()
    part = exponent >> halvings
    total = term = _ONE
    number = 1
    while term:
        term = term * part // (number * _ONE)
        total += -term if number % 2 else term
        number += 1
    return _power(total, 1 << halvings)


def _power(base: int, exponent: int) -> int:
    result = _ONE
    while exponent:
        if exponent & 1:
            result = result * base // _ONE
        base = base * base // _ONE
        exponent >>= 1
    return result


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes that are lost together, and how likely none of that happens."""

    nodes: frozenset[bytes]
    kept: int


def _kept(columns: Sequence[HostLabels], m: int, chances: Sequence[int]) -> int:
    """Return how likely no more than m columns are lost, by how likely a domain of a kind is kept.

    Once it is known which domains of all other kinds are lost, those of the kind that has
    most are lost each by itself, and so are the nodes of each.
    """
    held = Counter(host.node for host in columns)
    shared: list[list[_Group]] = []
    for kind, chance in enumerate(chances[1:], 1):
        names = {host.node: host[kind] for host in columns if host[kind]}
        members = [frozenset(n for n in names if names[n] == name) for name in set(names.values())]
        shared.append([_Group(nodes, chance) for nodes in members if len(nodes) > 1])
    shared.sort(key=len)
    inner = shared.pop() if shared else []
    outer = _bounded(group for groups in shared for group in groups)
    total = 0
    for fates in product((True, False), repeat=len(outer)):
        weight, gone = _ONE, frozenset[bytes]()
        for group, is_kept in zip(outer, fates, strict=True):
            weight = weight * (group.kept if is_kept else _ONE - group.kept) // _ONE
            gone |= frozenset() if is_kept else group.nodes
        left = {node: count for node, count in held.items() if node not in gone}
        total += (
            weight * _spared(left, m - held.total() + sum(left.values()), chances[0], inner) // _ONE
        )
    return total


def _bounded(groups: Iterable[_Group]) -> list[_Group]:
    """Return at most OVERLAPS_MAX groups, of which some stand for several."""
    left = sorted(groups, key=lambda group: (-len(group.nodes), sorted(group.nodes)))
    while len(left) > OVERLAPS_MAX:
        one, other = left.pop(), left.pop()
        left.append(_Group(one.nodes | other.nodes, one.kept * other.kept // _ONE))
    return left


def _spared(left: dict[bytes, int], m: int, chance: int, groups: Sequence[_Group]) -> int:
    """Return how likely no more than m columns of the nodes that are left are lost."""
    if m < 0:
        return 0
    lost = [_ONE, *[0] * m]
    """By number of columns: how likely so many are lost of the nodes looked at so far."""
    grouped: set[bytes] = set()
    for group in groups:
        members = [node for node in left if node in group.nodes]
        grouped.update(members)
        single = lost
        for node in members:
            single = _either(single, single, left[node], chance)
        lost = _either(single, lost, sum(left[node] for node in members), group.kept)
    for node in left.keys() - grouped:
        lost = _either(lost, lost, left[node], chance)
    return sum(lost)


def _either(kept: Sequence[int], gone: Sequence[int], columns: int, chance: int) -> list[int]:
    """Return how likely each number of columns is lost, as something is kept with a chance or not.

    Args:
        kept: the numbers where it is.
        gone: the numbers of all others where it is not; its columns come on top.
        columns: how many go with it.
        chance: that it is kept.
    """
    return [
        (kept[n] * chance + (gone[n - columns] * (_ONE - chance) if n >= columns else 0)) // _ONE
        for n in range(len(kept))
    ]
