"""A request's trail that is written to the audit log too: its start, each worker that it was given, its end."""

from rbee.host.audit.entries import SYSTEM, EventType
from rbee.host.audit.log import AuditLog
from rbee.queen.requests.explain import Trail
from rbee.queen.routing.placed import Placement


class AuditedTrail(Trail):
    """Its entries share the correlation id of the request; prompts and answers are in none of them."""

    __slots__ = ("_audit", "_begun")

    def __init__(self, audit: AuditLog, route: str, correlation_id: str | None, caller: str | None) -> None:
        super().__init__(route, correlation_id, caller)
        self._audit = audit
        self._begun = False

    def came(self, model: str, asked: str) -> None:
        """The request is here: ``inference.start``, once whichever way it goes."""
        super().came(model, asked)
        if not self._begun:
            self._begun = True
            self._record(EventType.INFERENCE_START, model=model, asked=asked)

    def placed(self, placement: Placement) -> None:
        """A worker was chosen: ``worker.assigned``, for each try."""
        super().placed(placement)
        key = placement.chosen
        self._record(
            EventType.WORKER_ASSIGNED, model=self.model, worker_id=key.worker_id, node=key.hive_id, number=self.tries
        )

    def ends(self, outcome: str, code: str | None) -> None:
        """The request is over: ``inference.complete``."""
        super().ends(outcome, code)
        if self._begun:
            self._record(
                EventType.INFERENCE_COMPLETE, model=self.model, outcome=outcome, code=code, worker=self.worker,
                duration_us=round(((self.ended or self.arrived) - self.arrived) * 1e6),
            )  # fmt: skip

    def _record(self, event_type: EventType, **details: str | int | None) -> None:
        self._audit.record(
            event_type, self.caller or SYSTEM, route=self.route, correlation_id=self.correlation_id, **details
        )
