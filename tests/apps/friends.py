"""Seven friends who store, compute, offer, need and owe, so that each page can show something."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.request import urlopen

from tests.e2e.conftest import CONFIG, PROGRAMS, Member, Net, wait_for
from xsc.base.limits import KIB, MIB

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gwen")
OBJECTS = {
    "photos/summer-2026.tar": 3 * MIB,
    "photos/wedding.tar": 2 * MIB,
    "tax-2025.pdf": 400 * KIB,
    "thesis.odt": 150 * KIB,
}
RECOGNISED = {"Ben": 40, "Cleo": 20, "Dan": 10}
"""By Ada, in per cent; the first two recognise her, too."""
NEEDED = {"Ben": 300, "Cleo": 200, "Dan": 100, "Eva": 200}
"""Of Ada's compute, in Mfuel/s: twice what she offers."""
OFFERED = 400
PROGRAM = """id = "free"

[variables.here]
kind = "subscription"
type = "integer"
path = "free/bytes"

[variables.there]
kind = "subscription"
type = "integer"
owner = "Ben"
path = "free/bytes"

[computations.sum]
function = "math.add"
inputs = { x = "here", y = "there" }
outputs.total = { path = "free/total" }
"""


class Friends(Net):
    """Nodes with names of people; the first one's pages are looked at."""

    def start(self, index: int) -> None:
        home = self[index].home
        if not home.exists():
            home.mkdir(mode=0o700, parents=True)
            text = CONFIG.format(NAMES[index]) + 'storage_capacity = "1GiB"\n'
            (home / "config.toml").write_text(text)
        super().start(index)

    def named(self, name: str) -> Member:
        return self[NAMES.index(name)]


def do(member: Member, words: str | list[str], stdin: bytes = b"") -> str:
    """Return what a command line that works printed."""
    done = member(words, stdin=stdin)
    assert done.code == 0, (words, done.err)
    return done.text.strip()


def fill(net: Friends) -> None:
    """Do something of each kind, and return once Ada knows what came of it."""
    ada = net.named("Ada")
    for name, percent in RECOGNISED.items():
        do(ada, f"peer recognise {name} {percent}%")
    for name in ("Ben", "Cleo"):
        do(net.named(name), "peer recognise Ada 30%")
    for name, size_bytes in OBJECTS.items():
        do(ada, f"store put - --name {name}", stdin=os.urandom(size_bytes))
    for name in NAMES[1:]:
        net.named(name).put(os.urandom(500 * KIB))
    divide(net, ada)
    run(net, ada)
    for name in NAMES:
        do(net.named(name), "ledger settle")


def divide(net: Friends, ada: Member) -> None:
    """Have friends need more of Ada's compute than she offers."""
    for slot in ada("market slots --json").json["slots"]:
        if slot["node"] == ada.id and slot["kind"] == "compute":
            do(ada, f"market withdraw {slot['id']}")
    stated = [
        net.named(name)(
            f"market need compute {quantity}Mfuel/s --spread 1 --filter node=Ada --price 0.5"
        ).line
        for name, quantity in NEEDED.items()
    ]
    wait_for(
        lambda: {row["id"] for row in ada("market slots --json").json["slots"]}.issuperset(stated)
    )
    ada(f"market offer compute {OFFERED}Mfuel/s --price 0.15")
    wait_for(lambda: len(shares(ada)) > 1)


def shares(ada: Member) -> dict[str, int]:
    """Return what each friend is granted of Ada's compute."""
    rows = ada("allocation show --json").json["slots"]
    return {
        line["name"]: line["quantity"]
        for row in rows
        if row["node"] == ada.id and row["kind"] == "compute"
        for line in row["allocations"]
    }


def run(net: Friends, ada: Member) -> None:
    """Run a function, a service that is asked once, and a program."""
    assert ada(["compute", "invoke", PROGRAMS / "add.wasm", "add", "1", "2"]).line == "3"
    url = ada(["compute", "deploy", PROGRAMS / "greet.wasm", "--name", "hello"]).line
    with urlopen(f"{url}?name=Ben") as answer:
        assert answer.read() == b"Hello, Ben!\n"
    document = Path(net.folder / "free.toml")
    document.write_text(PROGRAM)
    program = ada(["program", "register", document]).line
    do(ada, f"program activate {program}")
    do(ada, "space put free/bytes 5000000000")
    do(net.named("Ben"), "space put free/bytes 7000000000")
    wait_for(lambda: ada("space get free/total").out == b"12000000000")
