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


@dataclass(frozen=True)
class RowSample:
    """The draws of several positions at once, not yet evaluated.

    tokens, logprobs: (k,). top_ids, top_logprobs: (k, n). As in Sample otherwise.
    certain: (k,) bool, whether rounding could not have made it another token; None: not asked.
    """

    tokens: mx.array
    certain: mx.array | None = None
    logprobs: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """What to evaluate."""
        parts = (self.tokens, self.certain, self.logprobs, self.top_ids, self.top_logprobs)
        return [part for part in parts if part is not None]


@dataclass(frozen=True)
class SamplerState:
    """What the next draw depends on: draws made, and the tokens counted (see Sampler)."""

    draws: int
    counts: mx.array | None
    seen: mx.array | None


class Sampler:
    """Draws the tokens of one sequence. Owns its random stream and its token counts.

    A draw depends on the seed and on how many were made before it, on nothing else: the same
    seed gives the same text whatever else the device is doing.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        seed: int,
        tags: ThinkTags | None = None,
        share: Callable[[mx.array], mx.array] | None = None,
    ) -> None:
        """tags: needed for penalties of thinking; None where the model does not think.

        share: makes of what this process drew what all processes of a model take.
        """
        self._share = share
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
        if self._seen is not None:  # a new array: a state taken before must not change
            self._seen = mx.put_along_axis(self._seen, tokens, mx.array(True), axis=0)
        if self._switch is not None:
            ended = self._switch.observe(tokens)
            if self._counts is not None:
                self._counts = mx.where(ended, 0.0, self._counts)

    def sample(self, logits: mx.array, allowed: mx.array | None = None) -> Sample:
        """logits: (1, vocab_size), any float dtype. allowed: (vocab_size,) bool; None: all."""
        drawn = self.sample_rows(logits, allowed=allowed)
        return Sample(
            drawn.tokens,
            drawn.logprobs,
            None if drawn.top_ids is None else drawn.top_ids[0],
            None if drawn.top_logprobs is None else drawn.top_logprobs[0],
        )

    def sample_rows(
        self,
        logits: mx.array,
        following: mx.array | None = None,
        *,
        allowed: mx.array | None = None,
        tolerance: float = 0.0,
    ) -> RowSample:
        """One draw for each of k positions, each as if those before it were `following`.

        logits: (k, vocab_size). following: (k - 1,) int, what the penalties are to count: row i
        comes after the first i of them; none where `switches`. allowed: (k, vocab_size) bool, or a
        mask for all rows. tolerance: by how much rounding may have moved a difference of two
        logits; above 0, the result says which draws that leaves certain.
        """
        logits = logits.astype(mx.float32)
        adjusted = self._adjust(logits, following)
        if allowed is not None:
            # A bias may ban all that is allowed: what is banned still comes before the rest.
            adjusted = mx.where(allowed, mx.maximum(adjusted, _LEAST), -mx.inf)
        tokens, certain = self._draw(adjusted, tolerance)
        if self._share is not None:
            tokens = self._share(tokens)
        if self._params.logprobs is None:
            return RowSample(tokens, certain)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        own = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        if self._params.logprobs == 0:
            return RowSample(tokens, certain, own)
        ids = _largest(logprobs, self._params.logprobs)
        return RowSample(tokens, certain, own, ids, mx.take_along_axis(logprobs, ids, axis=-1))

    @property
    def switches(self) -> bool:
        """Whether its penalties change where thinking ends: then no state can be returned to."""
        return self._switch is not None

    def state(self) -> SamplerState:
        """To return to, when draws turn out to be dropped."""
        return SamplerState(self._draws, self._counts, self._seen)

    def restore(self, state: SamplerState) -> None:
        """Be as when `state` was taken, by this sampler or one with the same parameters."""
        self._draws, self._counts, self._seen = state.draws, state.counts, state.seen

    def skip(self, draws: int) -> None:
        """Count draws that were not made; negative: take back some that do not count."""
        self._draws += draws

    def _adjust(self, logits: mx.array, following: mx.array | None = None) -> mx.array:
        if self._bias is not None:
            logits = logits + self._bias
        now = self._params.penalties if self._switch is None else self._switch.penalties()
        counts, seen = self._counts, self._seen
        if following is not None and following.size and (counts is not None or seen is not None):
            more = _running_counts(following, self._vocab_size)
            counts = None if counts is None else counts + more
            seen = None if seen is None else seen | (more > 0)
        if seen is not None:
            worse = mx.where(logits > 0, logits / now.repetition, logits * now.repetition)
            logits = mx.where(seen, worse, logits)
        if counts is not None:
            logits = logits - now.presence * (counts > 0)
            logits = logits - now.frequency * counts
        return logits

    def _draw(self, logits: mx.array, tolerance: float) -> tuple[mx.array, mx.array | None]:
        """(k, vocab_size) -> tokens, and whether they are certain: (k,) each.

        A draw inverts the distribution function at one uniform number a position, so that it is
        the same number, and most often the same token, whichever model proposes it.
        """
        params = self._params
        if params.greedy:
            return mx.argmax(logits, axis=-1), _clear_winner(logits, tolerance)
        slack = tolerance / params.temperature
        logits, candidates = self._candidates(logits / params.temperature)
        kept, clear_cut = _filter(logits, params, slack)
        odds = mx.softmax(kept, axis=-1)
        cumulative = mx.cumsum(odds, axis=-1)
        points = self._uniforms(logits.shape[0]) * cumulative[:, -1:]
        # The first beyond the point, and never one that was dropped: sums are rounded.
        choice = mx.argmax((cumulative > points) & (odds > 0), axis=-1, keepdims=True)
        certain = None
        if tolerance:  # odds e^slack off move a share p of them by p (1 - p) slack at most
            certain = mx.abs(cumulative - points).min(axis=-1) > slack / 4
            if clear_cut is not None:
                certain = certain & clear_cut
        if candidates is None:
            return choice[:, 0], certain
        if certain is not None:  # rank and token may have changed places with a neighbour
            gaps = mx.abs(logits - mx.take_along_axis(logits, choice, axis=-1))
            last = choice[:, 0] == logits.shape[-1] - 1
            certain = certain & ((gaps <= slack).sum(axis=-1) == 1) & ~last
        return mx.take_along_axis(candidates, choice, axis=-1)[:, 0], certain

    def _candidates(self, logits: mx.array) -> tuple[mx.array, mx.array | None]:
        """Those a draw may come from, best first, and their ids; all, in place, if unfiltered."""
        params = self._params
        if 0 < params.top_k < self._vocab_size:
            ids = _largest(logits, params.top_k)
        elif params.top_p >= 1 and params.min_p <= 0:
            return logits, None
        else:
            ids = mx.argsort(-logits, axis=-1)
        return mx.take_along_axis(logits, ids, axis=-1), ids

    def _settle(self) -> None:
        """Finish what was built so far: the first draw may be made on another thread.

        MLX's streams belong to threads, and so does every array not yet evaluated.
        """
        mx.eval(self._bias, self._counts, self._seen, self._switch and self._switch.state())

    def _uniforms(self, count: int) -> mx.array:
        """The next numbers of this sequence, from 0 to below 1: (count, 1) float32.

        From the seed and the number of each draw (SplitMix64's mixing); made on the host, which
        spares the device a kernel, and with 23 bits, so that a product stays below its factor.
        """
        numbers = [self._uniform(self._draws + 1 + index) for index in range(count)]
        self._draws += count
        return mx.array(numbers)[:, None]

    def _uniform(self, draw: int) -> float:
        mixed = (self._seed + draw * 0x9E3779B97F4A7C15) & _MASK64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
        return float((mixed ^ (mixed >> 31)) >> 41) / (1 << 23)


_LEAST = -1e30
_MASK64 = (1 << 64) - 1


def _running_counts(token_ids: mx.array, vocab_size: int) -> mx.array:
    """(n,) -> (n + 1, vocab_size): how often each token is among the first 0, 1, ... n."""
    each = (token_ids[:, None] == mx.arange(vocab_size)).astype(mx.float32)
    return mx.concatenate([mx.zeros((1, vocab_size)), mx.cumsum(each, axis=0)])


def _clear_winner(logits: mx.array, tolerance: float) -> mx.array | None:
    """Whether the best is so by more than the tolerance: (k, vocab) -> (k,) bool."""
    if not tolerance:
        return None
    rivals = logits >= mx.max(logits, axis=-1, keepdims=True) - tolerance
    return rivals.sum(axis=-1) == 1


def _largest(values: mx.array, count: int) -> mx.array:
    """Indices of the `count` largest of each row, best first: (k, vocab) -> (k, count)."""
    indices = mx.argpartition(-values, kth=count - 1, axis=-1)[:, :count]
    order = mx.argsort(-mx.take_along_axis(values, indices, axis=-1), axis=-1)
    return mx.take_along_axis(indices, order, axis=-1)


def _filter(
    logits: mx.array, params: SamplingParams, slack: float
) -> tuple[mx.array, mx.array | None]:
    """top_p and min_p over candidates sorted best first: (k, n), -inf where dropped.

    With a slack also whether no candidate is that close to being dropped or kept: (k,) bool.
    """
    keep: mx.array | None = None
    clear: mx.array | None = None
    if params.top_p < 1:
        probabilities = mx.softmax(logits, axis=-1)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        keep = before < params.top_p  # the best one always: nothing comes before it
        if slack:
            clear = mx.abs(before - params.top_p).min(axis=-1) > slack / 4
    if params.min_p > 0:
        least = logits[:, :1] + math.log(params.min_p)
        likely = logits >= least
        keep = likely if keep is None else keep & likely
        if slack:
            apart = mx.abs(logits - least).min(axis=-1) > slack
            clear = apart if clear is None else clear & apart
    return (logits if keep is None else mx.where(keep, logits, -mx.inf)), clear


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
