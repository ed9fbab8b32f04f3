"""The manager's configuration: every key, its default and what it means."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, StringConstraints
from pydantic_settings import SettingsConfigDict

from storage_proxy.common.service.settings import BaseUrl, GuardedSecret, ListenAddress, Section, ServiceSettings
from storage_proxy.common.service.token_settings import TokenSettings

BucketName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
Seconds = Annotated[float, Field(gt=0, le=3600)]
WholeSeconds = Annotated[int, Field(ge=1)]


def _sendable(secret: SecretStr) -> SecretStr:
    if not all("!" <= character <= "~" for character in secret.get_secret_value()):
        raise ValueError("may only have printable ASCII characters without spaces: it is sent in a header")
    return secret


BearerSecret = Annotated[GuardedSecret, AfterValidator(_sendable)]


class ApiKeySettings(Section):
    """One caller; ``buckets`` are those that it may know of, absent: all."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    secret: BearerSecret
    buckets: Annotated[list[BucketName], Field(min_length=1)] | None = None


class ProxyConnectionSettings(Section):
    """Where the storage proxy is, for this program and for people with a link."""

    rpc_url: BaseUrl = "http://127.0.0.1:6022"
    rpc_secret: BearerSecret
    client_url: BaseUrl = "http://127.0.0.1:6021"
    rpc_connect_timeout_seconds: Seconds = 5.0
    rpc_timeout_seconds: Seconds = 40.0
    """For what is asked about one blob or one run, retries included."""
    rpc_plan_timeout_seconds: Seconds = 600.0
    """For the plan of an archive, retries included."""
    rpc_complete_timeout_seconds: Seconds = 120.0
    """For the verification of an upload, which may read it whole, retries included."""
    rpc_max_connections: Annotated[int, Field(ge=1, le=10_000)] = 100


class ManagerTokenSettings(TokenSettings):
    """How tokens are signed and how long they live."""

    signing_kid: str
    default_ttl_seconds: WholeSeconds = 3600
    max_ttl_seconds: WholeSeconds = 604_800


class ShutdownSettings(Section):
    """How the process ends."""

    drain_seconds: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """For so long running requests may finish after SIGTERM."""
    unready_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0
    """For so long after SIGTERM connections are still accepted, while readiness is already false."""


class ManagerSettings(ServiceSettings):
    """All settings of the manager API."""

    model_config = SettingsConfigDict(env_prefix="MANAGER_API__")

    listen: ListenAddress = "127.0.0.1:6020"
    api_keys: Annotated[list[ApiKeySettings], Field(min_length=1)]
    proxy: ProxyConnectionSettings
    tokens: ManagerTokenSettings
    shutdown: ShutdownSettings = ShutdownSettings()

    def problems(self) -> list[str]:
        """What no single field can see."""
        return [*super().problems(), *self._key_problems(), *self._token_problems()]

    def _key_problems(self) -> list[str]:
        problems = []
        names: set[str] = set()
        secrets: set[str] = set()
        for index, key in enumerate(self.api_keys):
            secret = key.secret.get_secret_value()
            if key.name in names:
                problems.append(f"api_keys.{index}.name: another key has this name")
            if secret in secrets:
                problems.append(f"api_keys.{index}.secret: another key has this secret")
            names.add(key.name)
            secrets.add(secret)
        return problems

    def _token_problems(self) -> list[str]:
        problems = []
        if self.tokens.signing_kid not in {key.kid for key in self.tokens.keys}:
            problems.append("tokens.signing_kid: is not the kid of any of tokens.keys")
        if self.tokens.default_ttl_seconds > self.tokens.max_ttl_seconds:
            problems.append("tokens.default_ttl_seconds: is greater than tokens.max_ttl_seconds")
        return problems
