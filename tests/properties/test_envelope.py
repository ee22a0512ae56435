"""Laws of signed records: they come back as they were, and nothing else opens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import counts, digests, values
from xsc.base.encoding import encode
from xsc.base.errors import RecordInvalid, SignatureInvalid, XscError
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.terms.voucher import Voucher

KEYS = st.binary(min_size=32, max_size=32).map(KeyPair)
VOUCHERS = st.builds(
    Voucher,
    account=digests(),
    provider=digests(),
    customer=digests(),
    number=counts(),
    amount_micro=counts(),
    count=st.none() | digests(),
    until_ms=counts(),
)


@given(VOUCHERS, KEYS, digests())
def test_opening_undoes_signing(voucher, key, network):
    signed = sign(voucher, key, network)
    assert open_signed(signed.raw, Voucher, network=network, author=key.node_id) == signed
    assert sign(voucher, key, network).raw == signed.raw


@given(VOUCHERS, VOUCHERS)
def test_an_id_stands_for_one_content(left, right):
    assert (left.id == right.id) == (left == right)


@given(VOUCHERS, KEYS, digests(), st.data())
def test_a_change_anywhere_is_refused(voucher, key, network, data):
    raw = bytearray(sign(voucher, key, network).raw)
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        open_signed(bytes(raw), Voucher, network=network)
    except (RecordInvalid, SignatureInvalid):
        return
    raise AssertionError(place)


@given(values())
def test_no_other_value_opens_and_all_fail_by_name(value):
    try:
        open_signed(encode(value), Voucher, network=None)
    except XscError:
        return
    raise AssertionError(value)


@given(st.dictionaries(st.sampled_from(sorted(Voucher.model_fields)), values()))
def test_no_field_of_another_type_passes(changes):
    good = Voucher(
        account=bytes(32),
        provider=bytes(32),
        customer=bytes(32),
        number=1,
        amount_micro=2,
        count=None,
        until_ms=4,
    ).to_value()
    try:
        opened = Voucher.from_value({**good, **changes})
    except RecordInvalid:
        return
    assert opened.to_value() == {**good, **changes}
