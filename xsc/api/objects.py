"""Objects: put, get, list, restore, stat, check, repair, remove.

A capability travels in a header and never in a path, so that no log of requests holds one.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from xsc.api.endpoint import Endpoint, Id, header, model
from xsc.api.market import PassedOver
from xsc.api.problems import Problem

Version = Annotated[int, Ge(0), Le(2**63 - 1)]


@model
class Capability:
    """An object."""

    capability: str = header("XSC-Capability", default="")


@model
class Put:
    """What is stored, and how."""

    name: str = header("XSC-Name", default="")
    size_bytes: Annotated[int, Ge(0), Le(2**62)] | None = header("XSC-Size", default=None)
    survive: str | None = header("XSC-Survive", default=None)
    """What losses it survives: `nodes=2,sites=1`."""
    code: str | None = header("XSC-Code", default=None)
    """K,M: K data shards and M parity shards a segment."""
    resume: str | None = header("XSC-Resume", default=None)
    """The id of an upload that may have broken off: 64 hexadecimal digits."""
    part: str | None = header("XSC-Part", default=None)
    """Of a stored directory: two times 64 hexadecimal digits, in place of a name."""
    wait_for_name: bool = header("XSC-Wait-For-Name", default=False)
    """Answer once the name is at as many peers as the code has data shards."""


@model
class Column:
    """The node that holds one shard of each segment."""

    shard: int
    node: str


@model
class Stored:
    """An object that was stored."""

    capability: str
    size_bytes: int
    name: str
    version: int
    hosts: list[Column]
    survives_nodes: int
    survives: str
    warnings: list[str]
    passed_over: list[PassedOver]


@model
class Get(Capability):
    """An object, or a range of its bytes."""

    range: str | None = header("Range", default=None)


@model
class Upload:
    """How much of it is stored."""

    stored_bytes: int


@model
class Under:
    """Objects whose names begin so."""

    prefix: str = header("XSC-Prefix", default="")
    versions: bool = header("XSC-Versions", default=False)
    """Whether all versions are listed."""


@model
class Ending:
    """A host whose lease ends soon."""

    node: str
    ends_ms: int | None
    reason: str


@model
class Object:
    """One version of a name."""

    name: str
    version: int
    capability: str
    size_bytes: int
    created_ms: int
    margin: int
    ends_ms: int | None
    ending: list[Ending]


@model
class Objects:
    """Objects of this node."""

    objects: list[Object]


@model
class Name:
    """A name, and one of its versions."""

    name: str = header("XSC-Name", default="")
    version: Version | None = header("XSC-Version", default=None)


@model
class Versions(Name):
    """The versions of a name."""

    deleting: bool = header("XSC-Deleting", default=False)
    """Whether those count that some host has yet to delete."""


@model
class Capabilities:
    """The capabilities of a name's versions, the newest first."""

    capabilities: list[str]


@model
class Restored:
    """The number of the version that was made."""

    version: int


@model
class Directory:
    """A stored directory."""

    part: str = header("XSC-Part", default="")


@model
class Part:
    """A file that was stored for it."""

    part: str
    capability: str
    created_ms: int


@model
class Parts:
    """The files that were stored for it."""

    parts: list[Part]


@model
class Code:
    """k data shards and m parity shards."""

    k: int
    m: int


@model
class Host:
    """One column: ok, missing, corrupt or unreachable."""

    shard: int
    node: str | None
    state: str


@model
class Stat:
    """What the hosts say of an object."""

    size_bytes: int
    code: Code
    hosts: list[Host]
    readable: bool
    margin: int
    healable: bool
    ends_ms: int | None
    ending: list[Ending]


@model
class Check(Capability):
    """An object, and whether every shard is read."""

    deep: bool = False


@model
class Domains:
    """In how many domains of a kind the good columns are."""

    known: int
    unknown: int


@model
class BadShard:
    """A shard that is not what its manifest says."""

    segment: int
    shard: int
    node: str
    reason: str


@model
class Introducer:
    """Who introduced how many of an object's hosts."""

    id: str
    name: str
    hosts: int
    brought: int


@model
class Checked(Stat):
    """What an object's placement is worth."""

    survives: str
    domains: dict[str, Domains]
    contract: str | None
    contract_kept: bool
    yearly_loss_ppb: int
    read_bytes: int
    bad: list[BadShard]
    introducers: list[Introducer]


@model
class Moved:
    """A column that another node holds now."""

    shard: int
    from_: str
    to: str


@model
class Repaired:
    """What a repair did."""

    margin: int
    moved: list[Moved]
    left: list[int]
    reason: str
    patched: int
    waiting: int


@model
class Removed:
    """Which hosts confirmed a deletion."""

    confirmed: list[str]
    unconfirmed: list[str]
    name: str
    receipts: dict[str, bytes]


PUT = Endpoint("POST", "/v1/objects", Put, Stored, "Store a stream.", takes="bytes", status=201)
LIST = Endpoint("GET", "/v1/objects", Under, Objects, "List the objects of this node.")
NAMED = Endpoint("GET", "/v1/objects/named", Versions, Capabilities, "Find versions of a name.")
RESTORE = Endpoint(
    "POST", "/v1/objects/restore", Name, Restored, "Make an older version the newest."
)
PARTS = Endpoint("GET", "/v1/objects/parts", Directory, Parts, "List files of a directory.")
UPLOAD = Endpoint("GET", "/v1/uploads/{id}", Id, Upload, "Say how much of a put is stored.")
GET = Endpoint("GET", "/v1/object", Get, bytes, "Read an object.", gives="bytes")
REMOVE = Endpoint("DELETE", "/v1/object", Capability, Removed, "Delete an object.")
STAT = Endpoint("GET", "/v1/object/stat", Capability, Stat, "Ask the hosts of an object.")
CHECK = Endpoint("GET", "/v1/object/check", Check, Checked, "Say what a placement is worth.")
REPAIR = Endpoint("POST", "/v1/object/repair", Capability, Repaired, "Repair an object now.")
FAULT = Endpoint("GET", "/v1/requests/{id}", Id, Problem, "Say why an answer broke off.")
ENDPOINTS = (
    *(PUT, LIST, NAMED, RESTORE, PARTS, UPLOAD),
    *(GET, REMOVE, STAT, CHECK, REPAIR, FAULT),
)
