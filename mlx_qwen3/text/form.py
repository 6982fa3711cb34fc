"""A tokenizer.json in the form that loads at once: flat tables, and the rest as a small one.

The rest, which the `tokenizers` library goes on doing itself (added tokens, normalizer, split),
is the same tokenizer.json with a vocabulary of the 256 byte letters and no merges. Only a plain
byte-level BPE has a form; for anything else there is none, and the library does it all.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

from mlx_qwen3.text.letters import LETTERS
from mlx_qwen3.text.vocabulary import Vocabulary

_SIZES = struct.Struct("<QQQ")  # bytes of the settings, number of pairs, number of tokens
_ALIGNED = 8  # bytes
# What a plain byte-level BPE may say. Anything else, a key that is not known included, is not.
_FILE_KEYS = {
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
}
_MODEL_VALUES: dict[str, tuple[Any, ...]] = {
    "type": ("BPE",),
    "dropout": (None,),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
# Where the steps of a Sequence lie, by the kind of part.
_SEQUENCES = ("pretokenizers", "processors", "decoders")
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class FormSettings:
    """Everything but the tables.

    skeleton: the small tokenizer.json; a byte's letter has the byte as its id, the added tokens
    follow at 256. letters: id of each byte's letter in the vocabulary.
    added: (id, text, special) in the skeleton's order. adds_tokens: whether the post-processor
    puts tokens around a text.
    """

    skeleton: str
    letters: list[int]
    added: list[tuple[int, str, bool]]
    adds_tokens: bool


@dataclass(frozen=True)
class TokenizerForm:
    """The tables and the settings beside them."""

    vocabulary: Vocabulary
    settings: FormSettings

    @classmethod
    def compile(cls, raw: bytes) -> "TokenizerForm | None":
        """From the bytes of a tokenizer.json; None for one that is not plain, or not usable."""
        try:
            data = json.loads(raw.decode())
            return _compile(data) if _is_plain(data) else None
        except _MALFORMED:  # the library will say what is wrong with it
            return None

    def to_bytes(self) -> bytes:
        """Little-endian, as `from_bytes` reads it."""
        tables = self.vocabulary
        settings = json.dumps(asdict(self.settings)).encode()
        settings += b" " * (-(len(settings) + _SIZES.size) % _ALIGNED)
        sizes = _SIZES.pack(len(settings), len(tables.keys), len(tables))
        parts = (tables.keys, tables.rules, tables.starts, tables.spellings)
        return b"".join((sizes, settings, *parts))

    @classmethod
    def from_bytes(cls, data: memoryview) -> "TokenizerForm":
        """The tables are views of `data`. Raises ValueError and KeyError when it is no form."""
        length, pairs, tokens = _SIZES.unpack_from(data)
        sizes = (_SIZES.size, length, 8 * pairs, 8 * pairs, 4 * (tokens + 1))
        bounds = pairwise([*accumulate(sizes), len(data)])
        settings, keys, rules, starts, spellings = (data[start:after] for start, after in bounds)
        return cls(
            Vocabulary(keys.cast("Q"), rules.cast("Q"), starts.cast("I"), bytes(spellings)),
            FormSettings(**json.loads(bytes(settings))),
        )


def part_types(part: Mapping[str, Any] | None) -> list[str]:
    """The types of a pre-tokenizer's, post-processor's or decoder's steps, however nested."""
    if not part:
        return []
    steps = next((part[name] for name in _SEQUENCES if name in part), None)
    if steps is None:
        return [part["type"]]
    return [name for step in steps for name in part_types(step)]


def _is_plain(data: dict[str, Any]) -> bool:
    model = data["model"]
    return (
        set(data) <= _FILE_KEYS
        and data.get("truncation") is None
        and data.get("padding") is None
        and part_types(data["decoder"]) == ["ByteLevel"]
        and part_types(data["pre_tokenizer"])[-1:] == ["ByteLevel"]
        and set(model) <= {*_MODEL_VALUES, "vocab", "merges"}
        and "type" in model
        and all(model.get(name, values[0]) in values for name, values in _MODEL_VALUES.items())
    )


def _compile(data: dict[str, Any]) -> TokenizerForm | None:
    vocab, entries = data["model"]["vocab"], data["added_tokens"]
    if not _are_in_order(entries, vocab):
        return None
    added = [(entry["id"], entry["content"], entry["special"]) for entry in entries]
    letters = [vocab[letter] for letter in LETTERS]
    adds_tokens = any(name != "ByteLevel" for name in part_types(data.get("post_processor")))
    vocabulary = Vocabulary.build(vocab, _pairs(data["model"]["merges"]))
    return TokenizerForm(vocabulary, FormSettings(_skeleton(data), letters, added, adds_tokens))


def _are_in_order(entries: list[dict[str, Any]], vocab: Mapping[str, int]) -> bool:
    """Whether every added token has the id that the library would give it."""
    contents = {entry["content"] for entry in entries}
    if len(contents) < len(entries) or not contents.isdisjoint({"", *LETTERS}):
        return False
    after = len(vocab)
    for entry in entries:
        if entry["id"] != vocab.get(entry["content"], after):
            return False
        after += entry["id"] == after
    return True


def _pairs(merges: list[Any]) -> list[Any]:
    """Merges as pairs; older files write "left right"."""
    return [one.split(" ") if isinstance(one, str) else one for one in merges]


def _skeleton(data: dict[str, Any]) -> str:
    first = len(LETTERS)
    added = [{**entry, "id": first + place} for place, entry in enumerate(data["added_tokens"])]
    letters = {letter: byte for byte, letter in enumerate(LETTERS)}
    model = {**data["model"], "vocab": letters, "merges": []}
    return json.dumps({**data, "added_tokens": added, "model": model, "post_processor": None})
