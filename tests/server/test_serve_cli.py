"""`mlx-qwen3 serve` as a process: its options, its ends, and what it says meanwhile."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from mlx_qwen3.cli import serve
from mlx_qwen3.cli.serve import read_models, read_service_settings, read_settings
from mlx_qwen3.service import ServiceSettings
from tests.cli.terminals import Terminal
from tests.server.running import PATIENCE, SERVE, Started, question, started

# A server whose models never finish loading.
LOADS_FOREVER = """\
import sys, time
import mlx_qwen3.service
mlx_qwen3.service.load = lambda source, **options: time.sleep(600)
from mlx_qwen3.cli import main
main()
"""
VALUES = {
    "host": "127.0.0.1",
    "unix_socket": None,
    "api_key": None,
    "api_key_file": None,
    "allow_origin": None,
    "allowed_host": None,
    "max_body": "1MB",
    "shutdown_seconds": 1.0,
    "log_level": "info",
    "log_prompts": False,
    "ready_json": False,
}


def serve_and_fail(*options: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A server that does not come to serve."""
    return subprocess.run(
        [*SERVE, *options], capture_output=True, text=True, check=False, timeout=PATIENCE, **more
    )


def logged(server: Started) -> str:
    """What stands on stderr in the end."""
    server.signal(signal.SIGTERM)
    assert server.process.stderr is not None
    text = server.process.stderr.read()
    assert server.end() == 0
    return text


# --- how it ends


@pytest.fixture
def streaming(endless: Path) -> Iterator[tuple[Started, httpx.Client]]:
    """A server that has a little time for its streams, and a client of it."""
    options = ("--model", f"demo={endless}", "--shutdown-seconds", "60")
    with started(*options) as server, server.client() as client:
        yield server, client


def endlessly(tokens: int) -> dict[str, Any]:
    return question("Go on.", stream=True, max_tokens=tokens, temperature=1.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_running_stream_may_finish(
    streaming: tuple[Started, httpx.Client], number: signal.Signals
) -> None:
    server, client = streaming
    with client.stream("POST", "/v1/messages", json=endlessly(300)) as stream:
        lines = stream.iter_lines()
        assert "message_start" in next(lines)
        server.signal(number)
        refused_from_now_on(server)
        rest = list(lines)
    usage = [json.loads(line[6:]) for line in rest if line.startswith('data: {"type":"message_d')]
    assert usage[0]["usage"]["output_tokens"] == 300
    assert 'data: {"type":"message_stop"}' in rest
    assert server.end() == 0


def refused_from_now_on(server: Started) -> None:
    """Wait until nobody is let in any more."""
    wait_until(lambda: not lets_in("127.0.0.1", server.said["port"]))


def lets_in(*address: Any) -> bool:
    """Whether a connection to this port, or socket, is accepted."""
    family = socket.AF_INET if len(address) == 2 else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        return connection.connect_ex(address if len(address) == 2 else address[0]) == 0


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stream_that_does_not_finish_is_cut_at_the_deadline(endless: Path) -> None:
    options = ("--model", f"demo={endless}", "--shutdown-seconds", "0.3")
    with started(*options) as server, server.client() as client:
        with client.stream("POST", "/v1/messages", json=endlessly(100_000)) as stream:
            lines = stream.iter_lines()
            assert "message_start" in next(lines)
            server.signal(signal.SIGTERM)
            rest = list(lines)
        assert "event: error" in rest  # and the stream ends as streams do
        assert "event: message_stop" not in rest
        assert server.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(
    streaming: tuple[Started, httpx.Client], number: signal.Signals
) -> None:
    server, client = streaming
    with client.stream("POST", "/v1/messages", json=endlessly(100_000)) as stream:
        assert "message_start" in next(stream.iter_lines())
        server.signal(number)
        refused_from_now_on(server)
        server.signal(number)
        assert server.end() == 128 + number


def test_it_can_be_stopped_while_a_model_loads(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = [sys.executable, "-c", LOADS_FOREVER, "serve", "--unix-socket", str(path)]
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as process,
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PATIENCE) as client,
    ):
        wait_until(lambda: lets_in(str(path)))
        said = client.get("http://localhost/health")
        assert (said.status_code, said.json()["status"]) == (503, "loading")
        assert said.json()["models"][0]["state"] != "loaded"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert not path.exists()


# --- what keeps it from starting


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_other_machines_need_a_key(host: str) -> None:
    done = serve_and_fail("--host", host)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"mlx-qwen3: error: Invalid value: --host {host} lets other machines in")


def test_with_a_key_other_machines_may_come() -> None:
    with started("--host", "0.0.0.0") as server, server.client() as client:
        port = server.said["port"]
        assert client.get(f"http://127.0.0.1:{port}/v1/models").status_code == 200
        named = client.get(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example"})
        assert named.status_code == 403


def test_a_port_that_is_taken() -> None:
    with started() as server:
        done = serve_and_fail("--port", str(server.said["port"]))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        f"mlx-qwen3: error: port {server.said['port']} on 127.0.0.1 is taken; choose another with "
        "--port (0: a free one)"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nothing-of-that-name"], 'No model or folder is called "nothing-of-that'),
        (["--unix-socket", "/tmp"], "exists and is no socket"),
        (["--unix-socket", "/tmp/" + "x" * 120], "is too long for a socket"),
        (["--unix-socket", "/no/such/folder/s"], "cannot be a socket: No such file"),
        (["--host", "no.such.host.invalid", "--api-key", "k"], "is unknown here"),
        (["--host", "192.0.2.1", "--api-key", "k"], "is no address of this machine"),
    ],
)
def test_a_failure_is_one_line_and_1(options: list[str], said: str) -> None:
    done = serve_and_fail("--port", "0", "--ready-json", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_model_that_cannot_be_loaded(endless: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in endless.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    done = serve_and_fail("--port", "0", "--ready-json", "--model", str(broken))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("mlx-qwen3: error: ")
    assert "Traceback" not in done.stderr


# --- options


@pytest.mark.parametrize(
    ("given", "sources"),
    [
        (None, {"demo": "demo"}),
        (["0.6b"], {"0.6b": "0.6b"}),
        (["Qwen/Qwen3-0.6B", "b=4b"], {"Qwen/Qwen3-0.6B": "Qwen/Qwen3-0.6B", "b": "4b"}),
        (["a=./x=y"], {"a": "./x=y"}),
        (["./x=y"], {"./x=y": "./x=y"}),
    ],
)
def test_names_of_models(given: list[str] | None, sources: dict[str, str]) -> None:
    assert read_models(given) == sources


def test_a_folder_is_served_under_its_last_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert read_models([f"{folder}/"]) == {"my-model": f"{folder}/"}


@pytest.mark.parametrize("given", [["a", "a"], ["a=b", "a=c"], ["demo", "demo=x"]])
def test_a_name_is_given_once(given: list[str]) -> None:
    with pytest.raises(typer.BadParameter, match="already; name it"):
        read_models(given)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"api_key": "a b"}, "printable ASCII"),
        ({"api_key": "a", "api_key_file": Path("f")}, "expected one of them"),
        ({"api_key_file": Path("/no/such/file")}, "cannot be read: No such file"),
        ({"allow_origin": ["*"]}, "is no origin"),
        ({"max_body": "much"}, "--max-body much: expected a size"),
        ({"log_level": "loud"}, "--log-level loud: expected one of debug, info"),
    ],
)
def test_options_that_make_no_sense(values: dict[str, Any], said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        read_settings(VALUES | values)


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("of-the-file\n")
    monkeypatch.setenv(serve.KEY_VARIABLE, "of-the-environment")
    for values, key in (
        ({}, "of-the-environment"),
        ({"api_key_file": file}, "of-the-file"),
        ({"api_key": "of-the-line"}, "of-the-line"),
    ):
        assert read_settings(VALUES | values).api_key == key


def test_a_key_is_made_for_apps_only() -> None:
    assert read_settings(VALUES).api_key is None
    keys = {read_settings(VALUES | {"ready_json": True}).api_key for _ in range(2)}
    assert len(keys) == 2
    assert None not in keys


def test_settings_hold_what_was_said() -> None:
    settings = read_settings(VALUES | {"host": "localhost", "allowed_host": ["models.example"]})
    assert settings.limits.body_bytes == 1_000_000
    assert settings.allowed_hosts is not None
    assert {"localhost", "127.0.0.1", "::1", "models.example"} <= set(settings.allowed_hosts)
    assert not settings.any_address
    assert read_settings(VALUES | {"host": "::", "api_key": "k"}).any_address
    assert read_settings(VALUES | {"unix_socket": "auto"}).allowed_hosts is None


ENGINE = {
    "max_running": None,
    "max_waiting": None,
    "kv_memory": None,
    "memory_budget": None,
    "idle_unload": None,
    "dtype": None,
    "no_prefix_cache": False,
    "prefix_cache_size": None,
}


def test_the_engines_options() -> None:
    assert read_service_settings(ENGINE) == ServiceSettings()
    given = {"max_running": 3, "max_waiting": 0, "kv_memory": "4GB", "memory_budget": "10GiB"}
    more = {"idle_unload": 600.0, "dtype": "float32", "no_prefix_cache": True}
    settings = read_service_settings(ENGINE | given | more)
    engine = settings.engine
    assert (engine.max_running, engine.max_waiting, engine.kv_bytes) == (3, 0, 4_000_000_000)
    assert (settings.model_memory, settings.idle_unload) == (10 << 30, 600.0)
    assert (settings.dtype, settings.prefix_cache) == ("float32", False)


@pytest.mark.parametrize("option", ["kv_memory", "memory_budget"])
@pytest.mark.parametrize("size", ["lots", "-1GB", ""])
def test_sizes_that_are_none(option: str, size: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a size such as"):
        read_service_settings(ENGINE | {option: size})


def test_no_memory_for_contexts_makes_no_sense() -> None:
    with pytest.raises(typer.BadParameter, match="expected at least 1"):
        read_service_settings(ENGINE | {"kv_memory": "0"})


# --- what it says


def test_a_person_sees_where_it_is_and_how_it_stops() -> None:
    with Terminal("serve", "--port", "0") as terminal:
        terminal.wait_for("Ctrl-C stops it")
        shown = "\n".join(terminal.lines)
        found = re.search(r"Chat +(http://127\.0\.0\.1:\d+/)", shown)
        assert found is not None
        assert re.search(r"Models +demo", shown)
        assert "only this machine gets in" in shown
        assert httpx.get(found[1], trust_env=False).status_code == 200
        terminal.type("\x03")
        assert terminal.wait_for_end() == 0
        assert "Traceback" not in terminal.screen


def test_a_log_has_one_line_for_each_request_and_no_prompt() -> None:
    with started() as server, server.client() as client:
        assert ask(client, "What is 27 + 58?").status_code == 200
        client.get("/health")
        client.get("/secret-path?what=secret-query")
        text = logged(server)
    lines = [line for line in text.splitlines() if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert len(lines) == 2  # health checks are no news
    assert re.fullmatch(
        r"\S+  POST /v1/messages  200  demo  \d+ read, \d+ written, first after \d+\.\d\d s  "
        r"\d+\.\d\d s  stop  ask-1",
        lines[0],
    )
    assert re.fullmatch(r"\S+  GET other  404  \d+\.\d\d s  req_\w+", lines[1])
    assert "27 + 58" not in text
    assert "secret" not in text
    assert server.said["key"] not in text


def test_a_log_of_json_lines() -> None:
    with started("--log-json", "--log-level", "debug") as server, server.client() as client:
        done = ask(client, "What is 27 + 58?").json()
        with pytest.raises(httpx.HTTPStatusError):
            client.get("/nothing").raise_for_status()
        text = logged(server)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    asked, refused = (line for line in lines if line.get("request"))
    usage = done["usage"]
    assert asked["level"] == "info"
    assert asked["request"] == "ask-1"
    assert (asked["endpoint"], asked["status"], asked["model"]) == ("/v1/messages", 200, "demo")
    assert asked["prompt_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert asked["generated_tokens"] == usage["output_tokens"]
    assert 0 < asked["first_seconds"] < asked["seconds"]
    assert (asked["finish_reason"], asked["cancelled"]) == ("stop", False)
    assert (refused["status"], refused["model"]) == (404, None)
    assert "27 + 58" not in json.dumps([asked["message"]] if "message" in asked else [])


def test_prompts_are_logged_where_that_is_wanted() -> None:
    with started("--log-json", "--log-prompts") as server, server.client() as client:
        ask(client, "What is 27 + 58?")
        text = logged(server)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    [texts] = [line for line in lines if "prompt" in line]
    assert "What is 27 + 58?" in texts["prompt"]
    assert texts["reply"]


def test_a_client_that_leaves_is_logged_as_such(endless: Path) -> None:
    with started("--log-json", "--model", f"demo={endless}") as server:
        with (
            server.client() as client,
            client.stream("POST", "/v1/messages", json=endlessly(100_000)) as stream,
        ):
            assert "message_start" in next(stream.iter_lines())
        with server.client() as client:
            wait_until(lambda: 'end="cancelled"' in client.get("/metrics").text)
        text = logged(server)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    [left] = [line for line in lines if line.get("endpoint") == "/v1/messages"]
    assert (left["cancelled"], left["finish_reason"]) == (True, "cancelled")
    assert left["generated_tokens"] is None


def ask(client: httpx.Client, text: str) -> httpx.Response:
    return client.post("/v1/messages", json=question(text), headers={"X-Request-Id": "ask-1"})


def test_requests_have_names() -> None:
    with started() as server, server.client() as client:
        kept = client.get("/health", headers={"X-Request-Id": "trace:1.2_3-4"})
        assert kept.headers["X-Request-Id"] == "trace:1.2_3-4"
        names = {client.get("/health").headers["X-Request-Id"] for _ in range(2)}
        assert len(names) == 2
        for bad in ("a b", "x" * 200, "é".encode()):
            made = client.get("/health", headers={"X-Request-Id": bad})
            assert re.fullmatch(r"req_\w+", made.headers["X-Request-Id"])
        refused = client.get("/v1/messages", headers={"X-Request-Id": "mine"})
        assert refused.headers["request-id"] == "mine"
        assert refused.json()["request_id"] == "mine"


def test_it_may_have_as_many_connections_as_it_likes() -> None:
    """Shells on a Mac let a program open 256 files, which 256 browser tabs use up."""
    script = "ulimit -n 256 && exec " + " ".join(SERVE) + ' "$@"'
    with started(command=("sh", "-c", script, "sh")) as server:
        if not Path("/proc").exists():
            pytest.skip("only Linux says which limits another process has")
        limits = Path(f"/proc/{server.said['pid']}/limits").read_text()
    soft = int(re.findall(r"Max open files +(\d+)", limits)[0])
    hard = int(re.findall(r"Max open files +\d+ +(\d+)", limits)[0])
    assert soft == min(4096, hard)


def test_help_is_light() -> None:
    script = (
        "import sys; from mlx_qwen3.cli import run; run(['serve', '--help']); print(sorted("
        "{'mlx', 'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    )
    shown = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert shown.splitlines()[-1] == "[]"
