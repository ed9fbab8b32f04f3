import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from storage_proxy.common.service.settings import (
    BaseUrl,
    GuardedSecret,
    InvalidSettings,
    ListenAddress,
    Section,
    ServiceSettings,
    parse_listen,
)
from storage_proxy.common.service.token_settings import TokenSettings
from storage_proxy.settings import ProxySettings

STRONG = "0123456789abcdef0123456789abcdef"
TOKENS = f'[tokens]\nkeys = [{{ kid = "a", alg = "HS256", secret = "{STRONG}" }}]\n'


class Door(Section):
    listen: ListenAddress = "127.0.0.1:1"
    secrets: Annotated[list[GuardedSecret], Field(min_length=1)]


class Shelf(Section):
    kind: Literal["shelf"] = "shelf"
    secret: GuardedSecret | None = None


class HouseSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TEST_HOUSE__")

    url: BaseUrl = "http://127.0.0.1:1"
    door: Door | None = None
    shelves: dict[str, Shelf] = Field(default_factory=dict)
    tokens: TokenSettings


def load(tmp_path: Path, text: str = TOKENS) -> HouseSettings:
    path = tmp_path / "house.toml"
    path.write_text(text, encoding="utf-8")
    return HouseSettings.load(path)


def problems(tmp_path: Path, text: str = TOKENS) -> list[str]:
    with pytest.raises(InvalidSettings) as error:
        load(tmp_path, text)
    return error.value.problems


def test_the_file_fills_the_settings_and_defaults_the_rest(tmp_path: Path) -> None:
    settings = load(tmp_path, f'url = "https://example.org/"\n{TOKENS}')
    assert settings.url == "https://example.org"
    assert settings.environment == "development"
    assert settings.tokens.key_ring()[0].kid == "a"


def test_the_environment_is_on_top_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_HOUSE__URL", "http://from-environment")
    monkeypatch.setenv("TEST_HOUSE__TOKENS__ISSUER", "somebody")
    settings = load(tmp_path, f'url = "http://from-file"\n{TOKENS}issuer = "nobody"\n')
    assert (settings.url, settings.tokens.issuer) == ("http://from-environment", "somebody")
    assert settings.tokens.audience == "storage-proxy"


def test_a_list_in_the_environment_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [{"kid": "b", "alg": "HS256", "secret": STRONG}, {"kid": "c", "alg": "HS256", "secret": STRONG + "!"}]
    monkeypatch.setenv("TEST_HOUSE__TOKENS__KEYS", json.dumps(keys))
    monkeypatch.setenv("TEST_HOUSE__DOOR__SECRETS", json.dumps([STRONG]))
    settings = load(tmp_path)
    assert [key.kid for key in settings.tokens.key_ring()] == ["b", "c"]
    assert settings.door is not None
    assert settings.door.secrets[0].get_secret_value() == STRONG


def test_a_list_in_the_environment_that_is_no_json_is_one_problem_without_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_HOUSE__TOKENS__KEYS", f"[{STRONG}")
    found = problems(tmp_path)
    assert len(found) == 1
    assert STRONG not in found[0]
    assert "tokens" in found[0].lower()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nope = 1\n" + TOKENS, "nope: Extra inputs are not permitted"),
        (TOKENS + "nope = 1\n", "tokens.nope: Extra inputs are not permitted"),
        (TOKENS + '[shelves.a]\nnope = "x"\n', "shelves.a.nope: Extra inputs are not permitted"),
        ("", "tokens: Field required"),
        (TOKENS + "[door]\n", "door.secrets: Field required"),
        (TOKENS + f'[door]\nlisten = "nowhere"\nsecrets = ["{STRONG}"]\n', "door.listen: must be host:port"),
        (TOKENS + '[door]\nsecrets = ["ok", ""]\n', "door.secrets.1: is empty"),
        ('url = "ftp://x"\n' + TOKENS, "url: must be an http:// or https:// URL without query"),
        (TOKENS.replace('"HS256"', '"none"'), "tokens.keys.0.alg: Input should be 'HS256'"),
        (
            TOKENS.replace("secret =", "secret_file ="),
            "tokens.keys.0.secret_file: cannot be read: No such file or directory",
        ),
        (TOKENS + "issuer = 5\n", "tokens.issuer: Input should be a valid string"),
        (
            TOKENS.replace("keys = [", 'keys = [{ kid = "a", alg = "HS256", secret = "x" }, '),
            "tokens.keys.1.kid: another key has this kid",
        ),
    ],
)
def test_a_problem_is_one_line_with_the_full_path(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(tmp_path, text) == [expected]


def test_all_problems_come_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_HOUSE__NOPE", "1")
    found = problems(tmp_path, 'url = "x"\nnope = 1\n')
    assert [line.split(":")[0] for line in found] == ["TEST_HOUSE__NOPE", "url", "tokens", "nope"]


@pytest.mark.parametrize(
    "name", ["TEST_HOUSE__NOPE", "TEST_HOUSE__URLS", "test_house__nope", "TEST_HOUSE__NOPE__DEEPER"]
)
def test_an_unknown_variable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    assert problems(tmp_path) == [f"{name}: is not a setting"]


def test_an_unknown_variable_below_a_table_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_HOUSE__TOKENS__NOPE", "x")
    assert problems(tmp_path) == ["tokens.nope: Extra inputs are not permitted"]


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{STRONG}\n", encoding="utf-8")
    (tmp_path / "secrets").write_text(f"{STRONG}\r\nanother\n", encoding="utf-8")
    text = TOKENS.replace(f'secret = "{STRONG}"', f'secret_file = "{tmp_path}/secret"')
    settings = load(
        tmp_path, f'{text}[door]\nsecrets_file = "{tmp_path}/secrets"\n[shelves.a]\nsecret_file = "{tmp_path}/secret"'
    )
    assert settings.tokens.keys[0].secret.get_secret_value() == STRONG
    assert settings.door is not None
    assert [secret.get_secret_value() for secret in settings.door.secrets] == [STRONG, "another"]
    shelf_secret = settings.shelves["a"].secret
    assert shelf_secret is not None
    assert shelf_secret.get_secret_value() == STRONG


def test_a_secret_is_given_once(tmp_path: Path) -> None:
    text = TOKENS.replace("secret =", 'secret_file = "/nowhere", secret =')
    assert problems(tmp_path, text) == ["tokens.keys.0.secret_file: give either secret or secret_file"]


def test_a_secret_file_that_is_not_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    text = TOKENS.replace(f'secret = "{STRONG}"', f'secret_file = "{tmp_path}/secret"')
    assert problems(tmp_path, text) == ["tokens.keys.0.secret_file: cannot be read: is not UTF-8"]


def test_production_refuses_weak_and_development_secrets_wherever_they_are(tmp_path: Path) -> None:
    text = (
        'environment = "production"\n[tokens]\nkeys = [{ kid = "a", alg = "HS256", secret = "short" }]\n'
        f'[door]\nsecrets = ["{STRONG}", "dev-only-{STRONG}"]\n[shelves.b]\nsecret = "{STRONG[:31]}"\n'
    )
    assert problems(tmp_path, text) == [
        "door.secrets.1: is a development secret",
        "shelves.b.secret: is shorter than 32 bytes",
        "tokens.keys.0.secret: is shorter than 32 bytes",
    ]
    assert load(tmp_path, text.replace("production", "development"))


def test_no_line_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "my-very-own-secret"
    monkeypatch.setenv("TEST_HOUSE__SHELVES", json.dumps({"x": {"secret": [secret]}}))
    text = (
        f'environment = "{secret}"\n'
        f'[tokens]\nkeys = [{{ kid = "a", alg = "HS256", secret = ["{secret}"] }}, "{secret}"]\n'
        f'[door]\nlisten = "{secret}"\nsecrets = "{secret}"\n'
    )
    assert len(found := problems(tmp_path, text)) >= 5
    assert secret not in "\n".join(found)
    monkeypatch.undo()
    assert secret not in repr(load(tmp_path, TOKENS.replace(STRONG, secret)))


@pytest.mark.parametrize("text", ["= 1", "a = [", "\udcff"])
def test_a_file_that_is_no_toml_is_one_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "house.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidSettings, match="is not TOML"):
        HouseSettings.load(tmp_path / "house.toml")


def test_a_missing_file_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="is not a file"):
        HouseSettings.load(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("host:65535", ("host", 65535))],
)
def test_a_listen_address_is_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", ":80", "host", "host:", "host:x", "host:65536", "host:-1", "host:٣"])
def test_anything_else_is_no_listen_address(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_listen(text)


def test_the_environment_may_give_a_secret_that_the_file_reads_from_a_file_and_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(f"{STRONG}-from-file\n")
    from_file = f'[shelves.a]\nkind = "shelf"\nsecret_file = "{tmp_path}/secret"\n{TOKENS}'
    secret = load(tmp_path, from_file).shelves["a"].secret
    assert secret is not None
    assert secret.get_secret_value() == f"{STRONG}-from-file"
    monkeypatch.setenv("TEST_HOUSE__SHELVES__A__SECRET", f"{STRONG}-from-environment")
    secret = load(tmp_path, from_file).shelves["a"].secret
    assert secret is not None
    assert secret.get_secret_value() == f"{STRONG}-from-environment"
    monkeypatch.delenv("TEST_HOUSE__SHELVES__A__SECRET")
    monkeypatch.setenv("TEST_HOUSE__SHELVES__A__SECRET_FILE", f"{tmp_path}/secret")
    direct = f'[shelves.a]\nkind = "shelf"\nsecret = "{STRONG}"\n{TOKENS}'
    secret = load(tmp_path, direct).shelves["a"].secret
    assert secret is not None
    assert secret.get_secret_value() == f"{STRONG}-from-file"


def test_production_refuses_every_secret_of_the_development_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_PROXY__ENVIRONMENT", "production")
    with pytest.raises(InvalidSettings) as refused:
        ProxySettings.load(Path("configs/storage_proxy.dev.toml"))
    assert refused.value.problems == [
        "rpc.secrets.0: is a development secret",
        "tokens.keys.0.secret: is a development secret",
        "blob_uris.keys.0: is a development secret",
    ]
