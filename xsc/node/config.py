"""Configuration: a TOML file, environment variables, flags, weakest first.

Each key has one line in `KEYS`: its default, how its text is read and what it
means; docs/configuration.md is checked against it. A bad key or value names
the file and line, the variable or the flag, and what was expected.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xsc.base import limits
from xsc.base.errors import ArgumentInvalid, ConfigInvalid
from xsc.base.text import cause
from xsc.base.units import (
    format_duration,
    format_size,
    parse_credits,
    parse_duration_ms,
    parse_share_ppm,
    parse_size,
)
from xsc.net.transport.addresses import is_loopback, is_unspecified, split
from xsc.node.logging import LEVELS
from xsc.storage.object.durability import Contract
from xsc.storage.object.durability import parse as parse_contract

ENVIRONMENT_PREFIX = "XSC_"
_NOT_KEYS = frozenset({"XSC_HOME", "XSC_PASSPHRASE", "XSC_DEBUG"})
_LABEL = re.compile(r"[A-Za-z0-9._-]{0,64}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a node, checked."""

    name: str
    api_listen: str
    peer_listen: str
    services_listen: str
    """Empty where no services are served."""
    services_url: str
    advertise: tuple[str, ...]
    accept_peers: str
    site: str
    owner: str
    survive: Contract | None
    """None stands for: what all known nodes could keep, at most two nodes."""
    log_level: str
    storage_capacity_bytes: int
    """0 stands for: half of what the disk has left at the start, at most 100 GiB."""
    disk_reserve_ppm: int
    compute_workers: int
    worker_speed_mfuel: int
    offer: str
    fuel: int
    memory_bytes: int
    timeout_ms: int
    compile_limit_ms: int
    storage_price_micro: int
    compute_price_micro: int
    mutual_discount_ppm: int
    one_way_discount_ppm: int
    storage_price_max_micro: int
    compute_price_max_micro: int
    starter_credit_micro: int
    probe_interval_ms: int
    settle_interval_ms: int
    booking_interval_ms: int
    storage_lease_ms: int
    lease_grace_ms: int
    lease_warning_ms: int
    leftover_after_ms: int
    node_life_ms: int
    site_life_ms: int
    owner_life_ms: int
    repair_time_ms: int
    guard: str
    guard_bytes: int
    repair_grace_ms: int
    repair_bytes_a_second: int
    repair_interval_ms: int
    moved_kept_ms: int
    keep_versions: int
    keep_days: int

    @property
    def warned_ms(self) -> int:
        """How long before the end of a lease the node warns: less than is left at a renewal."""
        return min(self.lease_warning_ms, self.storage_lease_ms * 3 // 8)

    @property
    def lives_ms(self) -> tuple[int, ...]:
        """Mean time to the loss for good of each kind of failure domain that is lost by chance."""
        return self.node_life_ms, self.site_life_ms, self.owner_life_ms


@dataclass(frozen=True, slots=True)
class Key:
    """One configuration key."""

    field: str
    default: str
    read: Callable[[str], object]
    meaning: str


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ArgumentInvalid("expected at most 64 letters, digits, dots, dashes or underscores")
    return text


def _name(text: str) -> str:
    if not text or not _LABEL.fullmatch(text):
        raise ArgumentInvalid("expected 1 to 64 letters, digits, dots, dashes or underscores")
    return text


def _address(text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise ArgumentInvalid("expected an address and a port, for example 127.0.0.1:7411")
    return text


def _loopback(text: str) -> str:
    host = _address(text).rsplit(":", 1)[0]
    if host not in ("127.0.0.1", "[::1]", "localhost"):
        raise ArgumentInvalid("the API listens on loopback only: 127.0.0.1, [::1] or localhost")
    return text


def _listener(text: str) -> str:
    """Return an address, on this machine alone where only a port is given; empty is off."""
    if not text:
        return ""
    return _address(f"127.0.0.1:{text}" if text.isdecimal() else text)


def _url(text: str) -> str:
    if text and not re.fullmatch(r"https?://[!-~]{1,200}", text):
        raise ArgumentInvalid("expected the beginning of a URL, for example https://fn.example")
    return text.rstrip("/")


def _addresses(text: str) -> tuple[str, ...]:
    return tuple(_address(part.strip()) for part in text.split(",") if part.strip())


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ArgumentInvalid(f"expected one of {', '.join(choices)}")
        return text

    return read


_SHOWN: Final[Mapping[object, Callable[[int], str]]] = {
    parse_duration_ms: format_duration,
    parse_size: format_size,
}
"""Formats the bounds of what was read so."""


def _between(
    least: int, most: int, read: Callable[[str], int] | None = None
) -> Callable[[str], int]:
    def reader(text: str) -> int:
        if read is not None:
            value = read(text)
        elif re.fullmatch(r"[0-9][0-9_]*", text):
            value = int(text)
        else:
            raise ArgumentInvalid(f"expected a whole number from {least} to {most}")
        if not least <= value <= most:
            shown = _SHOWN.get(read, str)
            raise ArgumentInvalid(
                f"expected a value from {shown(least)} to {shown(most)}, got {shown(value)}"
            )
        return value

    return reader


def _contract(text: str) -> Contract | None:
    return None if text == "auto" else parse_contract(text)


def _capacity(text: str) -> int:
    return 0 if text == "auto" else _between(1, 2**60, parse_size)(text)


_PRICE: Final = _between(0, 10**12)
KEYS: Final[dict[str, Key]] = {
    "name": Key("name", "", _name, "name shown to peers; the host's name if empty"),
    "api_listen": Key(
        "api_listen", "127.0.0.1:0", _loopback, "address of the API; port 0 chooses a free port"
    ),
    "peer_listen": Key(
        "peer_listen",
        "127.0.0.1:0",
        _address,
        "address for peers; port 0 chooses a free port and keeps it",
    ),
    "services_listen": Key(
        "services_listen",
        "",
        _listener,
        "address and port of services, or a port on this machine; off if empty",
    ),
    "services_url": Key(
        "services_url", "", _url, "external URL of services, if they are behind a proxy"
    ),
    "advertise": Key(
        "advertise",
        "",
        _addresses,
        "addresses announced to peers, comma-separated, instead of peer_listen",
    ),
    "accept_peers": Key(
        "accept_peers",
        "introduced",
        _choice("introduced", "invited"),
        "introduced: friends of friends become peers, too; invited: only by an invitation",
    ),
    "site": Key("site", "", _label, "failure domain: the place of the node"),
    "owner": Key("owner", "", _label, "failure domain: the person who runs the node"),
    "survive": Key(
        "survive",
        "auto",
        _contract,
        "contract of objects that are stored without --survive, such as 1node,1site; auto: as many "
        "nodes as the known ones allow, at most 2",
    ),
    "log_level": Key("log_level", "info", _choice(*LEVELS), "lowest level that is logged"),
    "storage_capacity": Key(
        "storage_capacity_bytes",
        "auto",
        _capacity,
        "bytes offered to others and itself; auto: half of the free disk at the first start, at "
        "most 100 GiB",
    ),
    "disk_reserve": Key(
        "disk_reserve_ppm", "5%", parse_share_ppm, "share of the disk that is kept free"
    ),
    "compute_workers": Key(
        "compute_workers", "2", _between(1, 256), "sandbox workers: jobs that run at once"
    ),
    "worker_speed": Key(
        "worker_speed_mfuel",
        "1000",
        _between(0, 10**6),
        "fuel, in millions, that a worker runs a second; workers times this is what is offered",
    ),
    "offer": Key(
        "offer",
        "all",
        _choice("all", "none"),
        "all: storage_capacity and all workers are offered to the peers from the start; none: this "
        "node offers nothing that is not stated",
    ),
    "fuel": Key(
        "fuel",
        str(limits.FUEL_DEFAULT),
        _between(1, limits.FUEL_MAX),
        "fuel limit of a job that names none",
    ),
    "memory": Key(
        "memory_bytes",
        "64MiB",
        _between(65536, limits.MEMORY_BYTES_MAX, parse_size),
        "memory limit of a job that names none",
    ),
    "timeout": Key(
        "timeout_ms",
        "10s",
        _between(1, limits.TIMEOUT_MS_MAX, parse_duration_ms),
        "time limit of a job that names none",
    ),
    "compile_limit": Key(
        "compile_limit_ms",
        "20s",
        _between(1_000, limits.COMPILE_MS_MAX, parse_duration_ms),
        "time limit for compiling a module, here for others, and elsewhere for this node",
    ),
    "storage_price_gib_hour": Key(
        "storage_price_micro", "1370", _PRICE, "micro-credits a GiB and hour of an idle node"
    ),
    "compute_price_gfuel": Key(
        "compute_price_micro",
        "278",
        _PRICE,
        "micro-credits a Gfuel (10^9 fuel, for each begun 64 MiB of memory) of an idle node",
    ),
    "mutual_discount": Key(
        "mutual_discount_ppm", "20%", parse_share_ppm, "discount on the reserve for mutual peers"
    ),
    "one_way_discount": Key(
        "one_way_discount_ppm",
        "10%",
        parse_share_ppm,
        "discount on the reserve for recognised peers",
    ),
    "storage_price_max_gib_hour": Key(
        "storage_price_max_micro",
        "5480",
        _PRICE,
        "maximum in micro-credits that this node pays a GiB and hour",
    ),
    "compute_price_max_gfuel": Key(
        "compute_price_max_micro",
        "1112",
        _PRICE,
        "maximum in micro-credits that this node pays a Gfuel",
    ),
    "starter_credit": Key(
        "starter_credit_micro", "300", parse_credits, "debt limit, in credits, of a new peer"
    ),
    "probe_interval": Key(
        "probe_interval_ms",
        "5s",
        _between(100, 3_600_000, parse_duration_ms),
        "time between probes of a peer",
    ),
    "settle_interval": Key(
        "settle_interval_ms",
        "10s",
        _between(100, 86_400_000, parse_duration_ms),
        "time after which a debt to a peer is signed again",
    ),
    "booking_interval": Key(
        "booking_interval_ms",
        "1h",
        _between(100, 86_400_000, parse_duration_ms),
        "how long what a peer signed waits at most until it is booked in the ledger",
    ),
    "storage_lease_term": Key(
        "storage_lease_ms",
        "90d",
        _between(30_000, limits.STORAGE_LEASE_MS, parse_duration_ms),
        "how long leases of storage last that this node takes, and at most those that it grants",
    ),
    "lease_grace": Key(
        "lease_grace_ms",
        "30d",
        _between(86_400_000, 3650 * 86_400_000, parse_duration_ms),
        "how long shards are kept after the end of their lease",
    ),
    "lease_warning": Key(
        "lease_warning_ms",
        "30d",
        # More than 33 days are left of every lease that is renewed in time.
        _between(0, 33 * 86_400_000, parse_duration_ms),
        "how long before the end of a lease that was not renewed the node warns; at most three "
        "eighths of storage_lease_term",
    ),
    "leftover_after": Key(
        "leftover_after_ms",
        "24h",
        _between(3_600_000, 365 * 86_400_000, parse_duration_ms),
        "how long shards of an unfinished upload are kept",
    ),
    "node_life": Key(
        "node_life_ms",
        "1095d",
        _between(1, 2**53, parse_duration_ms),
        "mean time until a node is lost for good, for estimates of loss",
    ),
    "site_life": Key(
        "site_life_ms",
        "10950d",
        _between(1, 2**53, parse_duration_ms),
        "mean time until a site is lost with all of its nodes, for estimates of loss",
    ),
    "owner_life": Key(
        "owner_life_ms",
        "3650d",
        _between(1, 2**53, parse_duration_ms),
        "mean time until an owner loses all nodes at once, for estimates of loss",
    ),
    "repair_time": Key(
        "repair_time_ms",
        "1d",
        _between(1, 2**53, parse_duration_ms),
        "mean time until a lost shard is replaced, for estimates of loss",
    ),
    "guard": Key(
        "guard",
        "recognised",
        _choice("all", "recognised", "none"),
        "for whom this node is custodian: keeps objects and pays for them while the owner is away",
    ),
    "guard_bytes": Key(
        "guard_bytes",
        "4GiB",
        _between(0, 2**53, parse_size),
        "how much a custodian stores at hosts, and pays for, in place of one absent owner",
    ),
    "repair_grace": Key(
        "repair_grace_ms",
        "15min",
        _between(1_000, 30 * 86_400_000, parse_duration_ms),
        "how long a node must be silent before its shards are rebuilt elsewhere",
    ),
    "repair_bandwidth": Key(
        "repair_bytes_a_second",
        "32MiB",
        _between(0, 2**40, parse_size),
        "bytes a second that repairs may move; 0: no limit",
    ),
    "repair_interval": Key(
        "repair_interval_ms",
        "10min",
        _between(1_000, 30 * 86_400_000, parse_duration_ms),
        "time between two checks of every object, even if nothing happened",
    ),
    "moved_kept": Key(
        "moved_kept_ms",
        "60s",
        _between(1_000, 30 * 86_400_000, parse_duration_ms),
        "how long old copies of moved shards are kept, for reads in progress",
    ),
    "keep_versions": Key(
        "keep_versions",
        "0",
        _between(0, 1_000),
        "how many replaced versions of each path of the space are kept",
    ),
    "keep_days": Key(
        "keep_days",
        "0",
        _between(0, 3_650),
        "for how many days each replaced version of the space is kept",
    ),
}


def _known(key: str, where: str) -> Key:
    found = KEYS.get(key)
    if found is None:
        # A setting whose name says more, such as a unit, is most likely meant.
        longer = min((known for known in KEYS if known.startswith(f"{key}_")), key=len, default="")
        close = sorted(KEYS, key=lambda known: (-len(set(known) & set(key)), known))[:3]
        meant = f"{longer}: {KEYS[longer].meaning}" if longer else f"{', '.join(close)}"
        raise ConfigInvalid(f"{where}: '{key}' is no setting", hint=f"did you mean {meant}?")
    return found


def _read(key: Key, text: str, where: str) -> object:
    try:
        return key.read(text)
    except ArgumentInvalid as fault:
        raise ConfigInvalid(f"{where}: {fault.message}", hint=fault.hint) from None


def check(name: str, text: str, where: str) -> None:
    """Return if a setting may have that value.

    Raises:
        ConfigInvalid: it may not; `where` says whose words these are.
    """
    _read(_known(name, where), text, where)


def _line_of(text: str, key: str) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*(=|\])", line) or re.match(
            rf"\s*\[\s*{re.escape(key)}\s*\]", line
        ):
            return number
    return 1


def read_file(path: Path) -> dict[str, object]:
    """Return the values of a TOML file by field; a missing file sets nothing.

    Raises:
        ConfigInvalid: names the file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values: dict[str, Any] = tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as fault:
        raise ConfigInvalid(f"{path}: not TOML: {fault}") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigInvalid(f"{path} cannot be read: {cause(fault)}") from None
    found: dict[str, object] = {}
    for name, value in values.items():
        where = f"{path}, line {_line_of(text, name)}"
        key = _known(name, where)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            written = ",".join(value)
        elif isinstance(value, (str, int)) and not isinstance(value, bool):
            written = str(value)
        else:
            raise ConfigInvalid(
                f"{where}: '{name}' must be a text or a whole number",
                hint=f'for example {name} = "{key.default or "example"}"',
            )
        found[key.field] = _read(key, written, f"{where}: {name}")
    return found


def load(home: Path, environment: Mapping[str, str], flags: Mapping[str, str]) -> Config:
    """Return the settings of the node at a home.

    Args:
        home: the directory with `config.toml`.
        environment: variables; `XSC_LOG_LEVEL` sets `log_level`.
        flags: key to text, as given on the command line.

    Raises:
        ConfigInvalid: names the file and line, the variable or the flag.
    """
    values: dict[str, object] = {
        key.field: key.read(key.default)
        for key in KEYS.values()
        if key.default or key.field != "name"
    }
    values["name"] = _default_name()
    values.update(read_file(home / "config.toml"))
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _NOT_KEYS:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            key = _known(name, f"the variable {variable}")
            values[key.field] = _read(key, text, f"the variable {variable}")
    for name, text in flags.items():
        flag = f"--{name.replace('_', '-')}"
        key = _known(name, f"the flag {flag}")
        values[key.field] = _read(key, text, f"the flag {flag}")
    return _consistent(Config(**values))  # type: ignore[arg-type]


def _default_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "node"


def _consistent(config: Config) -> Config:
    if config.mutual_discount_ppm < config.one_way_discount_ppm:
        raise ConfigInvalid(
            "mutual_discount is below one_way_discount: mutual peers would pay more than others"
        )
    check_addresses(config.peer_listen, config.advertise)
    return config


def check_addresses(listen: str, advertise: Sequence[str]) -> None:
    """Return if peers that are told these addresses can find a node that listens there.

    Raises:
        ConfigInvalid: one leads to the peer's own machine, or nowhere.
    """
    public = not is_loopback(split(listen)[0])
    for address in advertise:
        host = split(address)[0].lower()
        if is_unspecified(host):
            why = "no address that can be called"
        elif public and is_loopback(host):
            why = f"the machine of whoever calls it, while peer_listen is {listen}"
        else:
            continue
        raise ConfigInvalid(
            f"advertise is {address}: that is {why}",
            hint="set advertise to the address or name that reaches this machine from outside",
        )


def check_capacity(
    capacity_bytes: int, *, held_bytes: int, free_bytes: int, total_bytes: int
) -> str:
    """Return what is wrong with a capacity that a disk does not have now; nothing if it has.

    Args:
        capacity_bytes: what is offered, to this node itself, too.
        held_bytes: what lies on the disk of that already.
        free_bytes: what more may be written to the disk.
        total_bytes: the whole disk.

    Raises:
        ConfigInvalid: the disk can never have it.
    """
    room = held_bytes + max(0, free_bytes)
    text = f"storage_capacity is {format_size(capacity_bytes)}, and the disk has"
    if capacity_bytes > total_bytes:
        raise ConfigInvalid(
            f"{text} {format_size(total_bytes)} in all",
            hint=f"set storage_capacity to what it has room for: {format_size(room)}",
        )
    if capacity_bytes > room:
        return f"{text} room for {format_size(room)}, of which {format_size(held_bytes)} are in use"
    return ""


def from_environment(home: Path, flags: Mapping[str, str]) -> Config:
    """Return the settings, with the variables of this process."""
    return load(home, os.environ, flags)
