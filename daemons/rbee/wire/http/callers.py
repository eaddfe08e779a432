"""Who hears of every caller that a server lets in or refuses."""

from typing import Protocol

from rbee.wire.auth import Identity


class CallerWatch(Protocol):
    """Told by the authentication; neither call may wait."""

    def let_in(self, identity: Identity, correlation_id: str | None = None) -> None:
        """A caller showed who it is; None as correlation id: that of the request in hand."""

    def refused(self, reason: str, who: str | None, route: str, peer: str | None) -> None:
        """A caller was refused: ``who`` is a fingerprint or ``uid:N``, None where it showed nothing."""


class _Nobody:
    """Of a server without an audit log."""

    def let_in(self, identity: Identity, correlation_id: str | None = None) -> None:
        """Nothing."""

    def refused(self, reason: str, who: str | None, route: str, peer: str | None) -> None:
        """Nothing."""


NOBODY_WATCHES: CallerWatch = _Nobody()
