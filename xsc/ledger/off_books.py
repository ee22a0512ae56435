"""Payments off the books: how the reports of two operators become one entry.

The payer books what both reported, in an account that is used for its payments to the payee only,
and the payee answers with its half only while its own report stands. So no debt falls without the
creditor's signature. docs/design/ledger.md, "Off the books".
"""

from __future__ import annotations

from xsc.base import units
from xsc.identity.envelope import Count, Record
from xsc.terms.voucher import Voucher, off_books_account


class Payment(Record):
    """What the operator of a node has said of a payment, until it is booked."""

    amount_micro: Count
    is_payer: bool
    before_micro: Count
    """What was booked of such payments between the two by then, in all."""
    said_ms: Count


def check_amount(amount_micro: int, balance_micro: int, clearing_micro: int) -> str | None:
    """Return why a payment cannot take so much off what one of two nodes owes the other.

    Args:
        amount_micro: what was paid.
        balance_micro: what the peer owes this node; below zero, this node owes.
        clearing_micro: by how much that changes once loops are booked that all have signed.
    """
    if clearing_micro and amount_micro > abs(balance_micro + clearing_micro):
        off = units.format_credits(abs(clearing_micro))
        return f"{off} credits of this debt are taken off by a loop that is not booked yet"
    if balance_micro == 0:
        return "neither of the two nodes owes the other anything"
    if amount_micro > abs(balance_micro):
        debt = "the peer owes this node" if balance_micro > 0 else "this node owes the peer"
        owed, said = units.format_credits(abs(balance_micro)), units.format_credits(amount_micro)
        return f"{debt} {owed} credits, less than {said}"
    return None


def is_over(payment: Payment, booked_micro: int) -> bool:
    """Return whether a payment was booked since its operator spoke of it."""
    return booked_micro > payment.before_micro


def agree(payment: Payment, other: Payment) -> bool:
    """Return whether the other operator said the same, from the other side."""
    return payment.is_payer != other.is_payer and (payment.amount_micro, payment.before_micro) == (
        other.amount_micro,
        other.before_micro,
    )


def worth(payment: Payment, *, payer: bytes, payee: bytes) -> Voucher:
    """Return what the payee's report is worth as a voucher: only the two halves sign it."""
    return Voucher(
        account=off_books_account(payer, payee),
        provider=payer,
        customer=payee,
        number=1,
        amount_micro=payment.before_micro + payment.amount_micro,
        until_ms=payment.said_ms,
        count=None,
    )


def check_consent(
    voucher: Voucher, payment: Payment | None, *, payer: bytes, payee: bytes
) -> str | None:
    """Return why the payee does not book what a payer shows as its report.

    Its operator may have taken back or corrected it. What is refused so is refused for ever: the
    operator's next report has another time.
    """
    if payment is None or payment.is_payer or voucher != worth(payment, payer=payer, payee=payee):
        return "the operator does not say now that this was paid"
    return None
