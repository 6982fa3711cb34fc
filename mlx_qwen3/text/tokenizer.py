"""Text to token ids and back, whatever file format the checkpoint brings.

`Tokenizer.from_folder` picks the implementation: `byte_level` for tokenizer.json,
`sentence_pieces` for tokenizer.model. Heavy imports happen there, at construction.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from mlx_qwen3.errors import TokenizerError
from mlx_qwen3.text.folder import TokenizerSettings, read_chat_templates
from mlx_qwen3.text.template import ChatTemplate


class Detokenizer(ABC):
    """Token ids of one sequence to text, as they come.

    What `add` and `finish` return, joined, equals `Tokenizer.decode` of all the ids with the
    same `skip_special_tokens`, whatever the ids are. Never half a character; what was returned
    stays. One per sequence; not thread-safe.
    """

    @abstractmethod
    def add(self, token_id: int) -> str:
        """Take one more token; return the text now certain ("" while a character is open)."""

    @abstractmethod
    def finish(self) -> str:
        """Return what was held back (U+FFFD for bytes that never became a character)."""


class Tokenizer(ABC):
    """A checkpoint's tokenizer.

    folder: where it came from.
    """

    def __init__(self, folder: Path, settings: TokenizerSettings) -> None:
        self.folder = folder
        self.settings = settings

    @staticmethod
    def from_folder(folder: str | Path) -> "Tokenizer":
        """Load tokenizer.json (byte-level BPE) or else tokenizer.model (SentencePiece).

        Also reads, where they exist: tokenizer_config.json, special_tokens_map.json,
        added_tokens.json and the chat template files.
        Raises TokenizerError when neither is there, or a file is truncated or invalid.
        """
        folder = Path(folder)
        for filename, load in _LOADERS.items():
            if (folder / filename).is_file():
                return load(folder)
        raise TokenizerError(_nothing_found(folder))

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; special and added tokens written in it are recognised.

        add_special_tokens: also add what the checkpoint asks for around every text (nothing for
        Qwen3 chat models; embedding checkpoints append <|endoftext|>).
        """

    @abstractmethod
    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids. Ids outside the vocabulary count as nothing; bytes that are no
        UTF-8 become U+FFFD. skip_special_tokens leaves out the `special_ids`, not the
        think and tool tags, which are ordinary added tokens.
        """

    @abstractmethod
    def detokenizer(self, skip_special_tokens: bool = False) -> Detokenizer:
        """A fresh streaming decoder for one sequence."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, None when it has none."""

    @abstractmethod
    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, None for ids outside of it."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, not always whole characters; b"" for unknown ids."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens, added ones included (may be less than the model's logits)."""

    @property
    @abstractmethod
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""

    @property
    def eos_token(self) -> str | None:
        """The end-of-turn token that tokenizer_config.json names, such as "<|im_end|>"."""
        return self.settings.named.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of `eos_token`; generation_config.json may name more."""
        return None if self.eos_token is None else self.token_to_id(self.eos_token)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The checkpoint's chat template; None for one that has none (a base model).

        Raises TokenizerError when its files are malformed.
        """
        templates = read_chat_templates(self.folder, self.settings.options)
        if not templates:
            return None
        return ChatTemplate(templates, special_tokens=self.settings.named)


def _load_byte_level(folder: Path) -> Tokenizer:
    from mlx_qwen3.text.byte_level import ByteLevelTokenizer, NotByteLevelError
    from mlx_qwen3.text.compiled import CompiledTokenizer

    try:
        return CompiledTokenizer.find(folder) or ByteLevelTokenizer.from_folder(folder)
    except NotByteLevelError:  # a SentencePiece model in the other format as well
        if not (folder / "tokenizer.model").is_file():
            raise
        return _load_sentence_pieces(folder)


def _load_sentence_pieces(folder: Path) -> Tokenizer:
    from mlx_qwen3.text.sentence_pieces import SentencePieceTokenizer

    return SentencePieceTokenizer.from_folder(folder)


# In order of preference.
_LOADERS = {"tokenizer.json": _load_byte_level, "tokenizer.model": _load_sentence_pieces}


def _nothing_found(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; expected a checkpoint folder with a tokenizer.json"
    return (
        f"no tokenizer.json or tokenizer.model in {folder}; "
        "download the checkpoint again with its tokenizer files"
    )
