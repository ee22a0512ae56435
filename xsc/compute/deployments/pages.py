"""Rows of a service's log, and the pages of them that an owner fetches from a holder and pays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from xsc.base.encoding import Value
from xsc.base.errors import ReceiptInvalid, RecordInvalid
from xsc.base.fields import take_bool, take_int, take_list, take_map, take_str
from xsc.base.ids import to_text
from xsc.base.limits import KIB, SERVICE_PAGE_ROWS_MAX, SERVICE_RECORD_BYTES_MAX
from xsc.compute.deployments import rules, wagi
from xsc.compute.deployments.store import LogRow
from xsc.compute.wasm.sandbox import SandboxResult
from xsc.identity.envelope import open_signed
from xsc.terms.deployment import Deployment, ServiceReceipt

SERVICE_NOTE_BYTES_MAX = 1 * KIB
"""Of what a request writes to standard error, the end that the log keeps."""

_PATH_CHARS_MAX = 256
_URL_CHARS_MAX = 512
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
    """A row of a page with its signed receipt and deployment, both verified."""

    row: LogRow
    receipt: ServiceReceipt
    deployment: Deployment

    @property
    def steps(self) -> int:
        """The fuel steps that the receipt bills."""
        return rules.steps_of(self.deployment, self.receipt.outcome.fuel_used)


def read_page(header: Mapping[str, Value]) -> ReceiptPage:
    """Return the page of a reply.

    Raises:
        RecordInvalid: it is malformed.
    """
    rows = take_list(header, "rows", most=SERVICE_PAGE_ROWS_MAX)
    return ReceiptPage(
        tuple(LogRow.from_value(take_map({"row": item}, "row")) for item in rows),
        take_bool(header, "more"),
        take_bool(header, "starved"),
        take_int(header, "lease_left_ms"),
        url_in(header),
    )


def url_in(header: Mapping[str, Value]) -> str:
    """Return where a holder says that requests reach it, which is printed on terminals.

    Raises:
        RecordInvalid: it is no plain address.
    """
    url = take_str(header, "url", most=_URL_CHARS_MAX)
    if url and not _URL.fullmatch(url):
        raise RecordInvalid("the holder says that its services are at what is no address")
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
    refusal = rules.check_numbers(after, [row.number for row in rows])
    if any(not _is_told(row) for row in rows):
        refusal = "it says of a request what none can have been"
    if refusal is not None:
        raise ReceiptInvalid(refusal)
    claims = []
    for row in rows:
        receipt = open_signed(row.receipt, ServiceReceipt, network=network, author=provider).record
        deployment = open_signed(
            receipt.deployment,
            Deployment,
            network=network,
            author=owner,
            size_max=SERVICE_RECORD_BYTES_MAX,
        ).record
        if (deployment.name, deployment.provider) != (name, provider):
            raise ReceiptInvalid("it is over the deployment of another service")
        claims.append(ReceiptClaim(row_of(receipt, deployment, row), receipt, deployment))
    return claims


def plan_payment(
    claims: Sequence[ReceiptClaim],
    numbers: Sequence[int],
    terms: Mapping[bytes, tuple[int, int] | None],
    since: int,
) -> list[ReceiptClaim]:
    """Return the claims to pay: those under a known lease with room, of this service.

    What ran at a cleared rate costs nothing more, and needs no room now.

    Args:
        claims: of one page.
        numbers: of its rows, as the holder sent them.
        terms: price a Gfuel and steps left under each lease, None where it is not known.
        since: the generation of the service's first version.

    Raises:
        ReceiptInvalid: a receipt breaks a rule.
    """
    paid = []
    left: dict[bytes, int] = {}
    for claim, number in zip(claims, numbers, strict=True):
        receipt = claim.receipt
        known = terms[receipt.lease_id]
        if known is None or claim.deployment.generation < since:
            continue
        price, room = known
        refusal = rules.check_receipt(claim.deployment, receipt, price)
        if refusal is None and receipt.number != number:
            refusal = "it bears another number than its row"
        if refusal is not None:
            raise ReceiptInvalid(refusal)
        if claim.steps > left.setdefault(receipt.lease_id, room) and price:
            continue
        left[receipt.lease_id] -= claim.steps
        paid.append(claim)
    return paid


def _is_told(row: LogRow) -> bool:
    """Say whether the fields that no receipt covers are what a holder notes of a request."""
    return (
        row.method in wagi.METHODS
        and len(row.path) <= _PATH_CHARS_MAX
        and len(row.note) <= SERVICE_NOTE_BYTES_MAX
    )


def failures_in(rows: Sequence[LogRow]) -> int:
    """Return how many rows are of requests that failed."""
    return sum(1 for row in rows if row.status >= 500)


def noted(request: wagi.Request, result: SandboxResult, receipt: bytes) -> LogRow:
    """Return a row with what no receipt says; `row_of` puts in the rest."""
    note = result.stderr[-SERVICE_NOTE_BYTES_MAX:].decode("utf-8", "replace")
    path = request.raw_path[:_PATH_CHARS_MAX]
    return LogRow(
        number=0,
        at_ms=0,
        request_id="",
        version="",
        method=request.method,
        path=path,
        status=0,
        fuel_used=0,
        memory_peak_bytes=0,
        wall_ms=0,
        amount_micro=0,
        trap="",
        note=note,
        receipt=receipt,
    )


def row_of(receipt: ServiceReceipt, deployment: Deployment, noted: LogRow) -> LogRow:
    """Return the row of a receipt: what is billed is taken from it, the rest from `noted`."""
    told = receipt.outcome
    return replace(
        noted,
        number=receipt.number,
        at_ms=receipt.created_ms,
        version=deployment.version,
        status=receipt.status,
        fuel_used=told.fuel_used,
        memory_peak_bytes=told.memory_peak_bytes,
        wall_ms=receipt.observed.wall_ms,
        amount_micro=receipt.amount_micro,
        trap=told.trap or "",
        request_id=to_text(receipt.nonce),
    )
