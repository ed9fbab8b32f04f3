import json

import pytest


@pytest.mark.parametrize(
    "path", ["/v1/blobs?key=a", "/v1/tokens/blob", "/v1/uploads", "/v1/runs/r1", "/nothing-here", "/v1/"]
)
async def test_everything_but_the_open_paths_needs_a_key(caller, proxy, path: str) -> None:
    for key in (None, "wrong", ""):
        status, answer, headers = await caller.get(path, key=key)
        assert (status, answer["code"], headers["WWW-Authenticate"]) == (401, "unauthorized", "Bearer")
    assert proxy.asked == []


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs"])
async def test_health_metrics_and_documents_are_open(caller, path: str) -> None:
    async with caller.session.get(caller.url + path) as answer:
        assert answer.status == 200
    async with caller.session.head(caller.url + path) as answer:
        assert answer.status == 200


async def test_a_ready_manager_says_so(caller) -> None:
    status, answer, _ = await caller.get("/health/ready", key=None)
    assert (status, answer) == (200, {"ready": True, "degraded": []})


async def test_the_document_has_every_route_of_this_api(caller) -> None:
    _, document, _ = await caller.get("/openapi.json", key=None)
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == {
        ("get", "/v1/blobs"),
        ("post", "/v1/tokens/blob"),
        ("post", "/v1/tokens/archive"),
        ("post", "/v1/uploads"),
        ("post", "/v1/uploads/{upload_id}/complete"),
        ("get", "/v1/runs/{run_id}"),
        ("get", "/v1/runs/{run_id}/blobs"),
        ("delete", "/v1/runs/{run_id}"),
        ("get", "/health/live"),
        ("get", "/health/ready"),
        ("get", "/metrics"),
    }
    assert document["paths"]["/metrics"]["get"]["security"] == []
    assert document["paths"]["/v1/blobs"]["get"]["security"] == [{"bearer": []}]


async def test_the_examples_of_the_document_are_accepted(caller) -> None:
    _, document, _ = await caller.get("/openapi.json", key=None)
    for path in ("/v1/tokens/blob", "/v1/tokens/archive", "/v1/uploads"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        (example,) = document["components"]["schemas"][schema.rpartition("/")[2]]["examples"]
        status, answer, _ = await caller.post(path, example)
        assert status == 201, json.dumps(answer)


async def test_answers_are_never_stored(caller) -> None:
    for path in ("/v1/blobs?key=a", "/v1/blobs", "/health/live"):
        _, _, headers = await caller.get(path)
        assert "no-store" in headers["Cache-Control"]
