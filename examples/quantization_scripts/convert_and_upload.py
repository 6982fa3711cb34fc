"""Convert a fine-tune and publish it: python convert_and_upload.py FOLDER OWNER/NAME

Needs a token with write access: `hf auth login`, or HF_TOKEN. What was converted is kept beside
FOLDER, so that a failed upload is repeated without the conversion.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlx_qwen3 import Qwen3Error, load
from mlx_qwen3_convert import Options, convert, upload
from mlx_qwen3_convert.publish import require_upload


def main() -> int:
    source, repo = Path(sys.argv[1]).absolute(), sys.argv[2]
    out = source.with_name(repo.split("/")[-1])
    try:
        require_upload(repo)  # a missing token is told now, not after the conversion
        if not out.exists():
            convert(source, out, Options(recipe="4bit"))
        # Hear it speak before others do.
        print(load(out).generate("Hello", max_tokens=40).text)
        print(upload(out, repo))
    except Qwen3Error as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
