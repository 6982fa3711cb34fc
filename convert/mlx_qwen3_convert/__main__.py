"""python -m mlx_qwen3_convert SRC --out DIR: the same as `mlx-qwen3 convert`."""

import sys

from mlx_qwen3.cli import run

if __name__ == "__main__":
    sys.exit(run(["convert", *sys.argv[1:]]))
