"""Addresses of nodes: their form, which of them a peer can have, and who counts as one caller."""

from __future__ import annotations

import ipaddress

from xsc.base.errors import ConfigInvalid

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
NETWORK_BITS = 64
"""Of an IPv6 address: whoever has one has all that begin like it."""


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address; IPv6 keeps its brackets.

    Raises:
        ConfigInvalid: not of the form host:port.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigInvalid(f"'{address[:80]}' is no address", hint="for example 127.0.0.1:7412")
    return host, int(port)


def _read(host: str) -> IPAddress | None:
    """Return the IP address that a text is; one of IPv4 in the form of IPv6 as what it is."""
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine by its form alone; names other than localhost are not."""
    found = _read(host)
    return host == "localhost" if found is None else found.is_loopback


def is_unspecified(host: str) -> bool:
    """Say whether a host stands for every address of a machine, and so for none to call."""
    found = _read(host)
    return found is not None and found.is_unspecified


def may_be_peer(ip: str, *, local: bool) -> bool:
    """Say whether a node may connect to an IP address because a peer says that it is there.

    Args:
        ip: not a name: what that stands for is known when it was looked up.
        local: whether the own node is reached on loopback alone, as its peers are then.
    """
    found = _read(ip)
    # The first network of IPv4 means this one, whatever follows (RFC 1122).
    if (
        found is None
        or found.is_unspecified
        or found in _THIS_NETWORK
        or found.is_multicast
        or found.is_link_local
    ):
        return False
    return local or not found.is_loopback


def source_of(ip: str) -> str:
    """Return whom a connection from an IP address is counted for."""
    found = _read(ip)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, NETWORK_BITS), strict=False))
    return ip if found is None else str(found)
