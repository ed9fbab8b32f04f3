"""The house keeps its floors: a module imports only from floors below its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = [
    {"cli"},
    {"runtime"},
    {"settings"},
    {"http"},
    {"downloads", "ingest", "lifecycle"},
    {"stores", "state", "bus"},
    {"formats"},
    {"common"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
BACKENDS = {"stores": {"local", "s3"}, "state": {"sqlite", "fdb_engine"}, "bus": {"embedded", "kafka"}}
WEB_ROOMS = {"storage_proxy.http", "storage_proxy.common.service", "manager_api"}
STATE_ROOM = "storage_proxy.state"
CLIENTS = {"aioboto3", "aiobotocore", "botocore", "boto3"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", modules("storage_proxy"), ids=dotted)
def test_a_module_imports_only_from_its_own_room_and_floors_below(path: Path) -> None:
    own = dotted(path)
    if own in ("storage_proxy", "storage_proxy.__main__"):
        return
    for name in imports(path):
        if name.startswith("storage_proxy.") and room(name) != room(own):
            if name == "storage_proxy.__version__":
                continue
            assert room(name) in LEVEL, f"{own} imports {name}, a room on no floor"
            assert LEVEL[room(own)] < LEVEL[room(name)], f"{own} imports {name}"
        assert not name.startswith("manager_api"), f"{own} imports {name}"


def test_every_room_has_a_floor() -> None:
    rooms = {room(dotted(path)) for path in modules("storage_proxy") if dotted(path).count(".")}
    assert rooms - {"__main__"} == LEVEL.keys()


@pytest.mark.parametrize("path", modules("manager_api"), ids=dotted)
def test_the_manager_imports_nothing_of_the_proxy_but_common(path: Path) -> None:
    for name in imports(path):
        if name.startswith("storage_proxy"):
            assert name == "storage_proxy" or name.startswith(("storage_proxy.common", "storage_proxy.__version__")), (
                name
            )


@pytest.mark.parametrize("path", modules("storage_proxy"), ids=dotted)
def test_backends_are_imported_by_the_composition_root_alone(path: Path) -> None:
    own = dotted(path)
    for name in imports(path):
        parts = name.split(".")
        if len(parts) > 2 and parts[2] in BACKENDS.get(parts[1], ()):
            assert room(own) in ("runtime", parts[1]), f"{own} imports {name}"


@pytest.mark.parametrize("path", [*modules("storage_proxy"), *modules("manager_api")], ids=dotted)
def test_web_objects_stay_on_the_http_floor(path: Path) -> None:
    own = dotted(path)
    if not own.startswith(tuple(WEB_ROOMS)):
        assert not [
            name
            for name in imports(path)
            if name.split(".")[0] == "aiohttp" and not own.startswith("storage_proxy.stores")
        ]


@pytest.mark.parametrize("path", [*modules("storage_proxy"), *modules("manager_api")], ids=dotted)
def test_client_libraries_stay_in_their_backend(path: Path) -> None:
    own = dotted(path)
    if not own.startswith("storage_proxy.stores.s3") and own != "storage_proxy.runtime.backends":
        assert not [name for name in imports(path) if name.split(".")[0] in CLIENTS]


@pytest.mark.parametrize("path", [*modules("storage_proxy"), *modules("manager_api")], ids=dotted)
def test_state_clients_stay_in_the_state_room(path: Path) -> None:
    own = dotted(path)
    if not own.startswith(STATE_ROOM):
        assert not [name for name in imports(path) if name.split(".")[0] == "fdb"]


@pytest.mark.parametrize("path", [*modules("storage_proxy"), *modules("manager_api")], ids=dotted)
def test_kafka_stays_in_the_bus_room(path: Path) -> None:
    own = dotted(path)
    if not own.startswith("storage_proxy.bus"):
        assert not [name for name in imports(path) if name.split(".")[0] == "aiokafka"]


@pytest.mark.parametrize("path", modules("storage_proxy/formats"), ids=dotted)
def test_formats_do_no_io(path: Path) -> None:
    forbidden = {"asyncio", "aiohttp", "socket", "threading", "os", "pathlib", "io"} | CLIENTS
    assert not [name for name in imports(path) if name.split(".")[0] in forbidden]


@pytest.mark.parametrize("path", [*modules("storage_proxy"), *modules("manager_api")], ids=dotted)
def test_a_module_opens_with_what_it_is_responsible_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
