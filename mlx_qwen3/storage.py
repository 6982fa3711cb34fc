"""Where this package keeps what it can make again: its own cache folder.

Downloads are huggingface_hub's and lie where `hub.cache_folder` says.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def storage_folder(
    kind: str, environment: Mapping[str, str] = os.environ, system: str = sys.platform
) -> Path:
    """The folder for one kind of files ("tokenizers"); it need not exist yet.

    MLX_QWEN3_CACHE names the parent; else it is ~/Library/Caches/mlx-qwen3 on macOS and
    $XDG_CACHE_HOME/mlx-qwen3 (~/.cache/mlx-qwen3) elsewhere. system: sys.platform.
    """
    chosen = environment.get("MLX_QWEN3_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen)) / kind
    usual = "~/Library/Caches" if system == "darwin" else "~/.cache"
    home = (system != "darwin" and environment.get("XDG_CACHE_HOME")) or usual
    return Path(os.path.expanduser(home)) / "mlx-qwen3" / kind
