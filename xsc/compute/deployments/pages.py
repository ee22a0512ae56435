"""Rows of a service's log, and the pages of them that an owner fetches from a holder and pays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
UNPAID_TRAPS = ("cancelled", "compile_limit")
"""How no request can end that is billed: its module was compiled when it was deployed."""
_URL = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True, slots=True)
class ReceiptPage:
    """What a holder answers to an owner that collects receipts."""

    rows: tuple[LogRow, ...]
    more: bool
    """Whether the holder has more rows."""
    starved: bool
    """Whether a request found no room under the lease."""
    lease_left_ms: int
    url: str


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


def read_page(header: Mapping[str, encoding.Value]) -> ReceiptPage:
    """Return the page of a reply.

    Raises:
        RecordInvalid: it is malformed.
    """
    rows = fields.take_list(header, "rows", most=limits.SERVICE_PAGE_ROWS_MAX)
    return ReceiptPage(
        tuple(LogRow.from_value(fields.take_map({"row": item}, "row")) for item in rows),
        fields.take_bool(header, "more"),
        fields.take_bool(header, "starved"),
        fields.take_int(header, "lease_left_ms"),
        url_in(header),
    )


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
        claims.append(ReceiptClaim(row_of(receipt, signed.version, row), receipt, order, signed))
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
        row.method in wagi.METHODS
        and 200 <= row.status < 600
        and len(row.path) <= _PATH_CHARS_MAX
        and len(row.note) <= SERVICE_NOTE_BYTES_MAX
    )


def noted(request: wagi.Request, status: int, stderr: bytes, receipt: bytes) -> LogRow:
    """Return a row with what no receipt says; `row_of` puts in the rest."""
    return LogRow(
        number=0,
        at_ms=0,
        request_id="",
        version="",
        method=request.method,
        path=request.raw_path[:_PATH_CHARS_MAX],
        status=status,
        fuel_used=0,
        memory_peak_bytes=0,
        wall_ms=0,
        amount_micro=0,
        trap="",
        note=stderr[-SERVICE_NOTE_BYTES_MAX:].decode("utf-8", "replace"),
        receipt=receipt,
    )


def row_of(receipt: ExecutionReceipt, version: str, noted: LogRow) -> LogRow:
    """Return the row of a receipt: what is billed is taken from it, the rest from `noted`."""
    assert receipt.request is not None
    told = receipt.outcome
    return replace(
        noted,
        at_ms=receipt.request.created_ms,
        version=version,
        fuel_used=told.fuel_used,
        memory_peak_bytes=told.memory_peak_bytes,
        wall_ms=receipt.observed.wall_ms,
        amount_micro=receipt.amount_micro,
        trap=told.trap or "",
        request_id=ids.to_text(receipt.request.nonce),
    )
