"""Receipts that one signature covers: of the host that gives them, and of who checks them.

A host signs a receipt in 30 µs and its customer verifies it in 90, six times a
put. Receipts for one customer that are ready in the same turn of the event loop,
as those of a batch are, get one `ReceiptSeal` over their record ids. An answer
then carries the receipt's bytes and the seal, instead of the signed receipt; one
alone is signed as ever. Only who asks for it (`seal` in the put) is answered so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from xsc.base.bounded import Bounded
from xsc.base.encoding import Value, decode, encode, tagged_sha256
from xsc.base.errors import ReceiptInvalid, SignatureInvalid
from xsc.base.fields import take_bytes, take_int
from xsc.base.gather import Gather
from xsc.base.limits import SEALED_RECEIPTS_MAX, SEALS_KEPT
from xsc.identity.envelope import open_body, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage.object.receipts import receipt_fault
from xsc.terms.receipt_seal import ReceiptSeal
from xsc.terms.storage_receipt import StorageReceipt


class Sealer:
    """Signs the receipts of a host, those of one turn of the event loop at once."""

    def __init__(self, key: KeyPair, network: bytes) -> None:
        self._key = key
        self._network = network
        self._gather: Gather[bytes, StorageReceipt, dict[str, Value]] = Gather(
            self._seal, most=lambda *_: SEALED_RECEIPTS_MAX
        )

    def alone(self, receipt: StorageReceipt) -> dict[str, Value]:
        """Return the answer that carries a receipt by itself."""
        return {"receipt": sign(receipt, self._key, self._network).raw}

    def together(self, receipt: StorageReceipt) -> asyncio.Future[dict[str, Value]]:
        """Return what gives the answer that carries a receipt, under one seal with those beside."""
        return self._gather.submit(receipt.customer, receipt)

    async def _seal(
        self, customer: bytes, receipts: Sequence[StorageReceipt]
    ) -> Sequence[dict[str, Value]]:
        if len(receipts) == 1:
            return [self.alone(receipts[0])]
        bodies = [receipt.to_bytes() for receipt in receipts]
        ids = tuple(tagged_sha256(StorageReceipt.KIND, body) for body in bodies)
        seal = ReceiptSeal(host=self._key.node_id, customer=customer, receipts=ids)
        raw = sign(seal, self._key, self._network).raw
        return [{"receipt_body": body, "seal": raw} for body in bodies]


class Seals:
    """Checks the receipts that hosts answer with; a seal is verified once."""

    def __init__(self, network: bytes) -> None:
        self._network = network
        self._known: Bounded[tuple[bytes, bytes], ReceiptSeal] = Bounded(SEALS_KEPT)
        """Verified seals by host and bytes."""

    def check(self, answer: Mapping[str, Value], expected: StorageReceipt) -> None:
        """Return if an answer carries the receipt that is expected; `stored_ms` is the host's.

        Raises:
            TooLarge, RecordInvalid: malformed.
            SignatureInvalid: not signed by the host, alone or under its seal.
            ReceiptInvalid: it says something else than what was sent.
        """
        if "seal" in answer:
            body = take_bytes(answer, "receipt_body")
            seal = self._opened(take_bytes(answer, "seal"), expected.host)
            if seal.customer != expected.customer:
                raise ReceiptInvalid("the seal is for another customer")
            if tagged_sha256(StorageReceipt.KIND, body) not in seal.receipts:
                raise SignatureInvalid("the receipt does not stand under its seal")
        else:
            body = open_body(
                take_bytes(answer, "receipt"),
                StorageReceipt.KIND,
                network=self._network,
                author=expected.host,
            )
        if body != self._as_expected(body, expected):
            fault = receipt_fault(StorageReceipt.from_bytes(body), expected)
            raise ReceiptInvalid(fault or "the receipt is not what it must be")

    @staticmethod
    def _as_expected(body: bytes, expected: StorageReceipt) -> bytes:
        """Return the only bytes that the receipt can have, by the time that it names."""
        value = decode(body)
        stored_ms = take_int(value if isinstance(value, dict) else {}, "stored_ms")
        return encode({**expected.to_value(), "stored_ms": stored_ms})

    def _opened(self, raw: bytes, host: bytes) -> ReceiptSeal:
        seal = self._known.get((host, raw))
        if seal is None:
            seal = open_signed(raw, ReceiptSeal, network=self._network, author=host).record
            if seal.host != host:
                raise ReceiptInvalid("the seal names another host than the one that signed it")
            self._known.put((host, raw), seal)
        return seal
