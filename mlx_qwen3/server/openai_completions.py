"""OpenAI's completions: prompts without a chat template, as texts or token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_qwen3.server.body import Limits, Measure, counted, read_body
from mlx_qwen3.server.endpoints import Endpoint
from mlx_qwen3.server.openai_body import Logprobs, Sampling
from mlx_qwen3.server.openai_completion_events import text_completion, write_completions
from mlx_qwen3.server.openai_errors import openai_failed, openai_problem
from mlx_qwen3.server.problems import Problem, answering
from mlx_qwen3.server.replies import Ask, Replies, collected, streamed
from mlx_qwen3.service import Service

DEFAULT_MAX_TOKENS = 16  # OpenAI's; nothing tells a raw prompt's model where to end
TokenId = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = str | list[int]


class CompletionBody(Sampling):
    """completions. prompt: a text, token ids, or a list of either."""

    INSTEAD: ClassVar[Mapping[str, str]] = {
        "suffix": "put what follows into the prompt, between the model's own markers"
    }

    prompt: Text | TokenIds | list[Text] | list[TokenIds] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    echo: bool | None = None
    logprobs: Logprobs | None = None
    best_of: int | None = Field(None, ge=1)

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Every prompt in it."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else self.prompt  # type: ignore[list-item, return-value]

    def measures(self) -> Iterable[Measure]:
        yield from self.sampling_measures()
        yield from counted("prompt", self.prompts, "prompts")


def completion_asks(body: CompletionBody) -> list[Ask]:
    """An ask for each prompt of a body. Raises Problem for what cannot be had."""
    if body.best_of not in (None, body.copies):
        raise Problem(
            400,
            f"best_of is {body.best_of}; expected n ({body.copies}) or nothing",
            param="best_of",
        )
    if body.echo and body.logprobs is not None:
        raise Problem(
            400, "logprobs of an echoed prompt are not known; drop echo or logprobs", param="echo"
        )
    max_tokens = body.max_tokens or DEFAULT_MAX_TOKENS
    options = {**body.sampling(), "max_tokens": max_tokens, "logprobs": body.logprobs}
    given = {name: value for name, value in options.items() if value is not None}
    return [Ask(prompt, {"raw": True, **given}, body.copies) for prompt in body.prompts]


def echoed(replies: Replies) -> list[str]:
    """The prompt of every reply, as text."""
    decode = replies.model.llm.tokenizer.decode
    texts = [
        ask.prompt if isinstance(ask.prompt, str) else decode(ask.prompt) for ask in replies.asks
    ]
    return [text for text, ask in zip(texts, replies.asks, strict=True) for _ in range(ask.copies)]


ENDPOINTS = (
    Endpoint("POST", "/v1/completions", "What follows a text", CompletionBody, streams=True),
)


def routes(service: Service, limits: Limits) -> list[Route]:
    """The routes of completions."""

    @answering(openai_problem)
    async def complete(request: Request) -> Response:
        body = await read_body(request, CompletionBody, limits)
        replies = Replies(service, body.model, completion_asks(body))
        options: dict[str, Any] = {
            "logprobs": body.logprobs is not None,
            "echo": echoed if body.echo else None,
        }
        if body.stream:
            write = partial(write_completions, usage=body.wants_usage, **options)
            return await streamed(request, replies, write, openai_failed)
        events = await collected(request, replies)
        return JSONResponse(text_completion(replies, events, **options))

    return [ENDPOINTS[0].route(complete)]
