"""The byte-level tokenizer from its form: the same ids and texts, loaded at once.

The library reads a 152k-token tokenizer.json in half a second. Here it does what needs no
vocabulary (added tokens, normalizer, split into words), and the words are merged in Python; it is
loaded in full once so much was encoded that it pays, or when somebody asks for `backend`.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_qwen3.errors import TokenizerError
from mlx_qwen3.text.byte_level import ByteLevelTokenizer
from mlx_qwen3.text.folder import TokenizerSettings, one_line
from mlx_qwen3.text.form import TokenizerForm
from mlx_qwen3.text.form_store import find_form
from mlx_qwen3.text.letters import LETTERS

if TYPE_CHECKING:
    import tokenizers

_SMALL = 1 << 20  # bytes; the library loads a tokenizer.json up to this in a few milliseconds
_PAYS = 200_000  # characters encoded; merging them here takes about as long as loading
_REMEMBERED = 2**16  # words


class CompiledTokenizer(ByteLevelTokenizer):
    """A `ByteLevelTokenizer` whose `backend` is loaded when it is needed."""

    def __init__(self, folder: Path, settings: TokenizerSettings, form: TokenizerForm) -> None:
        """Raises TokenizerError when the library does not take what is left for it to do."""
        super().__init__(folder, settings)
        self._splitter = _read_splitter(form.settings.skeleton, folder)
        self._vocabulary = form.vocabulary
        self._form = form.settings
        self._added = {id_: content for id_, content, _ in self._form.added}
        self._id_of_added = {content: id_ for id_, content in self._added.items()}
        self._word = lru_cache(_REMEMBERED)(self._merge)
        self._encoded = 0  # characters

    @classmethod
    def find(cls, folder: Path) -> "CompiledTokenizer | None":
        """From the stored form of a folder's tokenizer, which is made where there is none.

        None where the ordinary way is the better one: a small or an unusual tokenizer, or a file
        that the library should complain about. Raises TokenizerError for the files beside it.
        """
        file = folder / "tokenizer.json"
        if file.stat().st_size < _SMALL:
            return None
        settings = TokenizerSettings.from_folder(folder)
        form = find_form(file)
        if form is None or not _knows(form, settings):
            return None
        with suppress(TokenizerError):
            return cls(folder, settings, form)
        return None

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        detokenizer = self.detokenizer(skip_special_tokens)
        return "".join([*map(detokenizer.add, token_ids), detokenizer.finish()])

    def token_to_id(self, token: str) -> int | None:
        known = self._id_of_added.get(token)
        return self._vocabulary.token_id(token) if known is None else known

    def id_to_token(self, token_id: int) -> str | None:
        known = self._added.get(token_id)
        return self._vocabulary.spelling(token_id) if known is None else known

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary) + sum(id_ >= len(self._vocabulary) for id_ in self._added)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(id_ for id_, _, special in self._form.added if special)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        around = add_special_tokens and self._form.adds_tokens
        if around or self._is_loaded or self._encoded + len(text) > _PAYS:
            return super()._encode(text, add_special_tokens)
        encoding = self._splitter.encode(text, add_special_tokens=False)
        self._encoded += len(text)
        ids, words = encoding.ids, encoding.word_ids
        starts = (place for place, (a, b) in enumerate(pairwise(words), 1) if a != b)
        bounds = pairwise((0, *starts, len(ids)))
        return [id_ for start, after in bounds for id_ in self._word(tuple(ids[start:after]))]

    @property
    def _is_loaded(self) -> bool:
        return "backend" in vars(self)

    def _merge(self, word: tuple[int, ...]) -> tuple[int, ...]:
        """word: ids of the skeleton, bytes or one added token."""
        if word and word[0] >= len(LETTERS):
            return tuple(self._form.added[id_ - len(LETTERS)][0] for id_ in word)
        return self._vocabulary.merge([self._form.letters[byte] for byte in word])


def _read_splitter(skeleton: str, folder: Path) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_str(skeleton)
    except Exception as exc:  # the library raises plain Exception
        raise TokenizerError(
            f"{folder}/tokenizer.json is not usable ({one_line(exc)}); download it again"
        ) from exc


def _knows(form: TokenizerForm, settings: TokenizerSettings) -> bool:
    """Whether the files beside tokenizer.json add nothing to it, as in every release."""
    added = form.settings.added
    special = {content for _, content, is_special in added if is_special}
    unmarked = settings.special - special
    known = {content for _, content, _ in added}
    return (
        set(settings.added) <= {id_ for id_, _, _ in added}
        and unmarked.isdisjoint(known)
        and all(form.vocabulary.token_id(content) is None for content in unmarked)
    )
