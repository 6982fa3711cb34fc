"""Checkpoints that mlx-lm quantized and saved: the same logits as mlx-lm's own model."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_qwen3.device import Device
from mlx_qwen3.errors import DeviceError
from mlx_qwen3.model.linear import Quantization, QuantizedLinear
from mlx_qwen3.model.weights import load_model
from tests.checkpoints import (
    make_tensors,
    write_checkpoint,
    write_generation_config,
    write_tokenizer,
)
from tests.model.tiny_models import LONG, SHORT, TINY_MODELS, TinyModel

Array = NDArray[Any]
Folders = Callable[[str], Path]

TOLERANCE = 1e-3  # of the logits' standard deviation

# Every input is a multiple of 64, the widest group below.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "head_dim": 32,
    "torch_dtype": "bfloat16",
}
DENSE = TINY_MODELS["dense"].config | SIZES
TIED = DENSE | {"tie_word_embeddings": True}
MOE = TINY_MODELS["moe"].config | SIZES


def mixed_bits(path: str, _: nn.Module) -> bool | dict[str, Any]:
    """As a recipe does: some parts untouched, others with more bits, q and k unlike v."""
    if "layers.0." in path or path.endswith(("mlp.gate", "o_proj")):
        return False
    if "v_proj" in path or "down_proj" in path:
        return {"group_size": 32, "bits": 6}
    if "up_proj" in path:
        return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    return True


@dataclass(frozen=True)
class Recipe:
    """What mlx_lm.utils.quantize_model is told."""

    config: dict[str, Any]
    group_size: int | None
    bits: int | None
    mode: str = "affine"
    options: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "affine-4-g64": Recipe(DENSE, 64, 4),
    "affine-8-g32": Recipe(DENSE, 32, 8),
    "affine-3-g64": Recipe(DENSE, 64, 3),
    "affine-6-g128": Recipe(DENSE | {"intermediate_size": 256}, 128, 6),
    "affine-4-g64-tied": Recipe(TIED, 64, 4),
    "mixed": Recipe(DENSE, 64, 4, options={"quant_predicate": mixed_bits}),
    "mxfp4": Recipe(DENSE, 32, 4, "mxfp4"),
    "nvfp4": Recipe(DENSE, 16, 4, "nvfp4"),
    "mxfp8": Recipe(DENSE, 32, 8, "mxfp8"),
    "mxfp4-tied": Recipe(TIED, 32, 4, "mxfp4"),
    "moe-affine-4-g64": Recipe(MOE, 64, 4),  # with mlx-lm's own rule: routers get 8 bits
    "moe-affine-8-g32": Recipe(MOE, 32, 8),
    "moe-mixed": Recipe(MOE, 64, 4, options={"quant_predicate": mixed_bits}),
    "moe-mxfp4": Recipe(MOE, 32, 4, "mxfp4"),
    "moe-nvfp4": Recipe(MOE, 16, 4, "nvfp4"),
}
GLOBAL_SCALE = Recipe(MOE, 16, 4, "nvfp4", {"global_scale": True})  # MLX has it on GPUs only


@pytest.fixture(scope="module")
def mlx_lm_utils() -> ModuleType:
    """Imported late, as it takes seconds; it warns, and would lower the limit of open files."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr("resource.setrlimit", lambda *_: None)
        from mlx_lm import utils
    return utils


@pytest.fixture(scope="module")
def quantized(mlx_lm_utils: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """quantized(name): a folder that mlx-lm wrote by that recipe, from a bfloat16 checkpoint."""
    root = tmp_path_factory.mktemp("quantized")

    @functools.cache
    def folder(name: str) -> Path:
        recipe, out = (RECIPES | {"global-scale": GLOBAL_SCALE})[name], root / name
        source = write_checkpoint(root / f"{name}-source", recipe.config, dtype="bfloat16")
        model, config = mlx_lm_utils.load_model(source)
        model, config = mlx_lm_utils.quantize_model(
            model, config, recipe.group_size, recipe.bits, recipe.mode, **recipe.options
        )
        mlx_lm_utils.save_model(out, model)
        mlx_lm_utils.save_config(config, out / "config.json")
        write_tokenizer(out)
        return write_generation_config(out)

    return folder


def reference_logits(utils: ModuleType, folder: Path, token_ids: list[int]) -> Array:
    """mlx-lm's, with everything that is not packed in float32."""
    model, _ = utils.load_model(folder)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([token_ids]))[0].astype(mx.float32))


def assert_close(actual: Array, expected: Array, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / expected.std()
    assert error <= tolerance, f"off by {error:.1e} standard deviations"


@pytest.mark.parametrize("text", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", RECIPES)
def test_logits_are_those_of_mlx_lm(
    name: str, text: str, quantized: Folders, mlx_lm_utils: ModuleType
) -> None:
    token_ids = list(text.encode())
    model = load_model(quantized(name), dtype="float32")
    logits = model([token_ids])
    assert logits.dtype == mx.float32
    expected = reference_logits(mlx_lm_utils, quantized(name), token_ids)
    assert_close(np.array(logits[0]), expected)

    cache = model.make_cache()  # a row at a time: another kernel
    steps = [model([[token]], cache=cache)[0] for token in token_ids[:16]]
    assert_close(np.array(mx.concatenate(steps)), expected[:16])


def test_a_global_scale_is_used_or_refused(quantized: Folders, mlx_lm_utils: ModuleType) -> None:
    """Refused while loading: MLX itself would raise in the middle of the first forward pass."""
    folder, token_ids = quantized("global-scale"), list(LONG.encode())
    if Device.current().backend == "cpu":
        with pytest.raises(DeviceError, match=r"global.scale"):
            load_model(folder, dtype="float32")
        return
    logits = np.array(load_model(folder, dtype="float32")([token_ids])[0])
    assert_close(logits, reference_logits(mlx_lm_utils, folder, token_ids))


@pytest.mark.parametrize("name", ["affine-4-g64", "mxfp4", "nvfp4", "mxfp8", "moe-affine-4-g64"])
def test_quantization_is_not_the_unquantized_model(
    name: str, quantized: Folders, tmp_path: Path
) -> None:
    """The comparisons above would also hold if nothing had been packed."""
    plain = write_checkpoint(tmp_path, RECIPES[name].config, dtype="bfloat16")
    token_ids = [list(LONG.encode())]
    expected = np.array(load_model(plain, dtype="float32")(token_ids))
    actual = np.array(load_model(quantized(name), dtype="float32")(token_ids))
    error = np.abs(actual - expected).max() / expected.std()
    assert error > 20 * TOLERANCE
    config = json.loads((quantized(name) / "config.json").read_text())
    assert config["quantization"]["bits"] == RECIPES[name].bits


@pytest.mark.parametrize("name", ["affine-4-g64", "mixed", "mxfp4", "moe-affine-4-g64"])
def test_the_dtype_is_the_device_policy(name: str, quantized: Folders) -> None:
    device = Device.current()
    expected = getattr(mx, device.default_dtype("bfloat16"))
    model = load_model(quantized(name))
    assert model([list(SHORT.encode())]).dtype == expected
    assert model.hidden_states(mx.array([[1, 2, 3]])).dtype == expected
    cache = model.make_cache()
    model([list(SHORT.encode())], cache=cache)
    assert {buffer.dtype for buffer in cache.state()} == {expected}
    if device.backend == "cpu":
        assert expected == mx.float32


@pytest.mark.parametrize("name", ["affine-4-g64", "mixed", "mxfp4", "nvfp4", "moe-affine-4-g64"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("length", [5, 30])
def test_16_bit_activations_stay_close(
    name: str, dtype: str, length: int, quantized: Folders
) -> None:
    token_ids = [list(LONG.encode())[:length]]
    expected = np.array(load_model(quantized(name), dtype="float32")(token_ids))
    logits = load_model(quantized(name), dtype=dtype)(token_ids)
    assert logits.dtype == getattr(mx, dtype)
    error = np.array(logits.astype(mx.float32)) - expected
    assert np.sqrt((error**2).mean()) / expected.std() < (0.1 if "moe" in name else 0.05)


def test_a_bfloat16_file_gives_float32_activations_on_a_cpu(tiny_folder: Folders) -> None:
    device = Device.current()
    model = load_model(tiny_folder("bfloat16-file"))
    logits = model([list(SHORT.encode())])
    assert logits.dtype == getattr(mx, device.default_dtype("bfloat16"))
    if device.backend == "cpu":
        assert logits.dtype == mx.float32


def packed_and_unpacked(
    tiny: TinyModel, mode: str, group_size: int, bits: int
) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Every matrix quantized in MLX's layout, and the float32 weights that this stands for."""
    weights = make_tensors(tiny.config, tiny.seed, "mlx")
    packed, unpacked = {}, {}
    for name, values in weights.items():
        tensor = mx.array(values)
        packed[name] = unpacked[name] = tensor
        if tensor.ndim > 1:
            settings = {"group_size": group_size, "bits": bits, "mode": mode}
            parts = mx.quantize(tensor, **settings)
            for part, array in zip(
                ("weight", "scales", "biases")[: len(parts)], parts, strict=True
            ):
                packed[name.removesuffix("weight") + part] = array
            unpacked[name] = mx.dequantize(*parts, **settings, dtype=mx.float32)
    return packed, unpacked


@pytest.mark.parametrize(
    ("mode", "group_size", "bits"),
    [("affine", 32, 4), ("affine", 32, 2), ("affine", 32, 5), ("mxfp4", 32, 4), ("mxfp8", 32, 8)],
)
@pytest.mark.parametrize("name", ["attention-bias", "tied", "yarn-moe", "moe-unnormalised"])
def test_packed_weights_are_what_they_stand_for(
    name: str, mode: str, group_size: int, bits: int, tmp_path: Path
) -> None:
    """Independent of mlx-lm, whose Qwen3 knows neither biases nor YaRN for mixtures."""
    tiny = TINY_MODELS[name]
    folders = [tmp_path / "packed", tmp_path / "unpacked"]
    for folder, tensors in zip(
        folders, packed_and_unpacked(tiny, mode, group_size, bits), strict=True
    ):
        folder.mkdir()
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        (folder / "config.json").write_text(json.dumps(tiny.config))
    packed, unpacked = (load_model(folder, dtype="float32") for folder in folders)
    for token_ids in (list(LONG.encode()), [72]):
        actual, expected = (np.array(model([token_ids])) for model in (packed, unpacked))
        assert_close(actual, expected)


MODES = [("affine", 64, 4), ("affine", 32, 8), ("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)]


@pytest.mark.parametrize("rows", [1, 12, 40])
@pytest.mark.parametrize(("mode", "group_size", "bits"), MODES)
def test_unpacking_before_the_product_changes_nothing(
    mode: str, group_size: int, bits: int, rows: int
) -> None:
    """A CPU with a fast BLAS multiplies dense from `dense_from` rows on."""
    keys = mx.random.split(mx.random.key(bits), 2)
    weight = mx.random.normal((96, 128), key=keys[0])
    x = mx.random.normal((1, rows, 128), key=keys[1])
    packed = mx.quantize(weight, group_size=group_size, bits=bits, mode=mode)
    weight, scales, biases = (*packed, None)[:3]
    quantization = Quantization(group_size, bits, mode)
    never = QuantizedLinear(weight, scales, biases, quantization)
    always = QuantizedLinear(weight, scales, biases, quantization, dense_from=1)
    assert always(x).dtype == mx.float32
    assert_close(np.array(always(x)), np.array(never(x)), 1e-5)
    ids = mx.array([3, 0, 95, 3])
    assert_close(np.array(never.rows(ids) @ x[0].T), np.array(never(x)[0].T[ids]), 1e-5)


def test_a_wide_matrix_is_unpacked_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block is smaller than the others."""
    monkeypatch.setattr("mlx_qwen3.model.linear._UNPACK_BYTES", 1)
    keys = mx.random.split(mx.random.key(0), 2)
    weight = mx.random.normal((600, 64), key=keys[0])
    x = mx.random.normal((1, 16, 64), key=keys[1])
    quantization = Quantization(64, 4)
    packed = mx.quantize(weight, group_size=64, bits=4)
    never = QuantizedLinear(*packed, quantization)
    always = QuantizedLinear(*packed, quantization, dense_from=1)
    assert_close(np.array(always(x)), np.array(never(x)), 1e-5)


def test_a_folder_from_mlx_lm_convert_generates(
    mlx_lm_utils: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: mlx_lm.convert's folder, tokenizer included, through load and generate."""
    from mlx_lm.convert import convert

    from mlx_qwen3 import load

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = write_checkpoint(tmp_path / "source", MOE, dtype="bfloat16")
    convert(str(source), str(tmp_path / "mlx"), quantize=True, q_bits=4, q_group_size=64)
    llm = load(str(tmp_path / "mlx"), dtype="float32")
    done = llm.generate(SHORT, raw=True, temperature=0.0, max_tokens=8)
    expected = list(SHORT.encode())
    for _ in range(len(done.token_ids)):
        logits = reference_logits(mlx_lm_utils, tmp_path / "mlx", expected)
        expected.append(int(logits[-1].argmax()))
    assert list(done.token_ids) == expected[len(SHORT) :]
    assert done.token_ids
