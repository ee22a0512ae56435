"""Describes the API as an OpenAPI document, made of its table, and serves it with a page.

Both are open to everybody on this machine: they say what is in the source, and nothing of the node.
The page is Redoc, which only shows: no token is ever typed into it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

from aiohttp import web
from pydantic import TypeAdapter

from xsc import __version__
from xsc.api.endpoint import Endpoint, headers_of, in_path
from xsc.api.problems import CONTENT_TYPE, Problem
from xsc.api.table import ENDPOINTS
from xsc.base.errors import code_of, leaves

PATHS: Final = ("/openapi.json", "/docs", "/docs/redoc.js")
_VIEWER: Final = Path(__file__).parent / "viewer"
_PAGE_MAY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS: Final = {
    "json": "application/json",
    "framed": "application/octet-stream",
    "bytes": "application/octet-stream",
    "cbor": "application/cbor",
    "text": "text/plain",
    "lines": "application/x-ndjson",
    "events": "text/event-stream",
}
_BYTES: Final = {"type": "string", "format": "binary"}
FRAMED: Final = (
    "the body is the length of a JSON document in 4 bytes, big-endian, the document, and the bytes"
    " whose number it says"
)
_MAKING: Final = Lock()
"""Held by who makes the document: pydantic's schemas are not made for several threads at once."""
Schema = dict[str, Any]


def _content(kind: str, schema: Schema) -> Schema:
    return {kind: {"schema": schema}}


def _object(properties: Schema, required: Iterable[str]) -> Schema:
    told = {"properties": properties, "required": sorted(required)}
    return {"type": "object", **told, "additionalProperties": False}


def _as_text(schema: Schema) -> Schema:
    """Return the schema of a field that stands in a path, header or query: there is no null."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
    return {**rest, **kinds[0]} if kinds else schema


def _operation(endpoint: Endpoint[Any, Any], asked: Schema, answer: Schema) -> Schema:
    headers, placed = headers_of(cast(Any, endpoint.request)), in_path(endpoint)
    sent, required = asked.get("properties", {}), {*asked.get("required", ())}
    beside = {name for name in sent if name in placed or name in headers or not endpoint.has_json}
    if endpoint.rows:
        answer = _object({endpoint.rows: {"type": "array", "items": answer}}, [endpoint.rows])
    if endpoint.answer is bytes:
        answer = _BYTES
    found: Schema = {
        "summary": endpoint.says,
        "operationId": f"{endpoint.method} {endpoint.path}",
        "tags": [endpoint.path.removeprefix("/v1/").strip("/").split("/")[0]],
        "parameters": [
            {
                "name": headers.get(name, name),
                "in": "path" if name in placed else "header" if name in headers else "query",
                "required": name in required,
                "schema": _as_text(sent[name]),
            }
            for name in sorted(beside)
        ],
        "responses": {
            str(endpoint.status): {
                "description": "Done.",
                "content": _content(KINDS[endpoint.gives], answer),
            },
            "default": {"$ref": "#/components/responses/refused"},
        },
    }
    document = _object(
        {name: schema for name, schema in sent.items() if name not in beside}, required - beside
    )
    body = document if endpoint.takes == "json" else _BYTES
    if endpoint.takes == "framed":
        parts = [
            {"title": "the JSON document in it", **document},
            {"title": "all bytes of the body", **_BYTES},
        ]
        body = {"description": FRAMED, "anyOf": parts}
    if body is not document or document["properties"]:
        content = _content(KINDS[endpoint.takes], body)
        found["requestBody"] = {"content": content, "required": bool(document["required"])}
    return found


@cache
def openapi() -> Schema:
    """Return the document."""
    kinds: set[Any] = {
        Problem,
        *(kind for each in ENDPOINTS for kind in (each.request, each.answer)),
    }
    schemas, defined = TypeAdapter.json_schemas(
        [(kind, "validation", TypeAdapter(kind)) for kind in sorted(kinds, key=str)],
        ref_template="#/components/schemas/{model}",
    )
    models = defined["$defs"]
    codes = [f"{code_of(kind)} ({kind.http_status})" for kind in leaves()]
    paths: Schema = {}
    for each in ENDPOINTS:
        asked = models[schemas[each.request, "validation"]["$ref"].rsplit("/", 1)[1]]
        answer = schemas[each.answer, "validation"]
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, asked, answer)
    return {
        "openapi": "3.1.0",
        "info": {"title": "XSC node", "version": __version__},
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "schemas": models,
            "responses": {
                "refused": {
                    "description": "Why it was refused: " + ", ".join([*codes, "bug (500)"]),
                    "content": _content(CONTENT_TYPE, schemas[Problem, "validation"]),
                }
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


@cache
def _as_bytes() -> bytes:
    with _MAKING:
        return json.dumps(openapi()).encode()


async def _document(_: web.BaseRequest) -> web.Response:
    made = await asyncio.to_thread(_as_bytes)
    return web.Response(body=made, content_type="application/json")


async def _page(_: web.BaseRequest) -> web.FileResponse:
    return web.FileResponse(_VIEWER / "index.html", headers={"Content-Security-Policy": _PAGE_MAY})


async def _viewer(_: web.BaseRequest) -> web.FileResponse:
    return web.FileResponse(_VIEWER / "redoc.standalone.js")


ROUTES: Final = [
    web.get(path, handler) for path, handler in zip(PATHS, (_document, _page, _viewer), strict=True)
]
