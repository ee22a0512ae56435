"""What a peer can say that signs whatever it likes: values drawn from the records' own schemas.

A `Forge` learns from every message that passes its node: values by the name of
their field, signed records by their kind, capabilities. What it draws it has seen,
or it lies at a bound of its field, or it is another thing of the same length. A
record is one that was seen, or that fits what the present step is about, with a
few fields changed, signed by the own key or by any key that a capability gives.
"""

from __future__ import annotations

import types
import typing
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from random import Random
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from xsc.base.encoding import decode, encode
from xsc.base.errors import RecordInvalid, XscError
from xsc.identity.envelope import Record, sign
from xsc.identity.keys import KeyPair
from xsc.storage.object.capability import ReadCapability, VerifyCapability, parse

SEEN_KEPT = 48
LEARNED_BYTES_MAX = 256 * 1024
LONG = 300
"""Items of a list at its bound, where that is higher."""
NUMBERS = (0, 1, 2, 2**31, 2**53, 2**62, 2**63 - 2, 2**63 - 1)
FRESH = {"nonce", "xid"}
"""Fields that are new in each honest record."""
INSIDE = {
    ("lease", "request"): "lease_request",
    ("execution_receipt", "order"): "order",
    ("introduction", "record"): "address",
    ("settled_entry", "half"): "entry",
    ("settled_entry", "counter"): "entry",
    ("settled_entry", "voucher"): "voucher",
}
"""Fields of plain bytes that hold a signed record."""


def kinds() -> dict[str, type[Record]]:
    """Return every kind of record of the package, in an order that imports do not change.

    Other tests define records of their own, which are not among them.
    """
    found: dict[str, type[Record]] = {}
    rest = [Record]
    while rest:
        kind = rest.pop()
        rest += kind.__subclasses__()
        if "KIND" in vars(kind) and kind.__module__.startswith("xsc."):
            found[kind.KIND] = kind
    return dict(sorted(found.items()))


def opened(raw: object) -> tuple[str, bytes, dict[str, Any]] | None:
    """Return kind, author and values of what looks like a signed record."""
    if not isinstance(raw, bytes) or not 150 < len(raw) <= LEARNED_BYTES_MAX:
        return None
    try:
        value = decode(raw, size_max=LEARNED_BYTES_MAX)
        if not isinstance(value, dict) or not {"kind", "by", "body", "sig"} <= set(value):
            return None
        body = decode(typing.cast("bytes", value["body"]), size_max=LEARNED_BYTES_MAX)
    except XscError:
        return None
    if not isinstance(body, dict):
        return None
    return str(value["kind"]), typing.cast("bytes", value["by"]), body


def tupled(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(tupled, value))
    if isinstance(value, dict):
        return {key: tupled(item) for key, item in value.items()}
    return value


def plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_value()
    if isinstance(value, Broken):
        return plain(value.values)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


class Broken:
    """A record that breaks its schema, to be signed all the same."""

    def __init__(self, kind: str, values: dict[str, Any]) -> None:
        self.KIND = kind
        self.values = values

    def to_bytes(self) -> bytes:
        return encode(plain(self.values))


class Forge:
    """See the module."""

    def __init__(self, rng: Random, own: KeyPair, network: bytes) -> None:
        self.rng = rng
        self.own = own
        self.network = network
        self.keys = {own.node_id: own}
        self.kinds = kinds()
        self.seen: dict[str, deque[Any]] = defaultdict(lambda: deque(maxlen=SEEN_KEPT))
        self.raws: dict[str, deque[tuple[bytes, bytes, dict[str, Any]]]] = defaultdict(
            lambda: deque(maxlen=SEEN_KEPT)
        )
        """Signed records by kind: bytes, author, values."""
        self.capabilities: dict[str, ReadCapability | VerifyCapability] = {}
        self.lengths: dict[str, int] = {}
        """By field name, how many items its last list had."""
        self.focus: dict[str, Any] = {}
        """By field name, what the present step is about."""
        self.at_hand: tuple[str, bytes] | None = None
        """Kind and bytes of the record that is being changed."""
        self.now_ms: Callable[[], int] = lambda: 0

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    # Learning

    def learn(self, value: Any, name: str = "") -> None:
        """Take up what was seen in a message, whole."""
        if isinstance(value, dict):
            for key, item in value.items():
                self.learn(item, key)
        elif isinstance(value, list):
            self.lengths[name] = len(value)
            for item in value[:16]:
                self.learn(item, name)
        elif value is not None and not isinstance(value, bool):
            if isinstance(value, bytes) and len(value) > LEARNED_BYTES_MAX:
                return
            known = self.seen[name]
            if value in known:
                return
            known.append(value)
            if isinstance(value, str) and value.startswith("xsc:"):
                self.hold(value)
            if (record := opened(value)) is not None:
                kind, author, values = record
                self.raws[kind].append((value, author, values))
                self.learn(values)
            elif name == "header":
                self.learn(decoded(value))

    def hold(self, text: str) -> None:
        """Take a capability, and every key that follows from it."""
        try:
            capability = parse(text)
        except XscError:
            return
        self.capabilities[text] = capability
        for value in attributes(capability).values():
            if isinstance(value, KeyPair):
                self.keys[value.node_id] = value

    def about(self, capability: ReadCapability | VerifyCapability, own: bytes | None) -> None:
        """Let the present step be about an object.

        Args:
            capability: the object's.
            own: who stores it.
        """
        verify = capability.verify if isinstance(capability, ReadCapability) else capability
        self.focus |= {
            "locate": verify.locate,
            "manifest": verify.manifest_hash,
            "object": verify.manifest_hash,
            "capability": verify.to_text(),
        }
        if own is not None:
            self.focus["owner"] = own
        for name, value in attributes(verify).items():
            if isinstance(value, KeyPair):
                self.keys[value.node_id] = value
                self.focus[name] = value.node_id

    # Drawing

    def draw(self, kind: Any, name: str = "", bounds: tuple[Any, ...] = ()) -> Any:
        """Return a value of a type: seen, fitting, at a bound, or a neighbour's."""
        origin = get_origin(kind)
        if origin is Annotated:
            base, *more = get_args(kind)
            return self.draw(base, name, (*bounds, *more))
        if origin in (typing.Union, types.UnionType):
            return self.draw(self.rng.choice(get_args(kind)), name, bounds)
        if origin is Literal:
            return self.rng.choice(get_args(kind))
        if origin is tuple:
            return self._tuple(get_args(kind), name, limits_of(bounds))
        if kind is type(None):
            return None
        if isinstance(kind, type) and issubclass(kind, Record):
            return self.record(kind)
        return self.leaf(kind, name, limits_of(bounds))

    def _tuple(self, items: tuple[Any, ...], name: str, limits: dict[str, int]) -> tuple[Any, ...]:
        if items[-1] is not Ellipsis:
            return tuple(self.draw(item, name) for item in items)
        least, most = limits.get("least", 0), min(LONG, limits.get("most", 6))
        count = self.rng.choice((least, least + 1, 6, most if self.chance(0.3) else 1))
        if name in self.lengths and self.chance(0.6):
            count = max(least, min(most, self.lengths[name]))
        one = self.draw(items[0], name)
        if self.chance(0.3):
            return (one,) * count
        return tuple(self.draw(items[0], name) for _ in range(count))

    def leaf(self, kind: Any, name: str, limits: Mapping[str, int] = {}) -> Any:
        """Return a number, text, bytes or flag for a field of that name."""
        if name in self.focus and self.chance(0.75):
            value = self.focus[name]
            if isinstance(value, kind):
                return value
        if kind is bool:
            return self.chance(0.5)
        if kind is int:
            return self._int(name, limits)
        if kind is str:
            return self._text(name, limits)
        return self._bytes(name, limits)

    def _int(self, name: str, limits: Mapping[str, int]) -> int:
        if name.endswith("_ms") and self.chance(0.6):
            ahead = self.rng.choice((0, 0, 60_000, 3_600_000, 90 * 86_400_000))
            return self.now_ms() + (ahead if name.startswith(("end", "until", "valid_u")) else 0)
        low, high = limits.get("low", 0), limits.get("high", 2**63 - 1)
        known = [value for value in self.seen[name] if isinstance(value, int)]
        if known and self.chance(0.5):
            return max(low, min(high, self.rng.choice(known) + self.rng.choice((0, 0, -1, 1))))
        return self.rng.choice((low, low + 1, high, high - 1, *NUMBERS[1:3]))

    def _text(self, name: str, limits: Mapping[str, int]) -> str:
        known = [value for value in self.seen[name] if isinstance(value, str)]
        if known and self.chance(0.7):
            return self.rng.choice(known)
        return self.rng.choice(("", "a", "x" * min(LONG, limits.get("most", LONG)), "../\n\0é"))

    def _bytes(self, name: str, limits: Mapping[str, int]) -> bytes:
        size = limits.get("most") if limits.get("least") == limits.get("most") else None
        if name in FRESH and size:
            return self.rng.randbytes(size)
        known = [
            value
            for value in self.seen[name]
            if isinstance(value, bytes) and (size is None or len(value) == size)
        ]
        if known and self.chance(0.6):
            return self.rng.choice(known)
        if size is None:
            return self.rng.choice((b"", b"\0", self.rng.randbytes(self.rng.choice((1, 100)))))
        others = [
            value
            for pool in list(self.seen)
            for value in self.seen[pool]
            if isinstance(value, bytes) and len(value) == size
        ]
        return self.rng.choice([*others[:200], bytes(size), self.rng.randbytes(size)])

    # Records

    def fits(self, values: Mapping[str, Any]) -> int:
        """Return in how many fields a record is about what the present step is about."""
        return sum(values.get(name) == value for name, value in self.focus.items())

    def near(self, kind: str) -> list[str]:
        """Return the kinds that can stand where one can: they end with the same word."""
        return [
            other
            for other in self.kinds
            if other.split("_")[-1] == kind.rsplit("_", maxsplit=1)[-1]
        ]

    def record(self, kind: type[Record], base: Mapping[str, Any] | None = None) -> Any:
        """Return a record of a kind; now and then one that breaks its schema."""
        known = sorted((v for _, _, v in self.raws[kind.KIND]), key=self.fits)[-3:]
        if base is None and known and self.chance(0.9):
            base = self.rng.choice(known)
        values: dict[str, Any] = dict(base or {"v": 1})
        for name, info in kind.model_fields.items():
            if name in self.focus and self.chance(0.8):
                values[name] = self.focus[name]
            elif name not in values and not info.is_required() and self.chance(0.7):
                continue  # said by nobody
            elif name not in values or name in FRESH:
                values[name] = self.field(kind, name, info)
        for _ in range(self.rng.choice((0, 0, 1, 1, 2))):
            names = [name for name in kind.model_fields if name != "v"]
            if not names:
                break
            numbers = [name for name in names if isinstance(values.get(name), int)]
            name = self.rng.choice(numbers if numbers and self.chance(0.5) else names)
            values[name] = self.field(kind, name, kind.model_fields[name])
        for _ in range(3):
            try:
                return kind.model_validate(tupled(values))
            except RecordInvalid:
                break  # what is inside one of its fields is malformed
            except ValidationError as fault:
                for error in fault.errors():
                    name = str(error["loc"][0]) if error["loc"] else ""
                    if name in kind.model_fields and name != "v":
                        values[name] = self.field(kind, name, kind.model_fields[name])
        return Broken(kind.KIND, values)

    def field(self, kind: type[Record], name: str, info: FieldInfo) -> Any:
        inside = INSIDE.get((kind.KIND, name))
        if inside is None and info.annotation is bytes and not info.metadata:
            inside = name if name in self.kinds else None
        if inside is not None:
            if self.at_hand is not None and self.at_hand[0] == inside and self.chance(0.6):
                return self.at_hand[1]
            return self.signed(inside, seen=0.8)
        return self.draw(info.annotation, name, tuple(info.metadata))

    def signed(
        self, kind: str, base: Mapping[str, Any] | None = None, *, seen: float = 0.3
    ) -> bytes:
        """Return a signed record: one that was seen, or one that was forged.

        Args:
            kind: what is expected; another of its kin may come.
            base: what to change; None takes something that fits.
            seen: the share of those that were seen.
        """
        if base is None and self.raws[kind] and self.chance(seen):
            known = sorted(self.raws[kind], key=lambda item: self.fits(item[2]))
            return self.rng.choice(known[-2:])[0]
        other = kind if self.chance(0.85) else self.rng.choice(self.near(kind) or [kind])
        if other not in self.kinds:
            return self.rng.randbytes(200)
        record = self.record(self.kinds[other], base if other == kind else None)
        try:
            return sign(record, self.key(plain(record)), self.network).raw
        except XscError:
            return self.rng.randbytes(200)

    def fitting(self, kind: str, values: Mapping[str, Any]) -> bytes:
        """Return a signed record that fits what the step is about, and some values."""
        self.focus |= values
        return self.signed(kind, {"v": 1, **values}, seen=0.0)

    def key(self, values: Any) -> KeyPair:
        """Return the own key, or one that is held and that a record names."""
        named = [key for key in self.named(values) if key is not self.own]
        if named and self.chance(0.5):
            return self.rng.choice(named)
        return self.rng.choice(list(self.keys.values())) if self.chance(0.05) else self.own

    def named(self, values: Any) -> list[KeyPair]:
        """Return the keys that are held and whose public half stands in some values."""
        if isinstance(values, dict):
            return [key for item in values.values() for key in self.named(item)]
        if isinstance(values, bytes) and (inner := opened(values)) is not None:
            return self.named(inner[2])
        return [self.keys[values]] if isinstance(values, bytes) and values in self.keys else []

    # Changing what others, or the own node, would have said

    def tampered(self, value: Any, name: str = "") -> Any:
        """Return a value with one thing in it changed."""
        if isinstance(value, dict) and value:
            signed = [key for key in sorted(value) if opened(value[key]) is not None]
            key = self.rng.choice(signed if signed and self.chance(0.5) else sorted(value))
            if self.chance(0.05):
                return {other: item for other, item in value.items() if other != key}
            return {**value, key: self.tampered(value[key], key)}
        if isinstance(value, list) and value:
            place = self.rng.randrange(len(value))
            changed = [self.tampered(value[place], name)]
            count = self.rng.choice((1, 1, 1, 0, 2, 64))
            return [*value[:place], *(changed * count), *value[place + 1 :]]
        if (record := opened(value)) is not None:
            kind, _, values = record
            self.at_hand = kind, value
            changed = self.signed(kind, values if self.chance(0.7) else None)
            self.at_hand = None
            return changed
        if isinstance(value, bytes) and name == "header":
            try:
                return encode(self.tampered(decode(value)))
            except XscError:
                return value
        if value is None:
            return self.leaf(self.rng.choice((int, bytes, str)), name)
        if isinstance(value, bool):
            return not value
        if isinstance(value, bytes):
            return self._bytes(name, {"least": len(value), "most": len(value)})
        if isinstance(value, int) and self.chance(0.5):
            return self.rng.choice(NUMBERS)
        return self.leaf(type(value), name)


def decoded(value: object) -> Any:
    """Return what canonical bytes stand for, or nothing."""
    try:
        return decode(value, size_max=LEARNED_BYTES_MAX) if isinstance(value, bytes) else None
    except XscError:
        return None


def attributes(value: object) -> dict[str, Any]:
    """Return everything that a capability gives by itself."""
    assert is_dataclass(value)
    names = {item.name for item in fields(value)}
    names |= {name for name, item in vars(type(value)).items() if isinstance(item, property)}
    return {name: getattr(value, name) for name in sorted(names)}


def limits_of(bounds: tuple[Any, ...]) -> dict[str, int]:
    """Return the bounds of a field as its schema says them."""
    found: dict[str, int] = {}
    for item in bounds:
        if isinstance(item, FieldInfo):
            found |= limits_of(tuple(item.metadata))
        elif isinstance(item, annotated_types.Ge):
            found["low"] = typing.cast("int", item.ge)
        elif isinstance(item, annotated_types.Gt):
            found["low"] = typing.cast("int", item.gt) + 1
        elif isinstance(item, annotated_types.Le):
            found["high"] = typing.cast("int", item.le)
        elif isinstance(item, annotated_types.Lt):
            found["high"] = typing.cast("int", item.lt) - 1
        elif isinstance(item, annotated_types.MinLen):
            found["least"] = item.min_length
        elif isinstance(item, annotated_types.MaxLen):
            found["most"] = item.max_length
    return found
