"""Which format it is, what is refused and how, and what damage is found."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_qwen3.errors import ConfigError, WeightsError
from mlx_qwen3_convert.readers import Source, open_source
from tests.checkpoints import make_tensors, write_checkpoint, write_weights
from tests.convert.readers.cases import CONFIGS
from tests.convert.readers.formats import Raw, write_gguf, write_gptq, write_raw

Written = Callable[[str, str], Path]
DENSE = CONFIGS["dense"]
GATE = "model.layers.0.mlp.gate_proj"


@pytest.fixture
def copied(written: Written, tmp_path: Path) -> Callable[[str], Path]:
    """A folder of that case, to damage."""

    def copy(case: str) -> Path:
        return Path(shutil.copytree(written(case, "dense"), tmp_path / case))

    return copy


def set_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def set_quantization(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    set_config(folder, quantization_config=config["quantization_config"] | values)


def read_header(folder: Path) -> tuple[dict[str, Any], int]:
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length


def edit(folder: Path, name: str, value: bytes, place: int = 0) -> None:
    """Overwrite bytes of a tensor."""
    header, start = read_header(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(start + header[name]["data_offsets"][0] + place)
        file.write(value)


def raws(folder: Path) -> dict[str, Raw]:
    """The tensors of a folder as bytes of their types, to change and write again."""
    header, start = read_header(folder)
    data = (folder / "model.safetensors").read_bytes()[start:]
    sizes = {"F16": "<u2", "BF16": "<u2", "F32": "<u4", "I32": "<u4", "U32": "<u4"}
    return {
        name: (
            entry["dtype"],
            np.frombuffer(
                data[slice(*entry["data_offsets"])], sizes.get(entry["dtype"], "u1")
            ).reshape(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def rewrite(folder: Path, **changes: Raw | None) -> None:
    """Replace, add or (None) drop tensors; dots are written __."""
    found: dict[str, Raw | None] = {**raws(folder)}
    found |= {name.replace("__", "."): raw for name, raw in changes.items()}
    kept: Mapping[str, Raw] = {name: raw for name, raw in found.items() if raw is not None}
    write_raw(folder / "model.safetensors", kept)


def all_rows(source: Source, name: str) -> None:
    source.rows(name, 0, source.tensors[name].shape[0])


# --- which format --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("bfloat16", "safetensors bf16"),
        ("float32", "safetensors f32"),
        ("stacked", "safetensors bf16"),
        ("fp8", "FP8 128x128"),
        ("gptq", "GPTQ 4-bit g128"),
        ("gptq-desc-act", "GPTQ 4-bit g64 desc_act"),
        ("awq", "AWQ 4-bit g128"),
        ("mlx-4", "MLX 4-bit g64"),
        ("mlx-mxfp4", "MLX mxfp4 g32"),
        ("gguf-Q4_K", "GGUF Q4_K_M"),
    ],
)
def test_the_format_by_its_own_name(case: str, expected: str, written: Written) -> None:
    assert open_source(written(case, "moe")).format == expected


def test_a_folder_with_one_gguf_is_that_gguf(tmp_path: Path) -> None:
    file = write_gguf(tmp_path, DENSE, type="Q8_0")
    assert open_source(tmp_path).tensors == open_source(file).tensors


def test_settings_in_a_file_of_their_own(copied: Callable[[str], Path]) -> None:
    """As AutoGPTQ and AutoAWQ wrote them before transformers knew the formats."""
    for case, name in (("gptq", "quantize_config.json"), ("awq", "quant_config.json")):
        folder = copied(case)
        config = json.loads((folder / "config.json").read_text())
        settings = config.pop("quantization_config")
        del settings["quant_method"]
        if case == "awq":
            settings = {"w_bit": 4, "q_group_size": 128, "version": "GEMM", "zero_point": True}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / name).write_text(json.dumps(settings))
        assert open_source(folder).format.startswith(case.upper())


def test_mlx_settings_under_the_other_key_alone(copied: Callable[[str], Path]) -> None:
    folder = copied("mlx-4")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config.pop("quantization")
    (folder / "config.json").write_text(json.dumps(config))
    assert open_source(folder).format == "MLX 4-bit g64"


def test_names_without_the_outer_module(tmp_path: Path) -> None:
    """Embedding checkpoints: Qwen3Model saved alone, no head."""
    config = DENSE | {"tie_word_embeddings": True}
    write_checkpoint(tmp_path, config)
    tensors = make_tensors(config, 0)
    bare = {name.removeprefix("model."): values for name, values in tensors.items()}
    write_weights(tmp_path, bare)
    assert set(open_source(tmp_path).tensors) == set(tensors)


def test_a_tied_head_and_rope_frequencies_are_left_out(tmp_path: Path) -> None:
    """The 0.6B release has the head in its file all the same."""
    config = DENSE | {"tie_word_embeddings": True}
    write_checkpoint(tmp_path, config)
    tensors = make_tensors(config, 0)
    spare = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    spare["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    write_weights(tmp_path, tensors | spare)
    assert set(open_source(tmp_path).tensors) == set(tensors)


def test_biases_of_zeros_that_packers_add_are_left_out(copied: Callable[[str], Path]) -> None:
    folder, name = copied("gptq"), f"{GATE}.bias".replace(".", "__")
    rewrite(folder, **{name: ("F16", np.zeros(384, np.float16))})
    assert f"{GATE}.bias" not in open_source(folder).tensors
    rewrite(folder, **{name: ("F16", np.ones(384, np.float16))})
    assert f"{GATE}.bias" in open_source(folder).tensors  # for the converter to refuse
    rewrite(folder, **{name: ("F16", np.zeros(384, np.float16))})
    set_config(folder, attention_bias=True)
    assert f"{GATE}.bias" in open_source(folder).tensors


def test_licence_and_vocabulary_are_copied_and_the_readme_is_not(
    written: Written, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written("bfloat16", "dense"), tmp_path / "from"))
    extra = ["LICENSE", "LICENSE.txt", "merges.txt", "vocab.json", "chat_template.jinja"]
    (folder / "additional_chat_templates").mkdir()
    for name in (*extra, "additional_chat_templates/rag.jinja", "README.md", "config.old"):
        (folder / name).write_text(name)
    to = tmp_path / "to"
    to.mkdir()
    names = open_source(folder).write_side_files(to)
    assert sorted(names) == sorted(
        [*extra, "additional_chat_templates/rag.jinja", "tokenizer.json", "tokenizer_config.json"]
    )
    assert (to / "additional_chat_templates/rag.jinja").read_text().endswith("rag.jinja")


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["bitsandbytes", "compressed-tensors", "auto-round", "aqlm", "quanto"]
)
def test_other_quantizations_are_named(method: str, copied: Callable[[str], Path]) -> None:
    folder = copied("gptq")
    set_config(folder, quantization_config={"quant_method": method})
    with pytest.raises(WeightsError, match=f"in {method} format, which is not supported"):
        open_source(folder)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match="are pickles, which can run code, and are refused"):
        open_source(tmp_path)


def test_several_ggufs_need_a_choice(tmp_path: Path) -> None:
    for name in ("a-Q4_K_M.gguf", "a-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match=r"2 \.gguf files \(a-Q4_K_M\.gguf, .*name the one"):
        open_source(tmp_path)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not found; expected a model folder"):
        open_source(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"config\.json: not found"):
        open_source(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(WeightsError, match="not a GGUF file"):
        open_source(file)


@pytest.mark.parametrize(
    ("case", "changes", "expected"),
    [
        ("gptq", {"checkpoint_format": "marlin"}, "packed as 'marlin' in int32"),
        ("gptq", {"pack_dtype": "int16"}, "packed as 'gptq' in int16"),
        ("awq", {"version": "gemv"}, "AWQ weights of 4 bits in 'gemv' layout"),
        ("awq", {"bits": 8}, "AWQ weights of 8 bits in 'gemm' layout"),
    ],
)
def test_layouts_that_are_not_read(
    case: str, changes: dict[str, Any], expected: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(case)
    set_quantization(folder, **changes)
    with pytest.raises(WeightsError, match=expected):
        open_source(folder)


@pytest.mark.parametrize("block", [[128], "128x128", [0, 128], [128.5, 128], 128])
def test_block_sizes_that_are_none(block: Any, copied: Callable[[str], Path]) -> None:
    folder = copied("fp8")
    set_quantization(folder, weight_block_size=block)
    with pytest.raises(ConfigError, match="weight_block_size is"):
        open_source(folder)


def test_three_bits_of_gptq_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("gptq")
    rewrite(folder, **{f"{GATE}.qzeros".replace(".", "__"): ("I32", np.zeros((2, 36), "<u4"))})
    with pytest.raises(WeightsError, match=r"gate_proj\.qweight has 3 bits"):
        open_source(folder)


def test_packed_weights_without_settings_are_refused(copied: Callable[[str], Path]) -> None:
    for case in ("gptq", "mlx-4", "fp8"):
        folder = copied(case)
        set_config(folder, quantization_config=None, quantization=None)
        with pytest.raises(WeightsError, match=r"holds (I32|U32|F8_E4M3) numbers; expected BF16"):
            open_source(folder)


# --- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["bfloat16", "gptq", "awq", "fp8", "mlx-4"])
def test_a_file_cut_short_is_found_when_opened(case: str, copied: Callable[[str], Path]) -> None:
    folder = copied(case)
    file = max(folder.glob("*.safetensors"))
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(WeightsError, match=f"{re.escape(str(file))}: cut short"):
        open_source(folder)


def test_a_file_that_shrinks_later_is_found_when_read(copied: Callable[[str], Path]) -> None:
    folder = copied("gptq")
    source = open_source(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"model\.safetensors: cut short in tensor"):
        all_rows(source, f"{GATE}.weight")


def test_bytes_that_do_not_fit_the_shape(copied: Callable[[str], Path]) -> None:
    folder = copied("float32")
    header, start = read_header(folder)
    data = (folder / "model.safetensors").read_bytes()[start:]
    header["model.norm.weight"]["shape"] = [255]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight of shape \(255,\) has 1024 bytes"):
        open_source(folder)


_NAN16, _INF16, _NAN_BF16 = b"\x00\x7e", b"\x00\xfc", b"\xc0\x7f"


@pytest.mark.parametrize(
    ("case", "stored", "value", "name"),
    [
        ("float32", f"{GATE}.weight", b"\x00\x00\xc0\x7f", None),
        ("float32", f"{GATE}.weight", b"\x00\x00\x80\xff", None),
        ("float16", "model.norm.weight", _NAN16, "model.norm.weight"),
        ("float16", f"{GATE}.weight", _INF16, None),
        ("mlx-layout", f"{GATE}.weight", _NAN_BF16, None),
        ("gptq", f"{GATE}.scales", _NAN16, None),
        ("gptq-desc-act", f"{GATE}.scales", _INF16, None),
        ("awq", f"{GATE}.scales", _NAN16, None),
        ("fp8", f"{GATE}.weight", b"\xff", None),
        ("fp8", f"{GATE}.weight_scale_inv", _NAN_BF16, None),
        ("mlx-4", f"{GATE}.scales", _NAN_BF16, None),
        ("mlx-4", f"{GATE}.biases", _NAN_BF16, None),
        ("mlx-mxfp4", f"{GATE}.scales", b"\xff", None),
    ],
)
def test_nan_and_infinity_are_found_where_they_are(
    case: str, stored: str, value: bytes, name: str | None, copied: Callable[[str], Path]
) -> None:
    folder = copied(case)
    edit(folder, stored, value)
    source = open_source(folder)
    name = name or f"{GATE}.weight"
    with pytest.raises(WeightsError, match=rf"model\.safetensors: tensor {re.escape(stored)[:9]}.*"
                       "holds NaN or infinity"):  # fmt: skip
        all_rows(source, name)
    if source.tensors[name].affine is not None:
        with pytest.raises(WeightsError, match="holds NaN or infinity"):
            source.affine_rows(name, 0, 1)
    rows = source.tensors[name].shape[0]
    source.rows(name, rows - 128, rows)  # only what is asked for is looked at


@pytest.mark.parametrize(
    ("case", "missing", "other"),
    [
        ("gptq", "qzeros", "qweight"),
        ("gptq", "scales", "qweight"),
        ("awq", "qzeros", "qweight"),
        ("fp8", "weight_scale_inv", "weight"),
    ],
)
def test_a_missing_companion_is_named(
    case: str, missing: str, other: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(case)
    rewrite(folder, **{f"{GATE}.{missing}".replace(".", "__"): None})
    with pytest.raises(WeightsError, match=rf"{GATE}\.{other} has no {GATE}\.{missing} beside it"):
        open_source(folder)


@pytest.mark.parametrize("case", ["gptq", "awq", "fp8", "mlx-4"])
def test_shapes_that_do_not_fit_together(case: str, copied: Callable[[str], Path]) -> None:
    folder = copied(case)
    name = f"{GATE}.{'weight_scale_inv' if case == 'fp8' else 'scales'}"
    rewrite(folder, **{name.replace(".", "__"): ("F16", np.ones((3, 5), np.float16))})
    with pytest.raises(WeightsError, match=re.escape(GATE)):
        open_source(folder)


def test_a_matrix_that_is_no_mlx_quantization_or_of_no_qwen3(
    copied: Callable[[str], Path],
) -> None:
    folder = copied("mlx-4")
    set_config(folder, intermediate_size=512)
    with pytest.raises(WeightsError, match=r"is no MLX quantization of \(512, 256\)"):
        open_source(folder)
    set_config(folder, intermediate_size=384, num_hidden_layers=1)
    with pytest.raises(WeightsError, match=r"layers\.1\..* is not part of this architecture"):
        open_source(folder)


def test_inputs_out_of_order_against_the_settings(tmp_path: Path) -> None:
    """desc_act false over a shuffled g_idx would read every scale from the wrong group."""
    write_gptq(tmp_path, DENSE, desc_act=True, group_size=64)
    set_quantization(tmp_path, desc_act=False)
    source = open_source(tmp_path)
    for read in (source.rows, source.affine_rows):
        with pytest.raises(WeightsError, match=r"g_idx is out of order, but desc_act is false"):
            read(f"{GATE}.weight", 0, 8)


def test_groups_beyond_the_scales(tmp_path: Path) -> None:
    write_gptq(tmp_path, DENSE, desc_act=True, group_size=64)
    edit(tmp_path, f"{GATE}.g_idx", b"\xff\xff\xff\xff")
    with pytest.raises(WeightsError, match=r"gate_proj\.g_idx is damaged"):
        open_source(tmp_path).rows(f"{GATE}.weight", 0, 8)
