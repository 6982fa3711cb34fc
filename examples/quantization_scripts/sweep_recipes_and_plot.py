"""Which recipe for this model? python sweep_recipes_and_plot.py MODEL PICTURE.svg [RECIPE ...]

MODEL: an unquantized checkpoint that fits in memory, as a folder, a short name or a repo id.
Nothing is converted: each recipe is tried on the loaded model and compared with it as it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlx_qwen3 import Qwen3Error
from mlx_qwen3.hub import resolve
from mlx_qwen3_convert.auto import find_auto
from mlx_qwen3_convert.calibration import EVALUATION, read_text
from mlx_qwen3_convert.compare import compare
from mlx_qwen3_convert.mixed import find_any_recipe
from mlx_qwen3_convert.plots import Point, quality_plot

RECIPES = (
    "3bit",
    "4bit",
    "mxfp4",
    "6bit",
    "8bit",
    "mixed-3.5",
    "mixed-4.5",
    "auto-3.5",
    "auto-4.5",
)
TOKENS = 2048  # of the bundled text


def main() -> int:
    model, picture = sys.argv[1], Path(sys.argv[2])
    names = sys.argv[3:] or list(RECIPES)
    try:
        recipes = [find_auto(name) or find_any_recipe(name) for name in names]
        text = read_text(None, EVALUATION)
        measured = compare(resolve(model), recipes, text=text, tokens=TOKENS)[1:]
    except Qwen3Error as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'recipe':<12}{'bits/weight':>12}{'MB':>10}{'KL mean':>10}{'KL 99%':>10}{'top-1':>8}")
    points = []
    for name, (size, score) in zip(names, measured, strict=True):
        apart = score.divergence
        assert apart is not None  # compare always has a reference
        print(
            f"{name:<12}{size.bits_per_weight:>12.2f}{size.nbytes / 1e6:>10.1f}"
            f"{apart.mean:>10.4f}{apart.p99:>10.4f}{apart.top1:>8.1%}"
        )
        points.append(Point(name, size.bits_per_weight, apart.mean))
    drawn = quality_plot(points, size="bits per weight", loss="KL divergence, nats per token")
    picture.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
