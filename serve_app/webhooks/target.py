"""The URL of an endpoint: which ones are taken, and what they mean. Pure.

Read strictly, by one reader: what is checked is what is called.
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from deployments.errors import InvalidParameter
from serve_app.webhooks.addresses import Address, AddressRules

MAX_LENGTH = 2048

_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]@]+)(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_UNSAFE = frozenset('"<>\\^`{|}')
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL says. host: a name in small letters, or an address without brackets. path: with the query."""

    is_secure: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """As the header Host has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def scheme(self) -> str:
        return "https" if self.is_secure else "http"

    @property
    def address(self) -> Address | None:
        """The host where it is an address, else None."""
        return _address(self.host)


def parse_target(url: str, rules: AddressRules) -> Target:
    """What the URL says. Raises InvalidParameter where it could never be called under these rules.

    A host's name is looked up when it is called; then all its addresses must keep the rules too.
    """
    if len(url) > MAX_LENGTH:
        raise _invalid(f"must have at most {MAX_LENGTH} characters")
    if not all("!" <= character <= "~" for character in url) or _UNSAFE & set(url):
        raise _invalid("must have the characters of URLs only; write others as %XX, and names of hosts in Punycode")
    match = _URL.fullmatch(url)
    if match is None:
        raise _invalid("must be a URL such as https://example.com/hooks, without a fragment")
    target = _read(match["scheme"].lower(), match["authority"], match["target"])
    _check(target, rules)
    return target


def _read(scheme: str, authority: str, target: str) -> Target:
    if scheme not in _DEFAULT_PORTS:
        raise _invalid("must begin with https://")
    if "@" in authority:
        raise _invalid("must hold neither a user's name nor a password")
    match = _AUTHORITY.fullmatch(authority)
    host = "" if match is None else match["host"].lower()
    if host.startswith("["):
        host = host[1:-1]
        if ":" not in host or _address(host) is None:
            raise _invalid("must name a host: a domain, or an address such as 192.0.2.1 or [2001:db8::1]")
    elif match is None or not (_NAME.fullmatch(host) or _address(host)):
        # Names that end in a number are refused: resolvers take some of them for addresses.
        raise _invalid("must name a host: a domain, or an address such as 192.0.2.1 or [2001:db8::1]")
    port = int(match["port"] or _DEFAULT_PORTS[scheme]) if match is not None else 0
    if not 1 <= port <= 65535:
        raise _invalid("must name a port between 1 and 65535")
    path, _, query = target.partition("?")
    path = path or "/"
    return Target(scheme == "https", host, port, f"{path}?{query}" if query else path)


def _check(target: Target, rules: AddressRules) -> None:
    address = target.address
    is_allowed = rules.is_allowed(address) if address is not None else bool(rules.allowed)
    if is_allowed:
        return
    if not target.is_secure:
        raise _invalid("must begin with https://")
    if target.port not in rules.ports:
        raise _invalid(f"must name one of the ports {', '.join(map(str, sorted(rules.ports)))}, or none")
    if not ("." in target.host if address is None else rules.permit(address, target.port, is_secure=True)):
        raise _invalid("must name a host on the public internet")


def _address(host: str) -> Address | None:
    for kind in (IPv4Address, IPv6Address):
        try:
            return kind(host)
        except AddressValueError:
            continue
    return None


def _invalid(requirement: str) -> InvalidParameter:
    return InvalidParameter(f"url {requirement}", "url")
