"""A Hugging Face hub on 127.0.0.1: as much of its API as snapshot_download asks for.

Faults are switched on by attribute: `cut` breaks the connection in the middle of a file once,
`broken` files answer 404, `stall` stops sending in the middle until the server is closed.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves one repository. requests: (method, path, headers in lower case)."""

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo = repo
        self.files = files
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.refusal: tuple[int, str] | None = None  # status and X-Error-Code for everything
        self.cut: set[str] = set()
        self.broken: set[str] = set()
        self.stall: set[str] = set()
        self.stalled = threading.Event()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fetched(self, name: str) -> list[dict[str, str]]:
        """The headers of each GET of a file."""
        return [
            headers
            for method, path, headers in self.requests
            if method == "GET" and path.endswith(f"/resolve/{COMMIT}/{name}")
        ]


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.requests.append((self.command, path, headers))
            api = f"/api/models/{hub.repo}"
            if hub.refusal or not path.startswith((api, f"/{hub.repo}/")):
                return self.refuse(*(hub.refusal or (404, "RepoNotFound")))
            if path in (f"{api}/revision/main", api):
                return self.send_object({"id": hub.repo, "sha": COMMIT, "siblings": []})
            if path.startswith(f"{api}/revision/"):
                return self.refuse(404, "RevisionNotFound")
            if path.startswith(f"{api}/tree/"):
                return self.send_object([entry(name) for name in hub.files])
            return self.send_file(path.rsplit("/", 1)[1], body)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_object(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send_file(self, name: str, body: bool) -> None:
            if name not in hub.files or (body and name in hub.broken):
                return self.refuse(404, "EntryNotFound")
            data = hub.files[name]
            start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].split("-")[0])
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body:
                self.send_body(name, data[start:])

        def send_body(self, name: str, data: bytes) -> None:
            half = len(data) // 2
            if name in hub.cut:
                hub.cut.discard(name)
                self.wfile.write(data[:half])
                self.close_connection = True
                return
            if name in hub.stall:
                self.wfile.write(data[:half])
                self.wfile.flush()
                hub.stalled.set()
                hub.closing.wait()
                self.close_connection = True
                return
            self.wfile.write(data)

    def entry(name: str) -> dict[str, Any]:
        data = hub.files[name]
        found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        return found

    return Handler
