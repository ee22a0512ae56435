"""Directories on the disk: stored as they are, fetched whole, and nothing beside them touched."""

import hashlib
import io
import os
import stat
from dataclasses import replace

import pytest

from tests.unit.client.tree_store import Store
from xsc.base.errors import ArgumentInvalid, NodeUnreachable, ObjectUnknown, RecordInvalid
from xsc.client import folders
from xsc.client.folders import clean, get_tree, put_tree
from xsc.client.targets import one_object, read_tree, resolve
from xsc.client.tree import Node, Tree, pack, part_id

LATER_MS = 4_000_000_000_000


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def source(tmp_path):
    """A directory with all that can be in one."""
    top = tmp_path / "source"
    for folder in ("empty", "sub/deep"):
        (top / folder).mkdir(parents=True)
    (top / "a").write_bytes(b"hello")
    (top / "same").write_bytes(b"hello")
    (top / "nothing").write_bytes(b"")
    (top / "sub" / "deep" / "b").write_bytes(bytes(5000))
    (top / "a.part").write_bytes(b"no part of anything")
    (top / os.fsdecode(b"odd\xff\nname")).write_bytes(b"odd")
    (top / "out").symlink_to("../../etc/passwd")
    (top / "inner").symlink_to("sub")
    (top / "a").chmod(0o640)
    (top / "same").chmod(0o4755)
    os.utime(top / "a", ns=(5, 123_456_789))
    os.utime(top / "sub" / "deep", ns=(5, 7_000_000_001))
    (top / "sub" / "deep").chmod(0o550)
    yield top
    (top / "sub" / "deep").chmod(0o750)


def quiet(line):
    raise AssertionError(line)


def put(store, source, started_ms=LATER_MS, **how):
    return put_tree(store, source, "photos", started_ms=started_ms, warn=quiet, **how)


def get(store, target, capability=None):
    return get_tree(store, capability or store.named("photos/")[0], target, warn=quiet)


def everything(top):
    """What is below a directory: kinds, modes, times, contents, targets."""
    found = {}
    for path in top.rglob("*"):
        status = path.lstat()
        row = [stat.S_IFMT(status.st_mode), status.st_mtime_ns]
        if path.is_symlink():
            row.append(path.readlink())
        else:
            row.append(status.st_mode & 0o777)
            row.append(path.read_bytes() if path.is_file() else None)
        found[path.relative_to(top)] = row
    return found


def test_a_directory_comes_back_as_it_was(store, source, tmp_path):
    done = put(store, source)
    assert (done["files"], done["left_out"]) == (6, 0)
    assert done["sent_files"] == 4, "what is empty or the same is not sent"
    get(store, tmp_path / "target")
    assert everything(tmp_path / "target") == everything(source)
    (tmp_path / "target" / "sub" / "deep").chmod(0o750)
    assert not (tmp_path / "target.part").exists()
    assert stat.S_IMODE((tmp_path / "target" / "same").stat().st_mode) == 0o755, "no set-id bits"


def test_what_has_not_changed_is_not_sent_again(store, source):
    first = put(store, source)
    store.sent.clear()
    again = put(store, source, LATER_MS + 1)
    assert store.sent == []
    assert again["capability"] == first["capability"]
    (source / "a").write_bytes(b"other")
    (source / "moved").write_bytes(bytes(5000))
    third = put(store, source)
    assert (third["sent_files"], len(store.sent)) == (1, 2), "one file, and the list"
    (source / "a").write_bytes(b"OTHER")
    os.utime(source / "a", ns=(0, 77))
    put(store, source)
    (source / "a").write_bytes(b"!same")
    os.utime(source / "a", ns=(0, 77))
    assert put(store, source)["sent_files"] == 0, "size and time are believed"
    assert put(store, source, reread=True)["sent_files"] == 1
    assert put(store, source, survive="1node")["sent_files"] == 5, "a contract of its own"


def test_a_put_that_broke_off_sends_nothing_twice(store, source):
    for number in range(1, 9):
        (source / str(number)).write_bytes(str(number).encode() * 100)
    for count in (2, 7):
        store.breaks_after = count
        with pytest.raises(NodeUnreachable):
            put(store, source)
    store.breaks_after = None
    put(store, source)
    assert len(store.sent) == len(set(store.sent)) == 13


def test_a_file_that_changes_meanwhile_is_stored_as_it_was_at_one_time(store, source):
    changed = []

    def change(part):
        if part and not changed and len(store.contents) == 2:
            changed.append(part)
            for name in ("a", "same", "a.part", "sub/deep/b"):
                size = (source / name).stat().st_size
                os.truncate(source / name, 0)
                (source / name).write_bytes(b"?" * size)

    store.before_read = change
    put(store, source)
    assert changed
    options = " "
    for capability, (part, _) in store.kept_parts.items():
        content = hashlib.sha256(store.contents[capability]).digest()
        assert part.endswith(part_id(content, options).hex()), "a part is what its name says"


def test_what_is_no_file_is_left_out_and_said(store, source):
    os.mkfifo(source / "pipe")
    told = []
    done = put_tree(store, source, "photos", started_ms=1, warn=told.append)
    assert (done["left_out"], told) == (1, ["pipe is no file, directory or link"])


def test_a_get_that_broke_off_goes_on(store, source, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "READ_TOGETHER_MAX", 1)
    put(store, source)
    store.breaks_after = 2
    with pytest.raises(NodeUnreachable):
        get(store, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert stat.S_IMODE((tmp_path / "target.part").stat().st_mode) == 0o700
    store.breaks_after = None
    get(store, tmp_path / "target")
    assert everything(tmp_path / "target") == everything(source)
    assert len(store.fetched) == 5, "no file twice"
    (tmp_path / "target" / "sub" / "deep").chmod(0o750)


def test_nothing_that_stands_there_is_touched(store, source, tmp_path):
    put(store, source)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link", "source"):
        with pytest.raises(ArgumentInvalid, match="exists"):
            get(store, tmp_path / name)
    foreign = tmp_path / "target.part"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(ArgumentInvalid, match="in the way"):
        get(store, tmp_path / "target")
    assert [entry.name for entry in foreign.iterdir()] == ["thesis.tex"]
    (tmp_path / "other.part").symlink_to(foreign)
    with pytest.raises(ArgumentInvalid, match="in the way"):
        get(store, tmp_path / "other")


def test_nothing_is_written_through_a_link_that_stands_in_the_way(store, source, tmp_path):
    put(store, source)
    store.breaks_after = 0
    with pytest.raises(NodeUnreachable):
        get(store, tmp_path / "target")
    store.breaks_after = None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "target.part" / "tree" / "empty").rmdir()
    (tmp_path / "target.part" / "tree" / "empty").symlink_to(elsewhere)
    with pytest.raises(ArgumentInvalid, match="in the way"):
        get(store, tmp_path / "target")
    (tmp_path / "target.part" / "tree" / "empty").unlink()
    victim = elsewhere / "victim"
    victim.write_text("untouched")
    for name in ("a", "same"):
        (tmp_path / "target.part" / "tree" / name).symlink_to(victim)
    for number in range(12):
        (tmp_path / "target.part" / "incoming" / str(number)).symlink_to(victim)
    get(store, tmp_path / "target")
    assert victim.read_text() == "untouched"
    assert everything(tmp_path / "target") == everything(source)
    (tmp_path / "target" / "sub" / "deep").chmod(0o750)


HOSTILE = [
    [Node(b"../escape", "link", 0, 0, target=b"x")],
    [Node(b"/escape", "directory", 0o755, 0)],
    [Node(b"d", "link", 0, 0, target=b".."), Node(b"d/escape", "directory", 0o755, 0)],
    [Node(b"d", "directory", 0o755, 0), Node(b"d/../../escape", "directory", 0o755, 0)],
]


@pytest.mark.parametrize("nodes", HOSTILE)
def test_a_hostile_tree_writes_nothing(store, tmp_path, monkeypatch, nodes):
    with monkeypatch.context() as patch:
        patch.setattr("xsc.client.tree.check", lambda _: None)
        raw = pack(Tree(0, "", 0o755, 0, tuple(nodes)))
    capability = store.put(io.BytesIO(raw), name="photos/", size_bytes=len(raw))["capability"]
    place = tmp_path / "deep" / "place"
    place.mkdir(parents=True)
    with pytest.raises(RecordInvalid):
        get(store, place / "target", capability)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "place"]


def test_a_file_of_another_size_than_told_is_not_taken(store, source, tmp_path):
    put(store, source)
    capability = store.named("photos/")[0]
    tree = read_tree(store, capability)
    nodes = [replace(node, size_bytes=6) if node.path == b"a" else node for node in tree.nodes]
    store.contents[capability] = pack(replace(tree, nodes=tuple(nodes)))
    told = []
    with pytest.raises(ArgumentInvalid, match="1 files"):
        get_tree(store, capability, tmp_path / "target", warn=told.append)
    assert "5 bytes instead of 6" in told[0]
    assert not (tmp_path / "target").exists()


def test_a_name_leads_to_objects_and_into_directories(store, source, tmp_path):
    put(store, source)
    (listed,) = store.named("photos/")
    deep = resolve(store, "photos/sub/deep/b")
    assert (deep.kind, store.contents[deep.capability]) == ("file", bytes(5000))
    for name, kind, path in (
        ("photos", "directory", b""),
        ("photos/", "directory", b""),
        ("photos/sub/deep/", "directory", b"sub/deep"),
        ("photos/nothing", "empty file", b"nothing"),
    ):
        found = resolve(store, name)
        assert (found.capability, found.kind, found.path) == (listed, kind, path)
    for name, error, said in (
        ("photos/gone", ObjectUnknown, "the directory photos/ holds nothing of the path gone"),
        ("nowhere/a", ObjectUnknown, "no such name"),
        ("photos/out", ArgumentInvalid, "a link to ../../etc/passwd"),
    ):
        with pytest.raises(error, match=said):
            resolve(store, name)
    with pytest.raises(ArgumentInvalid, match="one version"):
        resolve(store, listed, 1)
    # A name with a slash is an object's before it leads into a directory.
    own = store.put(io.BytesIO(b"own"), name="photos/a")["capability"]
    assert resolve(store, "photos/a").capability == own


def test_what_is_no_object_is_not_taken_for_one(store, source):
    put(store, source)
    assert one_object(store, "photos/", whole=True) == store.named("photos/")[0]
    for name in ("photos/nothing", "photos/sub", "photos"):
        with pytest.raises(ArgumentInvalid, match=r"is an empty file|is a directory"):
            one_object(store, name)


def test_a_part_of_a_directory_is_fetched_alone(store, source, tmp_path):
    put(store, source)
    capability = store.named("photos/")[0]
    get_tree(store, capability, tmp_path / "part", warn=quiet, path=b"sub")
    assert everything(tmp_path / "part") == everything(source / "sub")
    (tmp_path / "part" / "deep").chmod(0o750)


def test_files_go_with_the_last_version_that_needs_them(store, source):
    put(store, source)
    (source / "a").write_bytes(b"other")
    put(store, source)
    assert clean(store, "photos/") == []
    store.remove(store.named("photos/", 1)[0])
    assert clean(store, "photos/") == [], "the first content of a is that of another file, too"
    (source / "same").write_bytes(b"third")
    put(store, source)
    store.remove(store.named("photos/", 1)[0])
    store.put(io.BytesIO(b"x"), part=next(iter(store.kept_parts.values()))[0], size_bytes=1)
    assert len(clean(store, "photos/")) == 1, "what is newer than the newest version stays"
    store.remove(store.named("photos/")[0])
    clean(store, "photos/")
    assert store.contents == {}


def test_directories_nested_too_deep_are_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "TREE_DEPTH_MAX", 3)
    (tmp_path / "s" / "1" / "2" / "3").mkdir(parents=True)
    with pytest.raises(ArgumentInvalid, match="deeper than 3"):
        put(store, tmp_path / "s")
    with pytest.raises(ArgumentInvalid, match="no directory"):
        put(store, __file__)
