"""The databases of a home: which may be missing, and which not."""

import shutil

import pytest

from xsc.base.errors import StoreDamaged
from xsc.base.log import SilentLog
from xsc.node.home.stores import KEPT, open_stores


@pytest.mark.parametrize("name", KEPT)
def test_a_home_that_lost_a_database_is_not_begun_anew(tmp_path, name):
    open_stores(tmp_path, SilentLog()).close()
    shutil.rmtree(tmp_path / name)
    with pytest.raises(StoreDamaged, match=f"the database {name} of .* is missing") as caught:
        open_stores(tmp_path, SilentLog())
    assert "xsc node restore" in caught.value.hint
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("made", range(len(KEPT) + 1))
def test_a_first_start_that_was_killed_goes_on(tmp_path, made):
    open_stores(tmp_path, SilentLog()).close()
    for name in (*KEPT, "index")[made:]:
        shutil.rmtree(tmp_path / name)
    open_stores(tmp_path, SilentLog()).close()


def test_an_index_that_is_missing_is_made_anew(tmp_path):
    open_stores(tmp_path, SilentLog()).close()
    shutil.rmtree(tmp_path / "index")
    open_stores(tmp_path, SilentLog()).close()
