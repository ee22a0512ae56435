"""Any k shards give the data back, whatever the code and the size."""

from hypothesis import given
from hypothesis import strategies as st

from xsc.storage.object.erasure import Code, decode, encode, rebuild


@st.composite
def codes(draw) -> Code:
    k = draw(st.integers(1, 12))
    return Code(k, draw(st.integers(0, 12)))


@given(codes(), st.binary(max_size=300), st.randoms(use_true_random=False))
def test_any_k_of_n_suffice(code, data, chance):
    shards = list(enumerate(encode(data, code)))
    kept = dict(chance.sample(shards, code.k))
    assert decode(kept, code, len(data)) == data


@given(codes(), st.binary(min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_what_is_rebuilt_is_what_was_lost(code, data, chance):
    shards = list(enumerate(encode(data, code)))
    kept = dict(chance.sample(shards, code.k))
    lost = [column for column in range(code.n) if column not in kept]
    built = rebuild(kept, code, len(data), lost)
    assert [bytes(shard.data) for shard in built] == [bytes(shards[c][1]) for c in lost]


@given(codes(), st.binary(max_size=300))
def test_the_data_stands_in_the_first_k_shards(code, data):
    joined = b"".join(encode(data, code)[: code.k])
    assert joined[: len(data)] == data
    assert not any(joined[len(data) :])
