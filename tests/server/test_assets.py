"""The chat page's files, as a server delivers them."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette

from mlx_qwen3.server import assets
from tests.server.fake_api import serving

FOLDER = Path(assets.__file__).parent / "page"
FILES = sorted(file for file in FOLDER.iterdir() if file.suffix in assets.CONTENT_TYPES)


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    """host:port of a server that has nothing but the page."""
    with serving(Starlette(routes=assets.page_routes())) as address:
        yield urlsplit(address).netloc


def get(
    place: str, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(place, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_is_served_as_what_it_is(place: str, file: Path) -> None:
    response, body = get(place, "/" if file.name == "index.html" else f"/page/{file.name}")
    assert (response.status, body) == (200, file.read_bytes())
    assert response.headers["Content-Type"] == assets.CONTENT_TYPES[file.suffix]
    for name, value in assets.HEADERS.items():
        assert response.headers[name] == value


def test_who_has_a_file_is_not_sent_it_again(place: str) -> None:
    first, _ = get(place, "/page/app.js")
    second, body = get(place, "/page/app.js", If_None_Match=f'"old", W/{first.headers["ETag"]}')
    assert (second.status, body) == (304, b"")
    assert second.headers["ETag"] == first.headers["ETag"]
    other, _ = get(place, "/page/app.js", If_None_Match='"old"')
    assert other.status == 200


def test_head_is_answered_without_a_body(place: str) -> None:
    response, body = get(place, "/", method="HEAD")
    assert (response.status, body) == (200, b"")
    assert int(response.headers["Content-Length"]) == (FOLDER / "index.html").stat().st_size


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/../assets.py",
        "/page/..%2fassets.py",
        "/page/%2e%2e/assets.py",
        "/etc/passwd",
    ],
)
def test_nothing_else_is_served(place: str, path: str) -> None:
    assert get(place, path)[0].status == 404


def test_the_policy_allows_only_the_pages_own_files() -> None:
    policy = dict(part.split(" ", 1) for part in assets.CONTENT_SECURITY_POLICY.split("; "))
    assert policy["default-src"] == "'none'"
    assert {value for name, value in policy.items() if name.endswith("-src")} == {
        "'none'",
        "'self'",
    }
    assert "unsafe" not in assets.CONTENT_SECURITY_POLICY


def test_files_name_no_other_place() -> None:
    """Works offline: every address a file loads is relative."""
    loads = re.compile(r"""(?:src|href)="([^"#]+)|from "([^"]+)|import\("([^"]+)|url\(([^)]+)""")
    for file in FILES:
        for found in loads.finditer(file.read_text()):
            target = next(group for group in found.groups() if group)
            assert (FOLDER / target.removeprefix("page/")).is_file(), (file.name, target)


def test_no_file_makes_html_from_text() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|DOMParser"
    )
    for file in FOLDER.glob("*.js"):
        assert not forbidden.search(file.read_text()), file.name
