"""Requests and responses of every endpoint of `/v1` (docs/design/node.md).

Text forms: node ids are base32, amounts micro-credits, sizes bytes, times
milliseconds since 1970, blobs base64.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from xsc.base.jobs import Grant, JobSpec, Mode
from xsc.base.limits import (
    ARGUMENTS_MAX,
    FUEL_MAX,
    INVITATION_TTL_MS,
    MEMORY_BYTES_MAX,
    MODULE_BYTES_MAX,
    PPM,
    SERVICE_CONCURRENCY_DEFAULT,
    SERVICE_CONCURRENCY_MAX,
    STDIN_BYTES_MAX,
    TIMEOUT_MS_MAX,
)


class Body(BaseModel):
    """A JSON document: strict, without unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Argument = Annotated[str, Field(max_length=65536)]


class PeersStatus(Body):
    """How many peers there are, and how many answer."""

    known: int
    healthy: int
    reached_by: int
    """Of those that answer, how many say that they reach this node."""
    not_reached_by: int
    """How many say that they try and do not."""
    clock_refused_by: int
    """How many refused the last probe because the clocks are too far apart."""


class StorageStatus(Body):
    """What the node's shard store holds."""

    capacity_bytes: int
    used_bytes: int
    reserved_bytes: int


class TrafficStatus(Body):
    """Bodies of requests and answers between this node and its peers, since it was started."""

    sent_bytes: int
    received_bytes: int


class ComputeStatus(Body):
    """What the node's sandbox does."""

    workers: int
    running: int
    queued: int


class LeasesStatus(Body):
    """Leases that this node took, were not renewed, and end within `lease_warning`."""

    ending: int
    objects: int
    """Own objects with something under them."""
    first_end_ms: int | None
    reasons: list[str]
    """Why, each once."""


class Status(Body):
    """`GET /v1/status`."""

    id: str
    name: str
    version: str
    network: str
    state: Literal["running"]
    home: str
    api_url: str
    peer_url: str
    addresses: list[str]
    uptime_s: int
    peers: PeersStatus
    storage: StorageStatus
    compute: ComputeStatus
    leases: LeasesStatus
    traffic: TrafficStatus


class InvitationRequest(Body):
    """`POST /v1/peers/invitations`."""

    ttl_ms: int = Field(default=INVITATION_TTL_MS, ge=1000, le=30 * 86_400_000)


class JoinRequest(Body):
    """`POST /v1/peers`."""

    invitation: str = Field(max_length=16_384)
    name: str | None = Field(default=None, max_length=64)


class RenameRequest(Body):
    """`POST /v1/peers/{who}/rename`."""

    name: str = Field(max_length=64)


class RecogniseRequest(Body):
    """`POST /v1/peers/{who}/recognise`."""

    weight_ppm: int = Field(ge=0, le=PPM)


class LimitRequest(Body):
    """`POST /v1/ledger/limit`."""

    peer: str = Field(max_length=256)
    limit_micro: int = Field(ge=0, le=2**62)


class PaymentRequest(Body):
    """`POST /v1/ledger/off-books`."""

    peer: str = Field(max_length=256)
    amount_micro: int = Field(ge=0, le=2**62)


class Empty(Body):
    """A request that says all by its path."""


class Peer(Body):
    """One row of `GET /v1/peers`."""

    id: str
    name: str
    addresses: list[str]
    state: str
    reaches_us: bool | None
    """Whether the peer says that it reaches this node; null before it has said anything."""
    clock_refused: bool
    """Whether it refused the last probe because the clocks are too far apart."""
    introducer: str | None
    """Who introduced it; null of a peer that an invitation made known."""
    introducer_name: str | None
    hops: int
    """Introductions between the two nodes."""
    confirmed: bool
    """Whether the operator answers for an introduced peer as for an invited one."""
    availability_ppm: int
    response_ms: int
    last_seen_ms: int | None
    recognised_ppm: int
    recognises_ppm: int
    tier: str
    balance_micro: int
    limit_micro: int


_FRAMING = {"module", "module_bytes", "stdin_bytes"}
"""Fields of a `JobRequest` that say what follows it."""


class JobRequest(Body):
    """The JSON in front of the module in `POST /v1/jobs`."""

    mode: Mode
    function: str = Field(default="_start", max_length=1024)
    arguments: tuple[Argument, ...] = Field(default=(), max_length=1024)
    env: dict[str, Argument] = Field(default_factory=dict, max_length=1024)
    inputs: dict[str, str] = Field(default_factory=dict, max_length=ARGUMENTS_MAX)
    fuel: int | None = Field(default=None, ge=1, le=FUEL_MAX)
    memory_bytes: int | None = Field(default=None, ge=1, le=MEMORY_BYTES_MAX)
    timeout_ms: int | None = Field(default=None, ge=1, le=TIMEOUT_MS_MAX)
    on: str | None = Field(default=None, max_length=256)
    local: bool = False
    module: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of a module that came lately, instead of its bytes; `module_bytes` is 0 then."""
    module_bytes: int = Field(ge=0, le=MODULE_BYTES_MAX)
    stdin_bytes: int = Field(default=0, ge=0, le=STDIN_BYTES_MAX)
    """Of a batch: lines of arguments, parted by spaces."""
    item_fuel: int | None = Field(default=None, ge=1, le=FUEL_MAX)
    """Of a batch: most fuel of one call."""
    verify: str | None = Field(default=None, max_length=16)
    """How many of how many providers must agree: "2of3"."""
    grants: tuple[Grant, ...] = Field(default=(), max_length=2)
    """What the program may see of the provider's world."""
    store: str | None = Field(default=None, max_length=1024)
    """Store the files that a run leaves, named so and by their path."""

    def spec(self, module: bytes, stdin: bytes) -> JobSpec:
        """Return the job, with the module and the standard input that came with it."""
        told = {name: value for name, value in self if name not in _FRAMING}
        return JobSpec(**told, module=module, stdin=stdin)


class DeployRequest(Body):
    """The JSON in front of the module in `POST /v1/services`."""

    name: str = Field(max_length=256)
    version: str | None = Field(default=None, max_length=256)
    env: dict[str, Argument] = Field(default_factory=dict, max_length=1024)
    fuel: int | None = Field(default=None, ge=1, le=FUEL_MAX)
    memory_bytes: int | None = Field(default=None, ge=1, le=MEMORY_BYTES_MAX)
    timeout_ms: int | None = Field(default=None, ge=1, le=TIMEOUT_MS_MAX)
    concurrency: int = Field(default=SERVICE_CONCURRENCY_DEFAULT, ge=1, le=SERVICE_CONCURRENCY_MAX)
    on: str | None = Field(default=None, max_length=256)
    module: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of a module that a service has or that came lately, as in `JobRequest`."""
    module_bytes: int = Field(ge=0, le=MODULE_BYTES_MAX)


class RollbackRequest(Body):
    """`POST /v1/services/{name}/rollback`."""

    to: str | None = Field(default=None, max_length=256)


class Service(Body):
    """One row of `GET /v1/services`; likewise of a deployment or a rollback."""

    name: str
    owner: str
    owner_name: str
    node: str
    node_name: str
    version: str
    versions: list[str]
    """The active one first, then by when they were last active."""
    url: str
    state: Literal["serving", "off", "placed", "unpaid"]
    fault: str
    running: int
    waiting: int
    requests: int
    """Since the node started; likewise the others."""
    failures: int
    refused: int


class ServiceRequest(Body):
    """One row of `GET /v1/services/{name}/log`."""

    number: int
    at_ms: int
    request_id: str
    version: str
    method: str
    path: str
    status: int
    fuel_used: int
    memory_peak_bytes: int
    wall_ms: int
    amount_micro: int
    trap: str
    note: str
    receipt: str
    """Empty where nobody pays."""


SpaceText = str | dict[str, str] | None
"""A value of the space: text, {"base64": text} where it is none, or null where it was deleted."""


class SpaceWritten(Body):
    """What `PUT /v1/space/record` and `DELETE /v1/space/record` answer."""

    owner: str
    path: str
    sequence: int


class SpaceRow(SpaceWritten):
    """One row of `GET /v1/space/records`."""

    size_bytes: int


class SpaceStamp(Body):
    """A record's place in causality."""

    domain: str
    """Stamps of two domains cannot be compared."""
    events: str


class SpaceValue(SpaceRow):
    """`GET /v1/space/record`."""

    stamp: SpaceStamp
    value: SpaceText


class SpaceChange(SpaceWritten):
    """One event of `GET /v1/space/watch`."""

    value: SpaceText


class SpaceStats(Body):
    """`GET /v1/space/stats`; likewise of a compaction."""

    records: int
    live_bytes: int
    """Of live records and their values."""
    disk_bytes: int
    subscriptions: int
    """Of this node at its peers."""
    received_bytes: int
    """Of the answers of peers for the space, since the node started; likewise of those to peers."""
    sent_bytes: int
