"""Whose address a URL names."""

import socket

import pytest

from rbee.host.addresses import answers_here, outward_address, same_machine


def test_addresses_of_this_machine() -> None:
    assert answers_here("http://127.0.0.1:1")
    assert answers_here("http://[::1]:1")
    assert answers_here("http://localhost:1")
    for url in ("http://0.0.0.0:1", "http://198.51.100.7:1", "http://gpu-1:1", "http://[::1", "http://:1"):
        assert not answers_here(url)


def test_the_address_for_others_is_one_of_this_machine() -> None:
    assert answers_here(f"http://{outward_address(socket.AF_INET)}:1")
    assert answers_here(f"http://[{outward_address(socket.AF_INET6)}]:1")


@pytest.mark.parametrize(
    ("url", "peer", "same"),
    [
        ("http://127.0.0.1:8081", None, True),
        ("http://127.0.0.1:8081", "127.0.0.1", True),
        ("http://localhost:8081", "::1", True),
        ("http://[::1]:8081", "::ffff:127.0.0.1", True),
        ("http://198.51.100.7:8081", "198.51.100.7", True),
        ("http://198.51.100.7:8081", "::ffff:198.51.100.7", True),
        ("http://127.0.0.1:8081", "198.51.100.7", False),  # our own loopback, told from outside
        ("http://169.254.169.254:80", "198.51.100.7", False),
        ("http://198.51.100.8:8081", "198.51.100.7", False),
        ("http://198.51.100.8:8081", "127.0.0.1", False),
        ("http://0.0.0.0:8081", "127.0.0.1", False),
        ("http://gpu-1:8081", "198.51.100.7", False),
    ],
)
def test_a_peer_speaks_for_its_own_machine(url: str, peer: str | None, same: bool) -> None:
    assert same_machine(url, peer) is same
