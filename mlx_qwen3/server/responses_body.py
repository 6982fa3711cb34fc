"""Bodies of OpenAI's Responses API.

Accepted without any effect: `metadata`, `user`, `safety_identifier`, `prompt_cache_key`,
`prompt_cache_retention`, `service_tier`, `store` (nothing is kept either way: replies say so with
`"store": false`), ids, `status` and `phase` of input items, `encrypted_content` (nobody here can
read it; reasoning of this server comes and goes as plain text), `include`d encrypted reasoning for
that reason, `reasoning.summary` "auto" (there are no summaries: reasoning comes in full), and
`name`, `description` and `strict` of a text format, which is always held to its schema.
Everything else that is not named below is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from mlx_qwen3.server.body import Body, Measure, counted, weighed
from mlx_qwen3.server.effort import Effort

Status = Literal["in_progress", "completed", "incomplete"]


def _unused(hint: str) -> BeforeValidator:
    """Refuses any value but null of a field that has no use here, and says why."""

    def check(value: Any) -> None:
        if value is not None:
            raise PydanticCustomError("unsupported", "null: {hint}", {"hint": hint})

    return BeforeValidator(check)


# --- input


class InputText(Body):
    """Text for the model."""

    type: Literal["input_text"]
    text: str


class OutputText(Body):
    """Text of an earlier answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


_Part = Annotated[InputText | OutputText, Field(discriminator="type")]
# One form only, so that an error can name the one place it is in.
Content = Annotated[
    list[_Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[_Part])
]


class _Item(Body):
    id: str | None = None
    status: Status | None = None


class MessageItem(_Item):
    """Something that was said."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCall(_Item):
    """A call that a model made. arguments: JSON."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(_Item):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class SummaryText(Body):
    """What a reasoning comes to."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(Body):
    """A reasoning itself."""

    type: Literal["reasoning_text"]
    text: str


class Reasoning(_Item):
    """What a model thought before it spoke."""

    type: Literal["reasoning"]
    summary: list[SummaryText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


def _as_items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return [_as_item(item) for item in value] if isinstance(value, list) else value


def _as_item(item: Any) -> Any:
    """Messages may leave their type out."""
    bare = isinstance(item, dict) and "type" not in item and "role" in item
    return {"type": "message", **item} if bare else item


Item = Annotated[
    MessageItem | FunctionCall | FunctionCallOutput | Reasoning, Field(discriminator="type")
]


# --- tools


class FunctionTool(Body):
    """A function of the client's. Not strict unless it says so."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class NamedFunction(Body):
    """One function, by name."""

    type: Literal["function"]
    name: str


class AllowedTools(Body):
    """Only these of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1)]


# --- form and thinking


class PlainText(Body):
    """Any text."""

    type: Literal["text"]


class JsonObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextConfig(Body):
    """The form of the answer."""

    format: Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")] | None = (
        None
    )
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(Body):
    """Whether to think, and how long. effort: `effort.BUDGETS`."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None


class ResponseStreamOptions(Body):
    """How to stream."""

    include_obfuscation: Literal[False] | None = None


_STATELESS = "this server keeps no conversations; send the whole input"


class ResponsesBody(Body):
    """POST /v1/responses. seed, top_k, min_p, thinking_budget: of this server's own.

    model: None for the server's default.
    """

    model: str | None = None
    input: Annotated[
        list[Item],
        BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
        Field(min_length=1),
    ]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    previous_response_id: Annotated[None, _unused(_STATELESS)] = None
    conversation: Annotated[None, _unused(_STATELESS)] = None
    prompt: Annotated[None, _unused("no prompts are stored here; send the text itself")] = None
    max_tool_calls: Annotated[None, _unused("it is about built-in tools; there are none")] = None

    @property
    def schema_(self) -> Mapping[str, Any] | None:
        """The schema of the answer, None for any."""
        wanted = None if self.text is None else self.text.format
        if isinstance(wanted, JsonObject):
            return {"type": "object"}
        return wanted.schema_ if isinstance(wanted, JsonSchema) else None

    def measures(self) -> Iterator[Measure]:
        """Items, tools and schemas."""
        yield from counted("input", self.input, "messages")
        yield from counted("tools", self.tools, "tools")
        for place, tool in enumerate(self.tools or ()):
            yield from weighed(f"tools[{place}].parameters", tool.parameters)
        yield from weighed("text.format.schema", self.schema_)
