"""Forms of tokenizers on disk, found by the content of their tokenizer.json.

Written aside and renamed, so that whoever reads sees a whole one; checksummed; one that is
damaged, of another version or not ours is ignored and made again. Data only: nothing in a form
is run. Where nothing can be written, nothing is kept.
"""

import hashlib
import os
import struct
import sys
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path

from mlx_qwen3.storage import storage_folder
from mlx_qwen3.text.form import TokenizerForm

_HEADER = struct.Struct("<8s32sI4x")  # magic and version, digest of the source, checksum
_MAGIC = b"q3-tok\x00\x01"
_KEPT = 8  # forms; the least recently used go
_DAY = 86_400  # seconds


def find_form(file: Path, folder: Path | None = None) -> TokenizerForm | None:
    """The form of a tokenizer.json, read from the store or else compiled and stored.

    folder: of the store; None: the usual one. None is returned for a file that has no form (see
    `form`), that cannot be read, or on a big-endian machine.
    """
    if sys.byteorder != "little":
        return None
    try:
        raw = file.read_bytes()
    except OSError:
        return None
    digest = hashlib.sha256(raw).digest()
    stored = _place(digest, folder)
    form = _read(stored, digest) if stored else None
    if form is None:
        form = TokenizerForm.compile(raw)
        if form is not None and stored:
            with suppress(OSError):  # a full or read-only disk: compiled each time, then
                _write(stored, digest, form.to_bytes())
    return form


def _place(digest: bytes, folder: Path | None) -> Path | None:
    try:
        return (folder or storage_folder("tokenizers")) / f"{digest.hex()[:32]}.form"
    except RuntimeError:  # a user without a home
        return None


def _read(stored: Path, digest: bytes) -> TokenizerForm | None:
    """Read whole: of a file that is mapped, a page that cannot be read kills the process."""
    try:
        data = memoryview(stored.read_bytes())
        magic, source, checksum = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        if (magic, source, checksum) != (_MAGIC, digest, zlib.crc32(body)):
            return None
        form = TokenizerForm.from_bytes(body)
    except (OSError, ValueError, LookupError, TypeError, struct.error):
        return None
    with suppress(OSError):
        _note_use(stored)
    return form


def _note_use(stored: Path) -> None:
    if time.time() - stored.stat().st_mtime > _DAY:
        os.utime(stored)


def _write(stored: Path, digest: bytes, body: bytes) -> None:
    folder = stored.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(_HEADER.pack(_MAGIC, digest, zlib.crc32(body)) + body)
        os.replace(name, stored)
    except BaseException:
        os.unlink(name)
        raise
    _prune(folder)


def _prune(folder: Path) -> None:
    """Remove all but the newest forms, and what writers that were killed left."""
    forms = sorted(folder.glob("*.form"), key=_age)
    parts = [file for file in folder.glob("*.part") if _age(file) > _DAY]
    for file in (*forms[_KEPT:], *parts):
        file.unlink(missing_ok=True)


def _age(file: Path) -> float:
    """Seconds since a file was written; none for one that is gone already."""
    try:
        return time.time() - file.stat().st_mtime
    except OSError:
        return 0.0
