"""Where an object's columns are, and what that is worth.

A placement is what the node that looks after an object last knew: a plan, which
proves nothing and is shown to nobody but custodians. Readers follow what hosts say
that they hold. Every segment's shard of one column is at the same node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from xsc.base.limits import SEGMENT_BYTES, SHARDS_MAX
from xsc.base.units import ceil_div, held_bytes
from xsc.identity.envelope import Id32, Record
from xsc.storage.object import durability, erasure
from xsc.storage.object.inventory import HeldObject
from xsc.storage.object.manifest import ContractField, Manifest, expected_digest, segments_of

DEFAULT_LOSSES_MAX = 2
"""Nodes that an object must survive at most where no contract is asked for."""

State = Literal["ok", "missing", "corrupt", "unreachable"]
"""A column's state: the worst of its segments."""


class Placement(Record):
    """The node of each column, as the owner or a custodian keeps it for itself."""

    k: Annotated[int, Field(ge=1, le=SHARDS_MAX)]
    columns: Annotated[tuple[Id32, ...], Field(min_length=1, max_length=SHARDS_MAX)]
    """The node of each column, 0 to n-1."""
    survive: ContractField
    """The contract, as the manifest has it."""

    @property
    def m(self) -> int:
        """How many columns may be lost."""
        return len(self.columns) - self.k

    @property
    def contract(self) -> durability.Contract:
        """The contract."""
        return durability.Contract(*self.survive)


def placement_of(manifest: Manifest, columns: Sequence[bytes]) -> Placement:
    """Return the placement of an object whose columns are at these nodes."""
    return Placement(k=manifest.k, columns=tuple(columns), survive=manifest.survive)


def assign(hosts: Sequence[bytes], n: int) -> tuple[bytes, ...]:
    """Return a host for each of n columns: distinct where there are n, else spread evenly.

    No two hosts differ by more than one column; earlier hosts get more.
    """
    assert hosts
    return tuple(hosts[column % len(hosts)] for column in range(n))


def columns_of(columns: Sequence[bytes], node: bytes) -> tuple[int, ...]:
    """Return the columns that one node holds."""
    return tuple(column for column, holder in enumerate(columns) if holder == node)


def losses_survived(columns: Sequence[bytes], m: int) -> int:
    """Return how many nodes can be lost, whichever they are, with k columns left."""
    return durability.survival([durability.HostLabels(node) for node in columns], m).nodes


def nodes_needed(code: erasure.Code, survive_nodes: int) -> int | None:
    """Return how many nodes the code needs to survive that many losses; None: never enough."""
    for nodes in range(1, code.n + 1):
        if losses_survived(assign([bytes([i]) for i in range(nodes)], code.n), code.m) >= (
            survive_nodes
        ):
            return nodes
    return None


def default_contract(code: erasure.Code, nodes: int) -> durability.Contract:
    """Return the contract of a put that names none: what the planner reaches, if all are up.

    Args:
        code: of the object.
        nodes: how many are known, this one included.
    """
    columns = assign([node.to_bytes() for node in range(min(nodes, code.n))], code.n)
    return durability.Contract(min(DEFAULT_LOSSES_MAX, losses_survived(columns, code.m)))


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a durability that was asked for cannot be met, and what would help."""

    reason: str
    hint: str


def check_code(code: erasure.Code, contract: durability.Contract) -> Shortfall | None:
    """Return why a code can never survive what is asked, whatever the nodes, or None."""
    most = max(contract)
    if most <= code.m:
        return None
    return Shortfall(
        f"a code with {code.m} parity shards never survives more than {code.m} "
        f"{durability.KINDS[contract.index(most)]}s, asked for was {most}",
        f"use --code {code.k},{most} on {code.k + most} nodes",
    )


def shortfall(
    known: Sequence[durability.HostLabels], code: erasure.Code, contract: durability.Contract
) -> Shortfall | None:
    """Return why no placement at the known nodes survives what is asked, or None if one does."""
    most = durability.attainable(known, code.n, code.m, contract)
    if most == contract:
        return None
    hosts = {host.node: host for host in known}
    # The planner may give up on a wide code: then it is said of one placement of many.
    columns = durability.plan(known, code.n, code.m, most) or assign([*hosts], code.n)
    nodes, *others = durability.domains_of([hosts[node] for node in columns])
    where = f"{code.n} shards on {nodes.known} {'node' if nodes.known == 1 else 'nodes'}"
    short = next(i for i, wanted in enumerate(contract) if most[i] < wanted)
    if short == 0:
        return Shortfall(
            f"{where} survive the loss of {most.nodes}, asked for was {contract.nodes}",
            f"it takes {nodes_needed(code, contract.nodes)} nodes",
        )
    kind, named = durability.KINDS[short], others[short - 1].known
    hint = f"it takes more nodes at other {kind}s, or a code with more parity shards"
    if kind == "introducer":
        hint = "answer for some of them (`xsc peer confirm`), or invite others"
    elif not all(host[short] for host in known):
        hint = (
            f"a node that does not say its {kind} counts as lost with every {kind}: "
            f"set `{kind}` in its configuration"
        )
    return Shortfall(
        f"{where} at {named} known {kind if named == 1 else kind + 's'} survive the loss of "
        f"{most[short]} {kind if most[short] == 1 else kind + 's'}, "
        f"asked for was {contract[short]}",
        hint,
    )


def warnings_of(columns: Sequence[bytes], code: erasure.Code, own: bytes) -> list[str]:
    """Return what people should know about a placement, in sentences."""
    nodes = len(set(columns))
    if nodes == 1 and columns[0] == own:
        return ["the object does not survive the loss of this node"]
    if nodes == 1:
        return ["the object does not survive the loss of the one node that holds it"]
    if nodes < code.n:
        survived = losses_survived(columns, code.m)
        text = (
            f"{code.n} shards lie on {nodes} nodes: the object survives the loss of "
            f"{survived} of them, on {code.n} nodes it would be {code.m}"
        )
        return [text]
    return []


def column_states(
    manifest: Manifest, columns: Sequence[bytes], answers: Mapping[bytes, HeldObject | None]
) -> list[State]:
    """Return the state of each column from what its host said; None: it said nothing."""
    return [column_state(manifest, column, answers[node]) for column, node in enumerate(columns)]


def column_state(manifest: Manifest, column: int, held: HeldObject | None) -> State:
    """Return the state of one column at a host, from what that said; None: it said nothing."""
    if held is None:
        return "unreachable"
    if manifest.inline is not None:
        return held.record
    rows = [row for row in held.columns if row.column == column]
    digest = expected_digest(manifest, column)
    if any(row.digest == digest and not row.damaged for row in rows):
        return "ok"
    # As many segments as there must be, but others: not what was stored.
    if any(row.damaged or row.segments >= segments_of(manifest) for row in rows):
        return "corrupt"
    return "missing"


def likely_columns(
    holders: Sequence[Sequence[bytes]], known: Sequence[bytes], own: bytes
) -> tuple[bytes, ...]:
    """Return a node for each column, by what nodes say that they hold.

    Args:
        holders: by column, who says that it holds it.
        known: hosts of the object, for columns of which nobody says it: they may be silent.
        own: this node, where there is nobody else.
    """
    ranked = [sorted(set(nodes), key=lambda node: (node not in known, node)) for nodes in holders]
    column_of: dict[bytes, int] = {}

    def matched(column: int, tried: set[bytes]) -> bool:
        """Give a column a node of its own, for which other columns may take another."""
        for node in ranked[column]:
            if node not in tried:
                tried.add(node)
                if node not in column_of or matched(column_of[node], tried):
                    column_of[node] = column
                    return True
        return False

    for column in range(len(holders)):
        matched(column, set())
    chosen = {column: node for node, column in column_of.items()}
    for column, nodes in enumerate(ranked):
        if nodes and column not in chosen:
            taken = Counter(chosen.values())
            chosen[column] = min(nodes, key=taken.__getitem__)
    for column in range(len(holders)):
        if column not in chosen:
            free = [node for node in known if node not in chosen.values()]
            chosen[column] = free[0] if free else own
    return tuple(chosen[column] for column in range(len(holders)))


@dataclass(frozen=True, slots=True)
class Condition:
    """What the states of an object's columns add up to."""

    readable: bool
    margin: int
    """How many more columns may be lost before fewer than k are left; negative: how many lack."""
    healable: bool
    """Whether there are nodes enough to hold what is lost, or the next column that is."""


def condition(states: Sequence[State], k: int, spare_nodes: int, *, inline: bool) -> Condition:
    """Return the condition of an object.

    Args:
        states: one a column.
        k: columns needed.
        spare_nodes: nodes that are up and hold no good column.
        inline: whether every host holds the whole object: it is readable from any
            one, and its margin is still counted against k, never above the truth.
    """
    good = sum(state == "ok" for state in states)
    readable = good >= (1 if inline else k)
    lost = len(states) - good
    return Condition(
        readable=readable,
        margin=max(good - k, 0) if readable else good - k,
        healable=readable and spare_nodes >= max(1, lost),
    )


def host_bytes(size_bytes: int, code: erasure.Code, hosts: int) -> int:
    """Return what the shards at the busiest of that many hosts will count for."""
    return column_bytes(size_bytes, code) * ceil_div(code.n, hosts)


def column_bytes(size_bytes: int, code: erasure.Code) -> int:
    """Return what one column of an object that is not inline counts for at its host."""
    segments, tail = divmod(size_bytes, SEGMENT_BYTES)
    size = segments * code.shard_bytes(SEGMENT_BYTES) + code.shard_bytes(tail)
    return held_bytes(size, ceil_div(size_bytes, SEGMENT_BYTES))


def record_bytes(size_bytes: int, code: erasure.Code) -> int:
    """Return an upper bound of what the manifest of an object counts for at each host."""
    each = 34 * code.n + 40
    return held_bytes(1024 + min(size_bytes, 4096) + each * ceil_div(size_bytes, SEGMENT_BYTES))
