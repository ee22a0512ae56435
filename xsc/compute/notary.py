"""Signs what this node says of runs; what it says in the same moment is signed at once.

A signature takes 30 µs and its check 90, as long as much else of a small call.
Records that are given within one turn of the event loop stand under one signature
(`xsc.identity.joint`), and each of them is still shown and checked alone. Nothing
waits for company; one alone is signed as ever.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from xsc.base.errors import XscError
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.identity.envelope import Record, Signed, sign, sign_jointly
from xsc.identity.keys import KeyPair

R = TypeVar("R", bound=Record)


class Notary:
    """Signs for one node in one network."""

    def __init__(self, key: KeyPair, network: bytes) -> None:
        self._key = key
        self._network = network
        self._waiting: list[tuple[Record, asyncio.Future[Any]]] = []

    async def sign(self, record: R, *, jointly: bool) -> Signed[R]:
        """Return the record signed; `jointly` with others that are given in this turn.

        Raises:
            RecordInvalid: it cannot be encoded.
        """
        if not jointly:
            return sign(record, self._key, self._network)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._sign_all)
        done: asyncio.Future[Signed[R]] = loop.create_future()
        self._waiting.append((record, done))
        return await done

    def _sign_all(self) -> None:
        waiting = [item for item in self._waiting if not item[1].done()]
        self._waiting = []
        for start in range(0, len(waiting), JOINT_RECORDS_MAX):
            group = waiting[start : start + JOINT_RECORDS_MAX]
            try:
                signed = sign_jointly([record for record, _ in group], self._key, self._network)
            except XscError:
                self._sign_each(group)  # one of them cannot be signed: that is its own error
            else:
                for (_, done), each in zip(group, signed, strict=True):
                    done.set_result(each)

    def _sign_each(self, group: list[tuple[Record, asyncio.Future[Any]]]) -> None:
        for record, done in group:
            try:
                done.set_result(sign(record, self._key, self._network))
            except XscError as fault:
                done.set_exception(fault)
