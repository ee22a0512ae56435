from dataclasses import replace

import pytest

from xsc.base.errors import RecordInvalid, TooLarge
from xsc.base.limits import LEAF_BYTES, SEGMENT_BYTES
from xsc.base.merkle import root_of
from xsc.storage.erasure import Code, StorageShard, cut
from xsc.storage.held import (
    Found,
    FoundRecord,
    HeldColumn,
    HeldObject,
    HeldRecord,
    Span,
    Wanted,
    cut_found,
)
from xsc.storage.messages import (
    LEASES_TOLD_MAX,
    ObjectRecord,
    find_answer,
    find_message,
    get_answer,
    get_message,
    put_message,
    read_find,
    read_found,
    read_get,
    read_got,
    read_put,
    read_stat,
    read_stated,
    stat_answer,
    stat_message,
)

LEASE, LOCATE, HASH = b"1" * 32, b"l" * 32, b"h" * 32
SHARDS = [(3, shard) for shard in cut(b"some data", Code())[:2]]
RECORD = ObjectRecord(b"sealed", root_of(b"sealed"), HASH, b"placement", b"p" * 32, 1)
WANTED = [Wanted(0, 1, root_of(b"one")), Wanted(2, 3, root_of(b"two"))]


def test_a_put_comes_back():
    header, parts = put_message(LEASE, LOCATE, 5, SHARDS, RECORD)
    request = read_put(header, parts)
    assert (request.lease_id, request.locate, request.generation) == (LEASE, LOCATE, 5)
    assert request.shards == tuple(SHARDS)
    assert (request.sealed, request.placement) == (b"sealed", b"placement")
    assert request.size_bytes == sum(len(s.data) for _, s in SHARDS) + len(b"sealedplacement")
    header, parts = put_message(LEASE, LOCATE, 5, SHARDS, None)
    assert read_put(header, parts).sealed is None


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
        read_put(header | {"placement": None}, parts)
    with pytest.raises(RecordInvalid):
        read_put(header | {"placement": 5}, parts)
    with pytest.raises(RecordInvalid):
        read_put(header | {"shards": [], "placement": None}, [])


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
    assert read_get(get_message(LOCATE, 5, WANTED)) == (LOCATE, 5, WANTED)
    found = [Found("ok", b"one"), Found("missing")]
    header, parts = get_answer(found)
    assert read_got(header, parts, WANTED) == found


def test_a_shard_with_another_root_is_corrupt_whatever_the_host_says():
    header, parts = get_answer([Found("ok", b"one"), Found("ok", b"twO")])
    assert read_got(header, parts, WANTED) == [Found("ok", b"one"), Found("corrupt")]


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
    assert read_get(get_message(LOCATE, 5, wanted)) == (LOCATE, 5, wanted)
    data = bytes(3 * LEAF_BYTES - 9)
    root = root_of(data)
    span = Span(1, 3, len(data))
    found = [cut_found(data, root, span), Found("missing"), cut_found(b"two", WANTED[1].root, None)]
    asked = [Wanted(0, 1, root, span), *WANTED]
    header, parts = get_answer(found)
    assert read_got(header, parts, asked) == [
        Found("ok", data[LEAF_BYTES:]),
        Found("missing"),
        Found("ok", b"two"),
    ]
    for other in (Span(0, 2, len(data)), Span(1, 3, len(data) - 1), Span(1, 2, len(data))):
        (bad, *_) = read_got(header, parts, [Wanted(0, 1, root, other), *WANTED])
        assert bad == Found("corrupt")


def test_leaves_of_another_size_of_shard_are_missing_and_of_another_root_not_given():
    data = bytes(LEAF_BYTES + 1)
    assert cut_found(data, root_of(data), Span(0, 1, LEAF_BYTES)) == Found("missing")
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
        read_get({"locate": LOCATE, "generation": 5, "shards": [item]})


def test_a_get_is_bounded():
    with pytest.raises(RecordInvalid):
        read_get(get_message(LOCATE, 5, WANTED * 33))


def test_a_stat_comes_back():
    assert read_stat(stat_message(LOCATE, 5, HASH)) == (LOCATE, 5, HASH)
    held = HeldObject(
        (HeldColumn(LEASE, 3, 7, HASH, 1), HeldColumn(LEASE, 4, 7, HASH, 0, 1_000)),
        "corrupt",
        5,
        (HeldRecord(LEASE, 5, 2_000), HeldRecord(HASH, 4)),
        sizes=((HASH, LEASE, 5), (LEASE, HASH, 7), (LEASE, LEASE, 9)),
    )
    told = replace(held, sizes=(), mine=((HASH, 7), (LEASE, 9)))
    assert read_stated(stat_answer(held, LEASE)) == told, "others' leases are not told"
    assert read_stated(stat_answer(held, LOCATE)) == replace(told, mine=())


def test_a_stat_of_more_leases_than_can_be_told_tells_none():
    sizes = tuple((HASH, n.to_bytes(32, "big"), 1) for n in range(LEASES_TOLD_MAX + 1))
    assert read_stated(stat_answer(HeldObject((), "ok", sizes=sizes), HASH)).mine is None
    assert len(read_stated(stat_answer(HeldObject((), "ok", sizes=sizes[1:]), HASH)).mine) == 4096


def test_a_stat_of_a_release_that_told_no_leases_is_read():
    answer = stat_answer(HeldObject((), "ok"), HASH)
    del answer["mine"]
    assert read_stated(answer).mine is None


@pytest.mark.parametrize(
    "change",
    [
        {"record": "fine"},
        {"record": None},
        {"columns": [1]},
        {"columns": [{"column": 1}]},
        {"columns": None},
        {"mine": None},
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
    assert read_find(find_message(LOCATE, HASH)) == (LOCATE, HASH)
    found = FoundRecord(b"sealed", (b"one", b"two"))
    assert read_found(*find_answer(found)) == found
    assert read_found(*find_answer(None)) is None


@pytest.mark.parametrize(
    ("placements", "parts", "fault"),
    [
        ([b"one"], [], RecordInvalid),
        ([], [b"sealed"], RecordInvalid),
        ([1], [b"sealed"], RecordInvalid),
        (None, [], RecordInvalid),
        ([b"x"] * 17, [b"sealed"], RecordInvalid),
        ([bytes(2**18 + 1)], [b"sealed"], TooLarge),
    ],
)
def test_a_bad_find_is_refused(placements, parts, fault):
    with pytest.raises(fault):
        read_found({"placements": placements}, parts)
    for name in ("locate", "manifest"):
        with pytest.raises(RecordInvalid):
            read_find(find_message(LOCATE, HASH) | {name: b"short"})
