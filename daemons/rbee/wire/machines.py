"""The machines of a fleet as the queen shows them: what each hive last said of its own."""

import msgspec

from rbee.wire.messages import HiveId, MachineFacts, Text


class HiveView(msgspec.Struct, frozen=True):
    """One hive: ``silent_s`` since it was last heard, ``stale`` once that is too long; ``workers`` that it has.

    ``session``: it holds a session open. ``machine`` is None until its first heartbeat.
    """

    hive_id: HiveId
    version: Text
    stale: bool
    silent_s: float
    session: bool
    workers: int
    machine: MachineFacts | None = None


class HiveList(msgspec.Struct, frozen=True):
    """GET /v2/hives, by name."""

    hives: list[HiveView]
