"""Asks replicas, and verifies what they answer before it is returned. docs/design/space.md, S1."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from xsc.base import errors
from xsc.base.fields import take_int
from xsc.base.peering import Header
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.space import limits
from xsc.space.messages import Answer, Listed, Sent
from xsc.space.record import SpaceHead, SpaceRecord, open_dated, open_sent
from xsc.space.store import SpaceStore

B = TypeVar("B", Answer, Listed)
MORE_THAN_ASKED = "a record that was not asked for"
Offered: TypeAlias = "tuple[Signed[SpaceRecord], bytes | None]"
"""A record that was verified, with its value where that came along."""


def body_of(parts: Sequence[memoryview], size_max: int = limits.ANSWER_BYTES_MAX) -> memoryview:
    """Return the one body of an answer.

    Raises:
        RecordInvalid: there is another number of them, or it is too long.
    """
    if len(parts) != 1 or len(parts[0]) > size_max:
        raise errors.RecordInvalid("an answer of a replica has one body")
    return parts[0]


class Asking:
    """What one node asks of replicas.

    Args:
        store: the space.
        context: the node's values.
        spend: counts work that a peer causes, and returns how long it is to wait.
    """

    def __init__(
        self, store: SpaceStore, context: Context, spend: Callable[[bytes, int], int]
    ) -> None:
        self._store = store
        self._caller = context.caller
        self._clock = context.clock
        self._network = context.network
        self._spend = spend
        self.received_bytes = 0
        self.seen_ms: dict[bytes, int] = {}
        """Date of the newest head of each owner: its sign of life."""

    async def ask(
        self,
        peer: bytes,
        method: str,
        header: Header,
        kind: type[B],
        *,
        timeout_ms: int | None = None,
    ) -> tuple[Header, B]:
        """Ask a peer something; return header and body of its answer, not verified yet."""
        reply = await self._caller.call(peer, method, header, timeout_ms=timeout_ms)
        self.received_bytes += sum(map(len, reply.parts))
        raw, most = bytes(body_of(reply.parts, kind.BYTES_MAX)), kind.BYTES_MAX
        read = await self._store.work.run(peer, len(raw), kind.from_bytes, raw, size_max=most)
        return reply.header, read

    def head(self, peer: bytes, owner: bytes, raw: bytes) -> Signed[SpaceHead]:
        """Return a head of a peer, verified."""
        self._spend(peer, limits.RECORD_UNITS * (1 + len(raw) // limits.CHECKED_BYTES_A_RECORD))
        head = open_dated(
            raw, SpaceHead, owner=owner, network=self._network, now_ms=self._clock.now_ms()
        )
        self.seen_ms[owner] = max(self.seen_ms.get(owner, 0), head.record.written_ms)
        return head

    async def prove(
        self,
        peer: bytes,
        owner: bytes,
        head: Signed[SpaceHead],
        before: Mapping[str, Mapping[str, bytes]],
    ) -> tuple[set[str], set[str]]:
        """Return the sections for which a head is proven by what is stored, and is not."""
        proven, failed, compared = await self._store.prove(owner, head, before)
        self._spend(peer, limits.RECORD_UNITS * compared // limits.PROOF_ROWS_A_RECORD)
        return proven, failed

    def opened(self, sent: Sent, owner: bytes) -> Signed[SpaceRecord]:
        """Return a record of a peer, verified; a small value must be beside it."""
        return open_sent(sent, owner, self._network, self._clock.now_ms())

    async def with_values(
        self, peer: bytes, owner: bytes, offered: Sequence[Offered]
    ) -> AsyncIterator[Sequence[Offered]]:
        """Give the records in parts; own ones and those that are checked come with large values."""
        own = owner == self._store.owner
        large = [
            signed
            for signed, value in offered
            if value is None
            and signed.record.digest is not None
            and (own or self._store.has_schema(signed.record.path))
        ]
        yield [item for item in offered if item[0] not in large]
        for signed in large:
            cost = signed.record.size_bytes // limits.CHECKED_BYTES_A_RECORD
            if pause_ms := self._spend(peer, limits.RECORD_UNITS * cost):
                await self._clock.sleep_ms(pause_ms)
            value = await self.fetch_value(peer, owner, signed.record)
            if value is not None or own:  # else the peer has a newer record, and tells of it
                yield [(signed, value)]

    async def fetch_value(self, peer: bytes, owner: bytes, record: SpaceRecord) -> bytes | None:
        """Return the value of a record from a peer; None where the peer does not have it."""
        _, found = await self.records(peer, owner, [record.path], whole=True)
        for sent in found:
            cost = len(sent.raw) // limits.STAMP_BYTES_A_RECORD
            self._spend(peer, limits.RECORD_UNITS * (1 + cost))
            other = self.opened(sent, owner).record
            if other.path != record.path:
                raise errors.RecordInvalid(MORE_THAN_ASKED)
            if other.digest == record.digest:
                return sent.value
        return None

    async def records(
        self, peer: bytes, owner: bytes, paths: list[str], *, whole: bool = False
    ) -> tuple[int, tuple[Sent, ...]]:
        """Ask a peer for an owner's records at paths; `whole` ones have large values, too.

        Returns of how many of the paths it was told, and the records.
        """
        asked: Header = {"owner": owner, "paths": [*paths], "whole": whole}
        header, answer = await self.ask(peer, "space.records", asked, Answer)
        if len(answer.records) > len(paths):
            raise errors.RecordInvalid(MORE_THAN_ASKED)
        return take_int(header, "told", least=1, most=len(paths)), answer.records

    async def load(self, peer: bytes, owner: bytes, path: str) -> bytes:
        """Return the value of a record here, fetched from a peer where it is not here yet.

        Raises:
            NotFound: no record is at the path, here or there.
            RecordInvalid: the peer gave another value.
        """
        entry = self._store.get(path, owner)
        if entry.value is not None:
            return entry.value
        value = await self.fetch_value(peer, owner, entry.signed.record)
        if value is None:
            raise errors.NotFound(f"the value of '{path}' is not there")
        await self._store.keep_value(owner, path, value)
        return value
