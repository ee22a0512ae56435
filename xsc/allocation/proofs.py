"""Recomputes the clearing records of other nodes, in the background.

A customer takes what a state grants it before it has seen the clearing. Of the clearings that grant
it something it recomputes one in CLEARING_DRAW, by a draw that nobody else can foretell, and each
whose line cannot be right. One that does not recompute, or of which the state says other lines than
it has, is evidence, because its provider signed both: it is kept, and its provider is reported.

One record at a time is recomputed of all providers, beside the event loop. Of a provider nothing
counts while its state names a false clearing, or one that it does not give.

Beside the space one table in the state database has the evidence:

    allocation/false/<provider>    the first of its records that did not recompute, as a proof
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

from xsc.allocation.clearing_record import Checked, check_clearing, open_clearing
from xsc.allocation.heard import Heard
from xsc.base.encoding import tagged_sha256
from xsc.base.errors import NotFound, ProofInvalid, XscError
from xsc.base.ids import short
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import (
    ALLOCATION_DEBOUNCE_MS,
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
    """Which providers a customer trusts, and the evidence against others.

    Args:
        context: of the node.
        state: keeps the evidence.
        read: returns the record at a path of another node's space, fetched if it is not here.
        heard: has what nodes have published, as far as that is here.
        once: runs something in the background.
        told: hears that a provider counts from now on, or does not.
        report: counts that a node said something that is plainly wrong.
    """

    def __init__(
        self,
        context: Context,
        *,
        state: KeyValue,
        read: Callable[[bytes, str], Awaitable[Entry]],
        heard: Heard,
        once: Callable[[str, Callable[[], Awaitable[None]]], None],
        told: Callable[[], None],
        report: Callable[[bytes, str], None],
    ) -> None:
        self._context = context
        self._rows = state
        self._read = read
        self._heard = heard
        self._once = once
        self._told = told
        self._report = report
        self._secret = context.entropy.token(_SECRET_BYTES)
        self._found: dict[bytes, dict[bytes, bool | None]] = {}
        """By provider and id of what is wanted of it, whether it is right; None: not known yet."""
        self._running: set[bytes] = set()
        self._silent: set[bytes] = set()
        """Providers that do not give what is wanted of them."""
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

    def want(self, provider: bytes, taken: Iterable[bytes], doubted: Collection[bytes]) -> bool:
        """Have clearings of a provider recomputed, and forget all others of it.

        Args:
            provider: whose state names them.
            taken: those that grant something which can be right; of these some by a draw.
            doubted: those that grant what cannot be right.

        Returns:
            Whether anything of the provider counts, as far as is known.
        """
        known = self._found.get(provider, {})
        wanted = {*doubted, *filter(self._is_drawn, taken)}
        self._found[provider] = {each: known.get(each) for each in wanted}
        if self._next(provider) is not None and provider not in self._running:
            self._running.add(provider)
            self._once(f"clearings_of_{short(provider)}", lambda: self._check(provider))
        return provider not in self._silent and False not in self._found[provider].values()

    def keep(self, providers: Collection[bytes]) -> None:
        """Forget all other providers."""
        for gone in self._found.keys() - set(providers):
            del self._found[gone]

    def _is_drawn(self, record_id: bytes) -> bool:
        drawn = tagged_sha256("clearing/draw", self._secret, record_id)
        return int.from_bytes(drawn, "big") % CLEARING_DRAW == 0

    def _next(self, provider: bytes) -> bytes | None:
        """Return what is wanted of a provider and not known yet, if anything."""
        found = self._found.get(provider, {})
        return next((each for each, is_right in found.items() if is_right is None), None)

    async def _check(self, provider: bytes) -> None:
        clock, asked = self._context.clock, 0
        try:
            while (record_id := self._next(provider)) is not None:
                try:
                    await self.open(provider, record_id)
                    is_right = True
                except ProofInvalid as fault:
                    self._context.log.warning(
                        "allocation.clearing_false", peer=short(provider), fault=fault.message
                    )
                    is_right = False
                except XscError:
                    # What it does not give, or not in its form, proves nothing.
                    asked += 1
                    if asked == CLEARING_ASKED_MAX:
                        self._silent.add(provider)
                        self._told()
                    await clock.sleep_ms(CONVERGED_LOOK_MS)
                    continue
                asked = 0
                self._silent.discard(provider)
                if record_id in self._found.get(provider, ()):
                    self._found[provider][record_id] = is_right
                self._told()
                await clock.sleep_ms(ALLOCATION_DEBOUNCE_MS)
        finally:
            self._running.discard(provider)
            self._silent.discard(provider)
        self._told()

    async def open(self, provider: bytes, record_id: bytes) -> Checked:
        """Return a clearing record of another node, fetched and recomputed.

        Raises:
            NotFound, UnavailableError, PeerError, LimitError: its provider does not give it.
            ProofInvalid: it does not recompute, or the provider's state has other lines of it.
        """
        signed = await self._record(provider, record_id)
        values = await self._named(signed.record)
        if (said := self._heard.value(UserSpacePaths.ALLOCATION_STATE, provider)) is not None:
            values.append(said)
        try:
            return await self.check(signed.raw, values)
        except ProofInvalid:
            self._keep_evidence(signed, values)
            raise

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
            raise NotFound("the provider gives another clearing than its state names")
        return signed

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
            here |= self._heard.of(node).named
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
