"""What changed of the declared models, as entries of the audit log."""

from collections.abc import Mapping

from rbee.host.audit.entries import EventType
from rbee.host.audit.log import AuditLog
from rbee.wire.declarations import DeclaredModel


def record_declarations(
    audit: AuditLog, actor: str, before: Mapping[str, DeclaredModel], after: Mapping[str, DeclaredModel]
) -> None:
    """One entry for each declaration that came, went, or differs, by ``actor``: a caller's name or SYSTEM."""
    for model in sorted(before.keys() | after.keys()):
        record_declaration(audit, actor, model, before.get(model), after.get(model))


def record_declaration(
    audit: AuditLog, actor: str, model: str, old: DeclaredModel | None, new: DeclaredModel | None
) -> None:
    """The entry of one model's declaration, where it came, went, or differs."""
    if old == new:
        return
    change = "added" if old is None else "removed" if new is None else "changed"
    reference = (new or old or DeclaredModel("")).reference
    audit.record(EventType.MODEL_DECLARE, actor, model=model, model_ref=reference, change=change)
