"""What a model keeps between replies to speculate well: costs, habits, its draft model."""

from __future__ import annotations

from dataclasses import replace

from mlx_qwen3.device import Device
from mlx_qwen3.errors import OptionError
from mlx_qwen3.generation.constraints import Constraint
from mlx_qwen3.generation.lookup import Habits, Lookup
from mlx_qwen3.generation.loop import TokenLoop
from mlx_qwen3.generation.pace import Pace
from mlx_qwen3.generation.proposers import (
    DraftHabits,
    DraftProposer,
    LookupProposer,
    Proposer,
)
from mlx_qwen3.generation.request import Request
from mlx_qwen3.generation.sampling import Sampler
from mlx_qwen3.generation.speculation import SpeculativeLoop
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.policy import BurstPolicy
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.text.tokenizer import Tokenizer

_VOCABULARY_STRIDE = 61  # tokens compared of two vocabularies; other ones differ everywhere
_DRAFT_COST = 0.15  # of a draft model's step, in steps of the target, before it is measured


class Speculator:
    """Makes the token loops of one model's replies. Owned by whoever owns the model.

    draft: the smaller model that proposes; None: prompt lookup only.
    """

    def __init__(self, model: Transformer, draft: Transformer | None = None) -> None:
        self._model = model
        self._draft = draft
        config = model.config
        group = config.num_attention_heads // config.num_key_value_heads
        self.policy = BurstPolicy.for_device(Device.current(), model.dtype, group)
        self._habits = Habits()
        self._draft_habits = DraftHabits()
        self._pace = Pace(self.policy.expected_cost, self.policy.max_rows)
        self._draft_pace = Pace(self._expected_draft_cost, min(self.policy.max_rows, 9))

    @property
    def possible(self) -> bool:
        """Whether this device computes several rows in a way that can pay."""
        return self.policy.max_rows > 1

    def loop(
        self,
        cache: Cache,
        sampler: Sampler,
        request: Request,
        seed: int,
        constraint: Constraint | None = None,
    ) -> TokenLoop:
        """The loop for a request. sampler: the request's, made with this seed.

        cache: what it holds is the beginning of the prompt; the rest is to be fed.
        """
        proposer, pace = self._proposer(request, seed)
        packed = request.kv_bits is not None
        loop = SpeculativeLoop(
            self._model,
            cache,
            sampler,
            proposer,
            pace,
            max_tokens=request.max_tokens,
            tolerance=self.policy.packed_tolerance if packed else self.policy.tolerance,
            constraint=constraint,
        )
        loop.recall(request.prompt_ids[: cache.offset])
        return loop

    def _proposer(self, request: Request, seed: int) -> tuple[Proposer, Pace]:
        if request.speculation == "lookup" or self._draft is None:
            return LookupProposer(Lookup(self._habits), self._pace), self._pace
        params = replace(request.params, logprobs=None)
        proposer = DraftProposer(
            self._draft,
            self._draft.make_cache(max_kv_size=request.max_kv_size),
            Sampler(params, self._draft.config.vocab_size, seed),
            self._draft_habits,
            self._draft_pace,
        )
        return proposer, self._draft_pace

    def _expected_draft_cost(self, rows: int) -> float:
        return self.policy.expected_cost(rows) + _DRAFT_COST * (rows - 1)


def refuse_other_vocabulary(
    target: Transformer, tokenizer: Tokenizer, draft: Transformer, draft_tokenizer: Tokenizer
) -> None:
    """Raise OptionError unless the models speak of the same tokens."""
    ours, theirs = target.config.vocab_size, draft.config.vocab_size
    advice = "choose a draft of the same family"
    if ours != theirs:
        raise OptionError(f"the draft model has {theirs} tokens, the model {ours}; {advice}")
    for token_id in range(0, ours, _VOCABULARY_STRIDE):
        own, other = tokenizer.id_to_token(token_id), draft_tokenizer.id_to_token(token_id)
        if own != other:
            raise OptionError(
                f"token {token_id} is {other!r} to the draft model, {own!r} to the model; {advice}"
            )
