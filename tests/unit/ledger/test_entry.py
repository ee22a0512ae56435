import json
from pathlib import Path

import pytest

from tests.unit.ledger.circle import NETWORK
from xsc.base.errors import RecordInvalid, SignatureInvalid
from xsc.base.limits import LEDGER_RECORD_BYTES_MAX
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair, network_id
from xsc.ledger.audit import verify_settled
from xsc.ledger.entry import (
    GENESIS,
    UNIT_NONE,
    Half,
    SettledEntry,
    counter_half,
    open_half,
    void_half,
)
from xsc.terms.voucher import Voucher

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "ledger.json").read_text())
CREDITOR = KeyPair(bytes.fromhex(VECTOR["creditor_seed"]))
DEBTOR = KeyPair(bytes.fromhex(VECTOR["debtor_seed"]))


def made() -> Half:
    return Half(
        kind="post",
        credit=CREDITOR.node_id,
        debit=DEBTOR.node_id,
        peer=DEBTOR.node_id,
        seq=VECTOR["half"]["seq"],
        prev=bytes.fromhex(VECTOR["prev"]),
        amount_micro=VECTOR["voucher"]["amount_micro"],
        account=bytes.fromhex(VECTOR["account"]),
        receipt=bytes.fromhex(VECTOR["voucher"]["id"]),
        created_ms=VECTOR["half"]["created_ms"],
    )


def test_half_counter_and_export_are_the_pinned_bytes():
    network = network_id("xsc")
    half = sign(made(), CREDITOR, network)
    assert half.record.to_bytes().hex() == VECTOR["half"]["body"]
    assert (half.id.hex(), half.raw.hex()) == (VECTOR["half"]["id"], VECTOR["half"]["signed"])

    answer = counter_half(half, seq=0, prev=GENESIS, created_ms=VECTOR["counter"]["created_ms"])
    counter = sign(answer, DEBTOR, network)
    assert answer.to_bytes().hex() == VECTOR["counter"]["body"]
    assert (counter.id.hex(), counter.raw.hex()) == (
        VECTOR["counter"]["id"],
        VECTOR["counter"]["signed"],
    )

    raw = bytes.fromhex(VECTOR["voucher"]["signed"])
    voucher = open_signed(raw, Voucher, network=network)
    assert voucher.id.hex() == VECTOR["voucher"]["id"]
    exported = SettledEntry(half=half.raw, counter=counter.raw, voucher=raw)
    assert sign(exported, CREDITOR, network).raw.hex() == VECTOR["settled"]["signed"]


def test_the_pinned_bytes_read_back():
    network = network_id("xsc")
    half = open_half(bytes.fromhex(VECTOR["half"]["signed"]), network=network)
    assert half.record == made()
    assert half.author == half.record.author == CREDITOR.node_id
    assert open_half(bytes.fromhex(VECTOR["counter"]["signed"]), network=network).record.author == (
        DEBTOR.node_id
    )
    text = verify_settled(bytes.fromhex(VECTOR["settled"]["signed"]))
    assert "0.25 credits" in text
    assert "2023-11-14 22:13:20 UTC" in text


def test_a_half_names_its_peer_as_one_of_two_parties():
    value = made().to_value()
    for wrong in ({"peer": b"x" * 32}, {"debit": CREDITOR.node_id, "peer": CREDITOR.node_id}):
        with pytest.raises(RecordInvalid, match="this entry is wrong"):
            Half.from_value({**value, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "gift"},
        {"amount_micro": -1},
        {"amount_micro": 2**63},
        {"xid": b"x" * 16},
        {"kind": "clear"},
        {"receipt": b"short"},
        {"prev": b""},
        {"unit": 2**32},
        {"v": 2},
        {"more": 1},
        {"seq": True},
        {"unit": 7},
        {"unit": UNIT_NONE},
        {"account": None},
        {"receipt": None},
        {"kind": "limit", "receipt": None},
        {"kind": "claim"},
        {"kind": "void"},
        {"kind": "void", "account": None, "receipt": None},
        {"kind": "void", "receipt": None, "link": GENESIS},
        {"kind": "seal"},
        {
            "kind": "seal",
            "unit": UNIT_NONE,
            "credit": max(CREDITOR.node_id, DEBTOR.node_id),
            "debit": min(CREDITOR.node_id, DEBTOR.node_id),
        },
    ],
)
def test_a_half_of_another_form_is_refused(wrong):
    with pytest.raises(RecordInvalid):
        Half.from_value({**made().to_value(), **wrong})


def test_a_half_must_be_signed_by_the_party_that_speaks():
    raw = sign(made(), DEBTOR, NETWORK).raw
    with pytest.raises(RecordInvalid, match="not its author"):
        open_half(raw, network=NETWORK)
    with pytest.raises(RecordInvalid, match="another network"):
        open_half(sign(made(), CREDITOR, NETWORK).raw, network=network_id("other"))
    good = sign(made(), CREDITOR, NETWORK).raw
    place = good.index(b"csig") + 10
    with pytest.raises((RecordInvalid, SignatureInvalid)):
        open_half(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :], network=NETWORK)


def test_limits_and_withdrawals_are_halves_without_counterpart():
    limit = Half(
        kind="limit",
        credit=CREDITOR.node_id,
        peer=DEBTOR.node_id,
        debit=DEBTOR.node_id,
        seq=0,
        prev=GENESIS,
        amount_micro=5,
        created_ms=1,
    )
    assert (limit.author, limit.debit, limit.link) == (CREDITOR.node_id, DEBTOR.node_id, None)
    void = void_half(made(), seq=2, prev=b"p" * 32, created_ms=1)
    assert (void.account, void.receipt) == (made().account, None)
    assert (void.kind, void.amount_micro) == ("void", made().amount_micro)
    assert void.author == CREDITOR.node_id


def test_the_largest_voucher_and_half_fit_their_bound():
    most = 2**63 - 1
    half = made().model_copy(
        update={
            "seq": most,
            "link": GENESIS,
            "amount_micro": most,
            "created_ms": most,
        }
    )
    assert open_half(sign(half, CREDITOR, NETWORK).raw, network=NETWORK).record == half
    said = Voucher(
        account=GENESIS,
        provider=GENESIS,
        customer=GENESIS,
        number=most,
        amount_micro=most,
        count=GENESIS,
        until_ms=most,
    )
    assert (
        open_signed(
            sign(said, DEBTOR, NETWORK).raw,
            Voucher,
            network=NETWORK,
            size_max=LEDGER_RECORD_BYTES_MAX,
        ).record
        == said
    )
