"""A Hugging Face hub on 127.0.0.1: as much of its API as huggingface_hub asks for.

Faults are switched on by attribute: `cut` breaks the connection in the middle of a file once,
`broken` files answer 404, `stall` stops sending in the middle until the server is closed,
`damaged` files arrive with other bytes than announced.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKENS = {"hf_write": "write", "hf_read": "read"}
LARGE = 100_000  # bytes from which the hub wants LFS


class HubServer:
    """Serves repositories, and takes uploads. requests: (method, path, headers in lower case).

    on_get: called with a file's name before it is sent.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo = repo
        self.files = files
        self.repos: dict[str, dict[str, bytes]] = {repo: files}
        self.private: set[str] = set()
        self.closed_namespaces: set[str] = set()
        self.commits: list[str] = []  # their summaries
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.refusal: tuple[int, str] | None = None  # status and X-Error-Code for everything
        self.on_get: Callable[[str], None] = lambda name: None
        self.cut: set[str] = set()
        self.broken: set[str] = set()
        self.damaged: set[str] = set()
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

    def downloads(self, name: str) -> int:
        """How often a file was fetched from its beginning, not some bytes of it."""
        return sum("range" not in headers for headers in self.fetched(name))


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            path = self.note()
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if path == "/api/validate-yaml":
                return self.send_object({"errors": [], "warnings": []})
            if hub.refusal:
                return self.refuse(*hub.refusal)
            if self.role() != "write":
                return self.refuse(403 if self.role() else 401, "")
            if path == "/api/repos/create":
                return self.create(json.loads(data))
            repo = next((repo for repo in hub.repos if f"/{repo}" in path), None)
            if repo is None:
                return self.refuse(404, "RepoNotFound")
            if path.endswith("/info/lfs/objects/batch"):
                return self.send_object(
                    {"objects": [self.slot(o) for o in json.loads(data)["objects"]]}
                )
            if "/preupload/" in path:
                return self.send_object({"files": [mode(f) for f in json.loads(data)["files"]]})
            return self.commit(repo, [json.loads(line) for line in data.splitlines()])

        def do_PUT(self) -> None:
            path = self.note()
            data = self.rfile.read(int(self.headers["Content-Length"]))
            digest = hashlib.sha256(data).hexdigest()
            if not path.endswith(digest):
                return self.refuse(400, "")
            hub.objects[digest] = data
            self.send_object({})

        def note(self) -> str:
            path = self.path.split("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.requests.append((self.command, path, headers))
            return path

        def role(self) -> str | None:
            return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

        def create(self, asked: dict[str, Any]) -> None:
            repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if repo.split("/")[0] in hub.closed_namespaces:
                return self.refuse(403, "")
            if repo in hub.repos:
                return self.send_object({"url": f"{hub.url}/{repo}"}, 409)
            hub.repos[repo] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(repo)
            self.send_object({"url": f"{hub.url}/{repo}"})

        def slot(self, wanted: dict[str, Any]) -> dict[str, Any]:
            """Where an LFS object goes; nowhere when it is there."""
            if wanted["oid"] in hub.objects:
                return wanted
            return {**wanted, "actions": {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}}

        def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
            files = hub.repos[repo]
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    hub.commits.append(value["summary"])
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                else:
                    del files[value["path"]]
            self.send_object(
                {"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
            )

        def answer(self, body: bool) -> None:
            path = self.note()
            if hub.refusal:
                return self.refuse(*hub.refusal)
            if path == "/api/whoami-v2":
                return self.whoami()
            repo = next(
                (r for r in hub.repos if path.startswith((f"/api/models/{r}", f"/{r}/"))), None
            )
            if repo is None:
                return self.refuse(404, "RepoNotFound")
            api = f"/api/models/{repo}"
            if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}", api):
                info = {"id": repo, "sha": COMMIT, "siblings": [], "private": repo in hub.private}
                return self.send_object(info)
            if path.startswith(f"{api}/revision/"):
                return self.refuse(404, "RevisionNotFound")
            if path.startswith(f"{api}/tree/"):
                return self.send_object([entry(*item) for item in hub.repos[repo].items()])
            return self.send_file(hub.repos[repo], path.split(f"/resolve/{COMMIT}/")[-1], body)

        def whoami(self) -> None:
            role = self.role()
            if role is None:
                return self.refuse(401, "")
            token = {"accessToken": {"displayName": "test", "role": role}}
            self.send_object({"name": "someone", "orgs": [], "auth": token})

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_object(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send_file(self, files: dict[str, bytes], name: str, body: bool) -> None:
            if name not in files or (body and name in hub.broken):
                return self.refuse(404, "EntryNotFound")
            if body:
                hub.on_get(name)
            data = files[name]
            ranged = self.headers.get("Range")
            start, _, last = (ranged or "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(start) : int(last or len(data)) + 1]
            self.send_response(206 if ranged else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            if ranged:
                end = int(start) + len(part) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            self.end_headers()
            if body:
                self.send_body(
                    name, bytes(len(part)) if name in hub.damaged and not ranged else part
                )

        def send_body(self, name: str, data: bytes) -> None:
            half = len(data) // 2
            if "Range" in self.headers:
                self.wfile.write(data)
                return
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

    def mode(file: dict[str, Any]) -> dict[str, Any]:
        large = file["size"] > LARGE or file["path"].endswith(".safetensors")
        how = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": how, "shouldIgnore": False, "oid": None}

    def entry(name: str, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        return found

    return Handler
