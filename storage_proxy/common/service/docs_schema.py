"""JSON schemas put into a reader's words: the fields of an object, their types, an example."""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_REF = "#/components/schemas/"
_PLACEHOLDERS: dict[str, Any] = {"string": "…", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}


@dataclass(frozen=True, slots=True)
class Field:
    """One field, for a row of a table; nested ones are named by their path. An answer's has no ``required``."""

    name: str
    type: str
    required: bool | None
    default: Any
    description: str


def resolved(document: Json, schema: Json) -> Json:
    """The schema that ``schema`` refers to, or itself."""
    if "$ref" in schema:
        found: Json = document["components"]["schemas"][schema["$ref"].removeprefix(_REF)]
        return found
    return schema


def type_of(document: Json, schema: Json) -> str:
    """The type of ``schema`` in a few words."""
    schema = resolved(document, schema)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(document, each) for each in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {type_of(document, schema.get('items', {}))}"
    return "time" if schema.get("format") == "date-time" else kind


def fields_of(document: Json, schema: Json, *, answer: bool = False, prefix: str = "") -> list[Field]:
    """The fields of an object, those of its lists of objects included, as ``list[].field``."""
    schema = resolved(document, schema)
    fields = []
    for name, each in schema.get("properties", {}).items():
        required = None if answer else name in schema.get("required", ())
        description = each.get("description", "")
        default = None if answer else each.get("default")
        kind = type_of(document, each)
        if not answer:
            kind = kind.removesuffix(" or null")  # null is the same as not given
        fields.append(Field(prefix + name, kind, required, default, description))
        if (item := _item_object(document, each)) is not None:
            fields += fields_of(document, item, answer=answer, prefix=f"{prefix}{name}[].")
    return fields


def _item_object(document: Json, schema: Json) -> Json | None:
    """The schema of the objects that a list holds; None for anything else."""
    schema = resolved(document, schema)
    for each in schema.get("anyOf", [schema]):
        item = resolved(document, resolved(document, each).get("items", {}))
        if "properties" in item:
            return item
    return None


def example_of(document: Json, schema: Json) -> Any:
    """The schema's own example, else one with every required field."""
    schema = resolved(document, schema)
    if schema.get("examples"):
        return schema["examples"][0]
    if "default" in schema:
        return schema["default"]
    if "properties" in schema:
        return {name: example_of(document, schema["properties"][name]) for name in schema.get("required", ())}
    if "enum" in schema:
        return schema["enum"][0]
    return _PLACEHOLDERS.get(str(schema.get("type")))
