"""What provenance records prove: one alone, and one as the parent of another.

That signatures and hashes hold says who claims what. That a function gives what its node
claims is proven by `rerun` alone (docs/design/programs.md, P4 to P8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xsc.base.encoding import decode
from xsc.base.errors import ArgumentInvalid, ProgramInvalid, ProofInvalid, XscError
from xsc.identity.envelope import Signed, open_signed
from xsc.programs.document import ModuleCall
from xsc.programs.frame import Call, saved_values
from xsc.programs.functions import Functions
from xsc.programs.limits import PROVENANCE_BYTES_MAX
from xsc.programs.numbers import (
    Value,
    check_value,
    digest_of,
    exported_type,
    from_number,
    from_record,
    from_space,
    item_of,
    to_number,
    to_space,
    value_bytes,
)
from xsc.programs.provenance import (
    ProvenanceInput,
    ProvenanceOutput,
    ProvenanceRecord,
)
from xsc.space.record import SpaceRecord, value_digest
from xsc.terms.execution import ExecutionReceipt, Number, Order


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ProofInvalid(fault)


def value_in(part: ProvenanceInput | ProvenanceOutput) -> Value | None:
    """Return the value of an input or output; None where the record has its hash alone.

    Raises:
        ProofInvalid: it is not of the type, or has another hash.
    """
    if part.value is None:
        return None
    _require(digest_of(part.value) == part.digest, f"'{part.name}' has another hash than its value")
    try:
        found: Any = decode(part.value)
        _require(
            isinstance(found, list) and len(found) == 2 and found[0] == part.type,
            f"the value of '{part.name}' is not of its type",
        )
        return from_record(part.type, found[1])
    except (ArgumentInvalid, XscError) as fault:
        raise ProofInvalid(f"the value of '{part.name}': {fault.message}") from None


def check_record(
    raw: bytes, *, network: bytes | None = None, author: bytes | None = None
) -> Signed[ProvenanceRecord]:
    """Return a provenance record, once all that it says of itself holds.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: as `open_signed`.
        ProofInvalid: it contradicts itself.
    """
    signed = open_signed(
        raw, ProvenanceRecord, network=network, author=author, size_max=PROVENANCE_BYTES_MAX
    )
    record, output = signed.record, signed.record.output
    names = {item.name for item in record.inputs}
    _require(len(names) == len(record.inputs), "an input is there twice")
    for item in record.inputs:
        value_in(item)
        stands = item.source.kind in {"value", "default", "set", "given"}
        _require(not (stands and item.parents), f"'{item.name}' has parents, and is no output")
    _require(bool(output.path) == (output.published is not None), "the output has no path")
    found = value_in(output)
    if found is not None and output.path:
        published = value_digest(to_space(output.type, found))
        _require(published == output.published, "another value was published than the output")
    if record.receipt is not None:
        _check_receipt(signed, record.receipt)
    return signed


def _check_receipt(signed: Signed[ProvenanceRecord], raw: bytes) -> None:
    """Refuse a receipt that is not of this run."""
    record = signed.record
    receipt = open_signed(
        raw, ExecutionReceipt, network=signed.network, size_max=PROVENANCE_BYTES_MAX
    )
    order = open_signed(
        receipt.record.order, Order, network=signed.network, size_max=PROVENANCE_BYTES_MAX
    )
    outcome = receipt.record.outcome
    _require(
        (order.record.provider, order.record.customer) == (receipt.author, signed.author)
        and order.author == signed.author,
        "the receipt is of a run for another node",
    )
    _require(
        (outcome.module, outcome.function, outcome.trap) == (record.version, record.function, None)
        and (order.record.module, order.record.function) == (record.version, record.function),
        "the receipt is of another function",
    )
    arguments = arguments_of(record)
    _require(
        arguments is None or tuple(outcome.arguments) == arguments == order.record.arguments,
        "the receipt is of other inputs",
    )
    _require(_gives(record, outcome.results), "the receipt has another result")


def _gives(record: ProvenanceRecord, results: Sequence[Number]) -> bool:
    """Say whether the results of a module are the output of a record."""
    output = record.output
    if output.result >= len(results):
        return False
    try:
        found = from_number(output.type, results[output.result])
    except ArgumentInvalid:
        return False
    return digest_of(value_bytes(output.type, found)) == output.digest


def arguments_of(record: ProvenanceRecord) -> tuple[Number, ...] | None:
    """Return the inputs of a record as a module takes them; None where one is not in it.

    Raises:
        ProofInvalid: a module takes no value of such a type.
    """
    arguments = []
    for item in record.inputs:
        _require(exported_type(item.type) is not None, f"a module takes no {item.type}")
        value = value_in(item)
        if value is None:
            return None
        arguments.append(to_number(item.type, value))
    return tuple(arguments)


def fault_of_link(
    signed: Signed[ProvenanceRecord], given: ProvenanceInput, behind: Signed[ProvenanceRecord]
) -> str:
    """Return why a record is not the parent of an input of another, or '' where it is.

    Both were checked alone.
    """
    child, parent = signed.record, behind.record
    source, output = given.source, parent.output
    if behind.author != (source.owner or signed.author):
        return "a record of another node than its source"
    if source.kind == "space":
        if (output.path, output.published) != (source.place, source.value):
            return "another output, or another value of it"
        published = value_in(output)
        if published is None:
            return ""
        return fault_of_value(given, to_space(output.type, published))
    if parent.program != child.program:
        return "an output of another program"
    if source.kind == "computation":
        if f"{parent.computation}.{output.name}" != source.place:
            return "another output"
        return "" if output.digest == given.digest else "another value of it"
    if output.local != source.place:
        return "an output that is not kept in this variable"
    if output.digest == given.digest:
        return ""
    kept, item = value_in(given), item_of(given.type)
    items = kept if isinstance(kept, tuple) else ()
    digests = {digest_of(value_bytes(item or "", value)) for value in items}
    return "" if kept is None or output.digest in digests else "a value that it does not keep"


def fault_of_value(given: ProvenanceInput, raw: bytes) -> str:
    """Return why an input is not what a record in the space has, or '' where it is."""
    try:
        found = from_space(given.type, raw)
    except ArgumentInvalid as fault:
        return fault.message
    same = digest_of(value_bytes(given.type, found)) == given.digest
    return "" if same else "another value than its record has"


def fault_of_source(given: ProvenanceInput, entry: Signed[SpaceRecord]) -> str:
    """Return what an input's source says falsely of the record that is now at its path, or ''.

    An older record is gone: nothing is left to compare.
    """
    source, record = given.source, entry.record
    if record.sequence > source.sequence and entry.id != source.record:
        return ""
    same = (entry.id, record.sequence, record.digest)
    named = (source.record, source.sequence, source.value)
    return "" if same == named else "another record than at its path"


def kept_value(given: ProvenanceInput, raw: bytes) -> Value | None:
    """Return an input of which its record has the hash alone, from what is kept of its program.

    None where something else is kept there by now.
    """
    try:
        for type_, record in saved_values(raw):
            if type_ == given.type:
                value = from_record(type_, record)
                if digest_of(value_bytes(type_, value)) == given.digest:
                    return value
    except XscError:
        return None
    return None


def rerun(
    record: ProvenanceRecord, functions: Functions, large: Mapping[str, Value]
) -> tuple[bool | None, str]:
    """Return whether a function gives the output again, and why that cannot be said.

    Args:
        record: of the output.
        functions: those that are here.
        large: inputs of which the record has the hash alone, as far as they are known.
    """
    try:
        function = functions.get(record.function)
    except ProgramInvalid as fault:
        return None, fault.message
    if function.hash != record.version:
        return None, f"this node has another version of {record.function}"
    values = [
        large.get(item.name) if item.value is None else value_in(item) for item in record.inputs
    ]
    if any(value is None for value in values):
        return None, "an input is too large to be in the record, and is not kept any more"
    try:
        bound, type_ = function.bind({item.name: item.type for item in record.inputs})
        given = {item.name: value for item, value in zip(record.inputs, values, strict=True)}
        found = function.run(bound, *(given[name] for name in function.order(given)))
        made = digest_of(value_bytes(type_, check_value(type_, found)))
    except (XscError, ArithmeticError, LookupError, TypeError, ValueError) as fault:
        return False, f"{record.function} fails on these inputs: {fault}"
    if (type_, made) != (record.output.type, record.output.digest):
        return False, f"{record.function} gives another value"
    return True, ""


def call_of(record: ProvenanceRecord) -> Call | str:
    """Return the call of a module that gives an output again, or why there is none."""
    arguments = arguments_of(record)
    if arguments is None:
        return "an input is too large to be in the record"
    limits: dict[str, int] = {}
    if record.receipt is not None:
        receipt = open_signed(
            record.receipt, ExecutionReceipt, network=None, size_max=PROVENANCE_BYTES_MAX
        )
        order = open_signed(
            receipt.record.order, Order, network=None, size_max=PROVENANCE_BYTES_MAX
        ).record
        limits = {
            "fuel": order.fuel_max,
            "memory_bytes": order.memory_bytes_max,
            "timeout_ms": order.timeout_ms,
        }
    call = ModuleCall(record.version, record.function, **limits)
    return Call(record.computation, call, arguments)


def judge_results(record: ProvenanceRecord, results: Sequence[Number]) -> tuple[bool, str]:
    """Return whether a module gave the output again, and what is wrong where it did not."""
    return (True, "") if _gives(record, results) else (False, "the module gives another value")


def is_module(record: ProvenanceRecord, functions: Functions) -> bool:
    """Say whether a record is about a module's export, and no function."""
    return record.receipt is not None or not functions.has(record.function)
