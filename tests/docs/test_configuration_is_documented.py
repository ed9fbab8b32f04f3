"""docs/configuration.md has a row for every key of both programs, with its default, and no row for any other."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from manager_api.settings import ManagerSettings
from storage_proxy.settings import ProxySettings

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
PROGRAMS = {"Storage proxy": ProxySettings, "Manager API": ManagerSettings}
ROW = re.compile(r"^\| `([^`]+)` \| .+? \| (`[^|]*`|required|absent) \| .+ \|$", re.MULTILINE)

Key = tuple[str, FieldInfo]


def keys_of(model: type[BaseModel], path: str = "") -> Iterator[Key]:
    """Every key that holds a value, under its full path; the tables of a union one after the other."""
    for name, field in model.model_fields.items():
        own = f"{path}.{name}" if path else name
        tables = list(tables_of(field.annotation, own))
        if not tables:
            yield own, field
        for table_path, table in tables:
            yield from keys_of(table, table_path)


def tables_of(annotation: Any, path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield path, annotation
    suffix = {dict: ".<name>", list: "[]", tuple: "[]"}.get(get_origin(annotation), "")  # type: ignore[arg-type]
    for argument in get_args(annotation):
        yield from tables_of(argument, path + suffix)


def mentions_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(mentions_secret, get_args(annotation)))


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = str(field.default) if isinstance(field.default, Path) else field.default
    return "absent" if default is None else f"`{json.dumps(default)}`"


def section(title: str) -> str:
    """The text under the heading ``## title``."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def every_key() -> list[Any]:
    return [
        pytest.param(title, key, field, id=f"{title}: {key}")
        for title, settings in PROGRAMS.items()
        for key, field in keys_of(settings)
    ]


@pytest.mark.parametrize(("title", "key", "field"), every_key())
def test_a_key_is_documented_with_its_default(title: str, key: str, field: FieldInfo) -> None:
    documented = dict(ROW.findall(section(title)))
    assert key in documented, f"{key} has no row under {title!r}"
    if not key.endswith(".kind"):  # a union's tag is required by each table, the union has the default
        assert documented[key] == default_of(field)


@pytest.mark.parametrize(("title", "key", "field"), every_key())
def test_a_secret_is_documented_with_its_file_form(title: str, key: str, field: FieldInfo) -> None:
    if mentions_secret(field.annotation):
        assert f"`{key}_file`" in section(title)


@pytest.mark.parametrize("title", PROGRAMS)
def test_no_row_is_of_a_key_that_does_not_exist(title: str) -> None:
    rows = {key for key, _ in ROW.findall(section(title))}
    assert rows - {key for key, _ in keys_of(PROGRAMS[title])} == set()
