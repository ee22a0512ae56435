"""Fetches the clearing records that the states of other nodes name, and checks them.

Of each record this node reads its own line. It recomputes the whole of one in CLEARING_DRAW, by a
draw that nobody else can foretell, and of each whose line cannot be right. A record that does not
recompute is evidence, because its provider signed it: it is kept, and its provider is reported.

One record at a time is checked of all providers, beside the event loop. A provider that does not
give what is asked for, or gives what is wrong, offers nothing until it does.

Beside the space one table in the state database has the evidence:

    allocation/false/<provider>    the first of its records that did not recompute, as a proof
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from xsc.allocation.clearing_record import (
    Checked,
    Published,
    check_clearing,
    open_clearing,
    standing,
)
from xsc.allocation.receiving import is_line_right, own_part
from xsc.base.encoding import tagged_sha256
from xsc.base.errors import NotFound, ProofInvalid, UnavailableError, XscError
from xsc.base.ids import short
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import (
    ALLOCATION_DEBOUNCE_MS,
    ALLOCATION_LOOK_MS,
    CLEARING_ASKED_MAX,
    CLEARING_DRAW,
    CONVERGED_LOOK_MS,
    FALSE_CLEARING_BYTES_MAX,
    FALSE_CLEARINGS_MAX,
)
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.space.paths import UserSpacePaths
from xsc.space.record import Entry
from xsc.terms.clearing import ClearingProof, ClearingRecord, SpaceValue

_FALSE: Final = b"allocation/false/"
_SECRET_BYTES: Final = 32


def packed(context: Context, record: bytes, named: Collection[SpaceValue]) -> bytes:
    """Return a clearing record with what it names, as `xsc verify` reads it."""
    proof = ClearingProof(clearing=record, named=tuple(named))
    return sign(proof, context.key, context.network).raw


class Proofs:
    """What checked clearing records of other nodes grant to this one.

    Args:
        context: of the node.
        state: keeps the evidence.
        read: returns the record at a path of another node's space, fetched if it is not here.
        published: returns what a node has published, as far as that is here.
        once: runs something in the background.
        told: hears of a provider once its records are checked, or one was refused.
        report: counts that a node said something that is plainly wrong.
    """

    def __init__(
        self,
        context: Context,
        *,
        state: KeyValue,
        read: Callable[[bytes, str], Awaitable[Entry]],
        published: Callable[[bytes], Published],
        once: Callable[[str, Callable[[], Awaitable[None]]], None],
        told: Callable[[bytes], None],
        report: Callable[[bytes, str], None],
    ) -> None:
        self._context = context
        self._rows = state
        self._read = read
        self._published = published
        self._once = once
        self._told = told
        self._report = report
        self._secret = context.entropy.token(_SECRET_BYTES)
        self._wanted: dict[bytes, frozenset[bytes]] = {}
        self._proven: dict[bytes, dict[bytes, ClearingRecord]] = {}
        """By provider and id: of the records that its state names now, what is this node's."""
        self._refused: set[bytes] = set()
        self._running: set[bytes] = set()
        self._turn = asyncio.Lock()
        self._false: dict[bytes, bytes] = {}
        """By provider, the id of the record that is kept as evidence against it."""

    def start(self) -> None:
        """Read what is kept as evidence.

        Raises:
            RecordInvalid: it cannot be read.
        """
        for key, raw in self._rows.scan(_FALSE, prefix_end(_FALSE)):
            clearing = self._proof(raw).clearing
            record = open_signed(clearing, ClearingRecord, network=None, size_max=len(clearing))
            self._false[key.removeprefix(_FALSE)] = record.id

    def false_clearings(self) -> dict[bytes, bytes]:
        """Return by provider the id of a clearing that it signed and that does not recompute."""
        return self._false.copy()

    def evidence(self, provider: bytes) -> bytes:
        """Return the proof of that clearing.

        Raises:
            NotFound: there is none.
        """
        raw = self._rows.get(_FALSE + provider)
        if raw is None:
            raise NotFound("no clearing of this node is known to be false")
        return raw

    @staticmethod
    def _proof(raw: bytes) -> ClearingProof:
        return open_signed(raw, ClearingProof, network=None, size_max=len(raw)).record

    def want(self, provider: bytes, ids: frozenset[bytes]) -> bool:
        """Have these records of a provider checked, and forget all others.

        Returns:
            Whether what they grant is not known yet.
        """
        self._wanted[provider] = ids
        known = self._proven.get(provider, {})
        self._proven[provider] = {each: known[each] for each in ids & known.keys()}
        missing = ids - known.keys()
        if missing and provider not in self._running:
            self._running.add(provider)
            self._once(f"clearings_of_{short(provider)}", lambda: self._check(provider))
        return bool(missing) and provider not in self._refused

    def of(self, provider: bytes) -> dict[bytes, ClearingRecord]:
        """Return this node's part of the wanted records; nothing while one of them is refused."""
        return {} if provider in self._refused else self._proven.get(provider, {})

    def keep(self, providers: Collection[bytes]) -> None:
        """Forget all other providers."""
        for gone in self._wanted.keys() - set(providers):
            del self._wanted[gone], self._proven[gone]

    def _missing(self, provider: bytes) -> frozenset[bytes]:
        return self._wanted.get(provider, frozenset()) - self._proven.get(provider, {}).keys()

    async def _check(self, provider: bytes) -> None:
        clock = self._context.clock
        asked = 0
        try:
            while missing := self._missing(provider):
                record_id = min(missing)
                try:
                    record = await self._prove(provider, record_id)
                except (NotFound, UnavailableError):
                    asked += 1
                    if asked >= CLEARING_ASKED_MAX:
                        self._refuse(provider)
                    await clock.sleep_ms(CONVERGED_LOOK_MS)
                except XscError as fault:
                    self._context.log.warning(
                        "allocation.clearing_refused",
                        peer=short(provider),
                        code=fault.code,
                        fault=fault.message,
                    )
                    self._refuse(provider)
                    await clock.sleep_ms(ALLOCATION_LOOK_MS)
                else:
                    asked = 0
                    if record_id in self._wanted.get(provider, ()):
                        self._proven[provider][record_id] = record
                    if self._missing(provider):
                        await clock.sleep_ms(ALLOCATION_DEBOUNCE_MS)
        finally:
            self._running.discard(provider)
            self._refused.discard(provider)
        self._told(provider)

    def _refuse(self, provider: bytes) -> None:
        if provider not in self._refused:
            self._refused.add(provider)
            self._told(provider)

    async def _prove(self, provider: bytes, record_id: bytes) -> ClearingRecord:
        signed = await self._record(provider, record_id)
        own = self._context.key.node_id
        here, there = self._published(own), self._published(provider)
        tier = standing(there, here)[0]
        if self._is_drawn(record_id) or not is_line_right(signed.record, own, tier):
            await self._recompute(signed)
        return own_part(signed.record, own)

    def _is_drawn(self, record_id: bytes) -> bool:
        drawn = tagged_sha256("clearing/draw", self._secret, record_id)
        return int.from_bytes(drawn, "big") % CLEARING_DRAW == 0

    async def open(self, provider: bytes, record_id: bytes) -> Checked:
        """Return a clearing record of another node, fetched and recomputed.

        Raises:
            NotFound, UnavailableError: it is not here, and its provider does not give it.
            ProofInvalid: it does not recompute, or is another.
        """
        return await self._recompute(await self._record(provider, record_id))

    async def _value(self, provider: bytes, path: str) -> bytes:
        value = (await self._read(provider, path)).value
        if value is None:
            raise NotFound("the clearing, or what it names, is not there")
        return value

    async def _record(self, provider: bytes, record_id: bytes) -> Signed[ClearingRecord]:
        """Return the record that a provider's state names."""
        raw = await self._value(provider, UserSpacePaths.clearing(record_id))
        async with self._turn:
            signed = await self._context.executor.run(open_clearing, raw, self._context.network)
        if (signed.author, signed.id) != (provider, record_id):
            raise ProofInvalid("the clearing is not the one that the state names")
        return signed

    async def _recompute(self, signed: Signed[ClearingRecord]) -> Checked:
        named = await self._named(signed.record)
        try:
            return await self.check(signed.raw, named)
        except ProofInvalid:
            self._keep_evidence(signed, named)
            raise

    async def check(self, raw: bytes, named: Collection[SpaceValue]) -> Checked:
        """Recompute a record from what it names, one at a time of all.

        Raises:
            ProofInvalid: the first thing that is wrong.
        """
        async with self._turn:
            return await self._context.executor.run(
                check_clearing, raw, named, network=self._context.network
            )

    async def _named(self, record: ClearingRecord) -> list[SpaceValue]:
        """Return what a record names: mostly what its customers still publish, which is here."""
        here: dict[bytes, SpaceValue] = {}
        for node in (record.provider, *(each.customer for each in record.participants)):
            here |= self._published(node).named
        found = []
        for name in sorted(record.names):
            value = here.get(name)
            if value is None:
                path = UserSpacePaths.named(name)
                value = SpaceValue.read(await self._value(record.provider, path))
                if value.name != name:
                    raise NotFound("the provider does not give what its clearing names")
            found.append(value)
        return found

    def _keep_evidence(self, signed: Signed[ClearingRecord], named: Collection[SpaceValue]) -> None:
        """Keep a record that does not recompute: one of each provider proves the point."""
        provider = signed.author
        if provider in self._false:
            return
        self._report(provider, "clearing")
        proof = packed(self._context, signed.raw, named)
        if len(self._false) < FALSE_CLEARINGS_MAX and len(proof) <= FALSE_CLEARING_BYTES_MAX:
            self._rows.write([(_FALSE + provider, proof)], sync=False)
            self._false[provider] = signed.id
