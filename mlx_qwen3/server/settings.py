"""How a server guards itself, and when its patience ends."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mlx_qwen3.errors import OptionError
from mlx_qwen3.server.body import Limits

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+")


@dataclass(frozen=True)
class ServerSettings:
    """What create_app needs to know beside the service.

    api_key: asked of every request but those for the page's files and /health; None: no key.
    allowed_hosts: names and addresses a Host header may give, without port; None: any, for a Unix
    socket, which no browser reaches. any_address: also any IP address, for a server on a network:
    a page that rebinds its name to our address still sends its name.
    allow_origins: pages of other origins that may use the APIs.
    limits: of bodies. header_bytes, header_count: of a request's headers. header_seconds,
    body_seconds: until they must have arrived. keep_alive_seconds: for which an idle connection
    stays open. shutdown_seconds: that running replies get to finish.
    log_prompts: whether logs hold prompts and replies.
    Raises OptionError for a key that no header can carry and for what is no origin.
    """

    api_key: str | None = None
    allowed_hosts: tuple[str, ...] | None = LOCAL_NAMES
    any_address: bool = False
    allow_origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    header_bytes: int = 32 * 1024
    header_count: int = 100
    header_seconds: float = 20.0
    body_seconds: float = 60.0
    keep_alive_seconds: int = 75
    shutdown_seconds: float = 30.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if self.api_key is not None and not _KEY.fullmatch(self.api_key):
            raise OptionError("the API key must be printable ASCII without spaces, and not empty")
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise OptionError(
                    f"{origin!r} is no origin; expected one as browsers send it, in lower case "
                    "and without a path, such as http://localhost:3000"
                )
