"""What a server answered, as a text of bounded size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mlx_qwen3.agent.tools import Outcome


def outcome_of(result: Any) -> Outcome:
    """The text of an `mcp` CallToolResult: its blocks, or its structured content without any."""
    text = "\n".join(map(_block, result.content))
    if not result.content and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False)
    return Outcome(text, is_error=bool(result.is_error))


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of a text, with a note where there were more."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut here: {limit:,} of {len(text):,} characters are shown]"


def _block(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource":
        text = getattr(block.resource, "text", None)
        return f"[binary resource {block.resource.uri}]" if text is None else str(text)
    if block.type == "resource_link":
        return f"[resource {block.name}: {block.uri}]"
    return f"[{block.type}, {block.mime_type}: this model reads text only]"


def first_line(parts: Sequence[str]) -> str:
    """The first line with anything on it, "" without one."""
    lines = (line.strip() for part in parts for line in part.splitlines())
    return next((line for line in lines if line), "")
