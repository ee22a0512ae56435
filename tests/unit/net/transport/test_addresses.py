"""Which addresses a peer can have, and whom a connection counts for."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.net.transport.addresses import is_loopback, may_be_peer, source_of

LOOPBACK = ["127.0.0.1", "127.8.8.8", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"]
NOBODYS = [
    *("0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"),
    *("169.254.0.1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254"),
    *("224.0.0.1", "239.255.255.255", "ff02::1", "::ffff:224.0.0.1"),
    *("", "localhost", "example.org", "1.2.3", "127.1", "0x7f.1", "2130706433", "1.2.3.4:5"),
]


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("ip", NOBODYS)
def test_what_is_nobodys_own_is_never_connected_to(ip, local):
    assert not may_be_peer(ip, local=local)


@pytest.mark.parametrize("ip", LOOPBACK)
def test_loopback_is_a_place_for_peers_only_of_a_node_that_is_there_itself(ip):
    assert not may_be_peer(ip, local=False)
    assert may_be_peer(ip, local=True)


@pytest.mark.parametrize("ip", ["192.0.2.1", "10.0.0.1", "192.168.0.1", "2001:db8::1", "fd00::1"])
def test_all_else_is_a_place_for_peers(ip):
    assert may_be_peer(ip, local=False)
    assert may_be_peer(ip, local=True)


@given(st.ip_addresses(), st.booleans())
def test_no_address_of_this_machine_passes(ip, local):
    """By the standard library's own words, for every address there is."""
    plain = getattr(ip, "ipv4_mapped", None) or ip
    nobodys = plain.is_unspecified or plain.is_link_local or plain.is_multicast
    if nobodys or (plain.is_loopback and not local):
        assert not may_be_peer(str(ip), local=local)


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_whoever_has_a_network_of_ipv6_is_one_source(ip, other):
    if ip.ipv4_mapped is None:
        neighbour = ipaddress.IPv6Address(int(ip) >> 64 << 64 | other)
        if neighbour.ipv4_mapped is None:
            assert source_of(str(ip)) == source_of(str(neighbour))


def test_addresses_of_ipv4_are_sources_of_their_own():
    assert source_of("192.0.2.1") == source_of("::ffff:192.0.2.1") != source_of("192.0.2.2")
    assert source_of("2001:db8::1") != source_of("2001:db8:0:1::1")
    assert source_of("somebody") == "somebody"


def test_loopback_by_form():
    assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "10.0.0.1", "localhost.example.org", "[::]", ""]))
