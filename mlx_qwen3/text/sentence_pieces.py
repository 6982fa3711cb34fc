"""SentencePiece (tokenizer.model), for fine-tunes whose tokenizer comes in that format.

SentencePiece encodes; decoding is done here, piece by piece, because the library only decodes
whole sequences. The rules are those of its `SentencePieceProcessor::Decode`: a run of byte
pieces (<0xE4>) is UTF-8, every byte that fits no character is one U+FFFD, the space that
encoding put before the text is taken off again, an unknown piece reads " ⁇ ".
"""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlx_qwen3.errors import TokenizerError
from mlx_qwen3.text.folder import TokenizerSettings, one_line, without_surrogates
from mlx_qwen3.text.tokenizer import Detokenizer, Tokenizer

if TYPE_CHECKING:
    import sentencepiece

SPACE = "▁"
UNKNOWN = " ⁇ "
# normalizer_spec { add_dummy_prefix: false }: appended to a serialized ModelProto it overrides
# that one field, as protocol buffers merge repeated messages.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Surface(NamedTuple):
    """What one id stands for: bytes of a byte piece, or text (verbatim: not a piece)."""

    text: str = ""
    data: bytes = b""
    verbatim: bool = False


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model plus the added tokens of the JSON files beside it.

    The leading-space rule holds at the start of the text only, not after an added token
    (transformers' `legacy=False`).
    """

    def __init__(
        self,
        backend: "sentencepiece.SentencePieceProcessor",
        folder: Path,
        settings: TokenizerSettings,
    ) -> None:
        super().__init__(folder, settings)
        self.backend = backend
        self._size: int = backend.get_piece_size()
        self._added = {i: t.content for i, t in settings.added.items() if i >= self._size}
        self._ids = {content: i for i, content in self._added.items()}
        self._surfaces: dict[int, Surface] = {}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "SentencePieceTokenizer":
        """Load tokenizer.model and the JSON files beside it. Raises TokenizerError."""
        folder = Path(folder)
        settings = TokenizerSettings.from_folder(folder)
        return cls(_read_backend(folder / "tokenizer.model"), folder, settings)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(self._matcher.split(without_surrogates(text))):
            if place % 2:
                ids.append(self._matched[part])
            elif part:
                ids += (self.backend if place == 0 else self._unprefixed).encode(part)
        return self._surround(ids) if add_special_tokens else ids

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        stream = self.detokenizer(skip_special_tokens)
        return "".join([*map(stream.add, token_ids), stream.finish()])

    def detokenizer(self, skip_special_tokens: bool = False) -> Detokenizer:
        skip = self.special_ids if skip_special_tokens else frozenset[int]()
        return SentencePieceDetokenizer(self, skip)

    def token_to_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        token_id: int = self.backend.piece_to_id(token)
        return token_id if self.backend.id_to_piece(token_id) == token else None

    def id_to_token(self, token_id: int) -> str | None:
        if 0 <= token_id < self._size:
            piece: str = self.backend.id_to_piece(token_id)
            return piece
        return self._added.get(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        surface = self.surface(token_id)
        if surface is None:
            return b""
        text = surface.text if surface.verbatim else surface.text.replace(SPACE, " ")
        return surface.data or text.encode()

    @property
    def vocab_size(self) -> int:
        return self._size + len(self._added)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        named = {self.token_to_id(content) for content in self.settings.special}
        control = {i for i in range(self._size) if self.backend.is_control(i)}
        return frozenset({i for i in named if i is not None} | control) - {self.backend.unk_id()}

    @property
    def eos_token(self) -> str | None:
        """As tokenizer_config.json names it, else the model's own."""
        own = self.backend.eos_id()
        return super().eos_token or (self.id_to_token(own) if own >= 0 else None)

    @cached_property
    def strips_first_space(self) -> bool:
        """Whether decoding takes off the space at the start."""
        return self._decoded_spaces(1) == ""

    @cached_property
    def strips_every_space(self) -> bool:
        """Whether it goes on doing so until there is text (remove_extra_whitespaces)."""
        return self.strips_first_space and self._decoded_spaces(2) == ""

    def surface(self, token_id: int) -> Surface | None:
        """What an id stands for; None outside the vocabulary."""
        known = self._surfaces.get(token_id)
        if known is None and (token := self.id_to_token(token_id)) is not None:
            known = self._surfaces[token_id] = self._new_surface(token_id, token)
        return known

    def _new_surface(self, token_id: int, token: str) -> Surface:
        if token_id >= self._size or self.backend.is_control(token_id):
            return Surface(text=token, verbatim=True)
        if self.backend.is_unknown(token_id):
            return Surface(text=UNKNOWN, verbatim=True)
        if self.backend.is_byte(token_id):
            return Surface(data=bytes([int(token[3:5], 16)]))
        return Surface(text=token)

    def _decoded_spaces(self, count: int) -> str:
        """What the library makes of `count` space pieces ("" where there is no such piece)."""
        space = self.token_to_id(SPACE)
        text: str = "" if space is None else self.backend.decode([space] * count)
        return text

    @cached_property
    def _matched(self) -> dict[str, int]:
        """Tokens recognised in the text: the added ones and the special ones."""
        contents = set(self._ids) | self.settings.special
        ids = {content: self.token_to_id(content) for content in contents}
        return {content: i for content, i in ids.items() if i is not None and content}

    @cached_property
    def _matcher(self) -> re.Pattern[str]:
        longest_first = sorted(self._matched, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    @cached_property
    def _unprefixed(self) -> "sentencepiece.SentencePieceProcessor":
        """The same model without the space before the text; for text after an added token."""
        from sentencepiece import SentencePieceProcessor

        model = self.backend.serialized_model_proto() + _NO_DUMMY_PREFIX
        return SentencePieceProcessor(model_proto=model)

    def _surround(self, ids: list[int]) -> list[int]:
        options, bos = self.settings.options, self.settings.named.get("bos_token")
        before = self.token_to_id(bos) if bos and options.get("add_bos_token") else None
        after = self.eos_token_id if options.get("add_eos_token") else None
        return [i for i in (before, *ids, after) if i is not None]


class SentencePieceDetokenizer(Detokenizer):
    """Pieces to text; holds back bytes of an unfinished character."""

    def __init__(self, tokenizer: SentencePieceTokenizer, skip: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skip = skip
        self._bytes = b""
        self._at_start = tokenizer.strips_first_space

    def add(self, token_id: int) -> str:
        surface = None if token_id in self._skip else self._tokenizer.surface(token_id)
        if surface is None:
            return ""
        if surface.data:
            self._bytes += surface.data
            return self._said(self._whole_characters())
        before = self.finish()
        return before + self._said(surface.text if surface.verbatim else self._piece(surface.text))

    def finish(self) -> str:
        return self._said(self._whole_characters(final=True))

    def _piece(self, piece: str) -> str:
        if self._at_start and piece.startswith(SPACE):
            piece = piece[1:]
            self._at_start = self._tokenizer.strips_every_space
        return piece.replace(SPACE, " ")

    def _said(self, text: str) -> str:
        self._at_start = self._at_start and not text
        return text

    def _whole_characters(self, final: bool = False) -> str:
        text = ""
        while self._bytes:
            length = _character_length(self._bytes[0])
            if len(self._bytes) < length and not final:
                break
            character = _character(self._bytes[:length])
            self._bytes = self._bytes[length if character else 1 :]
            text += character or "\ufffd"
        return text


def _character_length(lead: int) -> int:
    """Bytes a UTF-8 character has by its first byte; 1 where no character starts so."""
    return 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1


def _character(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _read_backend(path: Path) -> "sentencepiece.SentencePieceProcessor":
    from sentencepiece import SentencePieceProcessor

    try:
        backend = SentencePieceProcessor(model_proto=path.read_bytes())
        backend.encode("")
    except (OSError, RuntimeError, ValueError, TypeError) as exc:
        raise TokenizerError(
            f"{path} is not a usable SentencePiece model ({one_line(exc)}); download it again"
        ) from exc
    return backend
