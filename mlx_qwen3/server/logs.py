"""What the server says of itself: one line for each request, without a word of its text.

Human lines, or JSON, one object a line. Exceptions show where they came from and not what they
say, which may be text of a prompt.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from mlx_qwen3.server.record import ReplyRecord, RequestRecord

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
REQUESTS = "mlx_qwen3.server.requests"
_FIELDS = "fields"  # attribute of log records: what the JSON line has beside the message
_QUIET = ("/health", "/metrics")  # asked every few seconds by machines
_log = logging.getLogger(REQUESTS)


def log_request(record: RequestRecord, endpoint: str) -> None:
    """One line about a request that is over. Health checks and scrapes: at level debug."""
    level = logging.DEBUG if endpoint in _QUIET and record.status == 200 else logging.INFO
    if _log.isEnabledFor(level):
        fields = request_fields(record, endpoint)
        _log.log(level, "%s", request_line(fields), extra={_FIELDS: fields})


def request_fields(record: RequestRecord, endpoint: str) -> dict[str, Any]:
    """The record as plain values. Tokens are None where no reply was whole."""
    ended = [reply.completion for reply in record.replies if reply.completion is not None]
    return {
        "request": record.request_id,
        "method": record.method,
        "endpoint": endpoint,
        "status": record.status,
        "model": next((reply.model for reply in record.replies), None),
        "prompt_tokens": _sum(reply.prompt_tokens for reply in record.replies),
        "cached_tokens": _sum(one.usage.cached_tokens for one in ended),
        "generated_tokens": _sum(one.usage.completion_tokens for one in ended),
        "first_seconds": None if record.first is None else round(record.first, 4),
        "seconds": round(record.seconds, 4),
        "finish_reason": ",".join(record.ends) or None,
        "cancelled": "cancelled" in record.ends,
    }


def request_line(fields: dict[str, Any]) -> str:
    """The same for a person."""
    return "  ".join(_parts(fields))


def log_texts(reply: ReplyRecord, prompt: str) -> None:
    """A prompt as the model read it and what it replied: only where that was asked for."""
    done = reply.completion
    fields = {
        "model": reply.model,
        "prompt": prompt,
        "thinking": None if done is None else done.thinking,
        "reply": None if done is None else done.text,
    }
    _log.info("%s", json.dumps(fields, ensure_ascii=False), extra={_FIELDS: fields})


def configure(stream: TextIO, level: str = "info", *, as_json: bool = False) -> logging.Handler:
    """Send everything that this package and uvicorn say to a stream. level: one of LEVELS."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLines() if as_json else _Lines())
    handler.addFilter(_is_news)
    for name, least in (("mlx_qwen3", LEVELS[level]), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(least)
        logger.handlers = [handler]
        logger.propagate = False
    return handler


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record says something: replies that are cut at the deadline are cancelled."""
    return not (record.exc_info and record.exc_info[0] is asyncio.CancelledError)


class _Lines(logging.Formatter):
    """12:30:01 message; the level where it is no ordinary one."""

    def format(self, record: logging.LogRecord) -> str:
        word = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{clock}  {word}{record.getMessage()}{_origin(record)}"


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {
            "time": f"{clock}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, _FIELDS, None)
        said |= {"message": record.getMessage() + _origin(record)} if fields is None else fields
        return json.dumps(said, ensure_ascii=False)


def _origin(record: logging.LogRecord) -> str:
    """Where an exception came from, without its message."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    kind, _, trace = record.exc_info
    return f" ({kind.__name__})\n" + "".join(traceback.format_tb(trace)).rstrip()


def _parts(fields: dict[str, Any]) -> Iterator[str]:
    yield f"{fields['method']} {fields['endpoint']}"
    yield str(fields["status"])
    if fields["model"] is not None:
        yield fields["model"]
        yield ", ".join(_figures(fields))
    yield f"{fields['seconds']:.2f} s"
    if fields["finish_reason"] is not None:
        yield fields["finish_reason"]
    yield fields["request"]


def _figures(fields: dict[str, Any]) -> Iterator[str]:
    cached = f" ({fields['cached_tokens']} cached)" if fields["cached_tokens"] else ""
    yield f"{fields['prompt_tokens']} read{cached}"
    if fields["generated_tokens"] is not None:
        yield f"{fields['generated_tokens']} written"
    if fields["first_seconds"] is not None:
        yield f"first after {fields['first_seconds']:.2f} s"


def _sum(values: Iterable[int]) -> int | None:
    """The sum; None of nothing."""
    found = list(values)
    return sum(found) if found else None
