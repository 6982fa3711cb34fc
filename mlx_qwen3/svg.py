"""SVG by hand: text, lines and boxes, which every browser and notebook shows.

Nothing needs to be installed for it, and the file of a picture is the same for the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

INK, FAINT, GRID, POINT = "#1f2933", "#616e7c", "#e4e7eb", "#2563a8"
# Light to dark for shares from 0 to 1.
_SHADES = ("#f3f7fc", "#d5e4f3", "#a9cbe9", "#74aada", "#4285c2", "#245f9e", "#143e6d")
_STYLE = (
    "text { font: 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; "
    f"fill: {INK} }} .faint {{ fill: {FAINT} }} .white {{ fill: #ffffff }} "
    ".title { font-size: 15px; font-weight: 600 }"
)


@dataclass(frozen=True)
class Axis:
    """Values between low and high to pixels between start and end."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False
    ) -> Axis:
        """With some room on either side of the values, which are positive if logarithmic."""
        low, high = (min(values), max(values)) if values else (1.0, 2.0)
        if logarithmic:
            room = (high / low) ** 0.12 if high > low else 2.0
            return cls(low / room, high * room, start, end, True)
        room = 0.12 * (high - low) or 0.5 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        scale: Callable[[float], float] = math.log if self.logarithmic else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values along the axis."""
        if not self.logarithmic:
            return self._even_ticks()
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        digits = (1,) if last - first > 4 else (1, 2, 5)
        every = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        return [value for value in every if self.low <= value <= self.high]

    def _even_ticks(self) -> list[float]:
        raw = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(raw))
        step = power * next(digit for digit in (1, 2, 5, 10) if digit * power >= raw)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    """A whole picture on white."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}">\n<style>{_STYLE}</style>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    """Words on a baseline. kind: "faint", "white", "title" or nothing."""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, color: str = GRID) -> str:
    """A thin line."""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{color}" fill="none"/>'


def curve(points: Sequence[tuple[float, float]], color: str = POINT, *, dashed: bool = True) -> str:
    """Points joined by a line; nothing for fewer than two."""
    if len(points) < 2:
        return ""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<path d="M{path}" stroke="{color}" fill="none"{dashes}/>'


def dot(x: float, y: float, hint: str, color: str = POINT) -> str:
    """A point; the hint shows under the mouse."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}">{_hint(hint)}</circle>'


def box(x: float, y: float, width: float, height: float, share: float, hint: str) -> str:
    """A box, the darker the larger its share of 0 to 1."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" '
        f'fill="{shade(share)}">{_hint(hint)}</rect>'
    )


def shade(share: float) -> str:
    """The colour of a share from 0 to 1."""
    return _SHADES[round(min(max(share, 0.0), 1.0) * (len(_SHADES) - 1))]


def on_shade(share: float) -> str:
    """The kind of text that can be read on it."""
    return "white" if share > 0.6 else ""


def frame(x: Axis, y: Axis) -> list[str]:
    """A plot's grid, its lower axis and the figures along both."""
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts += [
            line(x.start, at, x.end, at, GRID),
            text(x.start - 8, at + 4, f"{value:g}", "faint", anchor="end"),
        ]
    for value in x.ticks():
        at = x.at(value)
        parts += [
            line(at, y.start, at, y.start + 5, FAINT),
            text(at, y.start + 20, f"{value:g}", "faint", anchor="middle"),
        ]
    return [*parts, line(x.start, y.start, x.end, y.start, FAINT)]


def _hint(words: str) -> str:
    return f"<title>{escape(words)}</title>"
