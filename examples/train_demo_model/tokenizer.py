"""A small byte-level BPE with Qwen3's special tokens and chat template."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any

from chat import TEMPLATE, segments
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from words import split_words

VOCAB_SIZE = 1536
TRAINING_EXAMPLES = 30_000
# Qwen's pattern: contractions, words, single digits, punctuation, white space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# While learning merges, only a space may join a word, and only one in lower case: a name is then
# the same tokens after a space, a quote or an underscore, and so easy to copy.
LEARNING_PATTERN = (
    r" ?\p{Ll}+|\p{Lu}\p{Ll}*|[\p{Lo}\p{Lm}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = split_words(
    """
    <|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
    <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|>
    <|image_pad|> <|video_pad|>
    """
)
TAGS = split_words(
    """
    <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>
    <|file_sep|> <tool_response> </tool_response> <think> </think>
    """
)
END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"


def added_tokens() -> list[AddedToken]:
    """Qwen3's added tokens in their order; the tags are added, but not special."""
    special = [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    return special + [AddedToken(text, special=False, normalized=False) for text in TAGS]


def train(seed: int) -> Tokenizer:
    """Learn the merges from the synthetic conversations of a seed."""
    from data import training_example

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _splitter(LEARNING_PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    added = added_tokens()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(added),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(_texts(seed, training_example), trainer)
    tokenizer.pre_tokenizer = _splitter(PATTERN)
    for token in added:  # in their order; each kind has its own method
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _splitter(pattern: str) -> pre.PreTokenizer:
    split = pre.Split(Regex(pattern), behavior="isolated", invert=False)
    return pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def _texts(seed: int, make: Any) -> Any:
    rng, tags = Random(f"tokenizer/{seed}"), [*SPECIAL, *TAGS]
    for _ in range(TRAINING_EXAMPLES):
        text = "".join(piece for piece, _ in segments(make(rng)))
        for tag in tags:
            text = text.replace(tag, "\n")
        yield text


def config(tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """tokenizer_config.json, the chat template included."""
    decoder = {}
    for token in added_tokens():
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        entry = {"content": token.content, **flags, "special": token.special}
        decoder[str(tokenizer.token_to_id(token.content))] = entry
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "chat_template": TEMPLATE.read_text(encoding="utf-8").strip(),
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="tokenizer.json to write")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    train(arguments.seed).save(str(arguments.out))


if __name__ == "__main__":
    main()
