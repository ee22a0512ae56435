"""Configuration: a TOML file, environment variables, flags, weakest first.

Each setting is one field of `Config`: its key, its default, how its text is read and, as the
field's docstring, what it means; docs/configuration.md is checked against it. A bad key or value
names the file and line, the variable or the flag, and what was expected.
"""

from __future__ import annotations

import re
import shlex
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel

from xsc.base import limits, units
from xsc.base.errors import ArgumentInvalid, ConfigInvalid
from xsc.base.text import cause
from xsc.net.transport.addresses import is_loopback, is_unspecified, split
from xsc.node.logging import LEVELS
from xsc.storage.object.durability import Contract
from xsc.storage.object.durability import parse as parse_contract

ENVIRONMENT_PREFIX = "XSC_"
_NOT_KEYS = frozenset({"XSC_HOME", "XSC_PASSPHRASE", "XSC_DEBUG"})
_ADDRESS = re.compile(
    r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9][A-Za-z0-9-]{0,62}(?:\.[A-Za-z0-9-]{1,63})*):([0-9]{1,5})"
)


_TARGET_URL = re.compile(
    r"https://[!-~]{1,1000}|http://(?:127\.0\.0\.1|\[::1\]|localhost)[:/][!-~]{0,1000}"
)
_UNIT = re.compile("_(ms|ppm|bytes|micro|mfuel)$")


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ArgumentInvalid(f"expected {expected}")
        return text

    return read


_name = _matching(r"[A-Za-z0-9._-]{1,64}", "1 to 64 letters, digits, dots, dashes or underscores")
_label = _matching(
    r"[A-Za-z0-9._-]{0,64}", "at most 64 letters, digits, dots, dashes or underscores"
)
_url = _matching(
    r"(https?://[!-~]{1,200})?", "the beginning of a URL, for example https://fn.example"
)


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


def _addresses(text: str) -> tuple[str, ...]:
    return tuple(_address(part.strip()) for part in text.split(",") if part.strip())


def _targets(text: str) -> tuple[str, ...]:
    """Return programs and URLs that are told of alerts."""
    found = tuple(filter(None, map(str.strip, text.splitlines())))
    for each in found:
        if each.startswith("exec:"):
            if not _words(each.removeprefix("exec:")):
                raise ArgumentInvalid("expected a program behind exec:")
        elif not _TARGET_URL.fullmatch(each):
            raise ArgumentInvalid(
                "expected exec:PROGRAM or https://HOST/…; http:// only for this machine"
            )
    return found


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as fault:
        raise ArgumentInvalid(f"expected a command: {fault}") from None


def _choice(*choices: str) -> Callable[[str], str]:
    return _matching("|".join(choices), f"one of {', '.join(choices)}")


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9][0-9_]*", text) or not least <= int(text) <= most:
            raise ArgumentInvalid(f"expected a whole number from {least} to {most}")
        return int(text)

    return read


def _between(
    parse: Callable[[str], int], shown: Callable[[int], str], least: str, most: str | int
) -> Callable[[str], int]:
    """Return what reads a quantity between two, all in the words of people."""
    end = most if isinstance(most, str) else shown(most)

    def read(text: str) -> int:
        value = parse(text)
        if not parse(least) <= value <= parse(end):
            raise ArgumentInvalid(f"expected a value from {least} to {end}, got {text}")
        return value

    return read


_duration = partial(_between, units.parse_duration_ms, units.format_duration)
_size = partial(_between, units.parse_size, units.format_size)
_price: Final = _number(0, 10**12)


def _contract(text: str) -> Contract | None:
    return None if text == "auto" else parse_contract(text)


def _capacity(text: str) -> int:
    return 0 if text == "auto" else _size("1B", "1048576TiB")(text)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as users write it; `Config` says the rest."""

    default: str
    read: Callable[[str], object]
    key: str = ""
    """Its field without the unit, if nothing else is said."""
    field: str = ""
    meaning: str = ""
    file_only: bool = False
    """Whether neither a flag nor the environment may set it: it starts programs."""


class Config(BaseModel, frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True):
    """The settings of a node, checked.

    Where `survive` is None objects get what all known nodes could keep, at most two nodes; where
    `storage_capacity_bytes` is 0 it is chosen at the first start.
    """

    name: Annotated[str, Setting("", _name)]
    """name shown to peers; the host's name if empty"""
    api_listen: Annotated[str, Setting("127.0.0.1:0", _loopback)]
    """address of the API; port 0 chooses a free port"""
    peer_listen: Annotated[str, Setting("127.0.0.1:0", _address)]
    """address for peers; port 0 chooses a free port and keeps it"""
    services_listen: Annotated[str, Setting("", _listener)]
    """address and port of services, or a port on this machine; off if empty"""
    services_url: Annotated[str, Setting("", _url)]
    """external URL of services, if they are behind a proxy"""
    metrics_listen: Annotated[str, Setting("", _listener)]
    """address and port of metrics for a scraper elsewhere, or a port on this machine; if empty,
    the API alone has them"""
    advertise: Annotated[tuple[str, ...], Setting("", _addresses)]
    """addresses announced to peers, comma-separated, instead of peer_listen"""
    accept_peers: Annotated[str, Setting("introduced", _choice("introduced", "invited"))]
    """introduced: friends of friends become peers, too; invited: only by an invitation"""
    notify: Annotated[tuple[str, ...], Setting("", _targets, file_only=True)]
    """who is told of alerts: programs as exec:PROGRAM ARGUMENT, and URLs; in config.toml alone"""
    site: Annotated[str, Setting("", _label)]
    """failure domain: the place of the node"""
    owner: Annotated[str, Setting("", _label)]
    """failure domain: the person who runs the node"""
    survive: Annotated[Contract | None, Setting("auto", _contract)]
    """contract of objects that are stored without --survive, such as 1node,1site; auto: as
    many nodes as the known ones allow, at most 2"""
    log_level: Annotated[str, Setting("info", _choice(*LEVELS))]
    """lowest level that is logged"""
    storage_capacity_bytes: Annotated[int, Setting("auto", _capacity)]
    """bytes offered to others and itself; auto: half of the free disk at the first start, at
    most 100 GiB"""
    disk_reserve_ppm: Annotated[int, Setting("5%", units.parse_share_ppm)]
    """share of the disk that is kept free"""
    compute_workers: Annotated[int, Setting("2", _number(1, 256))]
    """sandbox workers: jobs that run at once"""
    worker_speed_mfuel: Annotated[int, Setting("1000", _number(0, 10**6))]
    """fuel, in millions, that a worker runs a second; workers times this is what is offered"""
    offer: Annotated[str, Setting("all", _choice("all", "none"))]
    """all: storage_capacity and all workers are offered to the peers from the start; none:
    this node offers nothing that is not stated"""
    fuel: Annotated[int, Setting(str(limits.FUEL_DEFAULT), _number(1, limits.FUEL_MAX))]
    """fuel limit of a job that names none"""
    memory_bytes: Annotated[int, Setting("64MiB", _size("64KiB", limits.MEMORY_BYTES_MAX))]
    """memory limit of a job that names none"""
    timeout_ms: Annotated[int, Setting("10s", _duration("1ms", limits.TIMEOUT_MS_MAX))]
    """time limit of a job that names none"""
    compile_limit_ms: Annotated[int, Setting("20s", _duration("1s", limits.COMPILE_MS_MAX))]
    """time limit for compiling a module, here for others, and elsewhere for this node"""
    storage_price_micro: Annotated[int, Setting("1370", _price, "storage_price_gib_hour")]
    """micro-credits a GiB and hour of an idle node"""
    compute_price_micro: Annotated[int, Setting("278", _price, "compute_price_gfuel")]
    """micro-credits a Gfuel (10^9 fuel, for each begun 64 MiB of memory) of an idle node"""
    mutual_discount_ppm: Annotated[int, Setting("20%", units.parse_share_ppm)]
    """discount on the reserve for mutual peers"""
    one_way_discount_ppm: Annotated[int, Setting("10%", units.parse_share_ppm)]
    """discount on the reserve for recognised peers"""
    storage_price_max_micro: Annotated[int, Setting("5480", _price, "storage_price_max_gib_hour")]
    """maximum in micro-credits that this node pays a GiB and hour"""
    compute_price_max_micro: Annotated[int, Setting("1112", _price, "compute_price_max_gfuel")]
    """maximum in micro-credits that this node pays a Gfuel"""
    starter_credit_micro: Annotated[int, Setting("300", units.parse_credits)]
    """debt limit, in credits, of a peer that was invited or confirmed by hand"""
    recognised_credit_ppm: Annotated[
        int, Setting("100%", units.parse_share_ppm, "recognised_credit")
    ]
    """how much of `starter_credit` full mutual recognition adds to a limit"""
    repaid_credit_ppm: Annotated[int, Setting("50%", units.parse_share_ppm, "repaid_credit")]
    """how much of what a peer repaid in 90 days is added to its limit"""
    credit_max_starters: Annotated[int, Setting("4", _number(1, 1000), "credit_max")]
    """how many times `starter_credit` a limit is at most, if none was set by hand"""
    probe_interval_ms: Annotated[int, Setting("5s", _duration("100ms", "1h"))]
    """time between rounds of probes"""
    settle_interval_ms: Annotated[int, Setting("10s", _duration("100ms", "1d"))]
    """time after which a debt to a peer is signed again"""
    booking_interval_ms: Annotated[int, Setting("1h", _duration("100ms", "1d"))]
    """how long what a peer signed waits at most until it is booked in the ledger"""
    storage_lease_ms: Annotated[
        int, Setting("90d", _duration("30s", limits.STORAGE_LEASE_MS), "storage_lease_term")
    ]
    """how long leases of storage last that this node takes, and at most those that it
    grants"""
    lease_grace_ms: Annotated[int, Setting("30d", _duration("1d", "3650d"))]
    """how long shards are kept after the end of their lease"""
    lease_warning_ms: Annotated[int, Setting("30d", _duration("0s", "33d"))]
    """how long before the end of a lease that was not renewed the node warns; at most three
    eighths of storage_lease_term"""
    leftover_after_ms: Annotated[int, Setting("24h", _duration("1h", "365d"))]
    """how long shards of an unfinished upload are kept"""
    node_life_ms: Annotated[int, Setting("1095d", _duration("1ms", "100000000d"))]
    """mean time until a node is lost for good, for estimates of loss"""
    site_life_ms: Annotated[int, Setting("10950d", _duration("1ms", "100000000d"))]
    """mean time until a site is lost with all of its nodes, for estimates of loss"""
    owner_life_ms: Annotated[int, Setting("3650d", _duration("1ms", "100000000d"))]
    """mean time until an owner loses all nodes at once, for estimates of loss"""
    repair_time_ms: Annotated[int, Setting("1d", _duration("1ms", "100000000d"))]
    """mean time until a lost shard is replaced, for estimates of loss"""
    guard: Annotated[str, Setting("recognised", _choice("all", "recognised", "none"))]
    """for whom this node is custodian: keeps objects and pays for them while the owner is
    away"""
    guard_bytes: Annotated[int, Setting("4GiB", _size("0B", "8192TiB"), "guard_bytes")]
    """how much a custodian stores at hosts, and pays for, in place of one absent owner"""
    repair_grace_ms: Annotated[int, Setting("15min", _duration("1s", "30d"))]
    """how long a node must be silent before its shards are rebuilt elsewhere"""
    repair_bytes_a_second: Annotated[int, Setting("32MiB", _size("0B", "1TiB"), "repair_bandwidth")]
    """bytes a second that repairs may move; 0: no limit"""
    repair_interval_ms: Annotated[int, Setting("10min", _duration("1s", "30d"))]
    """time between two checks of every object, even if nothing happened"""
    moved_kept_ms: Annotated[int, Setting("60s", _duration("1s", "30d"))]
    """how long old copies of moved shards are kept, for reads in progress"""
    keep_versions: Annotated[int, Setting("0", _number(0, 1_000))]
    """how many replaced versions of each path of the space are kept"""
    keep_days: Annotated[int, Setting("0", _number(0, 3_650))]
    """for how many days each replaced version of the space is kept"""

    @property
    def warned_ms(self) -> int:
        """How long before the end of a lease the node warns: less than is left at a renewal."""
        return min(self.lease_warning_ms, self.storage_lease_ms * 3 // 8)

    @property
    def lives_ms(self) -> tuple[int, ...]:
        """Mean time to the loss for good of each kind of failure domain that is lost by chance."""
        return self.node_life_ms, self.site_life_ms, self.owner_life_ms


def _settings() -> Iterator[tuple[str, Setting]]:
    for name, field in Config.model_fields.items():
        (setting,) = field.metadata
        key = setting.key or _UNIT.sub("", name)
        meaning = " ".join(str(field.description).split())
        yield key, replace(setting, key=key, field=name, meaning=meaning)


KEYS: Final = dict(_settings())


def _known(key: str, where: str) -> Setting:
    found = KEYS.get(key)
    if found is None:
        # A setting whose name says more, such as a unit, is most likely meant.
        longer = min((known for known in KEYS if known.startswith(f"{key}_")), key=len, default="")
        close = sorted(KEYS, key=lambda known: (-len(set(known) & set(key)), known))[:3]
        meant = f"{longer}: {KEYS[longer].meaning}" if longer else f"{', '.join(close)}"
        raise ConfigInvalid(f"{where}: '{key}' is no setting", hint=f"did you mean {meant}?")
    return found


def _read(key: Setting, text: str, where: str) -> object:
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
        if re.match(rf"\s*(\[\s*)?[\"']?{re.escape(key)}[\"']?\s*(=|\])", line):
            return number
    return 1


def _in_file(path: Path) -> Iterator[tuple[Setting, str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        values: dict[str, Any] = tomllib.loads(text)
    except FileNotFoundError:
        return
    except tomllib.TOMLDecodeError as fault:
        raise ConfigInvalid(f"{path}: not TOML: {fault}") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigInvalid(f"{path} cannot be read: {cause(fault)}") from None
    for name, value in values.items():
        where = f"{path}, line {_line_of(text, name)}"
        key = _known(name, where)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            # What stands in the file alone may have commas in it.
            written = ("\n" if key.file_only else ",").join(value)
        elif isinstance(value, (str, int)) and not isinstance(value, bool):
            written = str(value)
        else:
            raise ConfigInvalid(
                f"{where}: '{name}' must be a text or a whole number",
                hint=f'for example {name} = "{key.default or "example"}"',
            )
        yield key, written, f"{where}: {name}"


def _given(
    home: Path, environment: Mapping[str, str], flags: Mapping[str, str]
) -> Iterator[tuple[Setting, str, str]]:
    """Yield each setting that is given, its text and who says so, the strongest last."""
    yield from _in_file(home / "config.toml")
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _NOT_KEYS:
            where = f"the variable {variable}"
            yield _outside(variable.removeprefix(ENVIRONMENT_PREFIX).lower(), where), text, where
    for name, text in flags.items():
        where = f"the flag --{name.replace('_', '-')}"
        yield _outside(name, where), text, where


def _outside(name: str, where: str) -> Setting:
    """Return a setting that may be given outside of the settings file."""
    found = _known(name, where)
    if found.file_only:
        raise ConfigInvalid(f"{where}: '{name}' is set in config.toml alone")
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
    values: dict[str, Any] = {"name": _default_name()}
    for key in KEYS.values():
        if key.field != "name":
            values[key.field] = key.read(key.default)
    for key, text, where in _given(home, environment, flags):
        values[key.field] = _read(key, text, where)
    return _consistent(Config(**values))


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
    text = f"storage_capacity is {units.format_size(capacity_bytes)}, and the disk has"
    if capacity_bytes > total_bytes:
        raise ConfigInvalid(
            f"{text} {units.format_size(total_bytes)} in all",
            hint=f"set storage_capacity to what it has room for: {units.format_size(room)}",
        )
    if capacity_bytes > room:
        held = units.format_size(held_bytes)
        return f"{text} room for {units.format_size(room)}, of which {held} are in use"
    return ""
