"""Byte-level BPE (tokenizer.json), the format of every Qwen3 release.

The `tokenizers` library encodes and decodes. Streaming needs the bytes of single tokens: the
vocabulary spells each byte as one printable character (GPT-2's table), so a token's bytes are a
translation of its spelling, made when the token first appears. Loading walks nothing.
`compiled` is the same tokenizer without the wait for the library to load it.
"""

import codecs
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_qwen3.errors import TokenizerError
from mlx_qwen3.text.folder import AddedToken, TokenizerSettings, one_line, without_surrogates
from mlx_qwen3.text.form import part_types
from mlx_qwen3.text.letters import spelled_bytes
from mlx_qwen3.text.tokenizer import Detokenizer, Tokenizer

if TYPE_CHECKING:
    import tokenizers


class NotByteLevelError(TokenizerError):
    """A tokenizer.json of another kind."""


class ByteLevelTokenizer(Tokenizer):
    """A `tokenizers.Tokenizer` whose decoder is byte-level."""

    def __init__(self, folder: Path, settings: TokenizerSettings) -> None:
        super().__init__(folder, settings)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ByteLevelTokenizer":
        """Load tokenizer.json and the files beside it. Raises TokenizerError."""
        folder = Path(folder)
        tokenizer = ByteLevelTokenizer(folder, TokenizerSettings.from_folder(folder))
        tokenizer.backend  # noqa: B018 - read now, so that a broken file is refused here
        return tokenizer

    @cached_property
    def backend(self) -> "tokenizers.Tokenizer":
        """The library's own, for others that want it (llguidance reads its `to_str()`)."""
        backend = _read_backend(self.folder / "tokenizer.json")
        _add_missing(backend, self.settings, self.folder)
        return backend

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        try:
            return self._encode(text, add_special_tokens)
        except TypeError:  # half a surrogate pair, as a terminal or a JSON escape may bring it
            if not isinstance(text, str):
                raise
            return self._encode(without_surrogates(text), add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        known = [i for i in token_ids if 0 <= i <= _LARGEST_ID]
        text: str = self.backend.decode(known, skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(self, skip_special_tokens: bool = False) -> Detokenizer:
        return ByteLevelDetokenizer(self, self.special_ids if skip_special_tokens else frozenset())

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self.backend.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        if not 0 <= token_id <= _LARGEST_ID:
            return None
        token: str | None = self.backend.id_to_token(token_id)
        return token

    @property
    def vocab_size(self) -> int:
        size: int = self.backend.get_vocab_size(with_added_tokens=True)
        return size

    @cached_property
    def special_ids(self) -> frozenset[int]:
        added = self.backend.get_added_tokens_decoder()
        return frozenset(id_ for id_, token in added.items() if token.special)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, not always whole characters; b"" for unknown ids."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = spelled_bytes(self.id_to_token(token_id) or "")
        return known


class ByteLevelDetokenizer(Detokenizer):
    """Bytes of tokens through an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: ByteLevelTokenizer, skip: frozenset[int]) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skip = skip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        return "" if token_id in self._skip else self._utf8.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


_LARGEST_ID = 2**32 - 1  # what the library can take


def _read_backend(path: Path) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path))
    except Exception as exc:  # the library raises plain Exception
        raise TokenizerError(
            f"{path} is not a usable tokenizer ({one_line(exc)}); download it again"
        ) from exc
    if not _is_byte_level(backend):
        raise NotByteLevelError(
            f"{path} decodes with {_decoder_types(backend) or 'nothing'}, expected ByteLevel; "
            "use the tokenizer files of the original Qwen3 checkpoint"
        )
    return backend


def _is_byte_level(backend: "tokenizers.Tokenizer") -> bool:
    return _decoder_types(backend) == ["ByteLevel"]


def _decoder_types(backend: "tokenizers.Tokenizer") -> list[str]:
    if backend.decoder is None:
        return []
    return part_types(json.loads(backend.decoder.__getstate__()))


def _add_missing(
    backend: "tokenizers.Tokenizer", settings: TokenizerSettings, folder: Path
) -> None:
    """Tokens that only the JSON files beside tokenizer.json know, as fine-tunes leave them."""
    known = backend.get_added_tokens_decoder()
    for id_ in sorted(set(settings.added) - set(known)):
        token = settings.added[id_]
        _add(backend, token, token.content in settings.special)
        if backend.token_to_id(token.content) != id_:
            raise TokenizerError(
                f"{folder}: {token.content!r} has id {id_} in tokenizer_config.json but "
                f"{backend.token_to_id(token.content)} in tokenizer.json; "
                "download both from the same checkpoint"
            )
    marked = {token.content for token in known.values() if token.special}
    for content in sorted(settings.special - marked):
        if backend.token_to_id(content) is not None:
            _add(backend, AddedToken(content), special=True)


def _add(backend: "tokenizers.Tokenizer", token: AddedToken, special: bool) -> None:
    from tokenizers import AddedToken as BackendToken

    made = BackendToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=special,
    )
    if special:
        backend.add_special_tokens([made])
    else:
        backend.add_tokens([made])
