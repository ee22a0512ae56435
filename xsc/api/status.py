"""What the node is and does, and the link to its pages for a browser."""

from __future__ import annotations

from typing import Literal

from xsc.api.endpoint import Key, Model, Nothing, get, listing, post
from xsc.api.peers import Probed


class PeersStatus(Model):
    """How many peers there are, and how many answer."""

    known: int
    healthy: int
    reached_by: int
    """Of those that answer, how many say that they reach this node."""
    not_reached_by: int
    """How many say that they try and do not."""
    clock_refused_by: int
    """How many refused the last probe because the clocks are too far apart."""


class StorageStatus(Model):
    """What the node's shard store holds."""

    capacity_bytes: int
    used_bytes: int
    reserved_bytes: int
    offered_bytes: int
    """In own slots whose window is open."""
    granted_bytes: int
    """Of these to needs of others."""
    disk_free_bytes: int
    """What the disk has left beside `disk_reserve`."""


class TrafficStatus(Model):
    """Bodies of requests and answers between this node and its peers, since it was started."""

    sent_bytes: int
    received_bytes: int


class ComputeStatus(Model):
    """What the node's sandbox does."""

    workers: int
    running: int
    queued: int
    offered_fuel_per_s: int
    """In own slots whose window is open."""
    granted_fuel_per_s: int
    """Of these to needs of others."""


class LeasesStatus(Model):
    """Leases that this node took, were not renewed, and end within `lease_warning`."""

    ending: int
    objects: int
    """Own objects with something under them."""
    first_end_ms: int | None
    reasons: list[str]
    """Why, each once."""


class Version(Model):
    """What runs."""

    name: str
    version: str
    network: str


class Status(Version):
    """The node."""

    id: Key
    state: Literal["running", "leaving"]
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
    alerts: int
    """Those that nobody has acknowledged."""


class PeerHealth(Probed):
    """What probes say of one peer, and how it has served."""

    quality_ppm: int
    skew_ms: int | None
    false_clearing: Key | None
    """A clearing that it signed and that does not recompute."""


class Link(Model):
    """What logs one browser in, once."""

    url: str
    good_ms: int
    """For how long."""


VERSION = get("/v1/version", Nothing, Version, "Say which XSC the node runs.")
STATUS = get("/v1/status", Nothing, Status, "Say what the node is and does.")
HEALTH = listing("/v1/health", Nothing, PeerHealth, "Say what probes found.", rows="peers")
LOGIN = post("/v1/dashboard/login", Nothing, Link, "Make a link to the dashboard.", status=201)
