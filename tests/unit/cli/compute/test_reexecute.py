"""xsc compute verify, and xsc verify with a lease: on real receipts, without a node."""

from __future__ import annotations

import json
from functools import partial

import pytest

from tests.unit.compute.jobs.test_receipts import an_order
from tests.unit.compute.programs import FOLDER, job
from xsc.base.errors import ProofInvalid
from xsc.base.ids import to_text
from xsc.base.limits import PRICE_FUEL
from xsc.compute.jobs.receipts import bill, make_receipt
from xsc.compute.wasm.engine import Machine
from xsc.compute.wasm.inputs import RunInput, input_hash
from xsc.compute.wasm.limits import Limits
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.node.offline.verify import verify_file
from xsc.terms.execution import Dissent, Number
from xsc.terms.lease import OWN_COMPUTE, OWN_STORAGE, Lease, LeaseRequest

PRICE = 3 * PRICE_FUEL


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
            update={"outcome": wrong_fuel, "amount_micro": PRICE * 5 * 2 // PRICE_FUEL}
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
    fields = {
        "lease_id": order.lease_id,
        "provider": bob.node_id,
        "customer": alice.node_id,
        "kind": "compute",
        "slot": bytes(16),
        "window": (0, 99),
        "tier": "open",
        "need": None,
        "level": 0,
        "price": PRICE,
        "start_ms": 0,
        "end_ms": 99,
    }
    request = LeaseRequest(**{**fields, **changed})
    granted = Lease(request=sign(request, alice, network).raw, level=request.level)
    return sign(granted, bob, network).raw


def test_a_receipt_is_billed_by_its_lease(xsc, signed, a_lease, tmp_path):
    (tmp_path / "r").write_bytes(signed)
    (tmp_path / "l").write_bytes(a_lease())
    assert "as agreed in lease" in xsc("verify", tmp_path / "r", "--lease", tmp_path / "l").text
    assert ", under lease" in xsc("verify", tmp_path / "r").text
    alone = xsc("verify", tmp_path / "l", "--lease", tmp_path / "l")
    assert (alone.code, "execution receipt alone" in alone.err) == (6, True)


def test_a_run_within_a_cleared_rate_costs_nothing_more(made, bob, network, a_lease):
    rate = a_lease(need=bytes(16), level=10**6)
    free = sign(made[1].model_copy(update={"amount_micro": 0}), bob, network).raw
    assert "0.000000 credits, as agreed in lease" in verify_file(free, lease=rate)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"price": PRICE + PRICE_FUEL}, "does not follow from the fuel and the lease's price"),
        ({"lease_id": b"M" * 32}, "under another lease"),
        ({"kind": "storage"}, "not for compute"),
        ({"end_ms": 77}, "when the lease was over"),
    ],
)
def test_a_receipt_that_its_lease_does_not_bear_out(signed, a_lease, changed, reason):
    with pytest.raises(ProofInvalid, match=reason):
        verify_file(signed, lease=a_lease(**changed))


@pytest.mark.parametrize("lease_id", [OWN_STORAGE, OWN_COMPUTE])
def test_between_two_nodes_there_is_no_run_without_a_lease(made, alice, bob, network, lease_id):
    order = sign(made[0].record.model_copy(update={"lease_id": lease_id}), alice, network)
    receipt = made[1].model_copy(update={"order": order.raw})
    with pytest.raises(ProofInvalid, match="no run without lease"):
        verify_file(sign(receipt, bob, network).raw)


def test_a_lease_is_saved(xsc, stand_in, tmp_path):
    stand_in.streams("/v1/market/leases/l1", b"lease")
    assert xsc("market", "lease", "l1", "-o", tmp_path / "l").code == 0
    assert (tmp_path / "l").read_bytes() == b"lease"
    assert xsc("market", "lease", "../x", "-o", tmp_path / "m").code == 2


@pytest.fixture
def dissent(made, alice, bob, network):
    """Evidence against bob, who bills one fuel more than the other provider."""
    carol = KeyPair(b"\xca" * 32)
    orders = [made[0].record]
    orders.append(orders[0].model_copy(update={"provider": carol.node_id, "lease_id": b"O" * 32}))
    receipts = []
    for order, key, more in zip(orders, (bob, carol), (1, 0), strict=True):
        outcome = made[1].outcome
        outcome = outcome.model_copy(update={"fuel_used": outcome.fuel_used + more})
        changed = {
            "order": sign(order, alice, network).raw,
            "outcome": outcome,
            "amount_micro": bill(order, outcome, made[1].observed, PRICE),
        }
        receipts.append(sign(made[1].model_copy(update=changed), key, network).raw)
    record = Dissent(customer=alice.node_id, first=receipts[1], second=receipts[0], found_ms=80)
    return sign(record, alice, network).raw, to_text(carol.node_id), to_text(bob.node_id)


def test_evidence_convicts_the_one_whose_receipt_is_false(xsc, dissent, tmp_path):
    raw, honest, liar = dissent
    (tmp_path / "d").write_bytes(raw)
    assert "signed different outcomes (fuel_used)" in xsc("verify", tmp_path / "d").text
    words = ("compute", "verify", tmp_path / "d", "--module", FOLDER / "fib.wasm")
    done = xsc(*words)
    assert done.code == 0
    assert done.text == f"{honest[:10]} agrees\n{liar[:10]} differs\n"
    answer = xsc(*words, "--json").json
    assert answer["verdict"] == "convicts"
    assert [row["verdict"] for row in answer["providers"]] == ["agrees", "differs"]


def test_evidence_is_listed_and_saved(xsc, stand_in, tmp_path):
    row = {
        "id": "e" * 52,
        "found_ms": 0,
        "module": "ab" * 32,
        "function": "fib",
        "first": "a" * 52,
        "first_name": "ann",
        "second": "b" * 52,
        "second_name": "ben",
        "differs": ["fuel_used", "results"],
    }
    stand_in.answers("GET", "/v1/compute/evidence", {"evidence": [row]})
    text = xsc("compute", "evidence").text
    assert all(word in text for word in ("eeeeeeeeee", "ann", "ben", "fuel_used, results"))
    assert xsc("compute", "evidence", "--json").json == {"evidence": [row]}
    stand_in.streams("/v1/compute/evidence/eee", b"record")
    assert xsc("compute", "evidence", "eee", "-o", tmp_path / "e").code == 0
    assert (tmp_path / "e").read_bytes() == b"record"
    assert xsc("compute", "evidence", "eee").code == 2
    assert xsc("compute", "evidence", "../e", "-o", tmp_path / "f").code == 2


def test_who_does_not_agree_is_named(xsc, stand_in):
    told = {"need": 2, "of": 5, "agreeing": ["a" * 52, "e" * 52], "dissenting": ["b" * 52]}
    told |= {"uncounted": ["c" * 52], "silent": ["d" * 52], "receipts": [], "evidence": ["f" * 52]}
    answer = {
        "results": ["5"],
        "fuel_used": 4,
        "memory_peak_bytes": 0,
        "wall_ms": 1,
        "provider": "a" * 52,
        "trap": None,
        "receipt": "",
        "saved_bytes": 0,
        "compiled_bytes": 0,
        "verification": told,
    }
    stand_in.answers("POST", "/v1/jobs", answer)
    words = ("compute", "invoke", FOLDER / "add.wasm", "add", "2", "3", "--verify", "3of5")
    done = xsc(*words)
    assert (done.code, done.text) == (0, "5\n")
    lines = done.err.splitlines()
    assert [line.split()[1] for line in lines] == ["bbbbbbbbbb", "cccccccccc", "dddddddddd"]
    assert all(line.startswith("warning: ") for line in lines)
    assert "agree: aaaaaaaaaa, eeeeeeeeee" in xsc(*words, "-v").err
    assert xsc(*words, "--on", "bob").code == 2
    batch = ("compute", "invoke", FOLDER / "add.wasm", "add", "--batch", FOLDER / "add.wasm")
    assert xsc(*batch, "--verify", "2of3").code == 2


def test_lines_that_the_fuel_of_all_did_not_reach_are_judged_too(xsc, tmp_path):
    (tmp_path / "lines").write_text("\n" * 5)
    module = FOLDER / "endless.wasm"
    words = ("compute", "invoke", module, "spin", "--batch", tmp_path / "lines", "--local")
    done = xsc(*words, "--fuel", "2500", "--item-fuel", "1000", "--receipt", tmp_path / "r")
    used = [json.loads(line)["fuel_used"] for line in done.out.splitlines()]
    assert used == [1000, 1000, 500, 0, 0]
    check = ("compute", "verify", tmp_path / "r", "--module", module)
    check += ("--batch", tmp_path / "lines", "--item-fuel", "1000")
    assert xsc(*check).text == "agrees\n"
