"""Small tokenizers, trained once per run, as checkpoint folders."""

import json
from pathlib import Path

import pytest

from mlx_qwen3.text import Tokenizer
from mlx_qwen3.text.byte_level import ByteLevelTokenizer
from mlx_qwen3.text.sentence_pieces import SentencePieceTokenizer
from tests.text.small_models import CORPUS, sentence_piece_model
from tests.text.template_cases import real_tokenizer_folder

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of some 400 tokens in Qwen3's layout."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    folder = tmp_path_factory.mktemp("byte_level")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens([AddedToken(tag, normalized=False) for tag in [*TAGS, "｜é x｜"]])
    backend.save(str(folder / "tokenizer.json"))
    options = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


@pytest.fixture(scope="session")
def sentence_piece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE with byte fallback and three added tokens."""
    folder = tmp_path_factory.mktemp("sentence_pieces")
    (folder / "tokenizer.model").write_bytes(sentence_piece_model())
    first_free = 420
    added = {
        str(first_free): {"content": "<|im_start|>", "special": True},
        str(first_free + 1): {"content": "<|im_end|>", "special": True},
        str(first_free + 2): {"content": "<think>", "special": False},
    }
    options = {"eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


@pytest.fixture(scope="session")
def small(byte_level_folder: Path) -> ByteLevelTokenizer:
    return ByteLevelTokenizer.from_folder(byte_level_folder)


@pytest.fixture(scope="session")
def pieces(sentence_piece_folder: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.from_folder(sentence_piece_folder)


@pytest.fixture(scope="session")
def real() -> Tokenizer:
    """The published Qwen3 tokenizer."""
    folder = real_tokenizer_folder()
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the published Qwen3 tokenizer is not here (set MLX_QWEN3_TOKENIZER)")
    return Tokenizer.from_folder(folder)
