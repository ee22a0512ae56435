"""Signs what this node says of runs; what it says in the same moment is signed at once.

A signature takes 30 µs and its check 90, as long as much else of a small call.
Records that are given within one turn of the event loop stand under one signature
(`xsc.identity.joint`), and each of them is still shown and checked alone. Nothing
waits for company; one alone is signed as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from xsc.base.errors import XscError
from xsc.base.gather import Gather
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.identity.envelope import Record, Signed, sign, sign_jointly
from xsc.identity.keys import KeyPair

R = TypeVar("R", bound=Record)


class Notary:
    """Signs for one node in one network."""

    def __init__(self, key: KeyPair, network: bytes) -> None:
        self._key = key
        self._network = network
        self._gather: Gather[None, Record, Signed[Record]] = Gather(
            self._sign_all, most=lambda *_: JOINT_RECORDS_MAX
        )

    async def sign(self, record: R, *, jointly: bool) -> Signed[R]:
        """Return the record signed; `jointly` with others that are given in this turn.

        Raises:
            RecordInvalid: it cannot be encoded.
        """
        if not jointly:
            return sign(record, self._key, self._network)
        return cast("Signed[R]", await self._gather.submit(None, record))

    async def _sign_all(
        self, _key: None, records: Sequence[Record]
    ) -> Sequence[Signed[Record] | XscError]:
        try:
            return sign_jointly(records, self._key, self._network)
        except XscError:
            # One of them cannot be signed: that is its own error.
            return [self._sign_one(record) for record in records]

    def _sign_one(self, record: Record) -> Signed[Record] | XscError:
        try:
            return sign(record, self._key, self._network)
        except XscError as fault:
            return fault
