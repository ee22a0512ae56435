"""The header and the parts of every message that a peer can send, as schemas.

One line a registered method: `test_adversary` fails where one is missing, or left
over. A schema is a type as records have them, a kind of signed record, a list of
one of these, or a map. What parts a message needs follows from its header.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from tests.sim.adversary.forge import Forge, plain
from tests.sim.adversary.programs import hostile_program
from xsc.base.encoding import encode
from xsc.base.errors import RecordInvalid
from xsc.base.limits import (
    BATCH_CALLS_MAX,
    CUSTODIANS_MAX,
    FRAME_PARTS_MAX,
    GIB,
    HEAD_BYTES_MAX,
    LEAF_BYTES,
    LEASES_A_CUSTOMER_MAX,
    OUTPUT_BYTES_MAX,
    PEER_BODY_BYTES_MAX,
    SERVICE_RATES_MAX,
    SHARDS_MAX,
)
from xsc.compute.wasm.inputs import RunInput, digest_of, input_hash
from xsc.health import challenge as rules
from xsc.identity.envelope import Count, Id32, open_signed
from xsc.identity.keys import KeyPair
from xsc.ledger.checkpoint import Checkpoint, listed
from xsc.ledger.cube import LEVEL_MAX, seal_hash
from xsc.ledger.entry import UNIT_CREDIT, UNIT_NONE
from xsc.space.itc import event_bytes
from xsc.space.limits import ASKED_RECORDS_MAX, CURSORS_MAX
from xsc.space.paths import UserSpacePaths, below, section_of
from xsc.space.record import value_digest
from xsc.storage.object.erasure import COLUMN_MAX, GENERATION_MAX, SEGMENT_MAX
from xsc.storage.object.manifest import hash_of
from xsc.storage.object.messages import GET_MAX
from xsc.terms.possession import LEAVES_ASKED, MANIFEST_COLUMN, Extent, extent_name
from xsc.terms.voucher import Voucher, off_books_account

Column = Annotated[int, Field(ge=0, le=COLUMN_MAX)]
Segment = Annotated[int, Field(ge=0, le=SEGMENT_MAX)]
Generation = Annotated[int, Field(ge=0, le=GENERATION_MAX)]
Nonce = Annotated[bytes, Field(min_length=16, max_length=16)]
Name = Annotated[str, Field(max_length=64)]
Most = Annotated[int, Field(ge=0, le=PEER_BODY_BYTES_MAX)]
Prefix = Annotated[str, Field(max_length=1_024)]
Section = Annotated[str, Field(max_length=64)]
Cursor = tuple[Id32, Section, Count, Count, Count]
Size = Annotated[int, Field(ge=0, le=GIB)]


@dataclass(frozen=True)
class Sealed:
    """A signed record, or one of a kind whose name ends with the same word."""

    kind: str


@dataclass(frozen=True)
class Unsigned:
    """The bytes of a record that nobody signs."""

    kind: str


@dataclass(frozen=True)
class Note:
    """A checkpoint, signed by the adversary, and now and then by others of its keys."""


@dataclass(frozen=True)
class Many:
    """A list with up to so many items."""

    item: Any
    most: int


PLACE = {"segment": Segment, "column": Column}
SHARD = {**PLACE, "root": Id32}
OBJECT = {"locate": Id32, "generation": Generation}

HEADERS: dict[str, dict[str, Any]] = {
    "storage.put": {
        "lease": Id32,
        **OBJECT,
        "shards": Many(PLACE, FRAME_PARTS_MAX - 1),
        "manifest": bool,
    },
    "storage.get": {**OBJECT, "shards": Many(SHARD, GET_MAX), "most": Most},
    "storage.have": {"lease": Id32, **OBJECT, "shards": Many(SHARD, GET_MAX), "most": Most},
    "storage.keep": {"lease": Id32, **OBJECT, "shards": Many(SHARD, GET_MAX), "most": Most},
    "storage.stat": {**OBJECT, "manifest": Id32},
    "storage.find": {"locate": Id32, "manifest": Id32, "most": Most},
    "storage.holds": {**OBJECT, "manifest": Id32, "roots": Many(Id32, SHARDS_MAX)},
    "storage.delete": {"order": Sealed("deletion_order")},
    "storage.guard": {
        "capability": str,
        "placement": Unsigned("placement"),
        "before": Many(Id32, CUSTODIANS_MAX),
    },
    "storage.unguard": {"object": Id32},
    "storage.healed": {"object": Id32, "resigns": bool},
    "storage.head_elsewhere": {},
    "storage.stays": {"locate": Id32, "reason": Name},
    "storage.head_put": {},
    "storage.head_get": {},
    "market.lease": {"request": Sealed("lease_request"), "least": Count},
    "market.account": {
        "voucher": Sealed("voucher"),
        "book_now": bool,
        "show": bool,
        "less": Many((Id32, Count), LEASES_A_CUSTOMER_MAX),
    },
    "ledger.propose": {"half": Sealed("entry"), "voucher": Sealed("voucher")},
    "ledger.head": {"incarnation": Sealed("incarnation")},
    "ledger.account": {"paid": Voucher | None},
    "ledger.history": {"start": Count},
    "ledger.offer": {
        "path": Many(Id32, 5),
        "amount_micro": Count,
        "left_ms": Count,
        "search": bytes,
    },
    "ledger.loop": {"loop": bytes},
    "ledger.cubes": {
        "history": Id32,
        "count": Count,
        "level": Annotated[int, Field(ge=0, le=LEVEL_MAX)],
        "place": Count,
        "face": Annotated[int, Field(ge=0, le=2)] | None,
    },
    "ledger.cosign": {"checkpoint": Note(), "old": Count, "path": Many(Id32, 64)},
    "ledger.compare": {"seen": Many((Id32, Count, Id32), 256), "half": Sealed("entry")},
    "space.next": {
        "cursors": Many(Cursor, CURSORS_MAX),
        "wait": bool,
        "record": Sealed("space_record"),
        "value": bytes,
    },
    "space.list": {"owner": Id32, "section": Section},
    "space.records": {"owner": Id32, "paths": Many(Prefix, ASKED_RECORDS_MAX), "whole": bool},
    "space.grant": {"anew": bool},
    "health.challenge": {
        "customer": Id32,
        "scope": Id32,
        "epoch": Count,
        "commitment": Id32,
        "proven": Sealed("proven"),
    },
    "health.prove": {
        "customer": Id32,
        "scope": Id32,
        "epoch": Count,
        "nonce": Id32,
        "host_nonce": Id32,
        "roots": Many(tuple[Count, Id32, Id32 | None], LEAVES_ASKED),
    },
    "health.ping": {"v": Count, "ping": Sealed("ping")},
    "health.probe_for": {"v": Count, "ping": Sealed("ping")},
    "health.missed": {"v": Count, "node": Id32},
    "health.scores": {"v": Count},
    "compute.run": {
        "order": Sealed("order"),
        "output_bytes": Size,
        "environment": Many(Name, 2),
        "files": Many(Name, 2),
        "args": Many(Name, 2),
        "module": bool,
        "stream": bool,
        "wait_ms": Count,
        "objects": Many(Name, 2),
    },
    "compute.output": {"nonce": Nonce, "stdout": Size, "stderr": Size, "wait_ms": Count},
    "compute.cancel": {"nonce": Nonce},
    "service.deploy": {"deployment": Sealed("deployment"), "lease_id": Id32, "module": bool},
    "service.undeploy": {"name": Name},
    "service.collect": {
        "name": Name,
        "after": Count,
        "lease_id": Id32,
        "rates": Many(Id32, SERVICE_RATES_MAX),
    },
    "peers.join": {"secret": Id32, "record": Sealed("address")},
    "peers.batch": {"calls": Many({"method": Name, "header": bytes, "parts": Column}, 4)},
}


def _fill(forge: Forge, schema: Any, name: str) -> Any:
    if isinstance(schema, Sealed):
        return None if forge.chance(0.05) else forge.signed(schema.kind)
    if isinstance(schema, Note):
        return _note(forge)
    if isinstance(schema, Unsigned):
        return encode(plain(forge.record(forge.kinds[schema.kind])))
    if isinstance(schema, dict):
        known = [item for item in forge.focus.get(name) or [] if set(schema) <= set(item)]
        if known and forge.chance(0.8):
            item = forge.rng.choice(known)
            return {key: item[key] for key in schema}
        return {key: _fill(forge, item, key) for key, item in schema.items()}
    if isinstance(schema, Many):
        count = forge.rng.choice((1, 1, 2, 6, schema.most if forge.chance(0.5) else 1))
        known = forge.focus.get(name) or []
        if known and isinstance(schema.item, dict) and forge.chance(0.6):
            some = forge.rng.sample(known, min(count, len(known)))
            return [{key: item[key] for key in schema.item} for item in some]
        if forge.chance(0.3):
            return [_fill(forge, schema.item, name)] * count
        return [_fill(forge, schema.item, name) for _ in range(count)]
    return plain(forge.draw(schema, name)) if schema is not None else None


def _note(forge: Forge) -> bytes:
    """Return a checkpoint; some are of one size with another root, and name who is asked."""
    rng = forge.rng
    peers = [node for node in forge.seen["peer"] if isinstance(node, bytes) and len(node) == 32]
    named = [*{*peers}][:3] + [rng.randbytes(32) for _ in range(7)]
    said = Checkpoint(
        forge.network,
        forge.own.node_id,
        rng.choice((0, 0, 0, 1, 2**62)),
        rng.choice((0, 1, 2, 2, 5, 300, 2**62)),
        rng.choice((bytes(32), rng.randbytes(32))),
        listed(named[: rng.choice((0, 4, 4, 7))]),
    ).signed(forge.own)
    for _ in range(rng.choice((0, 0, 3, 20))):
        said = said.signed(KeyPair(rng.randbytes(32)), rng.randrange(2**40))
    raw = said.raw
    return raw if forge.chance(0.9) else raw[: rng.randrange(len(raw))]


def _put_parts(forge: Forge, header: dict[str, Any]) -> list[bytes]:
    size = forge.rng.choice((1, 1, 100, LEAF_BYTES))
    if forge.chance(0.9):
        # Else they are refused as one shard named twice.
        for number, item in enumerate(header["shards"]):
            header["shards"][number] = {**item, "segment": number}
    parts = [forge.rng.randbytes(size) for _ in header["shards"]]
    if header["manifest"] and forge.chance(0.5):
        header["shards"], parts = [], []
    if header["manifest"]:
        sealed = list(forge.seen["sealed"])
        fitting = [part for part in sealed if hash_of(part) == forge.focus.get("manifest")]
        parts.append(forge.rng.choice(fitting or sealed or [b"sealed"]))
    return parts


def _run_parts(forge: Forge, header: dict[str, Any]) -> list[bytes]:
    """Return standard input, files and module; mostly those that the order names."""
    header |= {"environment": [], "files": [], "args": []}
    module = hostile_program(forge.rng)
    given = RunInput((), (), b"", ())
    header["output_bytes"] = forge.rng.choice((0, 65_536, OUTPUT_BYTES_MAX))
    header["order"] = forge.fitting(
        "order",
        {
            "module": digest_of(module),
            "mode": "run",
            "function": "_start",
            "arguments": [],
            "input": input_hash(given, header["output_bytes"]),
            "fuel_max": 10_000_000,
            "memory_bytes_max": 2**24,
            "timeout_ms": 10_000,
            "created_ms": forge.now_ms(),
            "given_bytes": forge.rng.choice((len(module), len(module), 1)),
        },
    )
    header["module"] = forge.chance(0.9)
    return [b"", module] if header["module"] else [b""]


def _batch_parts(forge: Forge, header: dict[str, Any]) -> list[bytes]:
    parts: list[bytes] = []
    calls = []
    for _ in range(forge.rng.choice((1, 2, BATCH_CALLS_MAX))):
        method = forge.rng.choice([name for name in HEADERS if name != "peers.batch"])
        inner, some = message(forge, method)
        calls.append({"method": method, "header": encode(inner), "parts": len(some)})
        parts += some
    if forge.chance(0.9):
        header["calls"] = calls
    return parts[:FRAME_PARTS_MAX]


def _deploy_parts(forge: Forge, header: dict[str, Any]) -> list[bytes]:
    module = hostile_program(forge.rng)
    values = {
        "version": forge.rng.choice(("1", "2", "3")),
        "generation": forge.now_ms(),
        "module": digest_of(module),
        "environment": [],
        "fuel_max": 1_000_000,
        "memory_bytes_max": 2**24,
        "timeout_ms": 1_000,
        "output_bytes_max": 65_536,
        "concurrency": 1,
        "created_ms": forge.now_ms(),
    }
    header["deployment"] = forge.fitting("deployment", values)
    header["module"] = forge.chance(0.9)
    return [module] if header["module"] else []


def _proposal(forge: Forge, header: dict[str, Any]) -> list[bytes]:
    """Claim what a voucher says that another signed, or more of it; or seal what is, or is not."""
    if forge.chance(0.3):
        header["voucher"] = _seal(forge, header)
        return []
    if forge.chance(0.2):
        header["voucher"] = _paid(forge, header)
        return []
    due = [raw for raw in forge.raws["voucher"] if raw[1] == forge.focus.get("debit")]
    if due:
        raw, debtor, said = forge.rng.choice(due)
        header["voucher"] = raw
        values = {
            "peer": debtor,
            "link": None,
            "kind": "post",
            "unit": UNIT_CREDIT,
            "debit": debtor,
            "amount_micro": said["amount_micro"] + forge.rng.choice((0, 0, 1, 10**6)),
            "account": said["account"],
            "receipt": open_signed(raw, Voucher, network=None).id,
            "created_ms": forge.now_ms(),
        }
        header["half"] = forge.fitting("entry", values)
    return []


def _paid(forge: Forge, header: dict[str, Any]) -> bytes:
    """Claim to have paid who is asked, which is owed that then less, or owes it."""
    debtor, amount_micro = forge.focus["debit"], forge.rng.choice((1, 1_000, 10**9))
    said = Voucher(
        account=off_books_account(forge.own.node_id, debtor),
        provider=forge.own.node_id,
        customer=debtor,
        number=1,
        amount_micro=amount_micro,
        until_ms=forge.now_ms(),
        count=None,
    )
    values = {
        "peer": debtor,
        "link": None,
        "kind": "post",
        "unit": UNIT_CREDIT,
        "debit": debtor,
        "amount_micro": amount_micro,
        "account": said.account,
        "receipt": said.id,
        "created_ms": forge.now_ms(),
    }
    header["half"] = forge.fitting("entry", values)
    return said.to_bytes()


def _seal(forge: Forge, header: dict[str, Any]) -> bytes:
    """Seal the first entries that wait for it, and now and then others; return no bytes."""
    account, waiting = forge.focus["cubes"]
    named = waiting[: forge.rng.randint(0, len(waiting))]
    below = named[-1][0] + 1 if named else forge.rng.randint(0, 100)
    entry_ids = {entry_id for _, entry_id in named}
    if forge.chance(0.2):
        entry_ids.add(forge.rng.randbytes(32))
    values = {
        "peer": forge.focus["debit"],
        "link": None,
        "kind": "seal",
        "unit": UNIT_NONE,
        "amount_micro": below + forge.rng.choice((0, 0, 0, 1)),
        "account": account,
        "receipt": seal_hash(sorted(entry_ids)),
        "created_ms": forge.now_ms(),
    }
    header["half"] = forge.fitting("entry", values)
    return b""


def _head_parts(forge: Forge, _header: dict[str, Any]) -> list[bytes]:
    return [forge.signed("directory_head")]


def _space_parts(forge: Forge, header: dict[str, Any]) -> list[bytes]:
    """Ask for what the target has, mostly: a header drawn field by field names nothing."""
    known = forge.focus.get("space") or []
    if not known or forge.chance(0.1):
        return []
    owner, path, _ = forge.rng.choice(known)
    if "paths" in header:
        paths = [path for of, path, _ in known if of == owner]
        most = forge.rng.choice((1, 2, len(paths)))
        header |= {"owner": owner, "paths": forge.rng.sample(paths, min(most, len(paths)))}
    elif "cursors" in header:
        some = forge.rng.sample(known, min(forge.rng.choice((1, 2, 40)), len(known)))
        asked = {(of, _section_of(forge, path)) for of, path, _ in some}
        asked |= {(forge.rng.randbytes(32), "nodes") for _ in range(forge.rng.choice((0, 0, 400)))}
        header["cursors"] = [
            [of, section, *(forge.rng.choice((0, 0, 1, 3, 2**62)) for _ in range(3))]
            for of, section in sorted(asked)
        ]
    else:
        header |= {"owner": owner}
        if "section" in header:
            header["section"] = _section_of(forge, path)
    return []


def _section_of(forge: Forge, path: str) -> str:
    return forge.rng.choice((section_of(path), section_of(path), "rest/0", path))


def published(forge: Forge) -> tuple[str, bytes]:
    """Return a path where a node says where it is, that it leaves or whom it knows, and a value."""
    if forge.chance(0.1):
        return UserSpacePaths.DEPARTURE, encode({"v": 1, "begun_bytes": forge.rng.randrange(2**53)})
    if forge.chance(0.5):
        return UserSpacePaths.ADDRESS, forge.signed("address")
    introduction = forge.record(forge.kinds["introduction"])
    return below(UserSpacePaths.MEMBERS, forge.rng.choice((0, 1, 63))), encode(plain(introduction))


def _next_parts(forge: Forge, header: dict[str, Any]) -> list[bytes]:
    """Carry a record of the own space, mostly one that says where the sender is."""
    _space_parts(forge, header)
    if forge.chance(0.5):
        path, value = UserSpacePaths.ADDRESS, forge.signed("address")
        if forge.chance(0.1):
            path, value = published(forge)
        values = {
            "path": path,
            "sequence": forge.now_ms(),
            "written_ms": forge.now_ms(),
            "domain": forge.rng.randbytes(32),
            "stamp": event_bytes(0),
            "digest": value_digest(value),
            "size_bytes": len(value),
        }
        header |= {"value": value, "record": forge.fitting("space_record", values)}
    elif forge.chance(0.5):
        del header["record"]
    return []


def _prove_parts(forge: Forge, header: dict[str, Any]) -> list[bytes]:
    """List some of what is there, draw as a prober does, and name roots."""
    focus, rng = forge.focus, forge.rng
    locate = focus.get("locate") or rng.randbytes(32)
    shards = {item["column"]: item["root"] for item in focus.get("shards") or []}
    sizes = [rng.choice((1, 3, 2**32 - 1))]
    sizes += [rng.choice((1, LEAF_BYTES, 2**20, 2**22, 2**25)) for _ in range(2)]
    extents = [Extent(extent_name(locate, column), *sizes) for column in shards or (0,)]
    if forge.chance(0.5):
        extents = [Extent(extent_name(locate, MANIFEST_COLUMN), 1, *sizes[1:])]
    if forge.chance(0.2):
        extents += [
            Extent(extent_name(rng.randbytes(32), 1), *sizes) for _ in range(rng.choice((1, 300)))
        ]
    pages = rules.pages_of(extents)
    index = rules.index_of(pages)
    who = [focus[name] for name in ("host", "customer")]
    scope = rng.choice((rules.EVERYTHING, locate))
    asked = rules.Round(*who, focus["customer"], scope, focus["epoch"])
    nonce = rng.randbytes(32)
    commitment = rules.commitment_of(nonce, index)
    host_nonce = rules.nonce_of(focus["of_challenges"], asked, commitment)
    seed = rules.seed_of(asked, nonce, host_nonce, commitment)
    try:
        shown = [pages[number] for number in rules.pages_drawn(index, seed)]
        drawn = rules.leaves_drawn(index, shown, seed)
    except RecordInvalid:
        return pages
    header |= {
        "customer": asked.customer,
        "scope": scope,
        "epoch": asked.epoch,
        "nonce": nonce,
        "host_nonce": host_nonce,
        "roots": [
            [0, shards.get(extent.column, rng.randbytes(32)), None]
            if extent.column != MANIFEST_COLUMN
            else [0, rng.randbytes(32), focus.get("manifest") or rng.randbytes(32)]
            for extent, _, _ in drawn
        ],
    }
    return [index, *shown] if forge.chance(0.9) else [index, *pages]


PARTS: dict[str, Callable[[Forge, dict[str, Any]], list[bytes]]] = {
    "storage.put": _put_parts,
    "health.prove": _prove_parts,
    "storage.head_put": _head_parts,
    "space.next": _next_parts,
    "compute.run": _run_parts,
    "service.deploy": _deploy_parts,
    "ledger.propose": _proposal,
    "space.list": _space_parts,
    "space.records": _space_parts,
    "peers.batch": _batch_parts,
}


def message(forge: Forge, method: str) -> tuple[dict[str, Any], list[bytes]]:
    """Return header and parts of a message that a method might take."""
    header = _fill(forge, HEADERS[method], "")
    parts = PARTS[method](forge, header) if method in PARTS else []
    if forge.chance(0.1):
        header = forge.tampered(header)
    if forge.chance(0.05):
        header["more"] = many_items(forge)
    return header, parts


def many_items(forge: Forge) -> list[Any]:
    """Return what takes long to decode, for its bytes: many items, with or without look-alikes."""
    item = forge.rng.choice((0, b"", "ab", 0xD82A, b"\xd8\x2a\x41\x00"))
    size = forge.rng.choice((HEAD_BYTES_MAX // 2, 2 * HEAD_BYTES_MAX))
    return [item] * (size // len(encode(item)))
