"""Real nodes in network namespaces: a router that masquerades, a lossy network, a cut."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from tests.apps.homes import CLOSED, CUT, LOSSY, PORT, all_up, internet, introduce, start
from tests.e2e.conftest import wait_for
from xsc import api
from xsc.base.errors import UnavailableError

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    """Three nodes that the internet reaches, and dave, whose router forwards his port at last."""
    with internet(tmp_path_factory.mktemp("homes")) as world:
        dave, router = world.home_behind_a_router("dave", f"tcp dport {PORT}")
        homes = [*map(world.home, ("alice", "bob", "carol")), dave]
        start(homes)
        with router.under(CLOSED):
            added = dave("peer add -", stdin=homes[0].invite().encode())
            examined = dave("node doctor")
        introduce(homes)
        yield homes, added, examined


def test_a_node_that_nobody_can_dial_is_told_what_helps(circle):
    homes, added, examined = circle
    dave = homes[-1]
    cannot = f"that this node reaches cannot reach it at {dave.address}:{PORT}"
    assert added.code == 0
    assert added.text.startswith("added alice")
    assert examined.code == UnavailableError.exit_code
    for told in (added.err, examined.text):
        assert cannot in told
        assert "docs/running.md, 'Behind routers'" in told
    # Now that the port is forwarded, they reach it.
    wait_for(lambda: dave.ask(api.status.STATUS)["peers"]["reached_by"] == 3)


def test_where_a_third_of_all_packets_is_lost_nobody_is_absent(circle):
    homes, *_ = circle
    content = os.urandom(20_000)
    wait_for(lambda: all(all_up(home, homes) for home in homes))
    before = [(home.misses(), probed(home)) for home in homes]
    with ExitStack() as stack:
        for home in homes:
            stack.enter_context(home.place.under(LOSSY))
        capability = out_of(homes[0], "store put - --name lossy", content)
        assert out_of(homes[1], "store get - -o -", capability) == content
        for home, (_, probes) in zip(homes, before, strict=True):
            # Six rounds of three peers: enough for two misses and four windows.
            wait_for(lambda home=home, probes=probes: probed(home) >= probes + 18)
    assert [home.misses() for home in homes] == [misses for misses, _ in before]


def out_of(home, words, stdin):
    """Return what a command prints that is repeated as long as it asks for that."""
    done = wait_for(
        lambda: (done := home(words, stdin=stdin)).code != UnavailableError.exit_code and done
    )
    assert done.code == 0, done.err
    return done.out


def probed(home):
    return sum(row["probes"] for row in home.rows().values())


def test_who_was_cut_off_is_absent_comes_back_and_blames_nobody(circle):
    homes, *_ = circle
    carol, others = homes[2], [home for home in homes if home is not homes[2]]
    wait_for(lambda: all(all_up(home, homes) for home in homes))
    before = [(home.misses(), quality(home)) for home in homes]
    with carol.place.under(CUT):
        wait_for(lambda: all(home.states()["carol"] == "absent" for home in others))
        wait_for(lambda: "up" not in carol.states().values())
    wait_for(lambda: all(all_up(home, homes) for home in homes))
    assert carol.has_logged("health.void")
    assert not carol.has_logged("health.absent")
    for home, (misses, scores) in zip(homes, before, strict=True):
        missed, score = home.misses(), quality(home)
        for name in score.keys() - {"carol"}:
            assert missed[name] == misses[name]
            assert score[name] >= scores[name]
        assert home is carol or missed["carol"] > misses["carol"]


def quality(home):
    return {name: row["quality_ppm"] for name, row in home.rows().items()}
