"""What tests ask pytest for: machines with this checkout installed, and networks of them."""

from collections.abc import Iterator

import pytest

from tests.machines.testbed import debs
from tests.machines.testbed.machine import Machine
from tests.machines.testbed.network import Network
from tests.machines.testbed.project import Installation
from tests.machines.testbed.trees import Release

on_every_release = pytest.mark.parametrize("release", list(Release), ids=str)
"""Marks a test whose `machine` or `bare_machine` is to be of each Debian release in turn."""


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """This checkout, installed once: installation.layers(release) goes to Network.add()."""
    with Installation() as made:
        yield made


@pytest.fixture(scope="session")
def repositories() -> dict[Release, debs.Repositories]:
    """The project's Debian packages, this version and a higher one, of each release that is asked for."""
    return {release: debs.repositories(release) for release in debs.RELEASES}


@pytest.fixture
def release() -> Release:
    """The Debian release of the test's machines; see on_every_release."""
    return Release.BOOKWORM


@pytest.fixture
def network() -> Iterator[Network]:
    """An empty network, for tests with several machines."""
    with Network() as made:
        yield made


@pytest.fixture
def bare_machine(network: Network, release: Release) -> Machine:
    """A booted machine without the project."""
    return network.add("node", release=release)


@pytest.fixture
def machine(network: Network, release: Release, installation: Installation) -> Machine:
    """A booted machine with the project and its models; no unit of the project is started or enabled."""
    return network.add("node", release=release, layers=installation.layers(release))


@pytest.fixture(scope="module")
def shared_machine(installation: Installation) -> Iterator[Machine]:
    """The same for all tests of a module, on Debian 12: quicker, and each test leaves it as it found it."""
    with Network() as made:
        yield made.add("node", layers=installation.layers())
