"""logits -> token, inside MLX's graph: nothing here waits for the device.

Order of operations, as transformers and vLLM have it: logit bias, penalties, what a constraint
allows, temperature, top_k, top_p, min_p, then a draw. Temperature 0 takes the largest logit
(greedy).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import mlx.core as mx

from mlx_qwen3.errors import OptionError
from mlx_qwen3.generation.penalties import PENALTIES, Penalties, ThinkingSwitch, ThinkTags

MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How one reply is drawn, and when it ends.

    temperature: 0 is greedy. top_k: candidates kept (0: all). top_p: smallest set with this much
    probability (1: all). min_p: candidates at least this likely relative to the best (0: all).
    presence_penalty, frequency_penalty: subtracted from logits of tokens generated before, once
    or per occurrence (-2 to 2). repetition_penalty: divides positive and multiplies negative
    logits of tokens in prompt or output (1: off; arXiv:1909.05858).
    thinking_presence_penalty, ...: the same while the model thinks, where they are to differ (None:
    they do not). With any of them set, thinking and answer each count their own tokens.
    logit_bias: token id -> added to its logit. seed: the same seed gives the same text.
    max_tokens: generated tokens, thinking included; None: what fits, at most 32,768.
    stop: strings that end the answer and are not part of it.
    logprobs: None, or how many alternatives to report beside each token's own (0 to 20).
    thinking_budget: tokens of thinking before the answer is asked for; None: no limit.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    thinking_presence_penalty: float | None = None
    thinking_frequency_penalty: float | None = None
    thinking_repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    thinking_budget: int | None = None

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> SamplingParams:
        """Options by name over defaults; an option that is None counts as not given.

        Raises OptionError for a name not known (with the nearest one) or a value out of range.
        """
        known = {entry.name for entry in fields(cls)}
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise OptionError(f"unknown option {name!r}{hint}")
        given = {name: value for name, value in options.items() if value is not None}
        values = {**(defaults or {}), **given}
        if "stop" in values:
            stop = values["stop"]
            values["stop"] = (stop,) if isinstance(stop, str) else _as_tuple(stop)
        return cls(**values)

    def __post_init__(self) -> None:
        for name, (kind, wanted, holds) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            right_kind = isinstance(value, kind) and not isinstance(value, bool)
            if not right_kind or not _finite(value) or not holds(value):
                raise OptionError(f"{name} is {value!r}; expected {wanted}")
        texts: tuple[Any, ...] = self.stop if isinstance(self.stop, tuple) else (None,)
        if not all(isinstance(stop, str) and stop for stop in texts):
            raise OptionError(f"stop is {self.stop!r}; expected non-empty strings")
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError(f"logit_bias is {self.logit_bias!r}; expected token ids to numbers")

    @property
    def penalties(self) -> Penalties[float]:
        """Those of the answer, and of thinking too where it has none of its own."""
        return Penalties(self.presence_penalty, self.frequency_penalty, self.repetition_penalty)

    @property
    def thinking_penalties(self) -> Penalties[float] | None:
        """Those of thinking, None where they are the answer's."""
        own = {name: getattr(self, f"thinking_{name}") for name in PENALTIES}
        if all(value is None for value in own.values()):
            return None
        base = {name: getattr(self, name) for name in PENALTIES}
        return Penalties(*(base[name] if own[name] is None else own[name] for name in PENALTIES))

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < _COLDEST


# Below, logits overflow float32 when divided by the temperature; the draw is greedy long before.
_COLDEST = 1e-5
_NUMBER = (int, float)
_Range = tuple[type | tuple[type, ...], str, Callable[[Any], bool]]
_RANGES: dict[str, _Range] = {
    "temperature": (_NUMBER, "a number from 0 (greedy) on", lambda x: x >= 0),
    "top_p": (_NUMBER, "a number above 0, at most 1", lambda x: 0 < x <= 1),
    "top_k": (int, "a whole number, 0 for all", lambda x: x >= 0),
    "min_p": (_NUMBER, "a number from 0 to 1", lambda x: 0 <= x <= 1),
    "presence_penalty": (_NUMBER, "a number from -2 to 2", lambda x: -2 <= x <= 2),
    "frequency_penalty": (_NUMBER, "a number from -2 to 2", lambda x: -2 <= x <= 2),
    "repetition_penalty": (_NUMBER, "a number above 0", lambda x: x > 0),
    "seed": (int, "a whole number from 0 on", lambda x: 0 <= x < 1 << 64),
    "max_tokens": (int, "a whole number above 0", lambda x: x > 0),
    "logprobs": (int, f"a whole number from 0 to {MAX_LOGPROBS}", lambda x: 0 <= x <= MAX_LOGPROBS),
    "thinking_budget": (int, "a whole number from 0 on", lambda x: x >= 0),
}
_RANGES |= {f"thinking_{name}": _RANGES[name] for name in PENALTIES}
_OPTIONAL = {"seed", "max_tokens", "logprobs", "thinking_budget"}
_OPTIONAL |= {f"thinking_{name}" for name in PENALTIES}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number larger than any float
        return False


@dataclass(frozen=True)
class Sample:
    """One drawn token, not yet evaluated.

    token: (1,) int. logprob, top_ids, top_logprobs: (1,), (n,), (n,) when asked for; they are
    of the model's own distribution, before bias, penalties and temperature.
    """

    token: mx.array
    logprob: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """What to evaluate."""
        parts = (self.token, self.logprob, self.top_ids, self.top_logprobs)
        return [part for part in parts if part is not None]


class Sampler:
    """Draws the tokens of one sequence. Owns its random stream and its token counts.

    A draw depends on the seed and on how many were made before it, on nothing else: the same
    seed gives the same text whatever else the device is doing.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, seed: int, tags: ThinkTags | None = None
    ) -> None:
        """tags: needed for penalties of thinking; None where the model does not think."""
        self._params = params
        self._vocab_size = vocab_size
        self._seed = seed
        self._draws = 0
        self._bias = _bias_array(params.logit_bias, vocab_size)
        own = params.thinking_penalties
        self._switch = ThinkingSwitch(own, params.penalties, tags) if own and tags else None
        # Occurrences in the output, and whether seen at all, prompt included: (vocab_size,).
        # Each exists only if every draw reads it: updates that nothing evaluates would pile up.
        used = [params.penalties, *([own] if own and tags else [])]
        counts = any((one.presence, one.frequency) != (0, 0) for one in used)
        seen = any(one.repetition != 1 for one in used)
        self._counts = mx.zeros(vocab_size) if counts else None
        self._seen = mx.zeros(vocab_size, mx.bool_) if seen else None
        self._settle()

    def observe_prompt(self, token_ids: Sequence[int]) -> None:
        """Tokens the repetition penalty knows before any is generated."""
        if self._seen is not None and token_ids:
            self._seen[mx.array(list(token_ids))] = True
        self._settle()

    def observe(self, tokens: mx.array) -> None:
        """Tokens that became part of the output: (n,) int."""
        if self._counts is not None:
            self._counts = self._counts.at[tokens].add(1.0)
        if self._seen is not None:
            self._seen[tokens] = True
        if self._switch is not None:
            ended = self._switch.observe(tokens)
            if self._counts is not None:
                self._counts = mx.where(ended, 0.0, self._counts)

    def sample(self, logits: mx.array, allowed: mx.array | None = None) -> Sample:
        """logits: (1, vocab_size), any float dtype. allowed: (vocab_size,) bool; None: all."""
        logits = logits.astype(mx.float32)
        adjusted = self._adjust(logits)
        if allowed is not None:
            # A bias may ban all that is allowed: what is banned still comes before the rest.
            adjusted = mx.where(allowed, mx.maximum(adjusted, _LEAST), -mx.inf)
        token = self._draw(adjusted)
        if self._params.logprobs is None:
            return Sample(token)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        own = mx.take_along_axis(logprobs, token[:, None], axis=-1)[0]
        if self._params.logprobs == 0:
            return Sample(token, own)
        ids = _largest(logprobs, self._params.logprobs)
        return Sample(token, own, ids[0], mx.take_along_axis(logprobs, ids, axis=-1)[0])

    def _adjust(self, logits: mx.array) -> mx.array:
        if self._bias is not None:
            logits = logits + self._bias
        now = self._params.penalties if self._switch is None else self._switch.penalties()
        if self._seen is not None:
            worse = mx.where(logits > 0, logits / now.repetition, logits * now.repetition)
            logits = mx.where(self._seen, worse, logits)
        if self._counts is not None:
            logits = logits - now.presence * (self._counts > 0)
            logits = logits - now.frequency * self._counts
        return logits

    def _draw(self, logits: mx.array) -> mx.array:
        """(1, vocab_size) -> (1,)."""
        params = self._params
        if params.greedy:
            return mx.argmax(logits, axis=-1)
        logits = logits / params.temperature
        keeps_all = params.top_p >= 1 and params.min_p <= 0
        if not 0 < params.top_k < self._vocab_size:
            if keeps_all:
                return mx.random.categorical(logits, key=self._key())
            candidates = mx.argsort(-logits, axis=-1)
        else:
            candidates = _largest(logits, params.top_k)
        kept = _filter(mx.take_along_axis(logits, candidates, axis=-1), params)
        choice = mx.random.categorical(kept, key=self._key())
        return mx.take_along_axis(candidates, choice[:, None], axis=-1)[:, 0]

    def _settle(self) -> None:
        """Finish what was built so far: the first draw may be made on another thread.

        MLX's streams belong to threads, and so does every array not yet evaluated.
        """
        mx.eval(self._bias, self._counts, self._seen, self._switch and self._switch.state())

    def _key(self) -> mx.array:
        """A fresh key from the seed and the number of this draw (SplitMix64's mixing)."""
        self._draws += 1
        mixed = (self._seed + self._draws * 0x9E3779B97F4A7C15) & _MASK64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
        return mx.random.key(mixed ^ (mixed >> 31))


_LEAST = -1e30
_MASK64 = (1 << 64) - 1


def _largest(values: mx.array, count: int) -> mx.array:
    """Indices of the `count` largest of each row, best first: (1, vocab) -> (1, count)."""
    indices = mx.argpartition(-values, kth=count - 1, axis=-1)[:, :count]
    order = mx.argsort(-mx.take_along_axis(values, indices, axis=-1), axis=-1)
    return mx.take_along_axis(indices, order, axis=-1)


def _filter(logits: mx.array, params: SamplingParams) -> mx.array:
    """top_p and min_p over candidates sorted best first: (1, n) -> (1, n), -inf where dropped."""
    keep = mx.ones(logits.shape, mx.bool_)
    if params.top_p < 1:
        probabilities = mx.softmax(logits, axis=-1)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        keep = before < params.top_p  # the best one always: nothing comes before it
    if params.min_p > 0:
        keep = keep & (logits >= logits[:, :1] + math.log(params.min_p))
    return mx.where(keep, logits, -mx.inf)


def _bias_array(bias: Mapping[int, float], vocab_size: int) -> mx.array | None:
    if not bias:
        return None
    for token_id, value in bias.items():
        if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise OptionError(
                f"logit_bias names token {token_id!r}; expected ids from 0 to {vocab_size - 1}"
            )
        if not isinstance(value, _NUMBER) or not (_finite(value) or value == -math.inf):
            raise OptionError(
                f"logit_bias for token {token_id} is {value!r}; expected a number, or -inf to ban"
            )
    values = mx.zeros(vocab_size)
    values[mx.array(list(bias))] = mx.array([float(value) for value in bias.values()])
    return values
