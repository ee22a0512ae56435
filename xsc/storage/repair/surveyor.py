"""Asks the hosts of an object what they have, and verifies by reading what they say.

A host's word counts until a read shows otherwise: what could not be read although
its host says that it has it, counts as corrupt for the next survey.
"""

from __future__ import annotations

from dataclasses import replace

from xsc.base import errors, ids, limits
from xsc.identity.context import Context
from xsc.storage.catalogue.finder import ObjectFinder
from xsc.storage.object.expiry import before_end, own_ends, refusing
from xsc.storage.object.inventory import HeldObject
from xsc.storage.object.placement import State, column_state, column_states
from xsc.storage.repair import node_watch, repair_rules
from xsc.storage.repair.maintained_object import MaintainedObject, MaintainedObjects
from xsc.storage.repair.survey import Survey, columns_to_pay_for
from xsc.storage.transfer import get, host_client
from xsc.storage.transfer.deep_read import BadShard, read_every_shard


class Surveyor:
    """Makes surveys of objects; remembers which columns could not be read."""

    def __init__(
        self,
        context: Context,
        client: host_client.HostClient,
        objects: MaintainedObjects,
        *,
        finder: ObjectFinder,
        watch: node_watch.NodeWatch,
        bandwidth: node_watch.Bandwidth,
        lease_ms: int,
    ) -> None:
        self._context = context
        self._own = context.key.node_id
        self._client = client
        self._objects = objects
        self.finder = finder
        self._watch = watch
        self._bandwidth = bandwidth
        self._lease_ms = lease_ms
        self.unreadable: dict[bytes, frozenset[tuple[int, bytes]]] = {}
        """By object: column and node of what could not be read although its host has it."""

    # Surveys

    async def survey(self, maintained: MaintainedObject) -> Survey:
        """Ask all hosts of an object; look for lost columns at all peers.

        Raises:
            RecordInvalid: the manifest is not that of the maintained object.
            XscError: the object cannot be found.
        """
        located = await self.finder.find(maintained.capability)
        manifest, columns = located.manifest, list(maintained.placement.columns)
        if manifest.owner != maintained.owner or len(columns) != manifest.k + manifest.m:
            raise errors.RecordInvalid("the object is another one than its placement is for")
        answers = await self.finder.ask(columns, maintained.capability, manifest)
        states = await self._context.executor.run(column_states, manifest, columns, answers)
        for column, node in self.unreadable.get(maintained.ref, ()):
            if columns[column] == node:
                states[column] = "corrupt"
        await self._find_elsewhere(maintained, located, columns, states, answers)
        leaving = self._client.leaving()
        lost = repair_rules.lost_columns(columns, states, self._watch.gone(set(columns)))
        paid = {(item.node, item.lease_id) for item in maintained.held}
        filled = {(item.node, item.lease_id) for item in maintained.held if item.size_bytes}
        ends = own_ends(filled, self._own, self._client.hosts.lease_end)
        now_ms = self._context.clock.now_ms()
        survey = Survey(
            maintained,
            located,
            tuple(columns),
            tuple(states),
            answers,
            self._own,
            leaving,
            displaced=lost | {c for c, node in enumerate(columns) if node in leaving},
            up=frozenset(node for node, _ in paid if self._client.is_up(node)),
            refusing=refusing(ends, now_ms + before_end(limits.LEASE_URGENT_MS, self._lease_ms)),
        )
        unpaid, expiring = columns_to_pay_for(survey, now_ms, self._lease_ms)
        displaced = survey.displaced | expiring
        labels = None
        if displaced or any(manifest.contract[1:]) or len(set(columns)) < len(columns):
            candidates = self._watch.available(also_unsteady=True)
            known = await self._client.hosts.learn_labels(sorted({*columns, *candidates}))
            labels = {each.node: each for each in self._client.labels_of(known)}
        dropped = frozenset(
            (node, lease_id)
            for node, lease_id in paid
            if node not in {*columns, *survey.up} and self._client.has_dropped(node, lease_id)
        )
        return replace(
            survey,
            displaced=displaced,
            unpaid=unpaid - displaced,
            expiring=expiring,
            labels=labels,
            dropped=dropped,
        )

    async def _find_elsewhere(
        self,
        maintained: MaintainedObject,
        located: get.Located,
        columns: list[bytes],
        states: list[State],
        answers: dict[bytes, HeldObject | None],
    ) -> None:
        """Take lost columns from other nodes that have them: a custodian may have rebuilt them.

        A node that has another column does not count: one that claims to have all columns
        would get all.
        """
        lost = repair_rules.lost_columns(columns, states, self._watch.gone(set(columns)))
        if not lost:
            return
        manifest = located.manifest
        found = await self.finder.search(maintained.capability, located)
        unreadable = self.unreadable.get(maintained.ref, frozenset())
        for column in sorted(lost):
            others = set(found.holders[column]) - self._client.leaving() - set(columns)
            for node in sorted(others):
                if (column, node) in unreadable:
                    continue
                if answers.get(node) is None:
                    answers |= await self.finder.ask([node], maintained.capability, manifest)
                if column_state(manifest, column, answers[node]) == "ok":
                    columns[column], states[column] = node, "ok"
                    break

    # Reading

    async def verified(self, maintained: MaintainedObject) -> Survey:
        """Return a survey in which every column found at another node was read whole there."""
        while True:
            survey = await self.survey(maintained)
            placed = zip(survey.columns, maintained.placement.columns, strict=True)
            found = [node if node != before else None for node, before in placed]
            if not any(found):
                return survey
            _, bad = await read_every_shard(
                self._client, survey.located, found, self._bandwidth.take
            )
            if not bad:
                return survey
            wrong = frozenset((fault.column, fault.node) for fault in bad)
            self.unreadable[maintained.ref] = self.unreadable.get(maintained.ref, wrong) | wrong

    async def read_all(self, survey: Survey) -> list[BadShard] | None:
        """Read every column from its host; return what could not be read.

        None: the survey says already that the object is not whole, or it is being deleted.
        """
        if not survey.is_whole:
            return None
        ref = survey.maintained.ref

        async def pace(size_bytes: int) -> None:
            if self._objects.load(ref) is None:
                # Its deletion waits for this.
                raise errors.ObjectUnknown("it is being deleted")
            await self._bandwidth.take(size_bytes)

        try:
            _, bad = await read_every_shard(self._client, survey.located, survey.columns, pace)
        except errors.ObjectUnknown:
            return None
        # Silence is no loss before the grace is over: it is asked again later.
        failed = frozenset((fault.column, fault.node) for fault in bad if not fault.silent)
        if failed:
            self.unreadable[ref] = failed
        for fault in bad[:1]:
            self._context.log.warning(
                "repair.column_not_proven",
                object=ids.short(ref),
                peer=ids.short(fault.node),
                column=fault.column,
                reason=fault.reason,
            )
        return bad
