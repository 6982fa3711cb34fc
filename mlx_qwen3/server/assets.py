"""The chat page: a fixed set of files, held in memory, and the headers they go out with.

The names are known before the first request, so no path from a request reaches the file system.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
# Files of the page and nothing else: no other origin, nothing inline, no HTML made from text
# (trusted types), no forms that leave, no frame around it.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # ask each time: an upgrade must not mix old files with new ones
}


@dataclass(frozen=True)
class Asset:
    """A file of the page. etag: its quoted entity tag, of the content alone."""

    content: bytes
    content_type: str
    etag: str

    @property
    def headers(self) -> dict[str, str]:
        """Everything an answer with this file carries beside its length."""
        return {**HEADERS, "Content-Type": self.content_type, "ETag": self.etag}

    def known_to(self, if_none_match: str | None) -> bool:
        """Whether a client that sends this If-None-Match has the file already."""
        tags = (if_none_match or "").split(",")
        return any(tag.strip().removeprefix("W/") in (self.etag, "*") for tag in tags)


@functools.cache
def page_assets() -> Mapping[str, Asset]:
    """Path below the server's root ("" is the page itself) -> file."""
    folder = resources.files("mlx_qwen3.server") / "page"
    files = {
        file.name: _asset(_suffix(file.name), file.read_bytes())
        for file in folder.iterdir()
        if _suffix(file.name) in CONTENT_TYPES  # not what an editor or a Mac leaves in folders
    }
    index = files.pop(INDEX)
    return MappingProxyType({"": index, **{f"page/{name}": file for name, file in files.items()}})


def page_routes() -> list[Route]:
    """Starlette routes for the page: GET and HEAD, answered 304 where the client has the file."""
    from starlette.routing import Route

    return [Route(f"/{path}", _endpoint(asset)) for path, asset in page_assets().items()]


def _endpoint(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    from starlette.responses import Response

    async def answer(request: Request) -> Response:
        if asset.known_to(request.headers.get("If-None-Match")):
            return Response(status_code=304, headers=asset.headers)
        return Response(asset.content, headers=asset.headers)

    return answer


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _asset(suffix: str, content: bytes) -> Asset:
    digest = hashlib.sha256(content).hexdigest()[:32]
    return Asset(content, CONTENT_TYPES[suffix], f'"{digest}"')
