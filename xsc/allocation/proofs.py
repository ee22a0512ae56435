"""Fetches and checks the clearing records that the states of other nodes name.

Each record is checked once. The records of one provider are checked one after the other, and
one at a time of all, beside the event loop: what a peer publishes costs one thread at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from xsc.allocation.clearing_record import check_clearing
from xsc.allocation.receiving import Proven, proven_of
from xsc.base.errors import NotFound, ProofInvalid, UnavailableError, XscError
from xsc.base.ids import short
from xsc.base.limits import (
    ALLOCATION_DEBOUNCE_MS,
    ALLOCATION_LOOK_MS,
    CLEARING_ASKED_MAX,
    CONVERGED_LOOK_MS,
)
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.space.paths import UserSpacePaths
from xsc.space.record import Entry
from xsc.terms.clearing import ClearingRecord


class Proofs:
    """What checked clearing records of other nodes grant to this one.

    Args:
        context: of the node.
        read: returns the record at a path of another node's space, fetched if it is not here.
        once: runs something in the background.
        told: hears of a provider once its records are checked, or one was refused.
    """

    def __init__(
        self,
        context: Context,
        *,
        read: Callable[[bytes, str], Awaitable[Entry]],
        once: Callable[[str, Callable[[], Awaitable[None]]], None],
        told: Callable[[bytes], None],
    ) -> None:
        self._context = context
        self._read = read
        self._once = once
        self._told = told
        self._wanted: dict[bytes, frozenset[bytes]] = {}
        self._proven: dict[bytes, dict[bytes, Proven]] = {}
        """By provider, of the records that its state names now."""
        self._refused: set[bytes] = set()
        self._running: set[bytes] = set()
        self._turn = asyncio.Lock()

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

    def of(self, provider: bytes) -> dict[bytes, Proven]:
        """Return what the wanted records grant; nothing while one of them is refused."""
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
                    lines = await self._prove(provider, record_id)
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
                        self._proven[provider][record_id] = lines
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

    async def _prove(self, provider: bytes, record_id: bytes) -> Proven:
        signed = await self.open(provider, record_id)
        return proven_of(signed.record, self._context.key.node_id)

    async def open(self, provider: bytes, record_id: bytes) -> Signed[ClearingRecord]:
        """Return a clearing record of another node, fetched and recomputed.

        Raises:
            NotFound, UnavailableError: it is not here, and its provider does not give it.
            ProofInvalid: it does not recompute, or is another.
        """
        value = (await self._read(provider, UserSpacePaths.clearing(record_id))).value
        if value is None:
            raise NotFound("the clearing is not there")
        async with self._turn:
            signed = await self._context.executor.run(
                check_clearing, value, network=self._context.network
            )
        if (signed.author, signed.id) != (provider, record_id):
            raise ProofInvalid("the clearing is not the one that the state names")
        return signed
