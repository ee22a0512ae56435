"""The recipe for WireGuard in docs/running.md, played by three friends behind routers."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apps.homes import internet, introduce, start
from tests.e2e.conftest import REPOSITORY, wait_for
from xsc import api

PAGE = REPOSITORY / "docs" / "running.md"
OTHERS = ("apt ", "systemctl ")
"""What begins commands that are about the machine, which is that of the test."""


def blocks(language: str) -> list[str]:
    """Return the blocks of the recipe in a language."""
    _, _, recipe = PAGE.read_text().partition("\n### WireGuard\n")
    recipe, _, _ = recipe.partition("\n### ")
    return re.findall(rf"```{language}\n(.*?)```", recipe, re.DOTALL)


def playable(block: str) -> str:
    return "\n".join(line for line in block.splitlines() if not line.startswith(OTHERS))


@pytest.mark.timeout(600)
def test_three_friends_behind_routers_meet_by_the_recipe(tmp_path):
    make_key, bring_up, *_ = map(playable, blocks("sh"))
    of_alice, of_bob = blocks("ini")
    (settings,) = blocks("toml")
    with internet(tmp_path, "wg", "wg-quick", "wireguard-go") as world, ExitStack() as tunnels:
        if not Path("/dev/net/tun").exists():
            pytest.skip("there is no /dev/net/tun")
        alice, _ = world.home_behind_a_router("alice", "udp dport 51820")
        bob, _ = world.home_behind_a_router("bob")
        carol, _ = world.home_behind_a_router("carol")
        friends = [alice, bob, carol]
        keys = {}
        for friend in friends:
            # Each has these directories for itself, as on a machine of its own.
            friend.place.run(
                "mkdir -p /etc/wireguard /run/wireguard;"
                "mount -t tmpfs none /etc/wireguard; mount -t tmpfs none /run/wireguard"
            )
            keys[friend.name] = friend.place.run(make_key).strip()
        peer = of_alice[of_alice.index("[Peer]") :]
        written = {
            "alice": of_alice + peer.replace("BOB", "CAROL").replace("10.26.0.2", "10.26.0.3"),
            "bob": of_bob,
            "carol": of_bob.replace("10.26.0.2", "10.26.0.3"),
        }
        for number, friend in enumerate(friends, 1):
            text = written[friend.name].replace("alice.example", alice.address)
            for name, key in keys.items():
                text = text.replace(f"KEY_OF_{name.upper()}", key)
            friend.place.run(f"cat > /etc/wireguard/xsc.conf <<'END'\n{text}\nEND")
            friend.place.run(bring_up)
            tunnels.callback(friend.place.run, "wg-quick down xsc")
            friend.configure(settings.replace("10.26.0.2", f"10.26.0.{number}"))
        start(friends)
        introduce(friends)
        content = os.urandom(300_000)
        assert carol.get(bob.put(content)) == content
        for friend in friends:
            wait_for(lambda friend=friend: reached_by(friend) == 2)


def reached_by(home):
    return home.ask(api.status.STATUS)["peers"]["reached_by"]
