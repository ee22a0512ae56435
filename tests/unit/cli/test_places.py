"""NAME/PATH, a file of a stored directory, to every command that takes the name of an object."""

from __future__ import annotations

from base64 import b64encode

import click
import pytest

from xsc.cli.main import cli
from xsc.cli.options import INPUT, OBJECT
from xsc.client.tree import Node, Tree, pack
from xsc.storage.object.capability import ReadCapability

LIST = ReadCapability(b"l" * 32, b"l" * 32).to_text()
FILE = ReadCapability(b"f" * 32, b"f" * 32).to_text()
CONTENT = b"content"
ANSWER = {
    "size_bytes": len(CONTENT),
    "code": {"k": 4, "m": 2},
    "hosts": [{"shard": 0, "node": "n" * 52, "state": "ok"}],
    "readable": True,
    "margin": 2,
    "healable": True,
    "ends_ms": None,
    "ending": [],
    "survives": "2nodes",
    "domains": {"node": {"known": 6, "unknown": 0}},
    "contract": None,
    "contract_kept": True,
    "introducers": [],
    "yearly_loss_ppb": 5,
    "read_bytes": 7,
    "bad": [],
}
REPAIRED = {"margin": 2, "moved": [], "left": [], "reason": "", "patched": 0, "waiting": 0}
RAN = {
    "fuel_used": 5,
    "memory_peak_bytes": 65536,
    "wall_ms": 2,
    "provider": "n" * 52,
    "trap": None,
    "receipt": b64encode(b"proof").decode(),
    "saved_bytes": 0,
    "compiled_bytes": 0,
    "exit_code": 0,
    "stdout": "",
    "stderr": "",
    "files": {},
}
WORDS = {
    "store get": ["store", "get", "{}", "-o", "{tmp}/out"],
    "store stat": ["store", "stat", "{}"],
    "store check": ["store", "check", "{}", "--deep"],
    "store repair": ["store", "repair", "{}"],
    "store rm": ["store", "rm", "{}", "--yes"],
    "store share": ["store", "share", "{}", "--read"],
    "compute run": ["compute", "run", "{tmp}/m.wasm", "--in", "data={}"],
}
"""How each command is called about an object."""


@pytest.fixture
def node(stand_in, tmp_path):
    """A node that has stored `album/`: a file in a directory, a link to it, an empty file."""
    (tmp_path / "m.wasm").write_bytes(b"\0asm")
    tree = pack(
        Tree(
            0,
            "",
            0o755,
            0,
            (
                Node(b"2024", "directory", 0o755, 0),
                Node(b"2024/photo", "file", 0o644, 0, len(CONTENT), b"p" * 32, FILE),
                Node(b"empty", "file", 0o644, 0),
                Node(b"link", "link", 0, 0, target=b"2024/photo"),
            ),
        )
    )
    contents = {LIST: tree, FILE: CONTENT}

    def named(request):
        if request.headers["XSC-Name"] == "album/":
            return request.answer.document({"capabilities": [LIST]})
        problem = {"code": "object_unknown", "detail": "no object under that name", "hint": "ls"}
        return request.answer.document(problem, 404)

    def content(request):
        data = contents[request.headers["XSC-Capability"]]
        headers = {"XSC-Request-Id": "1"}
        if "Range" in request.headers:
            first, last = request.headers["Range"].removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[int(first) : int(last) + 1]
        request.answer.raw(206, {**headers, "Content-Length": str(len(data))}, data)

    def asked(request):
        size = len(contents[request.headers["XSC-Capability"]])
        request.answer.document({**ANSWER, "size_bytes": size})

    stand_in.routes["GET", "/v1/objects/named"] = named
    stand_in.routes["GET", "/v1/object"] = content
    stand_in.routes["GET", "/v1/object/stat"] = asked
    stand_in.routes["GET", "/v1/object/check?deep=1"] = asked
    stand_in.answers("GET", "/v1/objects/parts", {"parts": []})
    stand_in.answers("POST", "/v1/object/repair", REPAIRED)
    stand_in.runs(RAN)
    return stand_in


def call(xsc, tmp_path, command, name, *more):
    return xsc(*(word.format(name, tmp=tmp_path) for word in WORDS[command]), *more)


def about_objects(group, path=()):
    """The commands with a parameter that stands for a stored object."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from about_objects(command, (*path, name))
        elif any(param.type in (OBJECT, INPUT) for param in command.params):
            yield " ".join((*path, name))


def test_each_command_about_an_object_is_here():
    assert set(about_objects(cli)) == set(WORDS)


@pytest.mark.parametrize("command", sorted(WORDS.keys() - {"store rm"}))
def test_a_file_of_a_directory_is_meant_by_its_path(xsc, node, tmp_path, command):
    done = call(xsc, tmp_path, command, "album/2024/photo")
    assert (done.code, done.err) == (0, "")
    if command == "store get":
        assert (tmp_path / "out").read_bytes() == CONTENT
    elif command == "store share":
        assert done.text == FILE + "\n"
    elif command == "compute run":
        order, _ = node.last.job()
        assert order["inputs"] == {"data": FILE}
    else:
        assert node.last.headers["XSC-Capability"] == FILE


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize(
    "case",
    [
        ("album/2023/photo", "the directory album/ holds nothing of the path 2023/photo"),
        ("album/link", "album/link is a link to 2024/photo"),
        ("other/photo", "no object under that name"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(xsc, node, tmp_path, command, case):
    name, said = case
    done = call(xsc, tmp_path, command, name)
    assert (done.code - (120 if command == "compute run" else 0), done.out) == (2, b"")
    error, hint = done.err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")


def test_a_directory_is_asked_about_as_a_whole(xsc, node, tmp_path):
    for command in ("store stat", "store check"):
        for name in ("album", "album/", "album/2024"):
            answer = call(xsc, tmp_path, command, name, "--json").json
            assert answer["size_bytes"] == len(CONTENT)
            assert answer["tree"]["shards"] == {"ok": 2}
            assert answer["tree"]["files"] == (1 if name == "album/2024" else 2)
        assert "files " in call(xsc, tmp_path, command, "album").text
    assert len(call(xsc, tmp_path, "store repair", "album", "--json").json["objects"]) == 2
    shared = call(xsc, tmp_path, "store share", "album")
    assert shared.text == LIST + "\n"


def test_the_worst_file_decides_how_a_check_ends(xsc, node, tmp_path):
    whole = node.routes["GET", "/v1/object/check?deep=1"]

    def check(**about):
        def asked(request):
            if request.headers["XSC-Capability"] == LIST:
                return whole(request)
            return request.answer.document({**ANSWER, **about})

        node.routes["GET", "/v1/object/check?deep=1"] = asked
        return call(xsc, tmp_path, "store check", "album")

    hosts = [{"shard": 0, "node": "n" * 52, "state": "unreachable"}]
    done = check(hosts=hosts, readable=False, margin=-3, healable=False)
    assert done.code == 5
    assert "readable      no" in done.text
    assert "3 shards too few" in done.text
    assert "-3  no        2024/photo" in done.text
    assert check(hosts=[{**hosts[0], "state": "missing"}], margin=1).code == 6
    assert check(contract="1site", contract_kept=False).code == 7
    bad = {"segment": 0, "shard": 0, "node": "n" * 52, "reason": "not what was stored"}
    assert "not what was stored  2024/photo" in check(bad=[bad]).text
    node.refuses("GET", "/v1/object/check?deep=1", "object_unknown", "nobody has it")
    fails = node.routes["GET", "/v1/object/check?deep=1"]

    def unknown(request):
        listed = request.headers["XSC-Capability"] == LIST
        return (whole if listed else fails)(request)

    node.routes["GET", "/v1/object/check?deep=1"] = unknown
    done = call(xsc, tmp_path, "store check", "album")
    assert done.code == 2
    assert "nobody who answers has 1 file of it" in done.err


def test_a_directory_in_a_directory_is_listed_and_fetched_alone(xsc, node, tmp_path):
    rows = xsc("store", "ls", "-r", "album/2024", "--json").json["entries"]
    assert [row["path"] for row in rows] == ["photo"]
    node.answers("POST", "/v1/objects/contents", {"contents": [b64encode(CONTENT).decode()]})
    assert xsc("store", "get", "-r", "album/2024", "-o", str(tmp_path / "d")).code == 0
    assert (tmp_path / "d" / "photo").read_bytes() == CONTENT
    for words in (["ls", "-r", "album/2024/photo"], ["get", "-r", "album/empty", "-o", "x"]):
        done = xsc("store", *words)
        assert done.code == 2
        assert "is a file, not a directory" in done.err


def test_the_list_of_a_directory_is_fetched_once(xsc, node, tmp_path):
    assert call(xsc, tmp_path, "store check", "album/2024").code == 0
    fetched = [
        each.headers["XSC-Capability"] for each in node.requests if each.path == "/v1/object"
    ]
    assert fetched.count(LIST) == 1


def test_nothing_is_deleted_out_of_a_directory(xsc, node, tmp_path):
    done = call(xsc, tmp_path, "store rm", "album/2024/photo")
    assert (done.code, done.out) == (2, b"")
    assert "album/2024/photo lies in a stored directory, and goes with it" in done.err
    assert "DELETE" not in {request.method for request in node.requests}


def test_an_empty_file_has_no_object(xsc, node, tmp_path):
    assert call(xsc, tmp_path, "store get", "album/empty").code == 0
    assert (tmp_path / "out").read_bytes() == b""
    for command in ("store share", "compute run"):
        done = call(xsc, tmp_path, command, "album/empty")
        assert "album/empty is an empty file" in done.err
    assert "album/2024 is a directory" in call(xsc, tmp_path, "compute run", "album/2024").err
    assert "album/ is a directory" in call(xsc, tmp_path, "store get", "album").err
