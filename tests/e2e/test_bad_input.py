"""Malformed calls to a real node: one sentence, the right exit code, and nothing has changed."""

from __future__ import annotations

import http.client
import json
import shutil

import pytest

from tests.e2e.conftest import PROGRAMS

WORD = "xsc:r:" + "a" * 112


def state(member):
    """What a call that fails must leave as it is, and what only grows by it."""
    objects = member("store ls --json").json["objects"]
    kept = (
        [(row["name"], row["capability"]) for row in objects],
        sorted(
            (row["id"], row["name"], row["recognised_ppm"], row["limit_micro"])
            for row in member("peer ls --json").json["peers"]
        ),
    )
    rows = member("market leases --json").json["leases"]
    leases = {row["lease_id"]: (row["role"], row["peer"]) for row in rows}
    entries = member("ledger log --limit 1000 --json").json["entries"]
    return kept, leases, {row["entry_id"]: row["peer"] for row in entries}


CALLS = [
    ("store put /nowhere", 2, "argument_invalid"),
    ("store put - --survive 7nodes", 2, "durability_unreachable"),
    ("store put - --survive 256nodes", 2, "argument_invalid"),
    ("store put - --code 0,2", 2, "argument_invalid"),
    ("store put - --code 200,100", 2, "argument_invalid"),
    ("store get xsc:r: -o -", 2, "capability_invalid"),
    ("store get hello -o -", 2, "object_unknown"),
    ("store stat xsc:x:aaaa", 2, "capability_invalid"),
    ("store rm xsc:v:aaaa", 2, "capability_invalid"),
    (f"store rm {'a' * 4000}", 2, "argument_invalid"),
    (f"store get {'a' * 5000} -o -", 2, "argument_invalid"),
    ("peer add xsc1", 2, "invitation_invalid"),
    ("peer add hello", 2, "invitation_invalid"),
    (f"peer add xsc1{'a' * 3000}", 2, "invitation_invalid"),
    ("peer rm nobody", 2, "peer_unknown"),
    ("peer block nobody", 2, "peer_unknown"),
    ("peer rm ..", 2, "peer_unknown"),
    ("peer block a/b", 2, "peer_unknown"),
    (f"peer rm {'a' * 9000}", 2, "argument_invalid"),
    ("space get a//b", 2, "argument_invalid"),
    ("space rm ../a", 2, "argument_invalid"),
    (f"space ls {'x' * 3000}:a", 2, "peer_unknown"),
    ("program results ../../x", 2, "not_found"),
    ("compute undeploy ../x", 2, "not_found"),
    ("market withdraw ../x", 2, "not_found"),
    ("peer recognise nobody 1%", 2, "peer_unknown"),
    ("peer recognise node-1 100.1%", 2, "argument_invalid"),
    ("peer recognise node-1 -1%", 2, "argument_invalid"),
    ("peer invite --ttl 1ms", 2, "argument_invalid"),
    ("peer invite --ttl 365d", 2, "argument_invalid"),
    ("ledger log --limit 99999999", 2, "argument_invalid"),
    ("ledger entry hello -o /dev/null", 2, "not_found"),
    (f"ledger entry {'a' * 52} -o /dev/null", 2, "not_found"),
    ("compute invoke ADD sub 1 2", 2, "export_unknown"),
    ("compute invoke ADD add", 2, "signature_mismatch"),
    ("compute invoke ADD add 1 99999999999", 2, "signature_mismatch"),
    ("compute invoke ADD add 1 ''", 2, "signature_mismatch"),
    ("compute invoke ADD add 1 2 --on nobody", 2, "peer_unknown"),
    ("compute invoke ADD add 1 2 --fuel 99999999999999999999", 2, "argument_invalid"),
    ("compute invoke ADD add 1 2 --memory 2TiB", 2, "argument_invalid"),
    ("compute invoke ADD add 1 2 --timeout 30d", 2, "argument_invalid"),
    ("compute invoke ADD add 1 2 --receipt /nowhere/r", 2, "argument_invalid"),
    ("compute invoke /dev/null f", 2, "module_invalid"),
    ("compute invoke README f", 2, "module_invalid"),
    ("compute invoke /dev/zero f", 4, "too_large"),
]


@pytest.mark.parametrize(("words", "code", "name"), CALLS, ids=[call[0][:40] for call in CALLS])
def test_a_wrong_call_changes_nothing(net, tmp_path, words, code, name):
    shutil.copy(PROGRAMS / "add.wasm", tmp_path / "add.wasm")
    (tmp_path / "README").write_text("no module")
    words = words.replace("ADD", str(tmp_path / "add.wasm"))
    words = words.replace("README", str(tmp_path / "README"))
    net[2](words, stdin=b"content").fails(code, name)


@pytest.fixture(scope="module", autouse=True)
def unchanged(net):
    net[2].put(b"content" * 1000)  # the leases that a put needs are there
    kept, leases, entries = state(net[2])
    yield
    kept_after, leases_after, entries_after = state(net[2])
    assert kept_after == kept
    # What was open before may lapse and be settled meanwhile; this node takes nothing new.
    new = [leases_after[key] for key in leases_after.keys() - leases.keys()]
    assert "customer" not in {role for role, _ in new}
    settled = {entries_after[key] for key in entries_after.keys() - entries.keys()}
    assert settled <= {peer for _, peer in leases.values()} | set(entries.values())


def talk(member, method: str, path: str, body: bytes = b"", **headers) -> tuple[int, dict]:
    place = json.loads((member.home / "api.json").read_text())["url"].removeprefix("http://")
    token = (member.home / "api.token").read_text().strip()
    connection = http.client.HTTPConnection(place, timeout=20)
    given = {"Authorization": f"Bearer {token}"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def job(head: object, rest: bytes = b"") -> bytes:
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(raw).to_bytes(4, "big") + raw + rest


@pytest.mark.parametrize(
    "case",
    [
        ("GET", "/v1/nothing", b"", {}, 404),
        ("PUT", "/v1/status", b"", {}, 404),
        ("POST", "/v1/peers", b"", {}, 400),
        ("POST", "/v1/peers", b"{", {}, 400),
        ("POST", "/v1/peers", b"[]", {}, 400),
        ("POST", "/v1/peers", b'{"invitation": 7}', {}, 400),
        ("POST", "/v1/peers", b'{"invitation": "x", "more": 1}', {}, 400),
        ("POST", "/v1/peers", b'{"invitation": "' + b"a" * 2_000_000 + b'"}', {}, 413),
        ("POST", "/v1/peers/invitations", b'{"ttl_ms": -1}', {}, 400),
        ("POST", "/v1/peers/invitations", b'{"ttl_ms": "x"}', {}, 400),
        ("POST", "/v1/peers/node-1/recognise", b'{"weight_ppm": 1000001}', {}, 400),
        ("POST", "/v1/peers/node-1/recognise", b'{"weight_ppm": 0.5}', {}, 400),
        ("POST", "/v1/peers/%2e%2e/recognise", b'{"weight_ppm": 1}', {}, 404),
        ("GET", "/v1/object", b"", {}, 400),
        ("GET", "/v1/object", b"", {"XSC_Capability": "hello"}, 400),
        ("GET", "/v1/object/stat", b"", {}, 400),
        ("DELETE", "/v1/object", b"", {"XSC_Capability": "xsc:r:a"}, 400),
        ("POST", "/v1/objects", b"x", {"XSC_Size": "many"}, 400),
        ("POST", "/v1/objects", b"x", {"XSC_Size": "-1"}, 400),
        ("POST", "/v1/objects", b"x", {"XSC_Code": "4"}, 400),
        ("POST", "/v1/objects", b"x", {"XSC_Survive": "x"}, 400),
        ("POST", "/v1/objects", b"x", {"XSC_Name": "a" * 5000}, 400),
        ("GET", "/v1/requests/1000000", b"", {}, 404),
        ("GET", "/v1/ledger/log?limit=x", b"", {}, 400),
        ("GET", "/v1/ledger/entry/UPPER", b"", {}, 400),
        ("POST", "/v1/jobs", b"", {}, 400),
        ("POST", "/v1/jobs", b"\xff\xff\xff\xff", {}, 413),
        ("POST", "/v1/jobs", job(b"{"), {}, 400),
        ("POST", "/v1/jobs", job({"mode": "dance", "module_bytes": 0}), {}, 400),
        ("POST", "/v1/jobs", job({"mode": "invoke", "module_bytes": 9}, b"abc"), {}, 400),
        ("POST", "/v1/jobs", job({"mode": "invoke", "module_bytes": 1}, b"abc"), {}, 400),
        ("POST", "/v1/jobs", job({"mode": "invoke", "module_bytes": -1}), {}, 400),
        ("POST", "/v1/jobs", job({"mode": "invoke", "module_bytes": 2**40}), {}, 400),
    ],
    ids=lambda case: f"{case[0]} {case[1]} {case[2][:30]!r} {case[3]}"[:80],
)
def test_a_wrong_request_is_a_problem_document(net, case):
    method, path, body, headers, status = case
    seen, problem = talk(net[2], method, path, body, **headers)
    assert seen == status, problem
    assert set(problem) == {
        "code",
        "title",
        "status",
        "detail",
        "hint",
        "retryable",
        "retry_after_s",
    }
    assert problem["status"] == status
    assert problem["code"] != "bug"
