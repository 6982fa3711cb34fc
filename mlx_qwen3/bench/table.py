"""A report as rows of words: a figure each, a column for each side, then the ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from mlx_qwen3.bench.graph import Kernels
from mlx_qwen3.bench.measure import PROBE
from mlx_qwen3.bench.report import LengthReport, Report, SideReport, length_ratios, ratios
from mlx_qwen3.bench.stats import Spread

Row = list[str]


def seconds_text(spread: Spread) -> str:
    """ "1.23 s (1.20 to 1.41)", or in ms."""
    return _text(spread, "s", 1) if spread.median >= 1 else _text(spread, "ms", 1e3)


def rate_text(spread: Spread) -> str:
    """ "12.3 tokens/s (11.9 to 12.4)"."""
    return _text(spread, "tokens/s", 1)


def ratio_text(spread: Spread) -> str:
    """ "2.41 (2.38 to 2.44)"."""
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def size_text(size: float) -> str:
    """ "351.2 MB"."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _text(spread: Spread, unit: str, factor: float) -> str:
    """The median, and the spread where there is one; three digits."""
    median, low, high = (
        f"{value * factor:.0f}" if value * factor >= 1e3 else f"{value * factor:#.3g}".rstrip(".")
        for value in (spread.median, spread.low, spread.high)
    )
    return f"{median} {unit}" + (f" ({low} to {high})" if spread.count > 1 else "")


_Format = Callable[[Spread], str]
_TURN_ROWS: Mapping[str, tuple[str, _Format]] = {
    "load_seconds": ("load", seconds_text),
    "first_token_seconds": (f"first token, warm ({PROBE} tokens read)", seconds_text),
    "step_seconds": ("one step, not overlapped", seconds_text),
    "step_host_seconds": ("  host: builds it, hands it over", seconds_text),
    "step_device_seconds": ("  the rest: device", seconds_text),
}
_LENGTH_ROWS: Mapping[str, tuple[str, _Format]] = {
    "first_token_seconds": ("  first token", seconds_text),
    "prefill_tokens_per_second": ("  prefill", rate_text),
    "decode_tokens_per_second": ("  decode", rate_text),
}


def table(report: Report) -> Iterator[Row]:
    """Rows of 1 + sides + (sides - 1) cells."""
    sides = report.sides
    *others, base = sides
    blank = [""] * len(others)
    compared = [ratios(side.values, base.values) for side in others]
    for name, (label, show) in _TURN_ROWS.items():
        cells = [show(Spread.of(side.values[name])) for side in sides]
        yield [label, *cells, *(ratio_text(one[name]) for one in compared)]
        if name == "load_seconds":
            yield [f"first token, cold ({PROBE} tokens read)", *map(_cold, sides), *blank]
    for label, cell in _SIDE_ROWS.items():
        yield [label, *map(cell, sides), *blank]
    for index in range(len(base.lengths)):
        yield from _length_rows(report, index)


def _length_rows(report: Report, index: int) -> Iterator[Row]:
    lengths = [side.lengths[index] for side in report.sides]
    *others, base = lengths
    blank = [""] * len(others)
    asked = base.asked
    yield [
        f"{asked.prompt} tokens read, {asked.tokens} written",
        *(_length_text(one) for one in lengths),
        *blank,
    ]
    compared = [length_ratios(one, base) for one in others]
    for name, (label, show) in _LENGTH_ROWS.items():
        cells = [show(Spread.of(one.values[name])) for one in lengths]
        found = [ratio_text(one[name]) if name in one else "" for one in compared]
        yield [label, *cells, *found]
    sides = report.sides
    pairs = list(zip(sides, lengths, strict=True))
    for part in ("prefill", "decode"):
        peaks = [_peak(side, one, getattr(one, f"{part}_peak")) for side, one in pairs]
        yield [f"  peak in {part} / (weights + KV)", *peaks, *blank]
    yield ["  read per token", *(size_text(one.read) for one in lengths), *blank]
    shares = [f"{report.bandwidth_share(side, index):.1%}" for side in sides]
    yield ["  of the memory's bandwidth", *shares, *blank]
    if any(one.traffic is not None for one in lengths):
        yield ["  experts found in memory", *map(_hit_rate, lengths), *blank]
        yield ["  experts read per token", *map(_disk_bytes, lengths), *blank]


def _length_text(one: LengthReport) -> str:
    return f"{one.length.prompt} read, {one.length.tokens} written" if one.reduced else ""


def _hit_rate(one: LengthReport) -> str:
    return "all" if one.traffic is None else f"{one.traffic.hit_rate:.1%}"


def _disk_bytes(one: LengthReport) -> str:
    return size_text(one.disk_bytes_per_token or 0)


def _peak(side: SideReport, one: LengthReport, peak: int) -> str:
    return f"{peak / (side.weights.nbytes + one.kv_bytes):.2f} ({size_text(peak)})"


def _cold(side: SideReport) -> str:
    return seconds_text(Spread.of([side.cold_first_token]))


def _kernels(side: SideReport, part: Callable[[Kernels], float]) -> str:
    return "" if side.kernels is None else f"{part(side.kernels):g}"


_SIDE_ROWS: Mapping[str, Callable[[SideReport], str]] = {
    "kernels per layer": lambda side: _kernels(side, lambda found: found.per_layer),
    "kernels per step": lambda side: _kernels(side, lambda found: found.total),
    "weights": lambda side: size_text(side.weights.nbytes),
    "peak while loading / weights": lambda side: (
        f"{side.load_peak / side.weights.nbytes:.2f} ({size_text(side.load_peak)})"
    ),
}


def reductions(report: Report) -> Iterator[str]:
    """A sentence for every length that a slow runner was given less of."""
    for side in report.sides:
        for one in side.lengths:
            if one.reduced:
                yield (
                    f"{side.name} would take too long: it read {one.length.prompt} tokens instead "
                    f"of {one.asked.prompt} and wrote {one.length.tokens} instead of "
                    f"{one.asked.tokens}; rates are compared all the same"
                )
