"""The form of a backup: a head, frames that prove themselves, records, a manifest.

    file    magic ‖ head length (4) ‖ head ‖ frame …
    head    canonical {v, node, network, created_ms, identity, bodies, seal, salt}
    frame   last (1 bit) and payload length (31 bits), 4 bytes ‖ payload ‖ tag
    record  letter (1) ‖ key length (4) ‖ value length (4) ‖ key ‖ value

The payloads, put together, are the records: files of the home (`f`), rows of the
state (`s`), of the space (`p`) and of the shard store (`b`), and last the manifest
(`m`), which counts and hashes the records of each letter that came before.
Where nobody's secret seals the frames the tag is a chained SHA-256 and finds damage;
else each frame is AES-256-GCM under a key of this file alone, and its number and
place are bound. docs/design/backup.md; vectors:
tests/vectors/backup.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, Protocol, TypeAlias, get_args

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from xsc.base.encoding import Value, decode, domain, encode
from xsc.base.errors import HomeInvalid, IdentityInvalid, RecordInvalid, StoreDamaged, XscError
from xsc.base.fields import take_bool, take_bytes, take_int, take_str
from xsc.base.ids import ID_BYTES
from xsc.base.keyvalue import Change
from xsc.base.limits import KIB, MIB
from xsc.identity.keys import KeyPair, derive

MAGIC: Final = b"XSC backup\n"
VERSION: Final = 1
HEAD_BYTES_MAX: Final = 4 * KIB
FRAME_BYTES: Final = MIB
"""Plain bytes of a full frame."""
KEY_BYTES_MAX: Final = 4 * KIB
VALUE_BYTES_MAX: Final = 128 * MIB
"""Above any body: an object record has a manifest of at most MANIFEST_BYTES_MAX."""
SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
_TAG_BYTES: Final = 16
_LAST: Final = 1 << 31
_NEWER: Final = "use the xsc that made it, or a newer one"

SealKind: TypeAlias = Literal["nothing", "passphrase", "identity"]
FILE, STATE, SPACE, BODY, MANIFEST = b"f", b"s", b"p", b"b", b"m"
SECTIONS: Final = {FILE: "files", STATE: "state", SPACE: "space", BODY: "bodies"}


@dataclass(frozen=True, slots=True)
class Head:
    """What a backup says of itself before anything is opened; bound to every frame."""

    node: bytes
    network: str
    created_ms: int
    identity: bool
    """Whether the key of the node is in it."""
    bodies: bool
    """Whether the shards that the node holds are in it."""
    seal: SealKind
    salt: bytes

    def to_bytes(self) -> bytes:
        """Return its canonical bytes."""
        return encode(
            {
                "v": VERSION,
                "node": self.node,
                "network": self.network,
                "created_ms": self.created_ms,
                "identity": self.identity,
                "bodies": self.bodies,
                "seal": self.seal,
                "salt": self.salt,
            }
        )


def read_head(raw: bytes) -> Head:
    """Return the head of a backup.

    Raises:
        HomeInvalid: of a newer format. StoreDamaged: no head.
    """
    try:
        value = decode(raw, size_max=HEAD_BYTES_MAX)
        if not isinstance(value, dict):
            raise RecordInvalid("a head is a map")
        version = take_int(value, "v")
        if version != VERSION:
            raise HomeInvalid(
                f"the backup is of format {version}, this xsc knows format {VERSION}", hint=_NEWER
            )
        seal = take_str(value, "seal")
        found: SealKind | None = next((kind for kind in get_args(SealKind) if kind == seal), None)
        if found is None:
            raise HomeInvalid("the backup is sealed in a way that this xsc lacks", hint=_NEWER)
        return Head(
            take_bytes(value, "node", size=ID_BYTES),
            take_str(value, "network"),
            take_int(value, "created_ms"),
            take_bool(value, "identity"),
            take_bool(value, "bodies"),
            found,
            take_bytes(value, "salt", size=SALT_BYTES),
        )
    except HomeInvalid:
        raise
    except XscError as fault:
        raise StoreDamaged(f"the head of the backup is damaged: {fault.message}") from None


class Seal(Protocol):
    """Closes and opens the frames of one file, in their order."""

    def close(self, payload: bytes, *, last: bool) -> bytes:
        """Return the payload with what proves it."""

    def open(self, body: bytes, *, last: bool) -> bytes:
        """Return the payload.

        Raises:
            StoreDamaged, IdentityInvalid: it is another, or in another place.
        """

    @property
    def overhead(self) -> int:
        """How many bytes a frame has more than its payload."""


class Chained:
    """No secret: each frame's SHA-256 covers the one before it."""

    overhead = _HASH_BYTES

    def __init__(self, head: bytes) -> None:
        self._before = sha256(domain("backup-frame") + head).digest()

    def _sum(self, payload: bytes, last: bool) -> bytes:
        hasher = sha256(self._before + bytes([last]))
        hasher.update(payload)
        return hasher.digest()

    def close(self, payload: bytes, *, last: bool) -> bytes:
        """Return the payload and its sum."""
        self._before = self._sum(payload, last)
        return payload + self._before

    def open(self, body: bytes, *, last: bool) -> bytes:
        """Return the payload where the sum is right."""
        payload, told = body[:-_HASH_BYTES], body[-_HASH_BYTES:]
        found = self._sum(payload, last)
        if found != told:
            raise StoreDamaged("the backup is damaged: a part of it does not have its hash")
        self._before = found
        return payload


class Sealed:
    """AES-256-GCM under a key of one file; nonces count, and bind number and end."""

    overhead = _TAG_BYTES

    def __init__(self, key: bytes, head: bytes) -> None:
        self._cipher = AESGCM(key)
        self._bound = domain("backup-frame") + head
        self._number = 0

    def _place(self, last: bool) -> tuple[bytes, bytes]:
        number = self._number.to_bytes(12, "big")
        self._number += 1
        return number, self._bound + bytes([last])

    def close(self, payload: bytes, *, last: bool) -> bytes:
        """Return the sealed payload."""
        nonce, bound = self._place(last)
        return self._cipher.encrypt(nonce, payload, bound)

    def open(self, body: bytes, *, last: bool) -> bytes:
        """Return the payload where it opens in this place."""
        first = self._number == 0
        nonce, bound = self._place(last)
        try:
            return self._cipher.decrypt(nonce, body, bound)
        except (InvalidTag, ValueError):
            if first:
                raise IdentityInvalid(
                    "the passphrase or the key is wrong, or the backup is damaged"
                ) from None
            raise StoreDamaged("the backup is damaged: a part of it does not open") from None


def seal_of(head: Head, *, passphrase: str = "", key: KeyPair | None = None) -> Seal:
    """Return what closes and opens the frames under a head.

    Raises:
        IdentityInvalid: the secret that it needs was not given, or is another node's.
    """
    raw = head.to_bytes()
    if head.seal == "nothing":
        return Chained(raw)
    if head.seal == "passphrase":
        if not passphrase:
            raise IdentityInvalid(
                "the backup is locked by a passphrase",
                hint="give it with --passphrase-file, or run on a terminal to be asked",
            )
        return Sealed(
            Scrypt(salt=head.salt, length=32, n=2**15, r=8, p=1).derive(passphrase.encode()), raw
        )
    if key is None:
        raise IdentityInvalid(
            "the backup holds no identity, and only its node's key opens it",
            hint="give the exported key file with --identity",
        )
    if key.node_id != head.node:
        raise IdentityInvalid("that is the key of another node than the one backed up")
    return Sealed(derive(key.derive("backup") + head.salt, "backup/file"), raw)


@dataclass(frozen=True, slots=True)
class Entry:
    """One record: a file of the home, or a row of a store."""

    letter: bytes
    key: bytes
    value: bytes

    def to_bytes(self) -> bytes:
        """Return its bytes."""
        return _record(self.letter, self.key, self.value)


def _record(letter: bytes, key: bytes, value: bytes) -> bytes:
    sizes = len(key).to_bytes(4, "big") + len(value).to_bytes(4, "big")
    return b"".join((letter, sizes, key, value))


@dataclass(slots=True)
class Section:
    """What a manifest says of the records of one letter."""

    rows: int = 0
    size_bytes: int = 0


class Tally:
    """Counts and hashes records, for the manifest."""

    def __init__(self) -> None:
        self.sections = {letter: Section() for letter in SECTIONS}
        self._hashers = {letter: sha256(domain("backup-section")) for letter in SECTIONS}

    def add(self, letter: bytes, raw: bytes) -> None:
        """Take note of a record."""
        section = self.sections[letter]
        section.rows += 1
        section.size_bytes += len(raw)
        self._hashers[letter].update(raw)

    def manifest(self) -> bytes:
        """Return the manifest of what was noted: each section that has records."""
        value: dict[str, Value] = {
            name: {
                "rows": self.sections[letter].rows,
                "bytes": self.sections[letter].size_bytes,
                "sha256": self._hashers[letter].digest(),
            }
            for letter, name in SECTIONS.items()
            if self.sections[letter].rows
        }
        return encode({"v": VERSION, "sections": value})


def frames(head: Head, entries: Iterable[Entry], seal: Seal) -> Iterator[bytes]:
    """Yield the bytes of a backup, the head first, then frame by frame."""
    raw = head.to_bytes()
    yield MAGIC + len(raw).to_bytes(4, "big") + raw
    tally = Tally()
    waiting = bytearray()
    for entry in entries:
        record = entry.to_bytes()
        tally.add(entry.letter, record)
        waiting += record
        start = 0
        while len(waiting) - start >= FRAME_BYTES:
            yield _frame(bytes(waiting[start : start + FRAME_BYTES]), seal, last=False)
            start += FRAME_BYTES
        del waiting[:start]
    waiting += _record(MANIFEST, b"", tally.manifest())
    yield _frame(bytes(waiting), seal, last=True)


def _frame(payload: bytes, seal: Seal, *, last: bool) -> bytes:
    return (len(payload) | (_LAST if last else 0)).to_bytes(4, "big") + seal.close(
        payload, last=last
    )


class Reader:
    """Reads a backup from blocks of any size, and proves each frame before it gives it."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        """Read the head.

        Raises:
            HomeInvalid: no backup, or of a newer format. StoreDamaged: cut short.
        """
        self._blocks = iter(blocks)
        self._kept = bytearray()
        if self._take(len(MAGIC), whole=False) != MAGIC:
            raise HomeInvalid("that is no backup of an XSC node")
        size = int.from_bytes(self._take(4), "big")
        if size > HEAD_BYTES_MAX:
            raise StoreDamaged("the head of the backup is damaged")
        self.head = read_head(self._take(size))

    def _take(self, size: int, *, whole: bool = True) -> bytes:
        while len(self._kept) < size:
            block = next(self._blocks, b"")
            if not block:
                if not whole:
                    break
                raise StoreDamaged("the backup is cut short")
            self._kept += block
        taken = bytes(self._kept[:size])
        del self._kept[:size]
        return taken

    def rest(self) -> Iterator[bytes]:
        """Yield the backup as it came, the head again, up to its last frame.

        Raises:
            StoreDamaged: it is cut short, or longer than it should be.
        """
        raw = self.head.to_bytes()
        yield MAGIC + len(raw).to_bytes(4, "big") + raw
        overhead = Chained.overhead if self.head.seal == "nothing" else Sealed.overhead
        for word, body, _ in self._bodies(overhead):
            yield word + body

    def _bodies(self, overhead: int) -> Iterator[tuple[bytes, bytes, bool]]:
        last = False
        while not last:
            raw = self._take(4)
            word = int.from_bytes(raw, "big")
            last, size = bool(word & _LAST), word & (_LAST - 1)
            # The last one also carries the manifest and what did not fill a frame.
            if size > FRAME_BYTES + HEAD_BYTES_MAX:
                raise StoreDamaged("the backup is damaged: a part of it is too large")
            yield raw, self._take(size + overhead), last
        if self._take(1, whole=False):
            raise StoreDamaged("the backup is damaged: something follows its end")

    def payloads(self, seal: Seal) -> Iterator[tuple[bytes, bool]]:
        """Yield the payload of each frame and whether it is the last.

        Raises:
            StoreDamaged: damaged, cut short, or longer than it should be.
            IdentityInvalid: the secret is wrong, as far as can be told.
        """
        for _, body, last in self._bodies(seal.overhead):
            yield seal.open(body, last=last), last

    def entries(self, seal: Seal) -> Iterator[Entry]:
        """Yield the records, and return once all of them fit the manifest.

        What was yielded counts only then: who writes it down must take it back where
        this raises.

        Raises:
            StoreDamaged, IdentityInvalid: as `payloads`, or it does not fit its manifest.
        """
        tally = Tally()
        waiting = bytearray()
        manifest: bytes | None = None
        for payload, _ in self.payloads(seal):
            waiting += payload
            start = 0
            while (entry := _first(waiting, start)) is not None:
                if manifest is not None:
                    raise StoreDamaged("the backup is damaged: something follows its manifest")
                raw_bytes = 9 + len(entry.key) + len(entry.value)
                if entry.letter == MANIFEST:
                    manifest = entry.value
                else:
                    tally.add(entry.letter, bytes(waiting[start : start + raw_bytes]))
                    yield entry
                start += raw_bytes
            del waiting[:start]
        if waiting or manifest != tally.manifest():
            raise StoreDamaged("the backup is damaged: it does not fit its manifest")


def _first(data: bytearray, start: int) -> Entry | None:
    """Return the record that begins there; None where it is not whole yet."""
    if len(data) - start < 9:
        return None
    letter = bytes(data[start : start + 1])
    key = int.from_bytes(data[start + 1 : start + 5], "big")
    value = int.from_bytes(data[start + 5 : start + 9], "big")
    if letter not in SECTIONS and letter != MANIFEST:
        raise StoreDamaged("the backup is damaged: it holds a record of no known kind")
    if key > KEY_BYTES_MAX or value > VALUE_BYTES_MAX:
        raise StoreDamaged("the backup is damaged: a record of it is too large")
    body = start + 9
    if len(data) < body + key + value:
        return None
    return Entry(
        letter, bytes(data[body : body + key]), bytes(data[body + key : body + key + value])
    )


def resealed(reader: Reader, opens: Seal, head: Head, closes: Seal) -> Iterator[bytes]:
    """Yield a backup under another head and seal, each frame proved on the way."""
    raw = head.to_bytes()
    yield MAGIC + len(raw).to_bytes(4, "big") + raw
    for payload, last in reader.payloads(opens):
        yield _frame(payload, closes, last=last)


def batches(entries: Iterable[Entry], size_bytes: int) -> Iterator[tuple[bytes, list[Change]]]:
    """Yield rows of one letter at a time, in batches of about a size."""
    letter, rows, size = b"", list[Change](), 0
    for entry in entries:
        if rows and (entry.letter != letter or size >= size_bytes):
            yield letter, rows
            rows, size = [], 0
        letter = entry.letter
        rows.append((entry.key, entry.value))
        size += len(entry.key) + len(entry.value)
    if rows:
        yield letter, rows
