"""What a body of Anthropic's Messages API asks of a model: messages, tools, options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from mlx_qwen3.errors import ContextOverflowError
from mlx_qwen3.generation.request import Request
from mlx_qwen3.llm import LLM
from mlx_qwen3.server.anthropic_body import (
    CountBody,
    MessagesBody,
    NoChoice,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingAdaptive,
    ThinkingBlock,
    ThinkingOn,
    ToolChoice,
    ToolParam,
    ToolResultBlock,
    ToolUseBlock,
)
from mlx_qwen3.server.body import Body
from mlx_qwen3.server.effort import BUDGETS
from mlx_qwen3.server.problems import Problem
from mlx_qwen3.server.replies import Ask
from mlx_qwen3.text.template import Mode

Message = dict[str, Any]
# (where it is, a block)
_Placed = Sequence[tuple[str, Any]]

_BLOCKS: dict[str, tuple[type[Body], ...]] = {
    "system": (TextBlock,),
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
}


def messages(body: CountBody) -> list[Message]:
    """The conversation in OpenAI's form, as chat templates read it. Raises Problem."""
    if body.messages[-1].role == "assistant":
        place = len(body.messages) - 1
        raise Problem(
            400,
            "the last message is the assistant's; answers cannot be prefilled, end with the user's",
            param=f"messages[{place}]",
        )
    said = [Message(role="system", content=_text(body.system))] if body.system else []
    names: dict[str, str] = {}  # of the calls so far, by id
    for role, turns in groupby(enumerate(body.messages), lambda entry: entry[1].role):
        blocks = [
            (f"messages[{place}].content[{number}]", block)
            for place, turn in turns
            for number, block in enumerate(turn.content)
        ]
        _check_blocks(role, blocks)
        said += [_said(blocks, names)] if role == "assistant" else _heard(role, blocks, names)
    return said


def _check_blocks(role: str, blocks: _Placed) -> None:
    for where, block in blocks:
        if not isinstance(block, _BLOCKS[role]):
            raise Problem(
                400, f"{where} is a {block.type} block, which is not for role {role}", param=where
            )


def _text(blocks: Sequence[Any]) -> str:
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))


def _said(blocks: _Placed, names: dict[str, str]) -> Message:
    """A turn of the assistant's."""
    found = [block for _, block in blocks]
    message = Message(role="assistant", content=_text(found))
    thoughts = [block.thinking for block in found if isinstance(block, ThinkingBlock)]
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    made = [block for block in found if isinstance(block, ToolUseBlock)]
    names.update((block.id, block.name) for block in made)
    return {**message, "tool_calls": [_made(block) for block in made]} if made else message


def _made(block: ToolUseBlock) -> Message:
    function = {"name": block.name, "arguments": block.input}
    return {"id": block.id, "type": "function", "function": function}


def _heard(role: str, blocks: _Placed, names: dict[str, str]) -> Iterator[Message]:
    """A turn of anybody else's: texts and results in their order."""
    for is_result, run in groupby(blocks, lambda entry: isinstance(entry[1], ToolResultBlock)):
        if is_result:
            yield from (_result(where, block, names) for where, block in run)
        else:
            yield Message(role=role, content=_text([block for _, block in run]))


def _result(where: str, block: ToolResultBlock, names: dict[str, str]) -> Message:
    if block.tool_use_id not in names:
        raise Problem(
            400,
            f"{where}.tool_use_id names no tool_use block before it",
            param=f"{where}.tool_use_id",
        )
    text = _text(block.content)
    return Message(
        role="tool",
        tool_call_id=block.tool_use_id,
        name=names[block.tool_use_id],
        content=f"Error: {text}" if block.is_error else text,
    )


def tools(body: CountBody) -> list[dict[str, Any]]:
    """The tools in OpenAI's form. Raises Problem."""
    offered = body.tools or []
    names = [tool.name for tool in offered]
    for place, name in enumerate(names):
        if name in names[:place]:
            where = f"tools[{place}].name"
            raise Problem(400, f"{where} is {name!r}, as is another tool's", param=where)
    return [{"type": "function", "function": _function(tool)} for tool in offered]


def _function(tool: ToolParam) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict or None,
    }
    return {name: value for name, value in function.items() if value is not None}


# --- options

# What `thinking` asks for, where it does not depend on how the model thinks.
_THINKING = {"enabled": True, "disabled": False}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def thinking(body: CountBody, mode: Mode) -> bool | None:
    """Whether to think; None: the model's own way. mode: how it thinks.

    A model that can do without thinks only when asked to, as in Anthropic's API.
    """
    if body.thinking is not None and body.thinking.type in _THINKING:
        return _THINKING[body.thinking.type]
    return body.thinking is not None if mode == "hybrid" else None


def thinking_budget(body: MessagesBody) -> int | None:
    """Tokens of thinking at most. Raises Problem for more than there may be in all."""
    wanted, config = body.thinking, body.output_config
    if isinstance(wanted, ThinkingAdaptive) and config is not None:
        return None if config.effort is None else BUDGETS[config.effort]
    if not isinstance(wanted, ThinkingOn):
        return None
    if wanted.budget_tokens >= body.max_tokens:
        where = "thinking.budget_tokens"
        raise Problem(
            400, f"{where} is {wanted.budget_tokens}; expected less than max_tokens", param=where
        )
    return wanted.budget_tokens


def tool_choice(body: CountBody) -> Any:
    """As `LLM.request` takes it; None: not said."""
    choice = body.tool_choice
    if isinstance(choice, ToolChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return None if choice is None else _CHOICES[choice.type]


def parallel(body: CountBody) -> bool | None:
    """Whether a message may hold several calls; None: not said."""
    single = getattr(body.tool_choice, "disable_parallel_tool_use", None)
    return None if single is None else not single


def options(body: MessagesBody) -> dict[str, Any]:
    """What `LLM.request` takes beside the messages, but for `thinking`. Raises Problem."""
    return {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "tools": tools(body) or None,
        "tool_choice": tool_choice(body),
        "parallel_tool_calls": parallel(body),
        "schema": body.format and body.format.schema_,
        "thinking_budget": thinking_budget(body),
    }


@dataclass(frozen=True)
class MessageAsk(Ask):
    """A message to make. Whether to think is known once the model is."""

    body: CountBody = field(kw_only=True)

    @classmethod
    def of(cls, body: MessagesBody) -> MessageAsk:
        """What a body asks. Raises Problem."""
        return cls(messages(body), options(body), body=body)

    def requests(self, llm: LLM) -> list[Request]:
        """One request. A max_tokens beyond the context ends with it, as Anthropic's models do."""
        given = {**self.options, "thinking": thinking(self.body, llm.mode)}
        try:
            return Ask(self.prompt, given).requests(llm)
        except ContextOverflowError:
            [request] = Ask(self.prompt, {**given, "max_tokens": None}).requests(llm)
            room = llm.context_length - len(request.prompt_ids)
            return [replace(request, max_tokens=room)]


def count(body: CountBody, llm: LLM) -> int:
    """Tokens of the prompt that a body makes. Raises Problem, TemplateError, OptionError."""
    unused = isinstance(body.tool_choice, NoChoice)
    offered = None if unused else tools(body)
    text = llm.render(messages(body), offered, thinking(body, llm.mode))
    return len(llm.tokenizer.encode(text))
