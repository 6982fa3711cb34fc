"""From the name of a model to its folder.

    resolve("0.6b")                    a short name, see releases.py
    resolve("Qwen/Qwen3-0.6B")         a repository
    resolve("~/models/my-qwen3")       a folder
    resolve("demo")                    the model in the box

What is in the Hugging Face cache and complete is used as it is: no request, and huggingface_hub
is not even imported. All else goes through huggingface_hub, which reads HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN. Finished files are kept, a connection that breaks goes
on in the middle of the file.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen3 import releases
from mlx_qwen3.demo import FOLDERS, demo_folder, has_demo
from mlx_qwen3.errors import ModelNotFoundError, Qwen3Error

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while a download runs, from several threads."""

# What a checkpoint has beside its weights: what it needs, and under which licence it may be used.
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*", "README.md")
# Not *.bin and *.pth (pickles), *.gguf (readable, but another format).
NEEDED_FILES = ("*.safetensors", *SMALL_FILES)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
GGUF_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./-]+\.gguf)", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
MODEL_TYPES = ("qwen3", "qwen3_moe")


def resolve(
    model: str | Path,
    *,
    revision: str | None = None,
    download: bool = True,
    update: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of a model, downloading it first where that is needed and allowed.

    model: a short name, a repository id, a folder, "demo" or "demo-moe". A known name wins
    over a folder of the same name; write "./8b" for the folder.
    revision: branch, tag or commit of a repository; None is "main".
    update: ask for a newer version even when a complete one is in the cache.
    Raises ModelNotFoundError when there is no such model, or it is not here and cannot be had;
    Qwen3Error when the disk is full or not writable.
    """
    name = str(model)
    if isinstance(model, Path) or _is_path(name):
        return _existing_folder(Path(name).expanduser())
    if name.lower() in FOLDERS:
        return demo_folder(name.lower())
    source = releases.known(name)
    if source is None and Path(name).is_dir():
        return Path(name)
    repo = source.repo if source else name
    if not REPOSITORY.fullmatch(repo):
        source = releases.find(name)  # raises, with the closest names
    local = None if update and not offline() else find_local(repo, revision)
    return local or _fetch(repo, revision, download, progress, source)


def _is_path(name: str) -> bool:
    """Whether a string can only be meant as a path: "owner/name" might be a repository."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or Path(name).is_file()


def _existing_folder(path: Path) -> Path:
    if path.is_dir():
        return path
    found = "is a file, a model is a folder" if path.is_file() else "does not exist"
    raise ModelNotFoundError(f"{path} {found}: give a folder with config.json and *.safetensors")


def cache_folder(environment: "os._Environ[str] | dict[str, str]" = os.environ) -> Path:
    """Where huggingface_hub keeps downloads, by its own rules, without importing it."""
    home = environment.get("HF_HOME") or (
        environment.get("XDG_CACHE_HOME", "~/.cache") + "/huggingface"
    )
    chosen = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(chosen or home + "/hub")).expanduser()


def offline() -> bool:
    """Whether the user switched the network off for model downloads."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def find_local(repo: str, revision: str | None = None) -> Path | None:
    """The complete snapshot of a repository in the cache; None when it has to be downloaded."""
    folder = _snapshot(_repo_folder(repo), revision or "main")
    if folder is None or missing_weights(folder):
        return None
    tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
    # It comes after the weights in a download: its presence says that the download got there.
    finished = tokenizer and (folder / "tokenizer_config.json").is_file()
    return folder if finished or offline() else None


def _repo_folder(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def _snapshot(repo_folder: Path, revision: str) -> Path | None:
    """Follow refs/<revision> to snapshots/<commit>, as huggingface_hub lays them out."""
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = (repo_folder / "refs" / revision).read_text().strip()
        except OSError:
            return None
    folder = repo_folder / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def missing_weights(folder: Path) -> list[str]:
    """Files that a checkpoint folder should have and has not; empty when it can be loaded."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [] if any(folder.glob("*.safetensors")) else ["*.safetensors"]
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return [index.name]
    return sorted(shard for shard in shards if not (folder / shard).is_file())


def _fetch(
    repo: str,
    revision: str | None,
    download: bool,
    progress: Progress | None,
    source: releases.Source | None,
) -> Path:
    """Download a repository, or say why not."""
    if not download:
        raise ModelNotFoundError(f"{repo} is not downloaded: run `mlx-qwen3 pull {repo}`")
    if offline():
        raise ModelNotFoundError(
            f"{repo} is not downloaded and HF_HUB_OFFLINE is set: unset it to download, "
            "or give the folder of a model"
        )
    if source:
        refuse_without_space(repo, source.size)
    folder = download_files(repo, NEEDED_FILES, revision=revision, progress=progress)
    missing = missing_weights(folder)
    if missing:
        others = _gguf_files(repo, revision)
        hint = f"; it has GGUF files: `mlx-qwen3 convert {repo}/{others[0]}`" if others else ""
        raise ModelNotFoundError(
            f"{repo} has no {missing[0]}: this needs a repository in safetensors format{hint}"
        )
    return folder


def _gguf_files(repo: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi

    try:
        names = sorted(HfApi().list_repo_files(repo, revision=revision))
    except Exception as error:
        raise explain(error, repo, revision) from error
    return [name for name in names if name.endswith(".gguf")]


def resolve_gguf(
    repo: str, name: str, *, revision: str | None = None, progress: Progress | None = None
) -> Path:
    """A GGUF file of a repository, with all parts of a split one, downloaded where need be.

    Raises as `resolve`.
    """
    every = re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", r"-*\1", name)
    there = _snapshot(_repo_folder(repo), revision or "main")
    # A split one is asked for anew: which of its parts are here is not known.
    if there is not None and every == name and (there / name).is_file():
        return there / name
    if offline():
        raise ModelNotFoundError(f"{repo}/{name} is not downloaded and HF_HUB_OFFLINE is set")
    found = _gguf_files(repo, revision)
    if name not in found:
        names = ", ".join(found) or "none"
        raise ModelNotFoundError(f"{repo} has no {name}; its GGUF files: {names}")
    return download_files(repo, [every], revision=revision, progress=progress) / name


def refuse_without_space(repo: str, needed: int) -> None:
    """Raise Qwen3Error when `needed` bytes, less what is there already, exceed the free disk."""
    cache = cache_folder()
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed - _size(_repo_folder(repo) / "blobs") > free:
        raise Qwen3Error(
            f"{repo} needs {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free: "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def download_files(
    repo: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download the files whose names match, and return the folder they are in.

    folder: one of the caller's own; None is the cache. Raises ModelNotFoundError, Qwen3Error.
    """
    # In a thread, so that Ctrl-C is felt at once and not after the file.
    stop = threading.Event()
    pool = ThreadPoolExecutor(1, thread_name_prefix="mlx-qwen3-download")
    what: dict[str, Any] = {"allow_patterns": list(patterns), "local_dir": folder}
    job = pool.submit(_snapshot_download, repo, revision, _bar_class(progress, stop), what)
    try:
        return job.result()
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=False)


def _snapshot_download(repo: str, revision: str | None, bar: Any, what: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, tqdm_class=bar, **what))
    except Exception as error:
        raise explain(error, repo, revision) from error


class _StoppedError(Exception):
    """Raised in the download's threads to end them."""


def _bar_class(progress: Progress | None, stop: threading.Event) -> type[Any]:
    """A tqdm that draws nothing, reports bytes to `progress` and ends its thread on `stop`."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    base: Any = tqdm

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # The bar of this name counts the bytes of all files; others count files, or only
            # what came over the network.
            self._counts = kwargs.pop("name", None) == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "disable": True})
            self.n = kwargs.get("initial", 0)
            self.total = kwargs.get("total") or 0

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise _StoppedError
            self.n += n or 0
            if progress and self._counts:
                progress(int(self.n), int(self.total))

    return Bar


def explain(error: Exception, repo: str, revision: str | None = None) -> Qwen3Error:
    """Turn what huggingface_hub raises into one line that says what to do."""
    from huggingface_hub import errors

    site = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    unreachable = f"{repo} is not downloaded and {site} cannot be reached"
    # The order matters: the first is a kind of the second, and most are kinds of the fifth.
    messages: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"{repo} asks for an agreement first: accept it on {site}/{repo}, then set HF_TOKEN "
            "or run `hf auth login`",
        ),
        (
            errors.RepositoryNotFoundError,
            f"There is no repository {repo} on {site}: check the spelling, `mlx-qwen3 models` "
            "lists what is known; a private one needs HF_TOKEN",
        ),
        (errors.RevisionNotFoundError, f"{repo} has no revision {revision}"),
        (
            errors.LocalEntryNotFoundError,
            f"{unreachable}: connect to the network and run it again, or give a folder",
        ),
    ]
    cause = error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) and hasattr(cause, "response"):
        return _explain_transfer(cause, repo, site)  # not here, because the site refused
    for kind, message in messages:
        if isinstance(error, kind):
            return ModelNotFoundError(message)
    return _explain_transfer(error, repo, site)


def _explain_transfer(error: BaseException | None, repo: str, site: str) -> Qwen3Error:
    """The errors of a download that had begun."""
    response = getattr(error, "response", None)
    if response is not None:
        code = response.status_code
        hint = "check HF_TOKEN" if code in (401, 403) else "try again later"
        return ModelNotFoundError(f"{site} answered {code} for {repo}: {hint}")
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        found = "the disk is full" if full else str(error).splitlines()[0]
        return Qwen3Error(
            f"Could not download {repo}: {found}; the cache is {cache_folder()}, set HF_HOME to "
            "move it, finished files are kept"
        )
    if any(base.__name__ == "TransportError" for base in type(error).__mro__):  # httpx, any version
        return ModelNotFoundError(
            f"The connection to {site} broke while downloading {repo}: run it again, finished "
            "files are kept"
        )
    return Qwen3Error(f"Could not download {repo}: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class LocalModel:
    """A Qwen3 model in the cache. size: bytes on disk; complete: it can be loaded."""

    repo: str
    folder: Path
    size: int
    complete: bool


def list_local() -> list[LocalModel]:
    """The Qwen3 models of the cache, by name."""
    return sorted(_cached_models(), key=lambda model: model.repo.lower())


def list_demo() -> list[LocalModel]:
    """The models in the box."""
    return [
        LocalModel(name, demo_folder(name), _size(demo_folder(name)), complete=True)
        for name in FOLDERS
        if has_demo(name)
    ]


def _cached_models() -> Iterator[LocalModel]:
    for repo_folder in cache_folder().glob("models--*--*"):
        folder = _snapshot(repo_folder, "main") or next(repo_folder.glob("snapshots/*"), None)
        if folder and _model_type(folder) in MODEL_TYPES:
            repo = repo_folder.name.removeprefix("models--").replace("--", "/", 1)
            yield LocalModel(repo, folder, _size(folder), not missing_weights(folder))


def _model_type(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def _size(folder: Path) -> int:
    """Bytes of the files in a folder and below; links count as what they point to."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a link to a file that is not downloaded yet
            total += file.stat().st_size if file.is_file() else 0
    return total
