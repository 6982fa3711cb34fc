"""Conversion of a repository whose weights are never all on this disk.

    DIR.source/    beside DIR.partial: the small files, and the shards of the moment

Headers come first, by range requests, so that everything is planned before a shard is here. A
shard is fetched when its turn comes and deleted when nothing unfinished needs it any more.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from mlx_qwen3 import hub
from mlx_qwen3.errors import ModelNotFoundError, Qwen3Error, WeightsError
from mlx_qwen3.model.checkpoint import TensorInfo, read_header, weight_files
from mlx_qwen3_convert.job import Options, Piece, Progress, Result, require_free, run
from mlx_qwen3_convert.origin import Origin
from mlx_qwen3_convert.readers import Files, Source, open_source
from mlx_qwen3_convert.readers.stored import Stored
from mlx_qwen3_convert.repository import Repository, find_repository, read_remote_header
from mlx_qwen3_convert.schedule import Need, most_held, schedule
from mlx_qwen3_convert.writer import PartialOutput, disk_errors

_COMMIT = "commit.json"
_CHUNK = 4 << 20  # bytes hashed at a time


def convert_from_hub(
    name: str,
    out: str | Path,
    options: Options | None = None,
    *,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Convert a repository into the folder `out`, shard by shard.

    name: a short name or a repo id. The result is that of `convert` on the whole repository, and
    an interrupted run is resumed in the same way. progress: bytes fetched and written. Raises
    as `convert`, and ModelNotFoundError for what the hub refuses.
    """
    options = options or Options()
    target = Path(out)
    require_free(target, overwrite=options.overwrite)
    options.chosen()  # contradictions are found before anything is fetched
    repository = find_repository(name, revision)
    folder = target.with_name(target.name + ".source")
    with disk_errors(target):
        _prepare(folder, repository)
    files = StreamedFiles(repository, folder)
    try:
        return _run(files, repository, target, options, progress)
    except Qwen3Error:
        if not files.present() and not PartialOutput.folder_of(target).exists():
            files.remove_folder()  # nothing is begun that a later run could go on with
        raise
    finally:
        files.close()


def _run(
    files: StreamedFiles,
    repository: Repository,
    target: Path,
    options: Options,
    progress: Progress | None,
) -> Result:
    source = open_source(files.folder, files)
    return run(
        source,
        target,
        options,
        origin=Origin(repository.repo, repository.commit, is_repo=True),
        identity=[repository.repo, repository.commit],
        supply=ShardByShard(files, source, progress),
    )


def _prepare(folder: Path, repository: Repository) -> None:
    """The working folder with the small files; what it holds of another commit goes."""
    mark = {"repo": repository.repo, "commit": repository.commit}
    try:
        known = json.loads((folder / _COMMIT).read_text(encoding="utf-8")) == mark
    except (OSError, ValueError):
        known = False
    if not known:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _COMMIT).write_text(json.dumps(mark), encoding="utf-8")
    repo, commit = repository.repo, repository.commit
    hub.download_files(repo, hub.SMALL_FILES, revision=commit, folder=folder)
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{repo} has no config.json: it holds no model in safetensors")


class StreamedFiles(Files):
    """A repository's weight files: known all, there when fetched."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        super().__init__()
        self._repository, self.folder = repository, folder
        self._headers: dict[str, dict[str, TensorInfo]] = {}
        self._taken_for_zero: list[Stored] = []

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file of the repository."""
        return {name: file.nbytes for name, file in self._repository.files.items()}

    def tensors(self, folder: Path) -> dict[str, TensorInfo]:
        names = weight_files(folder, sorted(self._repository.files))
        if not names:
            raise WeightsError(
                f"{self._repository.repo}: no *.safetensors files; a GGUF file has to be "
                "downloaded whole"
            )
        found: dict[str, TensorInfo] = {}
        for name in names:
            self._headers[name] = read_remote_header(self._repository, name, folder / name)
            found |= self._headers[name]
        return found

    def all_zero(self, stored: Stored) -> bool:
        """Taken for true until its file is here, and checked then."""
        if stored.file.is_file():
            return super().all_zero(stored)
        self._taken_for_zero.append(stored)
        return True

    def present(self) -> list[str]:
        """The weight files that are here."""
        return [name for name in self._headers if (self.folder / name).is_file()]

    def fetch(self, name: str, progress: Progress | None = None) -> None:
        """Download a file, unless it is here, and check it.

        Raises WeightsError when it is not what the hub announced, Qwen3Error when the disk is full.
        """
        file, remote = self.folder / name, self._repository.files[name]
        if not file.is_file():
            self._require_space(name)
            repo, commit = self._repository.repo, self._repository.commit
            pattern = [_literally(name)]
            hub.download_files(
                repo, pattern, revision=commit, folder=self.folder, progress=progress
            )
        if not file.is_file() or (remote.sha256 and _sha256(file) != remote.sha256):
            file.unlink(missing_ok=True)
            raise WeightsError(f"{file}: not the bytes that the hub announces; run it again")
        if read_header(file) != self._headers[name]:
            raise WeightsError(f"{file}: its header is not the one read before; run it again")
        self._check_zeros(file)

    def drop(self, name: str) -> None:
        """Delete a file."""
        self.close()  # an open file keeps its place on the disk
        (self.folder / name).unlink(missing_ok=True)

    def drop_unfinished(self) -> None:
        """Delete what killed downloads left: huggingface_hub does not take it up again."""
        for unfinished in self.folder.glob(".cache/huggingface/download/**/*.incomplete"):
            unfinished.unlink(missing_ok=True)

    def remove_folder(self) -> None:
        """Delete all there is."""
        self.close()
        shutil.rmtree(self.folder)

    def _check_zeros(self, file: Path) -> None:
        for stored in self._taken_for_zero:
            if stored.file == file and not super().all_zero(stored):
                raise WeightsError(
                    f"{file}: tensor {stored.name} is not part of this architecture; "
                    "config.json and weights do not belong together"
                )

    def _require_space(self, name: str) -> None:
        needed, free = self.sizes[name], shutil.disk_usage(self.folder).free
        if needed > free:
            raise Qwen3Error(
                f"{self.folder}: {name} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free "
                "on this disk; make room and run the same command again"
            )


class ShardByShard:
    """Brings the pieces of a conversion to the disk, some at a time (`job.Supply`)."""

    def __init__(self, files: StreamedFiles, source: Source, progress: Progress | None) -> None:
        self._files, self._source, self._progress = files, source, progress
        self._fetched = self._written = self._total = 0

    def room(self, pieces: Sequence[Piece]) -> int:
        """Bytes of the disk that this takes beside the output."""
        return most_held(list(schedule(self._needs(pieces))), self._files.sizes)

    def batches(self, pieces: Sequence[Piece], total: int) -> Iterator[Sequence[Piece]]:
        """Pieces whose files are here; when the next are asked for, these are done."""
        needs = self._needs(pieces)
        self._keep(frozenset().union(*needs))
        steps = list(schedule(needs, self._files.present()))
        coming = [name for step in steps for name in step.fetch]
        self._total = total + sum(self._files.sizes[name] for name in coming)
        for step in steps:
            for name in step.fetch:
                self._fetch(name)
            yield [pieces[item] for item in step.items]
            for name in step.drop:
                self._files.drop(name)

    def written(self, done: int) -> None:
        """Told after every piece: bytes of the output that are done."""
        self._written = done
        self._report(0)

    def done(self) -> None:
        """Everything is read."""
        self._files.remove_folder()

    def _keep(self, wanted: Collection[str]) -> None:
        """Of what an earlier run left: check what is wanted, drop the rest."""
        self._files.drop_unfinished()
        for name in self._files.present():
            if name in wanted:
                self._files.fetch(name)
            else:
                self._files.drop(name)

    def _fetch(self, name: str) -> None:
        self._files.fetch(name, lambda done, _: self._report(done))
        self._fetched += self._files.sizes[name]

    def _report(self, coming: int) -> None:
        if self._progress is not None:
            self._progress(self._fetched + coming + self._written, self._total)

    def _needs(self, pieces: Sequence[Piece]) -> list[Need]:
        return [self._source.files_of(matrix.pieces[piece]) for matrix, piece in pieces]


def _literally(name: str) -> str:
    """A pattern that matches this name only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sha256(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
