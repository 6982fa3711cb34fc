"""Replies with speculation against plain decoding, interleaved in one process, as ratios.

    python tests/bench/speculation.py                        # the demo model's tasks
    python tests/bench/speculation.py --draft demo           # a draft model instead of lookup
    python tests/bench/speculation.py --model DIR --noise    # prompts of random tokens

Every prompt is answered greedily both ways, in turn, and both must say the same. A kind's ratio
is that of its total decode times, of all prompts; the spread is over runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from mlx_qwen3 import LLM, load

DEMO_DATA = Path(__file__).parents[2] / "examples" / "train_demo_model"


def demo_prompts(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """(kind, prompt) of the demo model's tasks, none of which it was trained on."""
    sys.path.insert(0, str(DEMO_DATA))
    import arithmetic  # type: ignore[import-not-found]
    import copying  # type: ignore[import-not-found]
    import greetings  # type: ignore[import-not-found]

    rng = Random(seed)
    makers: dict[str, Callable[[], Any]] = {
        "copy list": lambda: copying.copy_sample(rng, True, "copy list"),
        "copy code": lambda: copying.copy_sample(rng, True, "copy code"),
        "copy text": lambda: copying.copy_sample(rng, True, "copy text"),
        "edit": lambda: copying.edit_sample(rng, True),
        "arithmetic": lambda: arithmetic.sample(rng, True),
        "greeting": lambda: greetings.greeting_sample(rng, True),
        "general": lambda: greetings.general_sample(rng, True),
    }
    for _ in range(count):
        for kind, make in makers.items():
            yield kind, make().messages[0]["content"]


def noise_prompts(llm: LLM, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Prompts in which nothing repeats on purpose."""
    rng = Random(seed)
    for _ in range(count):
        token_ids = [rng.randrange(llm.tokenizer.vocab_size - 300) for _ in range(40)]
        yield "noise", llm.tokenizer.decode(token_ids)


def measure(
    llm: LLM, prompts: list[tuple[str, str]], draft: LLM | None, options: dict[str, Any]
) -> dict[str, list[float]]:
    """Seconds, plain and speculating, and tokens proposed and accepted: sums for each kind."""
    wanted = "lookup" if draft is None else "draft"
    sums: dict[str, list[float]] = {}
    for index, (kind, prompt) in enumerate(prompts):
        done = {}
        for speculation in ("off", wanted) if index % 2 else (wanted, "off"):
            done[speculation] = llm.generate(
                prompt, speculation=speculation, draft=draft, **options
            )
        plain, guessed = done["off"], done[wanted]
        if plain.token_ids != guessed.token_ids:
            raise SystemExit(f"{prompt!r}: other tokens than plain decoding's")
        figures = (plain.timing.decode, guessed.timing.decode)
        counts = (guessed.proposed_tokens, guessed.accepted_tokens, len(plain.token_ids))
        so_far = sums.setdefault(kind, [0.0] * 5)
        sums[kind] = [a + b for a, b in zip(so_far, (*figures, *counts), strict=True)]
    return sums


def report(runs: list[dict[str, list[float]]]) -> None:
    """A line for each kind: the median ratio of the runs, its spread, and what was guessed."""
    for kind in runs[0]:
        ratios = [run[kind][0] / run[kind][1] for run in runs]
        proposed, accepted, tokens = (sum(run[kind][i] for run in runs) for i in (2, 3, 4))
        print(
            f"{kind:12} {statistics.median(ratios):5.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
            f"  {accepted:.0f} of {proposed:.0f} guesses right, {tokens:.0f} tokens",
            flush=True,
        )


def groups(kinds: Iterable[str]) -> dict[str, str]:
    """The two figures that are promised."""
    return {kind: "copy, edit" if kind[:4] in ("copy", "edit") else "others" for kind in kinds}


def by_group(run: dict[str, list[float]]) -> dict[str, list[float]]:
    """The same sums over all kinds of a group."""
    sums: dict[str, list[float]] = {}
    for kind, group in groups(run).items():
        sums[group] = [a + b for a, b in zip(sums.get(group, [0.0] * 5), run[kind], strict=True)]
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--draft", help="a model that proposes, instead of lookup")
    parser.add_argument("--noise", action="store_true", help="prompts of random tokens")
    parser.add_argument("--prompts", type=int, default=8, help="of each kind")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()
    llm = load(arguments.model)
    draft = None if arguments.draft is None else load(arguments.draft)
    options = {
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": 1,
    }
    runs = []
    for run in range(arguments.runs):
        make = noise_prompts(llm, arguments.prompts, run) if arguments.noise else None
        prompts = list(make or demo_prompts(arguments.prompts, run))
        runs.append(measure(llm, prompts, draft, options))
    report(runs)
    report([by_group(run) for run in runs])


if __name__ == "__main__":
    main()
