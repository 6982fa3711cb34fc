"""config.json as frozen data, with the names the file itself uses.

Reads both spellings in the wild: `rope_theta` + `rope_scaling` (transformers 4, mlx-lm) and
`rope_parameters` (transformers 5). Defaults are those of transformers' Qwen3Config and
Qwen3MoeConfig, which is what a key left out of a published file means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen3.errors import ConfigError

MODEL_TYPES = ("qwen3", "qwen3_moe")
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

# Defaults of the reference; head_dim is absent for qwen3_moe on purpose (hidden / heads there).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": False,
    },
}


@dataclass(frozen=True)
class RopeParameters:
    """Rotary position embedding: the base and how it is stretched.

    factor: how many times longer the context becomes (1.0: not at all).
    original_max_position_embeddings: tokens the model was trained on, before stretching.
    attention_factor: what cos and sin are multiplied by; None lets YaRN's formula decide.
    """

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> RopeParameters:
        """Read a whole config.json dict. Raises ConfigError for a rope type not known here."""
        raw = _rope_dict(config)
        raw.setdefault("rope_type", raw.pop("type", "default"))
        if raw.get("rope_theta") is None:
            theta = config.get("rope_theta")
            raw["rope_theta"] = cls.rope_theta if theta is None else theta
        if raw["rope_type"] not in ROPE_TYPES:
            raise ConfigError(
                f"config.json: rope type {raw['rope_type']!r} is not supported; "
                f"expected one of {', '.join(ROPE_TYPES)}"
            )
        partial = raw.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise ConfigError(
                f"config.json: partial_rotary_factor {partial} is not supported; expected 1.0"
            )
        _fill_scaling(raw, config)
        known = {name: raw[name] for name in cls.__dataclass_fields__ if raw.get(name) is not None}
        for name in ("rope_theta", "factor", "beta_fast", "beta_slow"):
            if not _is_number(known.get(name, 1.0), above=0):
                raise ConfigError(f"config.json: {name} is {known[name]!r}; expected above 0")
        return cls(**known)


def _rope_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, wherever they are written.

    rope_scaling comes first: READMEs tell people to add it, whatever else the file has.
    """
    found: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.json: {key} is {value!r}; expected an object")
        if "full_attention" in value:
            value = _one_rope_for_all_layers(value)
        if value:
            theta = found.get("rope_theta")
            found = {**({} if theta is None else {"rope_theta": theta}), **value}
    return found


def _is_number(value: Any, *, above: float) -> bool:
    right_kind = isinstance(value, int | float) and not isinstance(value, bool)
    return right_kind and math.isfinite(value) and value > above


def _one_rope_for_all_layers(raw: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 may nest the parameters by layer type; Qwen3 has one set for all."""
    sets = [value for value in raw.values() if isinstance(value, Mapping)]
    if any(value != sets[0] for value in sets):
        raise ConfigError(
            "config.json: rope_parameters differ by layer type; Qwen3 has one set for all layers"
        )
    return dict(sets[0])


def _fill_scaling(raw: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Complete what the reference derives: the trained context, and a factor left out."""
    if raw["rope_type"] in ("yarn", "llama3"):
        context = config.get("max_position_embeddings", 32768)
        original = config.get("original_max_position_embeddings")
        if original is not None:
            raw["original_max_position_embeddings"] = original
        elif raw.get("original_max_position_embeddings") is None:
            raw["original_max_position_embeddings"] = context
        if raw.get("factor") is None:
            raw["factor"] = context / raw["original_max_position_embeddings"]
    if raw["rope_type"] == "linear" and raw.get("factor") is None:
        raise ConfigError("config.json: linear rope scaling without a factor; add one")


@dataclass(frozen=True)
class ModelConfig:
    """One Qwen3 architecture, dense or mixture of experts. Sizes are counts, not bytes."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_parameters: RopeParameters
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    norm_topk_prob: bool = False
    torch_dtype: str | None = None
    eos_token_id: tuple[int, ...] = ()

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read `folder`/config.json. Raises ConfigError when it is absent, broken or not Qwen3."""
        return cls.from_dict(read_config(folder))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Validate a config.json dict. Raises ConfigError that names the key."""
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ConfigError(
                f"config.json: model_type is {model_type!r}; expected 'qwen3' or 'qwen3_moe' "
                "(other architectures are not run here)"
            )
        values = _with_defaults(config, model_type)
        result = cls(
            **{name: values[name] for name in _PLAIN_KEYS if values.get(name) is not None},
            head_dim=values.get("head_dim") or values["hidden_size"] // _heads(values),
            rope_parameters=RopeParameters.from_dict(values),
            sliding_window=values.get("sliding_window")
            if values.get("use_sliding_window")
            else None,
            layer_types=_layer_types(values, model_type),
            mlp_only_layers=_layer_numbers(values.get("mlp_only_layers")),
            torch_dtype=values.get("torch_dtype") or values.get("dtype"),
            eos_token_id=token_ids(values.get("eos_token_id")),
        )
        _validate(result)
        return result

    @property
    def context_length(self) -> int:
        """Tokens the model can attend to, after stretching by YaRN where that is configured."""
        rope = self.rope_parameters
        stretched = int(rope.original_max_position_embeddings * rope.factor)
        return max(self.max_position_embeddings, stretched if rope.rope_type == "yarn" else 0)

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer's feed-forward part is a mixture of experts."""
        return (
            self.num_experts > 0
            and layer not in self.mlp_only_layers
            and (layer + 1) % self.decoder_sparse_step == 0
        )

    def window(self, layer: int) -> int | None:
        """How many tokens back this layer attends to, itself included; None: all of them."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None


# The keys taken over as they stand; the others need a rule.
_PLAIN_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "attention_bias",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "decoder_sparse_step",
    "norm_topk_prob",
)
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The dict in `folder`/config.json. Raises ConfigError when there is none to read."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found; expected a model folder with config.json and *.safetensors"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read as JSON ({exc}); download it again") from exc
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: holds a {type(config).__name__}; expected a JSON object")
    return config


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """One id, a list or nothing, as configs write eos_token_id, to a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _with_defaults(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    values = {**_DEFAULTS[model_type], **config}
    if "num_local_experts" in config and "num_experts" not in config:
        values["num_experts"] = config["num_local_experts"]  # transformers 5's spelling
    for key in _REQUIRED:
        if values.get(key) is None:
            raise ConfigError(f"config.json: {key} is missing; expected a whole number")
    if "num_key_value_heads" in config and config["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if model_type == "qwen3":
        for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
            values.pop(key, None)
    return values


def _layer_numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple | type(None)):
        raise ConfigError(f"config.json: mlp_only_layers is {value!r}; expected a list of layers")
    return tuple(value or ())


def _heads(values: Mapping[str, Any]) -> int:
    heads = values["num_attention_heads"]
    if not isinstance(heads, int) or heads < 1:
        raise ConfigError(f"config.json: num_attention_heads is {heads!r}; expected 1 or more")
    return heads


def _layer_types(values: Mapping[str, Any], model_type: str) -> tuple[str, ...]:
    """Full or sliding attention for each layer, by the rules of the two references.

    Dense: layers from max_window_layers on slide, unless layer_types says otherwise.
    Mixture of experts: every layer slides as soon as use_sliding_window is set.
    """
    count: int = values["num_hidden_layers"]
    slides = bool(values.get("use_sliding_window")) and values.get("sliding_window") is not None
    if model_type == "qwen3_moe":
        return ("sliding_attention" if slides else "full_attention",) * count
    given = values.get("layer_types")
    if given is not None:
        return tuple(str(kind) for kind in given)
    first = values["max_window_layers"] if slides else count
    return tuple(
        "sliding_attention" if layer >= first else "full_attention" for layer in range(count)
    )


def _validate(config: ModelConfig) -> None:
    """Refuse what no Qwen3 could be, naming the key."""
    counts = [*_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"]
    if config.num_experts:
        counts += ["num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"]
    for key in counts:
        value = getattr(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"config.json: {key} is {value!r}; expected a whole number above 0")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"config.json: num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    if config.head_dim % 2:
        raise ConfigError(f"config.json: head_dim is {config.head_dim}; expected an even number")
    if config.hidden_act not in ACTIVATIONS:
        raise ConfigError(
            f"config.json: hidden_act {config.hidden_act!r} is not supported; "
            f"expected one of {', '.join(ACTIVATIONS)}"
        )
    if config.num_experts and config.num_experts_per_tok > config.num_experts:
        raise ConfigError(
            f"config.json: num_experts_per_tok {config.num_experts_per_tok} is more than "
            f"num_experts {config.num_experts}"
        )
    if len(config.layer_types) != config.num_hidden_layers:
        raise ConfigError(
            f"config.json: layer_types has {len(config.layer_types)} entries; "
            f"expected num_hidden_layers = {config.num_hidden_layers}"
        )
    _validate_layers(config)


def _validate_layers(config: ModelConfig) -> None:
    for kind in config.layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(
                f"config.json: layer type {kind!r} is not supported; "
                "expected full_attention or sliding_attention"
            )
    window = config.sliding_window
    slides = window is not None or "sliding_attention" in config.layer_types
    if slides and not _is_number(window, above=0):
        raise ConfigError(
            f"config.json: sliding attention with a sliding_window of {window!r}; "
            "expected a number of tokens and use_sliding_window"
        )
    if not _is_number(config.rms_norm_eps, above=0):
        raise ConfigError(
            f"config.json: rms_norm_eps is {config.rms_norm_eps!r}; expected a number above 0"
        )
