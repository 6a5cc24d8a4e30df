"""Which addresses may be connected to: none that leads inside, in whatever form it is written."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.webhooks.addresses import AddressRules, is_public

PUBLIC = AddressRules((), {443, 8443})
INTRANET = AddressRules((ip_network("10.0.0.0/8"), ip_network("fd00:1::/32")), {443})


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104  # not bound to
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",  # metadata of Alibaba
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",  # the host service of Azure
        "169.254.0.1",
        "169.254.169.254",  # metadata of most clouds
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",  # metadata of Oracle
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",  # compatible
        "::8.8.8.8",
        "::ffff:127.0.0.1",  # mapped
        "::ffff:169.254.169.254",
        "::ffff:8.8.8.8",
        "::ffff:0:8.8.8.8",  # translated
        "64:ff9b::10.0.0.1",  # NAT64
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::8.8.8.8",  # NAT64 of a network's own
        "100::1",  # discarded
        "2001::1",  # Teredo
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:10::1",
        "2001:db8::1",
        "2002:7f00:1::1",  # 6to4
        "2002:808:808::1",
        "3fff::1",
        "2606:4700::5efe:10.0.0.1",  # ISATAP
        "2606:4700::200:5efe:10.0.0.1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",  # metadata of Amazon
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_what_leads_inside_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not PUBLIC.permit(ip_address(address), 443, is_secure=True)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"])
def test_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_a_zone_makes_an_address_a_local_one() -> None:
    assert not is_public(ip_address("2606:4700::1111%eth0"))


@given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address))
def test_nothing_is_public_that_the_standard_library_knows_to_be_private(address: IPv4Address | IPv6Address) -> None:
    if address.is_private or address.is_reserved or address.is_multicast or address.is_loopback:
        assert not is_public(address)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_no_ipv6_address_stands_for_one_of_ipv4(address: IPv4Address) -> None:
    for prefix in ("::ffff:", "::", "64:ff9b::", "::ffff:0:"):
        assert not is_public(ip_address(f"{prefix}{address}"))
    assert not is_public(IPv6Address(0x2002 << 112 | int(address) << 80 | 1))


def test_public_addresses_are_called_by_https_on_the_given_ports_only() -> None:
    address = ip_address("8.8.8.8")
    assert PUBLIC.permit(address, 8443, is_secure=True)
    assert not PUBLIC.permit(address, 8444, is_secure=True)
    assert not PUBLIC.permit(address, 443, is_secure=False)


def test_opened_networks_are_called_in_any_way_and_others_are_not() -> None:
    for inside in ("10.1.2.3", "fd00:1::7"):
        assert INTRANET.permit(ip_address(inside), 8080, is_secure=False)
    for outside in ("192.168.1.1", "fd00:2::7", "::ffff:10.1.2.3", "8.8.8.8"):
        assert not INTRANET.permit(ip_address(outside), 8080, is_secure=False)
    assert INTRANET.permit(ip_address("8.8.8.8"), 443, is_secure=True)
