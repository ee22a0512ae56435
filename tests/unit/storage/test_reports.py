"""Which copy of a column a report names."""

from tests.unit.storage.repair.test_damage import NODES, held, manifest_of
from xsc.storage.object.inventory import HeldObject
from xsc.storage.service import best_columns
from xsc.storage.transfer.get import Located

MANIFEST = manifest_of(2)
LOST, SPARE = HeldObject((), "missing"), b"s" * 32


def best(holders, answers, manifest=MANIFEST, *, placed=False):
    located = Located(b"L" * 32, manifest, b"sealed", tuple(holders))
    return best_columns(located, answers, placed=placed)


def test_the_best_copy_of_each_column_is_named():
    holders = [(node,) for node in NODES]
    holders[0] = (NODES[0], SPARE)
    answers = {node: held(MANIFEST, column) for column, node in enumerate(NODES)}
    answers |= {NODES[0]: LOST, SPARE: held(MANIFEST, 0), NODES[3]: LOST, NODES[4]: None}
    columns, states = best(holders, answers)
    assert columns == [SPARE, *NODES[1:]]
    assert states == ["ok", "ok", "ok", "missing", "unreachable", "ok"]


def test_a_silent_node_is_named_for_one_column():
    holders = [NODES[:1]] * 2 + [()] * 4
    columns, states = best(holders, {NODES[0]: None})
    assert columns == [NODES[0], None, None, None, None, None]
    assert states == ["unreachable"] * 2 + ["missing"] * 4


def test_each_holder_of_an_inline_object_counts_for_one_column():
    manifest = MANIFEST.model_copy(update={"inline": b"x"})
    answers = dict.fromkeys(NODES[:2], HeldObject((), "ok"))
    columns, states = best([tuple(NODES[:2])] * 6, answers, manifest)
    assert columns == [*NODES[:2], None, None, None, None]
    assert states == ["ok", "ok", *["missing"] * 4]


def test_a_host_of_several_columns_of_an_inline_object_has_them_by_the_placement():
    manifest = MANIFEST.model_copy(update={"inline": b"x"})
    lone = NODES[0]
    answers = {lone: HeldObject((), "ok")}
    assert best([(lone,)] * 6, answers, manifest, placed=True) == ([lone] * 6, ["ok"] * 6)


def test_a_silent_host_is_named_for_every_column_that_it_was_given():
    holders = [(NODES[0],), (NODES[0],), *((node,) for node in NODES[2:])]
    answers = {node: held(MANIFEST, column) for column, node in enumerate(NODES)}
    columns, states = best(holders, answers | {NODES[0]: None}, placed=True)
    assert columns == [NODES[0], NODES[0], *NODES[2:]]
    assert states == ["unreachable"] * 2 + ["ok"] * 4
