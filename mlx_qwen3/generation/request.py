"""One reply to make, checked and ready: what is read, how it is drawn, how its text is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_qwen3.generation.answer import AnswerOptions, ConstraintPlan
from mlx_qwen3.generation.sampling import SamplingParams

# Who proposes tokens for the model to verify: nobody, the sequence's own past, a smaller model.
Speculation = Literal["off", "lookup", "draft"]


@dataclass(frozen=True)
class Request:
    """Everything a reply depends on beside the model.

    max_tokens: tokens to generate at most, resolved against the context. in_thinking: the
    prompt ends inside a thought. raw: no chat template was used, so the text is all answer.
    may_think: the model may open a thought itself. answer: the form the answer must have.
    constraint: how to hold it to that. tools: those on offer, in OpenAI's form.
    max_kv_size, kv_bits: see Transformer.make_cache.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    in_thinking: bool = False
    raw: bool = False
    may_think: bool = False
    answer: AnswerOptions = field(default_factory=AnswerOptions)
    constraint: ConstraintPlan | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    max_kv_size: int | None = None
    kv_bits: int | None = None
    speculation: Speculation = "off"

    @property
    def parse_tools(self) -> bool:
        """Whether the reply may hold tool calls."""
        formed = self.answer.formed and not self.tools
        return not self.raw and not formed and self.answer.chosen != "none"
