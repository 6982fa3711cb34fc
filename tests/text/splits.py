"""Shared by the streaming tests: bounded, repeatable hypothesis runs and random splits."""

import random
from collections.abc import Iterator

from hypothesis import settings

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def split(text: str, rng: random.Random) -> Iterator[str]:
    """The text in pieces of random sizes, single characters among them."""
    size = rng.choice([1, 2, 3, 8, 40])
    position = 0
    while position < len(text):
        step = rng.randint(1, size)
        yield text[position : position + step]
        position += step
