"""The model against transformers: the same logits and the same tokens, for every tiny config.

What transformers computes is stored beside make_references.py, which recomputes it.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_qwen3 import load
from mlx_qwen3.device import Device
from mlx_qwen3.errors import DeviceError
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import load_model
from tests.checkpoints import (
    EOS_TOKEN_IDS,
    Layout,
    make_tensors,
    write_checkpoint,
    write_weights,
)
from tests.model import make_references
from tests.model.tiny_models import LONG, MEDIUM, TINY_MODELS

Array = NDArray[Any]
Models = Callable[[str], Transformer]
Folders = Callable[[str], Path]

TOLERANCE = 1e-3  # of the logits' standard deviation
every_model = pytest.mark.parametrize("name", TINY_MODELS)


def load_reference(name: str) -> Mapping[str, Array]:
    path = make_references.FOLDER / f"{name}.npz"
    again = f"run python -m tests.model.make_references {name}"
    assert path.is_file(), f"no stored reference for {name}: {again}"
    with np.load(path) as file:
        arrays = dict(file)
    fresh = make_references.model_digest(TINY_MODELS[name])
    assert str(arrays["digest"]) == fresh, f"{name}'s config or weights changed: {again}"
    return arrays


def logits_of(model: Transformer, token_ids: list[int], cache: Cache | None = None) -> Array:
    """(L, vocab_size) of one sequence."""
    return np.array(model(mx.array([token_ids]), cache=cache)[0])


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / expected.std()
    assert error <= TOLERANCE, f"off by {error:.1e} standard deviations"


def greedy(model: Transformer, token_ids: list[int], count: int) -> list[int]:
    cache = model.make_cache()
    out: list[int] = []
    while len(out) < count:
        logits = logits_of(model, out[-1:] or token_ids, cache)
        out.append(int(logits[-1].argmax()))
    return out


@every_model
def test_logits_are_those_of_transformers(name: str, tiny_model: Models) -> None:
    reference = load_reference(name)
    for number, prompt in enumerate(TINY_MODELS[name].prompts):
        logits = logits_of(tiny_model(name), list(prompt.encode()))
        positions = reference[f"positions_{number}"]
        assert logits.dtype == np.float32
        assert positions[-1] == len(logits) - 1
        assert_close(logits[positions], reference[f"logits_{number}"])


@every_model
def test_greedy_tokens_are_those_of_transformers(name: str, tiny_model: Models) -> None:
    reference = load_reference(name)
    for number, prompt in enumerate(TINY_MODELS[name].prompts):
        expected = reference[f"greedy_{number}"].tolist()
        assert len(expected) == 64
        assert greedy(tiny_model(name), list(prompt.encode()), 64) == expected


@every_model
def test_a_prompt_in_chunks_gives_the_same(name: str, tiny_model: Models) -> None:
    model, token_ids = tiny_model(name), list(LONG.encode())
    whole = logits_of(model, token_ids)
    chunks = random.Random(name)
    for longest in (4, 40):
        cache, parts, start = model.make_cache(), [], 0
        while start < len(token_ids):
            stop = start + chunks.randint(1, longest)
            parts.append(logits_of(model, token_ids[start:stop], cache))
            start = stop
        assert cache.offset == len(token_ids)
        assert_close(np.concatenate(parts), whole)


@every_model
def test_a_batch_is_its_rows_alone(name: str, tiny_model: Models) -> None:
    model = tiny_model(name)
    rows = [list(LONG.encode()), list(reversed(LONG.encode()))]
    alone = np.stack([logits_of(model, row) for row in rows])
    assert_close(np.array(model(rows)), alone)

    cache = model.make_cache()
    prefix, rest = mx.array(rows)[:, :-1], mx.array(rows)[:, -1:]
    model(prefix, cache=cache)
    assert_close(np.array(model(rest, cache=cache)), alone[:, -1:])


@pytest.mark.parametrize("name", ["dense", "moe", "yarn-moe", "sliding"])
def test_generate_gives_the_tokens_of_transformers(name: str, tiny_folder: Folders) -> None:
    llm = load(str(tiny_folder(name)), dtype="float32")
    for number, prompt in enumerate(TINY_MODELS[name].prompts[:1]):
        expected = load_reference(name)[f"greedy_{number}"].tolist()
        stops = [i for i, token in enumerate(expected) if token in EOS_TOKEN_IDS]
        done = llm.generate(prompt, raw=True, temperature=0.0, max_tokens=64)
        content = expected[: stops[0]] if stops else expected
        assert [t for t in done.token_ids if t not in EOS_TOKEN_IDS] == content


# A field and a value it does not have in that model: reading it wrong must not go unnoticed.
WRONG_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("dense", {"rope_theta": 10000.0}),
    ("rope-parameters", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("rms-norm-eps", {"rms_norm_eps": 1e-6}),
    ("gelu", {"hidden_act": "silu"}),
    ("moe-gelu-tanh", {"hidden_act": "relu"}),
    ("yarn", {"rope_scaling": None}),
    ("yarn-moe", {"rope_scaling": None}),
    ("yarn-type-key", {"max_position_embeddings": 400}),
    ("yarn-attention-factor", {"rope_scaling": TINY_MODELS["yarn"].config["rope_scaling"]}),
    ("yarn-no-truncate", {"rope_scaling": TINY_MODELS["yarn"].config["rope_scaling"]}),
    ("rope-scaling-added", {"rope_scaling": None}),
    ("linear", {"rope_scaling": None}),
    ("llama3", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("moe", {"norm_topk_prob": False}),
    ("moe-unnormalised", {"norm_topk_prob": True}),
    ("moe-parameters", {"num_experts_per_tok": 2}),
    ("sliding", {"use_sliding_window": False}),
    ("sliding", {"max_window_layers": 2}),
    ("sliding", {"sliding_window": 9}),
    ("sliding-off", {"use_sliding_window": True}),
    ("sliding-moe", {"use_sliding_window": False}),
    ("layer-types", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG_FIELDS)
def test_the_references_notice_a_wrong_field(
    name: str, wrong: dict[str, Any], tiny_folder: Folders, tmp_path: Path
) -> None:
    tiny, reference = TINY_MODELS[name], load_reference(name)
    folder = shutil.copytree(tiny_folder(name), tmp_path / "wrong")
    (folder / "config.json").write_text(json.dumps(tiny.config | wrong))
    logits = logits_of(load_model(folder, dtype="float32"), list(tiny.prompts[1].encode()))
    expected = reference["logits_1"]
    error = np.abs(logits[reference["positions_1"]] - expected).max() / expected.std()
    assert error > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["moe", "moe-some-dense", "moe-gelu-tanh"])
@pytest.mark.parametrize("layout", ["hf-stacked", "mlx"])
def test_stacked_experts_are_the_same_model(
    name: str, layout: Layout, tiny_model: Models, tmp_path: Path
) -> None:
    tiny = TINY_MODELS[name]
    write_checkpoint(tmp_path, tiny.config, tiny.seed, layout=layout, shards=2)
    stacked = load_model(tmp_path, dtype="float32")
    token_ids = list(MEDIUM.encode())
    assert_close(logits_of(stacked, token_ids), logits_of(tiny_model(name), token_ids))


@pytest.mark.parametrize("name", ["dense", "moe", "tied"])
@pytest.mark.parametrize("shards", [2, 5])
def test_shards_are_the_same_model(
    name: str, shards: int, tiny_model: Models, tmp_path: Path
) -> None:
    tiny = TINY_MODELS[name]
    write_checkpoint(tmp_path, tiny.config, tiny.seed, shards=shards)
    token_ids = list(MEDIUM.encode())
    sharded = load_model(tmp_path, dtype="float32")
    assert_close(logits_of(sharded, token_ids), logits_of(tiny_model(name), token_ids))


def test_a_tied_head_that_was_saved_anyway_is_not_used(tiny_model: Models, tmp_path: Path) -> None:
    """Qwen3-0.6B's own file holds lm_head.weight although its config ties it."""
    tiny = TINY_MODELS["tied"]
    write_checkpoint(tmp_path, tiny.config, tiny.seed)
    tensors = make_tensors(tiny.config, tiny.seed)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_weights(tmp_path, tensors)
    token_ids = list(MEDIUM.encode())
    saved = load_model(tmp_path, dtype="float32")
    assert_close(logits_of(saved, token_ids), logits_of(tiny_model("tied"), token_ids))


@pytest.mark.parametrize("name", ["tied", "moe-unnormalised"])
def test_names_without_the_outer_module_are_the_same_model(
    name: str, tiny_model: Models, tmp_path: Path
) -> None:
    """Embedding releases are saved as layers.0..., without the leading model."""
    tiny = TINY_MODELS[name]
    write_checkpoint(tmp_path, tiny.config, tiny.seed)
    tensors = make_tensors(tiny.config, tiny.seed)
    write_weights(tmp_path, {k.removeprefix("model."): v for k, v in tensors.items()})
    token_ids = list(MEDIUM.encode())
    bare = load_model(tmp_path, dtype="float32")
    assert_close(logits_of(bare, token_ids), logits_of(tiny_model(name), token_ids))


@pytest.mark.parametrize("name", ["dense", "moe", "yarn", "sliding"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_activations_stay_close(
    name: str, dtype: str, tiny_folder: Folders, tiny_model: Models
) -> None:
    """16 bits cannot meet the tolerance; they must not do worse than rounding explains."""
    if name == "moe" and Device.current().backend == "cpu":
        with pytest.raises(DeviceError, match="float32"):  # MLX's gather_mm has no other there
            load_model(tiny_folder(name), dtype=dtype)
        return
    logits = load_model(tiny_folder(name), dtype=dtype)([list(MEDIUM.encode())])
    assert logits.dtype == getattr(mx, dtype)
    expected = logits_of(tiny_model(name), list(MEDIUM.encode()))
    error = np.array(logits[0].astype(mx.float32)) - expected
    assert np.sqrt((error**2).mean()) / expected.std() < (0.05 if dtype == "bfloat16" else 0.01)


@pytest.mark.reference
@pytest.mark.filterwarnings("default")
@every_model
def test_transformers_still_computes_the_stored_reference(name: str, tmp_path: Path) -> None:
    """Live, and with the other attention implementation than the stored one."""
    pytest.importorskip("torch", reason="recomputing references needs torch and transformers")
    stored = load_reference(name)
    live = make_references.compute(TINY_MODELS[name], tmp_path, attention="sdpa")
    assert set(live) == set(stored)
    for key, expected in stored.items():
        if key.startswith("logits"):
            assert_close(live[key], expected)
        else:
            np.testing.assert_array_equal(live[key], expected)
