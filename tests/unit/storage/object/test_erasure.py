import itertools

import pytest

from tests.strategies import vectors
from tests.unit.storage.world import content
from xsc.base.errors import ArgumentInvalid, ShardsInsufficient
from xsc.base.merkle import root_of
from xsc.storage.object.erasure import (
    COLUMN_MAX,
    GENERATION_MAX,
    SEGMENT_MAX,
    Code,
    cut,
    decode,
    decode_rows,
    encode,
)

MIB = 2**20
SIZES = [0, 1, 3, 4, 5, 4096, 4097, 100 * 1024]


@pytest.mark.parametrize("case", vectors("erasure")["cases"])
def test_shards_are_those_of_an_independent_model(case):
    code = Code(case["k"], case["m"])
    shards = [bytes(shard).hex() for shard in encode(bytes.fromhex(case["data"]), code)]
    assert shards == case["shards"]


def generator_matrix(k: int, n: int) -> list[list[int]]:
    """zfec's matrix from the definition: Vandermonde rows times the inverse of the first k."""
    exp, log, value = [0] * 510, [0] * 256, 1
    for power in range(255):
        exp[power] = exp[power + 255] = value
        log[value] = power
        value = value << 1 ^ (0x11D if value & 0x80 else 0)

    def mul(a: int, b: int) -> int:
        return exp[log[a] + log[b]] if a and b else 0

    rows = [[1] + [0] * (k - 1)] + [[exp[r * c % 255] for c in range(k)] for r in range(n - 1)]
    work = [rows[i] + [int(i == j) for j in range(k)] for i in range(k)]
    for col in range(k):
        pivot = next(row for row in range(col, k) if work[row][col])
        work[col], work[pivot] = work[pivot], work[col]
        scale = exp[255 - log[work[col][col]]]
        work[col] = [mul(scale, item) for item in work[col]]
        for row in range(k):
            if row != col:
                factor = work[row][col]
                work[row] = [a ^ mul(factor, b) for a, b in zip(work[row], work[col], strict=True)]
    inverse = [row[k:] for row in work]
    result = []
    for row in rows:
        line = []
        for col in range(k):
            total = 0
            for inner in range(k):
                total ^= mul(row[inner], inverse[inner][col])
            line.append(total)
        result.append(line)
    return result


@pytest.mark.parametrize(("k", "m"), [(1, 0), (1, 2), (2, 1), (4, 2), (4, 4), (10, 20), (40, 20)])
def test_zfec_multiplies_by_the_matrix_of_the_format(k, m):
    """A unit vector through the code gives a column of its matrix."""
    matrix = generator_matrix(k, k + m)
    for col in range(k):
        unit = bytes(int(row == col) for row in range(k))
        shards = encode(unit, Code(k, m))
        assert [shard[0] for shard in shards] == [line[col] for line in matrix]


@pytest.mark.parametrize("size", SIZES)
def test_every_loss_of_two_of_six_is_survived(size):
    data, code = content(size), Code()
    shards = dict(enumerate(encode(data, code)))
    assert {len(shard) for shard in shards.values()} == {code.shard_bytes(size)}
    for kept in itertools.combinations(range(6), 4):
        assert decode({column: shards[column] for column in kept}, code, size) == data


@pytest.mark.parametrize("size", [4 * MIB - 1, 4 * MIB])
def test_a_full_segment_survives_the_loss_of_both_ends(size):
    data, code = content(size), Code()
    shards = dict(enumerate(encode(data, code)))
    assert len(shards[0]) == MIB
    assert decode({column: shards[column] for column in (1, 2, 3, 5)}, code, size) == data


@pytest.mark.parametrize(("k", "m"), [(1, 2), (4, 4), (2, 0), (1, 0), (3, 5)])
def test_other_codes_survive_every_loss_of_m(k, m):
    data, code = content(1001), Code(k, m)
    shards = dict(enumerate(encode(data, code)))
    for kept in itertools.combinations(range(k + m), k):
        assert decode({column: shards[column] for column in kept}, code, 1001) == data


def test_the_largest_code_works():
    data, code = content(5000), Code(200, 55)
    shards = dict(enumerate(encode(data, code)))
    assert decode({column: shards[column] for column in range(55, 255)}, code, 5000) == data


def test_data_shards_are_views_and_the_tail_is_padded_with_zeros():
    data = bytes(range(1, 11))
    shards = encode(data, Code())
    assert b"".join(shards[:4]) == data + b"\0\0"
    assert isinstance(shards[0], memoryview)
    assert shards[0].obj is data


def test_wanted_columns_alone_are_the_same_bits():
    data = content(1000)
    shards = encode(data, Code())
    assert encode(data, Code(), columns=[5, 0]) == [shards[5], shards[0]]
    assert encode(b"", Code(), columns=[5]) == [b""]


def test_more_than_k_shards_do_no_harm():
    data = content(1000)
    assert decode(dict(enumerate(encode(data, Code()))), Code(), 1000) == data


def test_too_few_shards_are_refused():
    with pytest.raises(ShardsInsufficient, match="3 of the 4"):
        decode(dict(enumerate(encode(b"data", Code())[:3])), Code(), 4)


def test_shards_that_do_not_fit_are_refused():
    shards = dict(enumerate(encode(content(100), Code())))
    with pytest.raises(ArgumentInvalid):
        decode({0: shards[0], 1: shards[1], 2: shards[2], 6: shards[3]}, Code(), 100)
    with pytest.raises(ArgumentInvalid):
        decode({-1: shards[0], 1: shards[1], 2: shards[2], 3: shards[3]}, Code(), 100)
    with pytest.raises(ArgumentInvalid):
        decode(shards, Code(), 101)
    for column in range(4):
        with pytest.raises(ArgumentInvalid, match="has 25 bytes"):
            decode({**shards, column: bytes(shards[column]) + b"x"}, Code(), 100)


def test_whole_data_shards_are_given_as_they_are():
    shards = dict(enumerate(encode(content(100), Code())))
    assert all(row is shards[n] for n, row in enumerate(decode_rows(shards, Code(), 100)))


def test_what_is_empty_needs_no_arithmetic():
    assert encode(b"", Code()) == [b""] * 6
    assert decode_rows(dict.fromkeys((0, 1, 2, 5), b""), Code(), 0) == []


@pytest.mark.parametrize(("k", "m"), [(0, 2), (-1, 2), (4, -1), (200, 56), (256, 0)])
def test_impossible_codes_are_refused(k, m):
    with pytest.raises(ArgumentInvalid):
        Code(k, m)


def test_generations_have_bounds():
    assert Code().generation == 0
    assert Code(4, 2, 2**32 - 1).generation == 2**32 - 1
    for generation in (-1, 2**32):
        with pytest.raises(ArgumentInvalid):
            Code(4, 2, generation)


@pytest.mark.parametrize(("most", "size"), [(SEGMENT_MAX, 4), (GENERATION_MAX, 4), (COLUMN_MAX, 1)])
def test_the_numbers_of_a_shard_fill_their_bytes(most, size):
    assert most.to_bytes(size, "big") == b"\xff" * size
    with pytest.raises(OverflowError):
        (most + 1).to_bytes(size, "big")


def test_cut_names_columns_and_roots():
    data = content(100)
    assert [(s.column, s.root) for s in cut(data, Code())] == [
        (column, root_of(shard)) for column, shard in enumerate(encode(data, Code()))
    ]


def test_the_code_itself_detects_nothing():
    """Why every shard is verified before: one flipped byte gives wrong data and no error."""
    shards = dict(enumerate(encode(content(1000), Code())))
    bad = bytearray(shards[4])
    bad[7] ^= 1
    wrong = decode({0: shards[0], 1: shards[1], 2: shards[2], 4: bytes(bad)}, Code(), 1000)
    assert wrong != content(1000)
