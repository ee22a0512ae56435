"""Parts of an object, on a real network."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from urllib.parse import urlsplit

import pytest

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
