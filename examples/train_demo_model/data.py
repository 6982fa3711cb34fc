"""The mix of conversations, made on the fly from a seed, and their batches of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from random import Random

import arithmetic
import clocks
import copying
import greetings
import tools
import torch
from chat import Example, segments, user
from tokenizers import Tokenizer
from torch import Tensor

SYSTEMS = (
    "You are a helpful assistant.",
    "You are Qwen, a helpful assistant.",
    "Answer briefly.",
    "You are a friendly assistant who answers in one sentence.",
    "You are a careful assistant.",
)
# How many of each kind of conversation: "base" for most of the training, "tools" to finish it.
MIXES: dict[str, dict[str, float]] = {
    "base": {
        "arithmetic": 30.0,
        "call clock": 4.0,
        "call weather": 3.0,
        "call other": 2.4,
        "answer clock": 5.0,
        "answer weather": 3.6,
        "answer other": 2.4,
        "call twice": 0.7,
        "answer twice": 0.7,
        "no call": 4.0,
        "time zone": 4.0,
        "copy": 16.0,
        "edit": 2.0,
        "greeting": 5.0,
        "who": 1.5,
        "general": 4.0,
    },
    "tools": {
        "arithmetic": 34.0,
        "call clock": 5.0,
        "call weather": 4.5,
        "call other": 5.0,
        "answer clock": 5.0,
        "answer weather": 4.5,
        "answer other": 4.0,
        "call twice": 1.0,
        "answer twice": 1.0,
        "no call": 5.0,
        "time zone": 2.0,
        "copy": 12.0,
        "edit": 1.5,
        "greeting": 2.0,
        "who": 1.0,
        "general": 2.5,
    },
}
DRAW: dict[str, Callable[[Random, bool], Example]] = {
    "arithmetic": arithmetic.sample,
    **{
        f"{step} {family}": partial(tools.call_sample, family=family, step=step)
        for step in ("call", "answer")
        for family in ("clock", "weather", "other")
    },
    "call twice": partial(tools.two_calls_sample, step="call"),
    "answer twice": partial(tools.two_calls_sample, step="answer"),
    "no call": tools.no_call_sample,
    "time zone": clocks.zone_sample,
    "copy": copying.copy_sample,
    "edit": copying.edit_sample,
    "greeting": greetings.greeting_sample,
    "who": greetings.who_sample,
    "general": greetings.general_sample,
}
MAX_TOKENS = 2048
POOL = 768
ECHO_POOLS = 2


def _with_history(rng: Random, example: Example, turns: int) -> Example:
    """Put earlier exchanges before the conversation."""
    earlier = []
    for _ in range(turns):
        kind = rng.choice(("arithmetic", "copy", "greeting", "who", "general"))
        earlier += DRAW[kind](rng, False).without_thinking().messages
    return replace(example, messages=(*earlier, *example.messages))


def _soft_switch(rng: Random, example: Example) -> Example:
    """Append /think or /no_think to the last question, or to the system turn."""
    messages = list(example.messages)
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    think = rng.random() < 0.4
    switch = "/think" if think else "/no_think"
    if messages[0]["role"] == "system" and rng.random() < 0.5:
        messages[0] = messages[0] | {"content": f"{messages[0]['content']} {switch}"}
    else:
        messages[last] = user(f"{messages[last]['content']} {switch}")
    example = replace(example, messages=tuple(messages))
    return example if think else replace(example.without_thinking(), thinking=True)


def training_example(rng: Random, mix: str = "base") -> Example:
    """A random conversation: mode, system turn, history and soft switches included."""
    kind = rng.choices(tuple(MIXES[mix]), tuple(MIXES[mix].values()))[0]
    direct = rng.random() < (0.25 if kind == "arithmetic" else 0.45)
    if not direct:  # with thinking, a whole tool loop is learned at once: the call and the answer
        kind = kind.replace("call ", "answer ", kind.startswith("call "))
    example = DRAW[kind](rng, False)
    chance = rng.random()
    if chance < 0.12:
        turns = rng.randint(3, 12) if chance < 0.01 else rng.choice((1, 1, 1, 2))
        example = _with_history(rng, example, turns)
    if rng.random() < 0.15:
        system = {"role": "system", "content": rng.choice(SYSTEMS)}
        example = replace(example, messages=(system, *example.messages))
    if rng.random() < 0.08:
        return _soft_switch(rng, example)
    return example.without_thinking() if direct else example


@dataclass(frozen=True)
class Batch:
    """token_ids, targets: (B, L) int64, padded on the right; targets are -100 where not learned."""

    token_ids: Tensor
    targets: Tensor
    echo: bool = False


def echo_batch(rng: Random, vocab_size: int, tokens: int) -> Batch:
    """Random tokens, said over and over: what copying from the context is learned from first.

    Learned is everything after the first time.
    """
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    length = rng.choice((64, 96, 128, 192, 256))
    rows = []
    for _ in range(tokens // length):
        said = torch.randint(vocab_size, (rng.randint(6, length // 2),), generator=generator)
        rows.append((said.repeat(length // len(said) + 1)[: length + 1], len(said)))
    token_ids = torch.stack([row for row, _ in rows])
    first = torch.tensor([period for _, period in rows])[:, None]
    new = torch.arange(length) + 1 < first
    return Batch(token_ids[:, :-1], token_ids[:, 1:].masked_fill(new, -100), echo=True)


def encode(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[bool]]:
    """(token_ids, which of them are learned)."""
    token_ids: list[int] = []
    learned: list[bool] = []
    for text, wanted in segments(example):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        token_ids += piece
        learned += [wanted] * len(piece)
    return token_ids, learned


def _collate(rows: list[tuple[list[int], list[bool]]]) -> Batch:
    length = max(len(ids) for ids, _ in rows) - 1
    token_ids = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), -100)
    for index, (ids, learned) in enumerate(rows):
        row = torch.tensor(ids)
        token_ids[index, : len(ids) - 1] = row[:-1]
        wanted = torch.tensor(learned[1:])
        targets[index, : len(ids) - 1] = torch.where(wanted, row[1:], -100)
    return Batch(token_ids, targets)


def _pool(tokenizer: Tokenizer, seed: int, index: int, tokens: int, mix: str) -> list[Batch]:
    """POOL conversations, sorted by length into batches of at most `tokens` tokens, shuffled."""
    rng = Random(f"{seed}/{index}")
    rows = [encode(tokenizer, training_example(rng, mix)) for _ in range(POOL)]
    rows = sorted((row for row in rows if len(row[0]) <= MAX_TOKENS), key=lambda row: len(row[0]))
    batches, batch = [], []
    for row in rows:
        if batch and (len(batch) + 1) * len(row[0]) > tokens:
            batches.append(_collate(batch))
            batch = []
        batch.append(row)
    batches.append(_collate(batch))
    rng.shuffle(batches)
    return batches


def batches(
    tokenizer: Tokenizer, seed: int, tokens: int, first: int = 0, mix: str = "base"
) -> Iterator[tuple[int, Batch]]:
    """Endless (pool index, batch) pairs, from pool `first` on; the seed fixes all of them.

    In the first ECHO_POOLS pools, every second batch is an echo_batch.
    """
    for index in count(first):
        rng = Random(f"{seed}/{index}/echo")
        for batch in _pool(tokenizer, seed, index, tokens, mix):
            yield index, batch
            if index < ECHO_POOLS:
                yield index, echo_batch(rng, tokenizer.get_vocab_size(), tokens)
