"""Signed records: what one node says so that anybody can check it later.

A record is a frozen model with a kind and a version. Its envelope is

    {"body": canonical bytes of the record, "by": node id, "kind": text,
     "net": network id, "sig": signature, "v": 1}

and the signature covers `"XSC/1/sig/<kind>\\0" ‖ net ‖ SHA-256(body)`, so that
no signature passes for another kind of record or in another network. The
record's id is the tagged hash of its body. docs/design/identity.md.

In version 2 the signature is over several records (`xsc.identity.joint`), and the
envelope of each has `place` and `path` beside. What is signed alone has version 1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Generic, Self, TypeAlias, TypeVar, Unpack, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from xsc.base.encoding import Value, decode, domain, encode, tagged_sha256
from xsc.base.errors import RecordInvalid, SignatureInvalid
from xsc.base.limits import RECORD_BYTES_MAX
from xsc.base.text import with_article
from xsc.identity import joint, keys

SIGNATURES_KEPT = 8_192
"""Verified signatures of records that a process remembers: a node looks at the records of its
objects again and again."""
RECORD_FIELDS_MAX = 64
"""Of a record, and of each within it."""

ENVELOPE_VERSION = 1
JOINT_VERSION = 2
_ALONE = {"v", "kind", "net", "by", "body", "sig"}
_JOINT = _ALONE | {"place", "path"}

Id32 = Annotated[bytes, Field(min_length=32, max_length=32)]
"""A node id, hash, root or lease id."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A size, time, amount or number that cannot be negative."""


_READ = object()
"""The context of a record that is read, not made."""


def _fail_fast(schema: object) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("tuple", "list"):
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, list):
        for part in schema:
            _fail_fast(part)


class Record(BaseModel):
    """A value that is sent, stored or signed: frozen, strict, versioned, without floats.

    Its kind, which its hash and signature cover, is its class's name in snake case where the class
    states no other.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    KIND: ClassVar[str] = "record"
    VERSION: ClassVar[int] = 1

    v: int = 1

    def __init_subclass__(cls, **given: Unpack[ConfigDict]) -> None:
        """Name the kind."""
        super().__init_subclass__(**given)
        if "KIND" not in cls.__dict__:
            cls.KIND = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> Any:  # noqa: ANN401 (pydantic's own)
        """Read no list beyond its first wrong item.

        An error takes as long as a hundred items, and whoever sends a list writes as many of them.
        """
        schema = handler(source)
        _fail_fast(schema)
        return schema

    @model_validator(mode="after")
    def _is_whole(self, info: ValidationInfo) -> Self:
        """Refuse other versions, and what was read without a field, inside of records, too."""
        if self.v != self.VERSION:
            raise ValueError(f"version {self.v}, known here is {self.VERSION}")
        # Defaults are for those that make a record: what is read has every field.
        if info.context is _READ and len(self.model_fields_set) < len(self.__dict__):
            missing = next(name for name in self.__dict__ if name not in self.model_fields_set)
            raise ValueError(f"{missing} is missing")
        return self

    def to_value(self) -> dict[str, Value]:
        """Return the record as plain values, in lists where it has tuples."""
        # Not by way of `iter(self)`, which takes as long as to encode it.
        return {name: _plain(item) for name, item in self.__dict__.items()}

    def to_bytes(self) -> bytes:
        """Return the canonical bytes of the record."""
        return encode(self.to_value())

    @property
    def id(self) -> bytes:
        """The tagged SHA-256 of the canonical bytes, 32 bytes."""
        return tagged_sha256(self.KIND, self.to_bytes())

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """Return the record that plain values describe.

        Raises:
            RecordInvalid: an unknown version, or the schema is broken.
        """
        if not isinstance(value, dict):
            raise RecordInvalid(f"a {cls.KIND} must be a map")
        version = value.get("v")
        if version != cls.VERSION or isinstance(version, bool):
            raise RecordInvalid(
                f"this {cls.KIND} is of version {version!r}, known here is {cls.VERSION}",
                hint="a newer xsc may read it",
            )
        try:
            return cls.model_validate(_tupled(value), context=_READ)
        except ValidationError as fault:
            first = fault.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise RecordInvalid(f"this {cls.KIND} is wrong at {place}: {first['msg']}") from None

    @classmethod
    def from_bytes(cls, raw: bytes, *, size_max: int = RECORD_BYTES_MAX) -> Self:
        """Return the record of canonical bytes.

        Raises:
            TooLarge, RecordInvalid: see `decode` and `from_value`.
        """
        return cls.from_value(decode(raw, size_max=size_max))


_PLAIN = (bytes, int, str, type(None))


def _plain(value: object) -> Value:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Record):
        return value.to_value()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    assert isinstance(value, dict)
    return {str(key): _plain(item) for key, item in value.items()}


_CONTAINERS = frozenset({list, dict})


def _tupled(value: object) -> object:
    """Turn lists to tuples: records are frozen, and strict models take no list for a tuple."""
    if isinstance(value, dict):
        if len(value) > RECORD_FIELDS_MAX:  # Each that is too much would be an error of its own.
            raise RecordInvalid(f"a map of more than {RECORD_FIELDS_MAX} fields is in no record")
        if _CONTAINERS.isdisjoint(map(type, value.values())):
            return value
        return {
            key: _tupled(item) if isinstance(item, (list, dict)) else item
            for key, item in value.items()
        }
    if isinstance(value, list):
        if _CONTAINERS.isdisjoint(map(type, value)):  # Without a turn of Python for each.
            return tuple(value)
        return tuple(map(_tupled, value))
    return value


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Signed(Generic[R]):
    """A record together with its author and the bytes that prove it."""

    record: R
    author: bytes
    network: bytes
    id: bytes
    raw: bytes


def _message(kind: str, network: bytes, body: bytes) -> bytes:
    return domain(f"sig/{kind}") + network + hashlib.sha256(body).digest()


def sign(record: R, key: keys.KeyPair, network: bytes) -> Signed[R]:
    """Return the record signed by a key for a network."""
    return _seal_one(record, record.to_bytes(), key, network)


def _seal_one(record: R, body: bytes, key: keys.KeyPair, network: bytes) -> Signed[R]:
    signature = key.sign(_message(record.KIND, network, body))
    return _enveloped(record, body, key, network, signature, {"v": ENVELOPE_VERSION})


def _enveloped(  # noqa: PLR0917 - what an envelope has
    record: R,
    body: bytes,
    key: keys.KeyPair,
    network: bytes,
    signature: bytes,
    rest: dict[str, Value],
) -> Signed[R]:
    """Return a record with the signature that it is under; `rest` has the other fields."""
    fields: dict[str, Value] = {"kind": record.KIND, "net": network, "by": key.node_id}
    raw = encode({**fields, "body": body, "sig": signature, **rest})
    return Signed(record, key.node_id, network, tagged_sha256(record.KIND, body), raw)


def sign_jointly(records: Sequence[R], key: keys.KeyPair, network: bytes) -> list[Signed[R]]:
    """Return records signed by a key for a network, all with one signature.

    Each can be shown and opened without the others. One alone is signed as by `sign`.
    There may be up to JOINT_RECORDS_MAX.
    """
    return seal([(record, record.to_bytes()) for record in records], key, network)


def seal(encoded: Sequence[tuple[R, bytes]], key: keys.KeyPair, network: bytes) -> list[Signed[R]]:
    """Do as `sign_jointly`, with records whose canonical bytes are there already."""
    if len(encoded) == 1:
        return [_seal_one(*encoded[0], key, network)]
    root, paths = joint.plant([_message(record.KIND, network, body) for record, body in encoded])
    signature = key.sign(joint.message_of(network, root))
    return [
        _enveloped(
            *each, key, network, signature, {"v": JOINT_VERSION, "place": place, "path": [*path]}
        )
        for place, (each, path) in enumerate(zip(encoded, paths, strict=True))
    ]


def _way(value: dict[str, Value]) -> tuple[int, list[bytes]]:
    """Return place and path of a record that was signed with others."""
    place, path = value["place"], value["path"]
    if (
        not isinstance(place, int)
        or isinstance(place, bool)
        or not isinstance(path, list)
        or set(map(type, path)) != {bytes}
        or set(map(len, cast("list[bytes]", path))) != {joint.HASH_BYTES}
        or len(path) > joint.PATH_MAX
        or not 0 <= place < 1 << len(path)
    ):
        raise RecordInvalid("not a signed record: its path to the signature is malformed")
    return place, cast("list[bytes]", path)


_Fields: TypeAlias = "tuple[str, bytes, bytes, bytes, bytes, tuple[int, list[bytes]] | None]"


def _fields(raw: bytes, size_max: int) -> _Fields:
    value = decode(raw, size_max=size_max)
    if not isinstance(value, dict) or set(value) not in (_ALONE, _JOINT):
        raise RecordInvalid("not a signed record")
    expected = JOINT_VERSION if "path" in value else ENVELOPE_VERSION
    if value["v"] != expected or isinstance(value["v"], bool):
        raise RecordInvalid(
            f"this envelope is of version {value['v']!r}, known here is {expected}",
            hint="a newer xsc may read it",
        )
    kind, network, author = value["kind"], value["net"], value["by"]
    body, signature = value["body"], value["sig"]
    if (
        not isinstance(kind, str)
        or not isinstance(network, bytes)
        or not isinstance(author, bytes)
        or not isinstance(body, bytes)
        or not isinstance(signature, bytes)
        or len(network) != 32
        or len(author) != 32
        or len(signature) != keys.SIGNATURE_BYTES
    ):
        raise RecordInvalid("not a signed record: a field is of the wrong type or length")
    return kind, network, author, body, signature, _way(value) if "path" in value else None


def kind_of(raw: bytes, *, size_max: int = RECORD_BYTES_MAX) -> str:
    """Return the kind that an envelope claims to be; nothing is verified.

    Raises:
        TooLarge, RecordInvalid: not an envelope.
    """
    return _fields(raw, size_max)[0]


def author_of(raw: bytes, *, size_max: int = RECORD_BYTES_MAX) -> bytes:
    """Return the author that an envelope claims; nothing is verified.

    Raises:
        TooLarge, RecordInvalid: not an envelope.
    """
    return _fields(raw, size_max)[2]


def open_signed(
    raw: bytes,
    kind: type[R],
    *,
    network: bytes | None,
    author: bytes | None = None,
    size_max: int = RECORD_BYTES_MAX,
) -> Signed[R]:
    """Return the record of an envelope, once everything about it was checked.

    Args:
        raw: the envelope's bytes.
        kind: the record type that is expected.
        network: the network that it must be of; None takes any (offline checks).
        author: the node that must have signed it; None takes any, the caller decides.
        size_max: bound of the envelope in bytes.

    Raises:
        TooLarge, RecordInvalid: not canonical, of another kind, version or network.
        SignatureInvalid: another author, or the signature does not fit.
    """
    body, by, net = _verified(raw, kind.KIND, network, author, size_max)
    record = kind.from_bytes(body, size_max=size_max)
    return Signed(record, by, net, tagged_sha256(kind.KIND, body), raw)


def read_claimed(
    raw: bytes,
    kind: type[R],
    *,
    network: bytes,
    author: bytes | None = None,
    size_max: int = RECORD_BYTES_MAX,
) -> Signed[R]:
    """Return the record of an envelope whose signature is not verified.

    For who has the author's word for the record's id in another way, or looks whether there is
    anything to verify; all else was checked. Without an author any may have signed it.

    Raises:
        TooLarge, RecordInvalid: as `open_signed`.
        SignatureInvalid: it claims to be by another author.
    """
    return read_unverified(raw, kind, network=network, author=author, size_max=size_max)[0]


def read_unverified(
    raw: bytes,
    kind: type[R],
    *,
    network: bytes | None,
    author: bytes | None = None,
    size_max: int = RECORD_BYTES_MAX,
) -> tuple[Signed[R], keys.Unverified]:
    """Do as `read_claimed`, and return the signature, so that many can be checked at once."""
    body, by, net, signature, message = _claimed(raw, kind.KIND, network, author, size_max)
    record = kind.from_bytes(body, size_max=size_max)
    signed = Signed(record, by, net, tagged_sha256(kind.KIND, body), raw)
    return signed, (by, signature, message)


def open_body(
    raw: bytes, kind: str, *, network: bytes, author: bytes, size_max: int = RECORD_BYTES_MAX
) -> bytes:
    """Return the bytes of a record of an envelope, for who knows what they must be.

    Everything about the envelope was checked, nothing about the record.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: as `open_signed`.
    """
    return _verified(raw, kind, network, author, size_max)[0]


def _verified(
    raw: bytes, kind: str, network: bytes | None, author: bytes | None, size_max: int
) -> tuple[bytes, bytes, bytes]:
    """Return body, author and network of an envelope that was checked."""
    body, by, net, signature, message = _claimed(raw, kind, network, author, size_max)
    _verify_once(by, signature, message)
    return body, by, net


@lru_cache(maxsize=SIGNATURES_KEPT)
def _verify_once(by: bytes, signature: bytes, message: bytes) -> None:
    """Verify a signature, or know that these very bytes were; what fails is never remembered."""
    keys.verify(by, signature, message)


def _claimed(
    raw: bytes, kind: str, network: bytes | None, author: bytes | None, size_max: int
) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Return body, author, network, signature and what that must be over, not verified."""
    claimed, net, by, body, signature, way = _fields(raw, size_max)
    if claimed != kind:
        raise RecordInvalid(f"expected {with_article(kind)}, this is {with_article(claimed)}")
    if network is not None and net != network:
        raise RecordInvalid(f"this {claimed} is of another network")
    if author is not None and by != author:
        raise SignatureInvalid(f"this {claimed} is signed by another node than expected")
    message = _message(claimed, net, body)
    if way is not None:
        message = joint.message_of(net, joint.root_of(message, *way))
    return body, by, net, signature, message
