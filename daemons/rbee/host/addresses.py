"""Whose address a URL names: this machine's, or a peer's."""

import ipaddress
import socket
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses that are nobody's (RFC 5737, RFC 3849): nothing is sent there, the kernel is asked for the way alone."""
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def answers_here(url: str) -> bool:
    """Whether the host of a URL is an address of this machine (a name other than localhost is not looked up)."""
    address = address_of(url)
    return address is not None and is_here(address)


def address_of(url: str) -> Address | None:
    """The address that a URL names, localhost included; None for any other name, which is not looked up."""
    try:
        host = urlsplit(url).hostname or ""
        return parse_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None


def is_here(address: Address) -> bool:
    """Whether the address is one of this machine."""
    if address.is_unspecified or address.is_multicast:
        return False
    if address.is_loopback:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))  # the kernel binds addresses of this machine only
        except OSError:
            return False
    return True


def outward_address(family: socket.AddressFamily) -> str:
    """The address that this machine has for others, by its way to them; loopback where it has no such way."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_ELSEWHERE[family], 9))  # no packet leaves: UDP knows no connection
            return str(probe.getsockname()[0])
    except OSError:
        return _LOOPBACK[family]


def same_machine(url: str, peer: str | None) -> bool:
    """Whether a URL names the machine of a peer, whose IP address is ``peer``, or None on a Unix socket.

    A peer on this machine may name any address of it, and no other peer a loopback one: that would be ours.
    """
    address = address_of(url)
    if address is None:
        return False
    told_from = None if peer is None else parse_address(peer)
    if told_from is None or is_here(told_from):
        return is_here(address)
    return address == told_from


def parse_address(text: str) -> Address:
    """The address that ``text`` is, an interface behind it left out; raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])  # a link-local peer has its interface behind it
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped
