"""Long work at the node is watched by asking how far it is, until its answer comes."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Event

import pytest

from xsc.base.errors import NotAllowed
from xsc.client import calls
from xsc.client.calls import Calls


class Watched:
    """Notes what a watch is told: each total, and what was done of it."""

    def __init__(self):
        self.seen = []

    @contextmanager
    def __call__(self, total):
        done = []
        self.seen.append((total, done))
        yield done.append


@pytest.fixture
def long_work(stand_in, monkeypatch):
    """Serve work that ends once it was asked four times how far it is."""
    monkeypatch.setattr(calls, "LOOK_S", 0.001)
    monkeypatch.setattr(calls.secrets, "token_hex", lambda _: "1de7")
    over = Event()
    looks = []

    def work(request):
        looks.append(1)
        if len(looks) == 2:
            request.answer.document({"code": "bug", "detail": "this once", "hint": ""}, 500)
            return
        rows = [{"id": "another", "done_bytes": 7, "total_bytes": 8}]
        if len(looks) > 2:
            rows.append({"id": "1de7", "done_bytes": 10 * len(looks), "total_bytes": 50})
        request.answer.document({"work": rows})
        if len(looks) == 4:
            over.set()

    def serve(method, path, document, status=200):
        def answer(request):
            assert "work=1de7" in request.path or request.json()["work"] == "1de7"
            assert over.wait(30)
            request.answer.document(document, status)

        stand_in.routes[method, path] = answer

    stand_in.routes["GET", "/v1/work"] = work
    return serve


@pytest.mark.parametrize("deep", [True, False])
def test_a_check_of_a_running_node_says_how_far_it_is(stand_in, long_work, deep):
    long_work("POST", "/v1/storage/fsck", {"whole": True})
    watch = Watched()
    assert Calls(stand_in.home).fsck(watch, deep=deep) == {"whole": True}
    (unknown, _), (total, done) = watch.seen
    assert (unknown, total) == (None, 50)
    assert sum(done) >= 40


def test_a_deep_check_of_an_object_says_how_far_it_is(stand_in, long_work):
    long_work("GET", "/v1/object/check?deep=1", {"bad": []})
    watch = Watched()
    assert Calls(stand_in.home).check("xsc:r:a", watch, deep=True) == {"bad": []}
    assert [total for total, _ in watch.seen] == [None, 50]


def test_what_the_node_refuses_is_raised_where_it_is_waited_for(stand_in, long_work):
    refusal = {"code": "not_allowed", "detail": "no", "hint": ""}
    long_work("POST", "/v1/storage/fsck", refusal, 403)
    with pytest.raises(NotAllowed):
        Calls(stand_in.home).fsck(Watched())


def test_who_does_not_wait_any_more_is_not_kept(stand_in, long_work):
    long_work("POST", "/v1/storage/fsck", {"whole": True})

    class Gone(Exception):
        pass

    @contextmanager
    def watch(_):
        def progress(_):
            raise Gone

        yield progress

    with pytest.raises(Gone):
        Calls(stand_in.home).fsck(watch)
