"""What holds of the OpenAPI document of every daemon."""

import re
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import web

METHODS = {"get", "post", "put", "patch", "delete"}
Document = dict[str, Any]


async def document(client: aiohttp.ClientSession, url: str) -> Document:
    """The document of the daemon at ``url``."""
    async with client.get(url + "/openapi.json") as response:
        assert response.status == 200, await response.text()
        return dict(await response.json())


def written_routes(found: Document) -> set[tuple[str, str]]:
    """Method and path of every operation."""
    return {(method.upper(), path) for path, item in found["paths"].items() for method in item}


def routes_of(app: web.Application) -> set[tuple[str, str]]:
    """Method and path of every route."""
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }


def check_whole(found: Document) -> None:
    """Every operation has what it must have, and every reference leads somewhere."""
    assert found["openapi"] == "3.1.0"
    seen = set()
    for path, item in found["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            assert operation["summary"], (method, path)
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            placeholders = set(re.findall(r"\{(\w+)\}", path))
            named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert named == placeholders, path
            assert "default" in operation["responses"]
    assert "\\Z" not in str(found), "no JSON Schema knows it"
    for reference in _references(found):
        place: Any = found
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [one for value in node.values() for one in _references(value)]
    return [one for value in node for one in _references(value)] if isinstance(node, list) else []


def open_paths(found: Document) -> set[str]:
    """Paths that anybody may call."""
    return {path for path, item in found["paths"].items() for one in item.values() if not one["security"]}


async def check_reads(
    client: aiohttp.ClientSession, url: str, found: Document, known: Mapping[str, str], endless: tuple[str, ...] = ()
) -> None:
    """Every GET answers with a media type, headers and fields that stand in the document.

    ``known`` has what stands for a placeholder; ``endless`` are paths that are left out.
    """
    for path, item in found["paths"].items():
        if "get" not in item or path in endless:
            continue
        filled = path
        for placeholder, value in known.items():
            filled = filled.replace(placeholder, value)
        async with client.get(url + filled) as response:
            await check_answer(response, found, item["get"])


async def check_answer(response: aiohttp.ClientResponse, found: Document, operation: Document) -> None:
    """An answer is one that its operation has."""
    written = operation["responses"]
    answer = written.get(str(response.status), written["default"])
    assert response.content_type in answer["content"], (response.url, response.status)
    assert all(name in response.headers for name in answer["headers"]), (response.url, response.headers)
    reference = answer["content"][response.content_type].get("schema", {}).get("$ref")
    if reference is not None:
        schema = found["components"]["schemas"][reference.rpartition("/")[2]]
        body = await response.json()
        assert set(schema["required"]) <= body.keys() <= schema["properties"].keys(), (response.url, body)
