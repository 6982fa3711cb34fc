"""Bodies of Anthropic's Messages API.

Accepted without any effect, for all of it is metadata or holds anyway: `metadata`, `service_tier`,
`cache_control` (what begins alike is not read twice, marked or not), `speed` "standard", empty
`citations`, signatures of thinking blocks (they are not checked, so that conversations from
elsewhere go on), `caller` and `allowed_callers` "direct", the `anthropic-version` header, betas,
and of `context_management` the edit that clears thinking (chat templates drop what is past).
Dropped: `redacted_thinking` blocks, which nobody here can read.
Everything else that is not named below is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mlx_qwen3.server.body import Body, Measure, counted, weighed

# --- blocks


class CacheControl(Body):
    """Where a client would have the prompt cached."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Cached(Body):
    cache_control: CacheControl | None = None


class _Direct(Body):
    type: Literal["direct"]


class TextBlock(_Cached):
    """Some text."""

    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(Body):
    """What a model thought before it spoke."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Body):
    """Thinking that only its maker can read."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(_Cached):
    """A call that a model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: _Direct | None = None


def _as_blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


# One form only, so that an error can name the one place it is in.
Texts = Annotated[
    list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])
]


class ToolResultBlock(_Cached):
    """What came of a call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts = Field(default_factory=list)
    is_error: bool | None = None


Block = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock,
    Field(discriminator="type"),
]


class Turn(Body):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block])
    ]


# --- tools


class ToolParam(_Cached):
    """A tool of the client's own. eager_input_streaming: calls stream as they are written."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class _Choice(Body):
    disable_parallel_tool_use: bool | None = None


class AutoChoice(_Choice):
    """The model decides."""

    type: Literal["auto"]


class AnyChoice(_Choice):
    """At least one call."""

    type: Literal["any"]


class ToolChoice(_Choice):
    """A call of this tool."""

    type: Literal["tool"]
    name: str


class NoChoice(Body):
    """No calls."""

    type: Literal["none"]


# --- thinking and form


class _Display(Body):
    # "summarized" is the whole of it: there is nobody to summarize.
    display: Literal["summarized", "omitted"] | None = None


class ThinkingOn(_Display):
    """Think, within a budget of tokens. Smaller budgets than Anthropic's 1,024 are fine."""

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1)]


class ThinkingOff(Body):
    """Answer at once."""

    type: Literal["disabled"]


class ThinkingAdaptive(_Display):
    """Think if the model can, for as long as it takes, or as `effort` says."""

    type: Literal["adaptive"]


class JsonFormat(Body):
    """The answer is JSON of this schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """effort: how long adaptive thinking may go on, as in `effort.BUDGETS`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class ClearThinking(Body):
    """Forget earlier thinking; the model's chat template decides that by itself."""

    type: Literal["clear_thinking_20251015"]
    keep: Any = None


class ContextManagement(Body):
    """What to forget of a conversation."""

    edits: list[ClearThinking] = Field(default_factory=list)


class Metadata(Body):
    """Who asks."""

    user_id: str | None = None


class CountBody(_Cached):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: Texts = Field(default_factory=list)
    tools: list[ToolParam] | None = None
    tool_choice: (
        Annotated[AutoChoice | AnyChoice | ToolChoice | NoChoice, Field(discriminator="type")]
        | None
    ) = None
    thinking: (
        Annotated[ThinkingOn | ThinkingOff | ThinkingAdaptive, Field(discriminator="type")] | None
    ) = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    speed: Literal["standard"] | None = None
    context_management: ContextManagement | None = None
    betas: list[str] | None = None

    @property
    def format(self) -> JsonFormat | None:
        """The form of the answer, wherever it is asked for."""
        config = self.output_config
        return self.output_format if config is None else config.format or self.output_format

    def measures(self) -> Iterator[Measure]:
        """Messages, tools and schemas."""
        yield from counted("messages", self.messages, "messages")
        yield from counted("tools", self.tools, "tools")
        for place, tool in enumerate(self.tools or ()):
            yield from weighed(f"tools[{place}].input_schema", tool.input_schema)
        if self.format is not None:
            yield from weighed("output_config.format.schema", self.format.schema_)


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool | None = None
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def measures(self) -> Iterator[Measure]:
        """Those of the prompt, and stop sequences."""
        yield from super().measures()
        yield from counted("stop_sequences", self.stop_sequences, "stops")
