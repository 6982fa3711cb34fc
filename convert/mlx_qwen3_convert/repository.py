"""A repository seen from outside: its files, their sizes, and the headers of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlx_qwen3 import hub, releases
from mlx_qwen3.errors import ModelNotFoundError, OptionError, WeightsError
from mlx_qwen3.model.checkpoint import TensorInfo

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """nbytes: its size. sha256: of its content, None where the hub does not say."""

    nbytes: int
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """One revision of a repository. commit: which one; files: by name."""

    repo: str
    commit: str
    files: Mapping[str, RemoteFile]


def find_repository(name: str, revision: str | None = None) -> Repository:
    """The repository of a short name or a repo id, as it is on the hub now.

    Raises OptionError for what is no repository, ModelNotFoundError when it cannot be reached.
    """
    known = releases.known(name)
    repo = known.repo if known else name
    if not hub.REPOSITORY.fullmatch(repo) or Path(name).exists():
        raise OptionError(f"{name} is no repository; streaming needs one, such as Qwen/Qwen3-8B")
    if hub.offline():
        raise ModelNotFoundError(f"{repo} is on the hub and HF_HUB_OFFLINE is set; unset it")
    return _ask(repo, revision, lambda api: _list(api, repo, revision))


def _list(api: Any, repo: str, revision: str | None) -> Repository:
    commit = api.model_info(repo, revision=revision).sha
    found = api.list_repo_tree(repo, recursive=True, revision=commit)
    files = {
        entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in found
        if hasattr(entry, "size")  # a folder has none
    }
    return Repository(repo, commit, files)


def read_remote_header(repository: Repository, name: str, file: Path) -> dict[str, TensorInfo]:
    """A safetensors file's tensors, from its first bytes alone. file: where it will lie.

    Raises WeightsError when it is none, ModelNotFoundError when it cannot be reached.
    """
    repo, commit = repository.repo, repository.commit
    parsed = _ask(
        repo, commit, lambda api: api.parse_safetensors_file_metadata(repo, name, revision=commit)
    )
    tensors = {
        name: TensorInfo(file, info.dtype, tuple(info.shape), end - start, start)
        for name, info in parsed.tensors.items()
        for start, end in [info.data_offsets]
    }
    return _from_start_of_file(tensors, repository.files[name].nbytes, f"{repo}/{name}")


def _from_start_of_file(
    tensors: Mapping[str, TensorInfo], size: int, said: str
) -> dict[str, TensorInfo]:
    """Offsets counted from the file's start: its data reach to its end, by the format's rule."""
    end = max((info.offset + info.nbytes for info in tensors.values()), default=0)
    data = size - end
    if data < 8:
        raise WeightsError(f"{said}: {size} bytes, its header promises more; it is cut short there")
    return {
        name: TensorInfo(info.file, info.dtype, info.shape, info.nbytes, data + info.offset)
        for name, info in tensors.items()
    }


def _ask(repo: str, revision: str | None, question: Callable[[Any], T]) -> T:
    """Ask huggingface_hub; what it raises becomes one line."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        return question(HfApi())
    except SafetensorsParsingError as error:
        raise WeightsError(f"{repo}: {str(error).splitlines()[0]}") from error
    except Exception as error:
        raise hub.explain(error, repo, revision) from error
