"""What customers may still come to owe this node, and which of them have reached their limit.

A customer counts together with the peers that share its credit. The rules are in `account`.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base.errors import CreditExceeded
from xsc.base.ids import short
from xsc.base.units import format_credits
from xsc.identity.context import Context
from xsc.market.account import owed_micro
from xsc.market.lease_entry import LeaseEntry, ahead_micro, calls_micro
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts


class CreditLimits:
    """Compares what customers owe under their leases with the credit that the ledger gives them."""

    def __init__(self, context: Context, ports: MarketPorts, store: LeaseStore) -> None:
        self._clock = context.clock
        self._log = context.log
        self._store = store
        self._credit = ports.credit
        self.at_limit: frozenset[bytes] = frozenset()
        """Customers that may come to owe nothing more, as of the last `refresh`."""

    def exposure(self, customer: bytes) -> int:
        """Return what this node may lose to a customer and those that share its credit."""
        sold, now_ms = self._sold_to(customer), self._clock.now_ms()
        ahead = sum(ahead_micro(entry, now_ms) for entry in sold)
        return self._owed(customer) + ahead + calls_micro(sold)

    def left(self, customer: bytes) -> int:
        """Return the micro-credits that a customer may still come to owe, its leases counted."""
        return self._credit.credit_left(customer) - self.exposure(customer)

    def calls(self, customer: bytes) -> int:
        """Return the part of it that is of calls, which wait or are under way."""
        return calls_micro(self._sold_to(customer))

    def shares_with(self, customer: bytes) -> Sequence[bytes]:
        """Return the customers that share one credit with a customer, itself among them."""
        return self._credit.shares_with(customer)

    def refresh(self) -> None:
        """Find the customers that have reached their limit, and log which are new or gone."""
        before = self.at_limit
        self.at_limit = frozenset(
            account.peer
            for account in self._store.accounts("provider")
            if any(entry.terms.price for entry in self._sold_to(account.peer))
            and self._owed(account.peer) >= self._credit.credit_left(account.peer)
        )
        for customer in sorted(self.at_limit - before):
            self._log.warning(
                "market.customer_at_limit",
                customer=short(customer),
                owed_micro=self._owed(customer),
                credit_left_micro=self._credit.credit_left(customer),
            )
        for customer in sorted(before - self.at_limit):
            self._log.info("market.customer_within_limit", customer=short(customer))

    def check(self, customer: bytes) -> None:
        """Refuse new work to a customer that had reached its limit at the last `refresh`.

        Raises:
            CreditExceeded: it had.
        """
        if customer in self.at_limit:
            owed = self._owed(customer)
            left = self._credit.credit_left(customer)
            raise CreditExceeded(
                f"this node serves nothing more on credit: {format_credits(owed)} are not settled, "
                f"and {format_credits(max(0, left))} may still be owed here",
                hint="settle what is owed, or ask the provider for a higher limit",
            )

    def _owed(self, customer: bytes) -> int:
        """Return what a customer, and those that share its credit, owe and have not settled."""
        now_ms = self._clock.now_ms()
        return sum(
            owed_micro(
                self._store.account("provider", other), self._store.of("provider", other), now_ms
            )
            for other in self._credit.shares_with(customer)
        )

    def _sold_to(self, customer: bytes) -> Sequence[LeaseEntry]:
        """Return the leases whose debts count together with a customer's."""
        return [
            entry
            for other in self._credit.shares_with(customer)
            for entry in self._store.of("provider", other)
        ]
