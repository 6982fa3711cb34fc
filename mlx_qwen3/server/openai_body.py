"""What OpenAI's chat/completions and completions have in common in their bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from mlx_qwen3.server.body import Body, Harmless, Measure, counted
from mlx_qwen3.server.problems import Problem

_SEEDS = 1 << 64
_MAX_LOGPROBS = 20
Stop = Annotated[str, Field(min_length=1)]
Logprobs = Annotated[int, Field(ge=0, le=_MAX_LOGPROBS)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class StreamOptions(Body):
    """include_usage: a last chunk with the tokens of all choices."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Sampling(Harmless):
    """How replies are drawn and sent. What is left out is the model's own, or its mode's.

    model: None for the server's default. seed: of the first choice, the others' count on.
    top_k, min_p, repetition_penalty, max_kv_size, kv_bits: this server's own, as in
    `LLM.stream`.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[TokenName, Bias] | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=_SEEDS)
    stop: Stop | list[Stop] | None = None
    max_kv_size: int | None = Field(None, ge=5)
    kv_bits: Literal[4, 8] | None = None

    @property
    def copies(self) -> int:
        """Replies to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the tokens it took."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self) -> dict[str, Any]:
        """Options of `LLM.request`. Raises Problem for options that do not go together."""
        if self.stream_options is not None and not self.stream:
            raise Problem(400, "stream_options are for streams; set stream", param="stream_options")
        same = {name: getattr(self, name) for name in _AS_THEY_ARE}
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        seed = None if self.seed is None else self.seed % _SEEDS
        return {**same, "logit_bias": bias, "seed": seed}

    def sampling_measures(self) -> Iterator[Measure]:
        """What of it is limited."""
        yield "n", self.copies, "choices"
        yield from counted("stop", self.stop if isinstance(self.stop, list) else None, "stops")


_AS_THEY_ARE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "max_kv_size",
    "kv_bits",
)
