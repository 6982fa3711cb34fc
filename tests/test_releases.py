"""releases: the table, against what Qwen published."""

from __future__ import annotations

import re

import pytest

from mlx_qwen3 import releases
from mlx_qwen3.errors import ModelNotFoundError

# Billions of parameters as the model cards give them: (all, active per token).
PUBLISHED = {
    "0.6b": (0.6, 0.6),
    "1.7b": (1.7, 1.7),
    "4b": (4.0, 4.0),
    "8b": (8.2, 8.2),
    "14b": (14.8, 14.8),
    "32b": (32.8, 32.8),
    "30b-a3b": (30.5, 3.3),
    "235b-a22b": (235, 22),
    "coder-480b-a35b": (480, 35),
}
KIB_PER_TOKEN = {"0.6b": 112, "4b": 144, "32b": 256, "30b-a3b": 96, "235b-a22b": 188}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    architecture = releases.find(name).release.architecture
    total, active = PUBLISHED[name]
    assert architecture.parameters / 1e9 == pytest.approx(total, rel=0.02)
    assert architecture.active_parameters / 1e9 == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("name", KIB_PER_TOKEN)
def test_cache_of_a_token(name: str) -> None:
    assert releases.find(name).release.architecture.kv_bytes(1) == KIB_PER_TOKEN[name] * 1024


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("0.6b", "Qwen/Qwen3-0.6B-MLX-4bit"),
        ("Qwen3-8B", "Qwen/Qwen3-8B-MLX-4bit"),
        ("qwen3-8b-fp8", "Qwen/Qwen3-8B-FP8"),
        ("8b-bf16", "Qwen/Qwen3-8B-MLX-bf16"),
        ("32b-awq", "Qwen/Qwen3-32B-AWQ"),
        ("0.6b-gptq-int8", "Qwen/Qwen3-0.6B-GPTQ-Int8"),
        ("30b-a3b-gptq-int4", "Qwen/Qwen3-30B-A3B-GPTQ-Int4"),
        ("4b-base", "Qwen/Qwen3-4B-Base"),
        ("4b-thinking-2507", "mlx-community/Qwen3-4B-Thinking-2507-4bit"),
        ("30b-a3b-instruct-2507-fp8", "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8"),
        ("coder-30b-a3b", "mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit"),
        ("Qwen3-Coder-30B-A3B-Instruct", "mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit"),
        ("embedding-0.6b", "Qwen/Qwen3-Embedding-0.6B"),
        ("reranker-8b", "Qwen/Qwen3-Reranker-8B"),
    ],
)
def test_names(name: str, repo: str) -> None:
    source = releases.find(name)
    assert source.repo == repo
    assert source.official == repo.startswith("Qwen/")


@pytest.mark.parametrize("name", ["32b-base", "14b-gptq-int4", "8b-gguf", "8b-awq-awq"])
def test_what_was_never_published_is_not_known(name: str) -> None:
    assert releases.known(name) is None


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(ModelNotFoundError, match=r'"8b-fp9": did you mean 8b-fp8'):
        releases.find("8b-fp9")


def test_2507_numbers() -> None:
    long = releases.find("30b-a3b-instruct-2507").release
    assert (long.max_position_embeddings, long.rope_theta) == (262_144, 1e7)
    assert releases.find("4b-thinking-2507").release.rope_theta == 5e6
    assert releases.find("4b").release.max_position_embeddings == 40_960


def test_computed_sizes() -> None:
    # The 4-bit MLX repository of 30B-A3B is 17.2 GB; FP8 keeps its 1.2 GB of embeddings.
    assert releases.find("30b-a3b").size / 1e9 == pytest.approx(17.2, abs=0.1)
    assert releases.find("8b-fp8").size / 1e9 == pytest.approx(6.95 + 2.49, abs=0.05)
    # float32 scales and biases, as on a CPU: 5 bits instead of 4.5.
    source = releases.find("8b")
    assert source.memory(4) / source.memory(2) == pytest.approx(5 / 4.5)


def test_every_repository_appears_once_and_is_well_formed() -> None:
    repos = [repo for release in releases.releases() for repo in release.repos.values()]
    assert len(repos) == len(set(repos))
    assert all(re.fullmatch(r"(Qwen|mlx-community)/Qwen3-[\w.-]+", repo) for repo in repos)
    formats = {name for release in releases.releases() for name in release.repos}
    assert formats == set(releases.FORMATS)
