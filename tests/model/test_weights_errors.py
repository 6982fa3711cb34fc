"""Broken folders: each gives one line that names the tensor or the file, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_qwen3.errors import CheckpointError, ConfigError, OptionError, WeightsError
from mlx_qwen3.model.weights import load_model
from tests.checkpoints import make_tensors, write_weights
from tests.model.tiny_models import SHORT, TINY_MODELS

Folders = Callable[[str], Path]
Tensors = dict[str, NDArray[Any]]

DENSE, MOE = TINY_MODELS["dense"], TINY_MODELS["moe"]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def dense(tiny_folder: Folders, tmp_path: Path) -> Path:
    """A copy of a good folder, to be broken."""
    return shutil.copytree(tiny_folder("dense"), tmp_path / "dense")


@pytest.fixture
def moe(tiny_folder: Folders, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder("moe"), tmp_path / "moe")


def assert_refused(folder: Path, error: type[CheckpointError], *words: str) -> None:
    with pytest.raises(error) as caught:
        load_model(folder, dtype="float32")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def with_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DENSE_NAMES = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.1.input_layernorm.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.self_attn.q_norm.weight",
    "model.layers.2.mlp.up_proj.weight",
]
MOE_NAMES = [
    "model.layers.0.mlp.gate.weight",
    "model.layers.1.mlp.experts.5.up_proj.weight",
    "model.layers.2.mlp.experts.7.down_proj.weight",
]


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_a_missing_tensor_is_named(name: str, dense: Path) -> None:
    tensors = make_tensors(DENSE.config, DENSE.seed)
    del tensors[name]
    write_weights(dense, tensors)
    assert_refused(dense, WeightsError, name)


@pytest.mark.parametrize("name", MOE_NAMES)
def test_a_missing_tensor_of_a_mixture_is_named(name: str, moe: Path) -> None:
    tensors = make_tensors(MOE.config, MOE.seed)
    del tensors[name]
    write_weights(moe, tensors)
    assert_refused(moe, WeightsError, name)


@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
def test_a_missing_stack_of_experts_is_noticed(part: str, moe: Path) -> None:
    tensors = make_tensors(MOE.config, MOE.seed, "hf-stacked")
    del tensors[f"model.layers.1.mlp.experts.{part}"]
    write_weights(moe, tensors)
    assert_refused(moe, WeightsError, "model.layers.1.mlp")


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_a_misshapen_tensor_is_named(name: str, dense: Path) -> None:
    tensors = make_tensors(DENSE.config, DENSE.seed)
    tensors[name] = np.concatenate([tensors[name], tensors[name][:1]])
    write_weights(dense, tensors)
    rows = str(len(tensors[name]) - 1)
    assert_refused(dense, WeightsError, name, str(len(tensors[name])), rows)


@pytest.mark.parametrize("name", MOE_NAMES)
def test_a_misshapen_tensor_of_a_mixture_is_named(name: str, moe: Path) -> None:
    tensors = make_tensors(MOE.config, MOE.seed)
    tensors[name] = tensors[name][:, :-1]
    write_weights(moe, tensors)
    assert_refused(moe, WeightsError, name)


def test_a_transposed_tensor_is_named(dense: Path) -> None:
    tensors = make_tensors(DENSE.config, DENSE.seed)
    name = "model.layers.0.self_attn.v_proj.weight"
    tensors[name] = tensors[name].T.copy()
    write_weights(dense, tensors)
    assert_refused(dense, WeightsError, name)


EXTRA_NAMES = [
    "model.layers.3.mlp.up_proj.weight",  # of a layer the config does not have
    "model.layers.1.self_attn.q_proj.bias",  # the config has no biases
    "model.layers.1.mlp.shared_expert.up_proj.weight",
    "visual.patch_embed.weight",
]


@pytest.mark.parametrize("name", EXTRA_NAMES)
def test_an_extra_tensor_is_named(name: str, dense: Path) -> None:
    tensors = make_tensors(DENSE.config, DENSE.seed)
    tensors[name] = np.zeros((64,), np.float32)
    write_weights(dense, tensors)
    assert_refused(dense, WeightsError, name)


def test_an_extra_expert_is_named(moe: Path) -> None:
    tensors = make_tensors(MOE.config, MOE.seed)
    name = "model.layers.0.mlp.experts.8.up_proj.weight"
    tensors[name] = tensors["model.layers.0.mlp.experts.7.up_proj.weight"]
    write_weights(moe, tensors)
    assert_refused(moe, WeightsError, name)


def test_what_older_checkpoints_carry_along_is_ignored(dense: Path) -> None:
    tensors = make_tensors(DENSE.config, DENSE.seed)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros((8,), np.float32)
    plain = load_model(dense, dtype="float32")([[1, 2, 3]])
    write_weights(dense, tensors)
    assert mx.array_equal(load_model(dense, dtype="float32")([[1, 2, 3]]), plain)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_file_is_named(kept: float, dense: Path) -> None:
    data = (dense / WEIGHTS).read_bytes()
    stop = int(len(data) * kept) if 0 < kept < 1 else int(kept)
    (dense / WEIGHTS).write_bytes(data[:stop])
    assert_refused(dense, WeightsError, str(dense / WEIGHTS), "cut short")


def test_a_truncated_shard_is_named(dense: Path) -> None:
    (dense / WEIGHTS).unlink()
    write_weights(dense, make_tensors(DENSE.config, DENSE.seed), shards=3)
    shard = dense / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_refused(dense, WeightsError, str(shard), "cut short")


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("offsets", [[0, 4], [0, 100000], [256, 0], [-256, 0]])
def test_a_header_that_contradicts_itself_is_refused(offsets: list[int], dense: Path) -> None:
    """64 float32 are 256 bytes: anything else would read a neighbour's bytes."""

    def change(header: dict[str, Any]) -> None:
        header[NORM]["data_offsets"] = offsets

    rewrite_header(dense / WEIGHTS, change)
    assert_refused(dense, WeightsError, str(dense / WEIGHTS))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I32", "F4", "nonsense"])
def test_a_dtype_no_weight_has_is_refused(dtype: str, dense: Path) -> None:
    """FP8 weights without their scales would be taken for numbers they are not."""

    def change(header: dict[str, Any]) -> None:
        header[NORM]["dtype"] = dtype
        start = header[NORM]["data_offsets"][0]
        if dtype == "F8_E4M3":
            header[NORM]["data_offsets"] = [start, start + 64]

    rewrite_header(dense / WEIGHTS, change)
    assert_refused(dense, WeightsError)


def test_a_header_that_is_not_one_is_named(dense: Path) -> None:
    (dense / WEIGHTS).write_bytes(b"\x10" + b"\x00" * 7 + b"this is not json" * 9)
    assert_refused(dense, WeightsError, str(dense / WEIGHTS))


def test_a_git_lfs_pointer_is_named(dense: Path) -> None:
    """What a clone without git-lfs leaves in place of the weights."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1000000\n"
    (dense / WEIGHTS).write_text(pointer)
    assert_refused(dense, WeightsError, str(dense / WEIGHTS))


def test_a_missing_shard_is_named(dense: Path) -> None:
    (dense / WEIGHTS).unlink()
    write_weights(dense, make_tensors(DENSE.config, DENSE.seed), shards=3)
    (dense / "model-00002-of-00003.safetensors").unlink()
    assert_refused(dense, WeightsError, "model-00002-of-00003.safetensors")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_a_broken_index_is_named(content: str, dense: Path) -> None:
    (dense / INDEX).write_text(content)
    assert_refused(dense, WeightsError, INDEX)


@pytest.mark.parametrize("outside", ["../outside.safetensors", "/etc/passwd"])
def test_an_index_cannot_point_outside_the_folder(outside: str, dense: Path) -> None:
    shutil.copy(dense / WEIGHTS, dense.parent / "outside.safetensors")
    (dense / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": outside}}))
    assert_refused(dense, WeightsError, INDEX)


def test_a_pickle_is_refused_and_named(dense: Path) -> None:
    (dense / WEIGHTS).rename(dense / "pytorch_model.bin")
    assert_refused(dense, WeightsError, str(dense / "pytorch_model.bin"), "pickle")


def test_a_pickle_beside_safetensors_is_not_touched(dense: Path) -> None:
    plain = load_model(dense, dtype="float32")([[1, 2, 3]])
    (dense / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert mx.array_equal(load_model(dense, dtype="float32")([[1, 2, 3]]), plain)


def test_a_gguf_file_is_refused_and_named(dense: Path) -> None:
    (dense / WEIGHTS).rename(dense / "qwen3.gguf")
    assert_refused(dense, WeightsError, str(dense / "qwen3.gguf"))


def test_a_folder_without_weights_says_so(dense: Path) -> None:
    (dense / WEIGHTS).unlink()
    assert_refused(dense, WeightsError, str(dense), "safetensors")


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert_refused(tmp_path, ConfigError, str(tmp_path / "config.json"))


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", ConfigError, str(tmp_path / "nowhere"))


def test_a_config_that_is_not_json_is_named(dense: Path) -> None:
    (dense / "config.json").write_text("{'model_type': 'qwen3'}")
    assert_refused(dense, ConfigError, str(dense / "config.json"))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3_next", "qwen3_vl"])
def test_another_architecture_is_named(model_type: str, dense: Path) -> None:
    with_config(dense, model_type=model_type)
    assert_refused(dense, ConfigError, model_type, "qwen3")


def test_weights_of_another_size_are_refused(dense: Path) -> None:
    with_config(dense, hidden_size=80)
    assert_refused(dense, WeightsError, "model.embed_tokens.weight", "64", "80")


def test_dense_weights_do_not_pass_for_a_mixture(dense: Path) -> None:
    (dense / "config.json").write_text(json.dumps(MOE.config))
    assert_refused(dense, WeightsError, "model.layers.0.mlp.gate.weight")


def test_an_unknown_dtype_is_refused(dense: Path) -> None:
    with pytest.raises(OptionError, match="int8"):
        load_model(dense, dtype="int8")


# --- quantized ---------------------------------------------------------------------------

DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture
def packed(dense: Path) -> tuple[Path, dict[str, mx.array]]:
    """A folder in MLX's format with one matrix packed, and its tensors."""
    tensors = {k: mx.array(v) for k, v in make_tensors(DENSE.config, DENSE.seed).items()}
    parts = mx.quantize(tensors[f"{DOWN}.weight"], group_size=32, bits=4)
    tensors |= dict(zip((f"{DOWN}.weight", f"{DOWN}.scales", f"{DOWN}.biases"), parts, strict=True))
    with_config(dense, quantization={"group_size": 32, "bits": 4})
    return dense, tensors


def save(folder: Path, tensors: dict[str, mx.array]) -> None:
    mx.save_safetensors(str(folder / WEIGHTS), tensors)


Packed = tuple[Path, dict[str, mx.array]]


def test_one_packed_matrix_among_others_loads(packed: Packed) -> None:
    folder, tensors = packed
    save(folder, tensors)
    assert load_model(folder, dtype="float32")([list(SHORT.encode())]).shape == (1, 5, 288)


@pytest.mark.parametrize("part", ["scales", "biases", "weight"])
def test_a_missing_part_of_a_packed_matrix_is_named(part: str, packed: Packed) -> None:
    folder, tensors = packed
    del tensors[f"{DOWN}.{part}"]
    save(folder, tensors)
    assert_refused(folder, WeightsError, f"{DOWN}.{part}")


@pytest.mark.parametrize("part", ["scales", "biases", "weight"])
def test_a_misshapen_part_of_a_packed_matrix_is_named(part: str, packed: Packed) -> None:
    folder, tensors = packed
    tensors[f"{DOWN}.{part}"] = tensors[f"{DOWN}.{part}"][:-1]
    save(folder, tensors)
    assert_refused(folder, WeightsError, f"{DOWN}.{part}")


def test_scales_of_no_group_size_are_refused(packed: Packed) -> None:
    folder, tensors = packed
    scales = tensors[f"{DOWN}.scales"]
    tensors[f"{DOWN}.scales"] = mx.concatenate([scales, scales[:, :2]], axis=1)
    save(folder, tensors)
    assert_refused(folder, WeightsError, DOWN)


def test_scales_without_a_packed_weight_are_refused(packed: Packed) -> None:
    folder, tensors = packed
    tensors[f"{DOWN}.weight"] = mx.array(
        make_tensors(DENSE.config, DENSE.seed)[f"{DOWN}.weight"],
    )
    save(folder, tensors)
    assert_refused(folder, WeightsError, DOWN)


FOREIGN: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
    ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
]


@pytest.mark.parametrize(("settings", "word"), FOREIGN, ids=[word for _, word in FOREIGN])
def test_a_foreign_quantization_is_named(settings: dict[str, Any], word: str, dense: Path) -> None:
    with_config(dense, quantization_config=settings)
    assert_refused(dense, WeightsError, word)


def test_an_unknown_mlx_mode_is_named(packed: Packed) -> None:
    folder, tensors = packed
    save(folder, tensors)
    with_config(folder, quantization={"group_size": 32, "bits": 4, "mode": "nf4"})
    assert_refused(folder, CheckpointError, "nf4")
