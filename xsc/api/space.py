"""The space: get, put, delete, list, watch, count, diagnose and compact.

A record is named as `at=[OWNER:]PATH` and a prefix as `under=[OWNER:]PREFIX`. OWNER is this node or
a peer, by name or id; without it this node is meant.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from xsc.api.endpoint import Endpoint, Key, Model, Nothing, OfNode, get, listing, post
from xsc.api.programs import Program

Value = str | dict[str, str] | None
"""Text, {"base64": text} where it is none, or null where it was deleted."""


class At(Model):
    """A record."""

    at: str = ""


class Get(At):
    """A record: the newest, or a replaced one of this node."""

    sequence: Annotated[int, Ge(0), Le(2**63 - 1)] | None = None


class Under(Model):
    """The records under a prefix."""

    under: str = ""


class Written(Model):
    """A record that was written."""

    owner: Key
    path: str
    sequence: int


class Record(Written):
    """A record without its value."""

    size_bytes: int


class Stamp(Model):
    """A record's place in causality."""

    domain: Key
    """Stamps of two domains cannot be compared."""
    events: bytes


class Valued(Record):
    """A record with its value."""

    stamp: Stamp
    value: Value


class Change(Written):
    """A value that changed."""

    value: Value


class Subscription(Model):
    """What this node follows of another."""

    owner: Key
    prefix: str
    cursor: int
    """The sequence up to which a head proves that everything is here."""
    head_age_ms: int | None
    """Since the date of the owner's newest head that came here; null without any."""


class SpaceNode(OfNode):
    """A peer, as its space shows it."""

    head_age_ms: int | None
    active: bool
    """Whether its newest head is at most 60 s old."""


class Causality(Model):
    """This node's place in causality; null before its first write."""

    domain: Key | None
    interval: bytes | None
    stamp_bytes: int


class Diagnostics(Model):
    """What is listed, followed and active."""

    programs: list[Record]
    """What this node lists under `programs`."""
    running: list[Program]
    """The registered programs."""
    subscriptions: list[Subscription]
    nodes: list[SpaceNode]
    causality: Causality


class Stats(Model):
    """How much the space holds."""

    records: int
    live_bytes: int
    """Of live records and their values."""
    disk_bytes: int
    subscriptions: int
    """Of this node at its peers."""
    received_bytes: int
    """Of the answers of peers for the space, since the node started; likewise of those to peers."""
    sent_bytes: int


GET = get("/v1/space/record", Get, Valued, "Read a record.")
PUT = Endpoint("PUT", "/v1/space/record", At, Written, "Write a value.", takes="bytes")
REMOVE = Endpoint("DELETE", "/v1/space/record", At, Written, "Delete a record.")
LIST = listing("/v1/space/records", Under, Record, "List records.")
VERSIONS = listing("/v1/space/versions", At, Record, "List replaced values.", rows="records")
WATCH = get("/v1/space/watch", Under, Change, "Follow changes.", gives="events")
STATS = get("/v1/space/stats", Nothing, Stats, "Count what the space holds.")
DIAGNOSTICS = get("/v1/space/diagnostics", Nothing, Diagnostics, "Show what is followed.")
COMPACT = post("/v1/space/compact", Nothing, Stats, "Drop what need not be kept.")
