"""What a body of OpenAI's Responses API asks of a model: messages, tools, options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from mlx_qwen3.server.effort import effort_options
from mlx_qwen3.server.problems import Problem
from mlx_qwen3.server.replies import Ask
from mlx_qwen3.server.responses_body import (
    AllowedTools,
    FunctionCall,
    FunctionCallOutput,
    FunctionTool,
    MessageItem,
    NamedFunction,
    Reasoning,
    ResponsesBody,
)

Message = dict[str, Any]
# (its place in the input, an item)
_Placed = tuple[int, Any]


def ask(body: ResponsesBody) -> Ask:
    """What a body asks. Raises Problem."""
    return Ask(messages(body), options(body))


def messages(body: ResponsesBody) -> list[Message]:
    """The conversation in OpenAI's older form, as chat templates read it. Raises Problem."""
    said: list[Message] = []
    if body.instructions is not None:
        said.append(Message(role="system", content=body.instructions))
    names: dict[str, str] = {}  # of the calls so far, by id
    for own, run in groupby(enumerate(body.input), lambda placed: _is_own(placed[1])):
        if own:
            said.append(_turn([item for _, item in run], names))
        else:
            said += [_heard(placed, names) for placed in run]
    return said


def _is_own(item: Any) -> bool:
    """Whether the model said it; what it says in a row is one turn."""
    if isinstance(item, MessageItem):
        return item.role == "assistant"
    return isinstance(item, FunctionCall | Reasoning)


def _turn(items: Sequence[Any], names: dict[str, str]) -> Message:
    message = Message(role="assistant", content=_joined(items, MessageItem, _said))
    if reasoning := _joined(items, Reasoning, _thought):
        message["reasoning_content"] = reasoning
    calls = [item for item in items if isinstance(item, FunctionCall)]
    names.update((call.call_id, call.name) for call in calls)
    return {**message, "tool_calls": [_call(call) for call in calls]} if calls else message


def _joined(items: Sequence[Any], kind: type, text: Callable[[Any], str]) -> str:
    return "\n".join(text(item) for item in items if isinstance(item, kind))


def _said(item: MessageItem | FunctionCallOutput) -> str:
    content = item.content if isinstance(item, MessageItem) else item.output
    return "\n".join(part.text for part in content)


def _thought(item: Reasoning) -> str:
    return "\n".join(part.text for part in item.content or item.summary)


def _call(item: FunctionCall) -> Message:
    function = {"name": item.name, "arguments": _arguments(item.arguments)}
    return {"id": item.call_id, "type": "function", "function": function}


def _arguments(text: str) -> Any:
    """As an object where it is one: templates of the XML form of calls need that."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _heard(placed: _Placed, names: dict[str, str]) -> Message:
    place, item = placed
    if isinstance(item, MessageItem):
        role = "system" if item.role == "developer" else item.role
        return Message(role=role, content=_said(item))
    if item.call_id not in names:
        where = f"input[{place}].call_id"
        raise Problem(400, f"{where} names no function_call before it", param=where)
    name = names[item.call_id]
    return Message(role="tool", tool_call_id=item.call_id, name=name, content=_said(item))


# --- options


def options(body: ResponsesBody) -> dict[str, Any]:
    """What `LLM.request` takes beside the messages. Raises Problem."""
    offered, choice = _offered(body)
    return {
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "seed": body.seed,
        "logprobs": _logprobs(body),
        "tools": [_tool(tool) for tool in offered] or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "schema": body.schema_,
        **_thinking(body),
    }


def _thinking(body: ResponsesBody) -> dict[str, Any]:
    effort = None if body.reasoning is None else body.reasoning.effort
    if effort is None:
        return {"thinking_budget": body.thinking_budget}
    if body.thinking_budget is not None:
        where = "thinking_budget"
        raise Problem(400, f"{where} and reasoning.effort say the same; drop either", param=where)
    return effort_options(effort)


def _logprobs(body: ResponsesBody) -> int | None:
    wanted = "message.output_text.logprobs" in (body.include or ())
    return (body.top_logprobs or 0) if wanted else body.top_logprobs


def _offered(body: ResponsesBody) -> tuple[Sequence[FunctionTool], Any]:
    """The tools on offer, and the choice among them."""
    tools, choice = body.tools or [], body.tool_choice
    _refuse_twins(tools)
    if isinstance(choice, NamedFunction):
        return tools, {"type": "function", "function": {"name": choice.name}}
    if not isinstance(choice, AllowedTools):
        return tools, choice
    allowed = {tool.name for tool in choice.tools}
    if unknown := allowed - {tool.name for tool in tools}:
        where = "tool_choice.tools"
        raise Problem(400, f"{where} names {min(unknown)!r}, which is no tool here", param=where)
    return [tool for tool in tools if tool.name in allowed], choice.mode


def _refuse_twins(tools: Sequence[FunctionTool]) -> None:
    names = [tool.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            where = f"tools[{place}].name"
            raise Problem(400, f"{where} is {name!r}, as is another tool's", param=where)


def _tool(tool: FunctionTool) -> Message:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
        "strict": tool.strict or None,
    }
    given = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": given}
