"""Requests and responses of every endpoint of `/v1` (docs/design/node.md).

Text forms: node ids are base32, amounts micro-credits, sizes bytes, times
milliseconds since 1970, blobs base64.
"""

from __future__ import annotations

from typing import Annotated, Literal, Unpack

from pydantic import BaseModel, ConfigDict, Field

from xsc.base.jobs import Grant, JobOptions, JobSpec, Mode
from xsc.base.limits import (
    ARGUMENTS_MAX,
    COMPUTE_WAIT_MS,
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
    shared_through: str | None
    """The introducer with whose other peers it shares that limit."""


_FRAMING = ("module_bytes", "stdin_bytes")
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
    wait_ms: int = Field(default=COMPUTE_WAIT_MS, ge=0, le=TIMEOUT_MS_MAX)
    """How long it waits where other runs of this node at the provider hold the fuel it needs."""
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

    def spec(self, module: bytes, stdin: bytes, **own: Unpack[JobOptions]) -> JobSpec:
        """Return the job, with the module and the standard input that came with it.

        Args:
            module: the WebAssembly binary.
            stdin: standard input, or the lines of a batch.
            own: what the node puts in the place of what the request says.
        """
        told = {**vars(self), **own, "module": module, "stdin": stdin}
        for name in _FRAMING:
            del told[name]
        return JobSpec(**told)


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


Moment = Annotated[int, Field(ge=0, lt=2**63)]


class SlotStatement(Body):
    """`PUT /v1/market/slots/{id}`: what changes; null is left as it is."""

    quantity: int | None = None
    """MiB, or millions of fuel for each 64 MiB of the memory limit."""
    quantity_min: int | None = None
    from_ms: Moment | None = None
    to_ms: Moment | None = None
    every: str | None = None
    """A recurrence such as `Mon-Fri 20:00-08:00 Europe/Berlin`."""
    price_micro: int | None = None
    """The reserve of an offer, or the most that a need pays; micro-credits a quantum."""
    filters: dict[str, str] | None = None
    location: str | None = None
    rule: Literal["weighted-uniform", "proportional"] | None = None


class SlotMade(SlotStatement):
    """`POST /v1/market/slots`."""

    role: Literal["offer", "need"]
    kind: Literal["storage", "egress", "compute"]
    quantity: int


class SlotWritten(Body):
    """What making, editing and withdrawing a slot or need answer."""

    id: str


class SlotRow(Body):
    """One row of `GET /v1/market/slots`."""

    id: str
    role: Literal["offer", "need"]
    node: str
    name: str
    kind: Literal["storage", "egress", "compute"]
    quantity: int
    price: int
    """The reserve of an offer, or the most that a need pays; micro-credits a quantum."""
    windows: list[tuple[int, int]]
    """Each from a moment to another one, which is not part of it."""


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


class SpaceSubscription(Body):
    """What this node follows of another."""

    owner: str
    prefix: str
    cursor: int
    """The sequence up to which a head proves that everything is here."""
    head_age_ms: int | None
    """Since the date of the owner's newest head that came here; null without any."""


class SpaceNode(Body):
    """A peer, as its space shows it."""

    node: str
    name: str
    head_age_ms: int | None
    active: bool
    """Whether its newest head is at most 60 s old."""


class SpaceCausality(Body):
    """This node's place in causality; null before its first write."""

    domain: str | None
    interval: str | None
    """As base64."""
    stamp_bytes: int


class ProgramModule(Body):
    """A module that comes with a program: the name that the document has for it."""

    name: str = Field(max_length=1024)
    size_bytes: int = Field(ge=0)


class ProgramRequest(Body):
    """The JSON in front of `POST /v1/programs`; the document and its modules follow."""

    form: Literal["toml", "json"]
    document_bytes: int = Field(ge=0)
    modules: list[ProgramModule] = Field(default_factory=list, max_length=1024)
    activate: bool = False


class ProgramRow(Body):
    """One row of `GET /v1/programs`."""

    id: str
    hash: str
    state: Literal["registered", "active", "backing_off", "oscillates", "failed"]
    frame: int
    fault: str
    """Why it does not run on, or ''."""
    publications: int
    """Frames that wrote something, since the node started or it was activated."""
    built_in: bool
    """Whether it comes with XSC, which runs it by itself."""


class ProgramResults(ProgramRow):
    """`GET /v1/programs/{hash}`; likewise each event of `GET /v1/programs/{hash}/watch`."""

    variables: dict[str, str | None]
    """As text; null without a value that counts."""
    outputs: dict[str, str | None]
    errors: dict[str, str]
    """By computation or variable."""
    stale: list[str]
    """Computations whose inputs are missing."""


class ProgramSet(Body):
    """`PUT /v1/programs/{hash}/variables/{name}`."""

    value: str


class ProgramWhy(Body):
    """`GET /v1/provenance`: a value, and what is behind it."""

    path: str
    """In the space; of other inputs the computation and output, or the variable."""
    owner: str
    input: str
    """As which input it is read; empty for the value itself."""
    value: str | None
    """As text; null where its record has the hash alone."""
    verified: bool
    """Whether the signatures and hashes of it and of all that is behind it hold."""
    function: str | None
    """Null where no program gave it."""
    version: str | None
    """The hash of the function, or SHA-256 of the module, in hexadecimal."""
    replayed: bool | None
    """Whether a second run gave it again; null where none could be made, or was not asked for."""
    note: str
    inputs: list[ProgramWhy]


class SpaceDiagnostics(Body):
    """`GET /v1/space/diagnostics`."""

    programs: list[SpaceRow]
    """What this node lists under `programs`."""
    running: list[ProgramRow]
    """The registered programs."""
    subscriptions: list[SpaceSubscription]
    nodes: list[SpaceNode]
    causality: SpaceCausality


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
