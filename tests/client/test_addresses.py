"""Which addresses count as the public internet; that connections go to checked ones is tested where they are made."""

from __future__ import annotations

import pytest
from cutaway.addresses import is_address, is_inside, is_public, origin_of

PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.3.4",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.88.99.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "198.18.0.1",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "2002:7f00:1::",
    "2001:0:102:304::80ff:fffe",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::101:101",
]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "::1", "fc00::1", "::ffff:10.0.0.1", *PUBLIC])
def test_addresses_of_servers(address: str) -> None:
    assert is_inside(address)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "fe80::1%eth0",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
    ],
)
def test_addresses_of_no_server(address: str) -> None:
    assert not is_inside(address)


@pytest.mark.parametrize("name", ["example.com", "localhost", "127.1", "2130706433", "0x7f000001", ""])
def test_names_are_no_addresses(name: str) -> None:
    """What a resolver would still read as a number is looked at once it has been resolved."""
    assert not is_address(name)
    with pytest.raises(ValueError, match="IP"):
        is_public(name)


def test_origins() -> None:
    assert origin_of("https://API.example.com/x?y") == ("https", "api.example.com", 443)
    assert origin_of("http://[::1]:8000") == ("http", "::1", 8000)
    for wrong in ("ftp://example.com", "https://", "example.com", "https://example.com:99999"):
        with pytest.raises(ValueError):  # noqa: PT011
            origin_of(wrong)
