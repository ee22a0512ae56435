from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import RecordInvalid, TooLarge
from xsc.base.limits import (
    LEAF_BYTES,
    MANIFEST_BYTES_MAX,
    PEER_BODY_BYTES_MAX,
    SEGMENT_BYTES,
    SHARDS_MAX,
)
from xsc.base.merkle import Part, root_of
from xsc.base.units import held_bytes
from xsc.storage.object.erasure import Code, StorageShard, cut
from xsc.storage.object.inventory import (
    PLACE_BYTES,
    ColumnPresence,
    FoundShard,
    HeldColumn,
    HeldObject,
    HeldRecord,
    Span,
    Wanted,
    cut_found,
)
from xsc.storage.object.messages import (
    GET_MAX,
    LEASES_TOLD_MAX,
    SHARD_BYTES_MAX,
    ObjectRecord,
    find_message,
    get_answer,
    get_message,
    holds_answer,
    holds_message,
    put_message,
    read_find,
    read_found,
    read_get,
    read_got,
    read_held,
    read_holds,
    read_most,
    read_put,
    read_stat,
    read_stated,
    stat_answer,
    stat_message,
)

LEASE, LOCATE, HASH = b"1" * 32, b"l" * 32, b"h" * 32
SHARDS = [(3, shard) for shard in cut(b"some data", Code())[:2]]
RECORD = ObjectRecord(b"sealed", root_of(b"sealed"), HASH)
WANTED = [Wanted(0, 1, root_of(b"one")), Wanted(2, 3, root_of(b"two"))]


def test_a_put_comes_back():
    header, parts = put_message(LEASE, LOCATE, 5, SHARDS, RECORD)
    request = read_put(header, parts)
    assert (request.lease_id, request.locate, request.generation) == (LEASE, LOCATE, 5)
    assert request.shards == tuple(SHARDS)
    assert request.sealed == b"sealed"
    each = [len(s.data) for _, s in SHARDS] + [len(b"sealed")]
    assert request.held_bytes == sum(map(held_bytes, each))
    header, parts = put_message(LEASE, LOCATE, 5, SHARDS, None)
    assert read_put(header, parts).sealed is None
    header, parts = put_message(LEASE, LOCATE, 5, [], RECORD)
    request = read_put(header, parts)
    assert (request.shards, request.sealed) == ((), b"sealed")


WRONG = [
    None,
    -1,
    2**70,
    True,
    "text",
    b"short",
    [],
    {},
    [1],
    [{}],
    [{"segment": -1, "column": 0}],
    [{"segment": 2**32, "column": 0}] * 2,
    [{"segment": 0, "column": 256}] * 2,
    [{"segment": 0, "column": "0"}] * 2,
]


@pytest.mark.parametrize("name", ["lease", "locate", "generation", "shards"])
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_every_field_of_a_put_is_checked(name, value):
    header, parts = put_message(LEASE, LOCATE, 5, SHARDS, RECORD)
    with pytest.raises(RecordInvalid):
        read_put(header | {name: value}, parts)
    del header[name]
    with pytest.raises(RecordInvalid):
        read_put(header, parts)


def test_parts_must_fit_what_is_announced():
    header, parts = put_message(LEASE, LOCATE, 5, SHARDS, RECORD)
    for wrong in ([], parts[:2], [*parts, parts[0]]):
        with pytest.raises(RecordInvalid):
            read_put(header, wrong)
    with pytest.raises(RecordInvalid):
        read_put(header | {"manifest": False}, parts)
    with pytest.raises(RecordInvalid):
        read_put(header | {"shards": [], "manifest": False}, [])


def test_whether_a_put_brings_a_manifest_is_a_truth_value():
    name = "manifest"
    header, parts = put_message(LEASE, LOCATE, 5, SHARDS, RECORD)
    for wrong in (None, 0, 1, "true", b"", [], {}):
        with pytest.raises(RecordInvalid, match=name):
            read_put(header | {name: wrong}, parts)
    del header[name]
    with pytest.raises(RecordInvalid, match=name):
        read_put(header, parts)


def test_a_manifest_of_a_put_is_bounded():
    header, _ = put_message(LEASE, LOCATE, 5, [], RECORD)
    large = Part(memoryview(bytes(MANIFEST_BYTES_MAX + 1)), b"r" * 32)
    with pytest.raises(TooLarge):
        read_put(header, [large])
    assert read_put(header, [Part(large.data[:-1], large.root)]).shards == ()


def test_a_shard_named_twice_is_refused():
    header, parts = put_message(LEASE, LOCATE, 5, [SHARDS[0], SHARDS[0]], None)
    with pytest.raises(RecordInvalid, match="twice"):
        read_put(header, parts)


@pytest.mark.parametrize("size", [0, SEGMENT_BYTES + 1])
def test_shards_have_a_size(size):
    shard = StorageShard(0, bytes(size), b"r" * 32)
    header, parts = put_message(LEASE, LOCATE, 5, [(0, shard)], None)
    with pytest.raises(TooLarge):
        read_put(header, parts)


def test_a_get_comes_back():
    assert read_get(get_message(LOCATE, 5, WANTED)) == (LOCATE, 5, WANTED, 2 * SEGMENT_BYTES)
    found = [FoundShard("ok", b"one"), FoundShard("missing")]
    header, parts = get_answer(found)
    assert read_got(header, parts, WANTED) == found


def test_a_shard_with_another_root_is_corrupt_whatever_the_host_says():
    header, parts = get_answer([FoundShard("ok", b"one"), FoundShard("ok", b"twO")])
    assert read_got(header, parts, WANTED) == [FoundShard("ok", b"one"), FoundShard("corrupt")]


@pytest.mark.parametrize(
    ("states", "parts"),
    [
        (["ok"], [b"one"]),
        (["ok", "ok"], [b"one"]),
        (["ok", "missing"], [b"one", b"two"]),
        (["ok", "lost"], [b"one"]),
        (["ok", 1], [b"one"]),
        ("ok", [b"one"]),
        (None, []),
    ],
)
def test_an_answer_to_another_question_is_refused(states, parts):
    with pytest.raises(RecordInvalid):
        read_got({"states": states}, parts, WANTED)


@pytest.mark.parametrize("name", ["locate", "generation", "shards"])
@pytest.mark.parametrize("value", [None, -1, "text", b"short", [1], [{"segment": 0, "column": 0}]])
def test_every_field_of_a_get_is_checked(name, value):
    with pytest.raises(RecordInvalid):
        read_get(get_message(LOCATE, 5, WANTED) | {name: value})


def test_a_get_of_leaves_comes_back():
    wanted = [Wanted(1, 2, HASH, Span(3, 5, 100_000)), *WANTED]
    assert read_get(get_message(LOCATE, 5, wanted))[:3] == (LOCATE, 5, wanted)
    data = bytes(3 * LEAF_BYTES - 9)
    root = root_of(data)
    span = Span(1, 3, len(data))
    found = [
        cut_found(data, root, span),
        FoundShard("missing"),
        cut_found(b"two", WANTED[1].root, None),
    ]
    asked = [Wanted(0, 1, root, span), *WANTED]
    header, parts = get_answer(found)
    assert read_got(header, parts, asked) == [
        FoundShard("ok", data[LEAF_BYTES:]),
        FoundShard("missing"),
        FoundShard("ok", b"two"),
    ]
    for other in (Span(0, 2, len(data)), Span(1, 3, len(data) - 1), Span(1, 2, len(data))):
        (bad, *_) = read_got(header, parts, [Wanted(0, 1, root, other), *WANTED])
        assert bad == FoundShard("corrupt")


def test_leaves_of_another_size_of_shard_are_missing_and_of_another_root_not_given():
    data = bytes(LEAF_BYTES + 1)
    assert cut_found(data, root_of(data), Span(0, 1, LEAF_BYTES)) == FoundShard("missing")
    assert cut_found(data, HASH, Span(0, 1, len(data))) is None


@pytest.mark.parametrize(
    "leaves",
    [
        None,
        7,
        [],
        [0, 1],
        [0, 0, 9],
        [1, 0, 9],
        [-1, 1, 9],
        [0, 2, LEAF_BYTES],
        [0, 1, 0],
        [0, 1, SEGMENT_BYTES + 1],
        [False, True, 9],
        [b"", 1, 9],
    ],
)
def test_leaves_that_no_shard_has_are_refused(leaves):
    item = {"segment": 0, "column": 0, "root": HASH, "leaves": leaves}
    with pytest.raises(RecordInvalid, match="leaves are"):
        read_get({"locate": LOCATE, "generation": 5, "shards": [item], "most": 1})


def test_a_get_is_bounded():
    wanted = [Wanted(segment, 0, HASH) for segment in range(GET_MAX + 1)]
    assert read_get(get_message(LOCATE, 5, wanted[:-1]))[2] == wanted[:-1]
    with pytest.raises(RecordInvalid, match="at most"):
        read_get(get_message(LOCATE, 5, wanted))


@pytest.mark.parametrize(
    "again",
    [WANTED[0], Wanted(0, 1, HASH), Wanted(0, 1, WANTED[0].root, Span(0, 1, 3))],
    ids=["the same", "another root", "leaves of it"],
)
def test_a_get_names_each_shard_once(again):
    with pytest.raises(RecordInvalid, match="twice"):
        read_get(get_message(LOCATE, 5, [*WANTED, again]))


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 9), st.integers(0, 9)),
        st.none() | st.integers(1, SEGMENT_BYTES),
        max_size=GET_MAX,
    )
)
def test_what_a_get_may_take_is_known_before_anything_is_read(asked):
    wanted = [
        Wanted(*place, HASH, None if size is None else Span(0, 1, size))
        for place, size in asked.items()
    ]
    sizes = [SHARD_BYTES_MAX if size is None else size for size in asked.values()]
    most = read_most(get_message(LOCATE, 5, wanted))
    assert most == min(PEER_BODY_BYTES_MAX, sum(sizes))


def test_a_stat_comes_back():
    for after in (b"", bytes(PLACE_BYTES), b"\xff" * PLACE_BYTES):
        assert read_stat(stat_message(LOCATE, 5, HASH, after)) == (LOCATE, 5, HASH, after)
    for wrong in (b"", bytes(PLACE_BYTES - 1), bytes(PLACE_BYTES + 1), 1):
        with pytest.raises(RecordInvalid):
            read_stat(stat_message(LOCATE, 5, HASH) | {"after": wrong})
    held = HeldObject(
        (HeldColumn(LEASE, 3, 7, HASH, 1), HeldColumn(LEASE, 4, 7, HASH, 0, 1_000)),
        "corrupt",
        (HeldRecord(LEASE, 2_000), HeldRecord(HASH)),
        sizes=((HASH, LEASE, 5), (LEASE, HASH, 7), (LEASE, LEASE, 9)),
    )
    told = replace(held, sizes=(), mine=((HASH, 7), (LEASE, 9)))
    assert read_stated(stat_answer(held, LEASE)) == told, "others' leases are not told"
    assert read_stated(stat_answer(held, LOCATE)) == replace(told, mine=())


def test_a_stat_of_more_leases_than_can_be_told_tells_none():
    sizes = tuple((HASH, n.to_bytes(32, "big"), 1) for n in range(LEASES_TOLD_MAX + 1))
    assert read_stated(stat_answer(HeldObject((), "ok", sizes=sizes), HASH)).mine is None
    assert len(read_stated(stat_answer(HeldObject((), "ok", sizes=sizes[1:]), HASH)).mine) == 4096


@pytest.mark.parametrize(
    "change",
    [
        {"record": "fine"},
        {"record": None},
        {"columns": [1]},
        {"columns": [{"column": 1}]},
        {"columns": None},
        {"mine": 1},
        {"records": None},
        {"mine": [1]},
        {"mine": [[b"short", 1]]},
        {"mine": [[bytes(32), -1]]},
        {"mine": [[bytes(32), 2**63]]},
        {"mine": [[bytes(32)]]},
        {"mine": [[bytes(32), 1]] * 4097},
    ],
)
def test_a_bad_stat_is_refused(change):
    with pytest.raises(RecordInvalid):
        read_stated(stat_answer(HeldObject((), "ok"), LEASE) | change)
    for name in ("locate", "generation", "manifest"):
        with pytest.raises(RecordInvalid):
            read_stat(stat_message(LOCATE, 5, HASH) | {name: None})


def test_a_find_comes_back():
    assert read_find(find_message(LOCATE, HASH, 5)) == (LOCATE, HASH, 5)
    assert read_found([b"sealed"]) == b"sealed"
    assert read_found([]) is None


def test_a_bad_find_is_refused():
    with pytest.raises(RecordInvalid):
        read_found([b"sealed", b"more"])
    for name in ("locate", "manifest"):
        for wrong in (b"short", None, 5, "l" * 32, [LOCATE]):
            with pytest.raises(RecordInvalid, match=name):
                read_find(find_message(LOCATE, HASH, 5) | {name: wrong})
        with pytest.raises(RecordInvalid, match=name):
            read_find({key: HASH for key in ("locate", "manifest") if key != name})


ROOTS = [root_of(b"%d" % column) for column in range(SHARDS_MAX)]


@pytest.mark.parametrize("count", [0, 1, 6, SHARDS_MAX])
def test_a_question_for_what_is_held_comes_back(count):
    asked = holds_message(LOCATE, 2**32 - 1, HASH, ROOTS[:count])
    assert read_holds(asked) == (LOCATE, 2**32 - 1, HASH, ROOTS[:count])
    for held in (range(0), range(count), range(1, count, 2)):
        for record in (False, True):
            said = ColumnPresence(frozenset(held), record)
            assert read_held(holds_answer(said), count) == said


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("locate", wrong) for wrong in (None, b"short", 5, "l" * 32, [LOCATE])),
        *(("manifest", wrong) for wrong in (None, b"short", 5, "m" * 32, [HASH])),
        *(("generation", wrong) for wrong in (None, -1, 2**32, True, "0", b"0", [0])),
        *(("roots", wrong) for wrong in (None, HASH, 5, {}, "r", [None], [5], [[HASH]])),
        ("roots", [b"short"]),
        ("roots", [*ROOTS[:3], HASH + b"1"]),
        ("roots", ["r" * 32]),
        ("roots", [*ROOTS, HASH]),
    ],
)
def test_a_bad_question_for_what_is_held_is_refused(name, wrong):
    asked = holds_message(LOCATE, 0, HASH, ROOTS[:6])
    with pytest.raises(RecordInvalid):
        read_holds(asked | {name: wrong})
    del asked[name]
    with pytest.raises(RecordInvalid):
        read_holds(asked)


@pytest.mark.parametrize(
    "change",
    [
        *({"columns": wrong} for wrong in (None, 5, {}, b"", "0", [None], ["0"], [b"0"], [[0]])),
        *({"columns": wrong} for wrong in ([-1], [6], [255], [2**64 - 1], [True], [0] * 7)),
        *({"record": wrong} for wrong in (None, 0, 1, "true", b"", [])),
    ],
)
def test_a_bad_answer_of_what_is_held_is_refused(change):
    answer = holds_answer(ColumnPresence(frozenset({0, 5}), record=True))
    with pytest.raises(RecordInvalid):
        read_held(answer | change, 6)
    for name in change:
        with pytest.raises(RecordInvalid):
            read_held({key: value for key, value in answer.items() if key != name}, 6)


def test_nothing_is_held_of_an_object_without_columns():
    assert read_held({"columns": [], "record": True}, 0) == ColumnPresence(frozenset(), record=True)
    with pytest.raises(RecordInvalid):
        read_held({"columns": [0], "record": True}, 0)
