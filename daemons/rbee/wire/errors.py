"""The one tree of errors: each has a code, an HTTP status, and a sentence for the person who meets it.

Every error answers three questions: what failed, why, and what to do next. The body on the wire is
``{"error": {"code", "message", "details", "correlation_id"}}`` on every route of every daemon; the OpenAI routes
add OpenAI's own fields (``type``, ``param``) beside them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

Details = Mapping[str, Any]


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=False):
    """What stands under ``error`` in a body: a code, a sentence, facts, and the request that met it."""

    code: str
    message: str
    details: dict[str, Any] = {}
    correlation_id: str | None = None
    type: str | msgspec.UnsetType = msgspec.UNSET
    param: str | msgspec.UnsetType | None = msgspec.UNSET


class ErrorBody(msgspec.Struct, frozen=True):
    """The JSON body of every answer that is an error."""

    error: ErrorInfo


class RbeeError(Exception):
    """Base of every error that rbee raises on purpose.

    ``code`` is UPPER_SNAKE_CASE and stable; ``status`` is the HTTP status; ``details`` holds JSON values that help
    (required and available amounts, the accepted values), never a secret, a home path or an internal address.
    ``retry_after_s`` becomes the Retry-After header.
    """

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "api_error"

    def __init__(
        self,
        message: str,
        *,
        details: Details | None = None,
        retry_after_s: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.retry_after_s = retry_after_s
        self.param = param

    def info(self, correlation_id: str | None) -> ErrorInfo:
        """The error as it goes on the wire, for the request named by ``correlation_id``."""
        return ErrorInfo(self.code, self.message, self.details, correlation_id)

    def openai_info(self, correlation_id: str | None) -> ErrorInfo:
        """The same with OpenAI's own fields beside ours."""
        return ErrorInfo(self.code, self.message, self.details, correlation_id, type=self.openai_type, param=self.param)


class InternalError(RbeeError):
    """Something that should not happen happened; the log has the stack under the correlation id."""


class InvalidRequest(RbeeError):
    """The request is malformed or a value in it is not acceptable."""

    code = "INVALID_REQUEST"
    status = 400
    openai_type = "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    """A parameter that is not honoured: refused by name, never ignored."""

    code = "UNSUPPORTED_PARAMETER"


class BackendUnavailable(InvalidRequest):
    """A backend that this build or this machine does not have."""

    code = "BACKEND_UNAVAILABLE"


class InvalidDevice(InvalidRequest):
    """A device index that this machine does not have."""

    code = "INVALID_DEVICE"


class InvalidModelReference(InvalidRequest):
    """A model reference in none of the accepted forms, or outside the model roots."""

    code = "INVALID_MODEL_REFERENCE"


class MissingApiKey(RbeeError):
    """No Authorization header came."""

    code = "MISSING_API_KEY"
    status = 401
    openai_type = "authentication_error"


class InvalidApiKey(RbeeError):
    """The Authorization header is not of the form asked for, or the token is not one of ours."""

    code = "INVALID_API_KEY"
    status = 401
    openai_type = "authentication_error"


class Forbidden(RbeeError):
    """The caller is known and may not do this."""

    code = "FORBIDDEN"
    status = 403
    openai_type = "permission_error"


class NotFound(RbeeError):
    """No such route, worker, task or request."""

    code = "NOT_FOUND"
    status = 404
    openai_type = "invalid_request_error"


class WorkerNotFound(NotFound):
    """No worker of that id."""

    code = "WORKER_NOT_FOUND"


class TaskNotFound(NotFound):
    """No task of that id, or its events are gone."""

    code = "TASK_NOT_FOUND"


class ModelNotFound(NotFound):
    """No worker serves or could serve that model."""

    code = "MODEL_NOT_FOUND"


class ModelNotHere(NotFound):
    """The catalogue of this machine has no such model."""

    code = "MODEL_NOT_HERE"


class NodeNotFound(NotFound):
    """No node of that name is in the registry."""

    code = "NODE_NOT_FOUND"


class MethodNotAllowed(RbeeError):
    """The route exists for other methods only."""

    code = "METHOD_NOT_ALLOWED"
    status = 405
    openai_type = "invalid_request_error"


class RequestTimeout(RbeeError):
    """The request's deadline passed."""

    code = "REQUEST_TIMEOUT"
    status = 408
    openai_type = "timeout_error"


class Conflict(RbeeError):
    """The state of the thing asked for does not allow it now."""

    code = "CONFLICT"
    status = 409
    openai_type = "invalid_request_error"


class ModelInUse(Conflict):
    """A worker uses the model; details carry the workers."""

    code = "MODEL_IN_USE"


class NodeExists(Conflict):
    """A node of that name is in the registry, or its hive is alive elsewhere."""

    code = "NODE_EXISTS"


class PayloadTooLarge(RbeeError):
    """The body is over the limit."""

    code = "PAYLOAD_TOO_LARGE"
    status = 413
    openai_type = "invalid_request_error"


class TooManyRequests(RbeeError):
    """A queue is full; Retry-After says when to come back."""

    code = "TOO_MANY_REQUESTS"
    status = 429
    openai_type = "rate_limit_error"


class Unavailable(RbeeError):
    """A part that is needed is not there now and may be back."""

    code = "SERVICE_UNAVAILABLE"
    status = 503
    openai_type = "api_error"


class AllSlotsBusy(Unavailable):
    """Each slot of the worker is taken; details carry slots_total and slots_busy."""

    code = "ALL_SLOTS_BUSY"


class Draining(Unavailable):
    """The worker is stopping and takes no new work."""

    code = "WORKER_DRAINING"


class ModelLoading(Unavailable):
    """The worker is loading; details carry ``loading {state, node, progress, eta_seconds}``."""

    code = "MODEL_LOADING"


class LoadingTimeout(Unavailable):
    """Loading made no progress within its limit."""

    code = "LOADING_TIMEOUT"


class WorkerFailed(Unavailable):
    """The worker ended before it was ready, or during the request."""

    code = "WORKER_FAILED"


class WorkerUnreachable(Unavailable):
    """The worker's unit runs and its address does not answer."""

    code = "WORKER_UNREACHABLE"


class HiveUnreachable(Unavailable):
    """The hive of a node does not answer."""

    code = "HIVE_UNREACHABLE"


class HiveProtocolError(Unavailable):
    """The hive answered something that is not what the protocol says."""

    code = "HIVE_PROTOCOL_ERROR"


class VersionMismatch(Unavailable):
    """Two daemons of versions that do not fit."""

    code = "VERSION_MISMATCH"


class ConnectionTimeout(Unavailable):
    """A daemon did not answer in time, tries included."""

    code = "CONNECTION_TIMEOUT"


class SystemdUnavailable(Unavailable):
    """systemd or its bus cannot be reached now."""

    code = "SYSTEMD_UNAVAILABLE"


class StorageUnavailable(Unavailable):
    """The database cannot be read or written now."""

    code = "STORAGE_UNAVAILABLE"


class InsufficientResources(Unavailable):
    """No node has room for the worker; details carry required and available amounts of each."""

    code = "INSUFFICIENT_RESOURCES"


class InsufficientRam(InsufficientResources):
    """No node has enough memory for the model."""

    code = "INSUFFICIENT_RAM"


class VramExhausted(InsufficientResources):
    """No GPU has enough memory for the model."""

    code = "VRAM_EXHAUSTED"


class GpuTooHot(InsufficientResources):
    """Every GPU that could take the worker is too hot for another one."""

    code = "GPU_TOO_HOT"


class DownloadFailed(RbeeError):
    """A model could not be fetched, all tries included; details carry the tries and the reason."""

    code = "DOWNLOAD_FAILED"
    status = 502


class DownloadTimeout(RbeeError):
    """The source of a model sent nothing for as long as the stall limit allows, in every try."""

    code = "DOWNLOAD_TIMEOUT"
    status = 504


class ModelSourceNotFound(RbeeError):
    """The source does not have the model, the revision or a file of it."""

    code = "MODEL_SOURCE_NOT_FOUND"
    status = 502


class ModelAccessDenied(RbeeError):
    """The source asks for a token, or does not accept the one presented."""

    code = "MODEL_ACCESS_DENIED"
    status = 502


class InsufficientDisk(RbeeError):
    """The disk or the disk budget has no room; details carry required, available and to-free amounts in bytes."""

    code = "INSUFFICIENT_DISK"
    status = 507


class InferenceError(RbeeError):
    """The model ran and failed."""

    code = "INFERENCE_FAILED"
    status = 500


class OutOfMemory(InferenceError):
    """Memory ran out while a model loaded or ran; details carry required and available amounts where they are known."""

    code = "OUT_OF_MEMORY"
    status = 503


class OutOfVram(OutOfMemory):
    """A GPU has less memory free than loading a model, or a run of it, asked for at once."""

    code = VramExhausted.code


class VramFragmented(OutOfMemory):
    """A GPU has as much memory free as was asked for at once, and no piece of it is as large."""

    code = "VRAM_FRAGMENTED"


class GrammarFailed(InferenceError):
    """A text could not be held any further to the shape that its request asks for."""

    code = "GRAMMAR_FAILED"
    status = 400
    openai_type = "invalid_request_error"


class DeviceBroken(RbeeError):
    """The device failed in a way that ends the worker; systemd starts a new one."""

    code = "DEVICE_BROKEN"
    status = 503


class InferenceCancelled(RbeeError):
    """The request was cancelled by its client, by DELETE, or by the end of a drain."""

    code = "CANCELLED"
    status = 499


class ProtocolError(RbeeError):
    """A message between daemons that does not decode."""

    code = "PROTOCOL_ERROR"
    status = 502


class ConfigError(RbeeError):
    """A configuration or a secret is wrong; the daemon ends with exit code 78 and says where."""

    code = "CONFIG_VALIDATION_FAILED"


class ProviderUnavailable(RbeeError):
    """The execution provider or device asked for is not there; exit code 69, never a silent fall-back."""

    code = "PROVIDER_UNAVAILABLE"
    status = 503
