"""What a use costs: the one arithmetic that market and compute must agree on.

Prices are whole micro-credits. A price of storage is for one GiB and one epoch, an hour
(PRICE_BYTES); a price of compute is for one Gfuel, 10^9 fuel steps (PRICE_FUEL). A
fuel step is one unit of fuel for each begun MEMORY_STEP_BYTES of the memory
*limit*: memory is paid as it was asked for, so that a bill needs no clock. A run is
billed for its fuel, for RUN_FUEL, for compiling what it brought and for the calls of a
batch (`run_steps`).
Amounts are rounded down, once, at the end: what is lost is less than a micro-credit.
Leases count bytes and fuel steps. Slots and needs count steps of a level (`xsc.terms.slot`): their
prices are the same prices, and their amounts are `slot_amount`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Final

from xsc.base import limits, units

if TYPE_CHECKING:  # a sandbox worker prices, and need not load the record models
    from xsc.terms.quote import Kind, Tier

PRICE_UNIT: Final[dict[Kind, int]] = {"storage": limits.PRICE_BYTES, "compute": limits.PRICE_FUEL}
"""For how much a price is: bytes (of storage, for an epoch), or fuel steps."""
SLOT_UNIT: Final[dict[Kind, int]] = {
    "storage": limits.SLOT_STEP_BYTES,
    "compute": limits.SLOT_STEP_FUEL * limits.EPOCH_MS // 1_000,
}
"""What a step of a slot or need comes to in an epoch: bytes, or fuel steps."""
WORTH: Final = lcm(limits.PRICE_BYTES * limits.EPOCH_MS, limits.PRICE_FUEL * 1_000)
"""Into so many parts a micro-credit is divided, so that what leases come to needs no rounding."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """Prices: mutual <= one-way <= reserve, named as in an offer."""

    price_mutual: int
    price_one_way: int
    reserve: int

    def rung(self, tier: Tier) -> int:
        """Return the price of a tier."""
        mutual, one_way = self.price_mutual, self.price_one_way
        return {"mutual": mutual, "one_way": one_way, "open": self.reserve}[tier]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a provider asks of one customer now, as its published slots say."""

    provider: bytes
    kind: Kind
    slot: bytes
    window: tuple[int, int]
    """Of the slot; it is open now."""
    tier: Tier
    ladder: Ladder
    """Its reserve is what strangers pay: more than the slot's while needs compete for that."""

    @property
    def price(self) -> int:
        """The rung of the tier: what the customer pays at least."""
        return self.ladder.rung(self.tier)


def memory_steps(memory_bytes: int) -> int:
    """Return the begun memory steps of a memory limit, at least one."""
    return max(1, units.ceil_div(memory_bytes, limits.MEMORY_STEP_BYTES))


def fuel_steps(fuel: int, memory_bytes: int) -> int:
    """Return the fuel steps of that much fuel under that memory limit."""
    return fuel * memory_steps(memory_bytes)


def run_steps(fuel: int, memory_bytes: int, compiled_bytes: int = 0, calls: int = 0) -> int:
    """Return the fuel steps that a run is billed for, or at most, where these are the limits.

    Args:
        fuel: that the program used.
        memory_bytes: the memory limit.
        compiled_bytes: the size of the module, where the run brought it to be compiled.
        calls: of a batch.
    """
    beside = (
        limits.RUN_FUEL + compiled_bytes * limits.COMPILE_BYTE_FUEL + calls * limits.BATCH_CALL_FUEL
    )
    return fuel_steps(fuel + beside, memory_bytes)


def compute_amount(price: int, steps: int) -> int:
    """Return the micro-credits for fuel steps at a price a Gfuel."""
    return price * steps // limits.PRICE_FUEL


def amount(kind: Kind, price: int, quantity: int) -> int:
    """Return the micro-credits for byte-epochs, or for fuel steps."""
    return price * quantity // PRICE_UNIT[kind]


def worth(kind: Kind, price: int, used: int, *, cleared: bool) -> int:
    """Return what the use of a lease comes to, unrounded: in WORTHths of a micro-credit.

    Args:
        kind: of the lease.
        price: micro-credits a GiB and hour, or a Gfuel.
        used: byte-milliseconds; of compute fuel steps, of a cleared rate the fuel steps a second
            times milliseconds.
        cleared: whether a clearing granted it.
    """
    times = {"storage": limits.EPOCH_MS, "compute": 1_000 if cleared else 1}
    return price * used * WORTH // (PRICE_UNIT[kind] * times[kind])


def slot_amount(kind: Kind, price: int, steps: int) -> int:
    """Return the micro-credits for an epoch of a level in steps, as slots and needs state it."""
    return amount(kind, price, steps * SLOT_UNIT[kind])


def affordable(kind: Kind, price: int, credit_micro: int) -> int | None:
    """Return the largest quantity whose amount is within the credit; None without bound."""
    if price == 0:
        return None
    if credit_micro < 0:
        return 0
    # The largest quantity with price · quantity // unit <= credit.
    return ((credit_micro + 1) * PRICE_UNIT[kind] - 1) // price
