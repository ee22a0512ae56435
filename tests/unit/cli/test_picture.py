"""The picture of `xsc top` at each size, whatever the node holds and peers call themselves."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from xsc.cli.picture import Heard, picture

ME = "a" * 52
KINDS = ("storage", "compute")
HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "[bold red]x[/]",
    ":skull:",
    "名" * 10_000,
    "e" + "\u0301" * 10_000,
    "\u202eevil",
    "\n\r\t",
]


def measures(peers=(), **given):
    kind = dict.fromkeys(("offered", "granted", "drawn", "needed", "received", "reserve_micro"), 0)
    return {
        "status": {
            "name": "node-0",
            "id": ME,
            "state": "running",
            "uptime_s": 7_500,
            "version": "1.2",
            "alerts": 0,
            "peers": {"known": len(peers), "healthy": sum(row["up"] for row in peers)},
            "storage": {"used_bytes": 0, "capacity_bytes": 0, "disk_free_bytes": 5 << 30},
            "compute": {"running": 0, "queued": 0, "workers": 2},
            "traffic": {"sent_bytes": 0, "received_bytes": 0},
        },
        "margins": [],
        "leases": [],
        "events": [],
        "kinds": [{"kind": name, **kind} for name in KINDS],
        "peers": list(peers),
        **given,
    }


def peer(number, *, up=True, name=None, outcome="ok"):
    return {
        "peer": f"{number:a>52}",
        "name": f"peer-{number:02}" if name is None else name,
        "state": "up" if up else "down",
        "up": up,
        "availability_ppm": 999_000,
        "outcome": outcome,
        "grade": "vetted",
        "balance_micro": -250_000,
    }


def drawn(heard, width, height, foot="", **how):
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None, **how)
    console.print(picture(heard, foot))
    lines = out.getvalue().split("\n")
    assert lines.pop() == ""
    assert [cell_len(line) for line in lines] == [width] * height
    assert all(line.isprintable() for line in lines)
    return "\n".join(lines)


SIZES = pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60)])


@SIZES
def test_an_empty_node_says_which_command_fills_each_panel(width, height):
    text = drawn(Heard(measures(), [], [], []), width, height)
    for said in (
        *("store put", "compute run", "peer invite", "market offer"),
        *("storage", "jobs", "peers: 0 of 0 answer", "market and tiers", "log", "node-0"),
    ):
        assert said in text


@SIZES
@pytest.mark.parametrize("count", [3, 50])
def test_peers_that_do_not_answer_come_first(width, height, count):
    rows = [peer(number, up=number != count - 1) for number in range(count)]
    text = drawn(Heard(measures(rows), [], [], []), width, height)
    assert f"peers: {count - 1} of {count} answer" in text
    assert f"peer-{count - 1:02}" in text
    assert text.index(f"peer-{count - 1:02}") < text.index("peer-00")
    assert "-0.250000" in text
    assert "99.9%" in text


@SIZES
def test_a_peer_that_lost_what_it_stores_comes_first(width, height):
    rows = [peer(0), peer(1, outcome="bad_proof"), peer(2, outcome="timeout")]
    text = drawn(Heard(measures(rows), [], [], []), width, height)
    assert text.index("peer-01") < text.index("peer-00")
    assert "bad proof" in text
    assert "timeout" not in text


@SIZES
def test_what_the_node_holds_runs_offers_and_tells_is_there(width, height):
    heard = Heard(
        measures(
            margins=[{"margin": 0, "objects": 1}, {"margin": 2, "objects": 7}],
            leases=[
                {"role": "customer", "kind": "storage", "leases": 9, "lease_price_micro": 1_500},
                {"role": "provider", "kind": "storage", "leases": 4, "lease_price_micro": 1},
            ],
            events=[
                {"event": "compute.ran", "lines": 3, "fuel": 12_000},
                {"event": "compute.invoked", "lines": 1, "fuel": 7},
            ],
            kinds=[
                {"kind": "storage", "offered": 10 << 30, "needed": 1 << 30, "received": 2 << 20}
                | {"reserve_micro": 700},
                {"kind": "compute", "offered": 400_000_000, "needed": 0, "received": 0}
                | {"reserve_micro": 0},
            ],
        ),
        [{"since_ms": 0, "over_ms": None, "says": "an object has no host to spare"}],
        [
            {"node": node, "kind": "storage", "tiers": [{"tier": "mutual", "given": given}]}
            for node, given in ((ME, 5 << 20), (ME, 1 << 20), ("b" * 52, 9 << 20))
        ],
        [
            {"at_ms": 1_000, "level": "info", "says": "storage put: the first"},
            {"at_ms": 61_000, "level": "warning", "says": "health down: the second"},
        ],
    )
    text = drawn(heard, width, height)
    for said in (
        *("1 at 0, 7 at 2", "9 taken, 4 given", "3 jobs, 12,000 fuel", "1 job, 7 fuel"),
        *("10.0 GiB", "400 Mfuel/s", "6.0 MiB", "2.0 MiB", "0.000700", "0.001500"),
    ):
        assert said in text
    told = ["no host to spare", "00:01:01", "health down: the second", "storage put: the first"]
    assert [text.index(each) for each in told] == sorted(text.index(each) for each in told)


@SIZES
@pytest.mark.parametrize("name", HOSTILE)
def test_what_others_chose_neither_steers_the_terminal_nor_moves_the_picture(width, height, name):
    rows = [peer(0, name=name), peer(1, name="bob")]
    told = measures(rows)
    told["status"]["name"] = name
    lines = [{"at_ms": 0, "level": "info", "says": f"net odd: {name}"}]
    alerts = [{"since_ms": 0, "over_ms": 5, "says": f"{name} owes"}]
    text = drawn(Heard(told, alerts, [], lines), width, height, markup=True, emoji=True)
    assert "bob" in text
    assert "💀" not in text
    assert len(text) < 4 * width * height


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10, 3), (40, 12), (80, 5)])
def test_a_terminal_that_is_too_small_cuts_it_off(width, height):
    drawn(Heard(measures([peer(0)]), [], [], []), width, height, "q ends")
