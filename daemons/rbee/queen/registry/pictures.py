"""Heartbeats as they come: what a hive repeats every few seconds is known by its bytes, and not decoded again."""

import msgspec

from rbee.queen.hives.places import Origin
from rbee.wire.http.server import decode_body
from rbee.wire.messages import Count, Heartbeat, HiveId, MachineFacts, Text, Url


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat whose workers are bytes still; see :class:`rbee.wire.messages.Heartbeat`."""

    hive_id: HiveId
    boot_id: Text
    revision: Count
    version: Text
    interval_s: float
    api_url: Url | None
    machine: MachineFacts
    workers: msgspec.Raw
    revoked: Text | None = None

    def picture(self, origin: Origin) -> int:
        """A hash of all that it says of workers, and of where it came from; the machine's own facts are left out."""
        said = (self.boot_id, self.revision, self.version, self.api_url, self.interval_s)
        return hash((origin, said, bytes(self.workers)))


def read_beat(body: bytes) -> Beat:
    """Decode a heartbeat all but its workers; raises InvalidRequest."""
    return decode_body(body, Beat)


def read_whole(body: bytes) -> Heartbeat:
    """Decode a heartbeat with its workers; raises InvalidRequest."""
    return decode_body(body, Heartbeat)
