"""The OpenAPI 3.1 document of a daemon, made from its routes and from the types that they read and write.

What a handler takes and gives stands beside it (:mod:`rbee.wire.http.operations`); paths, methods and who may call are
the router's own.
https://spec.openapis.org/oas/v3.1.1
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from rbee.wire.errors import ErrorBody
from rbee.wire.http.middleware import CORRELATION_HEADER, is_open
from rbee.wire.http.operations import JSON, SCHEMA, Operation, operation, operation_of
from rbee.wire.http.server import json_response
from rbee.wire.model_reference import MODEL_ID
from rbee.wire.names import HIVE_ID, MODEL_NAME, WORKER_ID

Json = dict[str, Any]
ROUTE = "/openapi.json"
_REF = "#/components/schemas/{name}"
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_MODEL = f"^{MODEL_NAME.pattern}$"
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_MOMENT = (
    r"^([0-9]{1,13}|2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))$"
)
_PATTERNS = {
    "model": _MODEL, "alias": _MODEL, "request_id": _UUID, "X-Request-Id": _UUID, "version": "^1$",
    "model_id": f"^{MODEL_ID.pattern}$",
    "hive": f"^{HIVE_ID.pattern}$", "worker": f"^{WORKER_ID.pattern}$", "X-Request-Deadline": _MOMENT,
    "Last-Event-ID": "^[0-9]{1,12}$", "boot_id": "^[!-~]{1,512}$",
}  # fmt: skip
CORRELATED = {CORRELATION_HEADER: "the request's name in records, errors and explanations"}
"""The header that every answer of every daemon carries, and what it says."""
_BEARER, _TICKET = "bearer", "ticket"
_SCHEMES: dict[str, Json] = {
    _BEARER: {"type": "http", "scheme": "bearer"},
    _TICKET: {"type": "http", "scheme": "bearer", "description": "a ticket that this daemon gave for the one model"},
}


@dataclass(frozen=True, slots=True)
class Described:
    """A route as the document has it; ``scheme`` names what a caller shows, None where anybody may call."""

    method: str
    path: str
    summary: str
    scheme: str | None
    operation: Operation


class NotDescribed(LookupError):
    """A route without an :func:`operation`: a defect."""


def described(app: web.Application) -> Iterator[Described]:
    """Every route of an application; raises NotDescribed."""
    for route in app.router.routes():
        if route.method == "HEAD" or route.resource is None:
            continue
        handler = route.handler
        found = operation_of(handler)
        if found is None:
            raise NotDescribed(f"{route.method} {route.resource.canonical}")
        summary = (inspect.getdoc(handler) or "").partition("\n")[0]
        yield Described(route.method, route.resource.canonical, summary, _scheme(handler, found), found)


def _scheme(handler: object, own: Operation) -> str | None:
    if own.ticket:
        return _TICKET
    return None if is_open(handler) else _BEARER


def document(app: web.Application, title: str, version: str, headers: Mapping[str, str]) -> Json:
    """The document; ``headers`` are those that every answer carries, with what they say."""
    routes = list(described(app))
    named = [kind for route in routes for kind in (*_answers(route.operation), route.operation.body)]
    types = [ErrorBody, *(kind for kind in named if kind is not None)]
    schemas, components = msgspec.json.schema_components(types, schema_hook=_any_json, ref_template=_REF)
    by_type = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    for kind, schema in zip(types, schemas, strict=True):
        if hasattr(kind, SCHEMA):
            components[schema["$ref"].rpartition("/")[2]] |= getattr(kind, SCHEMA)
    carried = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    writer = _Writer(by_type, carried)
    schemes = {route.scheme for route in routes if route.scheme is not None}
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = writer.operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": _portable(components),
            "securitySchemes": {scheme: _SCHEMES[scheme] for scheme in sorted(schemes)},
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()},
        },
    }


def _answers(own: Operation) -> tuple[Any, ...]:
    return own.answer if isinstance(own.answer, tuple) else (own.answer,)


def _any_json(kind: type) -> Json:
    """The schema of what msgspec has none for: ``object`` stands for any JSON value."""
    if kind is object:
        return {"description": "any JSON value"}
    raise NotImplementedError(kind)


def _portable(node: Any) -> Any:  # noqa: ANN401 - a schema, or a part of one
    """A schema whose patterns end as JSON Schema's regular expressions do: Python's ``\\Z`` is ``$`` there."""
    if isinstance(node, list):
        return [_portable(one) for one in node]
    if not isinstance(node, dict):
        return node
    written = {key: _portable(value) for key, value in node.items()}
    if isinstance(pattern := written.get("pattern"), str):
        written["pattern"] = re.sub(r"\\Z$", "$", pattern)
    return written


class _Writer:
    def __init__(self, by_type: Mapping[int, Json], carried: Json) -> None:
        self._by_type = by_type
        self._carried = carried

    def operation(self, route: Described) -> Json:
        """The operation object of one route."""
        own = route.operation
        written: Json = {
            "summary": route.summary,
            "operationId": _identifier(route),
            "parameters": [*_path_parameters(route.path), *_parameters("query", own.query),
                           *_parameters("header", own.headers)],
            "responses": {str(status): self._answer(own) for status in (own.status, *own.more)}
            | {"default": self._error()},
            "security": [] if route.scheme is None else [{route.scheme: []}],
        }  # fmt: skip
        if own.body is not None or own.bodies:
            written["requestBody"] = {"required": True, "content": self._content((own.body,), own.bodies)}
        return written

    def _content(self, kinds: tuple[object, ...], media: tuple[str, ...]) -> Json:
        schemas = [self._by_type[id(kind)] for kind in kinds if kind is not None]
        content: Json = {JSON: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}} if schemas else {}
        return content | {name: {} for name in media}

    def _answer(self, own: Operation) -> Json:
        answer: Json = {"description": "The answer.", "headers": self._carried}
        content = self._content(_answers(own), own.media)
        return answer | ({"content": content} if content else {})

    def _error(self) -> Json:
        content = {JSON: {"schema": self._by_type[id(ErrorBody)]}}
        return {"description": "An error: what failed, why, what to do.", "headers": self._carried, "content": content}


def _identifier(route: Described) -> str:
    words = re.findall(r"[A-Za-z0-9]+", f"{route.method.lower()} {route.path}")
    return "_".join(words)


def _path_parameters(path: str) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"minLength": 1} | _schema(name)}
        for name in _PLACEHOLDER.findall(path)
    ]


def _parameters(place: str, named: Mapping[str, str]) -> list[Json]:
    return [
        {
            "name": name,
            "in": place,
            "required": False,
            "description": text,
            "schema": {"type": "string"} if place == "query" else _schema(name),
        }
        for name, text in named.items()
    ]


def _schema(name: str) -> Json:
    """The schema of a parameter: one name means one thing on every route."""
    pattern = _PATTERNS.get(name)
    return {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}


class DocumentRoute:
    """Serves the document; made once, when it is first asked for."""

    def __init__(self, app: web.Application, title: str, version: str, headers: Mapping[str, str]) -> None:
        self._app = app
        self._words = title, version, headers
        self._made: Json | None = None
        app.router.add_get(ROUTE, self.get)

    @operation(Json)
    async def get(self, request: web.Request) -> web.StreamResponse:
        """This document."""
        if self._made is None:
            self._made = document(self._app, *self._words)
        return json_response(self._made)
