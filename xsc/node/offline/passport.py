"""Checks a service passport with nothing but its bytes, by each rule a second time.

It shares no code with what writes passports, so one finds the faults of the other: of XSC it uses
errors and words alone. docs/design/ledger.md, W1 to W5.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeAlias

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from xsc.base.errors import ProofInvalid

PASSPORT_BYTES_MAX = 256 * 1024
_LEAF: Final = 16 * 1024
_FIELD: Final = 2**255 - 19
_EIGHTH: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_WEAK: Final = {0, 1, _FIELD - 1, _EIGHTH, _FIELD - _EIGHTH}
"""The y of points of small order, for which everybody could sign."""
_HALF_OWN: Final = {"seq", "prev", "peer", "link", "created_ms"}
"""What each half of an entry has for itself."""
_Node: TypeAlias = Callable[..., bytes]
_Pair: TypeAlias = tuple[bytes, bytes]


class _Signed(NamedTuple):
    said: dict[str, Any]
    by: bytes
    id: bytes


def _need(holds: object, fault: str) -> None:
    if not holds:
        raise ProofInvalid(f"this passport does not hold: {fault}")


def _item(raw: bytes, at: int) -> tuple[Any, int]:
    """Return the value that begins at a place, in its only form, and where it ends."""
    head, at = raw[at], at + 1
    if head in {0xF4, 0xF5, 0xF6}:
        return (False, True, None)[head - 0xF4], at
    major, number = head >> 5, head & 31
    if number > 23:
        width, least = {24: (1, 24), 25: (2, 2**8), 26: (4, 2**16), 27: (8, 2**32)}[number]
        number, at = int.from_bytes(raw[at : at + width]), at + width
        _need(number >= least, "a number is not in its shortest form")
    _need(at <= len(raw) and major < 6 and (major < 2 or number <= len(raw) - at), "it breaks off")
    if major < 2:
        return (-1 - number if major else number), at
    if major < 4:
        text, at = raw[at : at + number], at + number
        return (text if major == 2 else text.decode()), at
    found = list[Any]()
    for _ in range(number * (major - 3)):
        value, at = _item(raw, at)
        found.append(value)
    if major == 4:
        return found, at
    keys = [(len(key.encode()), key.encode()) for key in found[::2]]
    _need(all(a < b for a, b in pairwise(keys)), "the keys of a map are not in order")
    return dict(zip(found[::2], found[1::2], strict=True)), at


def _value(raw: bytes) -> Any:  # noqa: ANN401 (whatever it holds)
    value, end = _item(raw, 0)
    _need(end == len(raw), "more bytes follow on a record")
    return value


def _id_of(text: str) -> bytes:
    return base64.b32decode(text.upper() + "====")


def _under(tag: str, *parts: bytes) -> bytes:
    return b"".join((f"XSC/1/{tag}\0".encode(), *parts))


def _tagged(tag: str, *parts: bytes) -> bytes:
    return sha256(_under(tag, *parts)).digest()


def _verify(node: bytes, signature: bytes, message: bytes) -> None:
    y = int.from_bytes(node, "little") & (2**255 - 1)
    _need(y < _FIELD and y not in _WEAK, "everybody could sign for a key")
    Ed25519PublicKey.from_public_bytes(node).verify(signature, message)


def _open(raw: bytes, kind: str, net: bytes, by: bytes | None = None) -> _Signed:
    """Return what a node signed for a network, alone or in a batch."""
    given = _value(raw)
    joint, author, body = "path" in given, given["by"], given["body"]
    whole = given["v"] == 1 + joint and len(given) == 6 + 2 * joint
    _need(whole and (given["kind"], given["net"]) == (kind, net), f"a part is no {kind} of its net")
    _need(by in {None, author}, f"a {kind} is signed by another node")
    message = _under(f"sig/{kind}", net, sha256(body).digest())
    if joint:
        place, path, root = given["place"], given["path"], _tagged("joint-leaf", message)
        _need(0 <= place < 2 ** len(path) <= 64, "a path to a signature is wrong")
        for level, each in enumerate(path):
            pair = (each, root) if place >> level & 1 else (root, each)
            root = _tagged("joint-node", *pair)
        message = _under("joint", net, root)
    _verify(author, given["sig"], message)
    said = _value(body)
    numbers = [each for each in said.values() if isinstance(each, int)]
    _need(said["v"] == 1 and all(0 <= each < 2**63 for each in numbers), f"a {kind} is malformed")
    return _Signed(said, author, _tagged(kind, body))


def _top(leaf: bytes, at: int, size: int, take: _Node, node: _Node) -> bytes:
    """Return the root of a tree like that of RFC 6962; `take` gives what is beside, from the top.

    It is told whether that is on the left.
    """
    if size == 1:
        _need(at == 0, "a path in a tree is wrong")
        return leaf
    middle = 1 << (size - 1).bit_length() - 1
    side = take(at >= middle)
    if at >= middle:
        return node(side, _top(leaf, at - middle, size - middle, take, node))
    return node(_top(leaf, at, middle, take, node), side)


def _published(part: list[bytes], net: bytes, by: bytes, which: str, own: list[Any]) -> _Signed:
    """Check that a node published a slot or need of that id and kind."""
    record, value = part
    found = _open(record, "space_record", net, by)
    of = {"path": "allocation/commitment", "digest": _tagged("space_value", value)}
    _need(of.items() <= found.said.items(), f"the {which} are no commitment of that record")
    listed = [[each["slot_id"], each["kind"]] for each in _value(value)[which]]
    _need(own in listed, f"none of the {which} is that of the lease")
    return found


def _voucher(raw: bytes, net: bytes, pair: _Pair) -> _Signed:
    found = _open(raw, "voucher", net, pair[1])
    of = {"account": _tagged("leases", *pair), "provider": pair[0], "customer": pair[1]}
    _need(of.items() <= found.said.items(), "a voucher is not for the leases of these two")
    return found


def _entry(raw: bytes, net: bytes, pair: _Pair, rest: _Pair, last: _Signed) -> tuple[Any, ...]:
    """Return the halves of provider and customer, and whether they book the last voucher."""
    half, counter = _open(raw, "entry", net, pair[0]), _open(rest[0], "entry", net, pair[1])
    voucher, said, other = _voucher(rest[1], net, pair), half.said, counter.said
    same = {**other, **{name: said[name] for name in _HALF_OWN}} == said
    peers = (other["peer"], said["peer"]) == pair == (said["credit"], said["debit"])
    linked = (said["link"], other["link"]) == (None, half.id)
    _need(same and peers and linked, "the halves of the entry do not fit each other")
    of = {"kind": "post", "unit": 1, "account": voucher.said["account"], "receipt": voucher.id}
    books = of.items() <= said.items() and said["amount_micro"] <= voucher.said["amount_micro"]
    _need(books, "the entry does not book its voucher")
    more, later = (last.said[of] - voucher.said[of] for of in ("amount_micro", "number"))
    _need(voucher == last or (more >= 0 < later), "the entry books a later voucher than the last")
    return half, counter, voucher == last


def _checkpoint(raw: bytes, net: bytes, halves: Iterable[_Signed], path: list[bytes]) -> list[Any]:
    """Return author, number of its half, size, and how many of how many co-signers signed."""
    text, _, lines = raw.decode().partition("\n\n")
    origin, count, root, *named = text.split("\n")
    begin, *ids, first = origin.split("/")
    origin_net, author = map(_id_of, ids)
    prefixes = base64.b64decode(dict(each.split(" ") for each in named).get("cosigners", ""))
    listed, signers = {prefixes[at : at + 16] for at in range(0, len(prefixes), 16)}, set[bytes]()
    whole = (begin, origin_net) == ("xsc", net) and 16 * len(listed) == len(prefixes)
    _need(whole and len(listed) in {0, 4, 7}, "the checkpoint is no ledger's of this network")
    for line in lines.splitlines():
        name, signature = line.removeprefix("— ").split(" ")
        by, given, message = _id_of(name), base64.b64decode(signature), f"{text}\n"
        mark, end = (b"\1", 4) if by == author else (b"\4", 12)
        if by != author:
            message = f"cosignature/v1\ntime {int.from_bytes(given[4:12])}\n{message}"
        hashed = sha256(f"{name}\n".encode() + mark + by).digest()
        _need(hashed[:4] == given[:4] and by not in signers, "a signature is of another key")
        _verify(by, given[end:], message.encode())
        signers.add(by)
    (own,) = [half for half in halves if half.by == author and author in signers]
    at, size, leaf = own.said["seq"] - int(first), int(count), sha256(b"\0" + own.id).digest()
    node: _Node = lambda *of: sha256(b"\1" + b"".join(of)).digest()  # noqa: E731 (a line each)
    top = _top(leaf, at, size, lambda _: path.pop(), node)
    _need(not path and top == base64.b64decode(root), "the entry is not under the checkpoint")
    return [author, at, size, len({by[:16] for by in signers} & listed), len(listed)]


def _hashed(context: str, *parts: bytes) -> bytes:
    return blake3(b"".join(parts), derive_key_context=f"XSC 1 shard {context}").digest()


def _challenge(raw: bytes, net: bytes, pair: _Pair) -> _Signed:
    """Check that a host answered for leaves, and that they are under the roots that it signed."""
    shown = _value(raw)
    found, given = _open(shown["said"], "possession", net, pair[0]), shown["leaves"]
    said, asked_by = found.said, [*pair, pair[1], bytes(32), shown["epoch"].to_bytes(8)]
    hashes = {of: _tagged(f"challenge_{of}", shown[of]) for of in ("asked", "leaves")}
    hashes["seed"] = _tagged("challenge_seed", *asked_by, *shown["nonces"])
    _need(hashes.items() <= said.items(), "the host said something else")
    rows = zip(_value(shown["asked"]), said["states"], strict=True)
    have = [row for row, state in rows if state == "ok"]
    for (_, _, at, size, _, root, _), (data, *path) in zip(have, _value(given), strict=True):
        whole, count = len(data) == min(_LEAF, size - at * _LEAF) > 0, -(-size // _LEAF)
        _need(whole, "a leaf is of another length")
        sides, node = lambda left, path=path: path.pop(0 if left else -1), partial(_hashed, "node")
        top = _hashed("root", size.to_bytes(8), _top(_hashed("leaf", data), at, count, sides, node))
        _need(not path and top == root, "a leaf is not under its root")
    return found


def _check(given: dict[str, Any]) -> dict[str, Any]:
    _need((given["kind"], given["v"], len(given)) == ("passport", 1, 13), "it is none")
    net, path, found = _value(given["lease"])["net"], given["path"], dict[str, Any]()
    lease = _open(given["lease"], "lease", net)
    request = _open(lease.said["request"], "lease_request", net)
    asked, level, pair = request.said, lease.said["level"], (lease.by, request.by)
    _need((asked["provider"], asked["customer"]) == pair, "the lease is signed by others")
    ahead = {level > 0, asked["level"] > 0, asked["need"] is not None}
    granted = level <= asked["level"] and len(ahead) == 1 and asked["start_ms"] < asked["end_ms"]
    _need(granted, "the lease is not what was asked for")

    def check(name: str, check: Callable[..., Any], *of: object) -> Any:  # noqa: ANN401
        found[name] = None if given[name] is None else check(given[name], net, *of)
        return found[name]

    check("slot", _published, pair[0], "slots", [asked["slot"], asked["kind"]])
    check("need", _published, pair[1], "needs", [asked["need"], asked["kind"]])
    voucher = check("voucher", _voucher, pair)
    if count := check("count", lambda raw, net: _open(raw, "lease_count", net, pair[0])):
        named = [each["lease_id"] for each in count.said["leases"]]
        between = (count.said["provider"], count.said["customer"]) == pair
        _need(between and named.count(asked["lease_id"]) == 1, "the count does not name the lease")
        _need(voucher and voucher.said["count"] == count.id, "the voucher does not pay the count")
    is_held = check("challenge", _challenge, pair) is not None
    _need(not is_held or asked["kind"] == "storage", "a lease of compute holds nothing")
    rest = given["counter"], given["paid"]
    halves = check("half", _entry, pair, rest, voucher)
    _need(halves or not any((*rest, given["note"])), "the half of the provider is missing")
    _need(
        check("note", _checkpoint, (halves or ())[:2], path) or not path,
        "its checkpoint is missing",
    )
    return {"lease": lease, "request": request, **found}


def verify_passport(raw: bytes, say: Callable[[dict[str, Any]], str]) -> str:
    """Return what `say` says of the parts of a passport, None for one that it has not.

    Raises:
        ProofInvalid: the first thing that is wrong.
    """
    _need(len(raw) <= PASSPORT_BYTES_MAX, "it is too large")
    try:
        return say(_check(_value(raw)))
    except InvalidSignature:
        raise ProofInvalid("a signature in this passport is of another node or content") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        raise ProofInvalid("this passport does not hold: a part is malformed") from None
