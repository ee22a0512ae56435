"""Rows of a service's log, and the pages of them that an owner fetches from a holder and pays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xsc.base import encoding, errors, fields, ids, limits
from xsc.compute.deployments import wagi
from xsc.compute.deployments.store import LogRow
from xsc.compute.jobs.receipts import billed_steps, check_receipt, standing_order
from xsc.identity.envelope import Signed, open_signed
from xsc.terms.deployment import Deployment
from xsc.terms.execution import ExecutionReceipt, Order

SERVICE_NOTE_BYTES_MAX = 1 * limits.KIB
"""Of what a request writes to standard error, the end that the log keeps."""

_PATH_CHARS_MAX = 256
_URL_CHARS_MAX = 512
_NUMBER_MAX = 2**62
"""Of a row: a time in milliseconds, or so many more than the last one."""
UNPAID_TRAPS = ("cancelled", "compile_limit")
"""How no request can end that is billed: its module was compiled when it was deployed."""
_URL = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True, slots=True)
class ReceiptClaim:
    """A row of a page with its receipt, the order that it is for, and the deployment: verified."""

    row: LogRow
    receipt: ExecutionReceipt
    order: Signed[Order]
    deployment: Deployment

    @property
    def lease_id(self) -> bytes:
        """The lease under which it ran."""
        return self.order.record.lease_id

    @property
    def steps(self) -> int:
        """The fuel steps that the receipt bills."""
        return billed_steps(self.order.record, self.receipt.outcome, self.receipt.observed)


def url_in(header: Mapping[str, encoding.Value]) -> str:
    """Return where a holder says that requests reach it, which is printed on terminals.

    Raises:
        RecordInvalid: it is no plain address.
    """
    url = fields.take_str(header, "url", most=_URL_CHARS_MAX)
    if url and not _URL.fullmatch(url):
        raise errors.RecordInvalid("the holder says that its services are at what is no address")
    return url


def open_claims(
    rows: Sequence[LogRow], *, after: int, name: str, owner: bytes, provider: bytes, network: bytes
) -> list[ReceiptClaim]:
    """Return the rows of a page with their receipts, each checked as far as it says itself.

    Args:
        rows: as the holder sent them.
        after: the number of the last row that the owner has.
        name, owner, provider: of the service.
        network: the id of the network.

    Raises:
        ReceiptInvalid: a row or receipt breaks a rule.
        PeerError, TooLarge: a receipt or deployment cannot be read.
    """
    claims = []
    for row in rows:
        if row.number <= after:
            raise errors.ReceiptInvalid("its numbers do not grow")
        if not _is_told(row):
            raise errors.ReceiptInvalid("it says of a request what none can have been")
        after = row.number
        receipt = open_signed(
            row.receipt, ExecutionReceipt, network=network, author=provider
        ).record
        if receipt.request is None:
            raise errors.ReceiptInvalid("it is for no request of a service")
        deployment = open_signed(
            receipt.order,
            Deployment,
            network=network,
            author=owner,
            size_max=limits.SERVICE_RECORD_BYTES_MAX,
        )
        signed = deployment.record
        if (signed.name, signed.provider) != (name, provider):
            raise errors.ReceiptInvalid("it is over the deployment of another service")
        failed = receipt.outcome.trap is not None or receipt.outcome.exit_code
        if failed and row.status < 500:
            raise errors.ReceiptInvalid("it says that a request was answered which failed")
        order = standing_order(deployment, receipt.request, receipt.outcome.input)
        told = row_of(
            receipt,
            signed.version,
            row.receipt,
            number=row.number,
            method=row.method,
            path=row.path,
            status=row.status,
            note=row.note,
        )
        claims.append(ReceiptClaim(told, receipt, order, signed))
    return claims


def plan_payment(
    claims: Sequence[ReceiptClaim], terms: Mapping[bytes, tuple[int, int] | None], since: int
) -> list[ReceiptClaim]:
    """Return the claims to pay: those under a known lease with room, of this service.

    What ran at a cleared rate costs nothing more, and needs no room now.

    Args:
        claims: of one page.
        terms: price a Gfuel and steps left under each lease, None where it is not known.
        since: the generation of the service's first version.

    Raises:
        ReceiptInvalid: a receipt breaks a rule.
    """
    paid = []
    left: dict[bytes, int] = {}
    for claim in claims:
        known = terms[claim.lease_id]
        if known is None or claim.deployment.generation < since:
            continue
        price, room = known
        refusal = check_receipt(claim.order, claim.receipt, price)
        if claim.receipt.outcome.trap in UNPAID_TRAPS:
            refusal = "it bills a run that its owner cancelled, or compiling"
        if refusal is not None:
            raise errors.ReceiptInvalid(refusal)
        if claim.steps > left.setdefault(claim.lease_id, room) and price:
            continue
        left[claim.lease_id] -= claim.steps
        paid.append(claim)
    return paid


def _is_told(row: LogRow) -> bool:
    """Say whether the fields that no receipt covers are what a holder notes of a request."""
    return (
        row.number < _NUMBER_MAX
        and row.method in wagi.METHODS
        and 200 <= row.status < 600
        and len(row.path) <= _PATH_CHARS_MAX
        and len(row.note) <= SERVICE_NOTE_BYTES_MAX
    )


def row_of(
    receipt: ExecutionReceipt,
    version: str,
    raw: bytes,
    *,
    number: int,
    method: str,
    path: str,
    status: int,
    note: str,
) -> LogRow:
    """Return the row of a request: what is billed is taken from its receipt."""
    assert receipt.request is not None
    told = receipt.outcome
    return LogRow(
        number=number,
        at_ms=receipt.request.created_ms,
        request_id=ids.to_text(receipt.request.nonce),
        version=version,
        method=method,
        path=path[:_PATH_CHARS_MAX],
        status=status,
        fuel_used=told.fuel_used,
        memory_peak_bytes=told.memory_peak_bytes,
        wall_ms=receipt.observed.wall_ms,
        amount_micro=receipt.amount_micro,
        trap=told.trap or "",
        note=note,
        receipt=raw,
    )
