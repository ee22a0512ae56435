"""Every format of version 1: read as it was, and with every byte changed.

tests/vectors/formats_v1.json and formats_v1_storage.json hold bytes that were made
once, without this package. Whatever comes later must read them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import TypeAdapter

import xsc
from tests.strategies import vectors
from xsc.base.encoding import decode
from xsc.base.errors import XscError
from xsc.base.limits import MANIFEST_BYTES_MAX
from xsc.identity.envelope import Record, open_signed
from xsc.market.lease_store import ACCOUNTS, USES, read_row, write_row
from xsc.net.calls import frame
from xsc.net.peers import invitation
from xsc.storage.catalogue import names
from xsc.storage.object import capability, manifest
from xsc.storage.object.capability import ReadCapability
from xsc.storage.shardstore import bodies

GOLDEN = vectors("formats_v1")
KEPT = vectors("formats_v1_storage")
CASES = [*GOLDEN["formats"], *KEPT["formats"]]
NETWORK = bytes.fromhex(GOLDEN["network"])
FLIPS = (0x01, 0x80)


def records() -> dict[str, type[Record]]:
    """Return every record of the package by its kind."""
    for module in pkgutil.walk_packages(xsc.__path__, "xsc."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(kind: type[Record]) -> Iterator[type[Record]]:
        for sub in kind.__subclasses__():
            if sub.__module__.startswith("xsc."):
                yield sub
            yield from below(sub)

    found = list(below(Record))
    assert len({kind.KIND for kind in found}) == len(found)
    return {kind.KIND: kind for kind in found}


RECORDS = records()


@dataclass(frozen=True)
class Format:
    """How a format is read and written again; what is sealed or signed cannot be."""

    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes] | None = None


def read_text(raw: bytes, parse: Callable[[str], Any]) -> Any:
    return parse(raw.decode("latin-1"))


def write_frame(value: frame.Frame) -> bytes:
    head = frame.pack_head(value.header, value.parts)
    return b"".join([head, *(part.data for part in value.parts)])


def row_format(kind: TypeAdapter[Any]) -> Format:
    return Format(lambda raw: read_row(kind, raw), lambda row: write_row(kind, row))


def format_of(case: dict[str, Any]) -> Format:
    match case["format"]:
        case "signed":
            kind = RECORDS[case["kind"]]
            author = decode(bytes.fromhex(case["bytes"]), size_max=MANIFEST_BYTES_MAX)["by"]
            return Format(lambda raw: open_signed(raw, kind, network=NETWORK, author=author))
        case "record":
            kind = RECORDS[case["kind"]]
            return Format(kind.from_bytes, lambda value: value.to_bytes())
        case "sealed":
            secret, digest = (bytes.fromhex(case[n]) for n in ("read_secret", "manifest_hash"))
            verify = ReadCapability(secret, digest).verify
            return Format(lambda raw: manifest.open_manifest(raw, verify))
        case "capability":
            return Format(
                lambda raw: read_text(raw, capability.parse), lambda value: value.to_text().encode()
            )
        case "invitation":
            return Format(
                lambda raw: read_text(raw, invitation.from_string),
                lambda value: value.to_text().encode(),
            )
        case "frame":
            return Format(lambda raw: frame.unpack(memoryview(raw)), write_frame)
        case "body":
            return Format(bodies.decode_body, bodies.encode_body)
        case "entry":
            return Format(bodies.decode_entry, bodies.encode_entry)
        case "number" | "sweep" | "ended":
            return Format(bodies.decode_number, bodies.encode_number)
        case "gone":
            return Format(bodies.decode_gone, bodies.encode_gone)
        case "last":
            return Format(names.read_last, lambda last: names.last_row("", last)[1] or b"")
        case "use":
            return row_format(USES)
        case "account":
            return row_format(ACCOUNTS)
        case "damaged":
            return Format(bodies.decode_damaged, bodies.encode_damaged)
        case other:
            raise AssertionError(other)


def by_name(case: dict[str, Any]) -> str:
    return case["name"]


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_what_version_1_wrote_is_read_and_written_the_same(case):
    raw, form = bytes.fromhex(case["bytes"]), format_of(case)
    value = form.read(raw)
    if form.write is not None:
        assert form.write(value) == raw
    elif case["format"] == "signed":
        assert value.raw == raw
        assert value.record.to_bytes() == decode(raw, size_max=MANIFEST_BYTES_MAX)["body"]


def test_no_kind_of_version_1_was_given_up():
    assert {case["kind"] for case in CASES if "kind" in case} <= set(RECORDS)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_every_changed_byte_is_refused_or_is_what_was_written(case):
    """A named error, or a value that is those very bytes; of what is signed or sealed, no value."""
    raw, form = bytes.fromhex(case["bytes"]), format_of(case)
    for place in range(len(raw)):
        for flip in FLIPS:
            changed = bytearray(raw)
            changed[place] ^= flip
            try:
                value = form.read(bytes(changed))
            except XscError:
                continue
            assert form.write is not None, (place, flip)
            if case["format"] == "capability":
                # The checksum finds every other character; only its case may differ.
                assert value == form.read(raw), (place, flip)
            elif case["format"] == "invitation":
                # Text is taken in capitals, too, and with spaces.
                assert form.read(form.write(value)) == value, (place, flip)
            else:
                assert form.write(value) == changed, (place, flip)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_every_cut_is_refused_or_is_what_was_written(case):
    raw, form = bytes.fromhex(case["bytes"]), format_of(case)
    for changed in [*(raw[:size] for size in range(len(raw))), raw + b"\0", raw + raw]:
        try:
            value = form.read(changed)
        except XscError:
            continue
        assert form.write is not None
        assert form.write(value) == changed
