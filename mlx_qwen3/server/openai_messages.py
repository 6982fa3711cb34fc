"""OpenAI's messages: what they may hold, and what a chat template gets of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from mlx_qwen3.server.body import Body

_BETWEEN_PARTS = "\n"


class Text(Body):
    """A part of a message's content: the only kind there is, as these models only read text."""

    type: Literal["text"]
    text: str

    @property
    def words(self) -> str:
        """What it says."""
        return self.text


class Refusal(Body):
    """A part of what another model said."""

    type: Literal["refusal"]
    refusal: str

    @property
    def words(self) -> str:
        """What it says."""
        return self.refusal


Content = str | list[Text]
Said = str | list[Annotated[Text | Refusal, Field(discriminator="type")]]


class SystemMessage(Body):
    """name: of the speaker; models are not told it, in no message."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Body):
    """arguments: JSON text, as the model wrote it."""

    name: str
    arguments: str


class Call(Body):
    """A tool call of an earlier reply. index: left in by clients that put streams together."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None


class AssistantMessage(Body):
    """An earlier reply. reasoning: another name of reasoning_content.

    annotations, audio, function_call: empty, as clients pass back what they got.
    """

    role: Literal["assistant"]
    content: Said | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    name: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Body):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def template_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages of the classes above as `LLM.request` takes them."""
    return [_template_message(message) for message in messages]


def _template_message(message: Any) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": _words(message.content)}
    if isinstance(message, AssistantMessage):
        plain |= _assistant(message)
    elif isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    parts: dict[str, Any] = {"content": _words(message.content) or message.refusal or ""}
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        parts["reasoning_content"] = reasoning
    if message.tool_calls:
        parts["tool_calls"] = [_call(call) for call in message.tool_calls]
    return parts


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _words(content: str | Sequence[Text | Refusal] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return _BETWEEN_PARTS.join(part.words for part in content)
