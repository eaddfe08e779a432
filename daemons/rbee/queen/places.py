"""Where a hive may send the queen: to its own machine, and nowhere else.

The queen presents her tokens and her clients' words at the addresses that hives report, so a hive speaks for the
addresses of its own machine only. A name in ``api_url`` is the operator's (hive.yaml) and is taken as it is; workers
are reported by address.
"""

import msgspec
from aiohttp import web

from rbee.host.addresses import address_of, same_machine
from rbee.wire.messages import Heartbeat, WorkerReport, WorkerState

FOREIGN = "its address is not one of the machine that reports it"


def peer_of(request: web.Request) -> str | None:
    """The IP address that a request comes from, or None on a Unix socket."""
    transport = request.transport
    name = transport.get_extra_info("peername") if transport is not None else None
    return str(name[0]) if isinstance(name, tuple) else None


def is_foreign(report: WorkerReport, peer: str | None) -> bool:
    """Whether a worker is said to be where the hive at ``peer`` is not."""
    return report.url is not None and not same_machine(report.url, peer)


def believed(report: WorkerReport, peer: str | None) -> WorkerReport:
    """The report, without an address that is foreign: a worker that is nowhere takes no requests."""
    if not is_foreign(report, peer):
        return report
    state = WorkerState.UNHEALTHY if report.state.ready else report.state
    return msgspec.structs.replace(report, url=None, state=state, reason=FOREIGN)


def believed_picture(beat: Heartbeat, peer: str | None) -> Heartbeat:
    """The whole picture of a hive, without what is foreign in it."""
    named = beat.api_url is not None and address_of(beat.api_url) is not None
    api_url = None if named and beat.api_url is not None and not same_machine(beat.api_url, peer) else beat.api_url
    return msgspec.structs.replace(beat, api_url=api_url, workers=[believed(one, peer) for one in beat.workers])
