"""Paths in the space: which texts are paths, and the one place where XSC's own are made.

A path is parts joined by `/`. Parts have letters, digits and `_ . ~ -` of ASCII only, so
that no two paths look alike and a path means the same in a file system, a URL and a shell.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from xsc.base import encoding, errors
from xsc.base.ids import short, to_text
from xsc.space.limits import PART_BYTES_MAX, PATH_BYTES_MAX, PATH_PARTS_MAX

_PART = re.compile(rf"(?!\.\.?\Z)[A-Za-z0-9_.~-]{{1,{PART_BYTES_MAX}}}")


def fault_of(path: str) -> str | None:
    """Return why a text is no path, or None where it is one."""
    if len(path.encode(errors="surrogatepass")) > PATH_BYTES_MAX:
        return f"a path has at most {PATH_BYTES_MAX} bytes"
    parts = path.split("/")
    if len(parts) > PATH_PARTS_MAX:
        return f"a path has at most {PATH_PARTS_MAX} parts"
    if not all(map(_PART.fullmatch, parts)):
        return (
            f"each part of a path has 1 to {PART_BYTES_MAX} of the characters A-Z a-z 0-9 _ . ~ -,"
            " and is not . or .."
        )
    return None


def check_path(path: str) -> str:
    """Return a path that a peer sent.

    Raises:
        RecordInvalid: it is none.
    """
    if fault := fault_of(path):
        raise errors.RecordInvalid(f"not a path: {fault}")
    return path


def parse_address(text: str) -> tuple[str | None, str]:
    """Return owner and path of `OWNER:path` or `path` as a user gave it.

    The path may be empty, which means everything of the owner. The owner is an id or a name.

    Raises:
        ArgumentInvalid: the path is none.
    """
    owner, colon, path = text.rpartition(":")
    path = path.removesuffix("/")
    if path and (fault := fault_of(path)):
        raise errors.ArgumentInvalid(f"not a path: {fault}", hint="write [OWNER:]part/part")
    if colon and not owner:
        raise errors.ArgumentInvalid("the owner before the colon is missing")
    return owner or None, path


def absent(path: str, owner: bytes | None = None) -> errors.NotFound:
    """Return the error of a path at which nothing is, in the own space or that of `owner`."""
    where = "xsc space ls" if owner is None else f"xsc space ls {short(owner)}:"
    return errors.NotFound(f"nothing is at '{path}'", hint=f"`{where}` shows what is there")


def is_under(path: str, prefix: str) -> bool:
    """Say whether a path is the prefix or below it; all paths are below the empty prefix."""
    return not prefix or path == prefix or path.startswith(prefix + "/")


def matches(path: str, pattern: str) -> bool:
    """Say whether a path is one of a pattern's, in which `*` stands for one part."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        want in {"*", part} for part, want in zip(parts, wanted, strict=True)
    )


def below(*parts: str | int | bytes) -> str:
    """Return the path of parts: bytes are written as base32.

    Raises:
        ArgumentInvalid: it would be none; a part may itself be a path.
    """
    path = "/".join(to_text(part) if isinstance(part, bytes) else str(part) for part in parts)
    if fault := fault_of(path):
        raise errors.ArgumentInvalid(f"not a path: {fault}")
    return path


_SYSTEMS = frozenset(
    {"allocation", "causality", "compute", "ledger", "market", "nodes", "objects", "programs"}
    | {"subscriptions"}
)


def is_systems(path: str) -> bool:
    """Return whether a path is among XSC's own, where no program of a user publishes."""
    return path.partition("/")[0] in _SYSTEMS


class UserSpacePaths:
    """Every path that XSC itself uses, or its beginning: hashes, ids and names come `below`."""

    ALLOCATION = "allocation"
    RECOGNITION = "allocation/recognition"
    COMMITMENT = "allocation/commitment"
    ALLOCATION_STATE = "allocation/state"
    CLEARINGS = "market/clearings"
    """The records of a provider's clearings, by id."""
    NAMED = "market/named"
    """The values that they name, by name."""
    PROGRAMS = "programs"
    SERVICES = "programs/services"
    """What an owner deploys, by name."""
    NODES = "nodes"
    ADDRESS = "nodes/address"
    DEPARTURE = "nodes/departure"
    MEMBERS = "nodes/members"
    """Peers of its circle that a node introduces, by numbers from 0 on."""
    INTERVAL = "causality/interval"
    GRANTS = "causality/grants"
    """What a giver granted, by number."""
    REGISTRY = "programs/registry"
    """Definitions of programs, by hash; at ACTIVE, a mark of each that is active."""
    ACTIVE = "programs/active"
    CELLS = "cells"
    """What a source contributes to a cell, by name."""
    COMPUTE = "compute"
    """What a program keeps from frame to frame, by hash."""
    PROVENANCE = "compute/provenance"
    """By program and event."""
    SUBSCRIPTIONS = "subscriptions"
    SUBSCRIBED_HERE = "subscriptions/local"
    """Own paths that are subscribed to."""
    SUBSCRIBED_AT_PEERS = "subscriptions/peers"
    """By owner and path."""
    LEDGER = "ledger"
    CHECKPOINT = "ledger/checkpoint"
    FORKS = "ledger/forks"
    """Proofs that a node forked its ledger, by author."""

    @classmethod
    def variable(cls, program: bytes, name: str) -> str:
        """Return where a variable of a program is."""
        return below(cls.COMPUTE, program, "variables", name)

    @classmethod
    def state(cls, program: bytes) -> str:
        """Return where it is kept how a program stands."""
        return below(cls.COMPUTE, program, "state")

    @classmethod
    def result(cls, program: bytes, output: str) -> str:
        """Return where an output of a program is that has no path of its own."""
        return below(cls.COMPUTE, program, "results", output)

    @classmethod
    def writer(cls, path: str) -> str:
        """Return where the hash of the program is that publishes at a path."""
        return below(cls.PROVENANCE, encoding.tagged_sha256("program_writer", path.encode()))


_RESERVED: Final = (
    *("causality", "compute", "ledger", "market", "subscriptions"),
    *(UserSpacePaths.ADDRESS, UserSpacePaths.DEPARTURE, UserSpacePaths.MEMBERS),
    *(UserSpacePaths.REGISTRY, UserSpacePaths.ACTIVE, UserSpacePaths.ALLOCATION_STATE),
)


def is_reserved(path: str) -> bool:
    """Return whether XSC alone writes at a path, on behalf of the node."""
    return any(is_under(path, prefix) for prefix in _RESERVED)


DECLARED: Final = frozenset(
    {
        UserSpacePaths.NODES,
        UserSpacePaths.INTERVAL,
        UserSpacePaths.GRANTS,
        UserSpacePaths.RECOGNITION,
        UserSpacePaths.COMMITMENT,
        UserSpacePaths.ALLOCATION_STATE,
        UserSpacePaths.CLEARINGS,
        UserSpacePaths.NAMED,
        UserSpacePaths.PROGRAMS,
        UserSpacePaths.SERVICES,
        UserSpacePaths.PROVENANCE,
        UserSpacePaths.SUBSCRIPTIONS,
        UserSpacePaths.LEDGER,
    }
)
"""Prefixes of XSC's own that are sections by themselves."""
_SHARES: Final = 240
_SHARED_IN_TWO: Final = frozenset({"cells", "compute"})
"""Programs and cells are followed one by one, so that a share is of the first two parts."""
SECTIONS: Final = DECLARED | {f"rest/{number}" for number in range(_SHARES)}
"""A head has one hash for each of these; who follows a path takes all of its section."""


@lru_cache(maxsize=4_096)
def _share_of(first: str) -> str:
    digest = encoding.tagged_sha256("space_section", first.encode())
    return f"rest/{int.from_bytes(digest[:4], 'big') % _SHARES}"


def section_of(path: str) -> str:
    """Return the section of a path: its longest declared prefix, else a share of the rest."""
    first, _, below = path.partition("/")
    two = f"{first}/{below.partition('/')[0]}" if below else first
    for prefix in (two, first):
        if prefix in DECLARED:
            return prefix
    return _share_of(two if first in _SHARED_IN_TWO else first)


@lru_cache(maxsize=1_024)
def sections_of(prefix: str) -> frozenset[str]:
    """Return the sections that can have paths under a prefix."""
    if not prefix or prefix in _SHARED_IN_TWO:
        return SECTIONS
    return frozenset({name for name in DECLARED if is_under(name, prefix)} | {section_of(prefix)})
