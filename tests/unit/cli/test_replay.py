"""xsc compute verify, and xsc verify with a lease: on real receipts, without a node."""

from __future__ import annotations

from functools import partial

import pytest

from tests.unit.compute.programs import FOLDER, job
from tests.unit.compute.test_receipts import an_order
from xsc.base.errors import ProofInvalid
from xsc.compute.engine import Machine
from xsc.compute.inputs import RunInput, input_hash
from xsc.compute.limits import Limits
from xsc.compute.receipts import make_receipt
from xsc.identity.envelope import sign
from xsc.node.verify import verify_file
from xsc.terms.execution import Number
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Quote

PRICE = 3_000_000


@pytest.fixture(scope="module")
def made(alice, bob, network):
    """Return order and receipt of a run of fib(20) at PRICE."""
    a_job = job("fib", "fib", ("i32", b"\x14\0\0\0"))
    order = an_order(
        alice,
        bob,
        module=a_job.module_hash,
        function="fib",
        arguments=(Number(type="i32", bits=b"\x14\0\0\0"),),
        fuel_max=a_job.limits.fuel,
        input=input_hash(RunInput(), Limits().output_bytes),
    )
    machine = Machine()
    try:
        result = machine.run(a_job)
    finally:
        machine.close()
    signed = sign(order, alice, network)
    return signed, make_receipt(signed, result, price=PRICE, started_ms=78, wall_ms=9)


@pytest.fixture
def signed(made, bob, network):
    return sign(made[1], bob, network).raw


def test_a_receipt_is_run_again(xsc, made, bob, network, tmp_path):
    _, receipt = made
    wrong_fuel = receipt.outcome.model_copy(update={"fuel_used": 5})
    other = receipt.outcome.model_copy(update={"engine": "wasmtime-py/49.0.0"})
    told = {
        "agrees": receipt,
        "differs": receipt.model_copy(
            update={"outcome": wrong_fuel, "amount_micro": PRICE * 5 * 2 // 10**6}
        ),
        "cannot tell": receipt.model_copy(update={"outcome": other}),
    }
    codes = {"agrees": 0, "differs": 6, "cannot tell": 7}
    for name, record in told.items():
        path = tmp_path / name
        path.write_bytes(sign(record, bob, network).raw)
        done = xsc("compute", "verify", path, "--module", FOLDER / "fib.wasm")
        assert (done.code, done.text) == (codes[name], f"{name}\n")
        assert bool(done.err) == (name != "agrees")
    answer = xsc("compute", "verify", path, "--module", FOLDER / "fib.wasm", "--json").json
    assert answer["verdict"] == "cannot_tell"
    assert "wasmtime-py/49.0.0" in answer["reasons"][0]
    again = xsc("compute", "verify", path, "--module", FOLDER / "add.wasm")
    assert (again.code, "another module" in again.err) == (2, True)
    given = ("--stdin", FOLDER / "add.wasm")
    again = xsc("compute", "verify", path, "--module", FOLDER / "fib.wasm", *given)
    assert (again.code, "is not the input" in again.err) == (2, True)
    again = xsc("compute", "verify", path, "--module", FOLDER / "fib.wasm", "--batch", path, "x")
    assert (again.code, "no other input" in again.err) == (2, True)
    again = xsc("compute", "verify", FOLDER / "fib.wasm", "--module", FOLDER / "fib.wasm")
    assert (again.code, "proof_invalid" in again.err) == (6, True)


@pytest.fixture
def a_lease(made, alice, bob, network):
    """Give a way to make the lease of the run, or another one."""
    return partial(make_lease, made[0].record, alice, bob, network)


def make_lease(order, alice, bob, network, **changed):
    rungs = dict.fromkeys(("price_mutual", "price_one_way", "reserve", "price"), PRICE)
    quote = Quote(
        provider=bob.node_id,
        customer=alice.node_id,
        kind=changed.get("kind", "compute"),
        tier="open",
        available=10**12,
        valid_from_ms=0,
        valid_until_ms=99,
        nonce=bytes(16),
        **rungs,
    )
    fields = {
        "lease_id": order.lease_id,
        "provider": bob.node_id,
        "customer": alice.node_id,
        "kind": "compute",
        "quantity": 10**9,
        "quantity_min": 1,
        "price": PRICE,
        "start_ms": 0,
        "end_ms": 99,
    }
    request = LeaseRequest(quote=sign(quote, bob, network).raw, **{**fields, **changed})
    granted = Lease(request=sign(request, alice, network).raw, quantity=10**9, granted_ms=1)
    return sign(granted, bob, network).raw


def test_a_receipt_is_billed_by_its_lease(xsc, signed, a_lease, tmp_path):
    (tmp_path / "r").write_bytes(signed)
    (tmp_path / "l").write_bytes(a_lease())
    assert "as agreed in lease" in xsc("verify", tmp_path / "r", "--lease", tmp_path / "l").text
    assert ", under lease" in xsc("verify", tmp_path / "r").text
    alone = xsc("verify", tmp_path / "l", "--lease", tmp_path / "l")
    assert (alone.code, "execution receipt alone" in alone.err) == (6, True)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"price": PRICE + 1_000_000}, "does not follow from the fuel and the lease's price"),
        ({"lease_id": b"M" * 32}, "under another lease"),
        ({"kind": "storage"}, "not for compute"),
        ({"end_ms": 77}, "when the lease was over"),
    ],
)
def test_a_receipt_that_its_lease_does_not_bear_out(signed, a_lease, changed, reason):
    with pytest.raises(ProofInvalid, match=reason):
        verify_file(signed, lease=a_lease(**changed))


def test_between_two_nodes_there_is_no_run_without_a_lease(made, alice, bob, network):
    order = sign(made[0].record.model_copy(update={"lease_id": bytes(32)}), alice, network)
    receipt = made[1].model_copy(update={"order": order.raw})
    with pytest.raises(ProofInvalid, match="no run without lease"):
        verify_file(sign(receipt, bob, network).raw)


def test_a_lease_is_saved(xsc, stand_in, tmp_path):
    stand_in.streams("/v1/market/leases/l1", b"lease")
    assert xsc("market", "lease", "l1", "-o", tmp_path / "l").code == 0
    assert (tmp_path / "l").read_bytes() == b"lease"
    assert xsc("market", "lease", "../x", "-o", tmp_path / "m").code == 2
