"""Which web pages may talk to this server: its own, and those of the origins it was told."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers
from starlette.types import Scope

from mlx_qwen3.server.problems import Problem

_METHODS = "GET, HEAD, POST, OPTIONS"
_EXPOSED = "X-Request-Id, Retry-After"
_AGE = "600"  # seconds that a browser may remember a preflight's answer
_NAMES = re.compile(r"[A-Za-z0-9_-]+(\s*,\s*[A-Za-z0-9_-]+)*")
_SHOWN = 80  # characters of a header in an error
_WEB = ("http", "https")


class Cors:
    """Cross-origin requests: refused, but for these origins.

    Browsers send Origin with everything that may change something or whose answer a page could
    read; other clients send none, and are not concerned.
    """

    def __init__(self, allow_origins: Collection[str]) -> None:
        self._allowed = frozenset(allow_origins)

    def check(self, scope: Scope, headers: Headers) -> Problem | None:
        """A problem for an origin that is neither ours nor allowed."""
        origin = headers.get("origin")
        if origin is None or origin in self._allowed or _is_own(origin, headers):
            return None
        return Problem(
            403,
            f"Origin {origin[:_SHOWN]!r} may not use this server; "
            "serve --allow-origin ORIGIN allows one",
            code="origin_not_allowed",
        )

    def is_preflight(self, scope: Scope, headers: Headers) -> bool:
        """Whether a browser asks if it may ask."""
        asked = "access-control-request-method" in headers
        return scope["method"] == "OPTIONS" and asked and headers.get("origin") in self._allowed

    def headers(self, headers: Headers) -> Mapping[str, str]:
        """What lets an allowed origin's page read the answer."""
        if not self._allowed:
            return {}
        origin = headers.get("origin")
        if origin not in self._allowed or origin is None:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED,
        }

    def preflight(self, headers: Headers) -> Mapping[str, str]:
        """What an allowed origin may send: any header it asks for, and no cookies."""
        wanted = headers.get("access-control-request-headers", "")
        allowed = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Max-Age": _AGE,
        }
        if _NAMES.fullmatch(wanted):
            allowed["Access-Control-Allow-Headers"] = wanted
        if headers.get("access-control-request-private-network") == "true":
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return allowed


def _is_own(origin: str, headers: Headers) -> bool:
    """Whether a page of this server sent it. The Host header was checked before.

    The scheme may differ: behind a proxy that speaks TLS, browsers see https and we do not.
    """
    scheme, _, authority = origin.partition("://")
    return scheme in _WEB and authority.lower() == headers.get("host", "").lower() != ""
