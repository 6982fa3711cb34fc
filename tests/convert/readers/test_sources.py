"""What holds for every format: names, shapes, values, slices, exact integers, side files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_qwen3.errors import OptionError, WeightsError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.text.tokenizer import Tokenizer
from mlx_qwen3_convert.readers import AffineLayout, Source, open_source
from tests.checkpoints import CHAT_TEMPLATE, EOS_TOKEN_IDS, SPECIAL_TOKENS, make_tensors
from tests.convert.readers.cases import CASES, CONFIGS, EXACT

Written = Callable[[str, str], Path]
Array = NDArray[Any]


@pytest.fixture(params=[(case, config) for case in CASES for config in CONFIGS], ids="-".join)
def opened(request: pytest.FixtureRequest, written: Written) -> Iterator[tuple[str, str, Source]]:
    case, config = request.param
    source = open_source(written(case, config))
    yield case, config, source
    source.close()


def whole(source: Source, name: str) -> Array:
    rows = source.rows(name, 0, source.tensors[name].shape[0])
    return np.array(rows.astype(mx.float32))


def unpack(source: Source, name: str, start: int, stop: int, layout: AffineLayout) -> Array:
    rows = source.affine_rows(name, start, stop)
    width = source.tensors[name].shape[1]
    assert (rows.weight.dtype, rows.scales.dtype, rows.biases.dtype) == (
        mx.uint32,
        mx.float32,
        mx.float32,
    )
    assert rows.weight.shape == (stop - start, width * layout.bits // 32)
    assert rows.scales.shape == rows.biases.shape == (stop - start, width // layout.group_size)
    how: dict[str, Any] = {"group_size": layout.group_size, "bits": layout.bits}
    return np.array(mx.dequantize(rows.weight, rows.scales, rows.biases, **how))


def test_every_tensor_under_its_published_name_with_its_values(
    opened: tuple[str, str, Source],
) -> None:
    case, config, source = opened
    original = make_tensors(CONFIGS[config], 3)
    assert set(source.tensors) == set(original)
    for name, expected in original.items():
        tensor = source.tensors[name]
        assert (tensor.name, tensor.shape) == (name, expected.shape)
        assert tensor.nbytes > 0
        found = whole(source, name)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= CASES[case].error * np.abs(expected).max(), name


def test_rows_are_rows_of_the_whole(opened: tuple[str, str, Source]) -> None:
    case, _, source = opened
    random = np.random.default_rng(len(case))
    for name, tensor in source.tensors.items():
        start, stop = sorted(random.choice(tensor.shape[0] + 1, 2, replace=False).tolist())
        rows, expected = source.rows(name, start, stop), whole(source, name)[start:stop]
        assert rows.shape == (stop - start, *tensor.shape[1:])
        assert np.array_equal(np.array(rows.astype(mx.float32)), expected), name
        if tensor.affine is not None:
            unpacked = unpack(source, name, start, stop, tensor.affine)
            assert np.allclose(unpacked, expected, rtol=0, atol=3e-7 * np.abs(expected).max())


def test_affine_rows_are_exact_and_offered_wherever_mlx_has_the_layout(
    opened: tuple[str, str, Source],
) -> None:
    case, _, source = opened
    layouts = {name: tensor.affine for name, tensor in source.tensors.items() if tensor.affine}
    packed = {name for name in source.tensors if name.endswith("_proj.weight")}
    if case in EXACT:
        assert packed <= set(layouts)
        found = {(layouts[name].bits, layouts[name].group_size) for name in packed}
        assert found == EXACT[case]
    for name, layout in layouts.items():
        rows = source.tensors[name].shape[0]
        unpacked, expected = unpack(source, name, 0, rows, layout), whole(source, name)
        assert np.allclose(unpacked, expected, rtol=0, atol=3e-7 * np.abs(expected).max()), name


def test_floats_come_in_their_own_type_and_packed_rows_in_float32(
    opened: tuple[str, str, Source],
) -> None:
    _, _, source = opened
    stored = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
    for name, tensor in source.tensors.items():
        rows = source.rows(name, 0, 1)
        assert rows.dtype == stored.get(tensor.format, mx.float32)
        if tensor.format in stored:
            assert getattr(mx, tensor.dtype) == rows.dtype


def test_the_config_is_that_of_the_unpacked_model(opened: tuple[str, str, Source]) -> None:
    case, config, source = opened
    assert not {"quantization", "quantization_config"} & set(source.config)
    found = ModelConfig.from_dict(source.config)
    expected = ModelConfig.from_dict(CONFIGS[config])
    if case.startswith("gguf"):  # a few fields that change nothing are not in its metadata
        assert found.hidden_size == expected.hidden_size
        assert found.rope_parameters == expected.rope_parameters
        assert found.num_experts == expected.num_experts
    else:
        assert found == expected
    generation = source.generation_config
    assert generation is not None
    assert generation["eos_token_id"] == EOS_TOKEN_IDS


def test_side_files_make_the_same_tokenizer(
    opened: tuple[str, str, Source], tmp_path: Path
) -> None:
    _, _, source = opened
    names = source.write_side_files(tmp_path)
    assert sorted(names) == ["tokenizer.json", "tokenizer_config.json"]
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "Hello <think>\n狐狸 123</think><|im_end|>"
    ids = tokenizer.encode(text)
    assert ids[:6] == list(b"Hello ")
    assert {259, 260, 258} < set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.special_ids == {i for i, (_, special) in SPECIAL_TOKENS.items() if special}
    assert tokenizer.chat_template is not None
    assert tokenizer.settings.options["chat_template"] == CHAT_TEMPLATE


def test_rows_out_of_range_and_unknown_tensors_are_refused(written: Written) -> None:
    source = open_source(written("bfloat16", "dense"))
    name = "model.norm.weight"
    for start, stop in ((-1, 3), (0, 257), (5, 4), (5, 5)):
        with pytest.raises(OptionError, match=r"model\.norm\.weight: rows"):
            source.rows(name, start, stop)
    with pytest.raises(OptionError, match="no exact affine form"):
        source.affine_rows(name, 0, 1)
    with pytest.raises(WeightsError, match="tensor nothing is missing"):
        source.rows("nothing", 0, 1)


def test_reading_goes_on_after_close(written: Written) -> None:
    source = open_source(written("gptq", "dense"))
    name = "model.layers.0.self_attn.q_proj.weight"
    before = whole(source, name)
    source.close()
    assert np.array_equal(whole(source, name), before)


def test_tensors_come_in_the_order_of_the_bytes(written: Written) -> None:
    """A stack's experts one after the other, not all gates and then all ups."""
    names = list(open_source(written("stacked", "moe")).tensors)
    first = names.index("model.layers.0.mlp.experts.0.gate_proj.weight")
    assert names[first : first + 4] == [
        f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight"
        for expert in (0, 1)
        for part in ("gate", "up")
    ]
