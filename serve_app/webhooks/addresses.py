"""Which addresses may be connected to on behalf of a client. Pure."""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Listed here too, because what the standard library knows depends on its version; and what it calls global may still
# lead inside: relays and translators of IPv4, and the host service of one cloud.
_RESERVED = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # behind a carrier's translator
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # the host service of Azure
            "169.254.0.0/16",  # link-local, and the metadata of clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: an IPv4 address inside
            "3fff::/20",  # documentation
        ),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that is public of IPv6; outside of it lie loopback, private, link-local and multicast addresses, and those that
stand for one of IPv4: mapped, compatible, translated."""
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""What stands before an IPv4 address in the lower half of an ISATAP address."""


@dataclass(frozen=True, slots=True)
class AddressRules:
    """allowed: networks that are open although they are not public, on any port and without TLS. ports: of public
    addresses; these are called by https only."""

    allowed: tuple[Network, ...]
    ports: Collection[int]

    def is_allowed(self, address: Address) -> bool:
        """Whether the address lies in a network that was opened."""
        return any(address in network for network in self.allowed)

    def permit(self, address: Address, port: int, *, is_secure: bool) -> bool:
        """Whether a connection may be made. is_secure: it will be one of TLS."""
        if self.is_allowed(address):
            return True
        return is_secure and port in self.ports and is_public(address)


def is_public(address: Address) -> bool:
    """Whether anybody on the internet can reach the address, and it is no other one in disguise."""
    if not address.is_global or address.is_multicast or any(address in network for network in _RESERVED):
        return False
    if isinstance(address, IPv4Address):
        return True
    is_isatap = int(address) >> 32 & 0xFFFF_FFFF in _ISATAP
    return address in _GLOBAL_UNICAST and address.scope_id is None and not is_isatap
