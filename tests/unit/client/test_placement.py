"""A directory is as safe as the worst of its files."""

import io
from contextlib import nullcontext

import pytest

from tests.unit.client.tree_store import Store
from xsc.base.errors import NodeUnreachable, ObjectUnknown
from xsc.client.folders import put_tree
from xsc.client.targets import BAD_MAX, WORST_MAX, Target, objects_of, resolve, survey
from xsc.client.tree import MAGIC

BAD = {"hosts": [{"shard": 0, "node": "b", "state": "missing"}], "margin": 0, "healable": False}
LOST = {"hosts": [{"shard": 0, "node": "c", "state": "unreachable"}], "readable": False}


@pytest.fixture
def store(tmp_path):
    """A node that stores a directory of thirty files and one that is a copy."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for number in range(30):
        (source / "sub" / f"{number:02}").write_bytes(b"%d" % number)
    (source / "copy").write_bytes(b"7")
    (source / "empty").write_bytes(b"")
    (source / "link").symlink_to("sub")
    store = Store()
    put_tree(store, source, "d", started_ms=0, warn=pytest.fail)
    return store


def capability_of(store, name):
    return resolve(store, name).capability


def ask(store, target):
    if isinstance(target, str):
        target = resolve(store, target)
    return survey(store, target, store.stat, lambda _: nullcontext(lambda _: None))


def test_a_directory_is_asked_about_file_by_file(store):
    answer = ask(store, "d")
    assert (answer["readable"], answer["margin"], answer["healable"]) == (True, 2, True)
    assert answer["size_bytes"] == 10 + 40 + 1
    assert answer["tree"] == {
        "files": 32,
        "path": "",
        "not_whole": 0,
        "unknown": 0,
        "worst": [],
        "shards": {"ok": 31},
    }
    assert len(store.asked) == len(set(store.asked)) == 31, "equal files are one object"


def test_the_worst_of_the_files_counts(store):
    store.said[capability_of(store, "d/sub/03")] = BAD
    store.said[capability_of(store, "d/sub/07")] = {**LOST, "margin": -1, "healable": False}
    answer = ask(store, "d")
    assert (answer["readable"], answer["margin"], answer["healable"]) == (False, -1, False)
    assert answer["hosts"] == LOST["hosts"]
    about = answer["tree"]
    assert (about["path"], about["not_whole"]) == ("copy", 3)
    assert [row["path"] for row in about["worst"]] == ["copy", "sub/07", "sub/03"]
    assert about["shards"] == {"ok": 29, "missing": 1, "unreachable": 1}
    # By its capability alone it is the same, and below a path what lies there counts.
    assert ask(store, Target(store.named("d/")[0])) == answer
    assert ask(store, "d/sub")["tree"]["files"] == 30
    assert "tree" not in ask(store, "d/sub/03")
    assert ask(store, "d/sub/03")["margin"] == 0
    assert ask(store, "d/empty")["tree"]["files"] == 1


def test_a_file_that_nobody_knows_is_the_worst(store):
    for number in range(20):
        store.said[capability_of(store, f"d/sub/{number:02}")] = ObjectUnknown("gone")
    answer = ask(store, "d")
    assert (answer["readable"], answer["hosts"], answer["tree"]["unknown"]) == (False, [], 21)
    assert answer["code"] == {"k": 4, "m": 2}
    assert len(answer["tree"]["worst"]) == WORST_MAX
    assert answer["margin"] == -1
    store.said[capability_of(store, "d/sub/25")] = {**LOST, "margin": -3}
    assert ask(store, "d")["margin"] == -3, "a file that is known may lack more"
    store.said[capability_of(store, "d/sub/29")] = NodeUnreachable("the own node")
    with pytest.raises(NodeUnreachable):
        ask(store, "d")


def test_a_list_that_is_not_readable_is_all_that_is_known(store):
    store.said[store.named("d/")[0]] = LOST
    assert ask(store, "d") == store.stat(store.named("d/")[0])


def test_what_a_check_adds_is_merged(store):
    more = {
        "survives": "2nodes",
        "domains": {},
        "introducers": [],
        "contract": None,
        "contract_kept": True,
        "yearly_loss_ppb": 5,
        "read_bytes": 10,
        "bad": [],
    }
    shard = {"segment": 0, "shard": 1, "node": "a", "reason": "wrong"}
    end = {"node": "a", "ends_ms": 9, "reason": "silent"}
    worse = {
        **more,
        **BAD,
        "survives": "0nodes",
        "contract": "1site",
        "contract_kept": False,
        "yearly_loss_ppb": 7,
        "bad": [shard] * BAD_MAX,
        "ends_ms": 9,
        "ending": [end],
    }
    for name, capability in [("", store.named("d/")[0])] + [
        (f"d/sub/{number:02}", capability_of(store, f"d/sub/{number:02}")) for number in range(30)
    ]:
        store.said[capability] = worse if name in ("d/sub/11", "d/sub/12") else more
    answer = ask(store, "d")
    assert answer["read_bytes"] == 310
    assert (answer["yearly_loss_ppb"], answer["contract_kept"]) == (7, False)
    assert (answer["survives"], answer["contract"]) == ("0nodes", "1site")
    assert (answer["ends_ms"], answer["ending"]) == (9, [end])
    assert len(answer["bad"]) == BAD_MAX
    assert answer["bad"][0]["path"] in ("sub/11", "sub/12")


def test_only_the_beginning_says_of_a_capability_whether_it_is_a_directory(store):
    for content in (b"", b"short", MAGIC[:-1] + b"?" * 20):
        capability = store.put(io.BytesIO(content), name="file")["capability"]
        assert "tree" not in ask(store, Target(capability))
        assert objects_of(store, Target(capability)) == [capability]
    assert len(objects_of(store, Target(store.named("d/")[0]))) == 31
    assert objects_of(store, Target("xsc:v:only-checks")) == ["xsc:v:only-checks"]
