"""Where a hive may send the queen: to its own machine, and nowhere else.

The queen presents her tokens and her clients' words at the addresses that hives report, so a hive speaks for the
addresses of its own machine only: for a node those that were enrolled, for any other hive those of the machine that
its messages come from. A name in ``api_url`` is the operator's (hive.yaml) and is taken as it is, but not from a node;
workers are reported by address.
"""

from dataclasses import dataclass

import msgspec
from aiohttp import web

from rbee.host.addresses import Address, address_of, same_machine
from rbee.wire.messages import Heartbeat, WorkerReport, WorkerState

FOREIGN = "its address is not one of the machine that reports it"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a report comes from: the peer's IP address (None on a Unix socket), and a node's enrolled addresses.

    ``tls``: the node is spoken to by https only, so that no token of hers goes there in clear.
    """

    peer: str | None
    enrolled: frozenset[Address] | None = None
    tls: bool = False

    def has(self, url: str) -> bool:
        """Whether the URL names the machine that reports."""
        if self.enrolled is None:
            return same_machine(url, self.peer)
        return address_of(url) in self.enrolled and (not self.tls or url.startswith("https://"))


def peer_of(request: web.Request) -> str | None:
    """The IP address that a request comes from, or None on a Unix socket."""
    transport = request.transport
    name = transport.get_extra_info("peername") if transport is not None else None
    return str(name[0]) if isinstance(name, tuple) else None


def is_foreign(report: WorkerReport, origin: Origin) -> bool:
    """Whether a worker is said to be where the hive of ``origin`` is not."""
    return report.url is not None and not origin.has(report.url)


def believed(report: WorkerReport, origin: Origin) -> WorkerReport:
    """The report, without an address that is foreign: a worker that is nowhere takes no requests."""
    if not is_foreign(report, origin):
        return report
    state = WorkerState.UNHEALTHY if report.state.ready else report.state
    return msgspec.structs.replace(report, url=None, state=state, reason=FOREIGN)


def believed_picture(beat: Heartbeat, origin: Origin) -> Heartbeat:
    """The whole picture of a hive, without what is foreign in it."""
    api_url = beat.api_url
    if api_url is not None and (origin.enrolled is not None or address_of(api_url) is not None):
        api_url = api_url if origin.has(api_url) else None
    return msgspec.structs.replace(beat, api_url=api_url, workers=[believed(one, origin) for one in beat.workers])
