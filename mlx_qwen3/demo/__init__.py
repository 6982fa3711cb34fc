"""The bundled demo models: small Qwen3 checkpoints trained by examples/train_demo_model.

They ship as data, in folders beside this file, and load like any other checkpoint folder.
"""

from pathlib import Path

from mlx_qwen3.errors import ModelNotFoundError

FOLDERS = {"demo": "dense", "demo-moe": "moe"}


def demo_folder(name: str = "demo") -> Path:
    """The folder of "demo" (dense) or "demo-moe" (mixture of experts).

    Raises ModelNotFoundError for another name, or when the installation lacks the files.
    """
    if name not in FOLDERS:
        raise ModelNotFoundError(f'There is no demo model "{name}": {" or ".join(FOLDERS)}')
    folder = Path(__file__).parent / FOLDERS[name]
    if not has_demo(name):
        raise ModelNotFoundError(
            f'The model "{name}" is missing from this installation (no {folder}/config.json): '
            "reinstall mlx-qwen3, or name another model, such as 0.6b"
        )
    return folder


def has_demo(name: str) -> bool:
    """Whether this installation carries the model."""
    return (Path(__file__).parent / FOLDERS[name] / "config.json").is_file()
