"""Convert every model in a folder: python convert_folder.py MODELS/ OUT/ [RECIPE]

What was converted before is left alone, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlx_qwen3 import Qwen3Error
from mlx_qwen3_convert import Options, convert


def main() -> int:
    models, out = Path(sys.argv[1]), Path(sys.argv[2])
    recipe = sys.argv[3] if len(sys.argv) > 3 else None
    failed = 0
    for source in sorted(models.iterdir()):
        target = out / f"{source.stem}-mlx"
        is_model = source.suffix == ".gguf" or (source / "config.json").is_file()
        if not is_model or target.exists():
            continue
        try:
            result = convert(source, target, Options(recipe=recipe))
        except Qwen3Error as error:  # one bad model must not stop the others
            print(f"{source}: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{target}: {result.bits_per_weight:.2f} bits per weight")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
