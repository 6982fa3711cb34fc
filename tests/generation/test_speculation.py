"""Speculation is lossless: the same tokens as plain decoding's, whatever is proposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.device import Device
from mlx_qwen3.generation.constraints import Constraint
from mlx_qwen3.generation.lookup import Habits, Lookup
from mlx_qwen3.generation.loop import Token, TokenLoop
from mlx_qwen3.generation.pace import Pace
from mlx_qwen3.generation.proposers import (
    DraftHabits,
    DraftProposer,
    LookupProposer,
    Place,
    Proposer,
)
from mlx_qwen3.generation.sampling import Sampler, SamplingParams
from mlx_qwen3.generation.speculation import SpeculativeLoop
from mlx_qwen3.llm import LLM, load
from mlx_qwen3.model.policy import BurstPolicy
from mlx_qwen3.model.transformer import Transformer
from tests.fakes_model import FakeCache, FakeConfig, FakeModel
from tests.generation.test_sampling import chi_square, reference

Models = Callable[[str], Transformer]

SEED = 11
POLICY = BurstPolicy.for_device(Device.current(), mx.float32, 2)
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.3}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalties": PENALTIES | {"logit_bias": {70: 1.5}},
    "drawn": {"temperature": 1.0},
    "filtered": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "drawn, penalties": {"temperature": 0.9, "top_p": 0.95, **PENALTIES},
}
CACHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotating": {"max_kv_size": 24},
    "8 bits": {"kv_bits": 8},
    "rotating, 4 bits": {"max_kv_size": 24, "kv_bits": 4},
}
TEXT = list(b"one two three, one two three, one two four, one two")


class Eager(Pace):
    """Always proposes as much as it may: costs nothing, learns nothing."""

    def __init__(self, rows: int = 8) -> None:
        super().__init__(lambda rows: 0.01, rows)

    def note_plain(self, seconds: float, away: float) -> None:
        pass

    def note_burst(
        self, rows: int, tokens: int, seconds: float, away: float, plain: int = 0
    ) -> None:
        pass


class Scripted:
    """Proposes by a rule: the tokens so far -> what follows. Knows nothing of an unread token."""

    def __init__(self, says: Callable[[list[int]], Sequence[int]]) -> None:
        self.token_ids: list[int] = []
        self.judgements: list[tuple[int, int]] = []
        self._says = says

    def read(self, token_ids: Sequence[int]) -> None:
        self.token_ids += token_ids

    extend = read

    def retract(self, count: int) -> None:
        del self.token_ids[len(self.token_ids) - count :]

    def propose(self, place: Place) -> mx.array | None:
        said = list(self._says(self.token_ids))[: place.limit]
        return mx.array(said) if said else None

    def judged(self, proposed: int, accepted: int) -> None:
        self.judgements.append((proposed, accepted))


class Oracle(Scripted):
    """Knows what plain decoding said, and errs now and then."""

    def __init__(self, prompt: Sequence[int], said: Sequence[int], rows: int) -> None:
        super().__init__(lambda ids: ())
        self._whole = [*prompt, *said]
        self._rows = rows
        self._rng = Random(rows)

    def propose(self, place: Place) -> mx.array | None:
        start = len(self.token_ids) + place.unread
        said = self._whole[start : start + min(place.limit, self._rows - 1)]
        said = [one if self._rng.random() < 0.9 else (one + 1) % 250 for one in said]
        return mx.array(said) if said else None


def make_sampler(vocab_size: int, prompt: Sequence[int], seed: int, **options: Any) -> Sampler:
    params = SamplingParams.from_options({"temperature": 0, **options})
    sampler = Sampler(params, vocab_size, seed)
    sampler.observe_prompt(prompt)
    return sampler


def plain_loop(
    model: Any, prompt: Sequence[int] = TEXT, cache: dict[str, Any] | None = None, **options: Any
) -> TokenLoop:
    seed = options.pop("draws", SEED)
    sampler = make_sampler(model.config.vocab_size, prompt, seed, **options)
    loop = TokenLoop(model, model.make_cache(**(cache or {})), sampler)
    loop.feed(prompt)
    return loop


def speculative_loop(
    model: Any,
    prompt: Sequence[int] = TEXT,
    *,
    proposer: Proposer | None = None,
    cache: dict[str, Any] | None = None,
    max_tokens: int = 1000,
    constraint: Constraint | None = None,
    tolerance: float | None = None,
    rows: int = 8,
    **options: Any,
) -> SpeculativeLoop:
    cache = cache or {}
    noise = POLICY.packed_tolerance if "kv_bits" in cache else POLICY.tolerance
    seed = options.pop("draws", SEED)
    loop = SpeculativeLoop(
        model,
        model.make_cache(**cache),
        make_sampler(model.config.vocab_size, prompt, seed, **options),
        proposer or LookupProposer(Lookup(Habits()), Eager(rows)),
        Eager(rows),
        max_tokens=max_tokens,
        tolerance=noise if tolerance is None else tolerance,
        constraint=constraint,
    )
    loop.feed(prompt)
    return loop


def drafting(model: Transformer, draft: Transformer, rows: int = 5, **options: Any) -> Proposer:
    sampler = make_sampler(draft.config.vocab_size, [], SEED, **options)
    return DraftProposer(draft, draft.make_cache(), sampler, DraftHabits(), Eager(rows))


def take(loop: TokenLoop, count: int) -> list[int]:
    return [loop.next().token_id for _ in range(count)]


def repetitive(rng: Random) -> list[int]:
    """A prompt of phrases that come again."""
    phrases = [[rng.randrange(250) for _ in range(rng.randint(2, 9))] for _ in range(3)]
    return [one for _ in range(rng.randint(2, 8)) for one in rng.choice(phrases)]


# --- the same tokens ---------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", CACHES)
def test_lookup_gives_plain_tokens(kind: str, options: dict[str, Any], tiny_model: Models) -> None:
    model, rng = tiny_model("gqa-1"), Random(kind)
    proposed = 0
    for draws in range(4):
        prompt = repetitive(rng)
        arguments = {"cache": CACHES[kind], "draws": draws, **options}
        loop = speculative_loop(model, prompt, **arguments)
        assert take(loop, 40) == take(plain_loop(model, prompt, **arguments), 40)
        proposed += loop.proposed
    assert proposed > 0


@pytest.mark.parametrize("name", ["dense", "tied", "moe", "sliding", "yarn", "moe-some-dense"])
def test_every_architecture(name: str, tiny_model: Models) -> None:
    model, rng = tiny_model(name), Random(name)
    accepted = proposed = 0
    for rows in (2, 3, 8, 32):
        prompt = repetitive(rng)
        expected = take(plain_loop(model, prompt), 40)
        loop = speculative_loop(model, prompt, proposer=Oracle(prompt, expected, rows))
        assert take(loop, 40) == expected
        accepted, proposed = accepted + loop.accepted, proposed + loop.proposed
    assert 40 < accepted < proposed


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("draft", ["dense", "moe"])
def test_a_draft_model_gives_plain_tokens(
    draft: str, options: dict[str, Any], tiny_model: Models
) -> None:
    model = tiny_model("dense")
    proposer = drafting(model, tiny_model(draft), **options)
    loop = speculative_loop(model, proposer=proposer, **options)
    assert take(loop, 40) == take(plain_loop(model, **options), 40)
    assert loop.proposed > 0
    if draft == "dense":  # its own draft: the same draws by the same numbers
        assert loop.accepted == loop.proposed or "temperature" in options
        assert loop.accepted > loop.proposed // 4  # a flat distribution leaves much uncertain


def test_logprobs_are_those_of_plain_decoding(tiny_model: Models) -> None:
    model = tiny_model("dense")
    options = {"logprobs": 3, "temperature": 0.1, "presence_penalty": 1.0}
    proposer = drafting(model, model, temperature=0.1, presence_penalty=1.0)
    loop, plain = (
        speculative_loop(model, proposer=proposer, **options),
        plain_loop(model, **options),
    )
    for _ in range(40):
        one, other = loop.next(), plain.next()
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-4)
    assert loop.accepted > 0


def demo_prompts(count: int) -> list[str]:
    rng = Random(5)
    items = [
        *[
            "alpha",
            "beta",
            "gamma",
            "delta",
            "plum",
            "kiwi",
            "oslo",
            "17",
            "250",
            "red_box",
            "get_item",
        ]
    ]
    forms = (
        lambda: "Copy this list:\n" + "\n".join(f"- {rng.choice(items)}" for _ in range(7)),
        lambda: f"Repeat exactly: {' '.join(rng.choice(items) for _ in range(9))}",
        lambda: f"What is {rng.randrange(999)} + {rng.randrange(999)}?",
        lambda: f"Replace plum with lime in: {', '.join(rng.choice(items) for _ in range(6))}",
        lambda: rng.choice(("Hello!", "Who are you?", "Tell me about the sea.")),
    )
    return [forms[index % len(forms)]() for index in range(count)]


def both_ways(llm: LLM, prompts: list[str], **options: Any) -> int:
    """Compare replies of loops that propose at any chance; returns how much was accepted."""
    accepted = 0
    for prompt in prompts:
        token_ids = llm.tokenizer.encode(llm.render(prompt))
        loop = speculative_loop(llm.model, token_ids, rows=16, **options)
        plain = plain_loop(llm.model, token_ids, **options)
        for _ in range(60):
            token = loop.next()
            assert token.token_id == plain.next().token_id, prompt
            if token.token_id in llm.eos_ids:
                break
        accepted += loop.accepted
    return accepted


@pytest.mark.parametrize("name", ["demo", "demo-moe"])
def test_the_demo_models(name: str) -> None:
    assert both_ways(load(name), demo_prompts(8)) > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "demo-moe"])
def test_hundreds_of_prompts(name: str) -> None:
    assert both_ways(load(name), demo_prompts(200)) > 1000
    assert both_ways(load(name), demo_prompts(50), temperature=0.8, top_k=20, top_p=0.95) > 100
    assert both_ways(load(name), demo_prompts(50), cache={"kv_bits": 8}) > 100


# --- the distribution --------------------------------------------------------------------

TABLE = np.random.default_rng(3).normal(0, 1.5, (8, 8))  # logits after each token
DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "all": {"temperature": 1.0},
    "cold": {"temperature": 0.6},
    "top_k": {"temperature": 1.0, "top_k": 4},
    "top_p": {"temperature": 1.2, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
}


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("options", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_the_distribution_is_the_targets(options: dict[str, Any], penalty: float) -> None:
    """Pairs of tokens behind a proposal that is often wrong, over many seeds."""
    expected = np.zeros((8, 8))
    for first in range(8):
        seen = np.arange(8) == first
        one = reference(TABLE[0], **options)[first]
        expected[first] = one * reference(TABLE[first] - penalty * seen, **options)
    best = [int(one) for one in TABLE.argmax(axis=1)]

    def follow(token_ids: list[int]) -> list[int]:
        """Right about as often as not, and different from seed to seed."""
        chain = [best[token_ids[-1]]]
        return [*chain, best[chain[-1]], best[best[chain[-1]]]]

    pairs, accepted = [], 0
    model = FakeModel(lambda ids: TABLE[ids[-1]].tolist(), config=FakeConfig(vocab_size=8))
    for draws in range(600):
        # The prompt is fed before anything can be proposed: force one token to propose after it.
        loop = speculative_loop(
            model, [0, 0], proposer=Scripted(follow), draws=draws, presence_penalty=penalty,
            max_tokens=4, tolerance=0.0, **options,
        )  # fmt: skip
        taken = take(loop, 3)
        accepted += loop.accepted
        pairs.append(taken[0] * 8 + taken[1])
    assert chi_square(pairs, expected.flatten()) < 3
    assert accepted > 100


def test_one_seed_one_text(tiny_model: Models) -> None:
    """However much is proposed: what costs what depends on the clock."""
    model = tiny_model("dense")
    texts = {
        tuple(take(speculative_loop(model, rows=rows, temperature=1.0, top_k=30), 50))
        for rows in (1, 2, 5, 8, 32)
    }
    assert len(texts) == 1


# --- where rounding differs --------------------------------------------------------------


class RoundingModel(FakeModel):
    """Tokens read several at a time leave an error in what comes after, as kernels do."""

    def __init__(self, logits: Callable[[list[int], float], list[float]]) -> None:
        self._error = 0.0
        super().__init__(lambda ids: logits(ids, self._error))
        self._together: list[bool] = []  # for each token in the cache, whether it was in a burst

    def hidden_states(self, token_ids: mx.array, cache: FakeCache) -> mx.array:
        burst = 1 < token_ids.shape[1] < 9  # a prompt is longer, and read the same way always
        del self._together[cache.offset :]
        self._together += [burst] * token_ids.shape[1]
        self._error = 0.01 if any(self._together) else 0.0
        return super().hidden_states(token_ids, cache)


def near_ties(ids: list[int], error: float) -> list[float]:
    """Counts up, but every seventh token is a near tie, which an error turns."""
    logits = [0.0] * 288
    logits[(ids[-1] + 1) % 250] = 5.0
    if len(ids) % 7 == 0:
        logits[(ids[-1] + 9) % 250] = 4.995 + error
    return logits


@pytest.mark.parametrize("options", [{}, {"presence_penalty": 0.001}], ids=["greedy", "penalty"])
def test_what_rounding_could_turn_is_decided_by_plain_steps(options: dict[str, Any]) -> None:
    prompt = list(range(10))

    def upwards(token_ids: list[int]) -> list[int]:
        return [(token_ids[-1] + 2 + step) % 250 for step in range(4)]

    def loop(tolerance: float) -> SpeculativeLoop:
        model = RoundingModel(near_ties)
        return speculative_loop(
            model, prompt, proposer=Scripted(upwards), tolerance=tolerance, **options
        )

    expected = take(plain_loop(RoundingModel(near_ties), prompt, **options), 60)
    careful = loop(0.03)
    assert take(careful, 60) == expected
    assert careful.accepted > 20
    assert take(loop(0.0), 60) != expected  # else the model above tests nothing


def test_forced_tokens_are_read_again_as_they_were() -> None:
    """Together, as plain decoding reads them: one by one would round differently."""
    model = RoundingModel(near_ties)

    def guess(token_ids: list[int]) -> list[int]:
        return [(token_ids[-1] + 2) % 250, (token_ids[-1] + 3) % 250]

    loop = speculative_loop(model, list(range(10)), proposer=Scripted(guess), tolerance=0.03)
    plain = plain_loop(RoundingModel(near_ties), list(range(10)))
    for one in (loop, plain):
        take(one, 3)
        one.force([100, 101, 102])
    assert take(loop, 30) == take(plain, 30)


# --- forced tokens, limits ---------------------------------------------------------------

FORCED = list(b"\n\nNo more time.")


@pytest.mark.parametrize("options", [{}, PENALTIES, {"temperature": 1.0, **PENALTIES}], ids=str)
@pytest.mark.parametrize("kind", ["plain", "rotating", "8 bits"])
def test_forcing_amid_a_burst(kind: str, options: dict[str, Any], tiny_model: Models) -> None:
    model = tiny_model("gqa-1")
    for before in (0, 1, 2, 3, 6, 11):
        loops = [
            make(model, cache=CACHES[kind], **options) for make in (speculative_loop, plain_loop)
        ]
        for loop in loops:
            take(loop, before)
            loop.force(FORCED)
        first, second = (take(loop, 14) for loop in loops)
        assert first == second
        for loop in loops:
            loop.force(FORCED)
        first, second = (take(loop, 14) for loop in loops)
        assert first == second


def test_forcing_a_draft_model(tiny_model: Models) -> None:
    model = tiny_model("dense")
    loops = [speculative_loop(model, proposer=drafting(model, model)), plain_loop(model)]
    for loop in loops:
        take(loop, 8)
        loop.force(FORCED)
    assert take(loops[0], 14) == take(loops[1], 14)
    assert loops[0].accepted == loops[0].proposed > 0


def test_nothing_is_computed_beyond_max_tokens() -> None:
    model = FakeModel(lambda ids: (ids[-1] + 1) % 250)
    loop = speculative_loop(
        model,
        [1, 2],
        proposer=Scripted(lambda ids: range(ids[-1] + 2, ids[-1] + 30)),
        max_tokens=5,
        tolerance=0.0,
    )
    assert take(loop, 4) == [3, 4, 5, 6]
    assert loop.next(last=True) == Token(7)
    assert max(max(call) for call in model.calls) <= 6
    with pytest.raises(RuntimeError, match="feed the prompt first"):
        loop.next()


def test_a_step_overlaps_unless_a_burst_must_be_read() -> None:
    model = FakeModel(lambda ids: ids[-1] + 1)
    quiet = speculative_loop(model, [10], proposer=Scripted(lambda ids: ()), tolerance=0.0)
    assert quiet.next() == Token(11)
    assert model.calls == [[10], [11]]  # what follows 11 is already under way


def test_a_rejected_burst_leaves_no_trace() -> None:
    model = FakeModel(lambda ids: ids[-1] + 1)
    proposer = Scripted(lambda ids: [ids[-1] + 2, 99, 98])
    loop = speculative_loop(model, [10], proposer=proposer, tolerance=0.0)
    assert take(loop, 7) == [11, 12, 13, 14, 15, 16, 17]
    held = model.caches[0].token_ids
    assert held[: len(proposer.token_ids)] == proposer.token_ids[: len(held)]
    assert loop.proposed == sum(proposed for proposed, _ in proposer.judgements)
    assert loop.accepted == sum(accepted for _, accepted in proposer.judgements)
    assert 0 < loop.accepted < loop.proposed


# --- a constraint ------------------------------------------------------------------------


class NoNeighbours:
    """No token may be the one before, or the one after that; every fifth may be anything."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []

    def allowed(self) -> mx.array | None:
        if not self.token_ids or len(self.token_ids) % 5 == 0:
            return None
        index = mx.arange(288)
        return (index != self.token_ids[-1]) & (index != self.token_ids[-1] + 1)

    def accept(self, token_id: int) -> None:
        self.token_ids.append(token_id)

    def rollback(self, tokens: int) -> None:
        del self.token_ids[len(self.token_ids) - tokens :]


def constrained(model: Any, prompt: Sequence[int], count: int, **options: Any) -> list[int]:
    """One token at a time, each from a fresh start."""
    rule, cache = NoNeighbours(), model.make_cache()
    sampler = make_sampler(model.config.vocab_size, prompt, SEED, **options)
    hidden = model.hidden_states(mx.array([list(prompt)]), cache)
    for _ in range(count):
        sample = sampler.sample(model.logits(hidden[:, -1]), rule.allowed())
        token: int = sample.token.item()  # type: ignore[assignment]
        rule.accept(token)
        sampler.observe(sample.token)
        hidden = model.hidden_states(sample.token[None], cache)
    return rule.token_ids


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.9}, PENALTIES], ids=str)
def test_a_constraint_rules_every_row(options: dict[str, Any], tiny_model: Models) -> None:
    model, rule = tiny_model("dense"), NoNeighbours()
    proposer = drafting(model, model, **options)  # it does not know the rule
    loop = speculative_loop(model, proposer=proposer, constraint=rule, **options)
    taken = take(loop, 40)
    assert taken == constrained(model, TEXT, 40, **options)
    assert rule.token_ids[:40] == taken
    assert loop.accepted > 0


def test_a_constraint_and_forced_tokens(tiny_model: Models) -> None:
    """What was dropped is rolled back, and what was forced is told."""
    rule = NoNeighbours()
    loop = speculative_loop(tiny_model("dense"), constraint=rule)
    taken = take(loop, 5)
    loop.force(FORCED)
    assert rule.token_ids == taken + FORCED


# --- whole replies -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_folder: Callable[[str], Path]) -> LLM:
    llm = LLM.from_folder(tiny_folder("dense"))
    llm.draft = LLM.from_folder(tiny_folder("moe"))
    return llm


REPLIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.0, "logprobs": 2},
    "budget": {"temperature": 0.8, "thinking": True, "thinking_budget": 9},
    "no thinking": {"temperature": 0, "thinking": False},
    "quantized": {"temperature": 0, "max_kv_size": 40},
    "one token": {"temperature": 0, "max_tokens": 1},
}


@pytest.mark.parametrize("options", REPLIES.values(), ids=REPLIES)
@pytest.mark.parametrize("speculation", ["lookup", "draft", None])
def test_replies_are_the_same(
    speculation: Any, options: dict[str, Any], tiny: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "best", lambda self, survival: min(4, len(survival)))
    arguments = {"max_tokens": 60, "seed": 5, **options}
    prompt = "say ha ha ha ha ha ha"
    plain = tiny.generate(prompt, speculation=False, **arguments)
    guessed = tiny.generate(prompt, speculation=speculation, **arguments)
    assert guessed.token_ids == plain.token_ids
    assert (guessed.text, guessed.thinking) == (plain.text, plain.thinking)
    assert (guessed.finish_reason, guessed.usage) == (plain.finish_reason, plain.usage)
    assert [one.token_id for one in guessed.logprobs or ()] == [
        one.token_id for one in plain.logprobs or ()
    ]
    assert plain.proposed_tokens == 0
    assert guessed.accepted_tokens <= guessed.proposed_tokens


def test_end_and_stop_strings_inside_a_burst() -> None:
    """Of the demo's reply; what follows the end in the same burst is nobody's."""
    llm = load("demo")
    prompt = "Repeat exactly: red blue green red blue green red blue green"
    for stop in ([], ["green red"], ["blue"]):
        options: dict[str, Any] = {"temperature": 0, "stop": stop, "seed": 1}
        plain = llm.generate(prompt, speculation="off", **options)
        guessed = llm.generate(prompt, speculation="lookup", **options)
        assert guessed.token_ids == plain.token_ids
        assert (guessed.text, guessed.finish_reason) == (plain.text, "stop")


def test_a_stream_that_is_closed_amid_a_burst_frees_its_memory(tiny: LLM) -> None:
    before = mx.get_active_memory()
    events = tiny.stream("ha ha ha ha ha", speculation="lookup", temperature=0, max_tokens=100)
    for _ in range(5):
        next(events)
    events.close()
    mx.synchronize()
    assert mx.get_active_memory() == before
