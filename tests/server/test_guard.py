"""Who gets in, and how much: asked over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlx_qwen3.errors import OptionError
from mlx_qwen3.server.app import OPEN_PATHS, RENDERS
from mlx_qwen3.server.body import Limits
from mlx_qwen3.server.guard import SECURITY_HEADERS, Guard, host_name
from mlx_qwen3.server.settings import LOCAL_NAMES, ServerSettings
from tests.server.fake_api import serving
from tests.server.running import PATIENCE, running

KEY = "correct-horse"
FRIEND = "http://friend.example:3000"
BODY_BYTES = 20_000
SECRET = "what the user wrote"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """The server as most people run it."""
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def keyed() -> Iterator[httpx.Client]:
    """A server with a key, a friend, small limits and little patience."""
    settings = ServerSettings(
        api_key=KEY,
        allow_origins=(FRIEND,),
        allowed_hosts=(*LOCAL_NAMES, "models.example"),
        limits=Limits(body_bytes=BODY_BYTES),
        header_seconds=0.5,
        body_seconds=0.5,
    )
    with running(settings) as found:
        yield found


def port_of(client: httpx.Client) -> int:
    assert client.base_url.port is not None
    return client.base_url.port


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(client)), PATIENCE)


def read_all(connection: socket.socket) -> bytes:
    """Until the server hangs up."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


# --- Host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost:99", "[::1]:8080", "[::1]"])
def test_its_own_names_are_served(client: httpx.Client, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "0.0.0.0",
        "2130706433",
        "localhost.",
        "localhost@evil.example",
        "127.0.0.1:80:80",
        "[::1",
        "[::1]evil.example",
        "localhost evil.example",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics"])
def test_a_rebound_name_is_refused(client: httpx.Client, host: str, path: str) -> None:
    refused = client.get(path, headers={"Host": host})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "host_not_allowed"


def test_other_names_can_be_allowed(keyed: httpx.Client) -> None:
    assert keyed.get("/metrics", headers={"Host": "models.example"}).status_code == 200
    assert keyed.get("/metrics", headers={"Host": "192.168.1.5"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.168.1.5:8080", 200),
        ("[fe80::1]:8080", 200),
        ("localhost", 200),
        ("evil.example", 403),
        ("0.0.0.0", 403),
    ],
)
def test_on_a_network_addresses_are_served_and_names_are_not(host: str, status: int) -> None:
    settings = ServerSettings(any_address=True)
    assert asked(settings, "/health", Host=host) == status


@pytest.mark.parametrize(
    ("host", "name"),
    [("[::1]:8", "::1"), ("A-b.c", "a-b.c"), ("a:123456", ""), ("a/b", ""), ("a:b", "")],
)
def test_the_name_in_a_host_header(host: str, name: str) -> None:
    assert host_name(host) == name


# --- Origin


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example",
        "http://localhost:1",
        "http://127.0.0.1",
        "http://127.0.0.1:{port}.evil.example",
        "file://127.0.0.1:{port}",
        "{port}",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_from_elsewhere_are_refused(client: httpx.Client, origin: str, method: str) -> None:
    headers = {"Origin": origin.format(port=port_of(client)), "Content-Type": "application/json"}
    headers["Access-Control-Request-Method"] = "POST"
    refused = client.request(method, "/v1/messages", headers=headers)
    assert refused.status_code == 403
    assert refused.json()["error"]["type"] == "permission_error"
    assert not [name for name in refused.headers if name.startswith("access-control")]


def test_its_own_page_may_ask(client: httpx.Client) -> None:
    own = {"Origin": f"http://127.0.0.1:{port_of(client)}"}
    answer = client.get("/openapi.json", headers=own)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    behind_tls = {"Origin": "https://localhost", "Host": "localhost"}
    assert client.get("/openapi.json", headers=behind_tls).status_code == 200


def test_a_friend_may_ask_and_read(keyed: httpx.Client) -> None:
    answer = keyed.get("/openapi.json", headers={"Origin": FRIEND})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert answer.headers["Vary"] == "Origin"
    other = keyed.get("/openapi.json", headers={"Origin": FRIEND.upper()})
    assert other.status_code == 403


def test_a_preflight_needs_no_key(keyed: httpx.Client) -> None:
    asks = {
        "Origin": FRIEND,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    with httpx.Client(base_url=keyed.base_url, trust_env=False) as stranger:
        answer = stranger.options("/v1/messages", headers=asks)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        wanted = asks["Access-Control-Request-Headers"]
        assert answer.headers["Access-Control-Allow-Headers"] == wanted
        assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
        without_key = stranger.get("/openapi.json", headers={"Origin": FRIEND})
        assert without_key.status_code == 401
        assert without_key.headers["Access-Control-Allow-Origin"] == FRIEND  # to read why


def test_a_preflight_repeats_only_names(keyed: httpx.Client) -> None:
    asks = {
        "Origin": FRIEND,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x; <script>",
    }
    answer = keyed.options("/v1/messages", headers=asks)
    assert "Access-Control-Allow-Headers" not in answer.headers


@pytest.mark.parametrize("origin", ["*", "localhost:3000", "http://a.example/", "HTTP://A", "null"])
def test_what_is_no_origin_is_refused_at_once(origin: str) -> None:
    with pytest.raises(OptionError, match="is no origin"):
        ServerSettings(allow_origins=(origin,))


# --- the key


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": KEY + "x"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Cookie": f"x-api-key={KEY}"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/models", "/metrics", "/openapi.json", "/x"])
def test_without_the_key_nobody_gets_in(
    keyed: httpx.Client, headers: dict[str, Any], path: str
) -> None:
    with httpx.Client(base_url=keyed.base_url, trust_env=False) as stranger:
        refused = stranger.get(f"{path}?api_key={KEY}", headers=headers)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    error = refused.json()["error"]
    assert error["type"] == "authentication_error"
    assert KEY not in refused.text
    assert ("request_id" in refused.json()) == path.startswith("/v1/messages")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
        {"Authorization": f"Bearer {KEY}", "x-api-key": "of another server"},
    ],
)
def test_the_key_opens_in_both_forms(keyed: httpx.Client, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=keyed.base_url, trust_env=False) as guest:
        assert guest.get("/metrics", headers=headers).status_code == 200


def test_the_page_opens_without_the_key(keyed: httpx.Client) -> None:
    with httpx.Client(base_url=keyed.base_url, trust_env=False) as stranger:
        for path in OPEN_PATHS:
            assert stranger.get(path).status_code == 200, path
        assert stranger.get("/page/../metrics").status_code == 401
        assert stranger.get("/page/").status_code == 401


@pytest.mark.parametrize("key", ["", "with space", "schlüssel", "line\n"])
def test_keys_that_no_header_carries_are_refused_at_once(key: str) -> None:
    with pytest.raises(OptionError, match="printable ASCII"):
        ServerSettings(api_key=key)


# --- sizes and times


def test_a_body_that_says_it_is_too_large(keyed: httpx.Client) -> None:
    with connect(keyed) as connection:
        connection.sendall(post("Content-Length: 99999999999"))
        answer = read_all(connection)  # nothing of the body was ever sent
    assert answer.startswith(b"HTTP/1.1 413 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "request_too_large"


def test_a_body_that_turns_out_too_large(keyed: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(BODY_BYTES // 1000 + 1):
            yield b" " * 1000

    answer = keyed.post("/v1/messages", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == f"the body is larger than {BODY_BYTES} bytes"


def test_the_largest_body_is_read(keyed: httpx.Client) -> None:
    answer = keyed.post("/v1/messages", content=b" " * BODY_BYTES, headers=JSON)
    assert answer.status_code == 400


def test_whoever_sends_too_much_still_reads_why(keyed: httpx.Client) -> None:
    """A server that closes at once resets the connection, and the answer with it."""
    size = 8_000_000
    with connect(keyed) as connection:
        connection.sendall(post(f"Content-Length: {size}"))
        for _ in range(size // 100_000):
            connection.sendall(b" " * 100_000)
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_given_up(keyed: httpx.Client) -> None:
    with connect(keyed) as connection:
        connection.sendall(post("Content-Length: 100") + b'{"mo')
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.5 seconds" in answer


def test_a_body_that_trickles_is_given_up(keyed: httpx.Client) -> None:
    with connect(keyed) as connection:
        connection.sendall(post("Content-Length: 10000"))
        trickle(connection, b" ")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("began", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_headers_that_do_not_come_are_given_up(keyed: httpx.Client, began: bytes) -> None:
    with connect(keyed) as connection:
        connection.sendall(began)
        assert read_all(connection) == b""


def test_headers_that_trickle_are_given_up(keyed: httpx.Client) -> None:
    with connect(keyed) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        trickle(connection, b"a")
        assert read_all(connection) == b""


def test_headers_that_trickle_on_a_used_connection_are_given_up(keyed: httpx.Client) -> None:
    with connect(keyed) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        trickle(connection, b"a")
        read_all(connection)


def test_an_idle_connection_stays_open_between_requests(keyed: httpx.Client) -> None:
    """Only headers that are due have little time; clients keep connections for the next turn."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(keyed), timeout=PATIENCE)
    sockets = []
    for _ in range(2):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        sockets.append(connection.sock)
        time.sleep(0.8)  # more than header_seconds
    connection.close()
    assert sockets[0] is sockets[1] is not None


def trickle(connection: socket.socket, letter: bytes) -> None:
    """A letter now and then, as long as the other side listens."""
    deadline = time.monotonic() + PATIENCE
    connection.settimeout(PATIENCE)
    try:
        while time.monotonic() < deadline and not hung_up(connection):
            connection.sendall(letter)
            time.sleep(0.05)
    except (BrokenPipeError, ConnectionResetError):
        pass


def hung_up(connection: socket.socket) -> bool:
    """Whether something, if only the end, can be read."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(PATIENCE)
    return True


@pytest.mark.parametrize(
    "headers", [{f"X-{number}": "1" for number in range(120)}, {"X-Long": "x" * 40_000}]
)
def test_headers_have_limits(client: httpx.Client, headers: dict[str, str]) -> None:
    refused = client.get("/health", headers=headers)
    assert refused.status_code == 431
    assert refused.json()["error"]["code"] == "headers_too_large"


def test_what_is_no_http_is_400(client: httpx.Client) -> None:
    with connect(client) as connection:
        connection.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


JSON = {"Content-Type": "application/json"}


def post(*headers: str) -> bytes:
    lines = [
        "POST /v1/messages HTTP/1.1",
        "Host: localhost",
        f"x-api-key: {KEY}",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


# --- what every answer has


@pytest.mark.parametrize("path", ["/", "/health", "/nothing", "/v1/messages"])
def test_every_answer_has_security_headers(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert all(name in answer.headers for name in SECURITY_HEADERS)
    assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status", "type_"),
    [
        ("GET", "/v1/nothing", 404, "not_found_error"),
        ("GET", "/v1/messages/nothing", 404, "not_found_error"),
        ("GET", "/health/", 404, "not_found_error"),
        ("DELETE", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/health", 405, "invalid_request_error"),
    ],
)
def test_what_nobody_serves(
    client: httpx.Client, method: str, path: str, status: int, type_: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == type_
    assert ("allow" in answer.headers) == (status == 405)
    assert (answer.json().get("type") == "error") == path.startswith("/v1/messages")


# --- around any application


def guarded(route: Route, settings: ServerSettings | None = None) -> Starlette:
    """One route behind the guard."""
    options = {"open_paths": OPEN_PATHS, "renders": RENDERS}
    middleware = Middleware(Guard, settings=settings or ServerSettings(), **options)
    return Starlette(routes=[route], middleware=[middleware])


def asked(settings: ServerSettings, path: str, **headers: str) -> int:
    """The status of a request to a server with these settings."""

    async def answer(request: Request) -> Response:
        return JSONResponse({})

    with serving(guarded(Route(path, answer), settings)) as address:
        return httpx.get(address.rstrip("/") + path, headers=headers, trust_env=False).status_code


def test_a_stream_passes_piece_by_piece() -> None:
    """The second piece is made only when the first was read."""
    read = threading.Event()

    async def pieces() -> Any:
        yield b"first"
        assert await asyncio.to_thread(read.wait, PATIENCE)
        yield b"second"

    async def answer(request: Request) -> Response:
        return StreamingResponse(pieces())

    with (
        serving(guarded(Route("/", answer))) as address,
        httpx.stream("GET", address, timeout=PATIENCE, trust_env=False) as stream,
    ):
        received = stream.iter_raw()
        assert next(received) == b"first"
        read.set()
        assert b"".join(received) == b"second"


def test_an_unexpected_failure_is_answered_and_logged_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer(request: Request) -> Response:
        raise ZeroDivisionError(SECRET)

    with (
        caplog.at_level(logging.DEBUG),
        serving(guarded(Route("/v1/x", answer))) as address,
    ):
        failed = httpx.get(address + "v1/x", trust_env=False)
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert "ZeroDivisionError" in caplog.text
    assert SECRET not in caplog.text + failed.text


def test_a_failure_within_an_answer_breaks_it_off() -> None:
    async def pieces() -> Any:
        yield b"first"
        raise ZeroDivisionError

    async def answer(request: Request) -> Response:
        return StreamingResponse(pieces())

    with (
        serving(guarded(Route("/", answer))) as address,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        httpx.get(address, trust_env=False)
