"""Names of things that a client may refer to later."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """A new name, as in chatcmpl-2f6c...: 96 random bits."""
    return prefix + secrets.token_hex(12)
