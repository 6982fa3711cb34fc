"""2 and 4 processes compute what one does, and each has its share only."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_qwen3.llm import LLM
from mlx_qwen3.model.linear import nbytes
from tests.distributed.jobs import end, start
from tests.distributed.packed import MODELS, write_model
from tests.distributed.worker import logits, reply

FLOAT = 4  # bytes
Found = dict[str, Any]
Job = Callable[[int], list[Found]]

# Four processes that wait for each other take long where there are two cores.
SLOW = [pytest.param(4, name, marks=pytest.mark.slow) for name in MODELS]
CASES = [*((2, name) for name in MODELS), *SLOW]
sizes_and_models = pytest.mark.parametrize(("size", "name"), CASES)
both_ways = pytest.mark.parametrize("parallel", ["tensor", "pipeline"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        write_model(root / name, name)
    return root


@pytest.fixture(scope="module")
def job(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """job(size): what each process of a job found, by "model parallelism"."""

    @functools.cache
    def run(size: int) -> list[Found]:
        out = tmp_path_factory.mktemp(f"job{size}")
        command = ["-m", "tests.distributed.worker", str(folders), str(out / "found")]
        for code, _, stderr in end(start([command] * size, out)):
            assert code == 0, stderr
        return [json.loads((out / f"found.{rank}").read_text()) for rank in range(size)]

    return run


@pytest.fixture(scope="module")
def alone(folders: Path) -> Callable[[str], Found]:
    """alone(name): what one process finds."""

    @functools.cache
    def run(name: str) -> Found:
        llm = LLM.from_folder(folders / name, dtype="float32")
        found = {"nbytes": nbytes(llm.model), "logits": logits(llm.model)}
        return {**found, "llm": llm, "config": llm.model.config}

    return run


@sizes_and_models
@both_ways
def test_logits_are_those_of_one_process(
    job: Job, alone: Callable[[str], Found], size: int, name: str, parallel: str
) -> None:
    expected = np.array(alone(name)["logits"])
    ranks = job(size) if parallel == "tensor" else job(size)[:1]  # rank 0 has a pipeline's end
    for found in ranks:
        difference = np.abs(np.array(found[f"{name} {parallel}"]["logits"]) - expected)
        assert difference.max() < 1e-4


@sizes_and_models
@both_ways
def test_every_process_says_what_one_would(
    job: Job, alone: Callable[[str], Found], size: int, name: str, parallel: str
) -> None:
    for found in job(size):
        said = found[f"{name} {parallel}"]["replies"]
        assert said
        assert said == {one: reply(alone(name)["llm"], one) for one in said}


@sizes_and_models
@both_ways
def test_without_a_seed_all_draw_what_rank_0_draws(
    job: Job, size: int, name: str, parallel: str
) -> None:
    drawn = {tuple(found[f"{name} {parallel}"]["unseeded"]) for found in job(size)}
    assert len(drawn) == 1


@sizes_and_models
def test_each_process_has_its_share_of_the_weights(
    job: Job, alone: Callable[[str], Found], size: int, name: str
) -> None:
    if name == "few-kv-heads":
        pytest.skip("the same KV head on every process")
    for found in job(size):
        assert found[f"{name} tensor"]["nbytes"] <= alone(name)["nbytes"] * (1 / size + 0.05)


@sizes_and_models
def test_stages_of_a_pipeline_have_all_layers_once(
    job: Job, alone: Callable[[str], Found], size: int, name: str
) -> None:
    found = [one[f"{name} pipeline"]["nbytes"] for one in job(size)]
    assert alone(name)["nbytes"] <= sum(found)  # norms, and a tied embedding, are there twice
    assert max(found) < alone(name)["nbytes"]


@sizes_and_models
def test_a_token_takes_two_sums_of_a_layer_and_no_more(
    job: Job, alone: Callable[[str], Found], size: int, name: str
) -> None:
    config = alone(name)["config"]
    sums = 2 * config.num_hidden_layers + 1  # and one for the embedding
    share = -(-config.vocab_size // size)
    for found in job(size):
        assert found[f"{name} tensor"]["traffic"] == {
            "reduced": sums * config.hidden_size * FLOAT,
            "gathered": share * FLOAT,
            "sent": 0,
            "calls": sums + 1,
        }


@sizes_and_models
def test_a_token_takes_one_hidden_state_of_a_stage(
    job: Job, alone: Callable[[str], Found], size: int, name: str
) -> None:
    hidden = alone(name)["config"].hidden_size
    for rank, found in enumerate(job(size)):
        assert found[f"{name} pipeline"]["wire"] == (hidden * FLOAT if rank else 0)
