"""Sensitivities, budgets and the recipes made from them."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import releases
from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.weights import load_model, tensor_shapes
from mlx_qwen3_convert import knapsack
from mlx_qwen3_convert.auto import (
    Auto,
    Measured,
    auto_recipe,
    choose_recipe,
    find_auto,
    measure_folder,
    write_recipe,
)
from mlx_qwen3_convert.budget import fitting
from mlx_qwen3_convert.calibration import read_text, read_windows
from mlx_qwen3_convert.compare import compare
from mlx_qwen3_convert.evaluate import evaluate, exact_reference
from mlx_qwen3_convert.formats import affine, parse_format
from mlx_qwen3_convert.groups import find_groups, rounded
from mlx_qwen3_convert.job import Options, convert
from mlx_qwen3_convert.mixed import (
    CANDIDATES,
    FLOAT,
    AnyRecipe,
    Mixed,
    find_any_recipe,
    mixed_recipe,
    plan_for,
)
from mlx_qwen3_convert.plan import make_plan
from mlx_qwen3_convert.plots import Point, best, quality_plot, sensitivity_plot, write_reasons
from mlx_qwen3_convert.readers.base import SourceTensor
from mlx_qwen3_convert.recipes import Recipe, find_recipe, read_recipe
from mlx_qwen3_convert.sensitivity import Bench, measure
from tests.checkpoints import make_tensors, write_checkpoint, write_weights
from tests.model.tiny_models import TINY_MODELS

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "head_dim": 32,
    "torch_dtype": "bfloat16",
}
CONFIGS = {
    "dense": TINY_MODELS["dense"].config | SIZES,
    "tied": TINY_MODELS["dense"].config | SIZES | {"tie_word_embeddings": True},
    "moe": TINY_MODELS["moe"].config | SIZES,
}
FRAGILE = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with one matrix that rounding ruins: a far outlier in every group.

    The outliers are multiplied with zeros, so that nothing but the rounding notices them.
    """
    config = CONFIGS["dense"]
    folder = write_checkpoint(tmp_path_factory.mktemp("fragile") / "model", config, 1)
    tensors = make_tensors(config, 1)
    tensors[f"{FRAGILE}.weight"][:, ::64] *= 40
    tensors["model.layers.1.mlp.up_proj.weight"][::64] = 0
    write_weights(folder, tensors, "bfloat16")
    return folder


@pytest.fixture(scope="module")
def measured(fragile: Path) -> Measured:
    return measure_folder(fragile, tokens=100, context=100)


# --- the knapsack


def brute_force(sizes: list[list[int]], harms: list[list[float]], budget: int) -> float:
    choices = itertools.product(*(range(len(group)) for group in sizes))
    return min(
        sum(harms[group][pick] for group, pick in enumerate(picks))
        for picks in choices
        if sum(sizes[group][pick] for group, pick in enumerate(picks)) <= budget
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_knapsack_is_optimal_within_its_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [rng.integers(1, 60, rng.integers(1, 5)).tolist() for _ in range(5)]
    harms = [rng.random(len(group)).tolist() for group in sizes]
    lowest, highest = (sum(map(bound, sizes)) for bound in (min, max))
    budget = int(rng.integers(lowest, highest + 5))
    picks = knapsack.choose(sizes, harms, budget)
    assert sum(group[pick] for group, pick in zip(sizes, picks, strict=True)) <= budget
    harm = sum(group[pick] for group, pick in zip(harms, picks, strict=True))
    assert harm == pytest.approx(brute_force(sizes, harms, budget))


def test_a_coarse_knapsack_never_overspends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MAX_UNITS", 50)
    rng = np.random.default_rng(0)
    sizes = [sorted(rng.integers(1000, 9000, 4).tolist()) for _ in range(8)]
    harms = [sorted(rng.random(4).tolist(), reverse=True) for _ in range(8)]
    for budget in range(sum(min(group) for group in sizes), 70_000, 3001):
        picks = knapsack.choose(sizes, harms, budget)
        assert sum(group[pick] for group, pick in zip(sizes, picks, strict=True)) <= budget


def test_a_budget_below_the_smallest_choices_is_refused() -> None:
    with pytest.raises(OptionError, match="2 more"):
        knapsack.choose([[5, 9], [7]], [[1, 0], [1]], 10)


# --- sensitivities


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cost_is_the_divergence_of_the_model_with_that_part_rounded(
    name: str, tmp_path: Path
) -> None:
    """The shortcut through the layers, against the whole model run again."""
    folder = write_checkpoint(tmp_path / "model", CONFIGS[name], 1, dtype="bfloat16")
    windows = read_windows(folder, text="The cat sat on the mat. 狐狸", context=20)
    bench = Bench(load_model(folder, dtype="float32"), windows, mx.bfloat16)
    stored = affine(3, 64)
    found = {one.group: one.costs[stored] for one in measure(bench, [stored])}
    assert {group.part for group in found} == {"embed", "qkv", "o", "gate_up", "down"} | (
        set() if name == "tied" else {"head"}
    )
    for group, cost in found.items():
        before = group.weights()
        group.replace([rounded(weight, stored, mx.bfloat16) for weight in before])
        score = bench.score()
        group.replace(before)
        assert score.divergence is not None
        assert cost == pytest.approx(score.divergence.mean, rel=1e-4, abs=1e-7)
        assert cost > 1e-6
    left = bench.score().divergence
    assert left is not None
    assert left.max == 0  # everything was put back


def test_a_fragile_part_comes_out_on_top(measured: Measured) -> None:
    for stored in (affine(3, 64), affine(4, 64), affine(5, 128)):
        costs = {one.group.paths: one.costs[stored] for one in measured.sensitivities}
        assert max(costs, key=costs.__getitem__) == (FRAGILE,)
    chosen = choose_recipe(measured, 4.5).recipe
    assert bits_of(chosen, FRAGILE) > bits_of(chosen, "model.layers.0.mlp.down_proj")


def bits_of(recipe: Recipe, path: str) -> int:
    stored = recipe.format_of(path)
    assert stored is not None
    return stored.bits


def test_a_quantized_checkpoint_is_refused(fragile: Path, tmp_path: Path) -> None:
    folder = convert(fragile, tmp_path / "out", Options(bits=4)).folder
    with pytest.raises(OptionError, match=r"quantized already.*--recipe bf16"):
        find_groups(load_model(folder))


def test_formats_fit_the_rows() -> None:
    candidates = [affine(4, 128), affine(4, 64)]
    assert fitting(256, candidates) == candidates
    assert fitting(192, candidates) == [affine(4, 64)]
    assert fitting(96, candidates) == [affine(4, 32)]
    assert fitting(40, candidates) == []


# --- recipes made to measure


@pytest.mark.parametrize("bits", [3.0, 3.7, 4.51, 6.0])
def test_a_budget_is_met_and_used(measured: Measured, bits: float, tmp_path: Path) -> None:
    choice = choose_recipe(measured, bits)
    assert bits - 0.15 < choice.bits_per_weight <= bits
    write_recipe(choice.recipe, tmp_path / "recipe.json")
    recipe = read_recipe(tmp_path / "recipe.json")
    assert recipe == choice.recipe
    for group, stored in choice.formats.items():
        assert {recipe.format_of(path) for path in group.paths} == {stored}


def test_more_bits_never_harm(measured: Measured) -> None:
    predicted = [choose_recipe(measured, bits).predicted for bits in (3, 3.5, 4, 4.5, 5, 6, 8)]
    assert predicted == sorted(predicted, reverse=True)
    assert predicted[0] > 4 * predicted[4]


def test_an_impossible_budget_says_what_is_possible(measured: Measured) -> None:
    with pytest.raises(OptionError, match=r"1\.5 bits per weight.*expected 2\.\d\d or more"):
        choose_recipe(measured, 1.5)


def test_an_impossible_budget_is_refused_before_measuring(fragile: Path) -> None:
    def work(*_: int) -> None:
        raise AssertionError("it measured")

    with pytest.raises(OptionError, match=r"expected 2\.\d\d or more"):
        auto_recipe(fragile, 1.5, progress=work)


def test_auto_beats_mixed_and_uniform(fragile: Path, measured: Measured) -> None:
    uniform = find_recipe("4bit")
    bits = plan_for(fragile, uniform).bits_per_weight
    automatic = choose_recipe(measured, bits).recipe
    found = divergences(fragile, [automatic, Mixed("mixed", bits), uniform], bits)
    assert found[0] == 0  # the model itself
    assert found[1] < min(found[2:]) / 2


@pytest.mark.parametrize("name", CONFIGS)
def test_mixed_beats_uniform(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", CONFIGS[name], 1, dtype="bfloat16")
    bits = plan_for(folder, find_recipe("4bit")).bits_per_weight
    found = divergences(folder, [Mixed("mixed", bits), find_recipe("4bit")], bits)
    assert found[1] < found[2]


def divergences(folder: Path, recipes: list[AnyRecipe], bits: float) -> list[float]:
    text = read_text(None, "calibration")
    found = compare(folder, recipes, text=text, tokens=100, context=100)
    assert all(size.bits_per_weight <= bits for size, _ in found[1:])
    return [score.divergence.mean for _, score in found if score.divergence]


def test_a_recipe_is_scored_as_its_conversion_is(
    fragile: Path, measured: Measured, tmp_path: Path
) -> None:
    choice = choose_recipe(measured, 4.5)
    write_recipe(choice.recipe, tmp_path / "recipe.json")
    result = convert(fragile, tmp_path / "out", Options(recipe=str(tmp_path / "recipe.json")))
    assert result.bits_per_weight == choice.bits_per_weight
    windows = measured.bench.windows
    reference = exact_reference(fragile, windows)
    converted = evaluate(result.folder, windows, reference).divergence
    expected = measured.bench.score_recipe(choice.recipe).divergence
    assert converted is not None
    assert expected is not None
    assert converted.mean == pytest.approx(expected.mean, rel=1e-3)


@pytest.mark.parametrize("name", ["tied", "moe"])
def test_other_architectures_convert_by_what_was_chosen(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", CONFIGS[name], 1, dtype="bfloat16")
    steps: list[tuple[int, int]] = []
    choice, measured = auto_recipe(
        folder, 5, tokens=60, progress=lambda done, total: steps.append((done, total))
    )
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert choice.score is not None
    assert choice.score.divergence is not None
    assert 0 < choice.score.divergence.mean < 1
    write_recipe(choice.recipe, tmp_path / "recipe.json")
    result = convert(folder, tmp_path / "out", Options(recipe=str(tmp_path / "recipe.json")))
    assert result.bits_per_weight == choice.bits_per_weight <= 5
    if name == "moe":
        router = next(m for m in result.modules if m["name"] == "model.layers.0.mlp.gate.weight")
        assert router["to"] == "8g64"
    assert len(measured.sensitivities) == 3 * 4 + (1 if name == "tied" else 2)


def test_names_of_recipes() -> None:
    assert find_auto("auto-4.5") == Auto("auto-4.5", 4.5)
    assert find_auto("4bit") is None
    assert find_any_recipe("mixed-4.5") == Mixed("mixed-4.5", 4.5)
    assert find_any_recipe("4bit") == find_recipe("4bit")
    with pytest.raises(OptionError, match="mixed-BITS"):
        find_any_recipe("mixed")


# --- mixed recipes


class Headers:
    """The source of a release: names and shapes, no values."""

    format = "safetensors bf16"
    generation_config = None

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.tensors = {
            name: SourceTensor(name, shape, "BF16", "bfloat16", 0)
            for name, shape in tensor_shapes(ModelConfig.from_dict(config)).items()
        }


def release_config(name: str) -> dict[str, Any]:
    release = next(one for one in releases.releases() if one.name == name)
    fields = dict(vars(release.architecture))
    return {
        "model_type": "qwen3_moe" if fields["num_experts"] else "qwen3",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "norm_topk_prob": True,
        **fields,
    }


@pytest.mark.parametrize("name", ["0.6b", "8b", "30b-a3b"])
def test_a_mixed_recipe_keeps_to_its_bits(name: str) -> None:
    source: Any = Headers(release_config(name))
    for bits in (3.5, 4.5, 5.5):
        recipe = Mixed(f"mixed-{bits}", bits).for_source(source, "bfloat16")
        plan = make_plan(source, recipe=recipe, fallback=recipe, dtype="bfloat16")
        assert bits - 0.03 < plan.bits_per_weight <= bits
        by_path = {matrix.path: matrix.stored for matrix in plan.matrices}
        head = by_path.get("lm_head") or by_path["model.embed_tokens"]
        middle = (
            by_path.get("model.layers.10.mlp.gate_proj")
            or by_path["model.layers.10.mlp.experts.gate_proj"]
        )
        first = by_path["model.layers.0.self_attn.v_proj"]
        assert head is not None
        assert middle is not None
        assert first is not None
        assert head.bits >= middle.bits
        assert first.bits > middle.bits
        if name == "30b-a3b":
            assert by_path["model.layers.3.mlp.gate"] == parse_format("8g64")
            attention = by_path["model.layers.20.self_attn.o_proj"]
            assert attention is not None
            assert attention.bits > middle.bits  # every token meets it; an expert, one in 16


def test_rules_of_a_user_win_over_a_mixed_recipe(fragile: Path) -> None:
    mixed = Mixed("mixed-4.5", 4.5).with_rules({"layers.*.mlp.down_proj": "8g32"})
    plan = plan_for(fragile, mixed)
    stored = {matrix.path: matrix.stored for matrix in plan.matrices}
    assert stored[FRAGILE] == parse_format("8g32")
    assert plan.recipe is not None
    assert plan.recipe.name == "mixed-4.5"


def test_mixed_takes_whatever_bits_are_asked_for(fragile: Path) -> None:
    config = ModelConfig.from_dict(json.loads((fragile / "config.json").read_text()))
    plan = plan_for(fragile, FLOAT)
    for bits in np.arange(3.5, 8.5, 0.5):
        recipe = mixed_recipe(plan, config, float(bits))
        assert plan_for(fragile, recipe).bits_per_weight <= bits
    with pytest.raises(OptionError, match=r"expected 3\."):
        mixed_recipe(plan, config, 2.5)
    assert all(stored.bits > 2 for stored in CANDIDATES)


# --- pictures


def test_a_conversion_takes_its_reasons_along(measured: Measured, tmp_path: Path) -> None:
    choice = choose_recipe(measured, 4.5)
    write_reasons(choice, measured, tmp_path)
    assert read_recipe(tmp_path / "recipe.json") == choice.recipe
    assert "qkv" in texts((tmp_path / "sensitivities.svg").read_text())


def texts(picture: str) -> list[str]:
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    return [element.text or "" for element in root.iter() if element.tag.endswith("}text")]


def test_the_picture_of_sensitivities_shows_every_choice(measured: Measured) -> None:
    choice = choose_recipe(measured, 4.5)
    shown = texts(sensitivity_plot(measured.sensitivities, choice, title="a <model>"))
    assert {"a <model>", "embed", "head", "0", "1", "2", "qkv", "gate_up"} <= set(shown)
    words = sum(word.startswith(("2g", "3g", "4g", "5g", "6g", "8g")) for word in shown)
    assert words == len(measured.sensitivities)
    assert len(texts(sensitivity_plot(measured.sensitivities, title="x"))) > 14


def test_the_picture_of_quality_shows_every_checkpoint() -> None:
    points = [Point("bf16", 16, 0), Point("4bit", 4.5, 0.03), Point("a&b", 4.4, 0.2)]
    shown = texts(quality_plot(points, size="bits per weight", loss="KL, nats"))
    assert {"4bit", "a&b", "bits per weight", "KL against size"} <= set(shown)
    assert "bf16" not in shown  # zero has no logarithm
    near = [replace(point, loss=10 + point.loss) for point in points]
    assert "bf16" in texts(quality_plot(near, size="GB", loss="Perplexity"))
    assert texts(quality_plot([], size="GB", loss="Perplexity"))


def test_the_best_are_those_that_nothing_smaller_beats() -> None:
    points = [Point("a", 3, 5), Point("b", 4, 6), Point("c", 5, 2), Point("d", 5, 3)]
    assert [point.name for point in best(points)] == ["a", "c"]
