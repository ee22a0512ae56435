"""The node's own home: its databases, its backup, and leaving the network."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen

from xsc.api.endpoint import Endpoint, Key, Model, Nothing, absent, get, post


class Fsck(Model):
    """Whether every root and hash is checked."""

    deep: bool = False
    work: Annotated[str, MaxLen(64)] = ""
    """Under which id `/v1/work` says how far it is."""


class Damaged(Model):
    """A body that cannot be given back."""

    sequence: int
    locate: str
    customer: Key
    lease_id: Key
    size_bytes: int
    reason: str
    kind: Literal["shard", "record"]
    segment: int | None = absent(default=None)
    column: int | None = absent(default=None)


class Audit(Model):
    """What a check of the shard store and of the space found."""

    bodies: int
    bytes_held: int
    bytes_counted: int
    index_faults: tuple[str, ...]
    damaged: list[Damaged]
    unreadable: tuple[tuple[int, int], ...]
    whole: bool
    space_records: int
    space_faults: tuple[str, ...]
    index: Literal["ok", "wrong", "rebuilt"]
    kept: str | None
    """Where the directory is that was salvaged."""


class DamagedBodies(Model):
    """Bodies that the node knows to be damaged, and how many there are."""

    damaged: list[Damaged]
    count: int


class Collected(Model):
    """What was deleted."""

    expired_bytes: int
    leftover_bytes: int
    objects: int
    deletions_confirmed: int
    deletions_open: int
    deletions_given_up: int
    reclaimed_bytes: int


class Look(Model):
    """How long to wait for the next count at most."""

    wait_ms: Annotated[int, Ge(0), Le(30_000)] = 0


class Stuck(Model):
    """An object that stays, and why."""

    object: str
    owner: Key
    size_bytes: int
    reason: str


class Drain(Model):
    """How far the node is with leaving."""

    state: str
    since_ms: int | None
    total_bytes: int
    left_bytes: int
    left_objects: int
    released_objects: int
    released_bytes: int
    peers_told: int
    peers: int
    stuck_objects: int
    stuck: list[Stuck]
    directories_only_here: list[Key]
    guarded_at_own_cost: int
    owed_micro: int


class Backup(Model):
    """What a backup holds beside the node's records."""

    identity: bool = True
    bodies: bool = True


FSCK = post("/v1/storage/fsck", Fsck, Audit, "Check the node's own databases.")
GC = post("/v1/storage/gc", Nothing, Collected, "Drop what need not be kept.")
DAMAGED = get("/v1/storage/damaged", Nothing, DamagedBodies, "List bodies known to be damaged.")
LEAVE = post("/v1/drain", Nothing, Drain, "Begin to leave the network.", status=202)
DRAIN = get("/v1/drain", Look, Drain, "Say how far the node is with leaving.")
STAY = Endpoint("DELETE", "/v1/drain", Nothing, Drain, "Stay after all.")
PROOF = get("/v1/drain/proof", Nothing, bytes, "Prove where everything lies now.", gives="cbor")
BACKUP = get("/v1/node/backup", Backup, bytes, "Return a backup.", gives="bytes")
