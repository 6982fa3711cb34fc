"""How much memory the caches of running sequences take, and may take."""

from __future__ import annotations

from mlx_qwen3.generation.request import Request
from mlx_qwen3.model.cache import BLOCK
from mlx_qwen3.model.transformer import Transformer


class KvBudget:
    """Bytes for the keys and values of all running sequences of one model.

    total: what they may take together.
    """

    def __init__(self, model: Transformer, total: int) -> None:
        self._model = model
        self.total = total

    def needed(self, request: Request, tokens: int) -> int:
        """Bytes of a cache for a request that holds so many tokens, and can take some more."""
        kept = tokens if request.max_kv_size is None else min(tokens, request.max_kv_size + BLOCK)
        return self._model.kv_bytes_per_token(request.kv_bits) * (-(-(kept + 1) // BLOCK) * BLOCK)

    def most_tokens(self, request: Request) -> int:
        """Tokens of one sequence that fit when it is alone."""
        if request.max_kv_size is not None:
            return self.total  # it forgets, and so never takes more than its window
        return self.total // max(self._model.kv_bytes_per_token(request.kv_bits), 1)
