"""Services: deploy, list, roll back, remove, and the log of requests."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen

from xsc.api.endpoint import Endpoint, Key, Model, Nothing, listing, named, post
from xsc.api.jobs import Brought
from xsc.base import limits

Concurrency = Annotated[int, Ge(1), Le(limits.SERVICE_CONCURRENCY_MAX)]
SERVICE_CONCURRENCY_DEFAULT = 4

WAIT_MS_MAX = 30_000
"""How long a request for rows of a log may wait for the next one."""


class Deploy(Brought):
    """A module as a service; the module follows, unless it is named."""

    name: Annotated[str, MaxLen(256)]
    version: Annotated[str, MaxLen(256)] | None = None
    concurrency: Concurrency = SERVICE_CONCURRENCY_DEFAULT


State = Literal["serving", "off", "placed", "unpaid"]
"""off: its node listens nowhere."""


class Service(Model):
    """One service, owned or held here."""

    name: str
    owner: Key
    owner_name: str = named("owner")
    node: Key
    node_name: str = named("node")
    version: str
    versions: tuple[str, ...]
    """The active one first, then by when they were last active."""
    url: str
    """Where it answers; empty where its node listens nowhere."""
    state: State
    fault: str
    """Why it does not answer, as far as that is known."""
    running: int
    waiting: int
    requests: int
    """Since the node started; likewise the others."""
    failures: int
    refused: int


class Named(Model):
    """An own service."""

    name: str


class Rollback(Named):
    """A service, and the version that it goes back to; what was active before where null."""

    to: Annotated[str, MaxLen(256)] | None = None


class Undeployed(Named):
    """What was removed, and what the holder has not been told."""

    warning: str


class Log(Named):
    """So many rows of a log: the newest, or those after one, for which it waits so long."""

    after: Annotated[int, Ge(0), Le(2**63 - 1)] | None = None
    n: Annotated[int, Ge(0), Le(limits.SERVICE_LOG_ROWS_MAX)] = 100
    wait_ms: Annotated[int, Ge(0), Le(WAIT_MS_MAX)] = 0


class Served(Model):
    """One request."""

    number: int
    """Grows with each request of the service."""
    at_ms: int
    request_id: str
    version: str
    method: str
    path: str
    """Without the query, which may hold what is nobody's business."""
    status: int
    fuel_used: int
    memory_peak_bytes: int
    wall_ms: int
    amount_micro: int
    trap: str
    """Empty if the run came to its end."""
    note: str
    """The end of what it wrote to standard error."""
    receipt: bytes
    """The signed receipt; empty if nobody pays."""


DEPLOY = post("/v1/services", Deploy, Service, "Deploy a module.", takes="framed", status=201)
LIST = listing("/v1/services", Nothing, Service, "List the services.")
ROLLBACK = post("/v1/services/{name}/rollback", Rollback, Service, "Go back to a version.")
UNDEPLOY = Endpoint("DELETE", "/v1/services/{name}", Named, Undeployed, "Remove a service.")
LOG = listing("/v1/services/{name}/log", Log, Served, "List its requests.", rows="requests")
