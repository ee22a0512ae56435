"""Payments off the books: how the reports of two operators become one entry.

The payee, which is owed something, signs a voucher to the payer in an account that is
used for their payments only. The payer books it like any voucher, which reduces its debt.
So no debt falls without the creditor's signature, and the chain, recovery and proofs need
nothing new. docs/design/ledger.md, "Off the books".
"""

from __future__ import annotations

from dataclasses import dataclass

from xsc.base import encoding, units
from xsc.ledger.entry import XID_BYTES
from xsc.terms.voucher import Voucher, off_books_account


@dataclass(frozen=True, slots=True)
class Payment:
    """What the operator of this node has said of a payment, until it is booked."""

    amount_micro: int
    is_payer: bool
    before_micro: int
    """What was booked of such payments between the two by then, in all."""
    said_ms: int


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


def agree(payment: Payment, amount_micro: int, *, is_payer: bool) -> bool:
    """Return whether the other operator said the same, from the other side."""
    return payment.amount_micro == amount_micro and payment.is_payer != is_payer


def make_voucher(payment: Payment, *, payer: bytes, payee: bytes) -> Voucher:
    """Return what the payee signs: the same for the same word, whenever it is made."""
    assert not payment.is_payer, "only the payee signs"
    amount = payment.before_micro + payment.amount_micro
    return Voucher(
        account=off_books_account(payer, payee),
        provider=payer,
        customer=payee,
        number=amount,
        amount_micro=amount,
        until_ms=payment.said_ms,
        count=None,
    )


def check_voucher(voucher: Voucher, payment: Payment, *, payer: bytes, payee: bytes) -> str | None:
    """Return why a payee's voucher is not what the payer's operator spoke of."""
    if (voucher.provider, voucher.customer) != (payer, payee):
        return "the voucher is between other nodes"
    if voucher.account != off_books_account(payer, payee):
        return "the voucher is for an account"
    if voucher.amount_micro != payment.before_micro + payment.amount_micro:
        return "the voucher is over another amount"
    return None


def check_consent(
    voucher: Voucher, payment: Payment | None, *, payer: bytes, payee: bytes
) -> str | None:
    """Return why the payee does not book what its own voucher is over.

    Its operator may have taken back or corrected what was signed. A voucher refused so is
    refused for ever: the operator's next word has another time, and so another voucher.
    """
    if (
        payment is None
        or payment.is_payer
        or voucher != make_voucher(payment, payer=payer, payee=payee)
    ):
        return "the operator does not say now that this was paid"
    return None


def xid_of(voucher: Voucher, payment: Payment) -> bytes:
    """Return the id of the entry that books a payment: the same for the same two words.

    One that the payee refused is spent; the next word of either operator goes under another.
    """
    numbers = (voucher.amount_micro, voucher.until_ms, payment.said_ms)
    words = (number.to_bytes(8, "big") for number in numbers)
    return encoding.tagged_sha256("off-books/xid", voucher.account, *words)[:XID_BYTES]
