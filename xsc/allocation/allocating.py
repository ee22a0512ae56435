"""Clears the slots of this node when something changed, publishes the outcome, and answers for it.

Own slots are cleared from what this node and others have published (`granting`). `records` keeps
the clearing records, and what they come to is the value at `allocation/state`: what is granted is
what that says, also after a restart. What others grant to this node is read from their states. This
node keeps the best offers for each need and lowers its caps for the others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from xsc.allocation.acceptance import answered, asked, received, settled, to_lease
from xsc.allocation.clearing_record import Published, read_state, standing
from xsc.allocation.commitments import Commitments
from xsc.allocation.granting import (
    Gathered,
    Inputs,
    Market,
    Outcome,
    clear_all,
    entitlements,
    rows_of,
)
from xsc.allocation.program import (
    NOBODY,
    AllocationProgram,
    Program,
    factor_ppm,
    observe,
    over_allocated,
    publish_delay_ms,
)
from xsc.allocation.records import Records
from xsc.base.clock import event_within
from xsc.base.errors import RecordInvalid, SpaceExhausted, StoreDamaged
from xsc.base.limits import (
    ALLOCATION_DEBOUNCE_MS,
    ALLOCATION_LOOK_MS,
    CONVERGED_LOOK_MS,
    DAMPING_HISTORY_MAX,
    OFFER_SETTLE_MS,
    ROUND_REST,
)
from xsc.base.peering import Peers
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.space.limits import VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space
from xsc.space.record import Change
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.slot import Commitment, Entitlement, NeedSlot, Slot

_LOOKED_AT: Final = frozenset(
    {UserSpacePaths.RECOGNITION, UserSpacePaths.COMMITMENT, UserSpacePaths.ALLOCATION_STATE}
)


class Allocator:
    """What this node grants of its slots, and what its needs are granted."""

    def __init__(
        self,
        context: Context,
        *,
        space: Space,
        commitments: Commitments,
        peers: Peers,
        market: Market,
        records: Records,
        is_up: Callable[[bytes], bool],
        follow: Callable[[], None],
        on_offered: Callable[[], None],
        held: Callable[[], Mapping[tuple[bytes, bytes], int]],
        look_ms: int = ALLOCATION_LOOK_MS,
    ) -> None:
        self._context = context
        self._node = context.key.node_id
        self._clock = context.clock
        self._executor = context.executor
        self._log = context.log
        self._space = space
        self._commitments = commitments
        self._peers = peers
        self._market = market
        self._follow = follow
        self._followed: set[str] = set()
        self._is_up = is_up
        self._on_offered = on_offered
        self._held = held
        self._look_ms = look_ms
        self._heard = commitments.heard
        self._granted: tuple[Entitlement, ...] = ()
        self.state = TwoTierAllocationState()
        """What is published of what is granted."""
        self.rules = AllocationProgram()
        self._program: Program | None = None
        self._fails = False
        self._decided = self.state.slot_denominators
        """Of what was granted the program made the present state."""
        self._received_of: dict[bytes, list[Entitlement]] = {}
        """By provider: what has counted of its state."""
        self._asked: dict[bytes, set[bytes]] = {}
        """By need, the providers that are up with a slot that matches it."""
        self._since_ms: dict[bytes, int] = {}
        """By need, since when something is offered that no lease was taken on."""
        self._renewed: dict[bytes, int] = {}
        """By need, when it last began a new number because it was short."""
        self._began_ms = 0
        self.records = records
        self._answer_ms: int | None = None
        """When changed caps are published."""
        self._full = False
        self._woken = asyncio.Event()
        read = partial(TwoTierAllocationState.from_bytes, size_max=VALUE_BYTES_MAX)
        space.register_schema(UserSpacePaths.ALLOCATION_STATE, lambda _, value: read(value))
        space.on_change(self._space_changed)

    # What the market asks

    def granted(self) -> tuple[Entitlement, ...]:
        """Return what this node has granted to needs of others."""
        return self._granted

    def received(self) -> tuple[Entitlement, ...]:
        """Return what needs of this node were granted by others."""
        return tuple(each for theirs in self._received_of.values() for each in theirs)

    def offered(self) -> list[Entitlement]:
        """Return what leases are to be taken on.

        No need waits for longer than OFFER_SETTLE_MS, and none is answered while caps wait to be
        published.
        """
        since_ms = self._clock.now_ms() - OFFER_SETTLE_MS
        needs = {need.slot_id: need for need in self._commitments.own.needs}
        ready = {need for need, first_ms in self._since_ms.items() if first_ms <= since_ms}
        if self._answer_ms is None:
            ready |= settled(needs, self.received(), self._asked)
        return to_lease(self.received(), {each: needs[each] for each in ready & needs.keys()})

    @property
    def has_converged(self) -> bool:
        """Whether what this node grants has settled; where nothing is cleared it grants nothing."""
        slots = self._commitments.own.slots
        return not (slots and self.state.slot_denominators) or self.state.converged

    def states(self) -> Mapping[bytes, TwoTierAllocationState]:
        """Return the published states of other nodes, as far as they are here."""
        states = {node: self._heard.state_of(node) for node in self._peers.peers()}
        return {node: state for node, state in states.items() if state is not None}

    def named(self) -> dict[bytes, bytes]:
        """Return the providers of all clearings that are kept here or named by a state."""
        found = {
            slot.clearing: provider
            for provider, state in self.states().items()
            for slot in state.slot_denominators
        }
        return found | dict.fromkeys(self.records.ids(), self._node)

    def prefixes(self) -> set[str]:
        """Return what has to be followed of all peers: what they offer, need and grant."""
        return {UserSpacePaths.COMMITMENT, UserSpacePaths.ALLOCATION_STATE}

    # Its life

    def start(self) -> None:
        """Read what was cleared before, and grant what it grants.

        Raises:
            StoreDamaged: it cannot be read.
        """
        try:
            self.records.start()
        except RecordInvalid as fault:
            raise StoreDamaged(f"a kept clearing cannot be read: {fault.message}") from fault
        state = self._heard.state_of(self._node)
        # Where a power loss took a record, all is cleared anew.
        if state is not None and set(_named_by(state)) <= set(self.records.ids()):
            self._grant(state)
        self._decided = self.state.slot_denominators
        self._began_ms = self._clock.now_ms()

    def _grant(self, state: TwoTierAllocationState) -> None:
        """Grant what a state says that is on the disk, as far as its records are."""
        slots = {slot.slot_id: slot for slot in self._heard.of(self._node).commitment.slots}
        needs = {
            (node, need.slot_id): need
            for node in {
                line.customer for slot in state.slot_denominators for line in slot.allocations
            }
            & set(self._peers.peers())
            for need in self._heard.of(node).commitment.needs
        }
        now_ms, kept = self._clock.now_ms(), set(self.records.ids())
        named = entitlements(self._node, state, slots, needs, now_ms)
        self._granted = tuple(each for each in named if each.clearing in kept)
        self.state = state

    async def run(self) -> None:
        """Allocate whenever something changed, and look at the capacity in between.

        A change after a quiet time is looked at once. Others wait for nine times as long as the
        last round took, so that whoever changes often costs a tenth of a core.
        """
        while True:
            began_ms = self._clock.monotonic_ms()
            await self.allocate()
            ended_ms = self._clock.monotonic_ms()
            await event_within(self._clock, self._woken, self._pause_ms())
            rest_ms = max(ALLOCATION_DEBOUNCE_MS, ROUND_REST * (ended_ms - began_ms))
            left_ms = ended_ms + rest_ms - self._clock.monotonic_ms()
            if self._woken.is_set() and left_ms > 0:
                await self._clock.sleep_ms(left_ms)

    def _pause_ms(self) -> int:
        """Return how long until something lapses, begins or ends, or capacity is looked at."""
        now_ms = self._clock.now_ms()
        moments = [since_ms + OFFER_SETTLE_MS // 2 for since_ms in self._since_ms.values()]
        moments += [each.until_ms for each in (*self._granted, *self.received())]
        # What begins or ends is cleared then, and not ahead.
        own = self._commitments.own
        slots: list[Slot] = [*own.both]
        for other in self._others() if own.slots else ():
            slots += other.commitment.needs
        for slot in slots:
            moments += slot.next_window(now_ms) or ()
        ahead = [moment - now_ms for moment in moments if moment > now_ms]
        look_ms = self._look_ms
        if self.state.slot_denominators and not self.state.converged:
            look_ms = CONVERGED_LOOK_MS
        # Customers choose moments, and cause no more rounds by them than this.
        pause_ms = max(CONVERGED_LOOK_MS, min([look_ms, *ahead]))
        if self._answer_ms is not None and not self._full:
            pause_ms = min(pause_ms, max(ALLOCATION_DEBOUNCE_MS, self._answer_ms - now_ms))
        return pause_ms

    def wake(self) -> None:
        """Look at everything again: what somebody published, or who is known, has changed."""
        self._woken.set()

    def _space_changed(self, change: Change) -> None:
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
            except SpaceExhausted as fault:
                # What is published stands, and is tried again with the next look.
                if not self._full:
                    self._log.error("allocation.not_published", code=fault.code)
                full = True
        self._full = full

    async def _gather(self) -> None:
        """Read what nodes have published."""
        if (wanted := self.prefixes()) != self._followed:
            self._followed = wanted
            self._follow()
        peers = self._peers.peers()
        self._heard.keep({*peers, self._node})
        for node in peers:
            if not self._heard.knows(node):
                self._heard.of(node), self._heard.state_of(node)
                await asyncio.sleep(0)  # there may be many

    def _others(self) -> list[Published]:
        """Return what known peers have published, by rising id."""
        return [self._heard.of(node) for node in sorted(self._peers.peers())]

    async def _clear(self) -> None:
        inputs = self._inputs()
        last = self.state
        if not (inputs.own.commitment.slots or last.slot_denominators):
            return
        outcome = await self._executor.run(clear_all, inputs, last)
        # Customers see when something was offered to them again in the state alone.
        decided = outcome.state.slot_denominators
        has_settled = last.converged or not outcome.state.slot_denominators
        if decided == self._decided and has_settled:
            self._grant(last)  # the time of a need may be another one
        elif (raw := await self._decide(inputs, outcome)) is not None:
            await self._publish(inputs, outcome, raw)
            self._decided = decided

    async def _decide(self, inputs: Inputs, outcome: Outcome) -> bytes | None:
        """Return the state that the program gives; None where it fails: nothing new is granted."""
        if self._program is None:
            return None
        over = [units for units, _ in inputs.own.commitment.damping_history]
        last = self.state.to_bytes()
        found = self._program.run(
            {
                "gathered": await self._executor.run(self.rules.gather, inputs, last, outcome),
                "last": last,
                "over": (*[NOBODY] * (DAMPING_HISTORY_MAX - len(over)), *over),
            }
        )
        if (found is None) != self._fails:
            self._fails = found is None
            event = "allocation.program_failed" if self._fails else "allocation.program_serves"
            self._log.warning(event, fault=self.program_fault)
        return None if found is None else found["state"]

    def serve_by(self, program: Program) -> None:
        """Let a program decide; without one nothing is granted."""
        self._program = program

    @property
    def program_fault(self) -> str:
        """Why the program does not serve, or ''."""
        return "" if self._program is None else self._program.fault

    def _inputs(self) -> Inputs:
        """Gather what the round follows from."""
        own, others = self._heard.of(self._node), self._others()
        kinds = {slot.kind for slot in own.commitment.slots}
        takers = [
            other for other in others if any(need.kind in kinds for need in other.commitment.needs)
        ]
        market, nodes = self._market, {taker.node for taker in takers}
        gathered = Gathered(
            now_ms=self._clock.now_ms(),
            own=own.said,
            others=tuple(taker.said for taker in takers),
            theirs=tuple((each.node, w) for each in others if (w := each.weights.get(own.node, 0))),
            drawn=rows_of(market.drawn()),
            pinned=rows_of(market.pinned()),
            credit=tuple((each.node, market.credit_micro(each.node, nodes)) for each in takers),
            free=dict(market.free()),
            is_pending=self._woken.is_set(),
        )
        return Inputs(gathered, own, takers)

    async def _publish(self, inputs: Inputs, outcome: Outcome, raw: bytes) -> None:
        """Keep the clearings that a state names, and publish it; the oldest records go."""
        state = read_state(raw)
        named = _named_by(state)
        made = [
            sign(outcome.records[each], self._context.key, self._context.network)
            for each in named
            if each in outcome.records
        ]
        values, names = self.records.changes(made, named, (inputs.own, *inputs.others))
        # Written before anybody can draw on it, so that what is kept free has its proof.
        await self._put(values | {UserSpacePaths.ALLOCATION_STATE: raw})
        self.records.wrote(names)
        self._grant(state)
        self._log.info("allocation.granted", clearings=len(made), lines=len(self._granted))

    async def _put(self, values: Mapping[str, bytes | None]) -> None:
        """Write values with what the program keeps of the frame that gave them."""
        program = self._program
        assert program is not None, "a program has decided"
        try:
            await self._space.put_all({**values, **program.writes()})
        except SpaceExhausted as fault:
            program.undo(f"{fault.code}: {fault.message}")
            raise
        except BaseException:
            program.undo()
            raise
        program.wrote()

    # What others grant to this node

    async def _accept(self) -> None:
        """Read what needs of this node are granted; keep the best and release the rest."""
        commitment, now_ms = self._commitments.own, self._clock.now_ms()
        needs = {need.slot_id: need for need in commitment.needs}
        up = [other for other in self._others() if self._is_up(other.node)]
        self._receive(needs, up, now_ms)
        held, own = self._held(), self._heard.of(self._node)
        nodes = {other.node for other in up} | {node for _, node in held}
        ranks = {node: standing(own, self._heard.of(node)) for node in nodes} if needs else {}
        grants = self.received()
        all_heard = settled(needs, grants, self._asked)
        changed = {
            need_id: answered(
                need,
                grants,
                {node: steps for (of, node), steps in held.items() if of == need_id},
                ranks,
                is_due=now_ms - self._renewed.get(need_id, self._began_ms) >= ALLOCATION_LOOK_MS,
                is_settled=need_id in all_heard
                or now_ms - self._since_ms.get(need_id, now_ms) >= OFFER_SETTLE_MS // 2,
            )
            for need_id, need in needs.items()
        }
        if changed == needs:
            self._answer_ms = None
            return
        totals = Counter[bytes]()
        for each in grants:
            totals[each.need] += each.quantity
        over = over_allocated({need_id: need.quantity for need_id, need in needs.items()}, totals)
        history = observe(commitment.damping_history, over, now_ms)
        factor = factor_ppm(history)
        if self._answer_ms is None:  # Who swings answers later.
            self._answer_ms = now_ms + publish_delay_ms(ALLOCATION_DEBOUNCE_MS, factor)
        if now_ms < self._answer_ms:
            return
        self._answer_ms = None
        for need_id, need in needs.items():
            if changed[need_id].number > need.number:
                self._renewed[need_id] = now_ms
        said = {"damping_ppm": factor, "damping_history": history, "needs": (*changed.values(),)}
        await self._commitments.publish(Commitment(**dict(commitment) | said))

    def _receive(
        self, needs: Mapping[bytes, NeedSlot], up: Sequence[Published], now_ms: int
    ) -> None:
        """Take of what others say that they grant what can be right."""
        own, before = self._heard.of(self._node), self._received_of
        self._received_of, self._asked = {}, asked(own, needs, up, now_ms)
        for other in up:
            if (state := self._heard.state_of(other.node)) is not None:
                last = before.get(other.node, ())
                counts, doubted = received(own, needs, other, state, last, now_ms=now_ms)
                ids = {each.clearing for each in counts}
                is_trusted = self.records.want(other.node, ids, doubted)
                self._received_of[other.node] = counts if is_trusted else []
        self.records.keep(self._received_of)
        self._renewed = {each: last for each, last in self._renewed.items() if each in needs}
        open_needs = {each.need for each in self.received() if each.granted_ms}
        self._since_ms = {need: self._since_ms.get(need, now_ms) for need in open_needs}
        self._on_offered()


def _named_by(state: TwoTierAllocationState) -> list[bytes]:
    """Return the clearings that a state names."""
    return [each.clearing for each in state.slot_denominators]
