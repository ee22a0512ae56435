"""Parts of an object, and downloads that are killed, on a real network."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import wait_for
from xsc.client.partial import BLOCK_BYTES

MIB = 1024 * 1024
SEGMENT = 4 * MIB
SIZE = 3 * SEGMENT + 70_001


@pytest.fixture(scope="module")
def stored(net):
    content = os.urandom(SIZE)
    return content, net[0].put(content)


def ask(member, capability, range_):
    place = urlsplit(json.loads((member.home / "api.json").read_text())["url"])
    token = (member.home / "api.token").read_text().strip()
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {token}", "XSC-Capability": capability}
        connection.request("GET", "/v1/object", headers={**headers, **range_})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


@pytest.mark.parametrize(
    ("part", "at"),
    [
        ("0-0", slice(0, 1)),
        ("1000-1999", slice(1000, 2000)),
        (f"{SEGMENT - 1}-{SEGMENT}", slice(SEGMENT - 1, SEGMENT + 1)),
        (f"{SEGMENT + 5}-", slice(SEGMENT + 5, None)),
        ("-70002", slice(SIZE - 70_002, None)),
        (f"0-{SIZE + 9}", slice(None)),
    ],
)
def test_a_range_is_the_slice_on_the_command_line_and_over_http(net, stored, part, at, tmp_path):
    content, capability = stored
    done = net[5](["store", "get", capability, "--range", part, "-o", "-"])
    assert (done.code, done.err) == (0, "")
    assert done.out == content[at]
    status, headers, body = ask(net[6], capability, {"Range": f"bytes={part}"})
    start, stop, _ = at.indices(SIZE)
    assert (status, body) == (206, content[at])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert headers["Content-Length"] == str(stop - start)


def test_a_whole_answer_says_that_ranges_are_given(net, stored):
    content, capability = stored
    status, headers, body = ask(net[6], capability, {})
    assert (status, headers["Accept-Ranges"], body) == (200, "bytes", content)
    assert "Content-Range" not in headers


def test_a_range_behind_the_end_and_a_malformed_one_are_refused(net, stored):
    _, capability = stored
    status, headers, body = ask(net[6], capability, {"Range": f"bytes={SIZE}-"})
    assert (status, headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert headers["Content-Type"].startswith("application/problem+json")
    assert json.loads(body)["code"] == "range_unsatisfiable"
    for wrong in ("bytes=5-4", "bytes=0-1,5-6", "lines=1-2", "bytes=-"):
        status, _, body = ask(net[6], capability, {"Range": wrong})
        assert (status, json.loads(body)["code"]) == (400, "argument_invalid")
    done = net[5](["store", "get", capability, "--range", f"{SIZE}-", "-o", "-"])
    done.fails(2, "range_unsatisfiable")


def download(member, capability, target):
    words = ["--home", str(member.home), "store", "get", capability, "-o", str(target)]
    return subprocess.Popen([sys.executable, "-m", "xsc", *words], stderr=subprocess.DEVNULL)


def at_least(path, size):
    return lambda: path.exists() and path.stat().st_size >= size


def test_a_get_goes_on_after_its_client_and_its_node_were_killed(net, tmp_path):
    size = 64 * SEGMENT + 9
    content = os.urandom(size)
    capability = net[0].put(content)
    reader, target = net[4], tmp_path / "copy"
    part, sums = tmp_path / "copy.part", tmp_path / "copy.part.sums"

    process = download(reader, capability, target)
    wait_for(at_least(part, 2 * SEGMENT))
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(sums.read_text().splitlines()) - 1
    assert kept >= 1, "what came is kept"
    assert part.stat().st_size - kept * BLOCK_BYTES <= BLOCK_BYTES
    assert not target.exists()

    row = next(row for row in net.status() if row["name"] == "node-4")
    process = download(reader, capability, target)
    wait_for(at_least(part, kept * BLOCK_BYTES + 2 * SEGMENT))
    try:
        net.kill([row])
        assert process.wait() == 5
    finally:
        assert net.up().code == 0
    after = len(sums.read_text().splitlines()) - 1
    assert after >= kept

    done = reader(["store", "get", capability, "-o", target, "--json"])
    assert done.json == {"file": str(target), "size_bytes": size}
    assert target.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert net[0](["store", "rm", capability]).code == 0
