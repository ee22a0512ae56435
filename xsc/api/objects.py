"""Objects: put, get, list, restore, stat, check, repair, remove.

A capability travels in a header and never in a path, so that no log of requests holds one.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen

from xsc.api import market, problems
from xsc.api.endpoint import (
    Endpoint,
    Id,
    Key,
    Model,
    NamedPeer,
    Nothing,
    OfNode,
    get,
    header,
    listing,
    post,
)

Version = Annotated[int, Ge(0), Le(2**63 - 1)]


class Capability(Model):
    """An object."""

    capability: str = header("XSC-Capability", default="")
    """What may read it, `xsc:r:…`, or find and check it, `xsc:v:…`; never left out."""


class Put(Model):
    """What is stored, and how."""

    name: str = header("XSC-Name", default="")
    """Percent-encoded, in UTF-8, as the value of each header is: `a%20b`."""
    size_bytes: Annotated[int, Ge(0), Le(2**62)] | None = header("XSC-Size", default=None)
    survive: str | None = header("XSC-Survive", default=None)
    """What losses it survives: `2nodes`, or `2nodes,1site`."""
    code: str | None = header("XSC-Code", default=None)
    """K,M: K data shards and M parity shards a segment."""
    resume: str | None = header("XSC-Resume", default=None)
    """The id of an upload that may have broken off: 64 hexadecimal digits."""
    part: str | None = header("XSC-Part", default=None)
    """Of a stored directory: two times 64 hexadecimal digits, in place of a name."""
    wait_for_name: bool = header("XSC-Wait-For-Name", default=False)
    """Answer once the name is at as many peers as the code has data shards."""


class Column(Model):
    """The node that holds one shard of each segment."""

    shard: int
    node: Key


class Stored(Model):
    """An object that was stored."""

    capability: str
    size_bytes: int
    name: str
    version: int
    hosts: list[Column]
    survives_nodes: int
    survives: str
    warnings: list[str]
    passed_over: tuple[market.PassedOver, ...]


class Get(Capability):
    """An object, or a range of its bytes."""

    range: str | None = header("Range", default=None)


class Upload(Model):
    """How much of it is stored."""

    stored_bytes: int


class Under(Model):
    """Objects whose names begin so."""

    prefix: str = header("XSC-Prefix", default="")
    """Percent-encoded, in UTF-8."""
    versions: bool = header("XSC-Versions", default=False)
    """Whether all versions are listed."""


class Ending(Model):
    """Until when a host keeps its part of an object."""

    node: Key
    ends_ms: int | None
    """Null: no lease bounds it, or nothing is known of its lease."""
    reason: str = ""
    """Why the lease was not renewed although it is time to."""


class Placed(Model):
    """Where an object stands."""

    size_bytes: int
    margin: int
    """How many more columns may be lost before fewer than k are left; negative: how many lack.
    In a list by which hosts are up and have not denied the lease, and -1 of what a recovery did
    not find: it cannot be read, and its code is not known."""
    ends_ms: int | None
    """When the first of its leases ends as things stand; null: never."""
    ending: list[Ending]
    """The hosts whose leases end soon."""


class Object(Placed):
    """One version of a name."""

    name: str
    version: int
    capability: str
    created_ms: int
    survives_nodes: int
    """How many more nodes may be lost, whichever they are: one may hold several shards."""
    hosts: tuple[Key, ...]
    """The node of each shard, in order, as this node has it; empty where it is not known."""


class Name(Model):
    """A name, and one of its versions."""

    name: str = header("XSC-Name", default="")
    """Percent-encoded, in UTF-8."""
    version: Version | None = header("XSC-Version", default=None)


class Versions(Name):
    """The versions of a name."""

    deleting: bool = header("XSC-Deleting", default=False)
    """Whether those count that some host has yet to delete."""


class Restored(Model):
    """The number of the version that was made."""

    version: int


class Directory(Model):
    """A stored directory."""

    part: str = header("XSC-Part", default="")


class Part(Model):
    """A file that was stored for it."""

    part: str
    capability: str
    created_ms: int


class Code(Model):
    """k data shards and m parity shards."""

    k: int
    m: int


State = Literal["ok", "missing", "corrupt", "unreachable"]


class Host(Model):
    """One column of an object."""

    shard: int
    node: Key | None
    """Null if no node that answered has it."""
    state: State


class Stat(Placed):
    """What the hosts say of an object."""

    code: Code
    hosts: list[Host]
    readable: bool
    healable: bool
    """Whether there are nodes enough to hold what is lost, or the next column that is."""


class Check(Capability):
    """An object, and whether every shard is read."""

    deep: bool = False
    prove: bool = False
    """Whether its hosts are challenged to prove what they hold of it."""
    work: Annotated[str, MaxLen(64)] = ""
    """Under which id `/v1/work` says how far a deep check is."""


class Domains(Model):
    """In how many domains of a kind the good columns are."""

    known: int
    unknown: int


class BadShard(Column):
    """A shard that is not what its manifest says."""

    segment: int
    reason: str


class Proof(OfNode):
    """What a challenge of a host came to."""

    outcome: str
    """ok, bad_proof, missing, timeout, unreachable or prober_void."""
    reason: str
    """Why it is not "ok"; else empty."""
    shards: list[int]
    """Columns that the host did not prove."""


class Introducer(NamedPeer):
    """Who introduced how many of an object's hosts."""

    hosts: int
    """With the introducer itself, if it is one of them."""
    brought: int
    """Without it."""


class Checked(Stat):
    """What an object's placement is worth."""

    survives: str
    """The columns that are good now."""
    domains: dict[str, Domains]
    """By kind, those of the good columns."""
    contract: str | None
    """Under which it was stored."""
    contract_kept: bool
    yearly_loss_ppb: int
    """Estimated chance of loss within a year, parts per billion."""
    read_bytes: int
    """Read and verified by a deep check."""
    bad: list[BadShard]
    proofs: list[Proof] = field(default_factory=list)
    """Of its hosts, where they were challenged."""
    introducers: list[Introducer] = field(default_factory=list)
    """Of the hosts, the one of most of them first."""


class Moved(Model):
    """A column that another node holds now."""

    shard: int
    from_: Key
    to: Key


class Repaired(Model):
    """What one repair of an object did."""

    margin: int
    """How many more columns could be lost, before the repair."""
    moved: tuple[Moved, ...] = ()
    left: tuple[int, ...] = ()
    """Columns that are lost or must leave their node, and have no new host yet."""
    reason: str = ""
    """Why some are left; empty if none is."""
    patched: int = 0
    """Damaged shards that were stored again at their host."""
    waiting: int = 0
    """Columns of silent nodes whose grace is not over: they count as lost only after it."""


class Repair(Model):
    """A repair of an own object that runs, or that moved something of late."""

    object: Key
    """As lines of the log name it, by its beginning."""
    name: str
    """Empty where it has none, or is gone by now."""
    runs: bool
    at_ms: int
    """When it began, while it runs; else when it ended."""
    moved: tuple[Moved, ...]
    left: int
    """Columns that are lost or must leave their node, and have no new host yet."""
    reason: str
    """Why some are left; empty if none is."""


class Together(Model):
    """Small objects that are read in one call."""

    capabilities: list[str]


class Contents(Model):
    """The content of each, in the same order."""

    contents: list[bytes]


class Removed(Model):
    """Which hosts confirmed a deletion."""

    confirmed: list[Key]
    unconfirmed: list[Key]
    name: str
    receipts: dict[str, bytes]


PUT = Endpoint("POST", "/v1/objects", Put, Stored, "Store a stream.", takes="bytes", status=201)
LIST = listing("/v1/objects", Under, Object, "List the objects of this node.")
NAMED = listing("/v1/objects/named", Versions, str, "Find versions of a name.", rows="capabilities")
CONTENTS = post("/v1/objects/contents", Together, Contents, "Read small objects together.")
RESTORE = post("/v1/objects/restore", Name, Restored, "Make an older version the newest.")
PARTS = listing("/v1/objects/parts", Directory, Part, "List files of a directory.")
UPLOAD = get("/v1/uploads/{id}", Id, Upload, "Say how much of a put is stored.")
GET = get("/v1/object", Get, bytes, "Read an object.", gives="bytes")
REPAIRS = listing("/v1/objects/repairs", Nothing, Repair, "List repairs of now and of late.")
REMOVE = Endpoint("DELETE", "/v1/object", Capability, Removed, "Delete an object.")
STAT = get("/v1/object/stat", Capability, Stat, "Ask the hosts of an object.")
CHECK = get("/v1/object/check", Check, Checked, "Say what a placement is worth.")
REPAIR = post("/v1/object/repair", Capability, Repaired, "Repair an object now.")
FAULT = get("/v1/requests/{id}", Id, problems.Problem, "Say why an answer broke off.")
