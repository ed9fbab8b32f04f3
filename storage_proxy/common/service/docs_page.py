"""A page for people to read an API's OpenAPI document on, rendered here.

The law: the page is one answer without scripts or other resources, and every text in it is escaped.
"""

import json
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from typing import Any

from aiohttp import web

from storage_proxy.common.service.docs_schema import Field, example_of, fields_of, type_of
from storage_proxy.common.service.docs_style import STYLE
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.openapi import Json


class DocumentHandlers:
    """The endpoints that describe an API: its document, and a page of it."""

    def __init__(self, document: Json) -> None:
        style_hash = b64encode(sha256(STYLE.encode()).digest()).decode()
        self._policy = (
            f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        self._document = json.dumps(document, indent=1).encode()
        self._page = docs_page(document).encode()

    @endpoint("GET", "/openapi.json")
    async def openapi(self) -> web.Response:
        """The OpenAPI document of this API."""
        return web.Response(body=self._document, content_type="application/json")

    @endpoint("GET", "/docs")
    async def docs(self) -> web.Response:
        """The OpenAPI document as a page."""
        headers = {
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)


def docs_page(document: Json) -> str:
    """The HTML page of an OpenAPI ``document`` made by `openapi_document`."""
    info = document["info"]
    operations = list(_operations(document))
    sections = []
    for tag in (each["name"] for each in document["tags"]):
        mine = [_operation(document, *each) for each in operations if tag in each[2]["tags"]]
        sections.append(f"<h2>{escape(tag)}</h2>{''.join(mine)}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(info["title"])}</title><style>{STYLE}</style></head><body>'
        f"{_navigation(document, operations)}<main><header><h1>{escape(info['title'])} "
        f"<small>{escape(info['version'])}</small></h1><p>{_text(info['description'])}</p>"
        '<p>Requests and answers are JSON. <span class="lock">key</span> marks what needs an API key: '
        "<code>Authorization: Bearer &lt;api key&gt;</code>. Every error is <code>application/problem+json</code>: "
        'programs decide by its <code>code</code>. For machines: <a href="/openapi.json">openapi.json</a>.</p>'
        f"</header>{''.join(sections)}</main></body></html>"
    )


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _navigation(document: Json, operations: list[tuple[str, str, Json]]) -> str:
    lists = []
    for tag in (each["name"] for each in document["tags"]):
        items = "".join(
            f'<li><a href="#{escape(operation["operationId"])}">{_verb(method)} {escape(path)}</a></li>'
            for method, path, operation in operations
            if tag in operation["tags"]
        )
        lists.append(f"<p>{escape(tag)}</p><ul>{items}</ul>")
    return f'<nav aria-label="Operations">{"".join(lists)}</nav>'


def _operation(document: Json, method: str, path: str, operation: Json) -> str:
    lock = ' <span class="lock" title="needs an API key">key</span>' if operation["security"] else ""
    parts = [
        f'<article id="{escape(operation["operationId"])}"><h3>{_verb(method)} <code>{escape(path)}</code>{lock}</h3>',
        f'<p class="summary">{_text(operation["summary"])}</p>',
        f"<p>{_text(operation['description'])}</p>" if "description" in operation else "",
        _parameters(document, operation["parameters"]),
        _body(document, operation),
        _answers(document, operation["responses"]),
        f"<h4>Example</h4><pre><code>{escape(curl_of(document, method, path, operation))}</code></pre></article>",
    ]
    return "".join(parts)


def _parameters(document: Json, parameters: list[Json]) -> str:
    if not parameters:
        return ""
    fields = [
        Field(
            each["name"],
            type_of(document, each["schema"]).removesuffix(" or null"),  # a URL cannot say null
            required=each["required"],
            default=each["schema"].get("default"),
            description=each["description"],
        )
        for each in parameters
    ]
    return f"<h4>Parameters</h4>{_table(fields)}"


def _body(document: Json, operation: Json) -> str:
    if not operation.get("requestBody", {}).get("required"):
        return ""
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return f"<h4>Body</h4>{_table(fields_of(document, schema))}"


def _answers(document: Json, responses: Json) -> str:
    rows = []
    for status, response in responses.items():
        kind = "good" if status < "400" else "bad"
        rows.append(f'<dt class="{kind}">{escape(status)}</dt><dd>{_answer(document, response)}</dd>')
    return f"<h4>Answers</h4><dl>{''.join(rows)}</dl>"


def _answer(document: Json, response: Json) -> str:
    content = response.get("content", {})
    if "application/json" not in content:
        return _text(response["description"])
    fields = fields_of(document, content["application/json"]["schema"], answer=True)
    return f"{_text(response['description'])}{_table(fields)}"


def _table(fields: list[Field]) -> str:
    rows = []
    for each in fields:
        mark = "" if each.required is None else f"<em>{'required' if each.required else 'optional'}</em>"
        default = "" if each.default is None else f" Default: <code>{escape(_shown(each.default))}</code>."
        rows.append(
            f"<tr><td><code>{escape(each.name)}</code>{mark}</td><td>{escape(each.type)}</td>"
            f"<td>{_text(each.description)}{default}</td></tr>"
        )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def curl_of(document: Json, method: str, path: str, operation: Json) -> str:
    """A request for ``operation`` that a reader can paste."""
    names = [each["name"] for each in operation["parameters"] if each["required"] and each["in"] == "query"]
    for each in operation["parameters"]:
        path = path.replace(f"{{{each['name']}}}", "…")
    query = "?" + "&".join(f"{name}=…" for name in names) if names else ""
    verb = "" if method == "GET" else f" -X {method}"
    lines = [f'curl -sS{verb} "$API{path}{query}"']
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $KEY"')
    if operation.get("requestBody", {}).get("required"):
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        lines += ["-H 'Content-Type: application/json'", f"-d '{_shown(example_of(document, schema))}'"]
    return " \\\n  ".join(lines)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _verb(method: str) -> str:
    return f'<span class="verb {escape(method.lower())}">{escape(method)}</span>'


def _text(text: str) -> str:
    """``text`` escaped, with its `code` marked."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
