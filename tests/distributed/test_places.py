"""Who has which part of a model, without any process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen3.errors import PeerError
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.placement import LayerSizes, place_layers
from mlx_qwen3.model.sharding import Split
from mlx_qwen3.model.slices import Cut, read_part

GB = 10**9
EVEN = LayerSizes(layers=(GB,) * 10, embedding=0, head=0)


@pytest.mark.parametrize(
    ("memory", "layers"),
    [
        ((32, 32), [5, 5]),
        ((16, 64), [2, 8]),
        ((48, 16, 16), [6, 2, 2]),
        ((1000, 11), [9, 1]),  # everybody has a layer
    ],
)
def test_layers_are_placed_by_memory(memory: tuple[int, ...], layers: list[int]) -> None:
    places = place_layers(EVEN, [one * GB for one in memory])
    assert [len(place) for place in places] == layers
    assert [index for place in places for index in place] == list(range(10))


def test_embedding_and_head_count_as_layers_do() -> None:
    sizes = LayerSizes(layers=(GB,) * 10, embedding=4 * GB, head=0)
    assert [len(place) for place in place_layers(sizes, [32 * GB] * 2)] == [3, 7]


@pytest.mark.parametrize("memory", [[4 * GB, 5 * GB], [20 * GB] * 11])
def test_what_cannot_be_placed_is_refused(memory: list[int]) -> None:
    with pytest.raises(PeerError, match=r"add a host|start fewer"):
        place_layers(EVEN, memory)


def test_a_checkpoints_layers_weigh_what_their_tensors_do(checkpoint: Path) -> None:
    sizes = LayerSizes.of(Checkpoint.from_folder(checkpoint), 3, mx.float32)
    config = ModelConfig.from_folder(checkpoint)
    assert sizes.embedding == sizes.head == config.vocab_size * config.hidden_size * 4
    assert len(set(sizes.layers)) == 1


@pytest.fixture
def config(checkpoint: Path) -> ModelConfig:
    return replace(
        ModelConfig.from_folder(checkpoint), num_attention_heads=8, num_key_value_heads=2
    )


def test_processes_share_key_heads_when_there_are_more_of_them(config: ModelConfig) -> None:
    cuts = [
        Split(config, rank, 4).cut("model.layers.0.self_attn.k_proj.weight")
        for rank in (0, 1, 2, 3)
    ]
    assert [cut.spans for cut in cuts if cut] == [((0, 1),), ((0, 1),), ((1, 2),), ((1, 2),)]
    assert Split(config, 0, 4).own.num_key_value_heads == 1


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, 3, "8 attention heads"),
        ({"intermediate_size": 98}, 4, "98 rows of a feed-forward part"),
        ({"num_attention_heads": 6, "num_key_value_heads": 3}, 2, "3 key-value heads"),
    ],
)
def test_an_uneven_split_is_refused(
    config: ModelConfig, changes: dict[str, int], size: int, message: str
) -> None:
    with pytest.raises(PeerError, match=message):
        Split(replace(config, **changes), 0, size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.layers.0.mlp.gate.weight", "model.layers.1.self_attn.o_proj.bias"],
)
def test_small_tensors_are_everywhere(config: ModelConfig, name: str) -> None:
    assert Split(config, 1, 2).cut(name) is None


def test_a_part_is_read_as_it_would_be_cut_from_the_whole(
    tiny_folder: Callable[[str], Path],
) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    checkpoint = Checkpoint.from_folder(tiny_folder("bfloat16-file"))
    info = checkpoint.info(name)
    columns = read_part(name, info, Cut(-1, ((1, 2),), 2))
    rows = read_part(name, info, Cut(-2, ((0, 1), (3, 4)), 4))
    whole = checkpoint.take(name)
    half, quarter = whole.shape[1] // 2, whole.shape[0] // 4
    assert columns.dtype == mx.bfloat16
    assert mx.array_equal(columns, whole[:, half:])
    assert mx.array_equal(rows, mx.concatenate([whole[:quarter], whole[3 * quarter :]]))


def test_a_part_never_begins_inside_a_group(checkpoint: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    info = Checkpoint.from_folder(checkpoint).info(name)
    with pytest.raises(PeerError, match=r"down_proj.*96 columns cannot be cut into 5 equal parts"):
        read_part(name, info, Cut(-1, ((0, 1),), 5))
