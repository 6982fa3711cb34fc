"""Convert a fine-tune and publish it: python convert_and_upload.py FOLDER OWNER/NAME

Needs a token with write access: `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from mlx_qwen3 import load
from mlx_qwen3_convert import Options, convert


def main() -> None:
    source, repo = sys.argv[1], sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / repo.split("/")[-1]
        convert(source, out, Options(recipe="4bit"), name=source)
        # Hear it speak before others do.
        print(load(out).generate("Hello", max_tokens=40).text)
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=out)


if __name__ == "__main__":
    main()
