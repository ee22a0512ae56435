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

    allocation/false/<provider><id>    the first of its records that did not recompute, as a proof
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

from xsc.allocation import clearing_record, commitments
from xsc.allocation.published import Published, charged
from xsc.base import encoding, errors, keyvalue, limits
from xsc.base.grade import Dimension
from xsc.base.ids import from_text, short
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.space.paths import UserSpacePaths, below
from xsc.space.port import Space
from xsc.space.record import Entry
from xsc.terms.clearing import ClearingProof, ClearingRecord, SpaceValue

CLEARINGS_KEPT_MAX = 512
"""Clearing records in the own space: the present ones, and the newest of the others."""
CLEARING_ASKED_MAX = 10
"""How often a clearing record that its provider does not give is asked for, a second apart, before
nothing of the provider counts."""
CLEARING_DRAW = 16
"""A customer recomputes one in so many of the clearings that grant it something."""
FALSE_CLEARINGS_MAX = 16
"""Clearings that did not recompute and are kept as evidence, of one provider each."""
FALSE_CLEARINGS_A_PEER_MAX = 4
"""Of a peer and all that it has introduced."""
FALSE_CLEARING_BYTES_MAX = 2 * limits.MIB
"""Of one of them with what it names. A larger one counts against its provider all the same."""

T = TypeVar("T")

_FALSE: Final = b"allocation/false/"
_ID_BYTES: Final = 32


class Records:
    """The clearing records of this node, and what is known of those of others.

    Args:
        context: of the node.
        space: keeps the own ones.
        read: returns the record at a path of another node's space, fetched if it is not here.
        heard: has what nodes have published, as far as that is here.
        once: runs something in the background.
        report: counts that a node said something that is plainly wrong.
        shares_with: returns a node and those that came through the same introducer.
    """

    def __init__(
        self,
        context: Context,
        *,
        space: Space,
        read: Callable[[bytes, str], Awaitable[Entry]],
        heard: commitments.Heard,
        once: Callable[[str, Callable[[], Awaitable[None]]], None],
        report: Callable[[bytes, Dimension, str], None],
        shares_with: Callable[[bytes], Collection[bytes]],
    ) -> None:
        self._context = context
        self._space = space
        self._rows = context.state
        self._read = read
        self._heard = heard
        self._once = once
        self.told: Callable[[], None] = lambda: None
        """Hears that a provider counts from now on, or does not."""
        self._report = report
        self._shares_with = shares_with
        self._names: dict[bytes, frozenset[bytes]] = {}
        """By own record that is kept, what it names."""
        self._secret = context.entropy.token(_ID_BYTES)
        self._found: dict[bytes, dict[bytes, bool | None]] = {}
        """By provider and id of what is wanted of it, whether it is right; None: not known yet."""
        self._running: set[bytes] = set()
        self._failed = Counter[bytes]()
        """How often in a row a provider did not give what was wanted of it. Of CLEARING_ASKED_MAX
        times, and of what is false, nothing counts until what grants it was recomputed."""
        self._turn = asyncio.Lock()
        self._false: dict[bytes, bytes] = {}
        """By provider, the id of the record that is kept as evidence against it."""
        space.register_schema(f"{UserSpacePaths.CLEARINGS}/*", self._check_record)
        space.register_schema(f"{UserSpacePaths.NAMED}/*", lambda _, raw: SpaceValue.read(raw))

    def _check_record(self, _owner: bytes, raw: bytes) -> None:
        clearing_record.open_clearing(raw, self._context.network)

    def start(self) -> None:
        """Read what the kept records name, and what is kept as evidence.

        Raises:
            RecordInvalid: one cannot be read.
        """
        for each in self._space.ls(UserSpacePaths.CLEARINGS):
            # What peers gave back after a loss of the disk can lack its value.
            with suppress(errors.NotFound):
                self._names[_last(each.path)] = self.opened(_last(each.path)).record.names
        for key, _ in self._rows.scan(_FALSE, keyvalue.prefix_end(_FALSE)):
            self._false[key[len(_FALSE) : -_ID_BYTES]] = key[-_ID_BYTES:]

    # Those of this node

    def ids(self) -> list[bytes]:
        """Return the ids of the records that are kept."""
        return [*self._names]

    def clearings(self) -> list[Signed[ClearingRecord]]:
        """Return the records that are kept, the newest first."""
        found = [self.opened(record_id) for record_id in self.ids()]
        return sorted(found, key=lambda each: (-each.record.at_ms, each.id))

    def opened(self, record_id: bytes) -> Signed[ClearingRecord]:
        """Return a record.

        Raises:
            NotFound: it is not kept.
        """
        raw = self._space.get(below(UserSpacePaths.CLEARINGS, record_id)).value
        if raw is None:
            raise errors.NotFound(
                "the clearing is not kept any more",
                hint="`xsc market clearings` lists those that are",
            )
        return clearing_record.open_clearing(raw, self._context.network)

    def named(self, record_id: bytes) -> list[SpaceValue]:
        """Return the values that a record names, as far as they are kept."""
        names = sorted(self._names.get(record_id, ()))
        kept = [self._space.get(below(UserSpacePaths.NAMED, name)).value for name in names]
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
        named = {value.name: value for each in published for value in each.values}
        names = self._names | {signed.id: signed.record.names for signed in made}
        paths = UserSpacePaths.CLEARINGS, UserSpacePaths.NAMED
        stored = {_last(each.path): each for path in paths for each in self._space.ls(path)}
        new = {below(UserSpacePaths.CLEARINGS, signed.id): signed.raw for signed in made}
        for name in {name for signed in made for name in signed.record.names} - stored.keys():
            new[below(UserSpacePaths.NAMED, name)] = named[name].to_bytes()
        sizes = {each: charged(entry.size_bytes) for each, entry in stored.items()}
        sizes |= {_last(path): charged(len(raw)) for path, raw in new.items()}

        def age(record_id: bytes) -> tuple[bool, int]:
            was = stored.get(record_id)
            return record_id not in present, 0 if was is None else -was.sequence

        kept, seen, size_bytes = dict[bytes, frozenset[bytes]](), set[bytes](), 0
        for record_id in sorted(names, key=age):
            more = {record_id, *names[record_id]} - seen
            size_bytes += sum(sizes.get(each, 0) for each in more)
            is_over = size_bytes > limits.CLEARINGS_BYTES_MAX or len(kept) >= CLEARINGS_KEPT_MAX
            if is_over and record_id not in present:
                break
            kept[record_id] = names[record_id]
            seen |= more
        # Those that go make room for the others.
        gone = dict.fromkeys(entry.path for each, entry in stored.items() if each not in seen)
        return {**gone, **{path: raw for path, raw in new.items() if _last(path) in seen}}, kept

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
            if false_id == record_id and (raw := self._rows.get(_FALSE + provider + false_id)):
                return raw
        signed = self.opened(record_id)
        return self._packed(signed, [*self.named(record_id), *self._state_of(signed.author)])

    def _state_of(self, provider: bytes) -> list[SpaceValue]:
        """Return what a provider says that its present clearings come to, where it is here."""
        said = self._heard.value(UserSpacePaths.ALLOCATION_STATE, provider)
        return [] if said is None else [said]

    def _packed(self, signed: Signed[ClearingRecord], values: Collection[SpaceValue]) -> bytes:
        """Return a clearing record with what it names, as `xsc verify` reads it."""
        proof = ClearingProof(clearing=signed.raw, named=tuple(values))
        return sign(proof, self._context.key, self._context.network).raw

    async def checked(self, provider: bytes, record_id: bytes) -> clearing_record.Clearing:
        """Return a clearing, checked with what its provider says of it.

        Raises:
            NotFound, UnavailableError, PeerError, LimitError: its provider does not give it.
            ProofInvalid: its record is not right, or the provider's state has another outcome.
        """
        is_own = provider == self._context.key.node_id
        signed = self.opened(record_id) if is_own else await self._record(provider, record_id)
        values = self.named(record_id) if is_own else await self._named_by(signed.record)
        values += self._state_of(provider)
        try:
            return await self._run(clearing_record.check_clearing, signed.raw, values)
        except errors.ProofInvalid:
            if not is_own:
                self._keep_evidence(signed, values)
            raise

    async def _run(self, check: Callable[..., T], *given: object) -> T:
        """Check something in another thread, one after the other."""
        async with self._turn:
            return await self._context.executor.run(check, *given, network=self._context.network)

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
        is_trusted = self._failed[provider] < CLEARING_ASKED_MAX
        wanted = {*doubted, *(each for each in taken if not is_trusted or self._is_drawn(each))}
        self._found[provider] = {each: known.get(each) for each in wanted}
        if None in self._found[provider].values() and provider not in self._running:
            self._running.add(provider)
            self._once(f"clearings_of_{short(provider)}", lambda: self._check(provider))
        return is_trusted and False not in self._found[provider].values()

    def keep(self, providers: Collection[bytes]) -> None:
        """Forget all other providers, but for whom nothing counts."""
        for gone in self._found.keys() - set(providers):
            del self._found[gone]

    def _is_drawn(self, record_id: bytes) -> bool:
        drawn = encoding.tagged_sha256("clearing/draw", self._secret, record_id)
        return int.from_bytes(drawn, "big") % CLEARING_DRAW == 0

    async def _check(self, provider: bytes) -> None:
        """Recompute what is wanted of a provider, one after the other."""
        try:
            while None in (found := self._found.get(provider, {})).values():
                record_id = next(each for each, is_right in found.items() if is_right is None)
                is_right = None
                try:
                    await self.checked(provider, record_id)
                except errors.ProofInvalid as fault:
                    is_right, self._failed[provider] = False, CLEARING_ASKED_MAX
                    self._context.log.warning(
                        "allocation.clearing_false", peer=short(provider), fault=fault.message
                    )
                except errors.XscError:
                    # What it does not give, or not in its form, proves nothing.
                    self._failed[provider] += 1
                else:
                    is_right, self._failed[provider] = True, 0
                if record_id in self._found.get(provider, ()):
                    self._found[provider][record_id] = is_right
                if is_right is not None or self._failed[provider] == CLEARING_ASKED_MAX:
                    self.told()
                await self._context.clock.sleep_ms(limits.CONVERGED_LOOK_MS)
        finally:
            self._running.discard(provider)

    async def _value(self, provider: bytes, path: str) -> bytes:
        value = (await self._read(provider, path)).value
        if value is None:
            raise errors.NotFound("the clearing, or what it names, is not there")
        return value

    async def _record(self, provider: bytes, record_id: bytes) -> Signed[ClearingRecord]:
        """Return the record that a provider's state names."""
        raw = await self._value(provider, below(UserSpacePaths.CLEARINGS, record_id))
        signed = await self._run(clearing_record.open_clearing, raw)
        if (signed.author, signed.id) != (provider, record_id):
            raise errors.NotFound("the provider gives another clearing than its state names")
        return signed

    async def _named_by(self, record: ClearingRecord) -> list[SpaceValue]:
        """Return what a record names: mostly what its customers still publish, which is here."""
        here: dict[bytes, SpaceValue] = {}
        for node, *_ in (record.provider, *record.participants):
            here |= {value.name: value for value in self._heard.of(node).values}
        found, size_bytes = [], 0
        for name in sorted(record.names):
            value = here.get(name)
            if value is None:
                raw = await self._value(record.provider[0], below(UserSpacePaths.NAMED, name))
                value, size_bytes = SpaceValue.read(raw), size_bytes + len(raw)
                if value.name != name or size_bytes > limits.CLEARINGS_BYTES_MAX:
                    raise errors.NotFound("the provider does not give what its clearing names")
            found.append(value)
        return found

    def _keep_evidence(self, signed: Signed[ClearingRecord], named: Collection[SpaceValue]) -> None:
        """Keep a record that does not recompute: one of each provider proves the point."""
        provider = signed.author
        self._report(provider, "payment", "clearing")
        if provider in self._false:
            return
        proof = self._packed(signed, named)
        shared = self._false.keys() & self._shares_with(provider)
        has_room = (
            len(shared) < FALSE_CLEARINGS_A_PEER_MAX and len(self._false) < FALSE_CLEARINGS_MAX
        )
        if has_room and len(proof) <= FALSE_CLEARING_BYTES_MAX:
            self._rows.write([(_FALSE + provider + signed.id, proof)], sync=False)
            self._false[provider] = signed.id


def _last(path: str) -> bytes:
    """Return the hash at the end of a path."""
    return from_text(path.rpartition("/")[2])
