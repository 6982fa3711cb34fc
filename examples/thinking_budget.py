"""How much thinking helps: accuracy of the demo model against its thinking budget, as SVG.

    python examples/thinking_budget.py --count 40 --plot thinking-budget.svg --json numbers.json

Sums and differences of two to four digits that the model was not trained on, drawn greedily. At
the budget its thought is ended by Qwen's early stop, and it has to answer from what it has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "train_demo_model"))

from chat import Example
from groups import draw_group

from mlx_qwen3 import LLM, load
from mlx_qwen3_convert import svg

BUDGETS = (0, 16, 32, 48, 64, 80, 96, 112, 128, 144)
OPERATIONS = {"addition": "#2563a8", "subtraction": "#b4500f"}
DIGITS = (2, 3, 4)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 60, 110, 56, 56


@dataclass(frozen=True)
class Figure:
    """accuracy: per cent right. thinking_tokens: used on average, the early stop's words too."""

    operation: str
    budget: int
    accuracy: float
    thinking_tokens: float


@dataclass(frozen=True)
class Trial:
    right: bool
    thinking_tokens: int


def ask(llm: LLM, example: Example, budget: int | None) -> Trial:
    done = llm.generate(
        list(example.prompt), thinking_budget=budget, temperature=0.0, max_tokens=400
    )
    return Trial(done.text.strip() == example.answer["content"], done.usage.thinking_tokens)


def trials(llm: LLM, example: Example, budgets: Sequence[int]) -> list[Trial]:
    """One for each budget; those that a whole thought fits are all alike."""
    whole = ask(llm, example, None)
    return [whole if whole.thinking_tokens <= b else ask(llm, example, b) for b in budgets]


def measure(llm: LLM, operation: str, count: int, seed: int) -> list[Figure]:
    """count: prompts, as many of each length as of the others."""
    examples = [
        example
        for digits in DIGITS
        for example in draw_group(f"{operation}, {digits} digits", count // len(DIGITS), seed)
    ]
    rows = [trials(llm, example, BUDGETS) for example in examples]
    figures = []
    for budget, column in zip(BUDGETS, zip(*rows, strict=True), strict=True):
        right = 100 * sum(trial.right for trial in column) / len(column)
        used = sum(trial.thinking_tokens for trial in column) / len(column)
        figures.append(Figure(operation, budget, right, used))
        print(f"{operation:12s} budget {budget:4d}: {right:5.1f} % right, {used:6.1f} tokens used")
    return figures


def plot(figures: Sequence[Figure], title: str) -> str:
    x = svg.Axis(0, BUDGETS[-1], LEFT, WIDTH - RIGHT)
    y = svg.Axis(0, 100, HEIGHT - BOTTOM, TOP)
    parts = [svg.text(LEFT, 28, title, "title"), svg.text(LEFT, TOP - 10, "% right", "faint")]
    for value in (0, 25, 50, 75, 100):
        parts.append(svg.line(x.start, y.at(value), x.end, y.at(value)))
        parts.append(svg.text(x.start - 8, y.at(value) + 4, f"{value}", "faint", anchor="end"))
    parts += [
        svg.text(x.at(value), y.start + 20, f"{value}", "faint", anchor="middle")
        for value in BUDGETS[::2]
    ]
    name = "thinking budget, tokens"
    parts.append(svg.text(x.end, HEIGHT - 14, name, "faint", anchor="end"))
    for operation, color in OPERATIONS.items():
        own = [figure for figure in figures if figure.operation == operation]
        points = [(x.at(figure.budget), y.at(figure.accuracy)) for figure in own]
        parts.append(svg.curve(points, color))
        parts += [
            svg.dot(*point, f"{operation}, {figure.budget} tokens: {figure.accuracy:.1f} %", color)
            for point, figure in zip(points, own, strict=True)
        ]
        parts.append(svg.text(points[-1][0] + 10, points[-1][1] + 4, operation))
    return svg.svg(WIDTH, HEIGHT, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--count", type=int, default=40, help="prompts of each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    llm = load(arguments.model)
    figures = [
        figure
        for operation in OPERATIONS
        for figure in measure(llm, operation, arguments.count, arguments.seed)
    ]
    if arguments.plot:
        arguments.plot.write_text(plot(figures, "Accuracy against thinking"), encoding="utf-8")
    if arguments.json:
        rows = [asdict(figure) for figure in figures]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
