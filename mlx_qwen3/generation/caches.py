"""Where a reply's cache comes from, and where it goes when the reply is over.

Who keeps caches between replies stands above this package; here is only what a reply needs of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mlx_qwen3.generation.request import Request
from mlx_qwen3.model.cache import Cache


class CacheStore(Protocol):
    """Hands out caches that already hold the beginning of a prompt.

    Both methods touch the device: they are called where steps are made, never beside one.
    """

    def lease(self, request: Request) -> Cache:
        """A cache of the request's kind for one sequence, which owns it until it is given back.

        Its first `offset` tokens are those of request.prompt_ids, at least one of which is
        still to be read. Raises OptionError for a kind of cache that cannot be.
        """
        ...

    def give_back(self, cache: Cache, token_ids: Sequence[int], *, lasting: int) -> None:
        """Take a leased cache, whose sequence has ended, however it ended.

        token_ids: what is certain to be in it, from the first token on; it may hold more. None
        where the device failed.
        lasting: how many of these may be expected to begin another prompt.
        """
        ...
