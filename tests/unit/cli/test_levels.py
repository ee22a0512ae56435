"""What a level is on the command line, as the node is sent it."""

import json

import pytest

from xsc.base.limits import GIB, MFUEL, MIB

ID = "a" * 26
DECLARED = {
    "id": ID,
    "day_micro": 0,
    "month_micro": 0,
    "object_bytes": None,
    "spread": None,
    "warnings": [],
}


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("100GiB", {"quantity": 100 * GIB, "unit": "bytes"}),
        ("1.5GiB", {"quantity": 1536 * MIB, "unit": "bytes"}),
        ("64MB", {"quantity": 64_000_000, "unit": "bytes"}),
        ("500Mfuel/s", {"quantity": 500 * MFUEL, "unit": "fuel_per_s"}),
        ("2Gfuel/s", {"quantity": 2_000 * MFUEL, "unit": "fuel_per_s"}),
        ("10000kfuel/s", {"quantity": 10 * MFUEL, "unit": "fuel_per_s"}),
        ("10000000fuel/s", {"quantity": 10 * MFUEL, "unit": "fuel_per_s"}),
        ("1worker", {"workers": 1}),
        ("2workers", {"workers": 2}),
    ],
)
def test_a_level_is_sent_with_its_unit(xsc, stand_in, text, stated):
    stand_in.answers("POST", "/v1/market/slots", DECLARED, 201)
    stand_in.answers("PUT", f"/v1/market/slots/{ID}", DECLARED)
    empty = {"quantity": None, "unit": None, "workers": None}
    for words in (("offer", "compute", text), ("need", "storage", text)):
        assert xsc("market", *words).out.decode().strip() == ID
        sent = json.loads(stand_in.last.body)
        assert {name: sent.get(name) for name in empty} == empty | stated
    assert xsc("market", "edit", ID, "--quantity", text).code == 0
    sent = json.loads(stand_in.last.body)
    assert {name: sent.get(name) for name in empty} == empty | stated


def test_what_a_node_warns_of_is_said_where_it_is_stated_and_where_it_is_changed(xsc, stand_in):
    warned = DECLARED | {"warnings": ["it pays nothing"]}
    stand_in.answers("POST", "/v1/market/slots", warned, 201)
    stand_in.answers("PUT", f"/v1/market/slots/{ID}", warned)
    for words in (("need", "storage", "1GiB"), ("edit", ID)):
        done = xsc("market", *words, "--price", "0")
        assert "warning: it pays nothing" in done.err
        assert json.loads(stand_in.last.body)["price_micro"] == 0


@pytest.mark.parametrize(
    "text", ["64", "1.5", "4096.0", "", " ", "x", "GiB", "1.5workers", "2 workers", "5mfuel/s"]
)
def test_what_is_no_level_asks_the_node_nothing(xsc, stand_in, text):
    for words in (("offer", "compute", text), ("edit", ID, "--quantity", text)):
        done = xsc("market", *words)
        assert (done.code, stand_in.requests) == (2, []), text
        assert "100GiB, 2workers or 500Mfuel/s" in done.err
