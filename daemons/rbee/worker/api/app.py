"""Puts the worker's routes together."""

from aiohttp import web

from rbee import __version__
from rbee.wire.auth import TokenVerifier
from rbee.wire.http.middleware import open_route
from rbee.wire.http.openapi import CORRELATED, DocumentRoute
from rbee.wire.http.server import build_app, metrics_handler
from rbee.wire.messages import WorkerState
from rbee.wire.peer import PeerAdmins
from rbee.worker.api.embeddings import EmbeddingsRoutes
from rbee.worker.api.inference import InferenceRoutes
from rbee.worker.api.open_inference import OpenInferenceRoutes
from rbee.worker.api.openai import OpenAiRoutes
from rbee.worker.api.rerank import RerankRoutes
from rbee.worker.api.status import PROGRESS_ROUTE, StatusRoutes
from rbee.worker.service import WorkerService

OPENAI_PREFIXES = ("/v1/chat/", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/models")


def build_worker_app(service: WorkerService, verifier: TokenVerifier, admins: PeerAdmins) -> web.Application:
    """The application of one worker."""
    metrics = service.metrics
    app = build_app(
        verifier=verifier,
        admins=admins,
        metrics=metrics.http,
        openai_prefixes=OPENAI_PREFIXES,
    )
    slots = metrics.slots
    slots.labels("busy").set_function(lambda: service.requests.busy)
    slots.labels("waiting").set_function(lambda: service.requests.waiting)
    slots.labels("free").set_function(
        lambda: 0 if service.state in (WorkerState.LOADING, WorkerState.DRAINING) else _free(service)
    )
    status, inference, openai = StatusRoutes(service), InferenceRoutes(service), OpenAiRoutes(service)
    embeddings, rerank, tensors = EmbeddingsRoutes(service), RerankRoutes(service), OpenInferenceRoutes(service)
    DocumentRoute(app, "rbee worker", __version__, CORRELATED)
    app.add_routes(
        [
            web.get("/health", open_route(status.health)),
            web.get("/metrics", metrics_handler(metrics.registry)),
            web.get("/v1/ready", status.ready),
            web.get(PROGRESS_ROUTE, status.progress),
            web.post("/v1/inference", inference.infer),
            web.delete("/v1/inference/{request_id}", inference.cancel),
            web.get("/v1/models", openai.models),
            web.post("/v1/chat/completions", openai.chat),
            web.post("/v1/completions", openai.completions),
            web.post("/v1/embeddings", embeddings.embed),
            web.post("/v1/rerank", rerank.rank),
            web.get("/v2", tensors.server),
            web.get("/v2/health/live", tensors.live),
            web.get("/v2/health/ready", tensors.ready),
            # the router tries one pattern after the other: what is asked most comes first
            web.post("/v2/models/{model:.+}/versions/{version}/infer", tensors.infer),
            web.post("/v2/models/{model:.+}/infer", tensors.infer),
            web.get("/v2/models/{model:.+}/versions/{version}/ready", tensors.model_ready),
            web.get("/v2/models/{model:.+}/versions/{version}", tensors.model),
            web.get("/v2/models/{model:.+}/ready", tensors.model_ready),
            web.get("/v2/models/{model:(?!.+/infer$).+}", tensors.model),
        ]
    )
    return app


def _free(service: WorkerService) -> int:
    return service.requests.slots - service.requests.busy
