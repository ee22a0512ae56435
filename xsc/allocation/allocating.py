"""Clears the slots of this node when something changed, publishes the outcome, and answers for it.

Own slots are cleared from what this node and others have published (`granting`). `records` keeps
the clearing records, and what they come to is the value at `allocation/state`: what is granted is
what that says, also after a restart. What others grant to this node is read from their states. This
node keeps the best offers for each need and lowers its caps for the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from xsc.allocation import granting, program, published
from xsc.allocation.acceptance import answered, pending, received
from xsc.allocation.clearing_record import read_state
from xsc.allocation.commitments import Commitments
from xsc.allocation.records import Records
from xsc.base import clock, errors, limits, peering, units
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.space import port, record
from xsc.space.paths import UserSpacePaths
from xsc.terms import clearing, quote
from xsc.terms.slot import STEP, Commitment, Entitlement, EntitlementKey

ROUND_REST = 9
"""A round waits for so many times as long as the last one took."""

_LOOKED_AT: Final = frozenset(
    {UserSpacePaths.RECOGNITION, UserSpacePaths.COMMITMENT, UserSpacePaths.ALLOCATION_STATE}
)


class Market(Protocol):
    """What is left, what leases have of slots, and credit."""

    def unreserved(self, kind: quote.Kind) -> int:
        """Return what is neither used nor reserved now, in the unit of leases."""

    def drawn_steps(self, *, young: bool = False) -> Mapping[EntitlementKey, int]:
        """Return the steps that leases have of each entitlement, rounded up.

        Args:
            young: only of leases that are not cleared again yet.
        """

    def credit_among(self, customer: bytes, takers: set[bytes]) -> int:
        """Return the micro-credits that a customer may still come to owe.

        Of a credit that it shares with others of these takers it has an equal part.
        """


class Allocator:
    """What this node grants of its slots, and what its needs are granted."""

    def __init__(
        self,
        context: Context,
        *,
        space: port.Space,
        commitments: Commitments,
        peers: peering.Peers,
        market: Market,
        records: Records,
        is_up: Callable[[bytes], bool],
        on_offered: Callable[[], None],
        held: Callable[[], Mapping[tuple[bytes, bytes], int]],
        look_ms: int = limits.ALLOCATION_LOOK_MS,
    ) -> None:
        self._context = context
        self._node = context.key.node_id
        self._clock = context.clock
        self._space = space
        self._commitments = commitments
        self._peers = peers
        self._market = market
        self._is_up = is_up
        self._on_offered = on_offered
        self._held = held
        self._look_ms = look_ms
        self._heard = commitments.heard
        self.granted: tuple[Entitlement, ...] = ()
        """What this node has granted to needs of others."""
        self.state = clearing.TwoTierAllocationState()
        """What is published of what is granted."""
        self.program: program.Program
        """Decides what is granted. It is there before the first round."""
        self._fails = False
        self._made = b""
        """The state of the round that is under way."""
        self._received_of: dict[bytes, list[Entitlement]] = {}
        """By provider: what has counted of its state."""
        self._ready: set[bytes] = set()
        """The needs that wait for no further offer, and whose caps are published."""
        self._since_ms: dict[bytes, int] = {}
        """By need, since when something is offered that no lease was taken on."""
        self._begun_ms: dict[tuple[bytes, int], int] = {}
        """By need and number, since when it is stated."""
        self._renewed_ms = 0
        """When a need last began a new number because it was short."""
        self.records = records
        records.told = self.wake
        self._full = False
        self._woken = asyncio.Event()
        space.register_schema(UserSpacePaths.ALLOCATION_STATE, lambda _, value: read_state(value))
        space.on_change(self._space_changed)

    # What the market asks

    def received(self) -> tuple[Entitlement, ...]:
        """Return what needs of this node were granted by others."""
        return tuple(each for theirs in self._received_of.values() for each in theirs)

    def offered(self) -> list[Entitlement]:
        """Return what leases are to be taken on: of each offer no more than its need accepts."""
        own = self._commitments.own
        needs = {each.slot_id: each for each in own.needs if each.slot_id in self._ready}
        return [
            replace(each, quantity=min(each.quantity, cap))
            for each in self.received()
            if each.need in needs and (cap := needs[each.need].cap(each.provider))
        ]

    @property
    def has_converged(self) -> bool:
        """Whether what this node grants has settled; where nothing is cleared it grants nothing."""
        slots = self._commitments.own.slots
        return not (slots and self.state.slot_denominators) or self.state.converged

    # Its life

    def start(self) -> None:
        """Read what was cleared before, and grant what it grants.

        Raises:
            StoreDamaged: it cannot be read.
        """
        try:
            self.records.start()
        except errors.RecordInvalid as fault:
            raise errors.StoreDamaged(f"a kept clearing cannot be read: {fault.message}") from fault
        state = self._heard.state_of(self._node)
        # Where a power loss took a record, all is cleared anew.
        kept = set(self.records.ids())
        if state is not None and kept.issuperset(each.clearing for each in state.slot_denominators):
            self._grant(state)
        self._renewed_ms = self._clock.now_ms()

    def _grant(self, state: clearing.TwoTierAllocationState) -> None:
        """Grant what a state says that is on the disk, as far as its records are."""
        slots = {slot.slot_id: slot for slot in self._heard.of(self._node).commitment.slots}
        needs = {
            (other.node, need.slot_id): need
            for other in self._others()
            for need in other.commitment.needs
        }
        now_ms, kept = self._clock.now_ms(), set(self.records.ids())
        named = granting.entitlements(self._node, state, slots, needs, now_ms)
        self.granted = tuple(each for each in named if each.clearing in kept)
        self.state = state

    async def run(self) -> None:
        """Allocate whenever something changed, and look at the capacity in between.

        A change after a quiet time is looked at once. Others wait for nine times as long as the
        last round took, so that whoever changes often costs a tenth of a core. Where this node is
        offered now too much and now too little, they wait longer.
        """
        while True:
            began_ms = self._clock.monotonic_ms()
            await self.allocate()
            ended_ms = self._clock.monotonic_ms()
            await clock.event_within(self._clock, self._woken, self._pause_ms())
            factor = program.factor_ppm(self._commitments.own.damping_history)
            delay_ms = units.ceil_div(limits.ALLOCATION_DEBOUNCE_MS * limits.PPM, factor)
            rest_ms = max(delay_ms, ROUND_REST * (ended_ms - began_ms))
            left_ms = ended_ms + rest_ms - self._clock.monotonic_ms()
            if left_ms > 0:
                await self._clock.sleep_ms(left_ms)

    def _pause_ms(self) -> int:
        """Return how long until something lapses, begins or ends, or capacity is looked at."""
        now_ms = self._clock.now_ms()
        needs = (need for other in self._others() for need in other.commitment.needs)
        windows = [each.next_window(now_ms) for each in (*self._commitments.own.both, *needs)]
        # What begins or ends is cleared then, and not ahead.
        moments = [moment for window in windows if window is not None for moment in window]
        moments += [each.until_ms for each in (*self.granted, *self.received())]
        ahead = [moment - now_ms for moment in moments if moment > now_ms]
        is_settled = self.has_converged and not self._since_ms
        look_ms = self._look_ms if is_settled else limits.CONVERGED_LOOK_MS
        # Customers choose moments, and cause no more rounds by them than this.
        return max(limits.CONVERGED_LOOK_MS, min([look_ms, *ahead]))

    def wake(self) -> None:
        """Look at everything again: what somebody published, or who is known, has changed."""
        self._woken.set()

    def _space_changed(self, change: record.Change) -> None:
        if change.path in _LOOKED_AT and not (
            change.owner == self._node and change.path == UserSpacePaths.ALLOCATION_STATE
        ):
            self.wake()

    # One round

    async def allocate(self) -> None:
        """Clear what changed, publish it, and answer what others offer."""
        self._woken.clear()
        await self._gather()
        full = False
        for step in (self._clear, self._accept):
            try:
                await step()
            except errors.SpaceExhausted as fault:
                # What is published stands, and is tried again with the next look.
                if not self._full:
                    self._context.log.error("allocation.not_published", code=fault.code)
                full = True
        self._full = full

    async def _gather(self) -> None:
        """Read what nodes have published."""
        peers = self._peers.peers()
        self._heard.keep({*peers, self._node})
        for node in peers:
            self._heard.of(node), self._heard.state_of(node)
            await asyncio.sleep(0)  # there may be many

    def _others(self) -> list[published.Published]:
        """Return what known peers have published, by rising id."""
        return [self._heard.of(node) for node in sorted(self._peers.peers())]

    async def _clear(self) -> None:
        inputs, last = self._inputs(), self.state
        if not (inputs.own.commitment.slots or last.slot_denominators):
            return
        granted, records = await self._context.executor.run(granting.clear_all, inputs, last)
        has_settled = last.converged or not granted.slot_denominators
        if has_settled and granted.slot_denominators == last.slot_denominators:
            self._grant(last)  # the time of a need may be another one
            return
        self._made = program.state_after(inputs, granted, last).to_bytes()
        if (raw := await self._decide(inputs)) is not None:
            await self._publish(inputs, records, raw)

    async def _decide(self, inputs: granting.Inputs) -> bytes | None:
        """Return the state that the program gives; None where it fails: nothing new is granted."""
        gathered = await self._context.executor.run(inputs.gathered.to_bytes)
        found = self.program.run({"gathered": gathered, "last": self.state.to_bytes()})
        if (found is None) != self._fails:
            self._fails = found is None
            event = "allocation.program_failed" if self._fails else "allocation.program_serves"
            self._context.log.warning(event, fault=self.program.fault)
        return None if found is None else found["state"]

    def state_of(self, gathered: bytes, last: bytes) -> bytes:
        """Return what the program's function gives: it was computed beside the event loop."""
        del gathered, last
        return self._made

    def _inputs(self) -> granting.Inputs:
        """Gather what the round follows from."""
        own, others = self._heard.of(self._node), self._others()
        kinds = {slot.kind for slot in own.commitment.slots}
        takers = [
            other for other in others if any(need.kind in kinds for need in other.commitment.needs)
        ]
        market, nodes = self._market, {taker.node for taker in takers}
        gathered = granting.Gathered(
            now_ms=self._clock.now_ms(),
            own=own.said,
            others=tuple(taker.said for taker in takers),
            theirs=tuple((each.node, w) for each in others if (w := each.weights.get(own.node, 0))),
            drawn=granting.rows_of(market.drawn_steps()),
            pinned=granting.rows_of(market.drawn_steps(young=True)),
            credit=tuple((node, market.credit_among(node, nodes)) for node in sorted(nodes)),
            free={kind: market.unreserved(kind) // STEP[kind] for kind in quote.KINDS},
            is_pending=self._woken.is_set(),
        )
        return granting.Inputs(gathered, own, takers)

    async def _publish(
        self, inputs: granting.Inputs, records: Mapping[bytes, clearing.ClearingRecord], raw: bytes
    ) -> None:
        """Keep the clearings that a state names, and publish it; the oldest records go."""
        state = read_state(raw)
        named = [each.clearing for each in state.slot_denominators]
        made = [
            sign(records[each], self._context.key, self._context.network)
            for each in named
            if each in records
        ]
        values, names = self.records.changes(made, named, (inputs.own, *inputs.others))
        values[UserSpacePaths.ALLOCATION_STATE] = raw
        try:
            # Written before anybody can draw on it, so that what is kept free has its proof.
            await self._space.put_all({**values, **self.program.writes()})
        except BaseException as fault:
            said = f"{fault.code}: {fault.message}" if isinstance(fault, errors.XscError) else ""
            self.program.undo(said)
            raise
        self.program.wrote()
        self.records.wrote(names)
        self._grant(state)
        self._context.log.info("allocation.granted", clearings=len(made), lines=len(self.granted))

    # What others grant to this node

    async def _accept(self) -> None:
        """Read what needs of this node are granted; keep the best and release the rest."""
        commitment, now_ms = self._commitments.own, self._clock.now_ms()
        own, needs = self._heard.of(self._node), {each.slot_id: each for each in commitment.needs}
        up = [other for other in self._others() if self._is_up(other.node)]
        before, self._received_of = self._received_of, {}
        for other in up:
            if (state := self._heard.state_of(other.node)) is not None:
                last = before.get(other.node, ())
                counts, doubted = received(own, needs, other, state, last, now_ms=now_ms)
                ids = {each.clearing for each in counts}
                is_trusted = self.records.want(other.node, ids, doubted)
                self._received_of[other.node] = counts if is_trusted else []
        self.records.keep(self._received_of)
        grants, held = self.received(), self._held()
        open_needs = {each.need for each in grants if each.granted_ms}
        self._since_ms = {need: self._since_ms.get(need, now_ms) for need in open_needs}
        nodes = {other.node for other in up} | {node for _, node in held}
        ranks = {node: published.standing(own, self._heard.of(node)) for node in nodes}
        waiting = {
            need_id
            for need_id in pending(own, needs, up, grants, now_ms)
            if now_ms - self._since_ms.get(need_id, now_ms) < limits.OFFER_SETTLE_MS
        }
        numbers = {(each.slot_id, each.number) for each in commitment.needs}
        self._begun_ms = {each: self._begun_ms.get(each, now_ms) for each in numbers}
        # What is offered to a spread need that is not filled can be of before it was changed.
        waiting |= {
            each.slot_id
            for each in commitment.needs
            if each.spread > 1
            and sum(grant.quantity for grant in grants if grant.need == each.slot_id)
            < each.quantity
            and now_ms - self._begun_ms[each.slot_id, each.number] < limits.OFFER_SETTLE_MS
        }
        changed = {
            need_id: answered(
                need,
                grants,
                {node: steps for (of, node), steps in held.items() if of == need_id},
                ranks,
                is_due=now_ms - self._renewed_ms >= limits.ALLOCATION_LOOK_MS,
                is_settled=need_id not in waiting,
            )
            for need_id, need in needs.items()
        }
        # Where the space is full, no cap can be published: a need does not wait for that.
        still = {need_id for need_id in needs if self._full or changed[need_id] == needs[need_id]}
        # Who changes what it offers all the time keeps no need from what others offer.
        late = {each for each, at in self._since_ms.items() if now_ms - at >= limits.OFFER_MS // 2}
        self._ready = (still | late) - waiting
        self._on_offered()
        if changed == needs:
            return
        over = program.over_allocated(needs, grants)
        history = program.observe(commitment.damping_history, over, now_ms)
        if any(changed[need_id].number > need.number for need_id, need in needs.items()):
            self._renewed_ms = now_ms
        factor, said = program.factor_ppm(history), tuple(changed.values())
        damped = {"damping_ppm": factor, "damping_history": history, "needs": said}
        answer = Commitment(**dict(commitment) | damped)
        # What changed meanwhile is answered in the next round.
        await self._commitments.publish(lambda own: answer if own == commitment else own)
