"""Settings: three sources in order of strength, and errors that name the place."""

import itertools
import re
from pathlib import Path

import pytest

from xsc.base.errors import ConfigInvalid
from xsc.base.limits import GIB, MFUEL
from xsc.market.pricing import MarketPricing
from xsc.node.build import market_settings
from xsc.node.config import KEYS, check_capacity, load
from xsc.terms.pricing import compute_amount, run_steps


def test_a_node_needs_no_settings(tmp_path):
    config = load(tmp_path, {}, {})
    assert config.fuel == 1_000_000_000
    assert config.storage_capacity_bytes == 0
    assert config.name


def test_flags_beat_variables_and_variables_beat_the_file(tmp_path):
    (tmp_path / "config.toml").write_text(
        "storage_price_gib_hour = 1\ncompute_price_gfuel = 1\n"
        'name = "from-file"\nadvertise = ["a.example:1"]\n'
    )
    variables = {"XSC_STORAGE_PRICE_GIB_HOUR": "2", "XSC_COMPUTE_PRICE_GFUEL": "2"}
    config = load(
        tmp_path, {**variables, "XSC_HOME": "/x", "PATH": "y"}, {"compute_price_gfuel": "3"}
    )
    assert config.storage_price_micro == 2
    assert config.compute_price_micro == 3
    assert config.name == "from-file"
    assert config.advertise == ("a.example:1",)


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ('notify = "exec:tell me"', ("exec:tell me",)),
        (
            'notify = ["exec:tell a,exec:b,https://c", " https://d.example/e "]',
            ("exec:tell a,exec:b,https://c", "https://d.example/e"),
        ),
        ('notify = ["http://127.0.0.1:8/x", ""]', ("http://127.0.0.1:8/x",)),
        ("notify = []", ()),
    ],
)
def test_targets_of_alerts_are_read_one_by_one(tmp_path, text, targets):
    (tmp_path / "config.toml").write_text(text)
    assert load(tmp_path, {}, {}).notify == targets


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ('notify = ["http://far.example/x"]', "config.toml, line 1", "only for this machine"),
        ('notify = ["exec:"]', "config.toml, line 1", "a program behind exec:"),
        ("notify = ['exec:tell \"me']", "config.toml, line 1", "expected a command"),
        ('notify = "mail:me"', "config.toml, line 1", "exec:PROGRAM"),
        ('name = "a"\n\nstorage_prize = 3\n', "config.toml, line 3", "storage_price"),
        ("storage_price_gib_hour = 1.5\n", "config.toml, line 1", "whole number"),
        ('storage_capacity = "lots"\n', "config.toml, line 1", "lots"),
        ("storage_price_gib_hour = -1\n", "config.toml, line 1", "whole number"),
        ("= 3\n", "config.toml", "not TOML"),
        ('name = "a b"\n', "config.toml, line 1", "letters"),
        ("[name]\nx = 1\n", "config.toml, line 1", "must be a text"),
        ('log_level = "loud"\n', "config.toml, line 1", "debug, info"),
        ('api_listen = "0.0.0.0:1"\n', "config.toml, line 1", "loopback"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path, text, place, told):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, {}, {})
    assert place in caught.value.message
    assert told in caught.value.message + caught.value.hint


def test_a_bad_variable_and_a_bad_flag_are_named(tmp_path):
    with pytest.raises(ConfigInvalid, match="XSC_FUEL"):
        load(tmp_path, {"XSC_FUEL": "much"}, {})
    with pytest.raises(ConfigInvalid, match="XSC_FUELS"):
        load(tmp_path, {"XSC_FUELS": "1"}, {})
    with pytest.raises(ConfigInvalid, match="--peer-listen"):
        load(tmp_path, {}, {"peer_listen": "nowhere"})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("storage_price", "storage_price_gib_hour: micro-credits a GiB and hour"),
        ("compute_price", "compute_price_gfuel: micro-credits a Gfuel"),
        ("storage_price_max", "storage_price_max_gib_hour: maximum in micro-credits"),
        ("compute_price_max", "compute_price_max_gfuel: maximum in micro-credits"),
    ],
)
def test_a_setting_without_its_unit_is_refused_and_the_one_with_it_named(tmp_path, name, meant):
    (tmp_path / "config.toml").write_text(f"{name} = 10\n")
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, {}, {})
    assert f"line 1: '{name}' is no setting" in caught.value.message
    assert caught.value.hint.startswith(f"did you mean {meant}")
    with pytest.raises(ConfigInvalid, match=f"the variable XSC_{name.upper()}") as caught:
        load(tmp_path / "none", {f"XSC_{name.upper()}": "10"}, {})
    assert caught.value.hint.startswith(f"did you mean {meant}")


def test_a_credit_is_a_gib_for_a_month_and_a_workers_hour_and_no_run_is_for_nothing(tmp_path):
    config = load(tmp_path, {}, {})
    prices = market_settings(config).prices
    pricing = MarketPricing(prices)
    credit = 1_000_000
    assert credit <= pricing.storage_price(GIB, 730) < credit * 1001 // 1000
    hour = config.worker_speed_mfuel * MFUEL * 3600
    assert credit <= pricing.compute_price(hour, 1) < credit * 1001 // 1000
    year = pricing.storage_price(150 * GIB // 6, 365 * 24)
    assert year <= config.starter_credit_micro + credit, "100 GiB, coded, at six hosts"
    cheapest = pricing.ladder("compute").price_mutual
    assert compute_amount(cheapest, run_steps(0, 1)) >= 1


def test_discounts_that_turn_the_ladder_over_are_refused(tmp_path):
    with pytest.raises(ConfigInvalid, match="mutual_discount"):
        load(tmp_path, {}, {"mutual_discount": "1%"})


LOOPBACK = ("127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:7f00:1]", "localhost", "LocalHost")
UNSPECIFIED = ("0.0.0.0", "[::]", "[::ffff:0:0]")
ELSEWHERE = ("192.0.2.7", "[2001:db8::7]", "my.host.example")
EVERYWHERE = ("0.0.0.0", "[::]", "192.0.2.7")


@pytest.mark.parametrize("listen", [*LOOPBACK[:3], "localhost", *EVERYWHERE])
@pytest.mark.parametrize("told", [*LOOPBACK, *UNSPECIFIED, *ELSEWHERE])
def test_what_is_told_to_peers_leads_to_no_machine_but_this_one(tmp_path, listen, told):
    refused = told in UNSPECIFIED or (told in LOOPBACK and listen in EVERYWHERE)
    # One that leads elsewhere is told before, after, or not at all.
    for advertise in (f"{told}:1", f"{told}:1,a.example:1", f"a.example:1,{told}:1"):
        flags = {"peer_listen": f"{listen}:7411", "advertise": advertise}
        if refused:
            with pytest.raises(ConfigInvalid, match=f"advertise is {re.escape(told)}:1:") as caught:
                load(tmp_path, {}, flags)
            assert "reaches this machine from outside" in caught.value.hint
        else:
            load(tmp_path, {}, flags)


@pytest.mark.parametrize("listen", [*LOOPBACK, *EVERYWHERE])
def test_without_advertise_every_address_can_be_listened_at(tmp_path, listen):
    load(tmp_path, {}, {"peer_listen": f"{listen}:7411"})


def test_a_capacity_is_held_against_what_lies_there_and_what_is_free():
    sizes = range(5)
    for capacity, held, free, rest in itertools.product(sizes, sizes, sizes, sizes):
        total = held + free + rest
        disk = {"held_bytes": held, "free_bytes": free, "total_bytes": total}
        if capacity > total:
            with pytest.raises(ConfigInvalid, match=f"has {total} B in all"):
                check_capacity(capacity, **disk)
        else:
            said = check_capacity(capacity, **disk)
            assert said == (
                f"storage_capacity is {capacity} B, and the disk has room for {held + free} B, "
                f"of which {held} B are in use"
                if capacity > held + free
                else ""
            )


def test_every_key_is_documented():
    text = Path("docs/configuration.md").read_text(encoding="utf-8")
    for name, key in KEYS.items():
        assert f"| `{name}` | `{key.default or '(none)'}` | {key.meaning} |" in text


@pytest.mark.parametrize("term", ["29s", "91d", "0s", "soon", ""])
def test_a_term_of_leases_that_is_none_is_refused_in_one_sentence(tmp_path, term):
    with pytest.raises(ConfigInvalid, match="XSC_STORAGE_LEASE_TERM") as caught:
        load(tmp_path, {"XSC_STORAGE_LEASE_TERM": term}, {})
    assert "\n" not in caught.value.message


def test_leases_are_warned_of_after_they_could_be_renewed(tmp_path):
    assert load(tmp_path, {}, {}).warned_ms == 30 * 86_400_000
    short = load(tmp_path, {"XSC_STORAGE_LEASE_TERM": "80min"}, {})
    assert short.warned_ms == 30 * 60_000
