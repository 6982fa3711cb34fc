"""Sampling: against numpy's reading of transformers' processors, and OpenAI's definitions."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_qwen3.errors import OptionError
from mlx_qwen3.generation.penalties import ThinkTags
from mlx_qwen3.generation.sampling import Sample, Sampler, SamplingParams

Array = NDArray[np.float64]


def sampler_for(vocab_size: int, seed: int = 0, **options: Any) -> Sampler:
    return Sampler(SamplingParams.from_options(options), vocab_size, seed)


def draw(sampler: Sampler, logits: Array, count: int) -> list[int]:
    row = mx.array(logits.astype(np.float32))[None]
    tokens = [sampler.sample(row).token for _ in range(count)]
    mx.eval(tokens)
    drawn: list[int] = mx.concatenate(tokens).tolist()  # type: ignore[assignment]
    return drawn


def draw_one(sampler: Sampler, logits: Array) -> int:
    return draw(sampler, logits, 1)[0]


# --- the reference: transformers' warpers in numpy -----------------------------------------


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def reference(
    logits: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Array:
    """Probabilities after TemperatureLogitsWarper, TopK-, TopP- and MinPLogitsWarper."""
    scores = logits.astype(np.float64) / temperature
    if top_k > 0:
        scores = np.where(scores < np.sort(scores)[-min(top_k, scores.size)], -np.inf, scores)
    if top_p < 1:
        ascending = np.argsort(scores)
        removed = np.cumsum(softmax(scores)[ascending]) <= 1 - top_p
        removed[-1] = False
        scores[ascending[removed]] = -np.inf
    if min_p > 0:
        probabilities = softmax(scores)
        scores = np.where(probabilities < min_p * probabilities.max(), -np.inf, scores)
    return softmax(scores)


def chi_square(drawn: list[int], probabilities: Array) -> float:
    """Standard deviations by which the counts are further off than chance (Wilson-Hilferty)."""
    counts = np.bincount(drawn, minlength=probabilities.size)
    kept = probabilities > 0
    assert counts[~kept].sum() == 0
    expected = probabilities[kept] * len(drawn)
    statistic = float(((counts[kept] - expected) ** 2 / expected).sum())
    freedom = int(kept.sum()) - 1
    if freedom == 0:
        return 0.0
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)


DRAWS = 1500
FILTERS: dict[str, dict[str, Any]] = {
    "temperature alone": {"temperature": 1.3},
    "cold": {"temperature": 0.5},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_k of all": {"temperature": 1.0, "top_k": 12},
    "top_k beyond all": {"temperature": 1.0, "top_k": 500},
    "top_p": {"temperature": 1.0, "top_p": 0.7},
    "top_p of one": {"temperature": 1.0, "top_p": 0.01},
    "min_p": {"temperature": 1.2, "min_p": 0.3},
    "min_p of one": {"temperature": 1.0, "min_p": 1.0},
    "thinking": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "top_k before top_p": {"temperature": 0.9, "top_k": 6, "top_p": 0.8},
    "all of them": {"temperature": 1.5, "top_k": 8, "top_p": 0.85, "min_p": 0.2},
}


def test_the_chi_square_would_notice() -> None:
    logits = np.linspace(0, 2, 12)
    right = reference(logits)
    drawn = np.random.default_rng(0).choice(12, DRAWS, p=right).tolist()
    assert abs(chi_square(drawn, right)) < 3
    assert chi_square(drawn, reference(logits, temperature=1.5)) > 4


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_reference(name: str) -> None:
    """The same tokens may be drawn, each as often as it should be."""
    settings = FILTERS[name]
    logits = np.random.default_rng(1).uniform(0, 2, 12)
    expected = reference(logits, **settings)
    # Rare tokens would make the set of those drawn a matter of luck.
    assert expected[expected > 0].min() * DRAWS > 5
    drawn = draw(sampler_for(12, **settings), logits, DRAWS)
    assert set(drawn) == set(np.flatnonzero(expected).tolist())
    assert chi_square(drawn, expected) < 4


def test_a_real_vocabulary_keeps_exactly_the_reference_set() -> None:
    """Of 151,936 logits; what is kept is flat enough to be seen in full."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, 151_936)
    likely = rng.choice(151_936, 30, replace=False)
    logits[likely] = rng.uniform(18, 20, 30)
    for settings in ({"top_k": 20}, {"top_k": 20, "top_p": 0.8}, {"top_p": 0.9, "min_p": 0.3}):
        expected = np.flatnonzero(reference(logits, temperature=0.7, **settings))
        assert 3 < len(expected) < 31
        drawn = draw(sampler_for(151_936, temperature=0.7, **settings), logits, 40)
        assert set(drawn) <= set(expected.tolist())
        assert len(set(drawn)) > len(expected) // 2


def test_forbidden_logits_are_never_drawn() -> None:
    logits = np.array([1.0, -np.inf, 0.5, -np.inf, 0.0])
    for settings in ({}, {"top_k": 4}, {"top_p": 0.99}, {"top_k": 5, "top_p": 0.9, "min_p": 0.01}):
        drawn = draw(sampler_for(5, temperature=1.0, **settings), logits, 300)
        assert set(drawn) == {0, 2, 4}
    only = np.array([-np.inf, -np.inf, -3.0, -np.inf])
    assert set(draw(sampler_for(4, temperature=1.0, top_p=0.5, top_k=3), only, 20)) == {2}


def test_ties_are_all_possible_within_top_k() -> None:
    """transformers keeps every token that ties with the last one; here top_k is a limit."""
    drawn = draw(sampler_for(6, temperature=1.0, top_k=2), np.zeros(6), 200)
    assert len(set(drawn)) == 2
    drawn = draw(sampler_for(6, temperature=1.0, top_k=3), np.array([0, 2, 0, 2, 0, 2.0]), 200)
    assert set(drawn) == {1, 3, 5}


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-6, 1e-300])
def test_temperature_zero_takes_the_largest(temperature: float) -> None:
    """And so does one so small that dividing by it would overflow."""
    logits = np.random.default_rng(1).normal(0, 30, 500)
    drawn = draw(sampler_for(500, temperature=temperature, top_k=20, top_p=0.8), logits, 20)
    assert set(drawn) == {int(logits.argmax())}
    tied = np.array([0.0, 5.0, 5.0, 1.0])
    assert draw_one(sampler_for(4, temperature=temperature), tied) == 1  # the first, as argmax


# --- penalties and bias ------------------------------------------------------------------


def seen_by_the_draw(sampler: Sampler, logits: Array) -> Array:
    """Logits after bias and penalties."""
    adjusted = sampler._adjust(mx.array(logits.astype(np.float32))[None])
    return np.array(adjusted[0]).astype(np.float64)


def test_repetition_penalty_is_transformers() -> None:
    """Divides positive and multiplies negative logits of tokens in prompt or output, once."""
    logits = np.array([3.0, -2.0, 1.5, 0.0, -1.0, 4.0])
    sampler = sampler_for(6, repetition_penalty=1.5)
    sampler.observe_prompt([0, 1, 1, 0])
    sampler.observe(mx.array([4]))
    sampler.observe(mx.array([4]))
    expected = [2.0, -3.0, 1.5, 0.0, -1.5, 4.0]
    np.testing.assert_allclose(seen_by_the_draw(sampler, logits), expected, rtol=1e-6)


def test_presence_and_frequency_penalties_are_openais() -> None:
    """logit - count * frequency - (count > 0) * presence, of generated tokens only."""
    logits = np.linspace(-2, 2, 6)
    sampler = sampler_for(6, presence_penalty=0.5, frequency_penalty=0.25)
    sampler.observe_prompt([0, 0, 5])
    sampler.observe(mx.array([1, 2, 2]))
    sampler.observe(mx.array([2]))
    expected = logits - np.array([0, 0.75, 1.25, 0, 0, 0])
    np.testing.assert_allclose(seen_by_the_draw(sampler, logits), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_negative_penalties_encourage(name: str) -> None:
    sampler = sampler_for(3, **{name: -1.5})
    sampler.observe(mx.array([1]))
    np.testing.assert_allclose(seen_by_the_draw(sampler, np.zeros(3)), [0, 1.5, 0])


def test_all_penalties_at_once_in_order() -> None:
    """Bias, then repetition, then presence and frequency."""
    logits = np.array([1.0, -1.0, 2.0])
    sampler = sampler_for(
        3,
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=1.0,
        logit_bias={0: 3.0, 1: -1.0},
    )
    sampler.observe_prompt([1])
    sampler.observe(mx.array([0, 0]))
    expected = [(1 + 3) / 2 - 0.5 - 2.0, (-1 - 1) * 2, 2.0]
    np.testing.assert_allclose(seen_by_the_draw(sampler, logits), expected, rtol=1e-6)


def test_logit_bias_bans_and_forces() -> None:
    logits = np.array([5.0, 4.0, 0.0, -5.0])
    assert draw_one(sampler_for(4, temperature=0, logit_bias={0: -100}), logits) == 1
    assert draw_one(sampler_for(4, temperature=0, logit_bias={3: 100}), logits) == 3
    banned = sampler_for(4, temperature=2.0, top_p=0.99, logit_bias={0: float("-inf")})
    assert 0 not in draw(banned, logits, 100)


def test_penalties_change_what_is_drawn() -> None:
    sampler = sampler_for(3, temperature=0, presence_penalty=2.0)
    logits = np.array([1.0, 0.5, 0.0])
    drawn = []
    for _ in range(3):
        drawn.append(draw_one(sampler, logits))
        sampler.observe(mx.array([drawn[-1]]))
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 1.0},
        {"frequency_penalty": 1.0},
        {"repetition_penalty": 1.2},
        {"presence_penalty": 1.0, "repetition_penalty": 1.2},
        {},
    ],
)
def test_no_unread_state_piles_up(options: dict[str, Any], tmp_path: Any) -> None:
    """State that no draw reads would grow by a node of the graph with every token."""
    sampler = sampler_for(8, **options)
    sampler.observe_prompt([1, 2])
    logits = mx.zeros((1, 8))
    for step in range(20):
        sample = sampler.sample(logits)
        mx.eval(sample.arrays())
        sampler.observe(mx.array([step % 8]))
    mx.eval(sampler.sample(logits).arrays())
    graph = tmp_path / "graph.dot"
    state = [part for part in (sampler._counts, sampler._seen) if part is not None]
    mx.export_to_dot(str(graph), [*state, logits])
    assert graph.read_text().count("Scatter") == 0


# --- the random stream -------------------------------------------------------------------


LOGITS = np.random.default_rng(5).normal(0, 1, 50)


def test_same_seed_same_draws_and_others_differ() -> None:
    draws = [draw(sampler_for(50, seed, temperature=1.0), LOGITS, 40) for seed in (0, 0, 1, 2**63)]
    assert draws[0] == draws[1]
    assert len({tuple(one) for one in draws}) == 3


def test_neighbouring_seeds_are_unrelated() -> None:
    """Seed s at draw d + 1 must not be seed s + 1 at draw d."""
    rows = [draw(sampler_for(50, seed, temperature=3.0), LOGITS, 60) for seed in range(4)]
    for one, other in itertools.permutations(rows, 2):
        for shift in (0, 1, 2):
            same = sum(a == b for a, b in zip(one[shift:], other, strict=False))
            assert same < 15  # by chance about 1.5


def test_draws_depend_on_nothing_else() -> None:
    """Neither on other samplers nor on MLX's own random state, which they leave alone."""
    alone = draw(sampler_for(50, 7, temperature=1.0), LOGITS, 12)
    mx.random.seed(1)
    expected_noise = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(1)
    mine, other = sampler_for(50, 7, temperature=1.0), sampler_for(50, 8, temperature=1.0)
    beside = []
    for _ in range(12):
        draw(other, LOGITS, 2)
        beside.append(draw_one(mine, LOGITS))
    assert beside == alone
    assert mx.random.uniform(shape=(3,)).tolist() == expected_noise


def test_the_parameters_do_not_shift_the_stream() -> None:
    """A filter that removes nothing changes nothing."""
    plain = draw(sampler_for(50, 3, temperature=1.0, top_k=50, top_p=0.9999999), LOGITS, 30)
    again = draw(sampler_for(50, 3, temperature=1.0, top_k=50, min_p=1e-9), LOGITS, 30)
    assert len(set(plain)) > 5
    assert plain == again


# --- logprobs ----------------------------------------------------------------------------


def sample_with_logprobs(logits: Array, **options: Any) -> Sample:
    sampler = sampler_for(logits.size, **options)
    sampler.observe(mx.array([0]))
    return sampler.sample(mx.array(logits.astype(np.float32))[None])


@pytest.mark.parametrize("count", [1, 5, 20])
def test_logprobs_are_of_the_models_own_distribution(count: int) -> None:
    """log_softmax of the raw logits, whatever bends the draw; the best ones, best first."""
    logits = np.random.default_rng(2).normal(0, 4, 300)
    sample = sample_with_logprobs(
        logits,
        logprobs=count,
        temperature=0.3,
        top_k=3,
        presence_penalty=2.0,
        logit_bias={7: 100.0},
    )
    expected = np.log(softmax(logits))
    assert sample.token.tolist() == [7]
    assert sample.logprob is not None
    np.testing.assert_allclose(sample.logprob.tolist(), expected[[7]], rtol=1e-4)
    assert sample.top_ids is not None
    assert sample.top_logprobs is not None
    best = np.argsort(-expected)[:count]
    assert sample.top_ids.tolist() == best.tolist()
    np.testing.assert_allclose(sample.top_logprobs.tolist(), expected[best], rtol=1e-4)


def test_logprobs_zero_reports_the_drawn_token_only() -> None:
    sample = sample_with_logprobs(np.array([1.0, 3.0]), logprobs=0, temperature=0)
    assert sample.logprob is not None
    expected = np.log(softmax(np.array([1.0, 3.0])))
    np.testing.assert_allclose(sample.logprob.tolist(), expected[[1]], rtol=1e-5)
    assert sample.top_ids is None
    assert sample.top_logprobs is None
    assert sample_with_logprobs(np.zeros(2)).logprob is None


def test_logprobs_of_sixteen_bit_logits_are_computed_in_float32() -> None:
    logits = mx.array(np.linspace(-8, 8, 400).astype(np.float32)).astype(mx.bfloat16)[None]
    sample = sampler_for(400, logprobs=3, temperature=0).sample(logits)
    expected = np.log(softmax(np.array(logits.astype(mx.float32))[0].astype(np.float64)))
    assert sample.top_logprobs is not None
    assert sample.top_logprobs.dtype == mx.float32
    np.testing.assert_allclose(sample.top_logprobs.tolist(), np.sort(expected)[:-4:-1], rtol=1e-5)


# --- options -----------------------------------------------------------------------------


INFINITE, NAN = float("inf"), float("nan")
OUT_OF_RANGE: list[tuple[str, Any]] = [
    *(("temperature", value) for value in (-0.1, NAN, INFINITE, "warm", True, [1], 10**400)),
    *(("top_p", value) for value in (0, -0.5, 1.01, NAN, "0.9", False)),
    *(("top_k", value) for value in (-1, 2.5, "20", True)),
    *(("min_p", value) for value in (-0.1, 1.1, NAN)),
    *(("presence_penalty", value) for value in (-2.1, 2.1, "1", NAN)),
    *(("frequency_penalty", value) for value in (-2.1, 2.1, NAN)),
    *(("repetition_penalty", value) for value in (0, -1, NAN, INFINITE)),
    *(("seed", value) for value in (-1, 2**64, 0.5, "7")),
    *(("max_tokens", value) for value in (0, -5, 1.5, "9", True)),
    *(("logprobs", value) for value in (-1, 21, 1.0, True)),
    *(("thinking_budget", value) for value in (-1, 0.5, "10", True)),
    *(("stop", value) for value in ("", ["a", ""], [1], 5, b"a", [None], {"a": 1})),
    *(("logit_bias", value) for value in ("5", [5], 5)),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE, ids=repr)
def test_out_of_range_is_one_line_that_says_what_is_wanted(name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        SamplingParams.from_options({name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name} is ")
    assert "; expected " in message


@pytest.mark.parametrize(
    ("bias", "found"),
    [
        ({12: 1.0}, "token 12"),
        ({-1: 1.0}, "token -1"),
        ({"3": 1.0}, "token '3'"),
        ({3: NAN}, "token 3 is nan"),
        ({3: INFINITE}, "token 3 is inf"),
        ({3: "much"}, "token 3 is 'much'"),
    ],
)
def test_logit_bias_is_checked_against_the_vocabulary(bias: dict[Any, Any], found: str) -> None:
    with pytest.raises(OptionError, match="expected") as caught:
        sampler_for(12, logit_bias=bias)
    assert "logit_bias" in str(caught.value)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("temprature", "temperature"),
        ("top-k", "top_k"),
        ("max_token", "max_tokens"),
        ("stops", "stop"),
        ("presence_penality", "presence_penalty"),
    ],
)
def test_an_unknown_option_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(OptionError, match=f"unknown option '{name}'; did you mean {nearest}\\?"):
        SamplingParams.from_options({name: 1})
    with pytest.raises(OptionError, match=r"^unknown option 'zzz'$"):
        SamplingParams.from_options({"zzz": 1})


def test_edges_of_the_ranges_are_allowed() -> None:
    edges: list[dict[str, Any]] = [
        {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "seed": 0, "logprobs": 0},
        {"temperature": 5.0, "top_p": 1e-9, "min_p": 1.0, "seed": 2**64 - 1, "logprobs": 20},
        {"presence_penalty": -2, "frequency_penalty": 2, "thinking_budget": 0, "max_tokens": 1},
    ]
    for options in edges:
        params = SamplingParams.from_options(options)
        assert {name: getattr(params, name) for name in options} == options


def test_options_go_over_defaults_and_none_is_not_given() -> None:
    params = SamplingParams.from_options(
        {"temperature": None, "top_k": 3, "stop": "x"}, {"temperature": 0.6, "top_k": 20}
    )
    assert (params.temperature, params.top_k, params.stop) == (0.6, 3, ("x",))
    assert SamplingParams.from_options({"stop": ["a", "b"]}).stop == ("a", "b")


# --- penalties of thinking ---------------------------------------------------------------

OPEN_ID, CLOSE_ID = 6, 7
RANKED = [float(-one) for one in range(8)]  # 0 is best, then 1, ...


def drawn(tokens: list[int], tags: ThinkTags | None, **options: Any) -> int:
    """The greedy draw after these tokens."""
    params = SamplingParams.from_options({"temperature": 0, **options})
    sampler = Sampler(params, len(RANKED), 0, tags)
    for token_id in tokens:
        sampler.observe(mx.array([token_id]))
    return int(sampler.sample(mx.array([RANKED])).token.item())


@pytest.mark.parametrize(
    ("tokens", "before", "expected"),
    [
        ([OPEN_ID, 0], "may_think", 1),  # thinking: 0 is penalised
        ([0], "may_think", 0),  # no thought was opened
        ([0], "in_thinking", 1),
        ([0, CLOSE_ID], "in_thinking", 0),
        ([0, CLOSE_ID, 0], "in_thinking", 0),
        ([OPEN_ID, 0, 1, CLOSE_ID, 0], "may_think", 0),
        ([0, OPEN_ID, 0], "may_think", 0),  # only the first token opens one
    ],
)
def test_penalties_of_thinking_end_with_it(tokens: list[int], before: str, expected: int) -> None:
    tags = ThinkTags(OPEN_ID, CLOSE_ID, before == "in_thinking", before == "may_think")
    assert drawn(tokens, tags, thinking_presence_penalty=2.0) == expected
    assert drawn(tokens, tags, thinking_frequency_penalty=2.0) == expected


def test_the_answer_counts_its_own_tokens_only() -> None:
    tags = ThinkTags(OPEN_ID, CLOSE_ID, True, False)
    apart = {"presence_penalty": 2.0, "thinking_presence_penalty": 0.0}
    assert drawn([0, 0], tags, **apart) == 0
    assert drawn([0, CLOSE_ID], tags, **apart) == 0
    assert drawn([0, CLOSE_ID, 0], tags, **apart) == 1
    assert drawn([0, CLOSE_ID], tags, presence_penalty=2.0) == 1  # together: all of the reply


def test_without_thinking_its_penalties_are_nothing() -> None:
    assert drawn([0], None, thinking_presence_penalty=2.0) == 0


@pytest.mark.parametrize("name", ["presence", "frequency", "repetition"])
def test_penalties_of_thinking_have_the_same_ranges(name: str) -> None:
    option = f"thinking_{name}_penalty"
    with pytest.raises(OptionError, match=f"{option} is -3"):
        SamplingParams.from_options({option: -3})
    assert SamplingParams.from_options({option: None}).thinking_penalties is None
