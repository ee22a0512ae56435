"""The allocation program: canonical bytes of all that a round follows from, and its function.

The function is given bytes and gives bytes, so that it can be run again from its provenance.
The bytes have each published value with the record that signs it. What was granted before is not in
them: the program is given the last state beside.

Damping follows from what a node was granted beyond its needs. Under `proportional` the factor
scales needs, as in the original. Elsewhere it limits how fast new asks are published, and is no
entitlement. Convergence is whether what a node grants has settled (docs/design/allocation.md, G5,
G6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol, TypeAlias

from xsc.allocation import clearing_record, granting
from xsc.base import limits, units
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.slot import Entitlement, NeedSlot

SMOOTH_PPM: Final = limits.PPM
MODERATE_PPM: Final = 800_000
OSCILLATING_PPM: Final = 500_000

History: TypeAlias = tuple[tuple[int, int], ...]
"""What was granted beyond the needs, in ppm of them, and when in milliseconds, the oldest first."""


def parts_of(raw: bytes) -> list[tuple[bytes, str, bytes, bytes]]:
    """Return the values of spaces that were gathered, those of this node first.

    Each is its owner, its path, the record that signs it, and the value.

    Raises:
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    inputs = granting.Inputs.read(raw)
    paths = (UserSpacePaths.COMMITMENT, UserSpacePaths.RECOGNITION)
    return [
        (each.node, path, value.record, value.value)
        for each in (inputs.own, *inputs.others)
        for path, value in zip(paths, each.said[1:], strict=True)
        if value is not None and value.record
    ]


def over_allocated(needs: Mapping[bytes, NeedSlot], received: Iterable[Entitlement]) -> int:
    """Return what is received beyond each need, in ppm of it, in all.

    One need's excess serves no other, and steps of bytes and of fuel do not add up.
    """
    totals = Counter[bytes]()
    for each in received:
        totals[each.need] += each.quantity
    return sum(
        max(0, totals[need_id] - need.quantity) * limits.PPM // need.quantity
        for need_id, need in needs.items()
    )


def observe(history: History, over: int, now_ms: int) -> History:
    """Return the history with one more computation.

    The original keeps three of the last 30 s, or the last three where these are fewer: the last
    three in both cases.
    """
    return (*history, (over, now_ms))[-limits.DAMPING_HISTORY_MAX :]


def factor_ppm(history: History) -> int:
    """Return the factor of a history.

    Up and down again, or down and up, oscillates; so does what is over-allocated by the same
    amount each time. What never rises is smooth, and so are less than three computations.
    """
    if len(history) < limits.DAMPING_HISTORY_MAX:
        return SMOOTH_PPM
    first, second, third = (over for over, _ in history[-limits.DAMPING_HISTORY_MAX :])
    if first < second > third or first > second < third or first == second == third > 0:
        return OSCILLATING_PPM
    return SMOOTH_PPM if first >= second >= third else MODERATE_PPM


def state_after(
    inputs: granting.Inputs, granted: TwoTierAllocationState, last: TwoTierAllocationState
) -> TwoTierAllocationState:
    """Return the state that is published.

    Args:
        inputs: what the outcome followed from.
        granted: what `clear_all` gave.
        last: what was published before.
    """
    own = inputs.own
    mutual = {peer: min(own.weights.get(peer, 0), ppm) for peer, ppm in inputs.gathered.theirs}
    before, now = ({each.clearing for each in state.slot_denominators} for state in (last, granted))
    changed = units.ceil_div(len(before ^ now) * limits.PPM, max(1, len(before | now)))
    changes = (*last.convergence_history, (changed, inputs.gathered.now_ms))
    return granted.model_copy(
        update={
            "mr_values": tuple(sorted((peer, ppm) for peer, ppm in mutual.items() if ppm)),
            "damping_factor": factor_ppm(own.commitment.damping_history),
            "damping_history": own.commitment.damping_history,
            # While a clearing is the same, no denominator and no level of it moves at all.
            "converged": changed == 0 and not inputs.gathered.is_pending,
            "convergence_history": changes[-limits.DAMPING_HISTORY_MAX :],
        }
    )


def state_of(gathered: bytes, last: bytes) -> bytes:
    """Return the state that follows from what was gathered and the last one.

    Raises:
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    inputs, before = granting.Inputs.read(gathered), clearing_record.read_state(last)
    return state_after(inputs, granting.clear_all(inputs, before)[0], before).to_bytes()


class Program(Protocol):
    """The allocation program, which serves in place of the direct call of the rule."""

    fault: str
    """Why it does not serve, or ''."""

    def run(self, given: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return its outputs; None where it fails."""

    def writes(self) -> Mapping[str, bytes | None]:
        """Return what is written with them, by path of the own space."""

    def wrote(self) -> None:
        """Go on from what was written."""

    def undo(self, fault: str = "") -> None:
        """Begin again from what was written last; `fault` says why it was not written."""
