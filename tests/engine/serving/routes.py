"""The routes of a running server, from its own OpenAPI document, and calls for each: most of their
bodies fit the route's schema, some nearly do, and some not at all."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import strategies as st

from tests.engine.server import MODEL, Server
from tests.engine.serving.settings import bodies, leaves

# Of what all routes together have, a call leaves out what changes the server for all after it.
_WEIGHTS = "the weights are no more the model's"
_SLEEPS = "no request is answered until it is undone"
LEFT_OUT = {
    "/sleep": _SLEEPS,
    "/wake_up": _SLEEPS,
    "/release_kv_cache_memory": _SLEEPS,
    "/pause": _SLEEPS,
    "/resume": _SLEEPS,
    "/init_weight_transfer_engine": _WEIGHTS,
    "/shutdown_weight_transfer_engine": _WEIGHTS,
    "/start_weight_update": _WEIGHTS,
    "/start_draft_weight_update": _WEIGHTS,
    "/update_weights": _WEIGHTS,
    "/finish_weight_update": _WEIGHTS,
    "/update_weight_version": _WEIGHTS,
    "/weight_checker": _WEIGHTS,
    "/scale_elastic_ep": "the number of engines changes",
    "/collective_rpc": "it calls whatever method of the worker it is told",
}

TEXTS = (
    "",
    "a",
    "The answer is",
    "user",
    "auto",
    "none",
    "\ud83d",
    "é\u2028\0",
    "{",
    "[a-z]+",
    "x" * 400,
)
INTEGERS = (0, 1, 2, 5, -1, 300, 2**31, 2**63, 2**64, -(10**30))
NUMBERS = (0, 0.5, 1, 1.5, -1, 1e30, float("nan"), float("inf"))
# What a call needs to get anywhere, by the name of a field.
USUAL: dict[str, tuple[Any, ...]] = {
    "model": (MODEL,),
    "prompt": ("The answer is", [1, 2, 3], ["a", "b"]),
    "input": ("The answer is",),
    "messages": ([{"role": "user", "content": "The answer is"}],),
    "max_tokens": (1, 3),
    "max_completion_tokens": (1, 3),
    "max_output_tokens": (1, 3),
    "token_ids": ([1, 2, 3], []),
    "tokens": ([1, 2, 3],),
    "sampling_params": ({"max_tokens": 2}, {"max_tokens": 2, "extra_args": {"slot_steps": 2}}),
    "query": ("The answer is",),
    "items": (["a", "b"],),
    "label_token_ids": ([1, 2],),
    "state": ("The answer is",),
    "questions": ({"a": {"type": "yes_no", "instructions": "Is it?"}},),
    "generate_responses": ([{"choices": [{"index": 0, "token_ids": [1, 2]}]}],),
}
# Routes that read a body of which the document says nothing.
READ_THEMSELVES = ("/invocations", "/abort_requests", "/inference/v1/abort_requests")
ANY_BODY: dict[str, Any] = {"type": "object", "properties": {name: {} for name in USUAL}}


@dataclass(frozen=True)
class Route:
    """body: the JSON schema of what it takes; None where the document has none."""

    method: str
    path: str
    body: dict[str, Any] | None
    parameters: tuple[dict[str, Any], ...]

    @property
    def takes(self) -> bool:
        """Whether a call of it may differ from another."""
        return self.body is not None or bool(self.parameters) or self.path in READ_THEMSELVES

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Call:
    """route: its path with the parameters' names. content: what the body says, if it is whole."""

    method: str
    route: str
    path: str
    query: dict[str, Any]
    body: bytes | None
    content: Any

    def send(self, client: httpx.Client) -> httpx.Response:
        headers = {} if self.body is None else {"content-type": "application/json"}
        return client.request(
            self.method, self.path, params=self.query, content=self.body, headers=headers
        )


class Routes:
    """Those of a server, but for ``LEFT_OUT``."""

    def __init__(self, server: Server) -> None:
        answer = httpx.get(f"{server.url}/openapi.json", timeout=60, trust_env=False)
        document = answer.raise_for_status().json()
        self._definitions = document.get("components", {}).get("schemas", {})
        paths: dict[str, dict[str, Any]] = document["paths"]
        self.left_out = LEFT_OUT.keys() & paths.keys()
        self.all = [
            Route(method.upper(), path, _schema(operation), tuple(operation.get("parameters", ())))
            for path, operations in sorted(paths.items())
            for method, operation in sorted(operations.items())
            if path not in LEFT_OUT
        ]

    def calls_of(self, route: Route) -> st.SearchStrategy[Call]:
        @st.composite
        def made(draw: Callable[..., Any]) -> Call:
            path, query = route.path, {}
            for parameter in route.parameters:
                value = self._value(draw, parameter.get("schema", {}), 0)
                if parameter["in"] == "path":
                    text = quote(str(value).encode("utf-8", "replace"), safe="")
                    path = path.replace(f"{{{parameter['name']}}}", text or "x")
                elif parameter["in"] == "query" and draw(st.booleans()):
                    query[parameter["name"]] = str(value).encode("utf-8", "replace").decode()
            if route.method == "GET":
                return Call(route.method, route.path, path, query, None, None)
            content = self._body(draw, route)
            # NaN and Infinity go out as such, which no client library would send.
            body = json.dumps(content).encode("utf-8", "surrogatepass")
            if draw(st.integers(0, 39)) == 39:
                body = body[: len(body) // 2]
            return Call(route.method, route.path, path, query, body, content)

        return made()

    def _body(self, draw: Callable[..., Any], route: Route) -> Any:
        # What is rare is the last of what can be drawn, as hypothesis likes the first best.
        schema = self._resolved(route.body or ANY_BODY)
        if draw(st.integers(0, 29)) == 29:
            return draw(leaves)
        value = self._value(draw, schema, 0)
        if not isinstance(value, dict):
            return value
        properties = self._properties(schema)
        for name in USUAL:
            # Beside an input it is the name of a template.
            fits = name in properties and (name != "prompt" or "input" not in properties)
            if fits and draw(st.integers(0, 14)) < 14:
                value[name] = draw(st.sampled_from(USUAL[name]))
        if draw(st.integers(0, 4)) == 4:
            value[draw(st.sampled_from([*properties, "slot_steps", "other"]))] = draw(leaves)
        if draw(st.integers(0, 2)) < 2:
            value["vllm_xargs"] = draw(bodies)
        if isinstance(value.get("sampling_params"), dict) and draw(st.booleans()):
            value["sampling_params"] = {**value["sampling_params"], "extra_args": draw(bodies)}
        return value

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self._definitions[schema["$ref"].rpartition("/")[2]]
        return schema

    def _properties(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Of an object, or of any of the objects that it may be."""
        schema = self._resolved(schema)
        found: dict[str, Any] = dict(schema.get("properties", {}))
        for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            found |= self._properties(option)
        return found

    def _value(self, draw: Callable[..., Any], schema: dict[str, Any], depth: int) -> Any:
        """One that fits the schema, as far as its kind goes: texts and numbers are any."""
        schema = self._resolved(schema)
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self._value(draw, draw(st.sampled_from(schema[several])), depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return draw(st.sampled_from(schema["enum"]))
        match schema.get("type"):
            case "object" if depth < 5:
                return self._object(draw, schema, depth)
            case "array" if depth < 5:
                items = schema.get("items") or {}
                return [self._value(draw, items, depth + 1) for _ in range(draw(st.integers(0, 2)))]
            case "string":
                return draw(st.sampled_from(TEXTS))
            case "integer":
                return draw(st.sampled_from(INTEGERS))
            case "number":
                return draw(st.sampled_from(NUMBERS))
            case "boolean":
                return draw(st.booleans())
            case "null":
                return None
        return draw(leaves)

    def _object(self, draw: Callable[..., Any], schema: dict[str, Any], depth: int) -> Any:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        optional = sorted(properties.keys() - set(required))
        most = 1 if depth else 3
        chosen = draw(st.lists(st.sampled_from(optional), max_size=most)) if optional else []
        value = {
            name: self._value(draw, properties.get(name, {}), depth + 1)
            for name in [*required, *chosen]
        }
        rest = schema.get("additionalProperties")
        if isinstance(rest, dict) and not properties:
            names = draw(st.lists(st.sampled_from(TEXTS), max_size=2))
            value |= {name: self._value(draw, rest, depth + 1) for name in names}
        return value


def _schema(operation: dict[str, Any]) -> dict[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {})
    return next((kind["schema"] for kind in content.values() if "schema" in kind), None)


def status(answer: httpx.Response) -> int:
    """Of the answer, or of the error within a stream that had begun."""
    for line in answer.text.splitlines():
        if line.startswith("data: {") and '"error"' in line:
            error = json.loads(line.removeprefix("data: ")).get("error")
            if isinstance(error, dict) and isinstance(error.get("code"), int):
                return int(error["code"])
    return answer.status_code
