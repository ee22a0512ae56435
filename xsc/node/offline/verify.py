"""Checks a signed record offline: what `xsc verify FILE` proves, in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from xsc.allocation.clearing_record import Clearing, check_clearing
from xsc.base import errors, limits, units
from xsc.base.ids import short, to_text
from xsc.base.text import count_of, cut, printable
from xsc.compute.jobs import evidence, quorum, receipts
from xsc.compute.wasm.values import format_bits
from xsc.identity.envelope import R, Signed, kind_of, open_signed
from xsc.ledger import audit, checkpoint, entry, fork
from xsc.market.lease import check_grant, run_price
from xsc.market.pricing import why
from xsc.node.offline import passport
from xsc.programs import numbers, provenance
from xsc.programs.why import check_record, value_in
from xsc.space.record import SpaceRecord
from xsc.storage.repair.drain_proof import DRAIN_PROOF_BYTES_MAX, DrainProof, check_proof
from xsc.terms import quote, slot, storage_receipt
from xsc.terms.clearing import ClearingProof, SpaceValue
from xsc.terms.deployment import Deployment
from xsc.terms.execution import Dissent, ExecutionReceipt, Order
from xsc.terms.lease import OWN_COMPUTE, OWN_STORAGE, Lease, LeaseRequest
from xsc.terms.voucher import LeaseCount, Voucher

SHOWN_CHARS = 60
"""Of a value of a program."""
Execution: TypeAlias = tuple[Signed[Order], Signed[ExecutionReceipt]]


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise errors.ProofInvalid(fault)


def _keeps(broken: str | None) -> None:
    """Return if a record breaks none of the rules of its package."""
    if broken is not None:
        raise errors.ProofInvalid(broken)


@contextmanager
def proving() -> Iterator[None]:
    """Take for no proof what a peer would be blamed for."""
    try:
        yield
    except (errors.PeerError, errors.LimitError) as fault:
        raise errors.ProofInvalid(fault.message, hint=fault.hint) from None


def _open(
    raw: bytes, kind: type[R], signer: str = "", *, network: bytes | None = None
) -> Signed[R]:
    """Return a record, once it is signed by whom it names.

    Args:
        raw: its bytes.
        kind: of the record.
        signer: the field that names who must have signed it; the caller checks that without.
        network: that of the record that it is inside of.
    """
    signed = open_signed(raw, kind, network=network, size_max=limits.PEER_BODY_BYTES_MAX)
    if signer:
        name = kind.KIND.replace("_", " ")
        expected = getattr(signed.record, signer)
        _require(signed.author == expected, f"the {name} is not signed by its {signer}")
    return signed


def _open_lease(raw: bytes, network: bytes | None = None) -> tuple[Lease, LeaseRequest]:
    signed = _open(raw, Lease, network=network)
    asked = _open(signed.record.request, LeaseRequest, "customer", network=signed.network).record
    _require(signed.author == asked.provider, "the lease is not signed by its provider")
    _keeps(check_grant(asked, signed.record))
    return signed.record, asked


def _lease(raw: bytes) -> str:
    lease, asked = _open_lease(raw)
    what = f"{asked.kind} for now"
    if asked.cleared:
        level = units.format_level(asked.kind, lease.level)
        what = f"{level} of {asked.kind}, cleared ahead of use,"
    return (
        f"lease: {short(asked.provider)} grants {short(asked.customer)} {what} at "
        f"{units.format_credits(asked.price)} credits a {quote.UNITS[asked.kind]}"
    )


def explain_price(raw: bytes) -> tuple[LeaseRequest, str]:
    """Return the request of a signed lease, and how its price came about.

    Raises:
        ProofInvalid, RecordInvalid, SignatureInvalid: it proves nothing.
    """
    _, asked = _open_lease(raw)
    return asked, why(asked)


def _voucher(raw: bytes) -> str:
    voucher = _open(raw, Voucher, "customer").record
    return (
        f"voucher: {short(voucher.customer)} owes {short(voucher.provider)} "
        f"{units.format_credits(voucher.amount_micro)} credits in all, up to "
        f"{units.format_time(voucher.until_ms)}"
    )


def _storage_receipt(raw: bytes) -> str:
    receipt = _open(raw, storage_receipt.StorageReceipt, "host").record
    held = units.format_size(sum(shard.size_bytes for shard in receipt.shards))
    return (
        f"storage receipt: {short(receipt.host)} holds {len(receipt.shards)} shards, {held}, "
        f"of object {short(receipt.locate)} for {short(receipt.customer)}"
    )


def _deletion_receipt(raw: bytes) -> str:
    receipt = _open(raw, storage_receipt.DeletionReceipt, "host").record
    leases = {item.lease_id for item in receipt.freed}
    _require(len(leases) == len(receipt.freed), "the receipt names a lease twice")
    return (
        f"deletion receipt: {short(receipt.host)} holds nothing more of object "
        f"{short(receipt.locate)} for {short(receipt.customer)}, "
        f"and freed {units.format_size(receipt.freed_bytes)}"
    )


def _lease_count(raw: bytes) -> str:
    count = _open(raw, LeaseCount, "provider").record
    ids = [line.lease_id for line in count.leases]
    _require(len(set(ids)) == len(ids), "the count names a lease twice")
    named = ", ".join(short(lease_id) for lease_id in ids) or "none"
    return (
        f"lease count: {short(count.provider)} counted {units.format_credits(count.amount_micro)} "
        f"credits in all for {short(count.customer)}, and has these leases and no others: {named}; "
        "without its customer's voucher nothing of it is owed"
    )


def _open_execution(
    raw: bytes, lease: bytes | None = None, network: bytes | None = None
) -> Execution:
    """Return order and receipt of an execution receipt, once all that it says of itself holds.

    Args:
        raw: the receipt's bytes.
        lease: the lease under which it was run, for the price.
        network: that of the evidence that it is inside of.
    """
    signed = _open(raw, ExecutionReceipt, network=network)
    receipt = signed.record
    order = receipts.open_order(receipt, signed.network)
    asked = order.record
    _require(order.author == asked.customer, "the order is not signed by its customer")
    _require(signed.author == asked.provider, "the receipt is not signed by the order's provider")
    price = _price_of(asked, signed, lease)
    if price is None:
        # It is the lease's, which is not here: the amount must follow from some price.
        steps = receipts.billed_steps(asked, receipt.outcome, receipt.observed)
        price = units.ceil_div(receipt.amount_micro * limits.PRICE_FUEL, steps)
    _keeps(receipts.check_receipt(order, receipt, price))
    return order, signed


def _price_of(asked: Order, receipt: Signed[ExecutionReceipt], lease: bytes | None) -> int | None:
    """Return the price that an order was run at, where it is known."""
    if asked.customer == asked.provider:
        _require(lease is None, "it was run by the customer's own node, where nobody is paid")
        return 0
    is_own = asked.lease_id in (OWN_STORAGE, OWN_COMPUTE)
    _require(not is_own, "between two nodes there is no run without lease")
    if lease is None:
        return None
    _, terms = _open_lease(lease, receipt.network)
    _require(terms.lease_id == asked.lease_id, "it was run under another lease than the one given")
    _require(
        (terms.customer, terms.provider, terms.kind) == (asked.customer, asked.provider, "compute"),
        "the lease is between others, or not for compute",
    )
    _require(asked.created_ms < terms.end_ms, "the order was made when the lease was over")
    return run_price(terms)


def _execution_receipt(raw: bytes, module: bytes | None, lease: bytes | None) -> str:
    order, signed = _open_execution(raw, lease)
    receipt, outcome, asked = signed.record, signed.record.outcome, order.record
    if module is not None:
        _require(
            hashlib.sha256(module).digest() == outcome.module,
            "the receipt is for another module than the one given",
        )
        _keeps(receipts.check_compiled(receipt, len(module)))
    if receipt.request is not None:
        return _request(signed)
    given = ", ".join(format_bits(number.type, number.bits) for number in outcome.arguments)
    call = f"{outcome.function}({given})"
    if outcome.mode == "batch":
        call = f"a batch of calls of {outcome.function}"
    if outcome.trap is not None:
        ended = f"ended by {outcome.trap}"
    elif outcome.mode == "run":
        ended = f"exited with {outcome.exit_code}"
    elif outcome.mode == "batch":
        ended = f"gave results of hash {outcome.output.hex()[:16]}"
    else:
        results = " ".join(format_bits(number.type, number.bits) for number in outcome.results)
        ended = f"gave {results or 'nothing'}"
    compiling = priced = ""
    if saved := receipt.observed.saved_bytes:
        given = units.format_size(asked.given_bytes)
        ended += f", {units.format_size(saved)} of {given} were there already"
    if compiled := receipt.observed.compiled_bytes:
        compiling = f" and {compiled * limits.COMPILE_BYTE_FUEL} to compile"
    if asked.grants:
        ended += f", seeing the provider's {' and '.join(asked.grants)}"
    if asked.customer != asked.provider:
        priced = f", {'under' if lease is None else 'as agreed in'} lease {short(asked.lease_id)}"
    return (
        f"execution receipt: {short(signed.author)} ran {call} of module "
        f"{outcome.module.hex()[:16]} for {short(asked.customer)}: it {ended}, "
        f"{outcome.fuel_used} fuel{compiling}, "
        f"{units.format_credits(receipt.amount_micro)} credits{priced}"
    )


def _open_dissent(raw: bytes) -> tuple[Execution, Execution]:
    """Return both orders and receipts of evidence, once it is certain that one is false."""
    signed = _open(raw, Dissent)
    dissent = signed.record
    first = _open_execution(dissent.first, network=signed.network)
    second = _open_execution(dissent.second, network=signed.network)
    _require(
        quorum.same_content(first[0].record, second[0].record),
        "the two receipts are not of two providers for the same order",
    )
    customers = (signed.author, dissent.customer)
    _require(
        customers == (first[0].author, first[0].author),
        "the evidence is not signed by the customer of the orders",
    )
    _require(
        quorum.contradict(first[1].record.outcome, second[1].record.outcome),
        "the two receipts do not contradict each other",
    )
    return first, second


def open_runs(raw: bytes) -> tuple[Execution, ...]:
    """Return order and receipt of an execution receipt, or both orders and receipts of evidence.

    Raises:
        ProofInvalid: the first thing that is wrong.
    """
    with proving():
        if kind_of(raw, size_max=limits.PEER_BODY_BYTES_MAX) == Dissent.KIND:
            return _open_dissent(raw)
        return (_open_execution(raw),)


def _dissent(raw: bytes) -> str:
    (order, first), (_, second) = _open_dissent(raw)
    fields = ", ".join(evidence.differing(first.record, second.record))
    return (
        f"dissent: {short(first.author)} and {short(second.author)} ran the same order of "
        f"{short(order.author)} for module {order.record.module.hex()[:16]} and signed different "
        f"outcomes ({fields}): at least one of the receipts is false"
    )


def _deployment(raw: bytes) -> str:
    record = _open(raw, Deployment, "owner").record
    return (
        f"deployment: {short(record.owner)} has {short(record.provider)} hold version "
        f"{record.version} of '{record.name}', module {record.module.hex()[:16]}"
    )


def _request(signed: Signed[ExecutionReceipt]) -> str:
    """Return what a receipt for a request of a service proves."""
    receipt, outcome = signed.record, signed.record.outcome
    assert receipt.request is not None
    record = _open(receipt.order, Deployment, "owner", network=signed.network).record
    ended = f"ended by {outcome.trap}" if outcome.trap else f"exited with {outcome.exit_code}"
    return (
        f"execution receipt: {short(signed.author)} answered request "
        f"{to_text(receipt.request.nonce)} to version {record.version} of '{record.name}' of "
        f"{short(record.owner)}: it {ended}, {outcome.fuel_used} fuel, "
        f"{units.format_credits(receipt.amount_micro)} credits"
    )


def _clearing(raw: bytes) -> str:
    proof = _open(raw, ClearingProof).record
    clearing = check_clearing(proof.clearing, proof.named)
    record, tiers = clearing.record, clearing.clear().tiers
    given = sum(line.given for line in tiers)
    stages = ", ".join(f"{line.given} {line.tier}" for line in tiers)
    kind = record.slot.kind
    return (
        f"clearing: {short(record.provider[0])} divided "
        f"{units.format_level(kind, record.capacity * slot.STEP[kind])} of {kind} in slot "
        f"{to_text(record.slot.slot_id)} among {count_of(len(record.participants), 'customer')} by "
        f"{record.slot.rule}: {given} granted ({stages}), as the rule says; the capacity, what "
        "credit left of each need, that nobody and no recognition is missing, and that nothing of "
        f"this had been replaced are the provider's word: {_inputs(clearing)}"
    )


def _inputs(clearing: Clearing) -> str:
    """Return number and date of each value that a clearing was computed from."""
    return "; ".join(
        f"{short(each.node)} commitment {_dated(each.commitment_value)}, "
        + (
            "no recognition"
            if each.recognition_value is None
            else f"recognition {_dated(each.recognition_value)}"
        )
        for each in (clearing.provider, *clearing.customers.values())
    )


def _dated(value: SpaceValue) -> str:
    of = _open(value.record, SpaceRecord).record
    return f"{of.sequence} of {units.format_time(of.written_ms)}"


def _provenance(raw: bytes) -> str:
    signed = check_record(raw)
    record, output = signed.record, signed.record.output
    inputs = ", ".join(f"{item.name} = {_value(item)}" for item in record.inputs)
    place = f" at '{output.path}'" if output.path else ""
    return (
        f"provenance: {short(signed.author)} says that {record.function}({inputs}) gave "
        f"{_value(output)}{place}, as {record.computation}.{output.name} of program "
        f"{short(record.program)} in frame {record.frame}; that it does is proven by a second run"
    )


def _value(part: provenance.ProvenanceInput | provenance.ProvenanceOutput) -> str:
    value = value_in(part)
    if value is None:
        return f"a {part.type} of hash {part.digest.hex()[:16]}"
    return cut(printable(numbers.format_value(part.type, value)), SHOWN_CHARS)


def _drain(raw: bytes) -> str:
    proof, orders = check_proof(raw)
    said, customers = proof.record, {order.author for order in orders}
    objects = {order.record.locate for order in orders}
    rest = f", and still holds {count_of(said.left_objects, 'object')}" if said.left_objects else ""
    if said.unlisted_orders:
        rest += f"; it has no room for {count_of(said.unlisted_orders, 'order')} more"
    return (
        f"drain proof: {count_of(len(customers), 'customer')} of {short(proof.author)} ordered the "
        f"deletion of {count_of(len(objects), 'object')}, "
        f"{units.format_size(said.released_bytes)}{rest}"
    )


_CHECKS: Final[Mapping[str, Callable[[bytes], str]]] = {
    Dissent.KIND: _dissent,
    storage_receipt.StorageReceipt.KIND: _storage_receipt,
    storage_receipt.DeletionReceipt.KIND: _deletion_receipt,
    Deployment.KIND: _deployment,
    DrainProof.KIND: _drain,
    Lease.KIND: _lease,
    LeaseCount.KIND: _lease_count,
    Voucher.KIND: _voucher,
    ClearingProof.KIND: _clearing,
    entry.SettledEntry.KIND: audit.verify_settled,
    provenance.ProvenanceRecord.KIND: _provenance,
}


def _checkpoint(raw: bytes) -> str:
    found = checkpoint.open_checkpoint(raw, network=None)
    lists = {"co-signers": found.cosigners, "former co-signers": found.former}
    cosigned = ", and ".join(
        f"{found.signed_by(nodes)} of {len(nodes)} {name} signed, "
        f"{checkpoint.quorum(len(nodes))} needed"
        for name, nodes in lists.items()
        if nodes
    )
    return (
        f"checkpoint: the ledger of {short(found.author)} has {found.size} entries from "
        f"{found.first_seq} on under the root {found.root.hex()[:16]}; "
        f"{cosigned or 'it names no co-signers'}"
    )


def _fork(raw: bytes) -> str:
    found = fork.open_fork(raw, network=None)
    return (
        f"fork: {short(found.author)} signed two records that contradict each other, "
        f"at entry {found.seq} of its ledger"
    )


def _passport(raw: bytes) -> str:
    return passport.verify_passport(raw, _say_passport)


def _say_passport(found: Mapping[str, Any]) -> str:
    """Return what a passport proves, a line for each part, and which it has not."""
    asked, level = found["request"].said, found["lease"].said["level"]
    kind, clearing = asked["kind"], found["lease"].said["clearing"]
    host, customer = short(asked["provider"]), short(asked["customer"])
    granted = f"{units.format_level(kind, level)} of {kind} ahead of use" if level else kind
    said = {
        "passport": f"{host} serves {customer} {granted} under lease {short(asked['lease_id'])}, "
        f"which both signed, at {units.format_credits(asked['price'])} credits a "
        f"{quote.UNITS[kind]}, {units.format_time(asked['start_ms'])} to "
        f"{units.format_time(asked['end_ms'])}",
        **dict.fromkeys(("slot", "need", "voucher", "count", "challenge", "entry"), "not shown"),
        "clearing": "none" if clearing is None else f"{to_text(clearing)}, by the provider's word",
        "checkpoint": "none covers an entry here",
    }
    for name in ("slot", "need"):
        which = "none, it was leased for now" if asked[name] is None else to_text(asked[name])
        if (part := found[name]) is not None:
            at = units.format_time(part.said["written_ms"])
            which += f", as {short(part.by)} published it on {at}"
        elif asked[name] is not None:
            which += ", not shown"
        said[name] = which
    if (part := found["voucher"]) is not None:
        said["voucher"] = (
            f"{customer} owes {host} {units.format_credits(part.said['amount_micro'])} credits in "
            f"all for their leases, up to {units.format_time(part.said['until_ms'])}"
        )
    if (part := found["count"]) is not None:
        said["count"] = (
            f"{host} counted {count_of(len(part.said['leases']), 'lease')}, this one among them, "
            f"which the voucher pays, at {units.format_time(part.said['counted_ms'])}"
        )
    if (part := found["challenge"]) is not None:
        states = part.said["states"]
        said["challenge"] = (
            f"{host} showed {states.count('ok')} of {len(states)} leaves that were asked for, of "
            f"all its leases with {customer}, {units.format_time(part.said['said_ms'])}; that "
            "their roots are of what was stored is the word of the customer"
        )
    if found["half"] is not None:
        half, _, is_last = found["half"]
        said["entry"] = (
            f"{units.format_credits(half.said['amount_micro'])} credits booked, signed by both, "
            f"{units.format_time(half.said['created_ms'])}, for "
            f"{'this voucher' if is_last else 'a voucher before this one'}"
        )
    if found["note"] is not None:
        author, number, size, signed, named = found["note"]
        needed = checkpoint.quorum(named)
        cosigned = f"{signed} of {named} co-signers signed, {needed} needed"
        said["checkpoint"] = (
            f"the entry is number {number} of {size} in the ledger of {short(author)}; "
            f"{cosigned if named else 'it names no co-signers'}"
        )
        if not named or signed < needed:
            said["checkpoint"] += ", so that it keeps no other ledger is its word"
    return "\n".join(f"{name}: {each}" for name, each in said.items())


_NO_RECORDS: Final[Mapping[bytes, Callable[[bytes], str]]] = {
    b"xsc/": _checkpoint,
    b"x": _fork,
    b"\xadav\x01": _passport,
}
"""What is no signed record begins with bytes that none does."""


def verify_file(raw: bytes, module: bytes | None = None, lease: bytes | None = None) -> str:
    """Return, in words for people, what a file proves: a line, of a passport one for each part.

    Args:
        raw: the bytes of an execution, storage or deletion receipt, dissent, deployment,
            lease, lease count, quote, voucher, clearing, provenance, drain proof or exported ledger
            entry, the proof of a fork, a checkpoint or a passport.
        module: a module that an execution receipt must be about.
        lease: the lease that such a receipt must be under, and billed by.

    Raises:
        ProofInvalid: the first thing that is wrong.
    """
    with proving():
        for begin, check in _NO_RECORDS.items():
            if raw.startswith(begin):
                return check(raw)
        try:
            kind = kind_of(raw, size_max=DRAIN_PROOF_BYTES_MAX)
        except errors.PeerError as fault:
            if fault.hint:  # it is of a newer version
                raise
            raise errors.ProofInvalid("this is no signed record, so it proves nothing") from None
        if kind == ExecutionReceipt.KIND:
            return printable(_execution_receipt(raw, module, lease))
        _require(kind in _CHECKS, f"a record of kind '{kind[:40]}' is nothing that can be verified")
        _require(lease is None, "a lease goes with an execution receipt alone")
        return printable(_CHECKS[kind](raw))
