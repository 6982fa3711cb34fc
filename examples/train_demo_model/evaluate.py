"""Print how often the demo model is right, by group, mode and bits.

python evaluate.py --model runs/dense-4bit --model runs/dense-8bit   # through mlx_qwen3
python evaluate.py --checkpoint runs/dense/checkpoint.pt --bits 16 4  # batched, in torch

Every prompt is held out: no pair, place and phrase, or string of it was trained on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from chat import Example, Message
from groups import GROUPS, draw_group

Reply = tuple[str, list[dict]]  # the answer's text, its tool calls
Backend = Callable[[list[Example], int], list[Reply]]
MAX_TOKENS = 400


def runtime_backend(folder: str, temperature: float | None) -> Backend:
    """Answers through mlx_qwen3's public API; temperature None: the model's own defaults."""
    from mlx_qwen3 import load

    llm = load(folder)

    def answer(examples: list[Example], max_tokens: int) -> list[Reply]:
        out = []
        for number, example in enumerate(examples):
            done = llm.generate(
                list(example.prompt),
                tools=list(example.tools) or None,
                thinking=example.thinking,
                temperature=temperature,
                max_tokens=max_tokens,
                seed=number,
            )
            calls = [call_fields(call) for call in done.tool_calls]
            out.append((done.text.strip(), calls))
        return out

    return answer


def call_fields(call: object) -> dict:
    """A tool call as {"name": ..., "arguments": {...}}."""
    if isinstance(call, dict):
        call = call.get("function", call)
        return {"name": call["name"], "arguments": call["arguments"]}
    return {"name": getattr(call, "name", None), "arguments": getattr(call, "arguments", None)}


def is_right(reply: Reply, expected: Message) -> bool:
    """Exactly the expected text and tool calls."""
    calls = [call["function"] for call in expected.get("tool_calls", [])]
    return reply == (expected["content"].strip(), calls)


def accuracy(
    backend: Backend, name: str, count: int, seed: int, thinking: bool, show: int = 0
) -> float:
    """Share of right answers in one group, in percent."""
    examples = draw_group(name, count, seed)
    if not thinking:
        examples = [example.without_thinking() for example in examples]
    replies = backend(examples, MAX_TOKENS)
    right = [is_right(r, e.answer) for r, e in zip(replies, examples, strict=True)]
    wrong = [
        pair for pair, ok in zip(zip(replies, examples, strict=True), right, strict=True) if not ok
    ]
    for reply, example in wrong[:show]:
        print(f"  {example.prompt[-1]['content']!r}: {reply}, not {example.answer}")
    return 100 * sum(right) / len(right)


def table(
    backends: dict[str, Backend],
    names: list[str],
    count: int,
    seed: int,
    modes: list[bool],
    show: int,
) -> None:
    """Print one line a group: each backend with and without thinking, in percent."""
    columns = [(label, mode) for label in backends for mode in modes]
    heads = [f"{label}, {'thinking' if mode else 'direct'}" for label, mode in columns]
    print("| group | " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * len(heads))
    for name in names:
        cells = [
            accuracy(backends[label], name, count, seed, mode, show) for label, mode in columns
        ]
        print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[], help="folder or name to load")
    parser.add_argument("--checkpoint", type=Path, help="a training checkpoint, run in torch")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer.json"))
    parser.add_argument("--bits", type=int, nargs="+", default=[16], help="for --checkpoint")
    parser.add_argument("--count", type=int, default=100, help="prompts in a group")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--groups", default="", help="only groups whose name contains this")
    parser.add_argument("--modes", choices=("both", "thinking", "direct"), default="both")
    parser.add_argument("--temperature", type=float, default=0.0, help="negative: the model's own")
    parser.add_argument("--show", type=int, default=0, help="print this many wrong answers a group")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    backends: dict[str, Backend] = {}
    for folder in arguments.model:
        temperature = arguments.temperature if arguments.temperature >= 0 else None
        backends[Path(folder).name] = runtime_backend(folder, temperature)
    if arguments.checkpoint:
        from batched import torch_backend

        temperature = arguments.temperature if arguments.temperature >= 0 else 0.6
        for bits in arguments.bits:
            backends[f"{bits} bits"] = torch_backend(
                arguments.checkpoint, arguments.tokenizer, bits, temperature
            )
    names = [name for name in GROUPS if arguments.groups in name]
    modes = {"both": [True, False], "thinking": [True], "direct": [False]}[arguments.modes]
    started = time.monotonic()
    table(backends, names, arguments.count, arguments.seed, modes, arguments.show)
    print(
        f"\n{arguments.count} prompts a cell, seed {arguments.seed}, "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
