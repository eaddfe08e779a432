"""Creates ONNX Runtime sessions on exactly the device that was asked for, and runs them."""

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rbee.wire.errors import ConfigError, DeviceBroken, InferenceError, ProviderUnavailable, RbeeError
from rbee.wire.worker_spec import Backend
from rbee.worker.engine.cuda_advice import advise
from rbee.worker.engine.native_messages import captured_stderr
from rbee.worker.engine.runtime import runtime
from rbee.worker.engine.shortage import is_shortage, shortage

LOGGER = logging.getLogger(__name__)
Array = NDArray[Any]
CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
MIB = 1 << 20
MOST_SPIN_US = 100
"""Microseconds that a session's thread waits awake for the next part of a run before it sleeps."""
BROKEN_DEVICE = ("CUDA failure", "CUDA error", "CUBLAS failure", "CUDNN failure", "illegal memory access", "cudaError")


class RunOptions(Protocol):
    """Options of one run; setting ``terminate`` ends it at the next node."""

    terminate: bool
    log_severity_level: int


class Argument(Protocol):
    """An input or output as the session tells it."""

    name: str


class Binding(Protocol):
    """Inputs and outputs bound to buffers (onnxruntime.IOBinding)."""

    def bind_cpu_input(self, name: str, value: Array) -> None: ...

    def bind_ortvalue_input(self, name: str, value: object) -> None: ...

    def bind_input(
        self, name: str, device: str, device_id: int, element: object, shape: Sequence[int], pointer: int
    ) -> None: ...

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: object = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None: ...

    def get_outputs(self) -> list[Any]: ...


class Session(Protocol):
    """What is used of onnxruntime.InferenceSession, which has no types of its own."""

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, Array], options: RunOptions | None = None
    ) -> list[Array]: ...

    def run_with_iobinding(self, binding: Binding, options: RunOptions | None = None) -> None: ...

    def io_binding(self) -> Binding: ...

    def get_inputs(self) -> list[Argument]: ...

    def get_outputs(self) -> list[Argument]: ...

    def get_providers(self) -> list[str]: ...

    def get_provider_options(self) -> dict[str, dict[str, str]]: ...

    def disable_fallback(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Where a session runs. ``threads`` is at least 1; the limit, TF32 and the library path count on CUDA only.

    ``varying``: the shapes change from run to run without end, as a text's do.
    """

    backend: Backend
    device: int = 0
    threads: int = 1
    gpu_mem_limit_mb: int | None = None
    use_tf32: bool = True
    cuda_library_path: Path | None = None
    varying: bool = False


def runtime_device(backend: Backend) -> str:
    """The runtime's name of the device where a backend's tensors live."""
    return "cuda" if backend is Backend.CUDA else "cpu"


def create_session(model: Path | bytes, spec: DeviceSpec, weights: Path | None = None) -> Session:
    """Create the session of a model file, or of a small model's own bytes, whose weights may lie in a folder.

    Raises ProviderUnavailable when CUDA was asked for and the session did not get it, OutOfMemory where the runtime
    could not allocate what the model needs, ConfigError when it refuses the model.
    """
    source = model if isinstance(model, bytes) else str(model)
    options = session_options(spec)
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    if spec.backend is Backend.CUDA:
        return _create_on_cuda(source, spec, options)
    try:
        session: Session = runtime().InferenceSession(source, options, providers=[CPU_PROVIDER])
    except Exception as error:
        if is_shortage(error):
            raise shortage(error, "the model", None) from error
        raise _refused(model, error) from None
    return session


def _refused(model: Path | bytes, error: Exception) -> ConfigError:
    folder, name = ("", "a small model") if isinstance(model, bytes) else (str(model.parent), model.name)
    reason = (str(error).replace(folder, "") if folder else str(error)).strip().splitlines()[:1]
    return ConfigError(f"{name}: ONNX Runtime refuses the model: {(reason or [''])[0][:400]}")


def session_options(spec: DeviceSpec) -> Any:  # noqa: ANN401 - the runtime has no types
    """The runtime's options of a session."""
    options = runtime().SessionOptions()
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # the runtime keeps a plan of its memory for every shape that it has seen, for ever
    options.enable_mem_pattern = not spec.varying
    # a run is hundreds of short parallel parts: a thread that slept between them would cost a third of a small step;
    # one that spun on behind the run would burn a core in an idle worker
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(MOST_SPIN_US))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def cuda_options(spec: DeviceSpec) -> dict[str, str]:
    """The CUDA provider's options: one device, an arena that grows by what is asked for, a limit, TF32."""
    options = {
        "device_id": str(spec.device),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": str(int(spec.use_tf32)),
    }
    if spec.gpu_mem_limit_mb is not None:
        options["gpu_mem_limit"] = str(spec.gpu_mem_limit_mb * MIB)
    return options


def _create_on_cuda(source: str | bytes, spec: DeviceSpec, options: Any) -> Session:  # noqa: ANN401
    failure: Exception | None = None
    session: Session | None = None
    with captured_stderr() as messages:
        _preload(spec.cuda_library_path)
        try:
            providers = [(CUDA_PROVIDER, cuda_options(spec)), CPU_PROVIDER]
            session = runtime().InferenceSession(source, options, providers=providers)
        except Exception as error:  # noqa: BLE001 - the runtime's exceptions share no base class
            failure = error
    if session is not None and session.get_providers()[0] == CUDA_PROVIDER:
        session.disable_fallback()
        if messages.text.strip():
            LOGGER.info("the runtime says: %s", messages.text.strip())
        return session
    if failure is not None and is_shortage(failure):
        raise shortage(failure, "the model", spec.device)
    # the binding that tells of GPUs is needed here alone: no worker that starts pays for its import
    from rbee.host.machine import has_gpu_driver

    advice = advise(f"{messages.text}\n{failure or ''}", driver=has_gpu_driver())
    raise ProviderUnavailable(
        advice.sentence,
        details={"backend": "cuda", "library": advice.library, "package": advice.package},
    )


def _preload(folder: Path | None) -> None:
    """Load CUDA's libraries from ``folder``, or from the wheels beside the runtime where they are installed."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints; the process's stdout is nobody's business
            runtime().preload_dlls(directory="" if folder is None else str(folder))
    except RuntimeError as error:
        raise ConfigError(f"cuda_library_path: {error}; name the folder that holds libcublasLt.so.13") from None


def device_buffer(shape: Sequence[int], element: np.dtype[Any], device: str, device_id: int) -> Any:  # noqa: ANN401
    """A tensor of the runtime on a device, its values not set; raises OutOfMemory where there is no memory."""
    try:
        return runtime().OrtValue.ortvalue_from_shape_and_type(list(shape), element, device, device_id)
    except Exception as error:
        raise run_failure(error, "a text", device_id if device == runtime_device(Backend.CUDA) else None) from error


def run_failure(error: Exception, what: str, device: int | None) -> RbeeError:
    """What a failed run of the runtime on a GPU (None: on the CPU) means, by its own words.

    InferenceError where the request failed, OutOfMemory where memory was too short for it; DeviceBroken where the
    device's context is lost and with it everything that this process can still do on it.
    """
    if is_shortage(error):  # comes first: its words may be among those of a broken device
        return shortage(error, what, device)
    text = str(error)
    if any(mark in text for mark in BROKEN_DEVICE):
        said = " ".join(text.split())[:300]
        return DeviceBroken(f"the GPU's context is lost, so the worker restarts: {said}")
    return InferenceError(
        f"the model failed on {what}: check its shape and values; the worker's journal has the reason",
        details={"reason": type(error).__name__},
    )


def gpu_of(session: Session) -> int | None:
    """The GPU that a session runs on, None on the CPU."""
    options = session.get_provider_options().get(CUDA_PROVIDER)
    return None if options is None else int(options.get("device_id", "0"))


def run_session(
    session: Session, outputs: Sequence[str], feeds: Mapping[str, Array], options: RunOptions | None = None
) -> list[Array]:
    """One inference; raises what :func:`run_failure` makes of a failure."""
    try:
        return session.run(list(outputs), dict(feeds), options)
    except Exception as error:
        raise run_failure(error, "this input", gpu_of(session)) from error


def run_bound(session: Session, binding: Binding, options: RunOptions | None = None) -> None:
    """One inference on bound buffers; raises what :func:`run_failure` makes of a failure."""
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:
        raise run_failure(error, "this prompt", gpu_of(session)) from error


def numpy_type(element: str) -> np.dtype[Any]:
    """The NumPy type of an ONNX element type's name; raises ConfigError where NumPy has none."""
    if element == "string":
        return np.dtype(object)
    try:
        return np.dtype(element)
    except TypeError:
        raise ConfigError(f"the model wants tensors of {element}, which this version cannot feed") from None
