"""/openapi.json: complete, true to the routes, and the way in for a fuzzer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest

from mlx_qwen3.server.app import create_app, endpoints
from mlx_qwen3.server.openapi import describe
from mlx_qwen3.server.settings import ServerSettings
from mlx_qwen3.service import Service
from tests.server.running import PATIENCE, running


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The description of a server without a key."""
    return describe(endpoints(), keyed=False)


def references(value: Any) -> Iterator[str]:
    """Every $ref in it."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    found = set(references(described))
    assert found
    for reference in found:
        place: Any = described
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_schema_is_one(described: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_things_of_one_name_in_two_apis_stay_apart(described: dict[str, Any]) -> None:
    """Chat's stream_options and responses' are two classes of one name."""
    bodies = described["components"]["schemas"]
    chat, responses = (
        set(references(bodies[name]["properties"]["stream_options"]))
        for name in ("ChatBody", "ResponsesBody")
    )
    assert chat
    assert responses
    assert chat.isdisjoint(responses)


def test_it_describes_every_route_but_the_pages(described: dict[str, Any]) -> None:
    app = create_app(Service({"demo": "demo"}), ServerSettings())
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in app.routes
        for method in route.methods  # type: ignore[attr-defined]
        if not route.path.startswith("/page/") and route.path != "/" and method != "HEAD"  # type: ignore[attr-defined]
    }
    said = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert said == routes
    assert ("/v1/chat/completions", "post") in said


def test_it_says_whether_a_key_is_asked(described: dict[str, Any]) -> None:
    assert "security" not in described
    keyed = describe(endpoints(), keyed=True)
    schemes = keyed["components"]["securitySchemes"]
    assert [list(one) for one in keyed["security"]] == [[name] for name in schemes]


def test_it_is_served_as_json() -> None:
    with running(ServerSettings(api_key="key")) as client:
        answer = client.get("/openapi.json")
        assert answer.json()["openapi"] == "3.1.0"
        assert answer.json()["paths"].keys() == describe(endpoints(), keyed=True)["paths"].keys()


# --- thrown at a real server


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    """A server to throw things at."""
    with running() as found:
        yield found


EXAMPLES = 25  # for each endpoint, way of making them, and description
POSTS = sorted(endpoint.path for endpoint in endpoints() if endpoint.body is not None)
GETS = sorted({endpoint.path.replace(":path", "") for endpoint in endpoints()} - {*POSTS})
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
SHORT = {"type": "integer", "minimum": 1, "maximum": 3}


def narrowed(described: dict[str, Any], model: bool) -> dict[str, Any]:
    """The same for short replies: random messages make the demo model ramble on.

    model: name it in every body, so that they get as far as that.
    """
    copied: dict[str, Any] = json.loads(json.dumps(described))
    for schema in copied["components"]["schemas"].values():
        properties = schema.get("properties", {})
        fixed = {name: SHORT for name in LENGTHS if name in properties}
        if model and "model" in properties:
            fixed["model"] = {"const": "demo"}
        properties |= fixed
        schema["required"] = sorted({*schema.get("required", ()), *fixed})
    return copied


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "mode", "narrow"),
    [
        *((path, "POSITIVE", False) for path in GETS),
        *itertools.product(POSTS, ["POSITIVE", "NEGATIVE"], [False, True]),
    ],
)
def test_a_fuzzer_finds_nothing(
    server: httpx.Client, described: dict[str, Any], path: str, mode: str, narrow: bool
) -> None:
    """Bodies right and wrong: no 5xx, and no status or type that is not described."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis import checks
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    wanted = [
        checks.not_a_server_error,
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    ]
    schema = schemathesis.openapi.from_dict(narrowed(described, narrow))
    operation = schema[path]["POST" if path in POSTS else "GET"]
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode])

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases)
    def ask(case: Any) -> None:
        response = case.call(base_url=str(server.base_url), timeout=PATIENCE)
        statuses.add(response.status_code)
        case.validate_response(response, checks=wanted)

    statuses: set[int] = set()
    ask()
    if mode == "NEGATIVE":
        assert 400 in statuses
    elif narrow:
        assert 200 in statuses  # it got as far as the model
