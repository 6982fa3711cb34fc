"""A finished folder to the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_qwen3 import hub
from mlx_qwen3.errors import ModelNotFoundError, OptionError, Qwen3Error, WeightsError
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3_convert.card import with_place

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_NEEDS = "uploading needs a token with write access: run `hf auth login` or set HF_TOKEN"


def require_upload(repo: str, *, private: bool = False) -> None:
    """Find out what would refuse an upload, before hours of work for it.

    Raises OptionError for a name that is none, or a public repository where a private one was
    asked for; Qwen3Error without a token that may write, or without a network.
    """
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        raise OptionError(f"--upload {repo}: expected OWNER/NAME")
    if hub.offline():
        raise Qwen3Error(f"--upload {repo}: HF_HUB_OFFLINE is set; unset it to upload")
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise Qwen3Error(f"--upload {repo}: no token; {_NEEDS}")
    api = HfApi()
    with _one_line(repo):
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
        public = private and api.repo_exists(repo) and not api.model_info(repo).private
    if role == "read":
        raise Qwen3Error(f"--upload {repo}: the token may only read; {_NEEDS}")
    if public:
        raise OptionError(f"--private: {repo} exists and is public; upload to another name")


def upload(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a model's folder; returns its address. What is there already is not sent again.

    The card's commands will name the repository. Weight files of an earlier upload that this
    folder has not are deleted in the same commit. Raises as `require_upload`, and WeightsError
    for a folder that is not complete.
    """
    folder = Path(folder)
    require_upload(repo, private=private)
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no config.json; expected a finished conversion")
    Checkpoint.from_folder(folder)
    card = folder / "README.md"
    if card.is_file():
        card.write_text(with_place(card.read_text(encoding="utf-8"), repo), encoding="utf-8")
    from huggingface_hub import HfApi

    api = HfApi()
    with _one_line(repo), _without_bars():
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload by mlx-qwen3",
            delete_patterns=["*.safetensors"],
            ignore_patterns=[".*", "*.partial"],
        )
    return str(address)


@contextmanager
def _without_bars() -> Iterator[None]:
    """huggingface_hub draws bars on a terminal only; it would also draw some into a log file."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """What huggingface_hub raises, in one line that says what to do."""
    try:
        yield
    except Qwen3Error:
        raise
    except Exception as error:
        raise _explain(error, repo) from error


def _explain(error: Exception, repo: str) -> Qwen3Error:
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    code = getattr(getattr(cause, "response", None), "status_code", None)
    if code == 401:
        return Qwen3Error(f"--upload {repo}: the hub does not know this token; {_NEEDS}")
    if code == 403:
        return Qwen3Error(f"--upload {repo}: this token may not write there; {_NEEDS}")
    if code is not None:
        return Qwen3Error(f"--upload {repo}: the hub answered {code}; run it again later")
    said = str(hub.explain(error, repo))
    if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
        said = "the connection failed; run the same command again, what was sent is not sent twice"
    return ModelNotFoundError(f"--upload {repo}: {said}")
