"""The node on the market: puts its parts together, starts, tidies and closes them.

as a provider    `granter` grants leases, and counts what is used of them
as a customer    `buyer` finds leases and counts what is used, `signing` takes what clearings
offer, gives up what is not needed and renews
in both roles    `settlement` agrees with peers on which leases there are, and pays
"""

from __future__ import annotations

from typing import NamedTuple

from xsc.base import errors, limits, peering
from xsc.identity.context import Context
from xsc.market import buyer, granter, headroom, lease, lease_store, proof, settlement, signing
from xsc.market.account import Account, LeaseView, owed_micro, unproven, views
from xsc.market.default_need import DefaultNeed
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.providers import LEASE, Providers
from xsc.terms.pricing import WORTH


class Unproven(NamedTuple):
    """What bytes held came to between this node and a peer, and nobody has proven yet."""

    unproven_micro: int
    """What this node pays once the peer has proven that it holds them."""
    unproven_since_ms: int | None
    """Since when it has not; None where all is decided."""
    owed_unproven_micro: int
    """What the peer pays once this node has."""
    owed_unproven_since_ms: int | None


class MarketService:
    """The leases of one node, in both roles."""

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        *,
        settings: MarketSettings,
    ) -> None:
        own = context.key.node_id
        self.store = lease_store.LeaseStore(
            context.state, context.network, own, context.commit, ports.need_of
        )
        self._node = node = lease_store.MarketNode(context, ports, settings, self.store)
        self._clock = context.clock
        self.headroom = headroom.Headroom(node)
        self.granter = granter.LeaseGranter(node, self.headroom)
        self.providers = Providers(node)
        self.settlement = settlement.Settlement(node)
        self.default_need = DefaultNeed(node, context.state)
        self.buyer = buyer.LeaseBuyer(node, self.providers, self.headroom, self.settlement.agree)
        self.signing = signing.Signing(node, self.providers, self.settlement.agree)

    async def start(self) -> None:
        """Read the leases that were kept, and what the ledger has booked of them.

        Raises:
            StoreDamaged: a kept lease cannot be read.
        """
        self.store.load()
        self.default_need.load()
        for account in self.store.accounts("provider"):
            account.settled_micro = self._node.ports.credit.settled(account.id)

    async def run(self) -> None:
        """Tidy up, at once and again, and settle at every interval, until cancelled."""
        settle_ms = self._clock.monotonic_ms() + self._node.settings.settle_interval_ms
        while True:
            self.tidy()
            await self._clock.sleep_ms(min(limits.TIDY_MS, self._node.settings.settle_interval_ms))
            if self._clock.monotonic_ms() >= settle_ms:
                await self.settlement.settle_due()
                settle_ms = self._clock.monotonic_ms() + self._node.settings.settle_interval_ms

    async def close(self) -> None:
        """Settle what can be settled, and write what is left."""
        await self.settlement.settle_all()
        self.store.close()

    def handlers(self) -> dict[str, peering.Handler]:
        """Return the methods that peers may call."""
        return {LEASE: self.granter.on_lease, settlement.ACCOUNT: self.settlement.on_account}

    def tidy(self) -> None:
        """Keep nothing free for leases that have ended; forget those that are over for long."""
        now_ms = self._clock.now_ms()
        for entry in [entry for role in lease.ROLES for entry in self.store.all(role)]:
            entry.use, is_over = lease.tidied(entry, now_ms)
            if is_over:
                self.store.forget(entry)
        for account in self.store.accounts():
            entries = self.store.of(account.role, account.peer)
            proof.settle_idle(account, entries, now_ms)
            if account.role == "provider":
                is_up = self._node.ports.quality.is_up(account.peer)
                steady_ms = self._clock.monotonic_ms()
                proof.watch(account, entries, now_ms, steady_ms, is_up=is_up)
        self.default_need.tidy()
        self.headroom.refresh()

    # What people see

    def leases(self) -> list[LeaseView]:
        """Return every lease known, in both roles."""
        now_ms = self._clock.now_ms()
        return [
            view
            for account in self.store.accounts()
            for view in views(account, self.store.of(account.role, account.peer), now_ms)
        ]

    def owed_micro(self, account: Account) -> int:
        """Return what of an account is not settled."""
        entries = self.store.of(account.role, account.peer)
        return owed_micro(account, entries, self._clock.now_ms())

    def unproven(self, peer: bytes) -> Unproven:
        """Return what bytes held came to between this node and a peer that is not proven."""

        def of(role: lease.Role) -> tuple[int, int | None]:
            account, entries = self.store.account(role, peer), self.store.of(role, peer)
            micro = unproven(account, entries, self._clock.now_ms()) // WORTH
            return micro, proof.since_ms(account, entries) if micro else None

        return Unproven(*of("customer"), *of("provider"))

    def lease_record(self, lease_id: bytes, *, denial: bool = False) -> bytes:
        """Return the signed lease of that id, or its denial, in either role, for `xsc verify`.

        A denial is the provider's signed count in which the lease is not.

        Raises:
            NotFound: this node knows no such lease, or it was not denied.
        """
        for role in lease.ROLES:
            entry = self.store.get(role, lease_id)
            record = None if entry is None else entry.use.denial if denial else entry.raw
            if record is not None:
                return record
        what = "no provider has denied this lease" if denial else "this node has no such lease"
        raise errors.NotFound(what, hint="`xsc market leases` lists them")

    def account_record(self, peer: bytes, *, count: bool) -> bytes:
        """Return the newest voucher for a provider, or the count that it pays, for `xsc verify`.

        Raises:
            NotFound: this node has signed none, or its disk lost the count.
        """
        account = self.store.account("customer", peer)
        record = account.count if count else account.voucher
        if record is None:
            raise errors.NotFound(
                "this node has signed no voucher for that provider",
                hint="`xsc ledger settle` signs what is owed now",
            )
        return record
