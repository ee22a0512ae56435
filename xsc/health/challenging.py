"""Challenges hosts to prove what they hold, keeps what came of it, and answers challenges.

The rules are in `challenge`. Storage says what should lie where, reads what lies here, and
repairs what was found lost; nothing is deleted, and nobody is barred.

Keys: "health/challenge/<host><customer>", the last outcome about one customer's data at one
host; "health/shown/<host>", the last answer about own data, as others check it. They are written
without a sync: a lost one costs a challenge more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from xsc.base import bounded, errors, fields, keyvalue, limits, merkle, peering, turns
from xsc.base.encoding import Value
from xsc.base.ids import ID_BYTES, short
from xsc.health import challenge as rules
from xsc.health.challenge import Challenged, Outcome, Reveal, Round
from xsc.health.ports import Payments, Possessions, Probes
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.terms.possession import (
    LEAVES_ASKED,
    PROVE,
    Answered,
    AskedLeaf,
    Holding,
    LeafProof,
    Lost,
    Possession,
    Proven,
)

CHALLENGE: Final = "health.challenge"
ROOT: Final = b"health/challenge/"
SHOWN: Final = b"health/shown/"
REASONS: Final[Mapping[Outcome, str]] = {
    "ok": "",
    "missing": "the host has not got what it stored",
    "bad_proof": "what the host gave is not what it stored",
}
CHALLENGES_A_PEER_MAX = 64
"""Challenges of one prober that a host takes an epoch."""
ANSWERS_KEPT = 1_024
"""Of the newest answers to others than customers."""
ROW_BYTES_MAX = 512 * limits.KIB
ANSWER_BOUNDS: Final[Mapping[str, Callable[[Mapping[str, Value]], int]]] = {
    PROVE: lambda _: limits.SEGMENT_BYTES
}
"""What is in memory for an answer at most: the leaves, and a body out of which one is cut."""


class Proved(NamedTuple):
    """What a challenge came to."""

    host: bytes
    customer: bytes
    outcome: Outcome
    reason: str = ""
    """Why it is not "ok"."""
    names: frozenset[bytes] = frozenset()
    """Extents that failed."""
    said_ms: int = 0
    """When the host signed its answer, by its clock."""
    evidence: bytes = b""
    """The hash of what the host signed, where that proves that it gave something false."""


def _round_fields(asked: Round) -> dict[str, Value]:
    return {"customer": asked.customer, "scope": asked.scope, "epoch": asked.epoch}


class Summary(NamedTuple):
    """What challenges of a host came to; None before the first."""

    outcome: Outcome | None
    challenged_ms: int | None
    proven_ms: int | None


class ChallengeService:
    """Challenges the hosts of what this node looks after, and answers as a host."""

    def __init__(
        self,
        context: Context,
        health: Probes,
        possessions: Possessions,
        *,
        leaf: Callable[[bytes, AskedLeaf], Awaitable[LeafProof | Lost]],
        payments: Payments,
    ) -> None:
        """Read what earlier challenges came to.

        Args:
            context: signs, and sends to peers.
            health: how peers are.
            possessions: what should lie at hosts.
            leaf: reads for a caller what lies here; else says whether that was lost here.
            payments: pay for what is proven.

        Raises:
            StoreDamaged: what is kept is damaged.
        """
        self._context = context
        self._own = context.key.node_id
        self._secret = context.key.derive("challenge")
        self._state = context.state
        self._health = health
        self._possessions = possessions
        self._leaf = leaf
        self._payments = payments
        self._granted = rules.Granted(CHALLENGES_A_PEER_MAX)
        self._revealed: dict[tuple[bytes, bytes], Reveal] = {}
        """By host and customer, the challenge of the hour: whoever asks now asks it again."""
        self._certified: dict[tuple[bytes, bytes], bytes] = {}
        """By host and customer, what a custodian signed on the last ok; the host is given it."""
        self._answered: bounded.Bounded[tuple[bytes, bytes], Proven] = bounded.Bounded(ANSWERS_KEPT)
        """By customer and custodian, what the latter may sign of the last answer."""
        self._turns: turns.Turns[bytes] = turns.Turns()
        self.rows: dict[bytes, dict[bytes, Challenged]] = {}
        """By host and customer."""
        for key, raw in self._state.scan(ROOT, keyvalue.prefix_end(ROOT)):
            host, customer = key[len(ROOT) :][:ID_BYTES], key[len(ROOT) + ID_BYTES :]
            try:
                row = Challenged.from_bytes(raw, size_max=ROW_BYTES_MAX)
            except errors.RecordInvalid as fault:
                raise errors.StoreDamaged(f"outcomes of challenges: {fault.message}") from None
            self.rows.setdefault(host, {})[customer] = row

    # What is known

    def _row(self, host: bytes, customer: bytes) -> Challenged | None:
        return self.rows.get(host, {}).get(customer)

    def _keep(self, host: bytes, customer: bytes, row: Challenged) -> None:
        self.rows.setdefault(host, {})[customer] = row
        self._state.write([(ROOT + host + customer, row.to_bytes())], sync=False)

    def summary(self, host: bytes) -> Summary:
        """Return what challenges of a host came to, over all customers."""
        rows = self.rows.get(host, {}).values()
        worst = rules.worst(rows)
        if worst is None:
            return Summary(None, None, None)
        return Summary(worst.outcome, worst.at_ms, rules.proven_ms(rows))

    def forget(self, peer: bytes) -> None:
        """Drop everything about a peer, also what is stored."""
        self._granted.forget(peer)
        gone: list[keyvalue.Change] = [
            (ROOT + peer + customer, None) for customer in self.rows.pop(peer, {})
        ]
        self._revealed = {at: told for at, told in self._revealed.items() if at[0] != peer}
        self._certified = {at: raw for at, raw in self._certified.items() if at[0] != peer}
        self._state.write([*gone, (SHOWN + peer, None)], sync=False)

    def shown(self, host: bytes) -> bytes | None:
        """Return the last answer of a host about all own data there, unless that was false."""
        return self._state.get(SHOWN + host)

    # The prober

    def _is_there(self, host: bytes) -> bool:
        """Say whether silence of a host is its own: it answers this node, or others."""
        return self._health.is_up(host) or self._health.is_found(host)

    async def round(self) -> None:
        """Challenge the hosts whose turn it is, of those that are up."""
        now_ms = self._context.clock.now_ms()
        due = [
            host
            for host in self._health.peers()
            if self._is_there(host)
            and rules.is_due(self._own, host, self.rows.get(host, {}).values(), now_ms)
        ]
        if due:
            await self.challenge(due)

    async def challenge(self, hosts: Sequence[bytes]) -> list[Proved]:
        """Challenge hosts now about all that this node looks after there; note what comes of it."""
        held = await self._possessions.held(hosts)
        # What is looked after no more at a host is not waited for.
        for host in hosts:
            for customer in [each for each in self.rows.get(host, {}) if (host, each) not in held]:
                del self.rows[host][customer]
                self._state.write([(ROOT + host + customer, None)], sync=False)
        work = (self._noted(host, customer, it) for (host, customer), it in held.items())
        return list(await asyncio.gather(*work))

    async def _noted(self, host: bytes, customer: bytes, holding: Holding) -> Proved:
        async with self._turns.of(host + customer):
            before, was_there = self._row(host, customer), self._is_there(host)
            epoch = self._context.clock.now_ms() // limits.EPOCH_MS
            asked = Round(host, customer, self._own, rules.EVERYTHING, epoch)
            reveal = None
            if before is not None and before.again:
                reveal = Reveal.from_bytes(before.again, size_max=ROW_BYTES_MAX)
                if reveal.epoch < epoch - rules.EPOCHS_KEPT:
                    reveal = None  # The host takes it no more.
            known = self._revealed.get((host, customer))
            if reveal is None and known is not None and known.epoch == epoch:
                reveal = known
            # The first of an hour exceeds nothing, whatever the host says.
            first = before is None or before.epoch != epoch
            exceeding: Outcome = "timeout" if first else "prober_void"
            proved, reveal = await self.prove(asked, holding, reveal, exceeding)
            if reveal is not None:
                self._revealed[host, customer] = reveal
            if host not in self._health.peers() or not (
                was_there or proved.outcome in rules.ANSWERED
            ):
                return proved
            now_ms = self._context.clock.now_ms()
            whole = proved.outcome == "ok" and rules.whole_is_due(before, now_ms)
            if whole:
                whole_read = await self._whole(asked, holding, now_ms)
                proved = whole_read._replace(said_ms=proved.said_ms)
            said = proved
            now_ms = self._context.clock.now_ms()
            row = rules.noted(before, proved.outcome, epoch, now_ms)
            if whole and row.outcome in rules.ANSWERED:
                row = row.model_copy(update={"whole_ms": now_ms})
            if row.outcome not in rules.ANSWERED and reveal is not None:
                # The host has seen what was drawn: whatever its silence is, it gets no other draw.
                row = row.model_copy(update={"again": reveal.to_bytes()})
            if row.outcome in {"bad_proof", "missing"}:
                proved = proved._replace(outcome=row.outcome)
                # After silence or a second loss in a row the whole holding counts as lost. Else a
                # host could admit a few leaves each hour.
                again = before is not None and before.outcome in {"bad_proof", "missing"}
                names = None if again else proved.names or None
                still = await self._possessions.lost(host, customer, names)
                if not still:
                    proved = proved._replace(outcome="prober_void", reason="it moved meanwhile")
                    row = rules.noted(before, "prober_void", epoch, now_ms)
                    row = row.model_copy(update={"again": b""})
            self._keep(host, customer, row)
            if row.outcome in rules.ANSWERED:
                self._tell(proved, reveal, row, holding)
            self._say(proved)
            if proved.outcome != "prober_void":
                self._score(said, own=customer == self._own)
            if row.outcome == "missing" and said.outcome not in rules.ANSWERED:
                self._health.silent(host)
            return proved

    def _score(self, proved: Proved, *, own: bool) -> None:
        """Count what a host answered about own data, and what it signed falsely about any.

        Of others' data nothing else counts: whoever made it can list what it never stored.
        """
        host, outcome, evidence = proved.host, proved.outcome, proved.evidence
        if own and outcome == "ok":
            self._health.served(host, "integrity")
        elif evidence or (own and outcome in {"bad_proof", "missing"}):
            self._health.report(host, "integrity", outcome, evidence=evidence)

    def _tell(
        self, proved: Proved, reveal: Reveal | None, row: Challenged, holding: Holding
    ) -> None:
        """Have it paid if it is about own data; else sign an ok for the host, as a custodian."""
        ok, host = row.outcome == "ok", proved.host
        epoch = row.epoch if reveal is None else reveal.epoch
        leaves = rules.leaves_of(holding.extents) if reveal is None else reveal.leaves
        if proved.customer == self._own:
            proof = Answered(leaves, epoch, proved.said_ms or row.at_ms, ok)
            self._payments.challenged("customer", host, proof)
        elif ok and reveal is not None:
            proven = Proven(
                host=host,
                customer=proved.customer,
                prober=self._own,
                seed=reveal.seed(host, self._own),
                leaves=leaves,
                at_ms=proved.said_ms,
            )
            raw = sign(proven, self._context.key, self._context.network).raw
            self._certified[host, proved.customer] = raw

    def _say(self, proved: Proved) -> None:
        if proved.outcome == "ok":
            return
        self._context.log.warning(
            "health.challenged",
            peer=short(proved.host),
            customer=short(proved.customer),
            outcome=proved.outcome,
            reason=proved.reason,
        )

    async def prove_object(
        self, customer: bytes, locate: bytes, holdings: Mapping[bytes, Holding]
    ) -> list[Proved]:
        """Challenge hosts about one object; what is lost of an own one is repaired.

        Args:
            customer: its owner.
            locate: of it.
            holdings: by host, what it should have of it.
        """
        epoch = self._context.clock.now_ms() // limits.EPOCH_MS
        rounds = [Round(host, customer, self._own, locate, epoch) for host in holdings]
        done = await asyncio.gather(*(self.prove(each, holdings[each.host]) for each in rounds))
        found = [proved for proved, _ in done]
        for proved in found:
            if customer == self._own and proved.outcome in {"bad_proof", "missing"}:
                await self._possessions.lost(proved.host, customer, proved.names)
            self._say(proved)
            # Its manifest may name this node as the owner of what it never stored.
            self._score(proved, own=False)
        return found

    async def prove(
        self,
        asked: Round,
        holding: Holding,
        reveal: Reveal | None = None,
        exceeding: Outcome = "prober_void",
    ) -> tuple[Proved, Reveal | None]:
        """Challenge a host; return what came of it, and what was revealed to the host.

        Args:
            asked: who is asked, and about what.
            holding: what should lie there.
            reveal: a challenge to ask again, instead of a new one.
            exceeding: what it is where the host says that it was asked too often.
        """
        outcome: Outcome = "prober_void"
        reason = "it moved meanwhile"
        try:
            reveal = reveal or await self._begin(asked, holding)
            if reveal is not None:
                return await self._ask(asked, reveal), reveal
        except errors.RateLimited as fault:
            outcome, reason = exceeding, fault.message
        except errors.XscError as fault:
            # A host's word makes nothing void: whatever it says instead of an answer is silence.
            outcome, reason = await self._unheard(asked.host), f"{fault.code}: {fault.message}"
        return Proved(asked.host, asked.customer, outcome, reason), reveal

    async def _unheard(self, host: bytes) -> Outcome:
        """Return what silence is: who answers a probe, or others, only keeps silent about it."""
        try:
            if (await self._health.probe(host)).available:
                return "timeout"
        except errors.PeerUnknown:
            return "prober_void"
        if self._health.is_cut_off(host):
            return "prober_void"
        return "timeout" if self._health.is_found(host) else "unreachable"

    async def _begin(self, asked: Round, holding: Holding) -> Reveal | None:
        """Commit to nonce and list, take the host's nonce, and draw.

        Return None where something drawn is looked after here no more.
        """
        pages = rules.pages_of(holding.extents)
        index = rules.index_of(pages)
        nonce = rules.nonce_of(self._secret, asked)
        commitment = rules.commitment_of(nonce, index)
        proven = self._certified.get((asked.host, asked.customer))
        header = {**_round_fields(asked), "commitment": commitment, "proven": proven}
        reply = await self._call(asked.host, CHALLENGE, header)
        host_nonce = fields.take_bytes(reply.header, "nonce", size=ID_BYTES)
        seed = rules.seed_of(asked, nonce, host_nonce, commitment)
        shown = tuple(pages[number] for number in rules.pages_drawn(index, seed))
        drawn = rules.leaves_drawn(index, shown, seed)
        roots = [await holding.root_of(extent, body) for extent, body, _ in drawn]
        if None in roots:
            return None
        return Reveal(
            customer=asked.customer,
            scope=asked.scope,
            epoch=asked.epoch,
            nonce=nonce,
            host_nonce=host_nonce,
            index=index,
            pages=shown,
            roots=tuple((*root,) for root in roots if root is not None),
        )

    async def _ask(self, round_: Round, reveal: Reveal) -> Proved:
        """Ask for the leaves that were drawn, and judge the answer."""
        host = round_.host
        asked = reveal.asked(host, self._own)
        header: dict[str, Value] = {
            **_round_fields(reveal.round(host, self._own)),
            "nonce": reveal.nonce,
            "host_nonce": reveal.host_nonce,
            "roots": [[*root] for root in reveal.roots],
        }
        parts = [merkle.Part(raw, merkle.root_of(raw)) for raw in (reveal.index, *reveal.pages)]
        reply = await self._call(host, PROVE, header, parts)
        try:
            raw = fields.take_bytes(reply.header, "said")
            signed = open_signed(raw, Possession, network=self._context.network, author=host)
            said = signed.record
            paths = rules.paths_of(fields.take_list(reply.header, "paths", most=LEAVES_ASKED))
            if len(paths) != len(reply.parts):
                raise errors.RecordInvalid("each leaf has one path")
            proofs = [LeafProof(bytes(d), p) for d, p in zip(reply.parts, paths, strict=True)]
            outcome, names = rules.judge(reveal.seed(host, self._own), asked, said, proofs)
        except (errors.RecordInvalid, errors.SignatureInvalid) as fault:
            self._health.report(host, "integrity", f"challenge: {fault.message}")
            raise
        if (round_.customer, round_.scope) == (self._own, rules.EVERYTHING):
            # After a false answer no earlier one is shown as the last.
            shown = None if outcome == "bad_proof" else rules.transcript(reveal, asked, raw, proofs)
            self._state.write([(SHOWN + host, shown)], sync=False)
        reason = REASONS[outcome]
        evidence = signed.id if outcome == "bad_proof" else b""
        return Proved(host, round_.customer, outcome, reason, names, said.said_ms, evidence)

    async def _whole(self, asked: Round, holding: Holding, now_ms: int) -> Proved:
        """Read a whole body, drawn by this node alone: the same one until that was answered."""
        host = asked.host
        drawn = rules.nonce_of(self._secret, asked._replace(epoch=now_ms // rules.WHOLE_MS))
        pages = rules.pages_of(holding.extents)
        index = rules.index_of(pages)
        shown = [pages[number] for number in rules.pages_drawn(index, drawn)]
        extent, body, _ = rules.leaves_drawn(index, shown, drawn)[0]
        began_ms = self._context.clock.monotonic_ms()
        outcome: Outcome = "ok"
        reason = ""
        try:
            root = await holding.root_of(extent, body)
            if root is not None:
                await self._possessions.whole(host, extent, body, root)
        except errors.ShardMismatch as fault:
            outcome, reason = "bad_proof", fault.message
        except errors.ShardsInsufficient as fault:
            outcome, reason = "missing", fault.message
        except errors.XscError as fault:
            outcome, reason = await self._unheard(host), fault.message
        took_ms = self._context.clock.monotonic_ms() - began_ms
        if outcome == "ok" and took_ms > rules.whole_most_ms(extent.size_of(body)):
            outcome, reason = "timeout", f"a whole shard took {took_ms} ms"
        failed = frozenset({extent.name} if outcome != "ok" else ())
        return Proved(host, asked.customer, outcome, reason, failed)

    async def _call(
        self,
        host: bytes,
        method: str,
        header: dict[str, Value],
        parts: Sequence[merkle.Part] = (),
    ) -> peering.Reply:
        timeout_ms = rules.CHALLENGE_TIMEOUT_MS
        return await self._context.caller.call(host, method, header, parts, timeout_ms=timeout_ms)

    # The host

    def handlers(self) -> dict[str, peering.Handler]:
        """Return the methods that peers may call."""
        return {CHALLENGE: self._on_challenge, PROVE: self._on_prove}

    def _asked(self, caller: bytes, header: Mapping[str, Value]) -> Round:
        customer = fields.take_bytes(header, "customer", size=ID_BYTES)
        scope = fields.take_bytes(header, "scope", size=ID_BYTES)
        return Round(self._own, customer, caller, scope, fields.take_int(header, "epoch"))

    async def _on_challenge(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        """Give this node's nonce for a commitment, and take what a custodian signed.

        Raises:
            RecordInvalid, SignatureInvalid: it signed something else than this node answered.
            RateLimited: the caller has committed itself to another one in this epoch.
        """
        asked = self._asked(caller, header)
        commitment = fields.take_bytes(header, "commitment", size=ID_BYTES)
        if not self._granted.take(
            asked, commitment, self._context.clock.now_ms() // limits.EPOCH_MS
        ):
            raise errors.RateLimited("so many challenges an epoch are answered, and no more")
        raw = fields.take_opt_bytes(header, "proven")
        if raw is not None:
            network = self._context.network
            proven = open_signed(raw, Proven, network=network, author=caller).record
            # After a restart of this node it does not know: the next one comes in an hour.
            if proven == self._answered.get((asked.customer, caller)):
                self._payments.certified(asked.customer, raw, proven.leaves)
        return {"nonce": rules.nonce_of(self._secret, asked, commitment)}, ()

    async def _on_prove(
        self, caller: bytes, header: dict[str, Value], parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        """Give the leaves that follow from a commitment and both nonces.

        Raises:
            RecordInvalid: they do not follow, or the challenge is too old.
            RateLimited: the caller may not have so much read now.
        """
        asked = self._asked(caller, header)
        now_ms = self._context.clock.now_ms()
        roots = fields.take_list(header, "roots", most=LEAVES_ASKED)
        raw = [bytes(part.data) for part in parts[: 1 + LEAVES_ASKED]]
        if len(raw) < 2 or len(parts) > 1 + LEAVES_ASKED:
            raise errors.RecordInvalid("an index and the pages that were drawn are shown")
        reveal = Reveal.from_value(
            {
                "v": 1,
                **_round_fields(asked),
                "nonce": fields.take_bytes(header, "nonce", size=ID_BYTES),
                "host_nonce": fields.take_bytes(header, "host_nonce", size=ID_BYTES),
                "index": raw[0],
                "pages": [*raw[1:]],
                "roots": roots,
            }
        )
        commitment = rules.commitment_of(reveal.nonce, reveal.index)
        if reveal.host_nonce != rules.nonce_of(self._secret, asked, commitment):
            raise errors.RecordInvalid("this node took no such challenge")
        if not -1 <= now_ms // limits.EPOCH_MS - asked.epoch <= rules.EPOCHS_KEPT:
            raise errors.RecordInvalid("the challenge is of another time")
        leaves = reveal.asked(self._own, caller)
        found = [await self._leaf(caller, leaf) for leaf in leaves]
        proofs = [None if isinstance(each, str) else each for each in found]
        seed = reveal.seed(self._own, caller)
        record = rules.possession(seed, leaves, proofs, now_ms)
        given = [proof for proof in proofs if proof is not None]
        if asked.scope == rules.EVERYTHING:
            # What was never stored here is the customer's word: it takes nothing off.
            ok = False if "corrupt" in found else None if "missing" in found else True
            if asked.customer == caller:
                proof = Answered(reveal.leaves, asked.epoch, now_ms, ok)
                self._payments.challenged("provider", caller, proof)
            elif ok:
                answered = Proven(
                    host=self._own,
                    customer=asked.customer,
                    prober=caller,
                    seed=seed,
                    leaves=reveal.leaves,
                    at_ms=now_ms,
                )
                self._answered.put((asked.customer, caller), answered, caller)
        answer: dict[str, Value] = {
            "said": sign(record, self._context.key, self._context.network).raw,
            "paths": [[*proof.path] for proof in given],
        }
        return answer, [proof.data for proof in given]
