"""What a grammar costs a decode step: the 0.6B shape with random weights, the real vocabulary.

    python tests/bench/constraints.py --tokenizer FOLDER   # of a Qwen3 release

Two loops over one model, one free and one under a JSON schema, take turns of a few tokens on an
idle device; printed are the medians, the ratio of each pair of turns, and the time the host
needs for the mask alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlx_qwen3 import device

device.prepare()

import mlx.core as mx  # noqa: E402  # after its BLAS

from mlx_qwen3.bench.shapes import shape_config, write_checkpoint  # noqa: E402
from mlx_qwen3.generation.constraints import (  # noqa: E402
    AnswerConstraint,
    GrammarRule,
    Vocabulary,
)
from mlx_qwen3.generation.grammars import answer_grammar, json_part  # noqa: E402
from mlx_qwen3.generation.loop import TokenLoop  # noqa: E402
from mlx_qwen3.generation.sampling import Sampler, SamplingParams  # noqa: E402
from mlx_qwen3.model.transformer import Transformer  # noqa: E402
from mlx_qwen3.model.weights import load_model  # noqa: E402
from mlx_qwen3.releases import find  # noqa: E402
from mlx_qwen3.text.tokenizer import Tokenizer  # noqa: E402

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer"},
        "people": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "role": {"enum": ["author", "editor"]}},
                "required": ["name", "role"],
            },
        },
    },
    "required": ["title", "year", "people"],
}
END_IDS = (151645, 151643)


class Timed(AnswerConstraint):
    """Notes how long each mask took on the host."""

    seconds: list[float]

    def allowed(self) -> mx.array | None:
        start = time.perf_counter()
        mask = super().allowed()
        self.seconds.append(time.perf_counter() - start)
        return mask


def make_constraint(tokenizer: Tokenizer, vocab_size: int) -> Timed:
    start = time.perf_counter()
    vocabulary = Vocabulary(tokenizer, vocab_size, END_IDS)
    rule = GrammarRule(vocabulary, answer_grammar(json_part(SCHEMA, "compact")))
    print(f"vocabulary and grammar made in {time.perf_counter() - start:.2f} s, once a model")
    constraint = Timed(vocabulary, rule, in_thinking=False, may_think=False)
    constraint.seconds = []
    return constraint


def make_loop(model: Transformer, constraint: Timed | None) -> TokenLoop:
    params = SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
    sampler = Sampler(params, model.config.vocab_size, seed=1)
    loop = TokenLoop(model, model.make_cache(), sampler, constraint=constraint)
    loop.feed(list(range(1000, 1016)))
    return loop


def turn(loop: TokenLoop, tokens: int) -> float:
    """Seconds a token, from an idle device to an idle device."""
    mx.synchronize()
    start = time.perf_counter()
    for _ in range(tokens):
        loop.next()
    mx.synchronize()
    return (time.perf_counter() - start) / tokens


def report(free: Sequence[float], bound: Sequence[float], masks: Sequence[float]) -> None:
    ratios = [b / f for f, b in zip(free, bound, strict=True)]
    print(f"free:  {1e3 * statistics.median(free):7.2f} ms a token")
    print(f"bound: {1e3 * statistics.median(bound):7.2f} ms a token")
    print(f"ratio: {statistics.median(ratios):7.3f} (median of {len(ratios)} pairs)")
    print(f"mask on the host: {1e3 * statistics.median(masks):.3f} ms median")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=6, help="in a turn")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(
            write_checkpoint(shape_config(find("0.6b").release), arguments.bits, Path(folder))
        )
        constraint = make_constraint(Tokenizer.from_folder(arguments.tokenizer), 151_936)
        loops = [make_loop(model, None), make_loop(model, constraint)]
        for loop in loops:
            turn(loop, 2)
        pairs = [[turn(loop, arguments.tokens) for loop in loops] for _ in range(arguments.turns)]
        free, bound = zip(*pairs, strict=True)
        report(free, bound, constraint.seconds)


if __name__ == "__main__":
    main()
