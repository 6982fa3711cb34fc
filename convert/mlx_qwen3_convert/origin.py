"""Where a checkpoint came from, as its model card will say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_qwen3 import hub, releases


@dataclass(frozen=True)
class Origin:
    """name: a repo id, or a folder's own name; revision: the commit, where it is known."""

    name: str
    revision: str | None = None
    is_repo: bool = False


def name_of(source: str) -> str:
    """The name that `origin_of` will find for what a user wrote, without looking it up."""
    if Path(source).exists():
        return origin_of(source).name
    known, gguf = releases.known(source), hub.GGUF_FILE.fullmatch(source)
    if gguf is not None:
        return gguf[1]
    return known.repo if known else source


def origin_of(source: str | Path, name: str | None = None) -> Origin:
    """The origin of a folder or file. name: what to call it where it tells nothing itself.

    A folder of the Hugging Face cache says which repository and commit it is; of any other only
    the last part of the path is told, since cards are published.
    """
    path = Path(source).absolute()
    for folder in (path, *path.parents):
        repo = folder.parent.parent.name
        if folder.parent.name == "snapshots" and repo.startswith("models--"):
            commit = folder.name if hub.COMMIT.fullmatch(folder.name) else None
            return Origin(repo.removeprefix("models--").replace("--", "/", 1), commit, True)
    return Origin(name or path.resolve().name)
