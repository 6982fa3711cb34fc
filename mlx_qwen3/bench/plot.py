"""The picture of a report: prefill and decode rates over prompt lengths, under the roofline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mlx_qwen3.bench.report import Report, SideReport
from mlx_qwen3.svg import POINT, Axis, curve, dot, frame, svg, text

_PANEL, _HEIGHT = 420, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 92, 56  # margins in pixels
_COLORS = (POINT, "#c2571a", "#3f7d4e")
_PANELS = {"prefill_tokens_per_second": "Prefill", "decode_tokens_per_second": "Decode"}

Points = list[tuple[float, float]]  # (prompt tokens, tokens/s)


def draw(report: Report, label: str) -> str:
    """An SVG: one panel for prefill, one for decode, a colour for each side.

    Dashed: what decoding could reach if it only had to read its weights, keys and values.
    """
    parts = [text(_LEFT, 28, label, "title")]
    for index, side in enumerate(report.sides):
        x = _LEFT + 8 + 150 * index
        parts += [dot(x, 48, side.name, _COLORS[index]), text(x + 10, 52, side.name)]
    for index, (figure, title) in enumerate(_PANELS.items()):
        parts += _panel(report, figure, title, index * _PANEL)
    return svg(len(_PANELS) * _PANEL, _HEIGHT, parts)


def _panel(report: Report, figure: str, title: str, left: float) -> list[str]:
    measured = [_points(side, figure) for side in report.sides]
    decode = figure.startswith("decode")
    roofs = [_roof(report, side) for side in report.sides] if decode else [[] for _ in measured]
    every = [point for points in (*measured, *roofs) for point in points]
    x = Axis.around(
        [point[0] for point in every], left + _LEFT, left + _PANEL - _RIGHT, logarithmic=True
    )
    y = Axis.around([point[1] for point in every], _HEIGHT - _BOTTOM, _TOP, logarithmic=True)
    parts = [
        *frame(x, y),
        text(left + _LEFT, _TOP - 10, f"{title}, tokens/s", "faint"),
        text(left + _PANEL - _RIGHT, _HEIGHT - 14, "tokens in the prompt", "faint", anchor="end"),
    ]
    for index, (points, roof) in enumerate(zip(measured, roofs, strict=True)):
        name, color = report.sides[index].name, _COLORS[index]
        parts.append(curve(_placed(roof, x, y), color))
        parts.append(curve(_placed(points, x, y), color, dashed=False))
        for (tokens, rate), place in zip(points, _placed(points, x, y), strict=True):
            parts.append(dot(*place, f"{name}: {rate:.4g} tokens/s at {tokens:g} tokens", color))
    return parts


def _points(side: SideReport, figure: str) -> Points:
    """Where a slow runner got shorter prompts, those; each length once."""
    found = {
        float(one.length.prompt): statistics.median(one.values[figure]) for one in side.lengths
    }
    return sorted(found.items())


def _roof(report: Report, side: SideReport) -> Points:
    found = {
        float(one.length.prompt): report.bandwidth.bytes_per_second / one.read
        for one in side.lengths
    }
    return sorted(found.items())


def _placed(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> Points:
    return [(x.at(tokens), y.at(rate)) for tokens, rate in points]
