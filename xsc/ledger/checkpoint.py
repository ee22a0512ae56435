"""The checkpoint: how long a chain is and the root over it, signed by its author and co-signers.

It is a C2SP checkpoint (tlog-checkpoint) in a signed note (signed-note); a co-signature is a
`cosignature/v1` (tlog-cosignature). Names of keys are node ids, so a checkpoint needs nothing
else to be checked. docs/design/ledger.md, T1 to T8. Vectors: tests/vectors/checkpoint.json.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from xsc.base import encoding, ids
from xsc.base.errors import (
    ArgumentInvalid,
    LedgerDamaged,
    RecordInvalid,
    SignatureInvalid,
    TooLarge,
    XscError,
)
from xsc.identity import keys
from xsc.ledger import tree

COSIGNERS_MAX = 7
"""Five of them are needed then, and two may be faulty."""
CHECKPOINT_BYTES_MAX = 4_096
_PREFIX_BYTES = 16
"""Of a co-signer's id: nobody finds another key for 128 given bits."""
_SIGNATURE: Final = 1
_COSIGNATURE: Final = 4
_KEY_HASH_BYTES = 4
_TIME_BYTES = 8
_NUMBER = r"(0|[1-9][0-9]{0,18})"
_TEXT = re.compile(
    rf"xsc/([a-z2-7]{{52}})/([a-z2-7]{{52}})/{_NUMBER}\n{_NUMBER}\n([A-Za-z0-9+/]{{43}}=)\n"
    r"(?:cosigners ([A-Za-z0-9+/]+=*)\n)?(?:former ([A-Za-z0-9+/]+=*)\n)?"
)
_LINE = re.compile(r"— ([a-z2-7]{52}) ([A-Za-z0-9+/]+=*)\n")


def quorum(count: int) -> int:
    """Return how many of so many co-signers must sign: 2f + 1 of 3f + 1."""
    return 2 * ((count - 1) // 3) + 1 if count else 0


def draw(author: bytes, peers: Collection[bytes]) -> tuple[bytes, ...]:
    """Return who is to co-sign: 3f + 1 of the peers, by rendezvous hash; none of fewer than four.

    The order is that of the hashes. Who comes or goes changes at most one place.
    """
    most = min(len(peers), COSIGNERS_MAX)
    drawn = sorted(peers, key=lambda peer: encoding.tagged_sha256("ledger_cosigner", author, peer))
    return tuple(drawn[: (most - 1) // 3 * 3 + 1 if most > 3 else 0])


def listed(nodes: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return nodes as a checkpoint names them: by the first 16 bytes of their ids."""
    return tuple(node[:_PREFIX_BYTES] for node in nodes)


def is_listed(node: bytes, named: Collection[bytes]) -> bool:
    """Say whether a node is among those that are `listed`."""
    return node[:_PREFIX_BYTES] in named


@dataclass(frozen=True)
class Checkpoint:
    """What an author says of its chain."""

    network: bytes
    author: bytes
    first_seq: int
    """Number of the first half of the incarnation; each has a tree of its own."""
    size: int
    """Halves."""
    root: bytes
    cosigners: tuple[bytes, ...] = ()
    """Who is to co-sign, as `listed`."""
    former: tuple[bytes, ...] = ()
    """Who must sign, too: the list before, until enough of it have signed the present one."""
    signatures: Mapping[bytes, bytes] = field(default_factory=dict)
    """By node id, the author's and those of co-signers, as they stand in the note."""

    @cached_property
    def text(self) -> bytes:
        """What is signed."""
        network, author = ids.to_text(self.network), ids.to_text(self.author)
        lines = [f"xsc/{network}/{author}/{self.first_seq}", str(self.size), _b64(self.root)]
        for name, nodes in (("cosigners", self.cosigners), ("former", self.former)):
            if nodes:
                lines.append(f"{name} {_b64(b''.join(nodes))}")
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def bare(self) -> bytes:
        """The note with its author's signature alone: all that a proof needs."""
        return replace(self, signatures={self.author: self.signatures[self.author]}).raw

    @property
    def raw(self) -> bytes:
        """The signed note."""
        lines = [f"— {ids.to_text(by)} {_b64(raw)}\n" for by, raw in self.signatures.items()]
        return self.text + b"\n" + "".join(lines).encode()

    def signed_by(self, named: Collection[bytes]) -> int:
        """Return how many of those that are `listed` have signed."""
        return len({by[:_PREFIX_BYTES] for by in self.signatures} & {*named})

    def has_quorum(self, named: Collection[bytes]) -> bool:
        """Say whether enough of those that are `listed` have signed."""
        return self.signed_by(named) >= quorum(len(named))

    @property
    def is_complete(self) -> bool:
        """Whether enough have signed it, of its list and of the former one."""
        return all(map(self.has_quorum, (self.cosigners, self.former)))

    def contradicts(self, other: Checkpoint) -> bool:
        """Say whether both cannot be true: of one tree and size, with two roots."""
        tree_and_size = self.text.split(b"\n")[:2]
        return tree_and_size == other.text.split(b"\n")[:2] and self.root != other.root

    def signed(self, key: keys.KeyPair, time_s: int | None = None) -> Checkpoint:
        """Return it with one more signature: the author's, or a co-signature of a time."""
        mark, message = _SIGNATURE, self.text
        stamp = b""
        if time_s is not None:
            mark, stamp = _COSIGNATURE, time_s.to_bytes(_TIME_BYTES, "big")
            message = _cosigned(time_s, self.text)
        raw = _key_hash(key.node_id, mark) + stamp + key.sign(message)
        return replace(self, signatures={**self.signatures, key.node_id: raw})


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _key_hash(node: bytes, mark: int) -> bytes:
    named = f"{ids.to_text(node)}\n".encode() + bytes([mark]) + node
    return hashlib.sha256(named).digest()[:_KEY_HASH_BYTES]


def _cosigned(time_s: int, text: bytes) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n".encode() + text


def open_checkpoint(raw: bytes, *, network: bytes | None, is_checked: bool = False) -> Checkpoint:
    """Return the checkpoint of a note, with its author's signature and those of co-signers checked.

    Args:
        raw: the note.
        network: the network that it must be of.
        is_checked: the co-signatures were checked before.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is none, of another network, has more
            signatures than two lists of co-signers, or one that does not fit.
    """
    if len(raw) > CHECKPOINT_BYTES_MAX:
        raise TooLarge(f"a checkpoint has at most {CHECKPOINT_BYTES_MAX} bytes")
    try:
        found = _parsed(raw.decode())
    except (ValueError, ArgumentInvalid):
        raise RecordInvalid("not a checkpoint of a ledger") from None
    if found.raw != raw:  # One text has one form.
        raise RecordInvalid("not a checkpoint of a ledger")
    if network is not None and found.network != network:
        raise RecordInvalid("this checkpoint is of another network")
    if found.author not in found.signatures:
        raise SignatureInvalid("the author has not signed this checkpoint")
    if len(found.signatures) > 1 + 2 * COSIGNERS_MAX:
        raise RecordInvalid("this checkpoint has more signatures than it can need")
    for by, signature in found.signatures.items():
        if by == found.author or not is_checked:
            _verify(found, by, signature)
    return found


def _parsed(note: str) -> Checkpoint:
    text, _, lines = note.partition("\n\n")
    match = _TEXT.fullmatch(text + "\n")
    if match is None or _LINE.sub("", lines):
        raise ValueError(note)
    network, author, first_seq, size, root, named, former = match.groups()
    if int(first_seq) + int(size) >= 1 << 63:
        raise ValueError(size)
    return Checkpoint(
        ids.from_text(network),
        ids.node_id_from_text(author),
        int(first_seq),
        int(size),
        base64.b64decode(root, validate=True),
        _listed(named),
        _listed(former),
        {
            ids.node_id_from_text(by): base64.b64decode(signature, validate=True)
            for by, signature in _LINE.findall(lines)
        },
    )


def _listed(text: str | None) -> tuple[bytes, ...]:
    raw = base64.b64decode(text or "", validate=True)
    nodes = tuple(raw[at : at + _PREFIX_BYTES] for at in range(0, len(raw), _PREFIX_BYTES))
    if len({*nodes}) != len(nodes) or len(nodes) not in {0, 4, COSIGNERS_MAX}:
        raise ValueError(text)
    return nodes


def _verify(found: Checkpoint, by: bytes, raw: bytes) -> None:
    mark, message = _SIGNATURE, found.text
    key_hash, signature = raw[:_KEY_HASH_BYTES], raw[_KEY_HASH_BYTES:]
    if by != found.author:
        mark = _COSIGNATURE
        stamp, signature = signature[:_TIME_BYTES], signature[_TIME_BYTES:]
        message = _cosigned(int.from_bytes(stamp, "big"), found.text)
    if key_hash != _key_hash(by, mark):
        raise SignatureInvalid("a signature of this checkpoint is of another key")
    keys.verify(by, signature, message)


def open_stored(raw: bytes | None, network: bytes) -> Checkpoint | None:
    """Return the checkpoint of a row; None without one.

    Raises:
        LedgerDamaged: it cannot be read.
    """
    try:
        return None if raw is None else open_checkpoint(raw, network=network, is_checked=True)
    except XscError:
        raise LedgerDamaged(
            "a checkpoint is damaged", hint="restore the home from a backup"
        ) from None


def why_not_signed(
    last: Checkpoint | None, new: Checkpoint, path: Sequence[bytes], me: bytes
) -> str | None:
    """Return why a co-signer does not sign a checkpoint; None where it does.

    A list of co-signers is followed by another only with enough signatures of the former. Who was
    named by the former has its word in this by signing, and then signs for the new list alone.

    Args:
        last: the last one of the same tree that it knows of; None where it knows of none.
        new: by the same author.
        path: proves that `new` continues the last one.
        me: the co-signer.
    """
    if not new.size:
        return "an empty tree needs no checkpoint"
    is_named = is_listed(me, new.cosigners)
    if last is None:
        return None if is_named else "it names other co-signers"
    if new.size < last.size:
        return f"its tree has {new.size} entries, and had {last.size} before"
    if not tree.is_consistent(last.size, last.root, new.size, new.root, path):
        return "its tree is not shown to continue the one before"
    if new.cosigners == last.cosigners:
        may = is_named or is_listed(me, last.former)
    else:
        may = is_listed(me, last.cosigners) or (is_named and new.has_quorum(last.cosigners))
    return None if may else "its co-signers are others, without enough of those before"


def is_followed(last: Checkpoint | None, new: Checkpoint) -> bool:
    """Say whether a published checkpoint, signed by enough, takes the place of the last one.

    Args:
        last: that is known of the same tree; None where none is.
        new: of the present incarnation of its author.
    """
    if not new.cosigners or not new.has_quorum(new.cosigners):
        return False
    if last is None:
        return True
    if new.size <= last.size:
        return False
    return new.cosigners == last.cosigners or new.has_quorum(last.cosigners)
