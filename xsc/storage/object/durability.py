"""Which losses a placement survives, and the placement that survives most.

Nodes fail alone, by site (one power line), by owner (one update on all of their
machines) and by introducer (who may have made all of them up). A contract names how
many of each may be lost, whichever they are: "2nodes,1site". The planner finds a
placement that keeps it if there is one, and of those one that survives the most nodes,
then sites, owners and introducers; columns are spread as evenly over nodes as that
allows, earlier hosts first.

A node without a label may stand anywhere: its columns count as lost with every
site (or owner) that is there. So a contract over sites refuses nodes that do not say
where they are, rather than hope.

The plan is a flow: columns run through the caps of site, node and owner
(servers of happiness, as Tahoe-LAFS has it, with caps above one). Further kinds
of domains are held by branching over it. That it is optimal is tested against
brute force over all networks of up to nine nodes in up to four sites. What a
placement is worth within a year: `loss`. Design: docs/design/storage.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count, permutations, product, takewhile
from operator import gt
from typing import Final, NamedTuple, Self

from xsc.base import errors, limits, units

UNBOUNDED = 10**6
EFFORT_MAX = 10_000
"""Columns that a plan places, in all flows that it tries: about a second for dozens of nodes."""
STEPS_MAX = 100_000
"""Caps and targets that a plan looks at."""
PLANNED_PARITY_MAX = 16
"""Columns of wider codes are spread evenly: a search would take minutes."""


class HostLabels(NamedTuple):
    """A node that can hold columns, and the domains in which it fails.

    A field is a kind of failure domain: one more is planned with, asked for in contracts and
    counted in estimates.
    """

    node: bytes
    site: str = ""
    owner: str = ""
    introducer: str = ""
    """Whose word this node has for it: another node's, or its own where it knows it directly."""


KINDS: Final = HostLabels._fields
"""The kinds of failure domains, in the order in which contracts have them."""
_TERM = re.compile(rf"([0-9]{{1,3}})({'|'.join(KINDS)})s?")


class Contract(tuple[int, ...]):
    """How many domains of each kind can be lost, whichever they are: in the order of `KINDS`."""

    __slots__ = ()

    def __new__(cls, *counts: int) -> Self:
        """Take the counts by kind; none of a kind that is left out."""
        return super().__new__(cls, (*counts, *(0,) * (len(KINDS) - len(counts))))

    @property
    def nodes(self) -> int:
        """How many nodes can be lost."""
        return self[0]

    def meets(self, contract: Contract) -> bool:
        """Say whether at least as much survives as was asked for."""
        return all(had >= wanted for had, wanted in zip(self, contract, strict=True))

    def shown_for(self, contract: Contract) -> Contract:
        """Return what to say of it: of introducers only to who asked.

        Where all hosts are known directly, each is its own, and it would only repeat the nodes.
        """
        kind = KINDS.index("introducer")
        return self if contract[kind] else Contract(*self[:kind], 0, *self[kind + 1 :])

    def to_text(self) -> str:
        """Return the form that `parse` reads; "0nodes" where nothing is asked."""
        terms = [counted(count, kind) for kind, count in zip(KINDS, self, strict=True) if count]
        return ",".join(terms) or "0nodes"


def counted(count: int, kind: str) -> str:
    """Return a term of a contract: "1site", "2sites"."""
    return f"{count}{kind}{'' if count == 1 else 's'}"


def parse(text: str) -> Contract:
    """Return the contract of a text such as "2nodes", "1site" or "2nodes,1site,1owner".

    Raises:
        ArgumentInvalid: malformed, one term twice, or more than any code survives.
    """
    found: dict[str, int] = {}
    for term in text.replace(" ", "").split(","):
        match = _TERM.fullmatch(term)
        if match is None or match[2] in found or int(match[1]) >= limits.SHARDS_MAX:
            raise errors.ArgumentInvalid(
                f"'{text}' does not say what an object must survive",
                hint="write for example 2nodes, or 2nodes,1site",
            )
        found[match[2]] = int(match[1])
    return Contract(*(found.get(kind, 0) for kind in KINDS))


def _groups(domains: Iterable[bytes | str]) -> tuple[list[int], int]:
    """Return the columns of each known domain, most first, and those of unknown ones."""
    sizes = Counter(domains)
    unknown = sizes.pop("", 0)
    return sorted(sizes.values(), reverse=True), unknown


def _lost_most(known: list[int], unknown: int, m: int) -> int:
    """Return how many groups can be lost; every loss takes the unknown columns along."""
    lost = unknown
    for survived, size in enumerate(known):
        lost += size
        if lost > m:
            return survived
    return len(known)


def survival(columns: Sequence[HostLabels], m: int) -> Contract:
    """Return what a placement survives: `columns` is the host of each column."""
    return Contract(*(_lost_most(*_groups(domains), m) for domains in zip(*columns, strict=True)))


class Domains(NamedTuple):
    """In how many domains of a kind some columns lie."""

    known: int
    unknown: int
    """Nodes that do not name theirs."""


def domains_of(columns: Collection[HostLabels]) -> tuple[Domains, ...]:
    """Return by kind in how many domains columns lie."""
    return tuple(
        Domains(len({*names} - {""}), len({host.node for host in columns if not host[kind]}))
        for kind, names in enumerate(zip(*columns, strict=True))
    ) or (Domains(0, 0),) * len(KINDS)


def _top_caps(survive: int, budget: int) -> Iterator[tuple[int, ...]]:
    """Yield caps of which the largest `survive` together come to the budget.

    Largest first; the last one is for all other groups too. Caps that come to
    less allow less, and are left out.
    """

    def parts(left: int, count: int, most: int) -> Iterator[tuple[int, ...]]:
        if count == 1:
            if 0 < left <= most:
                yield (left,)
            return
        for first in range(min(left - (count - 1), most), 0, -1):
            for rest in parts(left - first, count - 1, first):
                yield (first, *rest)

    yield from parts(budget, survive, budget)


def _placements(count: int, larger: Sequence[int]) -> Iterator[dict[int, int]]:
    """Yield every way to give the larger caps to some of the groups."""
    if not larger:
        yield {}
        return
    for chosen in permutations(range(count), len(larger)):
        yield dict(zip(chosen, larger, strict=True))


def _caps(count: int, survive: int, m: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the caps of `count` known groups and the cap of all unknown columns together."""
    if survive == 0:
        yield (UNBOUNDED,) * count, UNBOUNDED
        return
    for unknown in range(m + 1):
        for caps in _top_caps(survive, m - unknown):
            *large, rest = caps
            for chosen in _placements(count, [cap for cap in large if cap > rest]):
                yield tuple(chosen.get(group, rest) for group in range(count)), unknown


class _Network:
    """The flow of columns: source, sites, nodes, owners, sink; and the domains beside it."""

    def __init__(self, hosts: Sequence[HostLabels]) -> None:
        self.known = [sorted(set(names) - {""}) for names in zip(*hosts, strict=True)]
        """By kind: the names of its domains."""
        self.domain_of = [
            [names.index(host[kind]) if host[kind] else len(names) for host in hosts]
            for kind, names in enumerate(self.known)
        ]
        """By kind and host: the number of its domain, the last for those that name none."""
        self.effort = 0
        """Columns that were placed, in all flows that were tried."""

    def fill(self, n: int, caps: Sequence[Sequence[int]], kept: Sequence[int]) -> list[int] | None:
        """Return columns a host that keep all caps and add up to n, as even as they allow.

        Args:
            n: columns in all.
            caps: by kind, the most columns of each domain, of all unknown ones last; of nodes,
                of each host.
            kept: the least of each host.
        """
        held = self._flow(n, caps, kept)
        if held is None:
            return None
        for kind in range(3, len(caps)):
            for domain, cap in enumerate(caps[kind]):
                there = [i for i, of in enumerate(self.domain_of[kind]) if of == domain]
                if sum(held[i] for i in there) > cap:
                    # Of these at least one holds less wherever the caps are kept.
                    fewer = ((i, held[i] - 1) for i in there if held[i] > kept[i])
                    filled = (self.fill(n, _capped(caps, i, most), kept) for i, most in fewer)
                    return next((found for found in filled if found is not None), None)
        return held

    def _flow(self, n: int, caps: Sequence[Sequence[int]], kept: Sequence[int]) -> list[int] | None:
        """Return what `fill` does with regard to nodes, sites and owners alone."""
        self.effort += 1
        node_caps = caps[0]
        if self.effort > EFFORT_MAX or any(map(gt, kept, node_caps)):
            return None
        flow = _Flow(self, caps[1], caps[2], kept)
        if not flow.holds:
            return None
        total = sum(kept)
        if total == n:
            return flow.held
        for level in range(1, min(max(node_caps, default=0), n) + 1):
            even = [min(cap, level) for cap in node_caps]
            while total < n and flow.push(even):
                total += 1
                self.effort += 1
            if total == n:
                return flow.held
        return None


def _capped(caps: Sequence[Sequence[int]], host: int, most: int) -> list[Sequence[int]]:
    """Return the caps with another one of one host."""
    return [[*caps[0][:host], most, *caps[0][host + 1 :]], *caps[1:]]


class _Flow:
    """Columns that run from sites over nodes to owners, one more at a time."""

    def __init__(
        self,
        network: _Network,
        site_caps: Sequence[int],
        owner_caps: Sequence[int],
        kept: Sequence[int],
    ) -> None:
        _, self._site_of, self._owner_of = network.domain_of[:3]
        self._site_left = list(site_caps)
        self._owner_left = list(owner_caps)
        self._kept = kept
        self.held = list(kept)
        for host, held in enumerate(kept):
            self._site_left[self._site_of[host]] -= held
            self._owner_left[self._owner_of[host]] -= held

    @property
    def holds(self) -> bool:
        """Whether what is kept is within the caps."""
        return min(*self._site_left, *self._owner_left) >= 0

    def push(self, caps: Sequence[int]) -> bool:
        """Place one more column, moving others where that makes room; False where none does.

        Breadth first over the hosts that could take a column. A host is entered
        from its site where that has room, or after another host of the site gives
        a column back; it is left through its owner where that has room, or by
        taking over the column of another host of the owner. A full host leads
        nowhere: what it could pass on within its site can be entered directly.
        """
        count = len(self.held)
        entered: list[int | None] = [None] * count
        """For a host that is reached: whose column its site has back, -1 for none."""
        queue = [i for i in range(count) if self._site_left[self._site_of[i]] > 0]
        for i in queue:
            entered[i] = -1
        taker: list[int | None] = [None] * count
        """For a host that gives its column up: to whom."""
        for i in queue:
            if self.held[i] >= caps[i]:
                continue
            owner = self._owner_of[i]
            if self._owner_left[owner] > 0:
                self._move(i, entered, taker)
                return True
            for j in range(count):
                if j == i or self._owner_of[j] != owner or taker[j] is not None:
                    continue
                if self.held[j] <= self._kept[j]:
                    continue
                taker[j] = i
                for other in range(count):
                    if self._site_of[other] == self._site_of[j] and entered[other] is None:
                        entered[other] = j
                        queue.append(other)
        return False

    def _move(self, last: int, entered: list[int | None], taker: list[int | None]) -> None:
        self._owner_left[self._owner_of[last]] -= 1
        i = last
        while True:
            self.held[i] += 1
            giver = entered[i]
            assert giver is not None
            if giver < 0:
                self._site_left[self._site_of[i]] -= 1
                return
            self.held[giver] -= 1
            before = taker[giver]
            assert before is not None
            i = before


@lru_cache(maxsize=1024)
def plan_around(
    hosts: tuple[HostLabels, ...],
    bounds: tuple[tuple[int, int], ...],
    n: int,
    m: int,
    contract: Contract,
) -> tuple[int, ...] | None:
    """Return how many of n columns each host holds where some stay as they are, as `plan`.

    Args:
        hosts: distinct nodes, the preferred ones first.
        bounds: of each host, how many columns stay there, and the most that it may hold.
        n: columns in all, the kept ones included.
        m: columns that may be lost.
        contract: what is asked for.
    """
    if m > PLANNED_PARITY_MAX:
        return None
    network = _Network(hosts)
    unknown = [any(not name for name in names) for names in zip(*hosts, strict=True)]
    steps = count()

    @cache
    def wide_enough(kind: int, survive: int) -> tuple[tuple[int, ...], ...]:
        """Return the caps of a kind, unknown ones last, that could hold n columns at all."""
        # A tuple, as `product` copies a list at every target.
        return tuple(
            (*caps, rest)
            for caps, rest in takewhile(
                lambda _: next(steps) < STEPS_MAX, _caps(len(network.known[kind]), survive, m)
            )
            if (unknown[kind] or rest in (0, UNBOUNDED))
            and sum(caps) + (rest if unknown[kind] else 0) >= n
        )

    mosts = [most for _, most in bounds]
    kept = [least for least, _ in bounds]
    for target in product(*(range(m, least - 1, -1) for least in contract)):
        choices = [wide_enough(kind, survive) for kind, survive in enumerate(target)]
        if next(steps) >= STEPS_MAX:
            return None
        for node_caps, *others in product(*choices):
            held = network.fill(n, [list(map(min, node_caps, mosts)), *others], kept)
            if held is not None:
                return tuple(held)
            if network.effort > EFFORT_MAX:
                return None
    return None


def plan(
    hosts: Sequence[HostLabels], n: int, m: int, contract: Contract
) -> tuple[bytes, ...] | None:
    """Return the host of each of n columns, or None where no placement survives what is asked.

    Args:
        hosts: distinct nodes with room, the preferred ones first.
        n: columns; any n - m of them give the object back.
        m: columns that may be lost.
        contract: what is asked for.

    Exact up to PLANNED_PARITY_MAX, EFFORT_MAX and STEPS_MAX, which networks of dozens of nodes
    stay far below for codes with up to four parity shards; beyond that the columns are
    spread evenly over the first hosts, where that keeps the contract.
    """
    assert hosts
    held = plan_around(tuple(hosts), ((0, n),) * len(hosts), n, m, contract)
    if held is None:
        even = [hosts[column % len(hosts)] for column in range(n)]
        return tuple(host.node for host in even) if survival(even, m).meets(contract) else None
    left = list(held)
    columns: list[bytes] = []
    while len(columns) < n:
        for index, host in enumerate(hosts):
            if left[index]:
                left[index] -= 1
                columns.append(host.node)
    return tuple(columns)


def attainable(hosts: Sequence[HostLabels], n: int, m: int, contract: Contract) -> Contract:
    """Return the most of a contract that a placement survives: of nodes first, then of sites.

    The arguments are those of `plan`, which finds that placement; all of the contract where
    there is one for it.
    """
    most = Contract()
    for kind, wanted in enumerate(contract):
        for losses in range(wanted, 0, -1):
            more = Contract(*most[:kind], losses)
            if plan(hosts, n, m, more) is not None:
                most = more
                break
    return most


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
        lives_ms: mean time to the loss for good of a domain, by kind (`KINDS`); kinds
            beyond them are left out.
        repair_ms: mean time until a lost column is rebuilt.
    """
    if m < 0:
        return PPB
    rounds, rest_ms = divmod(YEAR_MS, 2 * repair_ms)
    kept = _power(_kept(columns, m, _chances(lives_ms, 2 * repair_ms)), rounds)
    kept = kept * _kept(columns, m, _chances(lives_ms, rest_ms)) // _ONE
    return units.ceil_div((_ONE - kept) * PPB, _ONE)


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
