"""Passports of real nodes: what they prove to who never saw the network, and what breaks them."""

import ast
import functools
import random
from pathlib import Path

import pytest

from tests.meta.test_sizes import lines_of_code
from tests.sim.network import content, put, run
from tests.sim.test_checkpoints import recognised
from tests.sim.test_proven import PAY
from tests.unit.compute.programs import wasm
from xsc.base import encoding
from xsc.base.errors import NotFound, ProofInvalid
from xsc.base.jobs import JobSpec
from xsc.base.limits import EPOCH_MS, MIB
from xsc.cli.main import main
from xsc.health.challenge import SLOT_MS
from xsc.node.offline import passport as checking
from xsc.node.offline.verify import verify_file
from xsc.node.passports import passport, passport_bytes

# One worker plays all of them on one network.
pytestmark = pytest.mark.xdist_group("passports")


@pytest.fixture(autouse=True)
def _quick():
    """Sign for real, other than all simulations do: the check here has code of its own."""


@functools.cache
def made():
    """Return passports of two storage leases of a customer, and one of a provider's."""

    async def play(world):
        await recognised(world)
        owner = world.nodes[0]
        await put(owner, content(2 * MIB))
        leases = owner.market.store.all("customer")
        early = await passport(owner, leases[0].id)
        await world.skip(3 * EPOCH_MS, SLOT_MS)
        await owner.market.settlement.settle_all()
        await world.skip(2 * EPOCH_MS, SLOT_MS)
        held = [each for each in owner.market.store.all("customer") if each.use.held_bytes]
        own = [await passport(owner, each.id) for each in held[:2]]
        host = world.nodes[world.index_of(held[0].peer)]
        with pytest.raises(NotFound):
            await passport(owner, bytes(32))
        return early, *own, await passport(host, held[0].id)

    return run(71, 7, play, PAY)[0]


def lines(raw):
    return dict(line.split(": ", 1) for line in verify_file(raw).splitlines())


def test_a_passport_proves_a_lease_of_storage_to_who_never_saw_the_network():
    early, mine, _, theirs = made()
    said = lines(mine)
    assert len(mine) <= checking.PASSPORT_BYTES_MAX
    assert "which both signed" in said["passport"]
    assert "published it on" in said["slot"]
    assert "this one among them" in said["count"]
    assert "4 of 4 leaves" in said["challenge"]
    assert "signed by both" in said["entry"]
    assert "4 of 4 co-signers signed, 3 needed" in said["checkpoint"]
    assert lines(early)["entry"] == "not shown"
    assert lines(theirs)["challenge"] == "not shown", "only who asked has the answer"
    assert lines(theirs)["entry"] == said["entry"]


def test_a_passport_is_shown_line_by_line(tmp_path, capsys):
    (tmp_path / "mine").write_bytes(made()[1])
    assert main(["verify", str(tmp_path / "mine")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in shown] == [*lines(made()[1])]


def test_a_passport_of_compute_has_no_challenge():
    async def play(world):
        customer = world.nodes[0]
        await customer.compute.run(JobSpec.invoke(wasm("add"), "add", ["1", "2"]))
        await customer.market.settlement.settle_all()
        (lease,) = customer.market.store.all("customer")
        return await passport(customer, lease.id)

    said = lines(run(72, 2, play)[0])
    assert "compute under lease" in said["passport"]
    assert said["challenge"] == "not shown"
    assert "signed by both" in said["entry"]


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"\x81" * 100_000,
        b"\xff" * 10,
        b"aa\x1c",
        b"\x9b\x7f" + b"\xff" * 7,
        bytes(checking.PASSPORT_BYTES_MAX),
    ],
)
def test_what_only_begins_like_a_passport_is_none(rest):
    with pytest.raises(ProofInvalid):
        verify_file(made()[1][:4] + rest)


def test_what_would_be_too_large_goes_without_its_largest_parts():
    lease = encoding.decode(made()[1])["lease"]
    large = b"x" * (100 * 1024)
    parts = {"slot": [large, b""], "need": [large, b""], "challenge": large}
    kept = encoding.decode(passport_bytes(lease, parts))
    assert (kept["challenge"], kept["need"] is None) == (None, False)
    kept = encoding.decode(passport_bytes(lease, {**parts, "count": large}))
    assert (kept["challenge"], kept["need"], kept["slot"] is None) == (None, None, False)


def test_every_changed_bit_of_a_sample_is_found():
    raw, draw = made()[1], random.Random(1)
    said = verify_file(raw)
    for place in {*range(200), *draw.sample(range(len(raw)), 1_500)}:
        changed = bytearray(raw)
        changed[place] ^= 1 << draw.randrange(8)
        try:
            assert verify_file(bytes(changed)) == said
        except ProofInvalid:
            continue


def test_no_part_of_another_lease_takes_the_place_of_its_own():
    _, mine, other, _ = (encoding.decode(raw) for raw in made())
    for name in mine.keys() - {"v", "kind", "need"}:
        if mine[name] == other[name]:
            continue  # One checkpoint is over both entries.
        with pytest.raises(ProofInvalid):
            verify_file(encoding.encode({**mine, name: other[name]}))
    for name in ("counter", "paid", "note", "path", "voucher"):
        less = {**mine, name: [] if name == "path" else None}
        if name == "note":
            less["path"] = mine["path"]
        with pytest.raises(ProofInvalid):
            verify_file(encoding.encode(less))


def test_the_check_has_at_most_200_lines_and_shares_no_code_with_what_it_checks():
    source = Path(checking.__file__).read_text()
    assert lines_of_code(source) <= 200
    named = {
        node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("xsc")
    }
    assert named == {"xsc.base.errors"}
