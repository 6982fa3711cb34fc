"""An MCP server over stdio that misbehaves as it is told. Standard library only: it starts fast.

    python rough_server.py [silent|deaf|stubborn|noisy] ...

silent: never answers. deaf: answers nothing after its list of tools. stubborn: ends neither with
its stdin nor by SIGTERM. noisy: writes garbage to stdout before every answer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

HABITS = set(sys.argv[1:])
TOOLS = ("echo", "crash", "hang", "big", "fail", "refuse", "pid", "picture")


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a tool answers."""
    if name == "crash":
        print("out of cheese", file=sys.stderr, flush=True)
        os._exit(3)
    if name == "hang":
        time.sleep(600)
    if name == "picture":
        return {"content": [{"type": "image", "data": "AAAA", "mimeType": "image/png"}]}
    texts = {
        "big": "0123456789" * 500_000,
        "fail": "the disk is full",
        "pid": str(os.getpid()),
        "echo": json.dumps(arguments, ensure_ascii=False),
    }
    return {"content": [{"type": "text", "text": texts[name]}], "isError": name == "fail"}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a request, None where there is no such method."""
    if method == "initialize":
        info = {"name": "rough", "version": "1"}
        version = params["protocolVersion"]
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]}
    if method == "tools/call" and params["name"] != "refuse":
        return call(params["name"], params.get("arguments") or {})
    return None


def reply(request: dict[str, Any]) -> None:
    result = answer(request["method"], request.get("params") or {})
    if result is None:
        message: dict[str, Any] = {"error": {"code": -32601, "message": "no such method"}}
    else:
        message = {"result": result}
    if "noisy" in HABITS:
        print("\x1b[31mDEBUG\x1b[0m \udcff {not json", "\n", flush=True)
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **message}), flush=True)


def main() -> None:
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    if "stubborn" in HABITS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answering = "silent" not in HABITS
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request and answering:
            reply(request)
            answering = not ("deaf" in HABITS and request["method"] == "tools/list")
    while "stubborn" in HABITS:
        time.sleep(60)


main()
