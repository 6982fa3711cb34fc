"""OpenAI's chat/completions: from its body to a prompt and options, and back over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_qwen3.server.body import Body, Limits, Measure, counted, read_body, weighed
from mlx_qwen3.server.effort import Effort, effort_options
from mlx_qwen3.server.endpoints import Endpoint
from mlx_qwen3.server.openai_body import Logprobs, Sampling
from mlx_qwen3.server.openai_chat_events import chat_completion, write_chat
from mlx_qwen3.server.openai_errors import openai_failed, openai_problem
from mlx_qwen3.server.openai_messages import Message, template_messages
from mlx_qwen3.server.problems import Problem, answering
from mlx_qwen3.server.replies import Ask, Replies, collected, streamed
from mlx_qwen3.service import Service

NAME = r"^[a-zA-Z0-9_.:-]{1,128}$"


class Function(Body):
    """parameters: a JSON schema. strict: hold arguments to it."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function the model may call."""

    type: Literal["function"]
    function: Function


class Named(Body):
    """A function by its name."""

    name: str


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: Named


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class Schema(Body):
    """strict: every schema is enforced here, or refused, whatever this says."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: Schema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class TemplateOptions(Body):
    """What a chat template may be told."""

    enable_thinking: bool | None = None


class ChatBody(Sampling):
    """chat/completions. thinking_budget, chat_template_kwargs: this server's own, as vLLM's.

    reasoning_effort: `effort.BUDGETS`.
    """

    INSTEAD: ClassVar[Mapping[str, str]] = {
        "functions": "use tools",
        "function_call": "use tool_choice",
        "web_search_options": "offer a tool that searches",
        "audio": "these models read and write text",
        "prediction": "prompt lookup needs none",
    }

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: int | None = Field(None, ge=0)
    chat_template_kwargs: TemplateOptions | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None

    def measures(self) -> Iterable[Measure]:
        yield from self.sampling_measures()
        yield from counted("messages", self.messages, "messages")
        yield from counted("tools", self.tools, "tools")
        for place, tool in enumerate(self.tools or ()):
            path = f"tools[{place}].function.parameters"
            yield from weighed(path, tool.function.parameters)
        if isinstance(self.response_format, SchemaFormat):
            schema = self.response_format.json_schema.schema_
            yield from weighed("response_format.json_schema.schema", schema)


def chat_ask(body: ChatBody) -> Ask:
    """The prompt and options a body stands for. Raises Problem where it contradicts itself."""
    options = {
        **body.sampling(),
        **_thinking(body),
        **_tools(body),
        "max_tokens": _max_tokens(body),
        "logprobs": _logprobs(body),
        "schema": _schema(body.response_format),
    }
    given = {name: value for name, value in options.items() if value is not None}
    return Ask(template_messages(body.messages), given, body.copies)


def _thinking(body: ChatBody) -> dict[str, Any]:
    told = body.chat_template_kwargs and body.chat_template_kwargs.enable_thinking
    own = {"thinking": told, "thinking_budget": body.thinking_budget}
    effort = effort_options(body.reasoning_effort)
    for name, value in effort.items():
        if own[name] is not None and own[name] != value:
            raise Problem(
                400,
                f"reasoning_effort {body.reasoning_effort} says something else about {name} than "
                "the body does; drop either",
                param="reasoning_effort",
            )
    return own | effort


def _tools(body: ChatBody) -> dict[str, Any]:
    choice, tools = body.tool_choice, body.tools or ()
    names = [tool.function.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            path = f"tools[{place}].function.name"
            raise Problem(400, f"{path}: there is another tool of this name", param=path)
    return {
        "tools": [tool.model_dump(exclude_none=True) for tool in tools] or None,
        "tool_choice": choice.function.name if isinstance(choice, NamedTool) else choice,
        "parallel_tool_calls": body.parallel_tool_calls,
    }


def _max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise Problem(
            400,
            f"max_tokens is {old}, max_completion_tokens {new}; drop max_tokens, its older name",
            param="max_tokens",
        )
    return new if old is None else old


def _logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "top_logprobs needs logprobs; set it to true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _schema(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    if isinstance(wanted, SchemaFormat):
        return wanted.json_schema.schema_
    return {"type": "object"} if isinstance(wanted, ObjectFormat) else None


ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", "A reply to a conversation", ChatBody, streams=True),
)


def routes(service: Service, limits: Limits) -> list[Route]:
    """The routes of chat/completions."""

    @answering(openai_problem)
    async def chat(request: Request) -> Response:
        body = await read_body(request, ChatBody, limits)
        replies = Replies(service, body.model, [chat_ask(body)])
        logprobs = bool(body.logprobs)
        if body.stream:
            write = partial(write_chat, logprobs=logprobs, usage=body.wants_usage)
            return await streamed(request, replies, write, openai_failed)
        events = await collected(request, replies)
        token_bytes = replies.model.llm.tokenizer.token_bytes if logprobs else None
        return JSONResponse(chat_completion(replies.model.name, events, token_bytes))

    return [ENDPOINTS[0].route(chat)]
