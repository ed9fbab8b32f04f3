"""What the bus's part of the configuration refuses."""

import pytest
from pydantic import ValidationError

from storage_proxy.settings import EmbeddedBusSettings, KafkaBusSettings


def kafka(**more: object) -> KafkaBusSettings:
    return KafkaBusSettings.model_validate({"kind": "kafka", "bootstrap_servers": "broker:9092", **more})


@pytest.mark.parametrize("given", [{}, {"sasl_username": "proxy"}, {"sasl_password": "a-secret"}])
def test_sasl_needs_a_name_and_a_password(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="sasl_username and sasl_password"):
        kafka(security_protocol="SASL_SSL", **given)


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(ValidationError, match="ssl_certfile"):
        kafka(security_protocol="SSL", ssl_keyfile="key.pem")


def test_a_password_is_not_shown() -> None:
    found = kafka(security_protocol="SASL_SSL", sasl_username="proxy", sasl_password="a-secret")
    assert "a-secret" not in repr(found)


@pytest.mark.parametrize("name", ["", "with space", "a/b", "x" * 201])
def test_a_topic_has_a_name_that_kafka_takes(name: str) -> None:
    with pytest.raises(ValidationError):
        kafka(ingest_topic=name)
    with pytest.raises(ValidationError):
        EmbeddedBusSettings(ingest_topic=name)
