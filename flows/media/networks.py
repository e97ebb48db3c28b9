"""Which IP addresses may be connected to. All pure."""

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# Rejected even with allow_private_hosts: none is a media server, and link-local ones give out cloud credentials.
_NEVER = _networks(
    "0.0.0.0/8",  # "this host": Linux connects 0.0.0.0 to loopback
    "169.254.0.0/16",  # link-local: metadata of AWS, Google, Azure, …
    "100.100.100.200/32",  # metadata of Alibaba
    "168.63.129.16/32",  # the wire server of Azure, in public address space
    "192.0.0.192/32",  # metadata of Oracle
    "224.0.0.0/4",  # multicast
    "255.255.255.255/32",  # broadcast
    "::/128",
    "fe80::/10",  # link-local
    "fd00:ec2::254/128",  # metadata of AWS over IPv6
    "fd20:ce::254/128",  # metadata of Google over IPv6
    "ff00::/8",  # multicast
)

# Networks without public web servers for which ``is_global`` is true in some Python versions.
_NOT_PUBLIC = _networks(
    "100.64.0.0/10",  # carrier-grade NAT
    "192.0.0.0/24",  # IETF protocol assignments
    "192.88.99.0/24",  # 6to4 relays, withdrawn
    "198.18.0.0/15",  # benchmarks
    "240.0.0.0/4",  # reserved
    "2001::/23",  # IETF protocol assignments, Teredo (2001::/32) among them
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4, withdrawn
    "3fff::/20",  # documentation
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has ever assigned to hosts

# Prefixes whose last 32 bits are an IPv4 address. These two mean exactly that address, so they are allowed if it is
# (an IPv6-only network reaches the whole IPv4 web through NAT64).
_NAMED_IPV4 = _networks("::ffff:0:0/96", "64:ff9b::/96")
# Also withdrawn IPv4-compatible and IPv4-translated addresses, and local NAT64.
_EMBEDDED_IPV4 = (*_NAMED_IPV4, *_networks("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48"))


def is_allowed_address(address: str | Address, *, allow_private_hosts: bool) -> bool:
    """Whether a connection to this address may be made. Pure.

    Without allow_private_hosts, only public addresses are allowed: no private, loopback, link-local, multicast,
    reserved, unspecified, documentation, benchmark or carrier-grade NAT address, no IPv6 address that contains such an
    IPv4 address (mapped, NAT64), and none of the withdrawn tunnels (6to4, Teredo). With it, link-local, multicast,
    unspecified, broadcast and cloud metadata addresses stay rejected, also inside an IPv6 address.

    Raises:
        ValueError: the text is not an address.
    """
    ip = ipaddress.ip_address(address) if isinstance(address, str) else address
    embedded = _embedded(ip) if isinstance(ip, ipaddress.IPv6Address) else []
    if any(_is_in(candidate, _NEVER) for candidate in (ip, *embedded)):
        return False
    if allow_private_hosts:
        return True
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not _is_in(ip, _NOT_PUBLIC)
    if _is_in(ip, _NAMED_IPV4):
        return all(is_allowed_address(inner, allow_private_hosts=False) for inner in embedded)
    return ip in _GLOBAL_UNICAST and ip.is_global and not _is_in(ip, _NOT_PUBLIC) and not embedded


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _embedded(ip: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses inside an IPv6 address that a router or a network stack may unwrap."""
    if ip == ipaddress.IPv6Address("::1"):
        return []
    found = [ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)] if _is_in(ip, _EMBEDDED_IPV4) else []
    if ip.sixtofour is not None:
        found.append(ip.sixtofour)
    if ip.teredo is not None:
        found.extend(ip.teredo)
    if (int(ip) >> 32) & 0xFDFF_FFFF == 0x5EFE:  # ISATAP
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF))
    return found


def _is_in(ip: Address, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(ip in network for network in networks)
