"""Picks out of an OpenAPI document what the reference page shows. Pure; knows no HTML."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FORM = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str
    required: bool
    default: str
    description: str


@dataclass(frozen=True, slots=True)
class Example:
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    status: str
    description: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    anchor: str
    tag: str
    method: str
    path: str
    summary: str
    description: str
    needs_key: bool
    fields: tuple[Field, ...]
    requests: tuple[Example, ...]
    answers: tuple[Answer, ...]


def operations_of(document: Mapping[str, Any], *, base_url: str) -> dict[str, list[Operation]]:
    """All operations by their tag, in the order of the document; examples of requests are curl commands."""
    by_tag: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            described = _operation(path, method, operation, base_url)
            by_tag.setdefault(described.tag, []).append(described)
    return by_tag


def _operation(path: str, method: str, operation: Mapping[str, Any], base_url: str) -> Operation:
    needs_key = operation.get("security") != []
    content = operation.get("requestBody", {}).get("content", {})
    form = content.get(_FORM)
    body = form or content.get("application/json", {})
    examples = {name: example["value"] for name, example in body.get("examples", {}).items()}
    url = base_url + path
    for parameter in operation.get("parameters", ()):
        url = url.replace(f"{{{parameter['name']}}}", parameter.get("example", ""))
    return Operation(
        anchor=operation["operationId"],
        tag=operation.get("tags", ["Service"])[0],
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        description=operation.get("description", ""),
        needs_key=needs_key,
        fields=(*_parameters(operation), *_fields(body.get("schema", {}), "")),
        requests=tuple(
            Example(name, _curl(method, url, needs_key, _form_options(value, form) if form else _json_options(value)))
            for name, value in (examples or {"": None}).items()
        ),
        answers=tuple(_answer(status, response) for status, response in operation["responses"].items()),
    )


def _parameters(operation: Mapping[str, Any]) -> list[Field]:
    """Those that are not in the path, which its example shows."""
    return [
        Field(
            name=parameter["name"],
            type=f"{parameter['in']}: {_type(parameter['schema'])}",
            required=parameter["required"],
            default=str(parameter["schema"].get("default", "")),
            description=parameter["description"],
        )
        for parameter in operation.get("parameters", ())
        if parameter["in"] != "path"
    ]


def _fields(schema: Mapping[str, Any], prefix: str) -> list[Field]:
    """The fields of an object and, below each, those of the object that it can be."""
    required = schema.get("required", ())
    fields: list[Field] = []
    for name, described in schema.get("properties", {}).items():
        fields.append(
            Field(
                name=f"{prefix}{name}",
                type=_type(described),
                required=name in required,
                default=json.dumps(described["default"]) if described.get("default") is not None else "",
                description=described.get("description", ""),
            )
        )
        for variant in (described, described.get("items", {}), *described.get("anyOf", ())):
            fields += _fields(variant, f"{prefix}{name}.")
    return fields


def _type(schema: Mapping[str, Any]) -> str:
    """The type and its bounds in a few words, such as `integer, 10 to 1000`."""
    variants = [variant for variant in schema.get("anyOf", ()) if variant.get("type") != "null"]
    if variants:
        return " or ".join(dict.fromkeys(map(_type, variants)))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: Mapping[str, Any]) -> str:
    is_text = schema.get("type") == "string"
    low = schema.get("minLength" if is_text else "minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maxLength" if is_text else "maximum", schema.get("exclusiveMaximum"))
    unit = " characters" if is_text else ""
    if low is not None and high is not None:
        return f", {low:g} to {high:g}{unit}"
    if low is not None:
        return f", at least {low:g}{unit}"
    return "" if high is None else f", at most {high:g}{unit}"


def _answer(status: str, response: Mapping[str, Any]) -> Answer:
    examples = []
    for media_type, content in response.get("content", {}).items():
        values = {name: example["value"] for name, example in content.get("examples", {}).items()}
        if "example" in content:
            values[media_type] = content["example"]
        examples += [Example(name, _pretty(value)) for name, value in values.items()]
    return Answer(status, response.get("description", ""), tuple(examples))


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _json_options(body: Any) -> list[str]:
    return [] if body is None else ['-H "Content-Type: application/json"', f"-d {shlex.quote(_pretty(body))}"]


def _form_options(fields: Mapping[str, str], form: Mapping[str, Any]) -> list[str]:
    """A file is sent from where it lies."""
    properties = form["schema"]["properties"]
    return [
        f"-F {name}=@data.jsonl"
        if properties[name].get("format") == "binary"
        else f"-F {shlex.quote(f'{name}={value}')}"
        for name, value in fields.items()
    ]


def _curl(method: str, url: str, needs_key: bool, options: Sequence[str]) -> str:
    lines = [f"curl {url}" if method == "get" else f"curl -X {method.upper()} {url}"]
    if needs_key:
        lines.append('-H "Authorization: Bearer $TRITEXT_KEY"')
    lines += options
    return " \\\n  ".join(lines)
