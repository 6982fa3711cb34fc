"""tokenizer.json and tokenizer_config.json out of a GGUF's metadata.

A GGUF has the vocabulary, the merges, each token's type and the chat template; what is the same
for all Qwen3 tokenizers (normalizer, the regular expression that splits words) is filled in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_qwen3.errors import TokenizerError

Metadata = Mapping[str, Any]

_PREFIX = "tokenizer.ggml."
_SPLITTERS = ("qwen2", "deepseek-r1-qwen")  # the names llama.cpp has for Qwen's splitting
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Token types: what is no ordinary part of the vocabulary. Unused ones only pad it.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
# Written as control tokens for the look of them; the releases do not call them special.
_ORDINARY = (
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}


def write_tokenizer(metadata: Metadata, folder: Path) -> list[str]:
    """Write both files; return their names. Raises TokenizerError for another kind of tokenizer."""
    _require_qwen(metadata)
    files = {
        "tokenizer.json": json.dumps(_tokenizer(metadata), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(_settings(metadata), ensure_ascii=False, indent=2),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return list(files)


def _require_qwen(metadata: Metadata) -> None:
    kind, splitter = metadata.get(f"{_PREFIX}model"), metadata.get(f"{_PREFIX}pre")
    if kind != "gpt2" or splitter not in _SPLITTERS:
        raise TokenizerError(
            f"the GGUF's tokenizer is {kind!r} with {splitter!r} splitting; expected 'gpt2' with "
            "'qwen2': copy the original model's tokenizer.json beside the converted weights"
        )
    if not metadata.get(f"{_PREFIX}tokens"):
        raise TokenizerError("the GGUF has no tokens; it was written without a tokenizer")


def _tokenizer(metadata: Metadata) -> dict[str, Any]:
    tokens: list[str] = metadata[f"{_PREFIX}tokens"]
    added = _added_tokens(metadata)
    padding = {i for i, kind in enumerate(_types(metadata)) if kind == _UNUSED}
    split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token} for i, token in added.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
        "post_processor": _post_processor(metadata),
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens) if i not in padding and i not in added},
            "merges": [merge.split(" ", 1) for merge in metadata.get(f"{_PREFIX}merges") or []],
        },
    }


def _post_processor(metadata: Metadata) -> dict[str, Any]:
    """Adds what a model wants around every text: embedding models end theirs with a token."""
    around = {
        name: _named_token(metadata, name)
        for name in ("bos", "eos")
        if metadata.get(f"{_PREFIX}add_{name}_token")
    }
    wanted = {name: token for name, token in around.items() if token is not None}
    if not wanted:
        return _BYTE_LEVEL
    special = {name: {"SpecialToken": {"id": wanted[name], "type_id": 0}} for name in wanted}

    def text(which: str, type_id: int) -> list[dict[str, Any]]:
        sequence = {"Sequence": {"id": which, "type_id": type_id}}
        parts = [special.get("bos"), sequence, special.get("eos")]
        return [part for part in parts if part is not None]

    ids = {token: metadata[f"{_PREFIX}{name}_token_id"] for name, token in wanted.items()}
    template = {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ids.items()},
    }
    return {"type": "Sequence", "processors": [_BYTE_LEVEL, template]}


def _settings(metadata: Metadata) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    adds_bos = bool(metadata.get(f"{_PREFIX}add_bos_token"))
    settings = {
        "add_bos_token": adds_bos,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): token for i, token in _added_tokens(metadata).items()},
        # Qwen3 has none; writers name the padding token here all the same.
        "bos_token": _named_token(metadata, "bos") if adds_bos else None,
        "clean_up_tokenization_spaces": False,
        "eos_token": _named_token(metadata, "eos"),
        "errors": "replace",
        "model_max_length": metadata.get(f"{architecture}.context_length"),
        "pad_token": _named_token(metadata, "padding"),
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    template = _chat_template(metadata)
    return settings if template is None else {**settings, "chat_template": template}


def _added_tokens(metadata: Metadata) -> dict[int, dict[str, Any]]:
    """Tokens matched in the text before it is split. Special: control ones, not think or tools."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokens = metadata[f"{_PREFIX}tokens"]
    return {
        i: {
            "content": tokens[i],
            **flags,
            "special": kind != _USER_DEFINED and tokens[i] not in _ORDINARY,
        }
        for i, kind in enumerate(_types(metadata)[: len(tokens)])
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }


def _types(metadata: Metadata) -> list[int]:
    return list(metadata.get(f"{_PREFIX}token_type") or [])


def _named_token(metadata: Metadata, name: str) -> str | None:
    token_id = metadata.get(f"{_PREFIX}{name}_token_id")
    tokens = metadata[f"{_PREFIX}tokens"]
    known = token_id is not None and 0 <= token_id < len(tokens)
    return tokens[token_id] if known else None


def _chat_template(metadata: Metadata) -> str | list[dict[str, str]] | None:
    """A string, or a list with names where there are several, as transformers has them."""
    default = metadata.get("tokenizer.chat_template")
    named = {n: metadata.get(f"tokenizer.chat_template.{n}") for n in _template_names(metadata)}
    found = {name: text for name, text in {"default": default, **named}.items() if text}
    if set(found) <= {"default"}:
        return found.get("default")
    return [{"name": name, "template": text} for name, text in found.items()]


def _template_names(metadata: Metadata) -> list[str]:
    return [str(name) for name in metadata.get("tokenizer.chat_templates") or []]
