"""Paths in the space: which texts are paths, and the one place where XSC's own are made.

A path is parts joined by `/`. Parts have letters, digits and `_ . ~ -` of ASCII only, so
that no two paths look alike and a path means the same in a file system, a URL and a shell.
"""

from __future__ import annotations

import re

from xsc.base.errors import ArgumentInvalid, RecordInvalid
from xsc.base.ids import to_text
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
        raise RecordInvalid(f"not a path: {fault}")
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
        raise ArgumentInvalid(f"not a path: {fault}", hint="write [OWNER:]part/part")
    if colon and not owner:
        raise ArgumentInvalid("the owner before the colon is missing")
    return owner or None, path


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
        raise ArgumentInvalid(f"not a path: {fault}")
    return path


def is_reserved(path: str) -> bool:
    """Return whether XSC alone writes at a path: its place in causality and what it grants."""
    return path.split("/", 1)[0] == "causality"


class UserSpacePaths:
    """Makes every path that XSC itself uses. Hashes and node ids are written as base32."""

    ALLOCATION = "allocation"
    RECOGNITION = "allocation/recognition"
    COMMITMENT = "allocation/commitment"
    ALLOCATION_STATE = "allocation/state"
    NODES = "nodes"
    ADDRESS = "nodes/address"
    PROPAGATORS = "nodes/propagators"
    INTERVAL = "causality/interval"
    GRANTS = "causality/grants"

    @staticmethod
    def member(node: bytes) -> str:
        """Return where a node introduces a peer of its circle."""
        return _made("nodes", "members", to_text(node))

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
    def active_program(program: bytes) -> str:
        """Return where a program is marked as active."""
        return _made("programs", "active", to_text(program))

    @staticmethod
    def variable(program: bytes, name: str) -> str:
        """Return where a variable of a program is."""
        return _made("compute", to_text(program), "variables", name)

    @staticmethod
    def result(program: bytes, computation: str) -> str:
        """Return where the result of a computation of a program is."""
        return _made("compute", to_text(program), "results", computation)

    @staticmethod
    def output(program: bytes, name: str) -> str:
        """Return where an output of a program is."""
        return _made("compute", to_text(program), "outputs", name)

    @staticmethod
    def provenance(program: bytes, event: bytes) -> str:
        """Return where the provenance of one result is."""
        return _made("compute", "provenance", to_text(program), to_text(event))

    @staticmethod
    def local_subscription(path: str) -> str:
        """Return where a subscription to an own path is listed."""
        return _made("subscriptions", "local", path)

    @staticmethod
    def peer_subscription(owner: bytes, path: str) -> str:
        """Return where a subscription to a path of a peer is listed."""
        return _made("subscriptions", "peers", to_text(owner), path)

    @staticmethod
    def market(kind: str, identifier: bytes) -> str:
        """Return where one of the `offers`, `needs` or `clearings` of the market is."""
        return _made("market", kind, to_text(identifier))

    @staticmethod
    def object(name: bytes) -> str:
        """Return where an object is listed under its encrypted name."""
        return _made("objects", to_text(name))
