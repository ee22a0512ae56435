"""Names of objects and their versions, in the state database of the node.

The objects stored under a name are its versions, numbered from 1 in the order in
which they were stored. A number is used once: an object that is put after a
deletion gets a new one. Tables:

    storage/name/<hash of the name>              the last number that was used
    storage/name/<hash of the name><number>      the manifest hash of that version

Names that begin with NUL are internal and are not listed: the node's directory,
and the files of stored directories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from xsc.base import encoding, errors, keyvalue, turns
from xsc.identity.envelope import Count, Record

NAMES = b"storage/name/"
NAME_CHARS_MAX = 1024
HIDDEN = "\0"
PART = "\0part/"
"""Prefix of the names of files of stored directories: hidden, but in the own directory."""


def check_name(name: str) -> None:
    """Return if an object may be stored under a name; the empty name means no name.

    Raises:
        ArgumentInvalid: too long, or with a NUL.
    """
    if len(name) > NAME_CHARS_MAX:
        raise errors.ArgumentInvalid(f"a name has at most {NAME_CHARS_MAX} characters")
    if "\0" in name:
        raise errors.ArgumentInvalid("a name has no NUL in it")


def _key(name: str) -> bytes:
    return NAMES + encoding.tagged_sha256("object-name", name.encode())


class _Last(Record):
    """The last number used under a name."""

    last: Count


def version_row(name: str, version: int, manifest_hash: bytes | None) -> keyvalue.Change:
    """Return the change that writes a version; None as the manifest hash deletes it."""
    return _key(name) + version.to_bytes(8, "big"), manifest_hash


def last_row(name: str, version: int) -> keyvalue.Change:
    """Return the change that writes the last number of a name."""
    return _key(name), _Last(last=version).to_bytes()


def read_last(raw: bytes | None) -> int:
    """Return the last number used under a name; 0 if there is none.

    Raises:
        StoreDamaged: not such a row.
    """
    try:
        return 0 if raw is None else _Last.from_bytes(raw).last
    except errors.RecordInvalid:
        raise errors.StoreDamaged("the versions of a name are damaged") from None


class NameVersions:
    """Numbers the versions of names, and finds their objects."""

    def __init__(self, state: keyvalue.KeyValue) -> None:
        self._state = state
        self.turns: turns.Turns[str] = turns.Turns()
        """By name: held from the choice of a number until its version is on the disk."""

    def next(self, name: str) -> int:
        """Return the next number of a name; for who holds its turn."""
        return read_last(self._state.get(_key(name))) + 1

    def rows(self, name: str, version: int, manifest_hash: bytes) -> list[keyvalue.Change]:
        """Return the changes that write a new version, to be committed with its object."""
        last = max(version, self.next(name) - 1)
        return [last_row(name, last), version_row(name, version, manifest_hash)]

    def of(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Yield number and manifest hash of the versions of a name, the newest first."""
        prefix = _key(name)
        for key, value in self._state.scan(prefix, keyvalue.prefix_end(prefix), reverse=True):
            if key != prefix:
                yield int.from_bytes(key.removeprefix(prefix), "big"), value


class ListedRow(Protocol):
    """One object in a list."""

    @property
    def name(self) -> str:
        """Its name; empty if it has none."""

    @property
    def version(self) -> int:
        """Its version number under that name."""


R = TypeVar("R", bound=ListedRow)


def listed(rows: Sequence[R], prefix: str, *, versions: bool) -> list[R]:
    """Return the rows to list: names with a prefix; only the newest version, unless `versions`."""
    newest: dict[str, int] = {}
    for row in rows:
        newest[row.name] = max(newest.get(row.name, 0), row.version)
    return [
        row
        for row in rows
        if row.name.startswith(prefix)
        and not row.name.startswith(HIDDEN)
        and (versions or not row.name or row.version == newest[row.name])
    ]
