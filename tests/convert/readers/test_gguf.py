"""GGUF's metadata: the config, the tokenizer, parts of a model, and damage."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tokenizers

from mlx_qwen3.errors import ConfigError, TokenizerError, WeightsError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.text.tokenizer import Tokenizer
from mlx_qwen3_convert.readers import open_source
from mlx_qwen3_convert.readers.gguf_container import read_container
from mlx_qwen3_convert.readers.gguf_tokenizer import _chat_template, _post_processor
from tests.checkpoints import write_tokenizer
from tests.convert.readers.cases import CONFIGS
from tests.convert.readers.gguf_files import write_gguf

DENSE, MOE = CONFIGS["dense"], CONFIGS["moe"]
TEXTS = (
    "Hello, world! It's 2024, isn't it? I'LL see.",
    "   leading, trailing \t\n\n and\r\n newlines \n",
    "狐狸 é ñ e\u0301 ﬁ ½ Ａ 🦊👩‍👩‍👧 العربية हिन्दी",
    "def f(x):\n    return x**2  # 12345 67.89\n",
    "<|im_start|>user\n<think>a</think><tool_call>{}</tool_call><|im_end|>",
    "<|endoftext|> < |im_end|> <|im_start",
)


# --- config --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_whole_config_comes_back(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    found = ModelConfig.from_dict(open_source(write_gguf(tmp_path, config)).config)
    expected = ModelConfig.from_dict(config | {"torch_dtype": "bfloat16"})
    assert found == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"rope_theta": 5_000_000.0, "max_position_embeddings": 262_144},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
        {"rms_norm_eps": 1e-5, "head_dim": 64, "num_key_value_heads": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_configs_differ_in_comes_back(changes: dict[str, Any], tmp_path: Path) -> None:
    config = DENSE | changes
    source = open_source(write_gguf(tmp_path, config, type="F16"))
    found = ModelConfig.from_dict(source.config)
    assert found == ModelConfig.from_dict(config | {"torch_dtype": "float16"})


def test_every_end_of_turn_and_the_sampling_come_back(tmp_path: Path) -> None:
    sampling = {"temp": 0.6, "top_k": 20, "top_p": 0.95}
    metadata = {f"general.sampling.{key}": value for key, value in sampling.items()}
    source = open_source(write_gguf(tmp_path, DENSE, metadata=metadata))
    assert source.generation_config == {
        "bos_token_id": 256,
        "pad_token_id": 256,
        "eos_token_id": [258, 256],
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }
    assert source.config["eos_token_id"] == 258


def test_another_architecture_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"qwen3", b"llama", 1))
    expected = r"model\.gguf: general\.architecture is 'llama'; expected one of qwen3, qwen3moe"
    with pytest.raises(ConfigError, match=expected):
        open_source(file)


@pytest.mark.parametrize("key", ["qwen3.block_count", "qwen3.feed_forward_length"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE)
    file.write_bytes(file.read_bytes().replace(key.encode(), key.encode()[:-1] + b"?"))
    with pytest.raises(ConfigError, match=f"the GGUF metadata have no {re.escape(key)}"):
        open_source(file)


def test_rope_scaling_that_is_not_known(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE, metadata={"qwen3.rope.scaling.type": "longrope"})
    with pytest.raises(ConfigError, match=r"rope\.scaling\.type is 'longrope'; expected none"):
        open_source(file)


# --- tensors -------------------------------------------------------------------------------


def test_types_may_differ_by_tensor(tmp_path: Path) -> None:
    types = {"token_embd": "Q6_K", "output.": "Q8_0", "blk.0.ffn_down_exps": "F16"}
    source = open_source(write_gguf(tmp_path, MOE, type="Q4_K", types=types))
    formats = {name: tensor.format for name, tensor in source.tensors.items()}
    assert source.format == "GGUF Q4_K_M"
    assert formats["model.embed_tokens.weight"] == "Q6_K"
    assert formats["lm_head.weight"] == "Q8_0"
    assert formats["model.layers.0.mlp.experts.3.down_proj.weight"] == "F16"
    assert formats["model.layers.1.mlp.experts.3.up_proj.weight"] == "Q4_K"
    assert formats["model.layers.0.mlp.gate.weight"] == "F32"


def test_any_part_of_a_split_model_is_the_model(tmp_path: Path) -> None:
    whole = open_source(write_gguf(tmp_path / "whole", MOE))
    first = write_gguf(tmp_path / "parts", MOE, parts=3)
    parts = sorted(first.parent.glob("*.gguf"))
    assert len(parts) == 3
    for path in (first.parent, *parts):
        source = open_source(path)
        assert (source.config, set(source.tensors)) == (whole.config, set(whole.tensors))
        for name, tensor in source.tensors.items():
            rows = source.rows(name, 0, tensor.shape[0])
            assert mx.array_equal(rows, whole.rows(name, 0, tensor.shape[0]))
    parts[1].unlink()
    missing = re.escape(parts[1].name)
    with pytest.raises(WeightsError, match=f"{missing}: missing; .* is one of 3 parts"):
        open_source(first)


def test_a_tensor_of_no_qwen3_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE)
    file.write_bytes(file.read_bytes().replace(b"blk.1.ffn_norm", b"blk.1.ssm_norm"))
    with pytest.raises(WeightsError, match=r"tensor blk\.1\.ssm_norm\.weight is not part of"):
        open_source(file)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE, type="Q4_0")
    data, name = bytearray(file.read_bytes()), b"blk.0.attn_q.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8
    assert data[place] == 2
    data[place] = 20
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=r"attn_q\.weight is in IQ4_NL, which is not supported"):
        open_source(file)


def test_an_infinite_scale_is_found(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE, type="Q8_0")
    place = next(t for t in read_container(file).tensors if t.name == "blk.0.attn_q.weight").offset
    data = bytearray(file.read_bytes())
    data[place : place + 2] = b"\x00\x7c"
    file.write_bytes(data)
    source = open_source(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    for read in (source.rows, source.affine_rows):
        with pytest.raises(WeightsError, match=r"tensor blk\.0\.attn_q\.weight holds NaN"):
            read(name, 0, 1)
        read(name, 1, 2)


# --- damage --------------------------------------------------------------------------------


def test_a_file_cut_short_anywhere_is_found_when_opened(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE)
    size = file.stat().st_size
    data_start = min(tensor.offset for tensor in read_container(file).tensors)
    for keep in (size - 33, data_start + 5, data_start - 40, 2000, 100, 23, 9):
        os.truncate(file, keep)
        with pytest.raises(WeightsError, match=r"model\.gguf: (cut short|unreadable GGUF header)"):
            open_source(file)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (4, b"\x01\0\0\0", "GGUF version 1 is not supported"),
        (4, b"\0\0\0\x03", "GGUF version 50331648 is not supported; expected 2 or 3, little"),
        (16, b"\xff" * 8, "unreadable GGUF header"),
        (24, b"\xff" * 8, "unreadable GGUF header"),
    ],
)
def test_headers_that_are_none(place: int, value: bytes, expected: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE)
    data = bytearray(file.read_bytes())
    data[place : place + len(value)] = value
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=expected):
        open_source(file)


def test_numbers_keep_their_decimal_form(tmp_path: Path) -> None:
    """Float32 metadata: 1e-06 in config.json, not 9.999999974752427e-07."""
    file = write_gguf(tmp_path, DENSE, metadata={"a.bool": True, "a.int": 7, "a.text": "é"})
    metadata = read_container(file).metadata
    assert metadata["qwen3.attention.layer_norm_rms_epsilon"] == 1e-6
    assert (metadata["a.bool"], metadata["a.int"], metadata["a.text"]) == (True, 7, "é")


# --- the tokenizer -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with merges, split as Qwen's, with Qwen's special tokens."""
    folder = write_tokenizer(tmp_path_factory.mktemp("trained"))
    state = json.loads((folder / "tokenizer.json").read_text())
    state["added_tokens"] = []
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS[:4], Path(__file__).read_text()] * 3, trainer)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for added in settings["added_tokens_decoder"].values():
        token = tokenizers.AddedToken(added["content"], special=added["special"], normalized=False)
        (backend.add_special_tokens if added["special"] else backend.add_tokens)([token])
    backend.save(str(folder / "tokenizer.json"))
    state = json.loads((folder / "tokenizer.json").read_text())
    assert len(state["model"]["merges"]) > 100
    settings["added_tokens_decoder"] = {
        str(added["id"]): {key: value for key, value in added.items() if key != "id"}
        for added in state["added_tokens"]
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


Rebuild = Callable[..., Tokenizer]


@pytest.fixture
def rebuild(tmp_path: Path) -> Rebuild:
    """The tokenizer of a folder, through a GGUF and out again."""

    def through(folder: Path, vocab_size: int = 416, **options: Any) -> Tokenizer:
        config = DENSE | {"vocab_size": vocab_size}
        file = write_gguf(tmp_path / "in", config, type="F16", tokenizer=folder, **options)
        to = tmp_path / "out"
        to.mkdir(exist_ok=True)
        assert open_source(file).write_side_files(to) == ["tokenizer.json", "tokenizer_config.json"]
        return Tokenizer.from_folder(to)

    return through


def test_the_rebuilt_tokenizer_encodes_as_the_original(trained: Path, rebuild: Rebuild) -> None:
    original, rebuilt = Tokenizer.from_folder(trained), rebuild(trained)
    for text in TEXTS:
        ids = original.encode(text)
        assert rebuilt.encode(text) == ids
        assert rebuilt.decode(ids) == original.decode(ids)
    assert len(original.encode(TEXTS[0])) < len(TEXTS[0]) - 5  # merges did something
    assert rebuilt.vocab_size == original.vocab_size  # without the rows that pad the matrix
    assert rebuilt.special_ids == original.special_ids
    assert rebuilt.eos_token == original.eos_token == "<|im_end|>"
    assert rebuilt.settings.named["pad_token"] == "<|endoftext|>"
    assert "bos_token" not in rebuilt.settings.named
    assert rebuilt.encode("a", add_special_tokens=True) == original.encode("a")


def test_the_rebuilt_files_say_what_the_original_ones_did(trained: Path, rebuild: Rebuild) -> None:
    rebuilt = rebuild(trained).folder
    original, found = (
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for folder in (trained, rebuilt)
    )
    for part in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert found[part] == original[part], part
    assert found["model"]["vocab"] == original["model"]["vocab"]
    assert found["model"]["merges"] == original["model"]["merges"]


def test_embedding_models_end_their_texts(trained: Path, rebuild: Rebuild) -> None:
    end = Tokenizer.from_folder(trained).token_to_id("<|im_end|>")
    rebuilt = rebuild(trained, metadata={"tokenizer.ggml.add_eos_token": True})
    assert rebuilt.encode("Hi", add_special_tokens=True)[-1] == end
    assert end not in rebuilt.encode("Hi")


def test_tokens_around_every_text() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["a", "<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }
    template = _post_processor(metadata)["processors"][1]
    assert [next(iter(part)) for part in template["single"]] == [
        "SpecialToken",
        "Sequence",
        "SpecialToken",
    ]
    assert template["special_tokens"]["<s>"]["ids"] == [1]


def test_chat_templates_keep_their_names() -> None:
    metadata = {
        "tokenizer.chat_template": "main",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "tools",
    }
    assert _chat_template(metadata) == [
        {"name": "default", "template": "main"},
        {"name": "tool_use", "template": "tools"},
    ]
    assert _chat_template({"tokenizer.chat_template": "main"}) == "main"
    assert _chat_template({}) is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"qwen2", b"llam3", "'gpt2' with 'llam3' splitting; expected 'gpt2' with 'qwen2'"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.absent", "the GGUF has no tokens"),
    ],
)
def test_tokenizers_that_are_not_qwens(
    old: bytes, new: bytes, expected: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path, DENSE)
    file.write_bytes(file.read_bytes().replace(old, new))
    source = open_source(file)  # its weights can be read all the same
    with pytest.raises(TokenizerError, match=rf"model\.gguf: .*{re.escape(expected)}"):
        source.write_side_files(tmp_path)


def test_the_published_tokenizer_through_a_gguf(tmp_path: Path) -> None:
    folder = Path(
        os.environ.get(
            "MLX_QWEN3_TOKENIZER", Path(__file__).parents[3] / "../shared/qwen3-tokenizer"
        )
    )
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the published Qwen3 tokenizer is not here (set MLX_QWEN3_TOKENIZER)")
    config = DENSE | {"vocab_size": 151_936, "hidden_size": 32, "num_hidden_layers": 1}
    file = write_gguf(tmp_path / "in", config, type="Q8_0", tokenizer=folder)
    source = open_source(file)
    (tmp_path / "out").mkdir()
    source.write_side_files(tmp_path / "out")
    original, rebuilt = Tokenizer.from_folder(folder), Tokenizer.from_folder(tmp_path / "out")
    for text in TEXTS:
        assert rebuilt.encode(text) == original.encode(text)
    assert rebuilt.vocab_size == original.vocab_size == 151_669
    assert rebuilt.special_ids == original.special_ids
    assert source.generation_config is not None
    assert source.generation_config["eos_token_id"] == [151_645, 151_643]
    assert np.array(source.rows("model.embed_tokens.weight", 151_900, 151_936)).shape == (36, 32)
