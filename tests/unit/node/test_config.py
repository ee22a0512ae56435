"""Settings: three sources in order of strength, and errors that name the place."""

from pathlib import Path

import pytest

from xsc.base.errors import ConfigInvalid
from xsc.node.config import KEYS, load


def test_a_node_needs_no_settings(tmp_path):
    config = load(tmp_path, {}, {})
    assert config.fuel == 1_000_000_000
    assert config.storage_capacity_bytes == 0
    assert config.name


def test_flags_beat_variables_and_variables_beat_the_file(tmp_path):
    (tmp_path / "config.toml").write_text(
        'storage_price = 1\ncompute_price = 1\nname = "from-file"\nadvertise = ["a.example:1"]\n'
    )
    config = load(
        tmp_path,
        {"XSC_STORAGE_PRICE": "2", "XSC_COMPUTE_PRICE": "2", "XSC_HOME": "/x", "PATH": "y"},
        {"compute_price": "3"},
    )
    assert config.storage_price_micro == 2
    assert config.compute_price_micro == 3
    assert config.name == "from-file"
    assert config.advertise == ("a.example:1",)


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ('name = "a"\n\nstorage_prize = 3\n', "config.toml, line 3", "storage_price"),
        ("storage_price = 1.5\n", "config.toml, line 1", "whole number"),
        ('storage_capacity = "lots"\n', "config.toml, line 1", "lots"),
        ("storage_price = -1\n", "config.toml, line 1", "whole number"),
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


def test_discounts_that_turn_the_ladder_over_are_refused(tmp_path):
    with pytest.raises(ConfigInvalid, match="mutual_discount"):
        load(tmp_path, {}, {"mutual_discount": "1%"})


def test_every_key_is_documented():
    text = Path("docs/configuration.md").read_text(encoding="utf-8")
    for name, key in KEYS.items():
        assert f"| `{name}` | `{key.default or '(none)'}` | {key.meaning} |" in text
