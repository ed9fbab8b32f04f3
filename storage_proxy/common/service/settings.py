"""Configuration: a TOML file, the environment on top, checked whole before anything starts.

The law: an unknown key or variable is an error, every problem is one line with the key's full path, and no line
shows a secret.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from storage_proxy.common.service.loops import LoopChoice, uvloop_is_installed

MIN_SECRET_BYTES = 32
DEVELOPMENT_MARK = "dev-only"


class InvalidSettings(Exception):
    """The configuration cannot be used; ``problems`` are lines for a person, without secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


_GUARDED = "checked for strength in production"


def _not_empty(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value():
        raise ValueError("is empty")
    return secret


GuardedSecret = Annotated[SecretStr, AfterValidator(_not_empty), _GUARDED]
"""A secret of ours: production refuses it when it is short or a development one."""


def _listen_address(value: str) -> str:
    parse_listen(value)
    return value


def parse_listen(value: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as a pair; port 0 means any free one. Raises ValueError."""
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port")
    return host, int(port)


ListenAddress = Annotated[str, AfterValidator(_listen_address)]


def _base_url(value: str) -> str:
    if not value.startswith(("http://", "https://")) or any(c in value for c in "?# "):
        raise ValueError("must be an http:// or https:// URL without query")
    return value.rstrip("/")


BaseUrl = Annotated[str, AfterValidator(_base_url)]


class Section(BaseModel):
    """A table of the configuration: unknown keys refused, ``<secret>_file`` read in place of a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        values = dict(given)
        for name, field in cls.model_fields.items():
            file_key = f"{name}_file"
            if file_key not in values or not _mentions(field.annotation, SecretStr):
                continue
            if name in values:
                raise at_key(file_key, f"give either {name} or {file_key}")
            text = _read_secret(values.pop(file_key), file_key)
            values[name] = (
                text.split("\n") if _mentions(field.annotation, list) or _mentions(field.annotation, tuple) else text
            )
        return values


def _read_secret(path: Any, key: str) -> str:
    try:
        return Path(str(path)).read_text(encoding="utf-8").strip("\r\n").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise at_key(key, f"cannot be read: {reason}") from None


def at_key(key: str, message: str) -> PydanticCustomError:
    """What a validator of a section raises for a problem at ``key`` below it."""
    return PydanticCustomError("at_key", "{message}", {"key": key, "message": message})


class _TomlBelow(TomlConfigSettingsSource):
    """The file, without what the environment gives in the other form: a secret, or the file to read it from."""

    def __init__(
        self, above: PydanticBaseSettingsSource, settings_cls: type[BaseSettings], toml_file: Path | None
    ) -> None:
        super().__init__(settings_cls, toml_file)
        self._above = above

    def __call__(self) -> dict[str, Any]:
        given = super().__call__()
        _give_way(given, self._above())
        return given


def _give_way(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        below.pop(key.removesuffix("_file") if key.endswith("_file") else f"{key}_file", None)
        if isinstance(value, Mapping) and isinstance(beneath := below.get(key), dict):
            _give_way(beneath, value)


class ServiceSettings(BaseSettings):
    """What the settings of both programs have in common. ``env_prefix`` ends in ``__``."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, env_nested_delimiter="__")

    union_tags: ClassVar[Mapping[tuple[str, ...], int]] = {}
    """Where Pydantic puts a union's tag into the path of an error: first keys -> index of the tag."""

    environment: Literal["development", "production"] = "development"
    loop: LoopChoice = "auto"
    """The event loop: `storage_proxy.common.service.loops`."""

    _toml_file: ClassVar[Path | None] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, _TomlBelow(env_settings, settings_cls, cls._toml_file)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The settings of ``path`` with the environment on top. Raises `InvalidSettings`."""
        if not path.is_file():
            raise InvalidSettings([f"{path}: is not a file"])
        problems = cls._unknown_variables()
        bound = type(cls.__name__, (cls,), {"_toml_file": path, "__module__": cls.__module__})
        try:
            settings: Self = bound()
        except (TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidSettings([*problems, f"{path}: is not TOML: {error}"]) from None
        except SettingsError as error:
            raise InvalidSettings([*problems, *cls._malformed_variables(error)]) from None
        except ValidationError as error:
            raise InvalidSettings([*problems, *cls._lines(error)]) from None
        problems += settings.problems()
        if problems:
            raise InvalidSettings(problems)
        return settings

    def problems(self) -> list[str]:
        """What no single field can see. Subclasses add to it."""
        found = []
        if self.loop == "uvloop" and not uvloop_is_installed():
            found.append("loop: uvloop is not installed here")
        if self.environment != "production":
            return found
        return found + [f"{path}: {reason}" for path, secret in _guarded(self) if (reason := _weakness(secret))]

    @classmethod
    def _unknown_variables(cls) -> list[str]:
        prefix = str(cls.model_config.get("env_prefix", ""))
        return [
            f"{name}: is not a setting"
            for name in sorted(os.environ)
            if name.upper().startswith(prefix)
            and name.upper().removeprefix(prefix).split("__")[0].lower() not in cls.model_fields
        ]

    @classmethod
    def _malformed_variables(cls, error: SettingsError) -> list[str]:
        """The variables that Pydantic could not parse: it names the first key of their path only."""
        prefix = str(cls.model_config.get("env_prefix", ""))
        found = []
        for name, value in sorted(os.environ.items()):
            if name.upper().startswith(prefix) and value.lstrip().startswith(("[", "{")):
                try:
                    json.loads(value)
                except ValueError as reason:
                    found.append(f"{name}: is not JSON: {reason}")
        return found or [f"environment: {error}"]

    @classmethod
    def _lines(cls, error: ValidationError) -> list[str]:
        lines = []
        for each in error.errors(include_url=False, include_input=False):
            path = [str(part) for part in each["loc"]]
            for start, index in cls.union_tags.items():
                if tuple(path[: len(start)]) == start and len(path) > index:
                    del path[index]
            if each["type"] == "at_key":
                path.append(str(each["ctx"]["key"]))
            message = each["msg"].removeprefix("Value error, ").replace("\n", " ")
            lines.append(f"{'.'.join(path) or 'settings'}: {message}")
        return lines


def _mentions(annotation: object, wanted: object) -> bool:
    return wanted in (annotation, get_origin(annotation)) or any(
        _mentions(argument, wanted) for argument in get_args(annotation)
    )


def _weakness(secret: SecretStr) -> str | None:
    value = secret.get_secret_value()
    if DEVELOPMENT_MARK in value:
        return "is a development secret"
    if len(value.encode()) < MIN_SECRET_BYTES:
        return f"is shorter than {MIN_SECRET_BYTES} bytes"
    return None


def _guarded(model: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[str, SecretStr]]:
    for name, field in type(model).model_fields.items():
        guarded = _GUARDED in field.metadata or _mentions(field.annotation, _GUARDED)
        yield from _guarded_in(getattr(model, name), (*path, name), guarded=guarded)


def _guarded_in(value: object, path: tuple[str, ...], *, guarded: bool) -> Iterator[tuple[str, SecretStr]]:
    if isinstance(value, SecretStr) and guarded:
        yield ".".join(path), value
    elif isinstance(value, BaseModel):
        yield from _guarded(value, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _guarded_in(item, (*path, str(key)), guarded=guarded)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _guarded_in(item, (*path, str(index)), guarded=guarded)
