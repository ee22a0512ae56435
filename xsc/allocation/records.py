"""Keeps the clearing records of this node, and recomputes those of others in the background.

An own record is the value at `market/clearings/ID`, and what it names, for as long, are those at
`market/named/NAME`. Beyond CLEARINGS_KEPT_MAX and CLEARINGS_BYTES_MAX the oldest records go that do
not hold any more.

A customer takes what a state grants it before it has seen the clearing. Of the clearings that grant
it something it recomputes one in CLEARING_DRAW, by a draw that nobody else can foretell, and each
whose line cannot be right. One that does not recompute, or of which the state says other lines than
it has, is evidence, because its provider signed both: it is kept, and its provider is reported.

One record at a time is recomputed of all providers, beside the event loop. Of a provider nothing
counts while its state names a false clearing, or one that it does not give.

Beside the space one table in the state database has the evidence:

    allocation/false/<provider>    the first of its records that did not recompute, as a proof
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final

from xsc.allocation.clearing_record import (
    Checked,
    Published,
    charged,
    check_clearing,
    open_clearing,
)
from xsc.allocation.commitments import Heard
from xsc.base.encoding import tagged_sha256
from xsc.base.errors import NotFound, ProofInvalid, XscError
from xsc.base.ids import from_text, short
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import (
    ALLOCATION_DEBOUNCE_MS,
    CLEARING_ASKED_MAX,
    CLEARING_DRAW,
    CLEARINGS_BYTES_MAX,
    CLEARINGS_KEPT_MAX,
    CONVERGED_LOOK_MS,
    FALSE_CLEARING_BYTES_MAX,
    FALSE_CLEARINGS_MAX,
)
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space
from xsc.space.record import Entry
from xsc.terms.clearing import ClearingProof, ClearingRecord, SpaceValue

_FALSE: Final = b"allocation/false/"
_SECRET_BYTES: Final = 32


class Records:
    """The clearing records of this node, and what is known of those of others.

    Args:
        context: of the node.
        space: keeps the own ones.
        state: keeps the evidence against others.
        read: returns the record at a path of another node's space, fetched if it is not here.
        heard: has what nodes have published, as far as that is here.
        once: runs something in the background.
        told: hears that a provider counts from now on, or does not.
        report: counts that a node said something that is plainly wrong.
    """

    def __init__(
        self,
        context: Context,
        *,
        space: Space,
        state: KeyValue,
        read: Callable[[bytes, str], Awaitable[Entry]],
        heard: Heard,
        once: Callable[[str, Callable[[], Awaitable[None]]], None],
        told: Callable[[], None],
        report: Callable[[bytes, str], None],
    ) -> None:
        self._context = context
        self._space = space
        self._rows = state
        self._read = read
        self._heard = heard
        self._once = once
        self._told = told
        self._report = report
        self._names: dict[bytes, frozenset[bytes]] = {}
        """By own record that is kept, what it names."""
        self._secret = context.entropy.token(_SECRET_BYTES)
        self._found: dict[bytes, dict[bytes, bool | None]] = {}
        """By provider and id of what is wanted of it, whether it is right; None: not known yet."""
        self._silent: dict[bytes, bool] = {}
        """By provider that is asked now, whether it does not give what is wanted of it."""
        self._turn = asyncio.Lock()
        self._false: dict[bytes, bytes] = {}
        """By provider, the id of the record that is kept as evidence against it."""
        space.register_schema(f"{UserSpacePaths.CLEARINGS}/*", self._check_record)
        space.register_schema(f"{UserSpacePaths.NAMED}/*", lambda _, raw: SpaceValue.read(raw))

    def _check_record(self, _owner: bytes, raw: bytes) -> None:
        open_clearing(raw, self._context.network)

    def start(self) -> None:
        """Read what the kept records name, and what is kept as evidence.

        Raises:
            RecordInvalid: one cannot be read.
        """
        for each in self._space.ls(UserSpacePaths.CLEARINGS):
            record_id = _last(each.path)
            try:
                self._names[record_id] = self.opened(record_id).record.names
            except NotFound:
                # What peers gave back after a loss of the disk can lack its value.
                self._names[record_id] = frozenset()
        for key, raw in self._rows.scan(_FALSE, prefix_end(_FALSE)):
            proof = open_signed(raw, ClearingProof, network=None, size_max=len(raw)).record
            self._false[key.removeprefix(_FALSE)] = open_clearing(proof.clearing).id

    # Those of this node

    def ids(self) -> list[bytes]:
        """Return the ids of the records that are kept."""
        return [each for each, names in self._names.items() if names]

    def clearings(self) -> list[Signed[ClearingRecord]]:
        """Return the records that are kept, the newest first."""
        found = [self.opened(record_id) for record_id in self.ids()]
        return sorted(found, key=lambda each: (-each.record.at_ms, each.id))

    def _own(self, record_id: bytes) -> bytes:
        raw = self._space.get(UserSpacePaths.clearing(record_id)).value
        if raw is None:
            raise NotFound(
                "the clearing is not kept any more",
                hint="`xsc market clearings` lists those that are",
            )
        return raw

    def opened(self, record_id: bytes) -> Signed[ClearingRecord]:
        """Return a record.

        Raises:
            NotFound: it is not kept.
        """
        return open_clearing(self._own(record_id), self._context.network)

    def named(self, record_id: bytes) -> list[SpaceValue]:
        """Return the values that a record names, as far as they are kept."""
        paths = [UserSpacePaths.named(name) for name in sorted(self._names.get(record_id, ()))]
        kept = [self._space.get(path).value for path in paths]
        return [SpaceValue.read(raw) for raw in kept if raw is not None]

    def changes(
        self,
        made: Iterable[Signed[ClearingRecord]],
        present: Collection[bytes],
        published: Iterable[Published],
    ) -> tuple[dict[str, bytes | None], dict[bytes, frozenset[bytes]]]:
        """Return what is written of the space so that new records are kept, and what all name then.

        Args:
            made: the new records.
            present: the ids of all records that hold now.
            published: those that took part, and others.
        """
        values: Mapping[bytes, SpaceValue] = {
            name: value for each in published for name, value in each.named.items()
        }
        names, writes = self._names.copy(), dict[str, bytes | None]()
        uses = Counter(name for each in names.values() for name in each)
        for signed in made:
            names[signed.id] = signed.record.names
            writes[UserSpacePaths.clearing(signed.id)] = signed.raw
            for name in signed.record.names:
                if not uses[name]:
                    writes[UserSpacePaths.named(name)] = values[name].to_bytes()
                uses[name] += 1
        records = self._space.ls(UserSpacePaths.CLEARINGS)
        named = self._space.ls(UserSpacePaths.NAMED)
        sizes = {each.path: charged(each.size_bytes) for each in (*records, *named)}
        sizes |= {path: charged(len(raw)) for path, raw in writes.items() if raw is not None}
        over = sum(sizes.values()) - CLEARINGS_BYTES_MAX
        gone: dict[str, bytes | None] = {}
        for each in sorted(records, key=lambda each: each.sequence):
            if over <= 0 and len(names) <= CLEARINGS_KEPT_MAX:
                break
            record_id = _last(each.path)
            if record_id in present:
                continue
            mine = names.pop(record_id, frozenset())
            uses.subtract(mine)
            paths = [UserSpacePaths.named(name) for name in mine if not uses[name]]
            over -= sizes[each.path] + sum(sizes.get(path, 0) for path in paths)
            gone[each.path] = None
        gone |= {each.path: None for each in named if not uses[_last(each.path)]}
        # Those that go make room for the others.
        return gone | writes, names

    def wrote(self, names: Mapping[bytes, frozenset[bytes]]) -> None:
        """Note what the kept records name, once it was written."""
        self._names = dict(names)

    # Those of this node, and of others

    def proof(self, record_id: bytes) -> bytes:
        """Return a clearing record with what it names: an own one, or a false one of another.

        Raises:
            NotFound: it is not kept.
        """
        for provider, false_id in self._false.items():
            raw = self._rows.get(_FALSE + provider)
            if false_id == record_id and raw is not None:
                return raw
        return self._packed(self._own(record_id), self.named(record_id))

    def _packed(self, raw: bytes, named: Collection[SpaceValue]) -> bytes:
        """Return a clearing record with what it names, as `xsc verify` reads it."""
        proof = ClearingProof(clearing=raw, named=tuple(named))
        return sign(proof, self._context.key, self._context.network).raw

    async def checked(self, provider: bytes, record_id: bytes) -> Checked:
        """Return a clearing record, recomputed: an own one that is kept, or another's.

        Raises:
            NotFound, UnavailableError, PeerError, LimitError: its provider does not give it.
            ProofInvalid: it does not recompute, or the provider's state has other lines of it.
        """
        if provider == self._context.key.node_id:
            return await self._recompute(self._own(record_id), self.named(record_id))
        signed = await self._record(provider, record_id)
        values = await self._named_by(signed.record)
        if (said := self._heard.value(UserSpacePaths.ALLOCATION_STATE, provider)) is not None:
            values.append(said)
        try:
            return await self._recompute(signed.raw, values)
        except ProofInvalid:
            self._keep_evidence(signed, values)
            raise

    async def _recompute(self, raw: bytes, named: Collection[SpaceValue]) -> Checked:
        async with self._turn:
            return await self._context.executor.run(
                check_clearing, raw, named, network=self._context.network
            )

    # Those of others

    def false_clearings(self) -> dict[bytes, bytes]:
        """Return by provider the id of a clearing that it signed and that does not recompute."""
        return self._false.copy()

    def want(self, provider: bytes, taken: Iterable[bytes], doubted: Collection[bytes]) -> bool:
        """Have clearings of a provider recomputed, and forget all others of it.

        Args:
            provider: whose state names them.
            taken: those that grant something which can be right; of these some by a draw.
            doubted: those that grant what cannot be right.

        Returns:
            Whether anything of the provider counts, as far as is known.
        """
        known = self._found.get(provider, {})
        wanted = {*doubted, *filter(self._is_drawn, taken)}
        self._found[provider] = {each: known.get(each) for each in wanted}
        if self._next(provider) is not None and provider not in self._silent:
            self._silent[provider] = False
            self._once(f"clearings_of_{short(provider)}", lambda: self._check(provider))
        is_silent = self._silent.get(provider, False)
        return not is_silent and False not in self._found[provider].values()

    def keep(self, providers: Collection[bytes]) -> None:
        """Forget all other providers."""
        for gone in self._found.keys() - set(providers):
            del self._found[gone]

    def _is_drawn(self, record_id: bytes) -> bool:
        drawn = tagged_sha256("clearing/draw", self._secret, record_id)
        return int.from_bytes(drawn, "big") % CLEARING_DRAW == 0

    def _next(self, provider: bytes) -> bytes | None:
        """Return what is wanted of a provider and not known yet, if anything."""
        found = self._found.get(provider, {})
        return next((each for each, is_right in found.items() if is_right is None), None)

    async def _check(self, provider: bytes) -> None:
        clock, asked = self._context.clock, 0
        try:
            while (record_id := self._next(provider)) is not None:
                try:
                    await self.checked(provider, record_id)
                    is_right = True
                except ProofInvalid as fault:
                    self._context.log.warning(
                        "allocation.clearing_false", peer=short(provider), fault=fault.message
                    )
                    is_right = False
                except XscError:
                    # What it does not give, or not in its form, proves nothing.
                    asked += 1
                    if asked == CLEARING_ASKED_MAX:
                        self._silent[provider] = True
                        self._told()
                    await clock.sleep_ms(CONVERGED_LOOK_MS)
                    continue
                asked, self._silent[provider] = 0, False
                if record_id in self._found.get(provider, ()):
                    self._found[provider][record_id] = is_right
                self._told()
                await clock.sleep_ms(ALLOCATION_DEBOUNCE_MS)
        finally:
            del self._silent[provider]
        self._told()

    async def _value(self, provider: bytes, path: str) -> bytes:
        value = (await self._read(provider, path)).value
        if value is None:
            raise NotFound("the clearing, or what it names, is not there")
        return value

    async def _record(self, provider: bytes, record_id: bytes) -> Signed[ClearingRecord]:
        """Return the record that a provider's state names."""
        raw = await self._value(provider, UserSpacePaths.clearing(record_id))
        async with self._turn:
            signed = await self._context.executor.run(open_clearing, raw, self._context.network)
        if (signed.author, signed.id) != (provider, record_id):
            raise NotFound("the provider gives another clearing than its state names")
        return signed

    async def _named_by(self, record: ClearingRecord) -> list[SpaceValue]:
        """Return what a record names: mostly what its customers still publish, which is here."""
        here: dict[bytes, SpaceValue] = {}
        for node in (record.provider, *(each.customer for each in record.participants)):
            here |= self._heard.of(node).named
        found = []
        for name in sorted(record.names):
            value = here.get(name)
            if value is None:
                path = UserSpacePaths.named(name)
                value = SpaceValue.read(await self._value(record.provider, path))
                if value.name != name:
                    raise NotFound("the provider does not give what its clearing names")
            found.append(value)
        return found

    def _keep_evidence(self, signed: Signed[ClearingRecord], named: Collection[SpaceValue]) -> None:
        """Keep a record that does not recompute: one of each provider proves the point."""
        provider = signed.author
        if provider in self._false:
            return
        self._report(provider, "clearing")
        proof = self._packed(signed.raw, named)
        if len(self._false) < FALSE_CLEARINGS_MAX and len(proof) <= FALSE_CLEARING_BYTES_MAX:
            self._rows.write([(_FALSE + provider, proof)], sync=False)
            self._false[provider] = signed.id


def _last(path: str) -> bytes:
    """Return the hash at the end of a path."""
    return from_text(path.rpartition("/")[2])
