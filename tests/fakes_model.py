"""A model without weights: it says what a test tells it to, and remembers what it was asked.

    model = FakeModel(lambda ids: ids[-1] + 1)     # counts upwards
    model = FakeModel.saying([104, 105], prompt=3)  # "hi" after a prompt of three tokens, then EOS

It satisfies what TokenLoop, Reply and LLM use of Transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from tests.checkpoints import EOS_TOKEN_IDS, SPECIAL_TOKENS

VOCAB_SIZE = 288
EOS = EOS_TOKEN_IDS[0]
THINK, THINK_END = 259, 260
assert (SPECIAL_TOKENS[THINK][0], SPECIAL_TOKENS[THINK_END][0]) == ("<think>", "</think>")

# All tokens so far -> the next one, or the logits of every candidate.
Says = Callable[[list[int]], int | Sequence[float]]


@dataclass
class FakeConfig:
    """The fields of ModelConfig that generation reads."""

    vocab_size: int = VOCAB_SIZE
    context_length: int = 512
    eos_token_id: tuple[int, ...] = ()
    num_attention_heads: int = 1
    num_key_value_heads: int = 1


class FakeCache:
    """Remembers the tokens themselves."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.token_ids: list[int] = []

    @property
    def offset(self) -> int:
        return len(self.token_ids)

    @property
    def trimmable(self) -> int:
        return self.offset

    def trim(self, tokens: int) -> None:
        del self.token_ids[len(self.token_ids) - tokens :]

    def state(self) -> list[mx.array]:
        return []


class FakeModel:
    """calls: the tokens of every forward pass, in order. heads: how often logits were made.

    before_step: called at the start of every forward pass; it may block or raise.
    """

    dtype = mx.float32
    expert_traffic = None
    peers = None

    def __init__(
        self,
        says: Says,
        *,
        config: FakeConfig | None = None,
        before_step: Callable[[FakeModel], object] | None = None,
    ) -> None:
        self.config = config or FakeConfig()
        self.calls: list[list[int]] = []
        self.heads = 0
        self.caches: list[FakeCache] = []
        self._says = says
        self._before_step = before_step

    @classmethod
    def saying(cls, script: Sequence[int], *, prompt: int = 1, **options: Any) -> FakeModel:
        """Says the script at its places behind a prompt of so many tokens, then EOS for ever."""

        def says(ids: list[int]) -> int:
            place = len(ids) - prompt
            return script[place] if 0 <= place < len(script) else EOS

        return cls(says, **options)

    def make_cache(self, **options: Any) -> FakeCache:
        self.caches.append(FakeCache(**options))
        return self.caches[-1]

    def hidden_states(self, token_ids: mx.array, cache: FakeCache) -> mx.array:
        """(1, L) -> (1, L, vocab_size): what it says after each token."""
        if self._before_step is not None:
            self._before_step(self)
        ids: list[int] = token_ids.tolist()[0]
        self.calls.append(ids)
        rows = []
        for token_id in ids:
            cache.token_ids.append(token_id)
            said = self._says(cache.token_ids)
            if isinstance(said, int):
                said = [100.0 * (one == said) for one in range(self.config.vocab_size)]
            rows.append(list(said))
        return mx.array(rows)[None]

    def logits(self, hidden_states: mx.array) -> mx.array:
        self.heads += 1
        return hidden_states

    def step(self, token: mx.array, cache: FakeCache) -> mx.array:
        return self.logits(self.hidden_states(token[None], cache)[:, -1])


class PieceTokenizer:
    """Every text can be a token: ids are given out as texts appear. Encodes by character."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def ids(self, pieces: Sequence[str]) -> list[int]:
        """The tokens of these texts, each as one."""
        for piece in pieces:
            if piece not in self._pieces:
                self._pieces.append(piece)
        return [self._pieces.index(piece) for piece in pieces]

    def encode(self, text: str) -> list[int]:
        return self.ids(list(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self._pieces[one] for one in token_ids)

    def detokenizer(self, skip_special_tokens: bool = False) -> PieceDetokenizer:
        return PieceDetokenizer(self)


class PieceDetokenizer:
    """Text by text."""

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        self._tokenizer = tokenizer

    def add(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id])

    def finish(self) -> str:
        return ""
