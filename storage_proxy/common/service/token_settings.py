"""The ``[tokens]`` table that both programs share: who signs, for whom, with which keys."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from storage_proxy.common.service.settings import GuardedSecret, Section, at_key
from storage_proxy.common.tokens import Hs256Key, TokenKey


class TokenKeySettings(Section):
    """One key of the ring."""

    kid: Annotated[str, Field(min_length=1, max_length=64)]
    alg: Literal["HS256"]
    secret: GuardedSecret

    def key(self) -> TokenKey:
        """The key to sign or verify with."""
        return Hs256Key(kid=self.kid, secret=self.secret.get_secret_value().encode())


class TokenSettings(Section):
    """Issuer, audience and key ring."""

    issuer: Annotated[str, Field(min_length=1)] = "manager-api"
    audience: Annotated[str, Field(min_length=1)] = "storage-proxy"
    keys: Annotated[list[TokenKeySettings], Field(min_length=1)]

    @model_validator(mode="after")
    def _kids_are_unique(self) -> Self:
        kids = [key.kid for key in self.keys]
        for index, kid in enumerate(kids):
            if kid in kids[:index]:
                raise at_key(f"keys.{index}.kid", "another key has this kid")
        return self

    def key_ring(self) -> list[TokenKey]:
        """The keys, in the order of the configuration."""
        return [key.key() for key in self.keys]
