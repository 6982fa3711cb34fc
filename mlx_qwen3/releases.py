"""Every open Qwen3 text release: its short names, repositories and architecture, as data.

    find("8b")          -> the official 4-bit MLX repository of Qwen3-8B
    find("8b-fp8")      -> another format of it
    find("Qwen3-4B-Thinking-2507")

Sources: the config.json files and repository lists of huggingface.co/Qwen. Nothing here asks
the network; whether a repository still exists shows when it is downloaded.
"""

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlx_qwen3.errors import ModelNotFoundError

Kind = Literal["hybrid", "instruct", "thinking", "base", "coder", "embedding", "reranker"]


@dataclass(frozen=True)
class Architecture:
    """The shape of a model, in config.json's names. head_dim and vocab_size never differ."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    head_dim: int = 128
    vocab_size: int = 151_936

    @property
    def embedding_parameters(self) -> int:
        """Weights of the token embedding and, where it is not tied, of the head."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        """All weights, those of every expert included."""
        return self._count(self.num_experts)

    @property
    def active_parameters(self) -> int:
        """Weights that take part in one token."""
        return self._count(self.num_experts_per_tok)

    def _count(self, experts: int) -> int:
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads  # q, o, k, v
        attention = self.hidden_size * heads * self.head_dim
        norms = 2 * self.hidden_size + 2 * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        if self.num_experts:
            router = self.hidden_size * self.num_experts
            mlp = experts * 3 * self.hidden_size * self.moe_intermediate_size + router
        layers = self.num_hidden_layers * (attention + norms + mlp)
        return self.embedding_parameters + layers + self.hidden_size

    def kv_bytes(self, tokens: int, bits: int = 16) -> int:
        """Bytes of keys and values cached for that many tokens."""
        row = 2 * self.num_key_value_heads * self.head_dim * self.num_hidden_layers
        return tokens * row * bits // 8


@dataclass(frozen=True)
class Format:
    """How weights are stored, in bits per weight of a matrix.

    integer_bits: quantized values and zero points; float_bits: 16-bit weights, scales, biases.
    embeddings: whether the embedding and the head are stored so too; if not, in 16 bits.
    """

    integer_bits: float
    float_bits: float
    embeddings: bool = False

    def size(self, architecture: Architecture, float_bytes: int = 2) -> int:
        """Bytes of all weights: in the file, or in memory where floats take float_bytes."""
        embeddings = architecture.embedding_parameters
        matrix = self.integer_bits + self.float_bits * float_bytes / 2
        embedding = matrix if self.embeddings else 8 * float_bytes
        return int((architecture.parameters - embeddings) * matrix + embeddings * embedding) // 8


FORMATS: Mapping[str, Format] = {
    # MLX affine: groups of 64 with a scale and a bias.
    "4bit": Format(4, 32 / 64, embeddings=True),
    "6bit": Format(6, 32 / 64, embeddings=True),
    "8bit": Format(8, 32 / 64, embeddings=True),
    "bf16": Format(0, 16),
    "fp8": Format(8, 0),
    # Groups of 128 with a scale and a zero point as wide as the weights.
    "awq": Format(4 + 4 / 128, 16 / 128),
    "gptq-int4": Format(4 + 4 / 128, 16 / 128),
    "gptq-int8": Format(8 + 8 / 128, 16 / 128),
}


@dataclass(frozen=True)
class Release:
    """One published set of weights, in the formats it is published in.

    repos: format -> repository; the first is what the bare name means.
    """

    name: str
    kind: Kind
    architecture: Architecture
    repos: Mapping[str, str] = field(repr=False)
    max_position_embeddings: int = 40_960
    rope_theta: float = 1e6

    @property
    def default_format(self) -> str:
        return next(iter(self.repos))

    def source(self, format_name: str | None = None) -> "Source":
        """The repository of one format (None: the default)."""
        return Source(self, format_name or self.default_format)


@dataclass(frozen=True)
class Source:
    """A release in one format: what a name stands for."""

    release: Release
    format_name: str

    @property
    def repo(self) -> str:
        return self.release.repos[self.format_name]

    @property
    def official(self) -> bool:
        """Published by Qwen, and not converted by the community."""
        return self.repo.startswith("Qwen/")

    @property
    def size(self) -> int:
        """Bytes of its weights on disk, computed from the architecture."""
        return FORMATS[self.format_name].size(self.release.architecture)

    def memory(self, float_bytes: int = 2) -> int:
        """Bytes of its weights in memory; float_bytes is 4 on a CPU backend."""
        return FORMATS[self.format_name].size(self.release.architecture, float_bytes)


# layers, hidden, Q heads, KV heads, intermediate
SIZES: Mapping[str, Architecture] = {
    "0.6B": Architecture(28, 1024, 16, 8, 3072, tie_word_embeddings=True),
    "1.7B": Architecture(28, 2048, 16, 8, 6144, tie_word_embeddings=True),
    "4B": Architecture(36, 2560, 32, 8, 9728, tie_word_embeddings=True),
    "8B": Architecture(36, 4096, 32, 8, 12_288),
    "14B": Architecture(40, 5120, 40, 8, 17_408),
    "32B": Architecture(64, 5120, 64, 8, 25_600),
    "30B-A3B": Architecture(48, 2048, 32, 4, 6144, False, 128, 8, 768),
    "235B-A22B": Architecture(94, 4096, 64, 4, 12_288, False, 128, 8, 1536),
    "480B-A35B": Architecture(62, 6144, 96, 8, 8192, False, 160, 8, 2560),
}

# What the hybrid releases come in besides MLX and FP8, which all of them have.
OTHER_FORMATS: Mapping[str, tuple[str, ...]] = {
    "0.6B": ("GPTQ-Int8",),
    "1.7B": ("GPTQ-Int8",),
    "4B": ("AWQ",),
    "8B": ("AWQ",),
    "14B": ("AWQ",),
    "32B": ("AWQ",),
    "30B-A3B": ("GPTQ-Int4",),
    "235B-A22B": ("GPTQ-Int4",),
}
BASE_SIZES = ("0.6B", "1.7B", "4B", "8B", "14B", "30B-A3B")
THETA_2507 = {"4B": 5e6, "30B-A3B": 1e7, "235B-A22B": 5e6}
CODER_SIZES = ("30B-A3B", "480B-A35B")
RETRIEVAL_SIZES = ("0.6B", "4B", "8B")
LONG_CONTEXT = 262_144


@functools.cache
def releases() -> tuple[Release, ...]:
    """The whole table, in the order a person would look for a model."""
    return (
        *(_hybrid(size) for size in OTHER_FORMATS),
        *(_2507(size, "instruct") for size in THETA_2507),
        *(_2507(size, "thinking") for size in THETA_2507),
        *(_coder(size) for size in CODER_SIZES),
        *(_base(size) for size in BASE_SIZES),
        *(_retrieval(size, "embedding") for size in RETRIEVAL_SIZES),
        *(_retrieval(size, "reranker") for size in RETRIEVAL_SIZES),
    )


def _hybrid(size: str) -> Release:
    """Thinks or not, as asked: Qwen publishes these in MLX format."""
    model = f"Qwen/Qwen3-{size}"
    repos = {bits: f"{model}-MLX-{bits}" for bits in ("4bit", "6bit", "8bit", "bf16")}
    repos["fp8"] = f"{model}-FP8"
    repos |= {suffix.lower(): f"{model}-{suffix}" for suffix in OTHER_FORMATS[size]}
    return Release(size.lower(), "hybrid", SIZES[size], repos)


def _2507(size: str, kind: Literal["instruct", "thinking"]) -> Release:
    title = f"{size}-{kind.title()}-2507"
    return Release(
        title.lower(), kind, SIZES[size], _community(title), LONG_CONTEXT, THETA_2507[size]
    )


def _coder(size: str) -> Release:
    repos = _community(f"Coder-{size}-Instruct")
    return Release(f"coder-{size.lower()}", "coder", SIZES[size], repos, LONG_CONTEXT, 1e7)


def _community(title: str) -> dict[str, str]:
    """Qwen publishes these in bf16 and FP8 only: the 4-bit one is mlx-community's."""
    return {
        "4bit": f"mlx-community/Qwen3-{title}-4bit",
        "bf16": f"Qwen/Qwen3-{title}",
        "fp8": f"Qwen/Qwen3-{title}-FP8",
    }


def _base(size: str) -> Release:
    repos = {"bf16": f"Qwen/Qwen3-{size}-Base"}
    return Release(f"{size.lower()}-base", "base", SIZES[size], repos, 32_768)


def _retrieval(size: str, kind: Literal["embedding", "reranker"]) -> Release:
    repos = {"bf16": f"Qwen/Qwen3-{kind.title()}-{size}"}
    return Release(f"{kind}-{size.lower()}", kind, SIZES[size], repos)


@functools.cache
def names() -> Mapping[str, Source]:
    """Every name find() knows, without the optional "qwen3-" in front."""
    table: dict[str, Source] = {}
    for release in releases():
        for name in _spellings(release):
            table[name] = release.source()
            table |= {
                f"{name}-{format_name}": release.source(format_name)
                for format_name in release.repos
            }
    return table


def _spellings(release: Release) -> tuple[str, ...]:
    if release.kind == "coder":
        return release.name, f"{release.name}-instruct"
    return (release.name,)


def known(name: str) -> Source | None:
    """Look a short name up; case and a leading "qwen3-" do not matter."""
    return names().get(_key(name))


def find(name: str) -> Source:
    """known(name), or ModelNotFoundError naming the closest names."""
    source = known(name)
    if source:
        return source
    close = difflib.get_close_matches(_key(name), names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "try 0.6b or 8b."
    raise ModelNotFoundError(
        f'No model or folder is called "{name}": {hint} `mlx-qwen3 models` lists the names; '
        "a repository is written owner/name"
    )


def _key(name: str) -> str:
    return name.strip().lower().removeprefix("qwen3-")
