"""Bodies of requests: JSON within limits, checked field by field; one clear error otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from mlx_qwen3.server.problems import Problem

_SHOWN = 40  # characters of a value that is at fault


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for.

    body_bytes: of the JSON text. messages, tools: how many. schema_bytes: of one schema, as
    compact JSON. stops: stop strings. choices: replies to one prompt (`n`). prompts: prompts of
    one request, where an API takes several.
    """

    body_bytes: int = 32 << 20
    messages: int = 4096
    tools: int = 256
    schema_bytes: int = 256 << 10
    stops: int = 16
    choices: int = 16
    prompts: int = 64


# (field, how much of it there is, the limit it falls under)
Measure = tuple[str, int, str]


class Body(BaseModel):
    """A JSON object of an API. A field it does not name is refused, as is a value of another type.

    INSTEAD: field that other servers know -> what to do here, for the error that refuses it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    INSTEAD: ClassVar[Mapping[str, str]] = {}

    def measures(self) -> Iterable[Measure]:
        """What of it is limited."""
        return ()


class Harmless(Body):
    """Accepted without effect: labels of the client's, and the only values they may have here."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


_B = TypeVar("_B", bound=Body)


async def read_body(request: Request, kind: type[_B], limits: Limits) -> _B:
    """The body of a request, checked. Raises Problem (400, 413, 415).

    Only JSON under its own name: a web page elsewhere cannot send that without being asked.
    """
    media = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Problem(415, f"Content-Type is {media[:_SHOWN]!r}; expected application/json")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Problem(415, "the body is compressed; send it as it is")
    data = await _read(request, limits.body_bytes)
    return await asyncio.to_thread(parse_body, data, kind, limits)


def parse_body(data: bytes, kind: type[_B], limits: Limits) -> _B:
    """JSON text as a body of this kind, within limits. Raises Problem 400, naming the field."""
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as exc:
        raise Problem(400, f"the body is not JSON: {exc}", code="invalid_json") from exc
    if not isinstance(value, dict):
        raise Problem(400, f"the body is {_named(value)}; expected an object", code="invalid_json")
    try:
        body = kind.model_validate(value)
    except ValidationError as exc:
        raise _refusal(exc, value, kind.INSTEAD) from exc
    check_limits(body.measures(), limits)
    return body


def check_limits(measures: Iterable[Measure], limits: Limits) -> None:
    """Raises Problem 400 for the first that is too much."""
    for path, size, name in measures:
        most = getattr(limits, name)
        if size > most:
            unit = " bytes" if name.endswith("_bytes") else ""
            raise Problem(
                400,
                f"{path}: {size}{unit} are too many; this server takes at most {most}",
                param=path,
                code="limit_exceeded",
            )


def counted(path: str, value: Sequence[Any] | None, name: str) -> Iterator[Measure]:
    """The measure of a list, which may be missing."""
    if value is not None:
        yield path, len(value), name


def weighed(path: str, schema: Any) -> Iterator[Measure]:
    """The measure of a schema, which may be missing. Raises Problem for one that is not JSON."""
    if schema is not None:
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (ValueError, RecursionError) as exc:  # 1e999 is infinite
            raise Problem(400, f"{path} cannot be read: {exc}", param=path) from exc
        yield path, len(text.encode()), "schema_bytes"


async def _read(request: Request, most: int) -> bytes:
    """The body's bytes, no more of them in memory than allowed."""
    too_large = Problem(413, f"the body is larger than {most} bytes", code="body_too_large")
    length = request.headers.get("Content-Length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_large
        parts.append(part)
    return b"".join(parts)


# --- what is wrong with a value, in words

_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
_LEAD = "Input should be "
_OBJECT = "an object"
_WANTED = {  # where pydantic's words are about Python
    "string_type": "a text",
    "list_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), _OBJECT),
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}
# The value is one word of ours, or should be; pydantic's name for what it may be.
_CHOICES = {"literal_error": "expected", "union_tag_invalid": "expected_tags"}


def _refusal(error: ValidationError, value: Any, instead: Mapping[str, str]) -> Problem:
    """The first field at fault, as precisely as any alternative of its type says it."""
    errors = error.errors(include_url=False)
    related = [one for one in errors if _item(one) == _item(errors[0])]
    worst = max(related, key=lambda one: len(one["loc"]))
    path = _path(worst, value)
    same = [one for one in related if _path(one, value) == path]
    code = _CODES.get(worst["type"], "invalid_value")
    return Problem(400, _words(path, same, instead), param=path, code=code)


def _item(error: ErrorDetails) -> tuple[Any, ...]:
    """The field it is in, and where that is a list, the item."""
    return tuple(
        step for place, step in enumerate(error["loc"][:2]) if place == 0 or type(step) is int
    )


def _words(path: str, errors: Sequence[ErrorDetails], instead: Mapping[str, str]) -> str:
    kind, found = errors[0]["type"], errors[0]["input"]
    if kind in ("missing", "union_tag_not_found"):
        return f"{path} is missing"
    if kind == "extra_forbidden":
        hint = f"; {instead[path]}" if path in instead else ""
        return f"{path} is not supported{hint}"
    if any(one["type"] in _CHOICES for one in errors):
        found = _shown(errors[0].get("ctx", {}).get("tag", found))
    else:
        found = _named(found)
    return f"{path} is {found}; expected {' or '.join(dict.fromkeys(map(_wanted, errors)))}"


def _wanted(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _CHOICES:
        return str(context[_CHOICES[kind]])
    return _WANTED.get(kind) or error["msg"].removeprefix(_LEAD)


def _path(error: ErrorDetails, value: Any) -> str:
    """Where it is, as in messages[0].content. pydantic also names alternatives of a type."""
    path, steps = "", error["loc"]
    for place, step in enumerate(steps):
        last = place == len(steps) - 1
        if isinstance(value, list) and isinstance(step, int):
            path, value = f"{path}[{step}]", value[step]
        elif isinstance(value, dict) and (step in value or (last and error["type"] == "missing")):
            name = _shown(step)[1:-1]
            path, value = f"{path}.{name}" if path else name, value.get(step)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path += "." + error["ctx"]["discriminator"].strip("'")
    return path


_NAMES: tuple[tuple[type, str], ...] = (
    (str, "a text"),
    (list, "a list"),
    (dict, _OBJECT),
)


def _named(value: Any) -> str:
    """A value as far as it may be repeated: texts may be long, or nobody's business."""
    for kind, name in _NAMES:
        if isinstance(value, kind):
            return name
    return _shown(value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
