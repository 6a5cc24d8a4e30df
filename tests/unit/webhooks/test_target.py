"""URLs of endpoints: which ones are taken, and that what is taken means one thing only."""

from ipaddress import ip_network
from urllib.parse import urlsplit

import httpcore
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployments.errors import InvalidParameter
from serve_app.webhooks.addresses import AddressRules
from serve_app.webhooks.target import MAX_LENGTH, Target, parse_target

PUBLIC = AddressRules((), {443, 8443})
LOCAL = AddressRules((ip_network("127.0.0.0/8"), ip_network("::1/128")), {443})


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com/hooks", Target(True, "example.com", 443, "/hooks")),
        ("HTTPS://Example.COM", Target(True, "example.com", 443, "/")),
        ("https://example.com:8443/a/b?c=d&e=%20", Target(True, "example.com", 8443, "/a/b?c=d&e=%20")),
        ("https://example.com?token=1", Target(True, "example.com", 443, "/?token=1")),
        ("https://my_app.xn--mnchen-3ya.example/", Target(True, "my_app.xn--mnchen-3ya.example", 443, "/")),
        ("https://8.8.8.8/", Target(True, "8.8.8.8", 443, "/")),
        ("https://[2606:4700::1111]:8443/x", Target(True, "2606:4700::1111", 8443, "/x")),
        ("https://example.com/@user:1", Target(True, "example.com", 443, "/@user:1")),
    ],
)
def test_good_urls(url: str, target: Target) -> None:
    assert parse_target(url, PUBLIC) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/hooks",
        "//example.com/hooks",
        "https:/example.com",
        "https:///hooks",
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript://example.com/",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://@example.com/",
        "https://example.com:80/",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://example.com:/",
        "https://example.com:443:443/",
        "https://example.com/#fragment",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://example.com/\\evil",
        "https://example.com\\@evil.com/",
        "https://münchen.de/",
        "https://exam\tple.com/",
        "https://-example.com/",
        "https://example..com/",
        "https://example.com./",
        "https://localhost/",
        "https://receiver/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://0/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:8.8.8.8]/",
        "https://[fe80::1%25eth0]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[1.2.3.4]/",
        "https://::1/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://100.100.100.200/",
        "https://" + "a" * 64 + ".com/",
        "https://example.com/" + "a" * MAX_LENGTH,
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        parse_target(url, PUBLIC)
    assert raised.value.param == "url"
    assert raised.value.message.startswith("url must ")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9000/hooks", "http://[::1]:9000/", "http://receiver:8080/", "https://localhost:1234/"],
)
def test_where_a_network_is_open_its_hosts_are_taken_on_any_port_and_without_tls(url: str) -> None:
    assert parse_target(url, LOCAL)


@pytest.mark.parametrize(
    "url", ["http://8.8.8.8/", "https://10.0.0.1/", "https://8.8.8.8:9000/", "http://u@127.0.0.1/"]
)
def test_an_open_network_opens_no_other(url: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_target(url, LOCAL)


def test_the_longest_url_is_taken() -> None:
    url = "https://example.com/"
    assert parse_target(url + "a" * (MAX_LENGTH - len(url)), PUBLIC)


@given(st.text(st.sampled_from("htps:/?#@[]%.\\ aA1-_x0"), max_size=40).map("https://".__add__))
@example("https://a?")
@example("https://a/b?")
def test_whatever_is_taken_means_the_same_to_other_readers(url: str) -> None:
    try:
        target = parse_target(url, LOCAL)
    except InvalidParameter:
        return
    parts = urlsplit(url)
    called = httpcore.URL(url)
    assert parts.hostname == called.host.decode() == target.host
    assert (parts.port or 443) == (called.port or 443) == target.port
    assert called.target.decode() == target.path
    assert (parts.username, parts.password, parts.fragment) == (None, None, "")
    assert target.path.startswith("/")


@given(
    st.from_regex(r"[a-z][a-z0-9]{0,9}(\.[a-z][a-z0-9]{0,9}){1,3}", fullmatch=True),
    st.from_regex(r"(/[A-Za-z0-9._~%!$&'()*+,;=:@-]{0,8}){0,4}(\?[A-Za-z0-9=&/?%]{1,9})?", fullmatch=True),
)
def test_every_plain_url_is_taken(host: str, path: str) -> None:
    target = parse_target(f"https://{host}{path}", PUBLIC)
    assert (target.host, target.authority) == (host, host)
    assert target.path.removeprefix("/") == path.removeprefix("/")


def test_the_host_header_names_ports_and_brackets_as_urls_do() -> None:
    def authority(url: str) -> str:
        return parse_target(url, LOCAL).authority

    assert authority("https://example.com:443/") == "example.com"
    assert authority("http://127.0.0.1/") == "127.0.0.1"
    assert authority("http://127.0.0.1:443/") == "127.0.0.1:443"
    assert authority("https://[::1]:8443/") == "[::1]:8443"
