"""What is said where a worker fits nowhere: the cause that the nodes share, and the numbers of each of them."""

from collections.abc import Mapping

from rbee.queen.placement.decision import HOTTEST_C, Basis, Decision, Obstacle, Option
from rbee.wire.errors import (
    BackendUnavailable,
    GpuTooHot,
    InsufficientRam,
    InsufficientResources,
    InvalidDevice,
    RbeeError,
    VramExhausted,
)
from rbee.wire.model_reference import model_name_of

_MB = 1 << 20
_OF_THE_REQUEST = (Obstacle.BACKEND, Obstacle.DEVICE)
_TRY_AGAIN_S = 30.0
_FREE = "stop a worker with 'rbee worker stop', choose a smaller or quantised model, or add a node"


class NoPlace(Exception):
    """The cause of a refusal: the decision that found no place, and the bytes of models by their reference then."""

    def __init__(self, decision: Decision, sizes: Mapping[str, int]) -> None:
        super().__init__("no place was found")
        self.decision = decision
        self.sizes = sizes


def refusal(decision: Decision) -> RbeeError:
    """The error of a decision that found no place; nodes that lack what is asked for stand back behind others."""
    close = [option for option in decision.options if option.obstacle not in _OF_THE_REQUEST]
    causes = {option.obstacle for option in close or decision.options}
    cause = causes.pop() if len(causes) == 1 else None
    details = _details(decision, close or decision.options)
    if cause is Obstacle.BACKEND:
        return BackendUnavailable(
            f"no node that may be chosen has the backend {decision.backend.value}: "
            "see 'rbee doctor' on it, or use another backend",
            details=details | {"field": "backend"},
        )
    if not close:
        return InvalidDevice(
            f"no node that may be chosen has that device for {decision.backend.value}: leave it out",
            details=details | {"field": "device"},
        )
    if cause is Obstacle.TOO_HOT:
        return GpuTooHot(
            f"every GPU that may be chosen is above {HOTTEST_C} degrees Celsius: ask again when it has cooled down",
            details=details,
            retry_after_s=_TRY_AGAIN_S,
        )
    best = max(close, key=lambda option: option.available_bytes)
    sentence = f"{_amounts(best, decision.basis)}: {_FREE}"
    kind = {Obstacle.RAM: InsufficientRam, Obstacle.VRAM: VramExhausted}.get(cause or Obstacle.DISK)
    return (kind or InsufficientResources)(
        f"the model fits nowhere: {sentence}", details=details, retry_after_s=_TRY_AGAIN_S
    )


def _amounts(option: Option, basis: Basis) -> str:
    place = option.node if option.device is None else f"{option.node} device {option.device}"
    if option.obstacle is Obstacle.TOO_HOT:
        return f"the best place, {place}, is at {option.temperature_c} degrees Celsius"
    of_memory = option.obstacle in (Obstacle.RAM, Obstacle.VRAM)
    what = option.obstacle.value.upper() if option.obstacle is not None and of_memory else "disk"
    measured = ", as measured at its last start," if of_memory and basis is Basis.MEASURED else ""
    needed = 0 if option.required_bytes is None else option.required_bytes
    needs = f"it needs {_mb(needed)} MB of {what}{measured}"
    return f"{needs} and the best place, {place}, has {option.available_bytes // _MB} MB"


def _details(decision: Decision, close: tuple[Option, ...] | list[Option]) -> dict[str, object]:
    shown = _shown(decision.model_ref)
    details: dict[str, object] = {
        "model_ref": shown,
        "basis": decision.basis,
        "nodes": [_told(one) for one in decision.options],
    }
    for obstacle, name in ((Obstacle.VRAM, "vram"), (Obstacle.RAM, "ram")):
        short = [option for option in close if option.obstacle is obstacle]
        if short:
            details[f"required_{name}_mb"] = _mb(decision.required_bytes or 0)
            details[f"available_{name}_mb"] = max(option.available_bytes for option in short) // _MB
    return details


def _shown(model_ref: str) -> str:
    """A reference as callers may see it: of a folder the name alone, for where it lies is its machine's business."""
    return model_name_of(model_ref) if model_ref.startswith(("/", "file:")) else model_ref


def _told(option: Option) -> dict[str, object]:
    told: dict[str, object] = {
        "node": option.node,
        "obstacle": option.obstacle,
        "required_mb": None if option.required_bytes is None else _mb(option.required_bytes),
        "available_mb": option.available_bytes // _MB,
    }
    if option.device is not None:
        told |= {"device": option.device, "temperature_c": option.temperature_c}
    return told


def _mb(amount: int) -> int:
    """Bytes in MiB, rounded up: what is needed is never told too small."""
    return -(-amount // _MB)
