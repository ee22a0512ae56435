"""A node behind a router, in network namespaces: who cannot dial it, and the recipe that helps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_for

RECIPE = Path(__file__).parents[2] / "docs" / "running.md"
MARK = f"x{os.getpid() % 100_000}"
ANN, ROUTER, BEN = (f"{MARK}{name}" for name in ("ann", "router", "ben"))
WITHOUT = {"ann": "198.51.100.1:7411", "ben": "192.168.7.2:7411"}
WITHIN = {"ann": "10.77.0.1:7411", "ben": "10.77.0.2:7411"}
CONFIG = """name = "{name}"
peer_listen = "{listen}"
advertise = "{advertise}"
api_listen = "127.0.0.1:0"
services_listen = "127.0.0.1:0"
compute_workers = 1
probe_interval = "2s"
storage_capacity = "1GiB"
"""


def lacks():
    """Return why it cannot be played here; "" where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if any(shutil.which(name) is None for name in ("ip", "nft", "wg-quick", "wireguard-go")):
        return "`apt install iproute2 nftables wireguard-tools wireguard-go` is needed"
    tried = subprocess.run(["ip", "netns", "add", MARK], capture_output=True, check=False)
    if tried.returncode:
        return f"no network namespace can be made here: {tried.stderr.decode().strip()}"
    made = subprocess.run(
        ["ip", "-n", MARK, "link", "add", "v", "type", "veth"], capture_output=True, check=False
    )
    subprocess.run(["ip", "netns", "del", MARK], check=True)
    return f"no link can be made here: {made.stderr.decode().strip()}" if made.returncode else ""


def do(words, **given):
    return subprocess.run(words.split(), check=True, capture_output=True, text=True, **given).stdout


def within(place, words, **given):
    return do(f"ip netns exec {place} {words}", **given)


@pytest.fixture
def places():
    """A machine in the internet, a router that masquerades, and a machine behind it."""
    if reason := lacks():
        pytest.skip(reason)
    with ExitStack() as stack:
        for place in (ANN, ROUTER, BEN):
            do(f"ip netns add {place}")
            stack.callback(do, f"ip netns del {place}")
            do(f"ip -n {place} link set lo up")
        for place, address, at_router in (
            (ANN, "198.51.100.1/24", "198.51.100.2/24"),
            (BEN, "192.168.7.2/24", "192.168.7.1/24"),
        ):
            do(f"ip -n {place} link add eth type veth peer name {place} netns {ROUTER}")
            for where, name, own in ((place, "eth", address), (ROUTER, place, at_router)):
                do(f"ip -n {where} addr add {own} dev {name}")
                do(f"ip -n {where} link set {name} up")
        do(f"ip -n {BEN} route add default via 192.168.7.1")
        within(ROUTER, "sysctl -qw net.ipv4.ip_forward=1")
        rules = "type nat hook postrouting priority 100;"
        rules = f'table ip nat {{\nchain post {{\n{rules}\noifname "{ANN}" masquerade\n}}\n}}\n'
        within(ROUTER, "nft -f -", input=rules)
        yield


class Node:
    """A node in a namespace."""

    def __init__(self, name, place, home):
        self.name, self.place, self.home = name, place, home
        self.process = None

    def start(self, at):
        self.home.mkdir(mode=0o700, exist_ok=True)
        text = CONFIG.format(name=self.name, listen=at, advertise=at)
        (self.home / "config.toml").write_text(text)
        words = ["ip", "netns", "exec", self.place, sys.executable, "-m", "xsc"]
        with (self.home / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*words, "--home", self.home, "node", "start"], stdout=log, stderr=log
            )
        wait_for(lambda: self.xsc("node", "status").returncode == 0)

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def xsc(self, *words):
        place = ["ip", "netns", "exec", self.place, sys.executable, "-m", "xsc", "--home"]
        return subprocess.run(
            [*place, self.home, *words], capture_output=True, text=True, check=False
        )

    def peer(self):
        (row,) = json.loads(self.xsc("peer", "ls", "--json").stdout)["peers"]
        return row["state"], row["reaches_us"]


def recipe(folder, endpoint):
    """Return the two files of the recipe, with keys, and the endpoint where Ann is."""
    text = RECIPE.read_text()
    section = text[text.index("## Behind a router") : text.index("## In a container")]
    blocks = re.findall(r"```ini\n(.*?)```", section, re.DOTALL)
    keys = {"ann.example": endpoint}
    for name in ("ANN", "BEN"):
        private = do("wg genkey").strip()
        keys[f"{name}_PRIVATE_KEY"] = private
        keys[f"{name}_PUBLIC_KEY"] = do("wg pubkey", input=private).strip()
    for name, block in zip(("ann", "ben"), blocks, strict=True):
        text = re.sub("|".join(keys), lambda found: keys[found[0]], block)
        # The file's name is the interface's, and its socket has one place on a machine.
        path = folder / f"{MARK}{name}.conf"
        path.touch(mode=0o600)
        path.write_text(text)
        yield path


def test_who_cannot_be_dialled_learns_it_and_the_recipe_for_wireguard_helps(places, tmp_path):
    ann, ben = Node("ann", ANN, tmp_path / "ann"), Node("ben", BEN, tmp_path / "ben")
    with ExitStack() as stack:
        for node in (ann, ben):
            stack.callback(node.stop)
            node.start(WITHOUT[node.name])
        invitation = ann.xsc("peer", "invite").stdout.strip()
        added = ben.xsc("peer", "add", invitation)
        assert added.returncode == 0, added.stderr
        wait_for(lambda: ben.peer() == ("up", False))
        doctor = ben.xsc("node", "doctor")
        assert "1 of 1 peers that this node reaches cannot reach it" in doctor.stdout
        assert "docs/running.md, 'Behind a router'" in doctor.stdout + doctor.stderr

        for node, path in zip((ann, ben), recipe(tmp_path, "198.51.100.1"), strict=True):
            within(node.place, f"wg-quick up {path}")
            stack.callback(_down, node.place, path)
        for node in (ben, ann):  # One after the other, so that one always finds the other.
            node.stop()
            node.start(WITHIN[node.name])
            for each in (ann, ben):
                wait_for(lambda each=each: each.peer() == ("up", True))
        assert "1 peers say that they reach it" in ben.xsc("node", "doctor").stdout


def _down(place, path):
    with suppress(subprocess.CalledProcessError):
        within(place, f"wg-quick down {path}")
