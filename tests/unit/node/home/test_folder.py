"""The home: made once, locked while used, refused when it is not understood."""

import stat

import pytest

from xsc.base.errors import ConfigInvalid, HomeInvalid, HomeLocked, IdentityInvalid
from xsc.node.home import folder as homes


def test_a_home_is_made_whole_and_private(tmp_path):
    made = homes.init_home(tmp_path / "h", name="alice", network="lab")
    opened = homes.open_home(tmp_path / "h")
    assert opened.network == "lab"
    assert made["id"] == homes.to_text(opened.key.node_id)
    assert stat.S_IMODE((tmp_path / "h").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "h" / "identity.key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "how", [{"name": "bad name!"}, {"name": ""}, {"network": " "}, {"network": "a\nb"}]
)
def test_a_name_that_no_node_starts_with_makes_no_home(tmp_path, how):
    with pytest.raises(ConfigInvalid):
        homes.init_home(tmp_path / "h", **how)
    assert not (tmp_path / "h").exists()


def test_starting_without_a_home_makes_one_and_finds_it_again(tmp_path):
    first = homes.open_home(tmp_path / "h")
    assert homes.open_home(tmp_path / "h").key.node_id == first.key.node_id


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for use in (homes.init_home, homes.open_home, homes.lock):
        with pytest.raises(HomeInvalid):
            use(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_newer_format_is_refused_by_name(tmp_path):
    homes.init_home(tmp_path / "h")
    (tmp_path / "h" / "format").write_text("2\n")
    with pytest.raises(HomeInvalid, match="format 2"):
        homes.open_home(tmp_path / "h")


def test_an_interrupted_start_goes_on(tmp_path):
    home = tmp_path / "h"
    homes.init_home(home)
    (home / "identity.key").unlink()
    homes.open_home(home)
    assert (home / "identity.key").exists()


def test_a_lost_key_is_not_replaced_by_a_new_one(tmp_path):
    home = tmp_path / "h"
    homes.init_home(home)
    (home / "identity.key").unlink()
    (home / "db").mkdir()
    with pytest.raises(IdentityInvalid, match="lost"):
        homes.open_home(home)


def test_a_second_init_refuses(tmp_path):
    homes.init_home(tmp_path / "h")
    with pytest.raises(HomeInvalid, match="already"):
        homes.init_home(tmp_path / "h")


def test_a_key_that_others_can_read_is_refused(tmp_path):
    homes.init_home(tmp_path / "h")
    (tmp_path / "h" / "identity.key").chmod(0o644)
    with pytest.raises(IdentityInvalid, match="0644"):
        homes.open_home(tmp_path / "h")


def test_a_second_start_is_refused_and_a_later_one_is_not(tmp_path):
    held = homes.lock(tmp_path / "h")
    with pytest.raises(HomeLocked):
        homes.lock(tmp_path / "h")
    held.close()
    homes.lock(tmp_path / "h").close()


def test_a_locked_key_needs_its_passphrase(tmp_path):
    homes.init_home(tmp_path / "h", passphrase="horse")
    with pytest.raises(IdentityInvalid, match="locked"):
        homes.open_home(tmp_path / "h")
    with pytest.raises(IdentityInvalid, match="wrong"):
        homes.open_home(tmp_path / "h", "cow")
    homes.open_home(tmp_path / "h", "horse")


def test_an_exported_key_makes_the_same_node(tmp_path):
    first = homes.init_home(tmp_path / "a")
    line = (tmp_path / "a" / "identity.key").read_text()
    again = homes.init_home(tmp_path / "b", recover=line)
    assert again["id"] == first["id"]


def test_a_recovery_that_was_killed_before_its_key_makes_no_other_one(tmp_path):
    first = homes.init_home(tmp_path / "a")
    again = tmp_path / "b"
    homes.mark(again, "recovering")
    for kept in ("format", "network"):
        for use in (homes.check_whole, homes.open_home, homes.init_home):
            with pytest.raises(HomeInvalid):
                use(again)
        (again / kept).write_bytes((tmp_path / "a" / kept).read_bytes())
    line = (tmp_path / "a" / "identity.key").read_text()
    assert homes.init_home(again, recover=line)["id"] == first["id"]
    homes.check_whole(again)
