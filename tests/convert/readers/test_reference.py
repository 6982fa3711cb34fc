"""Packed weights against slow and obvious readings of the formats' descriptions, and others' own.

The readers unpack whole arrays; here one weight at a time is computed in Python's integers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_qwen3_convert.readers import Source, open_source
from mlx_qwen3_convert.readers.fp8 import _e4m3
from tests.checkpoints import make_tensors
from tests.convert.readers.cases import CASES, CONFIGS
from tests.convert.readers.formats import read_raw, write_gptq, write_raw
from tests.convert.readers.gguf_files import gguf_name, read_gguf

Written = Callable[[str, str], Path]
Array = NDArray[Any]
Tensors = Mapping[str, Array]
SAMPLES = 60  # weights of each matrix


def gptq_weight(raw: Tensors, prefix: str, out: int, into: int, bits: int, *, v2: bool) -> float:
    """One weight of a GPTQ matrix: scale * (q - zero) of the input's group."""
    per_word, mask = 32 // bits, 2**bits - 1
    group = int(raw[f"{prefix}.g_idx"][into])
    word = int(raw[f"{prefix}.qweight"][into // per_word, out]) % 2**32
    q = word >> (into % per_word * bits) & mask
    zeros = int(raw[f"{prefix}.qzeros"][group, out // per_word]) % 2**32
    if not v2:  # as GPTQModel reads version 1: the word plus one in every place
        zeros = (zeros + sum(1 << place for place in range(0, 32, bits))) % 2**32
    zero = zeros >> (out % per_word * bits) & mask
    return float(raw[f"{prefix}.scales"][group, out]) * (q - zero)


def awq_weight(raw: Tensors, prefix: str, out: int, into: int) -> float:
    """One weight of an AWQ matrix; outputs 0 4 1 5 2 6 3 7 of a word lie at nibbles 0 to 7."""
    shift = 4 * (0, 4, 1, 5, 2, 6, 3, 7)[out % 8]
    scales = raw[f"{prefix}.scales"]
    group = into // (raw[f"{prefix}.qweight"].shape[0] // scales.shape[0])
    q = int(raw[f"{prefix}.qweight"][into, out // 8]) % 2**32 >> shift & 15
    zero = int(raw[f"{prefix}.qzeros"][group, out // 8]) % 2**32 >> shift & 15
    return float(scales[group, out]) * (q - zero)


def e4m3(code: int) -> float:
    """One float8: sign, 4 bits of exponent with bias 7, 3 bits of mantissa."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 127 == 127:
        return math.nan
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if code & 128 else size


def fp8_weight(raw: Tensors, name: str, out: int, into: int, block: tuple[int, int]) -> float:
    scale = raw[f"{name}_scale_inv"][out // block[0], into // block[1]]
    return e4m3(int(raw[name][out, into])) * float(scale)


def whole(source: Source, name: str) -> Array:
    rows = source.rows(name, 0, source.tensors[name].shape[0])
    return np.array(rows.astype(mx.float32))


def check_samples(source: Source, weight: Callable[[str, int, int], float]) -> None:
    random = np.random.default_rng(5)
    for name, tensor in source.tensors.items():
        if not name.endswith("_proj.weight"):
            continue
        rows = np.array(source.rows(name, 0, tensor.shape[0]))
        prefix = name.removesuffix(".weight")
        for _ in range(SAMPLES):
            out, into = (int(random.integers(size)) for size in tensor.shape)
            assert rows[out, into] == pytest.approx(weight(prefix, out, into), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("gptq")])
def test_gptq_weight_by_weight(case: str, config: str, written: Written) -> None:
    folder = written(case, config)
    raw, options = read_raw(folder), CASES[case].options
    bits, v2 = options.get("bits", 4), options.get("v2", False)
    check_samples(
        open_source(folder), lambda name, out, into: gptq_weight(raw, name, out, into, bits, v2=v2)
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_of_both_versions_mean_the_same_even_at_zero(bits: int, tmp_path: Path) -> None:
    """Version 1 stores a zero of 0 as -1, which borrows from its neighbours in the word."""
    found = []
    for v2 in (False, True):
        options: dict[str, Any] = {
            "bits": bits,
            "sym": False,
            "group_size": 32,
            "shift": 0.4,
            "v2": v2,
        }
        folder = write_gptq(tmp_path / str(v2), CONFIGS["dense"], **options)
        source = open_source(folder)
        name = "model.layers.1.mlp.gate_proj.weight"
        found.append(np.array(source.rows(name, 0, 384)))
        if v2:
            zeros = read_raw(folder)["model.layers.1.mlp.gate_proj.qzeros"]
            assert (zeros & (2**bits - 1) == 0).any()
    assert np.array_equal(found[0], found[1])
    original = make_tensors(CONFIGS["dense"], 0)[name] + np.float32(0.4)
    assert np.abs(found[0] - original).max() <= 0.4 * np.abs(original).max()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("case", ["awq", "awq-32"])
def test_awq_weight_by_weight(case: str, config: str, written: Written) -> None:
    folder = written(case, config)
    raw = read_raw(folder)
    check_samples(open_source(folder), lambda name, out, into: awq_weight(raw, name, out, into))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("case", "block"), [("fp8", (128, 128)), ("fp8-partial", (96, 80))])
def test_fp8_weight_by_weight(
    case: str, block: tuple[int, int], config: str, written: Written
) -> None:
    folder = written(case, config)
    raw = read_raw(folder)
    check_samples(
        open_source(folder),
        lambda name, out, into: fp8_weight(raw, f"{name}.weight", out, into, block),
    )


def test_every_float8() -> None:
    expected = [e4m3(code) for code in range(256)]
    found = _e4m3()
    codes = [code for code in range(256) if code & 127 != 127]
    assert all(found[code] == expected[code] for code in codes)
    assert (found[1], found[0x7E], found[0xFE]) == (2.0**-9, 448, -448)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("gguf")])
def test_gguf_as_its_own_package_reads_it(case: str, config: str, written: Written) -> None:
    file = written(case, config)
    source, expected = open_source(file), read_gguf(file)
    for name in source.tensors:
        rows, own = whole(source, name), own_rows(expected, name)
        assert np.allclose(rows, own, rtol=0, atol=2e-7 * np.abs(own).max()), name


def own_rows(tensors: Tensors, name: str) -> Array:
    if ".experts." not in name:
        return tensors[gguf_name(name)]
    layer, _, rest = name.partition(".mlp.experts.")
    expert, part, kind = rest.split(".")
    return tensors[gguf_name(f"{layer}.mlp.switch_mlp.{part}.{kind}")][int(expert)]


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q8_0"])
def test_gguf_blocks_of_random_bytes(kind: str) -> None:
    """Every bit of a block is read as the gguf package reads it, whatever a quantizer makes."""
    import gguf

    from mlx_qwen3_convert.readers.affine import Integers
    from mlx_qwen3_convert.readers.gguf_blocks import BLOCK_TYPES

    one = gguf.GGMLQuantizationType[kind]
    block = BLOCK_TYPES[one]
    assert (block.weights, block.nbytes) == gguf.GGML_QUANT_SIZES[one]
    data = np.random.default_rng(7).integers(0, 256, (400, block.nbytes), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind, (0, 2))
    for start in halves if kind not in ("Q5_0", "Q8_0") else (0,):
        data[:, start + 1] &= 0x3F  # the factors: positive and below 2
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, one)
    found = Integers(*block.decode(data), block.group_size).dequantize()
    sizes = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(np.array(found) - expected) <= 4e-7 * sizes + 1e-12).all()


# --- other people's implementations --------------------------------------------------------


@pytest.mark.reference
def test_float8_is_torchs() -> None:
    torch = pytest.importorskip("torch", reason="torch's float8 is the reference")
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float().numpy()
    finite = np.isfinite(expected)
    assert np.array_equal(_e4m3()[finite], expected[finite])
    assert set(np.flatnonzero(~finite)) == {0x7F, 0xFF}


@pytest.mark.reference
@pytest.mark.parametrize("config", CONFIGS)
def test_fp8_as_transformers_unpacks_it(config: str, written: Written) -> None:
    torch = pytest.importorskip("torch", reason="transformers' reader is the reference")
    pytest.importorskip("accelerate", reason="transformers reads FP8 with it only")
    transformers = pytest.importorskip("transformers")
    folder = written("fp8", config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=transformers.FineGrainedFP8Config(dequantize=True),
        dtype=torch.bfloat16,
    )
    expected = {name: values.float().numpy() for name, values in theirs.state_dict().items()}
    source = open_source(folder)
    for name in source.tensors:
        ours, own = whole(source, name), own_expert(expected, name)
        assert np.allclose(ours, own, rtol=2**-8, atol=0), name  # it rounds to bfloat16


def own_expert(tensors: Tensors, name: str) -> Array:
    """A tensor of transformers 5, which stacks experts, by its published name."""
    if ".experts." not in name:
        return tensors[name]
    layer, _, rest = name.partition(".mlp.experts.")
    expert, part, _ = rest.split(".")
    if part == "down_proj":
        return tensors[f"{layer}.mlp.experts.down_proj"][int(expert)]
    gate, up = np.split(tensors[f"{layer}.mlp.experts.gate_up_proj"][int(expert)], 2)
    return gate if part == "gate_proj" else up


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["gguf-Q4_K", "gguf-Q8_0"])
@pytest.mark.parametrize("config", CONFIGS)
def test_logits_of_gguf_are_those_of_transformers(
    kind: str, config: str, written: Written, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' reader is the reference")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it only")
    transformers = pytest.importorskip("transformers")
    file = written(kind, config)
    load = transformers.AutoModelForCausalLM.from_pretrained
    ours = load(unpacked(open_source(file), tmp_path), dtype=torch.float32)
    # Ours: its own reading of the metadata takes every head to be 128 wide.
    theirs = load(file.parent, gguf_file=file.name, config=ours.config, dtype=torch.float32)
    token_ids = torch.arange(40)[None]
    with torch.no_grad():
        expected, found = theirs(token_ids).logits, ours(token_ids).logits
    assert (found - expected).abs().max() <= 1e-3 * expected.std()


def unpacked(source: Source, folder: Path) -> Path:
    """A plain float32 folder of what a source gives."""
    raws = {name: ("F32", whole(source, name)) for name in source.tensors}
    write_raw(folder / "model.safetensors", raws)
    (folder / "config.json").write_text(json.dumps(dict(source.config)))
    return folder
