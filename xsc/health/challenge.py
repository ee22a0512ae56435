"""The rules of possession challenges: what is drawn, who may check it, and what an answer is worth.

The prober lists the extents that should lie at a host, in pages, and commits itself to list and
nonce before the host gives its own nonce: so neither of the two can choose the leaves. The host
draws again from what the prober reveals.
docs/design/health.md; vectors: tests/vectors/challenge.json
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, count, pairwise
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

from pydantic import Field

from xsc.base import limits, merkle
from xsc.base.encoding import Value, encode, tagged_sha256
from xsc.base.errors import RecordInvalid
from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.possession import (
    EXTENT_BYTES,
    LEAVES_ASKED,
    NAME_BYTES,
    AskedLeaf,
    Extent,
    LeafProof,
    Possession,
    Root,
    counts_in,
    extent_in,
)

Outcome: TypeAlias = Literal["ok", "bad_proof", "missing", "timeout", "unreachable", "prober_void"]

ANSWERED: Final = frozenset({"ok", "bad_proof", "missing"})
"""Outcomes that a host signed, and silence that counts as missing."""
EVERYTHING = bytes(32)
"""The scope of a challenge over all that a customer has at a host; else it is a locate id."""
PAGE_EXTENTS = 64
PAGES_MAX = 1_024
PAGE_EXTENTS_MAX = 1_024
AGAIN_MIN = 3
"""So often at least a challenge that timed out is asked again before it counts as missing."""
CONTAINED_MS = 24 * 3_600_000
"""So long at least it stays a timeout."""
EPOCHS_KEPT = 26
"""So old a challenge may be that is asked again."""
SLOTS_AN_EPOCH = 12
SLOT_MS = limits.EPOCH_MS // SLOTS_AN_EPOCH
WHOLE_MS = 30 * 86_400_000
"""How often a whole body is read at each host."""
WHOLE_BYTES_A_SECOND_MIN = 512 * limits.KIB
CHALLENGE_TIMEOUT_MS = 10_000
PATH_MAX = 64
LEAVES_MAX = 2**63 - 1
"""Of all pages of an index; above 2**64 a draw would not end."""

_PAGE = struct.Struct(f">{NAME_BYTES}s32sQ")


# The list of what a customer has at a host


def pages_of(extents: Iterable[Extent]) -> list[bytes]:
    """Return extents in order of their names, packed into at most PAGES_MAX pages."""
    packed = sorted(extent.to_bytes() for extent in extents)
    size = max(PAGE_EXTENTS, -(-len(packed) // PAGES_MAX))
    return [b"".join(packed[start : start + size]) for start in range(0, len(packed), size)]


def index_of(pages: Iterable[bytes]) -> bytes:
    """Return of each page its first name, its hash and how many leaves its extents have."""
    return b"".join(
        _PAGE.pack(page[:NAME_BYTES], _digest(page), sum(counts_in(page))) for page in pages
    )


def leaves_of(extents: Iterable[Extent]) -> int:
    """Return how many leaves extents have."""
    return sum(sum(counts_in(extent.to_bytes())) for extent in extents)


def _digest(page: bytes | memoryview) -> bytes:
    return tagged_sha256("challenge_page", bytes(page))


class _Entry(NamedTuple):
    first: bytes
    digest: bytes
    leaves: int


def _entries(index: bytes | memoryview) -> list[_Entry]:
    if not 0 < len(index) <= PAGES_MAX * _PAGE.size or len(index) % _PAGE.size:
        raise RecordInvalid(f"an index names 1 to {PAGES_MAX} pages")
    entries = [_Entry(*fields) for fields in _PAGE.iter_unpack(index)]
    if not all(entry.leaves for entry in entries):
        raise RecordInvalid("a page of an index has no leaves")
    if sum(entry.leaves for entry in entries) > LEAVES_MAX:
        raise RecordInvalid("an index names more leaves than there can be")
    firsts = [entry.first for entry in entries]
    if not all(a < b for a, b in pairwise(firsts)):
        raise RecordInvalid("the pages of an index are not in order")
    return entries


def _checked(page: bytes | memoryview, entries: Sequence[_Entry], number: int) -> list[int]:
    """Return where the leaves of each extent of a page end, once the page is the one of the index.

    It names each extent once, and no extent that is in the place of another page.
    """
    entry = entries[number]
    if len(page) > PAGE_EXTENTS_MAX * EXTENT_BYTES or _digest(page) != entry.digest:
        raise RecordInvalid("a page is not the one that its index names")
    ends = list(accumulate(counts_in(page)))
    names = [bytes(page[at : at + NAME_BYTES]) for at in range(0, len(page), EXTENT_BYTES)]
    names += [following.first for following in entries[number + 1 : number + 2]]
    if names[0] != entry.first or not all(a < b for a, b in pairwise(names)):
        raise RecordInvalid("the extents of a page are not in order")
    if ends[-1] != entry.leaves:
        raise RecordInvalid("a page has another number of leaves than its index names")
    return ends


# The draw


class Round(NamedTuple):
    """One challenge: prober, host, the customer whose data is drawn from, and the hour."""

    host: bytes
    customer: bytes
    prober: bytes
    scope: bytes
    """EVERYTHING, or the locate id of the only object that is asked for."""
    epoch: int
    """The hour of the pair's counts: hours since 1970."""

    def to_bytes(self) -> bytes:
        """Return what is hashed for it."""
        who = self.host + self.customer + self.prober + self.scope
        return who + self.epoch.to_bytes(8, "big")


def nonce_of(secret: bytes, asked: Round, commitment: bytes = b"") -> bytes:
    """Return a node's nonce: the same whenever it is asked for, and known to it alone.

    The prober's is made before there is a commitment, the host's for that commitment.
    """
    return tagged_sha256("challenge_nonce", secret, asked.to_bytes(), commitment)


def commitment_of(nonce: bytes, index: bytes | memoryview) -> bytes:
    """Return what commits a prober to its nonce and to the list that it draws over."""
    return tagged_sha256("challenge_commitment", nonce, bytes(index))


def seed_of(asked: Round, nonce: bytes, host_nonce: bytes, commitment: bytes) -> bytes:
    """Return the seed of a challenge."""
    return tagged_sha256("challenge_seed", asked.to_bytes(), nonce, host_nonce, commitment)


def draw(seed: bytes, total: int, most: int = LEAVES_ASKED) -> list[int]:
    """Return `most` distinct numbers below `total`, each set as likely as any; all if it has fewer.

    Words of a hash that would make some number more likely than others are passed over.
    """
    if total <= most:
        return list(range(total))
    bound = 2**64 - 2**64 % total
    found: list[int] = []
    for number in count():
        words = struct.unpack(
            ">4Q", tagged_sha256("challenge_draw", seed, number.to_bytes(8, "big"))
        )
        for word in words:
            if word < bound and word % total not in found:
                found.append(word % total)
                if len(found) == most:
                    return sorted(found)
    raise AssertionError  # `count` does not end


def pages_drawn(index: bytes | memoryview, seed: bytes) -> list[int]:
    """Return the numbers of the pages out of which leaves are drawn, in order.

    Raises:
        RecordInvalid: the index breaks a rule.
    """
    entries = _entries(index)
    return sorted({page for page, _ in _drawn(entries, seed)})


def _drawn(entries: Sequence[_Entry], seed: bytes) -> list[tuple[int, int]]:
    """Return page, and number among its leaves, of each drawn leaf."""
    ends = list(accumulate(entry.leaves for entry in entries))
    return [_place(ends, number) for number in draw(seed, ends[-1])]


def _place(ends: Sequence[int], number: int) -> tuple[int, int]:
    """Return in which of several ranges with these ends a number is, and how far in it."""
    place = bisect_right(ends, number)
    return place, number - (ends[place - 1] if place else 0)


def leaves_drawn(
    index: bytes | memoryview, pages: Sequence[bytes | memoryview], seed: bytes
) -> list[tuple[Extent, int, int]]:
    """Return extent, body and leaf of each drawn leaf.

    Args:
        index: of all pages.
        pages: those of `pages_drawn`, in that order.
        seed: of the challenge.

    Raises:
        RecordInvalid: a page is not the one of the index, or breaks a rule.
    """
    entries = _entries(index)
    drawn = _drawn(entries, seed)
    numbers = sorted({page for page, _ in drawn})
    if len(pages) != len(numbers):
        raise RecordInvalid(f"{len(numbers)} pages were drawn, {len(pages)} are shown")
    shown = dict(zip(numbers, pages, strict=True))
    ends = {number: _checked(page, entries, number) for number, page in shown.items()}
    found = []
    for page, number in drawn:
        place, left = _place(ends[page], number)
        extent = extent_in(shown[page], place)
        each = merkle.leaf_count(extent.body_bytes)
        body = min(left // each, extent.bodies - 1)
        found.append((extent, body, left - body * each))
    return found


class Reveal(Record):
    """What a prober shows once the host gave its nonce; kept to ask the same again."""

    customer: Id32
    scope: Id32
    epoch: Count
    nonce: Id32
    host_nonce: Id32
    index: bytes
    pages: tuple[bytes, ...]
    """Those out of which leaves are drawn."""
    roots: Annotated[tuple[tuple[Count, Id32, Id32 | None], ...], Field(max_length=LEAVES_ASKED)]
    """Of each drawn leaf: generation, root, and the hash of a sealed manifest."""

    def round(self, host: bytes, prober: bytes) -> Round:
        """Return who asks whom."""
        return Round(host, self.customer, prober, self.scope, self.epoch)

    @property
    def leaves(self) -> int:
        """How many leaves all pages of the index have."""
        return sum(entry.leaves for entry in _entries(self.index))

    def seed(self, host: bytes, prober: bytes) -> bytes:
        """Return the seed."""
        commitment = commitment_of(self.nonce, self.index)
        return seed_of(self.round(host, prober), self.nonce, self.host_nonce, commitment)

    def asked(self, host: bytes, prober: bytes) -> list[AskedLeaf]:
        """Return the leaves that follow from it.

        Raises:
            RecordInvalid: it breaks a rule.
        """
        drawn = leaves_drawn(self.index, self.pages, self.seed(host, prober))
        if len(drawn) != len(self.roots):
            raise RecordInvalid(f"{len(drawn)} leaves are drawn, {len(self.roots)} have a root")
        if self.scope != EVERYTHING and any(extent.locate != self.scope for extent, _, _ in drawn):
            raise RecordInvalid("a leaf of another object than the one that is asked for")
        return [
            AskedLeaf(*place, Root(*root)) for place, root in zip(drawn, self.roots, strict=True)
        ]


# The answer


def _asked_bytes(asked: Iterable[AskedLeaf]) -> bytes:
    return encode(
        [[leaf.extent.name, leaf.body, leaf.leaf, leaf.size_bytes, *leaf.root] for leaf in asked]
    )


def _leaves_bytes(proofs: Iterable[LeafProof]) -> bytes:
    return encode([[proof.data, *proof.path] for proof in proofs])


def asked_id(asked: Iterable[AskedLeaf]) -> bytes:
    """Return what stands for the leaves that were drawn."""
    return tagged_sha256("challenge_asked", _asked_bytes(asked))


def leaves_id(proofs: Iterable[LeafProof]) -> bytes:
    """Return what stands for leaves and their paths."""
    return tagged_sha256("challenge_leaves", _leaves_bytes(proofs))


def transcript(
    reveal: Reveal, asked: Iterable[AskedLeaf], said: bytes, proofs: Iterable[LeafProof]
) -> bytes:
    """Return what shows others how a host answered: what it signed, and all that this covers."""
    commitment = commitment_of(reveal.nonce, reveal.index)
    return encode(
        {
            "v": 1,
            "epoch": reveal.epoch,
            "nonces": [reveal.nonce, reveal.host_nonce, commitment],
            "asked": _asked_bytes(asked),
            "said": said,
            "leaves": _leaves_bytes(proofs),
        }
    )


def possession(
    seed: bytes, asked: Sequence[AskedLeaf], proofs: Sequence[LeafProof | None], now_ms: int
) -> Possession:
    """Return what a host signs: the leaves that it has, and that it has not got the others."""
    return Possession(
        seed=seed,
        asked=asked_id(asked),
        states=tuple("missing" if proof is None else "ok" for proof in proofs),
        leaves=leaves_id(proof for proof in proofs if proof is not None),
        said_ms=now_ms,
    )


def paths_of(value: Sequence[Value]) -> list[tuple[bytes, ...]]:
    """Return the paths of an answer.

    Raises:
        RecordInvalid: they are no lists of hashes.
    """
    paths = []
    for path in value:
        if not isinstance(path, list) or len(path) > PATH_MAX:
            raise RecordInvalid(f"a path is a list of at most {PATH_MAX} hashes")
        hashes = [
            item for item in path if isinstance(item, bytes) and len(item) == merkle.ROOT_BYTES
        ]
        if len(hashes) != len(path):
            raise RecordInvalid("a path consists of hashes")
        paths.append(tuple(hashes))
    return paths


def judge(
    seed: bytes, asked: Sequence[AskedLeaf], said: Possession, proofs: Sequence[LeafProof]
) -> tuple[Outcome, frozenset[bytes]]:
    """Return what a signed answer is worth, and the names of the extents that fail.

    Raises:
        RecordInvalid: the host did not sign this for that challenge: it is no answer at all.
    """
    if said.seed != seed or said.asked != asked_id(asked) or len(said.states) != len(asked):
        raise RecordInvalid("the answer is to another challenge")
    if said.states.count("ok") != len(proofs) or said.leaves != leaves_id(proofs):
        raise RecordInvalid("the leaves are not those that were signed")
    given = iter(proofs)
    wrong, missing = set[bytes](), set[bytes]()
    for leaf, state in zip(asked, said.states, strict=True):
        if state == "missing":
            missing.add(leaf.extent.name)
            continue
        data, path = next(given)
        if not merkle.span_holds(leaf.root.root, leaf.size_bytes, leaf.leaf, data, path):
            wrong.add(leaf.extent.name)
    outcome: Outcome = "bad_proof" if wrong else "missing" if missing else "ok"
    return outcome, frozenset(wrong | missing)


# When to ask, and what becomes of outcomes


class Challenged(Record):
    """What challenges of one host about one customer's data came to, as the prober keeps it."""

    epoch: Count
    """The last hour in which it was asked."""
    at_ms: Count
    outcome: Outcome
    ok_ms: Count | None = None
    """The last ok."""
    whole_ms: Count | None = None
    """When a whole body was read last."""
    silent_ms: Count | None = None
    """Since when it does not answer challenges, though it answers probes."""
    silences: Count = 0
    again: bytes = b""
    """The challenge that is asked again, until the host answers it."""


def noted(before: Challenged | None, outcome: Outcome, epoch: int, now_ms: int) -> Challenged:
    """Return what is kept once a challenge had an outcome.

    Silence becomes `missing` when it was asked again AGAIN_MIN times over CONTAINED_MS: only hosts
    that are up are asked. What is the prober's fault changes nothing but the last outcome.
    """
    row = before or Challenged(epoch=0, at_ms=now_ms, outcome=outcome)
    change: dict[str, object] = {"at_ms": now_ms, "outcome": outcome}
    if outcome != "unreachable":
        change["epoch"] = epoch
    if outcome in {"timeout", "unreachable"}:
        since_ms = now_ms if row.silent_ms is None else row.silent_ms
        change |= {"silent_ms": since_ms, "silences": row.silences + 1}
        if row.silences >= AGAIN_MIN and now_ms - since_ms >= CONTAINED_MS:
            outcome = change["outcome"] = "missing"
    if outcome in ANSWERED:
        change |= {"silent_ms": None, "silences": 0, "again": b""}
    if outcome == "ok":
        change["ok_ms"] = now_ms
    return row.model_copy(update=change)


def is_due(prober: bytes, host: bytes, rows: Iterable[Challenged], now_ms: int) -> bool:
    """Say whether a host is to be challenged now: once an epoch, spread evenly over it.

    Args:
        prober: this node.
        host: the host.
        rows: what challenges of it came to; none where it was asked nothing yet.
        now_ms: the time.
    """
    epoch, since_ms = divmod(now_ms, limits.EPOCH_MS)
    place = tagged_sha256("challenge_slot", prober, host, epoch.to_bytes(8, "big"))
    slot = int.from_bytes(place[:8], "big") % (SLOTS_AN_EPOCH - 1)
    epochs = {row.epoch for row in rows}
    return epochs != {epoch} and since_ms >= slot * SLOT_MS


def whole_is_due(row: Challenged | None, now_ms: int) -> bool:
    """Say whether a whole body is to be read where the leaves are right: once in WHOLE_MS."""
    last_ms = None if row is None else row.whole_ms
    return last_ms is None or now_ms // WHOLE_MS != last_ms // WHOLE_MS


def whole_most_ms(size_bytes: int) -> int:
    """Return how long the answer with a whole body may take."""
    return CHALLENGE_TIMEOUT_MS + 1_000 * size_bytes // WHOLE_BYTES_A_SECOND_MIN


class Granted:
    """The challenges that a host takes: one of each prober, customer and scope an epoch.

    Of one prober so many about everything, and as many about objects.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[bytes, dict[tuple[bytes, bytes, int], bytes]] = {}

    def take(self, asked: Round, commitment: bytes, epoch: int) -> bool:
        """Return whether a challenge is taken in an epoch; it is forgotten with that."""
        known = self._taken.get(asked.prober, {})
        known = {place: told for place, told in known.items() if place[2] >= epoch - 1}
        place = (asked.customer, asked.scope, asked.epoch)
        if place in known:
            return known[place] == commitment
        # Challenges about objects take nothing from those about everything.
        whole = asked.scope == EVERYTHING
        same = sum(place[2] == asked.epoch and (place[1] == EVERYTHING) == whole for place in known)
        if same >= self._most or abs(asked.epoch - epoch) > 1:
            return False
        known[place] = commitment
        self._taken[asked.prober] = known
        return True

    def forget(self, prober: bytes) -> None:
        """Forget what a prober asked."""
        self._taken.pop(prober, None)


def worst(rows: Iterable[Challenged]) -> Challenged | None:
    """Return the outcome that an operator must look at first; None where there is none."""
    order = ("bad_proof", "missing", "timeout", "unreachable", "prober_void", "ok")
    return min(rows, key=lambda row: order.index(row.outcome), default=None)


def proven_ms(rows: Iterable[Challenged]) -> int | None:
    """Return until when all was proven; None where something never was."""
    times = [row.ok_ms for row in rows]
    return None if None in times else min(time for time in times if time is not None)
