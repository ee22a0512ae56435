"""Networks of the test's own: an internet, routers that masquerade, and nodes at homes.

Each is a namespace of the kernel without a name, held by a process that ends with the test's: so
nothing is left behind, whatever ends the run. Threads of the test enter one to ask its node.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest

from tests.e2e.conftest import Done, Member, serves, wait_for
from xsc import api
from xsc.client.calls import Calls

PORT = 7411
SETTINGS = """peer_listen = "0.0.0.0:{port}"
advertise = "{address}:{port}"
"""
COMMON = """name = "{name}"
compute_workers = 1
probe_interval = "1s"
"""
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


class Namespace:
    """Interfaces, routes and rules of its own, and mounts for files at fixed places."""

    def __init__(self) -> None:
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", "ip link set lo up && echo && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.holder.stdout
        if not self.holder.stdout.readline():
            _, said = self.holder.communicate()
            raise OSError(said.decode().strip())

    @property
    def pid(self) -> int:
        return self.holder.pid

    def prefix(self) -> list[str]:
        """Return what begins a command that runs there."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--"]

    def run(self, script: str, **env: str) -> str:
        """Return what a script that works prints there."""
        done = subprocess.run(
            [*self.prefix(), "bash", "-euc", script],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(f"{script}\n{done.stdout}{done.stderr}")
        return done.stdout

    def nft(self, rules: str) -> None:
        """Add rules."""
        self.run(f"nft -f - <<'END'\n{rules}\nEND")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have what this thread connects meanwhile begin there."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            _enter(there)
            yield
        finally:
            _enter(own)
            os.close(own)
            os.close(there)

    @contextmanager
    def under(self, rules: str) -> Iterator[None]:
        """Have rules hold meanwhile, which are one table."""
        self.nft(rules)
        try:
            yield
        finally:
            self.run(f"nft delete {rules.partition('{')[0]}")

    def close(self) -> None:
        self.holder.communicate()


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True)
class Home(Member):
    """A node in a namespace."""

    name: str
    place: Namespace
    address: str
    """Where others find it: of the internet."""
    processes: list[subprocess.Popen] = field(default_factory=list)

    def configure(self, settings: str) -> None:
        """Write how its node is reached, and what all have."""
        self.home.mkdir(mode=0o700, parents=True)
        (self.home / "config.toml").write_text(COMMON.format(name=self.name) + settings)

    def start(self) -> None:
        """Start its node; that it serves is waited for elsewhere."""
        if not self.home.exists():
            self.configure(SETTINGS.format(port=PORT, address=self.address))
        with (self.home / "node.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig=KILL", *self.words("node", "start")],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def wait_for_start(self) -> None:
        process = self.processes[-1]

        def is_there() -> bool:
            with self.place.entered():
                return process.poll() is not None or serves(self, process.pid)

        wait_for(is_there)
        assert process.poll() is None, (self.home / "node.log").read_text()[-2000:]

    def stop(self) -> None:
        if self.processes:
            self.processes[-1].terminate()
            assert self.processes.pop().wait(60) == 0

    def words(self, *words: str) -> list[str]:
        return [
            *self.place.prefix(),
            *(sys.executable, "-m", "xsc", "--home", str(self.home), *words),
        ]

    def __call__(self, words: str | list[str], *, stdin: bytes = b"", **env: str) -> Done:
        given = shlex.split(words) if isinstance(words, str) else [str(word) for word in words]
        done = subprocess.run(
            self.words(*given),
            env={**os.environ, **env},
            input=stdin,
            capture_output=True,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr.decode())

    def ask(self, endpoint, **said):
        """Return what the node answers."""
        with self.place.entered():
            return Calls(self.home).ask(endpoint, **said)

    def invite(self) -> str:
        return self.ask(api.peers.INVITE)["invitation"]

    def rows(self) -> dict[str, dict]:
        """Return what health says of each peer, by its name."""
        return {row["name"]: row for row in self.ask(api.status.HEALTH)["peers"]}

    def states(self) -> dict[str, str]:
        return {name: row["state"] for name, row in self.rows().items()}

    def misses(self) -> dict[str, int]:
        return {name: row["misses"] for name, row in self.rows().items()}

    def has_logged(self, event: str) -> bool:
        return f'"{event}"' in (self.home / "node.log").read_text()


class Internet:
    """A bridge to which homes and routers are wired."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._count = 0
        self.hub = self._namespace()
        self.hub.run("ip link add br0 type bridge; ip link set br0 up")

    def _namespace(self) -> Namespace:
        made = Namespace()
        self._stack.callback(made.close)
        return made

    def _wire(self, place: Namespace, name: str) -> str:
        """Connect a namespace by an interface; return its address."""
        self._count += 1
        port, address = f"v{self._count}", f"198.51.100.{self._count}"
        self.hub.run(
            f"ip link add {port} type veth peer name {name} netns {place.pid};"
            f"ip link set {port} master br0 up"
        )
        place.run(f"ip addr add {address}/24 dev {name}; ip link set {name} up")
        return address

    def home(self, name: str) -> Home:
        """Return a home that the internet reaches."""
        place = self._namespace()
        return self._made(name, place, self._wire(place, "eth0"))

    def _made(self, name: str, place: Namespace, address: str) -> Home:
        home = Home(self._folder / name, name, place, address)
        self._stack.callback(home.stop)
        return home

    def home_behind_a_router(self, name: str, forwarded: str = "") -> tuple[Home, Namespace]:
        """Return a home, and the router before it, which forwards a port, such as `tcp dport 1`."""
        router, place = self._namespace(), self._namespace()
        address = self._wire(router, "wan")
        router.run(
            f"ip link add lan type veth peer name eth0 netns {place.pid};"
            "ip addr add 192.168.1.1/24 dev lan; ip link set lan up;"
            "echo 1 > /proc/sys/net/ipv4/ip_forward"
        )
        place.run(
            "ip addr add 192.168.1.2/24 dev eth0; ip link set eth0 up;"
            "ip route add default via 192.168.1.1"
        )
        forward = f'iifname "wan" {forwarded} dnat to 192.168.1.2' if forwarded else ""
        router.nft(
            f"""table ip nat {{
                chain out {{
                    type nat hook postrouting priority 100;
                    oifname "wan" masquerade
                }}
                chain in {{
                    type nat hook prerouting priority -100;
                    {forward}
                }}
            }}"""
        )
        return self._made(name, place, address), router


@contextmanager
def internet(folder: Path, *programs: str) -> Iterator[Internet]:
    """Return an internet, or skip the test with the reason why there can be none."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    for program in ("nft", "ip", "unshare", "nsenter", *programs):
        if shutil.which(program) is None:
            pytest.skip(
                f"{program} is needed: apt install nftables iproute2 wireguard-tools wireguard-go"
            )
    with ExitStack() as stack:
        try:
            made = Internet(folder, stack)
            _, router = made.home_behind_a_router("trial", f"tcp dport {PORT}")
            router.nft(LOSSY)
        except OSError as refused:
            if not any(reason in str(refused) for reason in REFUSALS):
                raise
            pytest.skip(f"this kernel refuses: {refused}")
        yield made


REFUSALS = (
    "Operation not permitted",
    "Permission denied",
    "not supported",
    "No such file or directory",
    "Unknown device type",
)
"""What is said where the kernel, or what confines this process, does not let it."""
LOSSY = """table ip lossy {
    chain in {
        type filter hook input priority 0;
        iifname != "lo" numgen random mod 100 < 30 drop
    }
}"""
CUT = """table ip cut {
    chain in {
        type filter hook input priority 0;
        iifname != "lo" drop
    }
    chain out {
        type filter hook output priority 0;
        oifname != "lo" drop
    }
}"""
CLOSED = """table ip closed {
    chain forward {
        type filter hook forward priority 0;
        iifname "wan" ct direction original drop
    }
}"""
"""At a router nothing comes in but answers; what others opened before ends, too."""


def start(homes: list[Home]) -> None:
    """Start nodes, and return once each serves."""
    for home in homes:
        home.start()
    for home in homes:
        home.wait_for_start()


def introduce(homes: list[Home]) -> None:
    """Have nodes join each other, and return once each sees all others."""
    for host, guest in combinations(homes, 2):
        guest.ask(api.peers.JOIN, invitation=host.invite())
    wait_for(lambda: all(all_up(home, homes) for home in homes))


def all_up(home: Home, homes: list[Home]) -> bool:
    others = {each.name for each in homes if each is not home}
    return {name for name, state in home.states().items() if state == "up"} >= others
