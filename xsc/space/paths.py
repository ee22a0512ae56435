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


def _made(*parts: str) -> str:
    """Return the path of parts.

    Raises:
        ArgumentInvalid: it would be none; a part may itself be a path.
    """
    path = "/".join(parts)
    if fault := fault_of(path):
        raise errors.ArgumentInvalid(f"not a path: {fault}")
    return path


def is_reserved(path: str) -> bool:
    """Return whether XSC alone writes at a path, on behalf of the node."""
    paths = UserSpacePaths
    nodes = (paths.ADDRESS, paths.DEPARTURE, paths.MEMBERS)
    own = (paths.REGISTRY, paths.ACTIVE, paths.ALLOCATION_STATE)
    tops = ("causality", "compute", "ledger", "market", "subscriptions")
    return any(is_under(path, prefix) for prefix in (*tops, *nodes, *own))


_SYSTEMS = frozenset(
    {"allocation", "causality", "compute", "ledger", "market", "nodes", "objects", "programs"}
    | {"subscriptions"}
)


def is_systems(path: str) -> bool:
    """Return whether a path is among XSC's own, where no program of a user publishes."""
    return path.partition("/")[0] in _SYSTEMS


class UserSpacePaths:
    """Makes every path that XSC itself uses. Hashes and node ids are written as base32."""

    ALLOCATION = "allocation"
    RECOGNITION = "allocation/recognition"
    COMMITMENT = "allocation/commitment"
    ALLOCATION_STATE = "allocation/state"
    CLEARINGS = "market/clearings"
    NAMED = "market/named"
    PROGRAMS = "programs"
    SERVICES = "programs/services"
    NODES = "nodes"
    ADDRESS = "nodes/address"
    DEPARTURE = "nodes/departure"
    MEMBERS = "nodes/members"
    PROVENANCE = "compute/provenance"
    INTERVAL = "causality/interval"
    GRANTS = "causality/grants"
    REGISTRY = "programs/registry"
    ACTIVE = "programs/active"
    SUBSCRIPTIONS = "subscriptions"
    LEDGER = "ledger"
    CHECKPOINT = "ledger/checkpoint"
    FORKS = "ledger/forks"

    @staticmethod
    def member(number: int) -> str:
        """Return where a node introduces one peer of its circle, by a number from 0 on."""
        return _made("nodes", "members", str(number))

    @staticmethod
    def fork(author: bytes) -> str:
        """Return where a node publishes the proof that an author forked its ledger."""
        return _made("ledger", "forks", to_text(author))

    @staticmethod
    def grant(number: int) -> str:
        """Return where a giver keeps its grant of a number."""
        return _made("causality", "grants", str(number))

    @staticmethod
    def cell(name: str) -> str:
        """Return where each source of a cell has its contribution."""
        return _made("cells", name)

    @staticmethod
    def program(program: bytes) -> str:
        """Return where the definition of a program is."""
        return _made("programs", "registry", to_text(program))

    @staticmethod
    def service(name: str) -> str:
        """Return where an owner lists a service of its own."""
        return _made("programs", "services", name)

    @staticmethod
    def active_program(program: bytes) -> str:
        """Return where a program is marked as active."""
        return _made("programs", "active", to_text(program))

    @staticmethod
    def kept(program: bytes) -> str:
        """Return below which path a program keeps what it needs from frame to frame."""
        return _made("compute", to_text(program))

    @staticmethod
    def variable(program: bytes, name: str) -> str:
        """Return where a variable of a program is."""
        return _made("compute", to_text(program), "variables", name)

    @staticmethod
    def state(program: bytes) -> str:
        """Return where it is kept how a program stands."""
        return _made("compute", to_text(program), "state")

    @staticmethod
    def result(program: bytes, output: str) -> str:
        """Return where an output of a program is that has no path of its own."""
        return _made("compute", to_text(program), "results", output)

    @staticmethod
    def provenance(program: bytes, event: bytes) -> str:
        """Return where the provenance of one result is."""
        return _made("compute", "provenance", to_text(program), to_text(event))

    @staticmethod
    def writer(path: str) -> str:
        """Return where the hash of the program is that publishes at a path."""
        digest = encoding.tagged_sha256("program_writer", path.encode())
        return _made("compute", "provenance", to_text(digest))

    @staticmethod
    def program_provenance(program: bytes) -> str:
        """Return the prefix of the provenance of all results of a program."""
        return _made("compute", "provenance", to_text(program))

    @staticmethod
    def local_subscription(path: str) -> str:
        """Return where a subscription to an own path is listed."""
        return _made("subscriptions", "local", path)

    @staticmethod
    def peer_subscription(owner: bytes, path: str) -> str:
        """Return where a subscription to a path of a peer is listed."""
        return _made("subscriptions", "peers", to_text(owner), path)

    @staticmethod
    def clearing(record_id: bytes) -> str:
        """Return where a provider keeps the record of one clearing."""
        return _made("market", "clearings", to_text(record_id))

    @staticmethod
    def named(name: bytes) -> str:
        """Return where a provider keeps a value that clearing records name."""
        return _made("market", "named", to_text(name))


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
