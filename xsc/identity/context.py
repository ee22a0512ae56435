"""What all services of a node share: who it is, its ports to the world, and its log."""

from __future__ import annotations

from dataclasses import dataclass

from xsc.base.clock import Clock, Entropy, Executor
from xsc.base.keyvalue import Commit, KeyValue
from xsc.base.log import Log
from xsc.base.peering import Caller
from xsc.identity.keys import KeyPair


@dataclass(frozen=True, slots=True)
class Context:
    """The values that every service of one node is made with."""

    key: KeyPair
    network: bytes
    """The id of the network; every signature covers it."""
    clock: Clock
    entropy: Entropy
    executor: Executor
    caller: Caller
    log: Log
    state: KeyValue
    """Keeps what outlives the process; each service has tables of its own in it."""
    commit: Commit
    """Writes to it, synced, together with whatever else is to be written."""
