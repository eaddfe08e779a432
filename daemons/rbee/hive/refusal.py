"""What the queen's errors mean to the operator of this machine: above all, which side has to read its token anew."""

from rbee.wire.auth import REPLACED
from rbee.wire.errors import RbeeError


def is_refusal(error: RbeeError) -> bool:
    """Whether the queen answered and refuses this hive's token: no further try helps until one side reads it anew."""
    return error.status in (401, 403)


def sentence(error: RbeeError) -> str:
    """The error in one sentence; for a refused token with the command that helps, and where."""
    if not is_refusal(error):
        return f"{error.code}: {error.message}"
    if error.details.get("reason") == REPLACED:
        return "the queen has replaced hive_callback_token and this hive has the old one: systemctl reload rbee-hive"
    return (
        f"the queen refuses this hive's token ({error.code}): give both the same hive_callback_token; "
        "after a rotation, systemctl reload rbee-queen on her machine"
    )
