"""The two pictures: quality against size, and how sensitive the parts of a model are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_qwen3.model.linear import Quantization
from mlx_qwen3.svg import Axis, box, curve, dot, frame, on_shade, svg, text
from mlx_qwen3_convert.auto import Choice, Measured, write_recipe
from mlx_qwen3_convert.formats import describe
from mlx_qwen3_convert.groups import EMBED, Group
from mlx_qwen3_convert.sensitivity import Sensitivity

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 30, 56, 56  # margins in pixels
_CELL, _ROW = 92, 22


@dataclass(frozen=True)
class Point:
    """One checkpoint: its size, and what it loses (smaller is better)."""

    name: str
    size: float
    loss: float


def quality_plot(points: Sequence[Point], *, size: str, loss: str) -> str:
    """Checkpoints by size, to the right, and loss, upwards. size, loss: the axes' titles.

    The dashed line joins those that nothing smaller beats. Losses far apart get a logarithmic
    axis, where those of 0 (a model against itself) cannot be shown and are left out.
    """
    positive = [point for point in points if point.loss > 0]
    losses = [point.loss for point in positive]
    wide = len(losses) > 1 and max(losses) > 4 * min(losses)
    shown = positive if wide else list(points)
    x = Axis.around([point.size for point in shown], _LEFT, _WIDTH - _RIGHT)
    y = Axis.around([point.loss for point in shown], _HEIGHT - _BOTTOM, _TOP, logarithmic=wide)
    at = {point: (x.at(point.size), y.at(point.loss)) for point in shown}
    return svg(
        _WIDTH,
        _HEIGHT,
        [
            text(_LEFT, 28, f"{loss.partition(',')[0]} against size", "title"),
            *frame(x, y),
            text(_WIDTH - _RIGHT, _HEIGHT - 14, size, "faint", anchor="end"),
            text(_LEFT, _TOP - 8, loss, "faint"),
            curve([at[point] for point in best(shown)]),
            *_labelled(at),
        ],
    )


def best(points: Iterable[Point]) -> list[Point]:
    """Those that no other of their size or smaller beats, by size."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size, point.loss)):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def _labelled(at: Mapping[Point, tuple[float, float]]) -> list[str]:
    """Dots with names: above right, or on the left of a dot near the right edge.

    A name that would lie on an earlier one goes below its dot.
    """
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for point, (x, y) in sorted(at.items(), key=lambda item: item[1]):
        length = 6.6 * len(point.name)
        start = x - length - 8 if x + length + 8 > _WIDTH - 4 else x + 8
        base = next(
            (
                y + shift
                for shift in (-7, 15, 29, -21)
                if not any(
                    abs(y + shift - other) < 13 and start < right and left < start + length
                    for left, right, other in taken
                )
            ),
            y - 7,
        )
        taken.append((start, start + length, base))
        parts.append(dot(x, y, f"{point.name}: {point.size:g}, {point.loss:.4g}"))
        parts.append(text(start, base, point.name))
    return parts


def sensitivity_plot(
    sensitivities: Sequence[Sensitivity], choice: Choice | None = None, *, title: str
) -> str:
    """Layers down, parts across; darker is more sensitive, words are the formats chosen.

    The shade is the logarithm of the divergence in one format: of those that every part was
    measured in, the one closest to four bits.
    """
    stored = _compared(sensitivities)
    costs = {found.group: found.costs.get(stored, 0.0) for found in sensitivities}
    parts = list(dict.fromkeys(group.part for group in costs if group.layer is not None))
    layers = max((group.layer for group in costs if group.layer is not None), default=-1) + 1
    share = _shares(costs)
    left, top = 70, 90
    cells = []
    places = [_place(group, parts, layers) for group in costs]
    for (group, cost), (row, column, width) in zip(costs.items(), places, strict=True):
        x, y = left + column * _CELL, top + row * _ROW
        word = f"{cost:.2g}" if choice is None else describe(choice.formats[group])
        hint = f"{group.name}: {cost:.3g} nats per token at {describe(stored)}"
        cells.append(box(x, y, width * _CELL - 2, _ROW - 2, share[group], hint))
        middle = x + (width * _CELL - 2) / 2
        cells.append(text(middle, y + 14, word, on_shade(share[group]), anchor="middle"))
        if column == 0:
            name = group.part if group.layer is None else str(group.layer)
            cells.append(text(left - 8, y + 14, name, "faint", anchor="end"))
    said = f"KL divergence with only this part at {describe(stored)}: "
    said += f"{min(costs.values()):.2g} (light) to {max(costs.values()):.2g} nats per token (dark)"
    heads = [
        text(left + (index + 0.5) * _CELL, top - 8, part, "faint", anchor="middle")
        for index, part in enumerate(parts)
    ]
    wide = max(left + len(parts) * _CELL + 20, 40 + 6.2 * len(said), 40 + 8.6 * len(title))
    height = top + (max(row for row, _, _ in places) + 1) * _ROW + 10
    head = [text(20, 28, title, "title"), text(20, 50, said, "faint")]
    return svg(wide, height, [*head, *heads, *cells])


def write_reasons(choice: Choice, measured: Measured, folder: Path) -> None:
    """Beside the weights of a conversion: recipe.json, and sensitivities.svg that explains it."""
    write_recipe(choice.recipe, folder / "recipe.json")
    title = f"{folder.name}: sensitivities, and formats at {choice.bits_per_weight:.2f} bits"
    picture = sensitivity_plot(measured.sensitivities, choice, title=title)
    (folder / "sensitivities.svg").write_text(picture, encoding="utf-8")


def _place(group: Group, parts: Sequence[str], layers: int) -> tuple[int, int, int]:
    """(row, column, columns wide): the embedding above the layers and the head below them."""
    if group.layer is None:
        return (0 if group.part == EMBED else layers + 1), 0, max(len(parts), 1)
    return group.layer + 1, parts.index(group.part), 1


def _compared(sensitivities: Sequence[Sensitivity]) -> Quantization:
    """The format to compare the parts in."""
    counts: dict[Quantization, int] = {}
    for found in sensitivities:
        for stored in found.costs:
            counts[stored] = counts.get(stored, 0) + 1
    return max(counts, key=lambda stored: (counts[stored], -abs(stored.bits - 4)))


def _shares(costs: Mapping[Group, float]) -> dict[Group, float]:
    """0 for the least sensitive, 1 for the most, by the logarithm."""
    floor = max(max(costs.values()) * 1e-4, 1e-12)
    logs = {group: math.log(max(cost, floor)) for group, cost in costs.items()}
    low, high = min(logs.values()), max(logs.values())
    return {group: (value - low) / (high - low or 1.0) for group, value in logs.items()}
