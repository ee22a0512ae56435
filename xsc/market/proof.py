"""What of storage is proven, and so paid: the time that bytes are held, up to the last proof.

Both sides of a pair run these rules over what their leases came to for bytes held (`stored`), the
provider when it answers a challenge of its customer, and the customer when it judges the answer.
What an account keeps only rises: `proven`, up to where challenges decided, and of that `void`,
which is never paid. docs/design/market.md, "Proof"
"""

from __future__ import annotations

from collections.abc import Collection

from xsc.base import limits
from xsc.market import lease
from xsc.market.account import Account, due_micro, held_bytes, unproven
from xsc.market.lease import LeaseEntry, advance
from xsc.terms.possession import Proven

UNPROVEN_MS_MAX = 30 * 86_400_000
"""Of the time before an ok so much is paid."""
AWAY_MS = 2 * limits.EPOCH_MS
"""So long after the last decision a customer counts as away: at home it challenges every hour."""
DEMANDED_MS = 24 * 3_600_000
"""So long a customer that is up may give no challenge, or not sign for an answer."""


def is_covered(entries: Collection[LeaseEntry], leaves: int) -> bool:
    """Return whether a list with so many leaves can name all that is held.

    Out of a shorter one nothing follows for the pair.
    """
    return 0 < held_bytes(entries) <= leaves * limits.LEAF_BYTES


def until_ms(said_ms: int, epoch: int, now_ms: int, *, ok: bool) -> int:
    """Return up to when an answer decides, by the provider's clock as far as that can be right.

    A host that was silent knows what was drawn: an ok proves no more than the hour of that.
    """
    window_ms = limits.REQUEST_WINDOW_MS
    near_ms = min(max(said_ms, now_ms - window_ms), now_ms + window_ms)
    return min(near_ms, (epoch + 1) * limits.EPOCH_MS) if ok else near_ms


def is_certified(account: Account, proven: Proven, now_ms: int) -> bool:
    """Return whether a custodian's record can stand for challenges of the customer.

    It can while the customer is away: not where the last challenge found a loss, and not soon after
    one. Nobody certifies itself.
    """
    is_later = account.proven_ms + AWAY_MS < proven.at_ms <= now_ms
    return is_later and not account.failed and proven.prober != account.provider


def since_ms(account: Account, entries: Collection[LeaseEntry]) -> int:
    """Return up to when challenges decided; before the first one, when the first lease began."""
    return account.proven_ms or min((entry.terms.start_ms for entry in entries), default=0)


def decide(
    account: Account, entries: Collection[LeaseEntry], at_ms: int, now_ms: int, *, ok: bool
) -> None:
    """Have an account's time up to a moment count as proven, or as void.

    What is held now is taken off for the time since: where bytes were deleted, that is too little.
    """
    begun_ms = since_ms(account, entries)
    if at_ms <= begun_ms:
        return
    seen_ms = max(now_ms, at_ms)
    uses = [(entry.terms, advance(entry.terms, entry.use, seen_ms)) for entry in entries]
    since = sum(
        lease.worth(terms, use.held_bytes * max(0, use.counted_ms - at_ms)) for terms, use in uses
    )
    decided = max(0, unproven(account, entries, seen_ms) - since)
    passed_ms = at_ms - begun_ms
    paid_ms = min(passed_ms, UNPROVEN_MS_MAX) if ok else 0
    account.proven += decided
    account.void += decided - decided * paid_ms // passed_ms
    account.proven_ms, account.failed = at_ms, not ok


def settle_idle(account: Account, entries: Collection[LeaseEntry], now_ms: int) -> None:
    """Decide what is open where nothing is held any more: its customer deleted it, and pays.

    Not for what was deleted after its loss was found.
    """
    if not held_bytes(entries):
        left = unproven(account, entries, now_ms)
        account.proven += left
        account.void += left if account.failed else 0
        account.proven_ms, account.failed = max(account.proven_ms, now_ms), False


def watch(
    account: Account,
    entries: Collection[LeaseEntry],
    now_ms: int,
    steady_ms: int,
    *,
    is_up: bool,
) -> None:
    """Note at a provider since when it waits for a challenge, and for what its customer signs.

    It waits for nobody that is away, and begins anew at each start: honest customers challenge
    every hour.
    """
    if account.unsigned_ms is None or not is_up or not held_bytes(entries):
        account.heard_ms = account.unsigned_ms = steady_ms
    if due_micro(account, entries, now_ms) <= account.signed_micro:
        account.unsigned_ms = steady_ms


def is_demanded(account: Account, steady_ms: int) -> bool:
    """Return whether a provider grants nothing new until the customer challenges it, or pays."""
    waits = (account.heard_ms, account.unsigned_ms)
    return any(since is not None and steady_ms - since > DEMANDED_MS for since in waits)
