"""What a reload changed of the models that queen.yaml declares, as entries of the audit log."""

from collections.abc import Mapping

from rbee.host.audit.entries import SYSTEM, EventType
from rbee.host.audit.log import AuditLog
from rbee.wire.declarations import DeclaredModel


def record_declarations(
    audit: AuditLog, before: Mapping[str, DeclaredModel], after: Mapping[str, DeclaredModel]
) -> None:
    """One entry for each declaration that came, went, or differs."""
    for model in sorted(before.keys() | after.keys()):
        old, new = before.get(model), after.get(model)
        if old == new:
            continue
        change = "added" if old is None else "removed" if new is None else "changed"
        reference = (new or old or DeclaredModel("")).reference
        audit.record(EventType.MODEL_DECLARE, SYSTEM, model=model, model_ref=reference, change=change)
