"""Untrusted URLs: which are valid, how they are normalized, and which IP addresses may be contacted."""

import ipaddress
import pickle

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.media.guarded_client import check_url
from flows.media.media_errors import ForbiddenUrlError
from flows.media.networks import is_allowed_address

# The text of a URL


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.jpg?x=1#y",
        "HTTP://EXAMPLE.com:8080/",
        "https://münchen.example/ü",
        "http://8.8.8.8/",
        "http://[2606:4700::1111]/",
        "http://host_with_underscore/",
        "http://2130706433/",  # an odd spelling of 127.0.0.1: the address it resolves to is checked
        "https://example.com./",
        "https://example.com/a@b?to=c@d",
        "https://example.com?" + "x" * 1980,
    ],
)
def test_a_plain_url_is_allowed(url: str) -> None:
    assert check_url(url).host


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/a", "only http"),
        ("file:///etc/passwd", "only http"),
        ("gopher://example.com", "only http"),
        ("", "only http"),
        ("a.jpg", "only http"),
        ("/a/b.jpg", "only http"),
        ("https:///", "host"),
        ("https:///a.jpg", "host"),
        ("https://8.8.8.8 &@127.0.0.1/", "user name"),
        ("http://127.0.0.1%2f@good.example/", "user name"),
        ("good.example@127.0.0.1/a.jpg", "only http"),
        ("https://exam\u200bple.com/", "read"),
        ("https://exam\u202eple.com/", "read"),
        ("https://exam ple.com/", "host"),
        ("https://good.example\u2100b/", "read"),  # a/c as one character
        ("https://good.example\uff0f@127.0.0.1/", "user name"),  # a full-width slash
        ("https://good.example\uff20127.0.0.1/", "read"),  # a full-width @
        ("https://user:s3cret@example.com/", "user name"),
        ("https://user@example.com/", "user name"),
        ("https://@example.com/", "user name"),
        ("data:image/png;base64,iVBORw0KGgo=", "only http"),
        ("FILE:///etc/passwd", "only http"),
        ("jar:http://8.8.8.8!/", "only http"),
        ("view-source:http://127.0.0.1/", "only http"),
        ("https://a..b/", "host"),
        ("https://./", "host"),
        ("https://ex%61mple.com/", "host"),
        ("https://[fe80::1%25eth0]/", "host"),
        ("https://" + "a" * 64 + ".com/", "host"),
        ("http://0177.0.0.1/", "read"),
        ("http://8.8.8.8:80:80/", "read"),
        ("http://[::ffff:7f00:1/", "read"),
        ("http://[fe80::1%eth0]/", "host|read"),
        ("https://user:s3cret@8.8.8.8:80@127.0.0.1/", "user name"),
        ("https://[::1/", "read"),
        ("https://example.com:port/", "read"),
        ("https://example.com:0/", "port"),
        ("https://example.com:25/", "port"),
        ("https://example.com:65536/", "port"),
        ("https://example.com?" + "x" * 1981, "2,000"),
    ],
)
def test_unsupported_or_ambiguous_url_is_rejected(url: str, reason: str) -> None:
    with pytest.raises(ForbiddenUrlError, match=reason) as caught:
        check_url(url)
    assert not caught.value.retryable
    assert "s3cret" not in str(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("url", "normalized"),
    [
        ("example.com/a.jpg", "https://example.com/a.jpg"),
        ("https://8.8.8.8\\@127.0.0.1/", "https://8.8.8.8/@127.0.0.1/"),  # as browsers interpret it
        ("https://example.com/\r\nHost: evil", "https://example.com/Host:%20evil"),
        ("https://example.com/\x00", "https://example.com/"),
        ("https://8.8.8.8\t.127.0.0.1.example/", "https://8.8.8.8.127.0.0.1.example/"),
        ("ht\ntp://8.8.8.8/", "http://8.8.8.8/"),
        ("https:\\\\8.8.8.8/", "https://8.8.8.8/"),
        ("//8.8.8.8/a.jpg", "https://8.8.8.8/a.jpg"),
        (" https://example.com/ ", "https://example.com/"),
        ("https:example.com", "https://example.com"),
        ("http://\uff18.8.8.8/", "http://8.8.8.8/"),
    ],
)
def test_url_spellings_are_normalized(url: str, normalized: str) -> None:
    assert check_url(url) == httpx.URL(normalized)


@given(st.text() | st.text().map("http://{}".format) | st.text("abc.:/@[]%#?\\1", max_size=20).map("http://{}".format))
def test_any_text_is_valid_url_or_rejected(text: str) -> None:
    try:
        parsed = check_url(text)
    except ForbiddenUrlError:
        return
    assert parsed.scheme in {"http", "https"}
    assert parsed.host
    assert not parsed.userinfo
    assert check_url(str(parsed), max_length=100_000) == parsed


# Addresses

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
PRIVATE = [
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "127.0.0.1",
    "127.255.255.254",
    "100.64.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::8.8.8.8",
    "::ffff:0:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b:1::808:808",
    "100::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:808:808::1",
    "2606:4700::5efe:10.0.0.1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
]
FORBIDDEN = [
    "0.0.0.0",  # noqa: S104 - refused, not bound
    "0.1.2.3",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "239.255.255.255",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001:0:808:808::5601:5601",  # Teredo keeps the client's address inverted
    "fe80::5efe:a9fe:a9fe",
    "fd12::200:5efe:a9fe:a9fe",
]


@pytest.mark.parametrize(
    ("address", "by_default", "with_private"),
    [(a, True, True) for a in PUBLIC] + [(a, False, True) for a in PRIVATE] + [(a, False, False) for a in FORBIDDEN],
)
def test_only_allowed_ip_addresses_may_be_contacted(address: str, by_default: bool, with_private: bool) -> None:
    assert is_allowed_address(address, allow_private_hosts=False) is by_default
    assert is_allowed_address(address, allow_private_hosts=True) is with_private


@given(st.ip_addresses(v=4), st.booleans())
def test_embedding_ipv4_in_ipv6_never_makes_it_allowed(inner: ipaddress.IPv4Address, private: bool) -> None:
    if is_allowed_address(inner, allow_private_hosts=private):
        return
    number = int(inner)
    for wrapped in (number, number | 0xFFFF << 32, number | 0x64FF9B << 96, 0x2002 << 112 | number << 80):
        if wrapped == 1:
            continue  # ::1 is not an embedded address
        assert not is_allowed_address(ipaddress.IPv6Address(wrapped), allow_private_hosts=private)
