"""Which losses a placement survives, and the placement that survives most.

Nodes fail alone, by site (one power line) and by owner (one update on all of
their machines). A contract names how many of each may be lost, whichever they
are: "2nodes,1site". The planner finds a placement that keeps it if there is one,
and of those one that survives the most nodes, then sites, then owners; columns
are spread as evenly over nodes as that allows, earlier hosts first.

A node without a label may stand anywhere: its columns count as lost with every
site (or owner) that is. So a contract over sites refuses nodes that do not say
where they are, rather than hope.

The plan is a flow: columns run through the caps of site, node and owner
(servers of happiness, as Tahoe-LAFS has it, with caps above one). That it is
optimal is tested against brute force over all networks of up to nine nodes in
up to four sites. Design: docs/design/storage.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import SHARDS_MAX

_TERM = re.compile(r"([0-9]{1,3})(node|site|owner)s?")
UNBOUNDED = 10**6
EFFORT_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Host:
    """A node that can hold columns, and the domains in which it fails."""

    node: bytes
    site: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Survival:
    """How many nodes, sites and owners can be lost, whichever they are."""

    nodes: int = 0
    sites: int = 0
    owners: int = 0

    def meets(self, asked: Survival) -> bool:
        """Say whether at least as much survives as was asked for."""
        return (
            self.nodes >= asked.nodes and self.sites >= asked.sites and self.owners >= asked.owners
        )

    def to_text(self) -> str:
        """Return the form that `parse` reads; "0nodes" where nothing is asked."""
        parts = [
            f"{count}{name}{'' if count == 1 else 's'}"
            for count, name in ((self.nodes, "node"), (self.sites, "site"), (self.owners, "owner"))
            if count
        ]
        return ",".join(parts) or "0nodes"


def parse(text: str) -> Survival:
    """Return the contract of a text such as "2nodes", "1site" or "2nodes,1site,1owner".

    Raises:
        ArgumentInvalid: malformed, one term twice, or more than any code survives.
    """
    found: dict[str, int] = {}
    for term in text.replace(" ", "").split(","):
        match = _TERM.fullmatch(term)
        if match is None or match[2] in found or int(match[1]) >= SHARDS_MAX:
            raise ArgumentInvalid(
                f"'{text}' does not say what an object must survive",
                hint="write for example 2nodes, or 2nodes,1site",
            )
        found[match[2]] = int(match[1])
    return Survival(found.get("node", 0), found.get("site", 0), found.get("owner", 0))


def _groups(sizes: Counter[str]) -> tuple[list[int], int]:
    """Return the columns of each known group, most first, and those of unknown ones."""
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


def survival(columns: Sequence[Host], m: int) -> Survival:
    """Return what a placement survives: `columns` is the host of each column."""
    nodes = sorted(Counter(host.node for host in columns).values(), reverse=True)
    sites: Counter[str] = Counter()
    owners: Counter[str] = Counter()
    for host in columns:
        sites[host.site] += 1
        owners[host.owner] += 1
    return Survival(
        _lost_most(nodes, 0, m),
        _lost_most(*_groups(sites), m),
        _lost_most(*_groups(owners), m),
    )


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
    """The flow of columns: source, sites, nodes, owners, sink."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = hosts
        self.sites = sorted({host.site for host in hosts if host.site})
        self.owners = sorted({host.owner for host in hosts if host.owner})
        self.site_of = [self._index(self.sites, host.site) for host in hosts]
        self.owner_of = [self._index(self.owners, host.owner) for host in hosts]

    @staticmethod
    def _index(known: list[str], name: str) -> int:
        return known.index(name) if name else len(known)

    def fill(
        self,
        n: int,
        node_caps: Sequence[int],
        site_caps: Sequence[int],
        owner_caps: Sequence[int],
        kept: Sequence[int],
    ) -> list[int] | None:
        """Return columns a host that keep all caps and add up to n, as even as they allow.

        No host has fewer than it keeps.
        """
        if any(held > cap for held, cap in zip(kept, node_caps, strict=True)):
            return None
        flow = _Flow(self, site_caps, owner_caps, kept)
        if not flow.holds:
            return None
        total = sum(kept)
        if total == n:
            return flow.held
        for level in range(1, min(max(node_caps, default=0), n) + 1):
            caps = [min(cap, level) for cap in node_caps]
            while total < n and flow.push(caps):
                total += 1
            if total == n:
                return flow.held
        return None


class _Flow:
    """Columns that run from sites over nodes to owners, one more at a time."""

    def __init__(
        self,
        network: _Network,
        site_caps: Sequence[int],
        owner_caps: Sequence[int],
        kept: Sequence[int],
    ) -> None:
        self._site_of = network.site_of
        self._owner_of = network.owner_of
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


def _targets(m: int, asked: Survival) -> Iterator[Survival]:
    """Yield what might survive, best first."""
    for nodes in range(m, asked.nodes - 1, -1):
        for sites in range(m, asked.sites - 1, -1):
            for owners in range(m, asked.owners - 1, -1):
                yield Survival(nodes, sites, owners)


Caps = tuple[tuple[int, ...], int]


def _wide_enough(count: int, survive: int, m: int, n: int, *, unknown: bool) -> list[Caps]:
    """Return the caps of a dimension that could hold n columns at all."""
    return [
        (caps, rest)
        for caps, rest in _caps(count, survive, m)
        if (unknown or rest in (0, UNBOUNDED)) and sum(caps) + (rest if unknown else 0) >= n
    ]


@lru_cache(maxsize=1024)
def plan_around(
    hosts: tuple[Host, ...],
    bounds: tuple[tuple[int, int], ...],
    n: int,
    m: int,
    asked: Survival,
) -> tuple[int, ...] | None:
    """Return how many of n columns each host holds where some stay as they are, as `plan`.

    Args:
        hosts: distinct nodes, the preferred ones first.
        bounds: of each host, how many columns stay there, and the most that it may hold.
        n: columns in all, the kept ones included.
        m: columns that may be lost.
        asked: the contract.
    """
    network = _Network(hosts)
    no_site = any(not host.site for host in hosts)
    no_owner = any(not host.owner for host in hosts)
    by_nodes = [_wide_enough(len(hosts), f, m, n, unknown=False) for f in range(m + 1)]
    by_sites = [_wide_enough(len(network.sites), f, m, n, unknown=no_site) for f in range(m + 1)]
    by_owners = [_wide_enough(len(network.owners), f, m, n, unknown=no_owner) for f in range(m + 1)]
    kept = [least for least, _ in bounds]
    effort = 0
    for target in _targets(m, asked):
        for (node_caps, _), (site_caps, site_rest), (owner_caps, owner_rest) in product(
            by_nodes[target.nodes], by_sites[target.sites], by_owners[target.owners]
        ):
            effort += 1
            if effort > EFFORT_MAX:
                return None
            capped = [min(cap, most) for cap, (_, most) in zip(node_caps, bounds, strict=True)]
            held = network.fill(n, capped, (*site_caps, site_rest), (*owner_caps, owner_rest), kept)
            if held is not None:
                return tuple(held)
    return None


def plan(hosts: Sequence[Host], n: int, m: int, asked: Survival) -> tuple[bytes, ...] | None:
    """Return the host of each of n columns, or None where no placement survives what is asked.

    Args:
        hosts: distinct nodes with room, the preferred ones first.
        n: columns; any n - m of them give the object back.
        m: columns that may be lost.
        asked: the contract.

    Exact up to EFFORT_MAX flows, which networks of dozens of nodes stay far
    below for codes with up to four parity shards; beyond it the answer is None.
    """
    assert hosts
    held = plan_around(tuple(hosts), ((0, n),) * len(hosts), n, m, asked)
    if held is None:
        return None
    left = list(held)
    columns: list[bytes] = []
    while len(columns) < n:
        for index, host in enumerate(hosts):
            if left[index]:
                left[index] -= 1
                columns.append(host.node)
    return tuple(columns)


YEAR_MS = 365 * 86_400_000
PPB = 1_000_000_000


def yearly_loss_ppb(spares: int, columns: int, *, node_life_ms: int, repair_ms: int) -> int:
    """Return the chance that an object is lost within a year, in parts per billion.

    A birth-death chain: each column is lost once in `node_life_ms` on average,
    independently, and one lost column at a time is rebuilt within `repair_ms` on
    average. An estimate for people, never a promise: real losses are correlated,
    which is what the contract over sites and owners is about.

    Args:
        spares: columns that may be lost now, the margin; below 0 it is lost.
        columns: columns that are there.
        node_life_ms: mean time to the loss of a node for good.
        repair_ms: mean time until a lost column is rebuilt.
    """
    if spares < 0:
        return PPB
    # Expected time to absorption from `spares` good spares, in exact integers:
    # t(s) = time to lose one more = (1 + back(s) * t(s+1)) / loss(s), from the top.
    scale = 10**12
    lose_later = 0
    total = 0
    for left in range(spares, -1, -1):
        alive = columns - (spares - left)
        mean_ms = node_life_ms * scale // max(alive, 1)
        step = mean_ms
        if left < spares:
            # While one is lost, repair races with the next loss.
            step += mean_ms * lose_later // (repair_ms * scale)
        total += step
        lose_later = step
    # Chance within a year of an exponential with that mean, first two terms.
    rate = YEAR_MS * scale * PPB // total
    return min(PPB, rate - rate * rate // (2 * PPB) if rate < PPB else PPB * 63 // 100)
