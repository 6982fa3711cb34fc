"""Streamed experts say, bit for bit, what experts in memory say; and files that do not.

MOE has 16 experts with 4 for a token, so that a prompt needs all of them and a pool of slots may
hold any number from 4 on.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.demo import demo_folder
from mlx_qwen3.errors import DeviceError, WeightsError
from mlx_qwen3.llm import LLM
from mlx_qwen3.model import expert_reader
from mlx_qwen3.model.batch import BatchedCache
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.experts import ExpertTraffic
from mlx_qwen3.model.residency import Residency
from mlx_qwen3.model.step import PlainStep
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import load_model
from tests.checkpoints import Array, Layout, make_tensors, write_checkpoint
from tests.model.tiny_models import TINY_MODELS

TOP_K, EXPERTS = 4, 16
MOE: dict[str, Any] = TINY_MODELS["moe"].config | {
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": 64,
}
PROMPT = [(37 * number) % 250 for number in range(70)]
SLOTS = range(TOP_K, EXPERTS)

Folder = Callable[[str], Path]


def streamed(folder: Path, slots: int, **options: Any) -> Transformer:
    model = load_model(folder, residency=Residency(slots=slots), **options)
    assert model.expert_traffic is not None
    assert type(model.step) is PlainStep
    return model


def spoken(model: Transformer, prompt: list[int] = PROMPT, steps: int = 12) -> Array:
    """Logits of a prompt's last token and of greedy steps behind it."""
    cache = model.make_cache()
    logits = [model(mx.array([prompt]), cache)[:, -1]]
    for _ in range(steps):
        logits.append(model.step(mx.argmax(logits[-1], axis=-1), cache))
    return np.concatenate([np.array(one) for one in logits])


def traffic(model: Transformer) -> ExpertTraffic:
    found = model.expert_traffic
    assert found is not None
    return found


def quantize(folder: Path, formats: dict[str, dict[str, Any]]) -> None:
    """Pack a folder's projections in MLX's layout: `formats` by part of the name, "" for others."""
    config = json.loads((folder / "config.json").read_text())
    packed: dict[str, mx.array] = {}
    for name, tensor in make_tensors(config, 3, "mlx").items():
        settings = next((one for part, one in formats.items() if part in name), None)
        if tensor.ndim == 1 or settings is None:
            packed[name] = mx.array(tensor)
            continue
        parts = ("weight", "scales", "biases")
        values = mx.quantize(mx.array(tensor), **settings)
        for part, value in zip(parts, values, strict=False):
            float_part = part != "weight" and value.dtype == mx.float32
            key = name.removesuffix("weight") + part
            packed[key] = value.astype(mx.bfloat16) if float_part else value
    mx.save_safetensors(str(folder / "model.safetensors"), packed)


AFFINE4, AFFINE8 = {"group_size": 32, "bits": 4}, {"group_size": 64, "bits": 8}
FORMATS: dict[str, dict[str, dict[str, Any]]] = {
    "affine-4": {"": AFFINE4},
    "affine-8": {"": AFFINE8},
    "mxfp4": {"switch_mlp": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
    "mixed": {"down_proj": AFFINE8, "gate_proj": AFFINE4, "up_proj": AFFINE8, "": AFFINE4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """folder(kind): a layout ("hf", ...), "bfloat16", a format of FORMATS or "demo-moe"."""
    root = tmp_path_factory.mktemp("moe")

    def make(kind: str) -> Path:
        if kind == "demo-moe":
            return demo_folder(kind)
        path = root / kind
        if not path.exists():
            layout: Layout = kind if kind in ("hf-stacked", "mlx") else "hf"  # type: ignore[assignment]
            dtype: Any = kind if kind in ("bfloat16", "float16") else "float32"
            write_checkpoint(path, MOE, 3, dtype=dtype, layout=layout)
            if kind in FORMATS:
                quantize(path, FORMATS[kind])
        return path

    return make


# --- bit for bit


@pytest.mark.parametrize("kind", ["demo-moe", "mlx", "affine-4"])
def test_every_number_of_slots_says_the_same(kind: str, folder: Folder) -> None:
    expected = spoken(load_model(folder(kind)))
    read = []
    for slots in SLOTS:
        model = streamed(folder(kind), slots)
        assert np.array_equal(spoken(model), expected), slots
        read.append(traffic(model).bytes_read)
    assert read == sorted(read, reverse=True)  # more slots never read more of the same
    assert read[-1] < read[0] / 1.2


@pytest.mark.parametrize("slots", [TOP_K, 9, EXPERTS - 1])
@pytest.mark.parametrize("kind", ["hf", "hf-stacked", "mlx", "bfloat16", "float16", *FORMATS])
def test_every_layout_and_format(kind: str, slots: int, folder: Folder) -> None:
    assert np.array_equal(spoken(streamed(folder(kind), slots)), spoken(load_model(folder(kind))))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["affine-4", "mxfp4"])
def test_scales_in_other_dtypes(kind: str, dtype: str, folder: Folder) -> None:
    model = streamed(folder(kind), 5, dtype=dtype)
    expected = load_model(folder(kind), dtype=dtype)
    actual, wanted = model([PROMPT[:20]]), expected([PROMPT[:20]])
    assert mx.array_equal(actual, wanted).item()


@pytest.mark.parametrize("slots", [TOP_K, 6, 11])
@pytest.mark.parametrize("kind", ["demo-moe", "mlx"])
def test_a_batch_of_sequences(kind: str, slots: int, folder: Folder) -> None:
    prompts = [PROMPT[:9], PROMPT[20:50], PROMPT[60:61], PROMPT[3:70], PROMPT[40:58]]

    def batch(model: Transformer) -> Array:
        caches: list[Cache] = []
        for prompt in prompts:
            caches.append(model.make_cache())
            model.hidden_states(mx.array([prompt]), caches[-1])
        together, tokens = BatchedCache(caches), mx.array([[1], [20], [30], [44], [5]])
        said = []
        for _ in range(6):
            logits = model(tokens, together)[:, -1]
            said.append(np.array(logits))
            tokens = mx.argmax(logits, axis=-1)[:, None]
        return np.stack(said)

    model = streamed(folder(kind), slots)
    assert np.array_equal(batch(model), batch(load_model(folder(kind))))


def test_a_union_is_fetched_once(folder: Folder) -> None:
    """Two sequences that say the same need the experts of one."""
    lookups = []
    for copies in (1, 2):
        model = streamed(folder("mlx"), 8)
        caches = [model.make_cache() for _ in range(copies)]
        mx.eval(model(mx.array([[7]] * copies), BatchedCache(caches)))
        lookups.append(traffic(model).lookups)
    assert lookups == [TOP_K * 3, TOP_K * 3]  # three layers


def test_graphs_that_wait_keep_their_experts(folder: Folder) -> None:
    """What was built is right whenever it is evaluated, though other experts came meanwhile."""
    expected = load_model(folder("mlx"))
    model = streamed(folder("mlx"), TOP_K)
    built = [model([[token]]) for token in range(20)]
    for token, logits in enumerate(built):
        assert mx.array_equal(logits, expected([[token]])).item()


# --- what is read


def test_what_is_in_memory_is_not_read_again(folder: Folder) -> None:
    model = streamed(folder("mlx"), EXPERTS - 1)
    mx.eval(model([[7]]))
    once = traffic(model)
    assert once.misses == once.lookups == TOP_K * 3
    expert = 3 * MOE["hidden_size"] * MOE["moe_intermediate_size"] * 4
    assert once.bytes_read == once.misses * expert
    mx.eval(model([[7]]))
    again = traffic(model) - once
    assert (again.lookups, again.misses, again.bytes_read) == (TOP_K * 3, 0, 0)
    assert again.hit_rate == 1.0


def test_the_pool_is_all_that_is_in_memory(folder: Folder) -> None:
    whole, model = load_model(folder("mlx")), streamed(folder("mlx"), 5)
    mlp, layer = model.layers[0].mlp, whole.layers[0].mlp
    weights = [one.weight for one in (*mlp.experts.slots.gate_up, mlp.experts.slots.down)]
    assert [one.shape[0] for one in weights] == [5, 5]
    assert model.bytes_per_token() == whole.bytes_per_token()
    assert mlp.idle_bytes() == layer.idle_bytes() * (5 - TOP_K) // (EXPERTS - TOP_K)


@pytest.mark.parametrize("residency", [None, Residency("streamed"), Residency(slots=EXPERTS)])
def test_what_fits_is_resident(residency: Residency | None, folder: Folder) -> None:
    model = load_model(folder("mlx"), residency=residency)
    assert model.expert_traffic is None
    assert type(model.step) is type(load_model(folder("mlx")).step)


def test_unrunnable_experts_are_refused_at_once(folder: Folder) -> None:
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("a GPU multiplies them")
    with pytest.raises(DeviceError, match="float32 only"):
        load_model(folder("bfloat16"), dtype="bfloat16", residency=Residency(slots=5))


# --- files that change


@pytest.fixture
def own(folder: Folder, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder("mlx"), tmp_path / "own"))


def test_a_file_cut_short_is_an_error_of_that_step(own: Path, folder: Folder) -> None:
    model = streamed(own, TOP_K)
    file = own / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 4])  # the same file: it is open
    with pytest.raises(
        WeightsError, match=r"model\.safetensors: cut short at byte \d+; it changed"
    ):
        spoken(model)
    file.write_bytes(whole)
    assert np.array_equal(spoken(model), spoken(load_model(folder("mlx"))))


def test_a_file_that_cannot_be_opened(own: Path) -> None:
    model = streamed(own, TOP_K)
    (own / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        spoken(model)


def test_a_replaced_file_stays_the_one_that_was_loaded(own: Path, folder: Folder) -> None:
    model = streamed(own, TOP_K)
    expected = spoken(load_model(folder("mlx")))
    mx.eval(model([PROMPT]))
    other = own / "other"
    other.write_bytes(b"\0" * (own / "model.safetensors").stat().st_size)
    other.replace(own / "model.safetensors")
    assert np.array_equal(spoken(model), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_intermediate_size": 32}, "has shape"),
        ({"num_experts": 15}, "has shape"),
        ({"num_hidden_layers": 2}, "not part of this architecture"),
        ({"num_hidden_layers": 4}, "is missing from the checkpoint"),
    ],
)
def test_a_config_of_another_model(change: dict[str, Any], message: str, own: Path) -> None:
    config = json.loads((own / "config.json").read_text()) | change
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        load_model(own, residency=Residency(slots=5))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_read_leaves_no_expert_half_there(
    error: type[BaseException], folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = spoken(load_model(folder("mlx")))
    model = streamed(folder("mlx"), 6)
    fill, left = expert_reader.fill, [20]

    def interrupted(descriptor: int, read: expert_reader.Read) -> None:
        left[0] -= 1
        if left[0] == 0:
            read.into[:] = 7  # half written
            raise error
        fill(descriptor, read)

    monkeypatch.setattr(expert_reader, "fill", interrupted)
    with pytest.raises((KeyboardInterrupt, WeightsError)):
        spoken(model)
    assert left == [0]
    assert np.array_equal(spoken(model), expected)


# --- several at once


def test_threads_take_turns(folder: Folder) -> None:
    expected = spoken(load_model(folder("mlx")))
    model = streamed(folder("mlx"), TOP_K)
    results: list[Array] = []
    threads = [
        threading.Thread(target=lambda: results.append(spoken(model)), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(results) == 4
    assert all(np.array_equal(one, expected) for one in results)


def test_streams_of_one_model_take_turns(folder: Folder) -> None:
    llm = LLM.from_folder(folder("demo-moe"))
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 30}
    questions = ["What is 27 + 58?", "Hello!", "What is 4521 + 387?"]
    expected = [llm.generate(one, **options) for one in questions]
    assert all(one.experts is None for one in expected)
    llm = LLM.from_folder(folder("demo-moe"))
    llm.model = streamed(folder("demo-moe"), TOP_K)
    streams = [llm.stream(one, **options) for one in questions]
    done: dict[int, Any] = {}
    while len(done) < len(streams):
        for index, stream in enumerate(streams):
            event = next(stream, None)
            if event is not None and event.completion is not None:
                done[index] = event.completion
    token_ids = [done[index].token_ids for index in range(len(questions))]
    assert token_ids == [one.token_ids for one in expected]
    used = done[0].experts
    assert 0 < used.hit_rate < 1
    assert used.prompt_bytes > 0
    assert used.bytes_per_token > 0
