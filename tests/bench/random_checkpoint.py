"""A checkpoint of a release's shape with random weights, on disk.

    python tests/bench/random_checkpoint.py 0.6b --bits 4 --out /tmp/shape-0.6b

With --bits 16 or 32 it has the layout of the published ones, to convert.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlx_qwen3.bench.shapes import FLOATS, shape_config, write_checkpoint
from mlx_qwen3.releases import find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="fewer layers than the release has")
    arguments = parser.parse_args()
    config = shape_config(find(arguments.release).release, layers=arguments.layers)
    published = arguments.bits in FLOATS
    print(write_checkpoint(config, arguments.bits, arguments.out, published=published))


if __name__ == "__main__":
    main()
