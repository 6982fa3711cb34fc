"""One reply from start to end: budgets and limits to the token, counts that add up."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.errors import OptionError
from mlx_qwen3.generation.output import Completion, Event
from mlx_qwen3.generation.reply import Reply
from mlx_qwen3.generation.request import Request
from mlx_qwen3.generation.sampling import SamplingParams
from mlx_qwen3.generation.thinking import EARLY_STOP
from mlx_qwen3.text.tokenizer import Tokenizer
from tests.fakes_model import EOS, THINK, THINK_END, FakeModel

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
PROMPT = (65,)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(checkpoint)


Make = Callable[..., Reply]


@pytest.fixture
def make(tokenizer: Tokenizer) -> Make:
    """make(model, max_tokens=..., temperature=..., ...): a reply to a prompt of one token."""

    def make_reply(
        model: FakeModel,
        *,
        max_tokens: int = 200,
        in_thinking: bool = False,
        raw: bool = False,
        eos_ids: Sequence[int] = (256, 258),
        **options: Any,
    ) -> Reply:
        request = Request(
            prompt_ids=PROMPT,
            params=SamplingParams.from_options({"temperature": 0, **options}),
            max_tokens=max_tokens,
            in_thinking=in_thinking,
            raw=raw,
        )
        return Reply(
            model,  # type: ignore[arg-type]
            tokenizer,
            request,
            eos_ids,
            load_seconds=1.5,
        )

    return make_reply


def run(reply: Reply) -> tuple[list[Event], Completion]:
    events: list[Event] = []
    reply.start()
    while not reply.done:
        events += reply.step()
    events += reply.end()
    reply.close()
    completion = events[-1].completion
    assert completion is not None
    return events, completion


def saying(tokenizer: Tokenizer, text: str, end: Sequence[int] = (EOS,)) -> FakeModel:
    return FakeModel.saying([*tokenizer.encode(text), *end])


# --- how it ends -------------------------------------------------------------------------


def test_events_joined_are_the_completion(make: Make, tokenizer: Tokenizer) -> None:
    text = f"<think>\nLet me 想想 👩‍🚀.\n</think>\n\nIt is é.\n{CALL}"
    events, completion = run(make(saying(tokenizer, text)))
    for kind, whole in (("thinking", completion.thinking), ("answer", completion.text)):
        assert "".join(event.text for event in events if event.kind == kind) == whole
    assert (completion.thinking, completion.text) == ("Let me 想想 👩‍🚀.", "It is é.")
    assert [event.tool_call for event in events if event.tool_call] == [*completion.tool_calls]
    assert completion.tool_calls[0].arguments == {"x": 1}
    assert completion.finish_reason == "tool_calls"
    assert [event.kind for event in events].count("end") == 1
    assert events[-1].kind == "end"
    assert events[-1].text == ""


def test_counts_and_figures(make: Make, tokenizer: Tokenizer) -> None:
    text = "<think>\nhm\n</think>\n\nyes"
    _, completion = run(make(saying(tokenizer, text)))
    assert completion.token_ids == (*tokenizer.encode(text), EOS)
    usage = completion.usage
    assert usage.prompt_tokens == 1
    assert usage.completion_tokens == len(completion.token_ids)
    assert usage.thinking_tokens == len(tokenizer.encode("<think>\nhm\n</think>")) == 6
    assert completion.timing.load == 1.5
    assert completion.timing.prefill > 0
    assert completion.timing.tokens_per_second > 0
    assert completion.logprobs is None


@pytest.mark.parametrize("eos", [256, 258])
def test_each_end_token_ends_it(eos: int, make: Make, tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "hi", end=[eos, *b"never"])
    _, completion = run(make(model))
    assert (completion.text, completion.finish_reason) == ("hi", "stop")
    assert completion.token_ids == (*b"hi", eos)


def test_an_end_token_of_another_model_is_text(make: Make, tokenizer: Tokenizer) -> None:
    _, completion = run(make(saying(tokenizer, "hi", end=[256, 258]), eos_ids=[258]))
    assert completion.token_ids == (*b"hi", 256, 258)
    assert completion.text == "hi"  # special tokens are still no text


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7])
def test_max_tokens_is_exact_and_costs_no_step_more(
    max_tokens: int, make: Make, tokenizer: Tokenizer
) -> None:
    model = saying(tokenizer, "abcdefgh")
    _, completion = run(make(model, max_tokens=max_tokens))
    assert completion.text == "abcdefgh"[:max_tokens]
    assert completion.finish_reason == "length"
    assert completion.usage.completion_tokens == max_tokens
    assert len(model.calls) == max_tokens  # the prompt, and each token but the last


def test_an_end_token_at_max_tokens_is_a_stop(make: Make, tokenizer: Tokenizer) -> None:
    _, completion = run(make(saying(tokenizer, "ab"), max_tokens=3))
    assert (completion.text, completion.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["c"], "ab"),
        ("de", "abc"),
        (["fgh"], "abcde"),
        (["x", "ef", "def"], "abc"),
        (["hi"], "abcdefgh"),
    ],
)
def test_stop_strings_end_the_answer(
    stops: Any, text: str, make: Make, tokenizer: Tokenizer
) -> None:
    _, completion = run(make(saying(tokenizer, "<think>abcdefgh</think>abcdefgh"), stop=stops))
    assert completion.thinking == "abcdefgh"
    assert completion.text == text
    assert completion.finish_reason == "stop"


def test_a_truncated_call_surfaces(make: Make, tokenizer: Tokenizer) -> None:
    _, completion = run(make(saying(tokenizer, f"See: {CALL}"), max_tokens=25))
    assert completion.text == 'See:\n<tool_call>\n{"name": "f", "arg'
    assert completion.tool_calls == ()
    (warning,) = completion.warnings
    assert "its end is missing" in warning
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("opened", [True, False])
def test_truncated_thinking_is_no_answer(opened: bool, make: Make, tokenizer: Tokenizer) -> None:
    text = "I wonder" if opened else "<think>I wonder"
    _, completion = run(make(saying(tokenizer, text), max_tokens=6, in_thinking=opened))
    assert completion.text == ""
    assert completion.thinking == "I wonder"[: 6 if opened else 5]
    assert completion.usage.thinking_tokens == 6


# --- the thinking budget -----------------------------------------------------------------


def muses(tokenizer: Tokenizer, answer: str = "ok") -> FakeModel:
    """Thinks for ever, unless a thought is ended for it: then it answers."""
    behind = len(tokenizer.encode(EARLY_STOP.partition("</think>")[2]))

    def says(ids: list[int]) -> int:
        if THINK_END in ids:
            place = len(ids) - ids.index(THINK_END) - 1 - behind
            return answer.encode()[place] if place < len(answer) else EOS
        return THINK if len(ids) == 1 else ord("a") + len(ids) % 26

    return FakeModel(says)


@pytest.mark.parametrize("budget", [1, 2, 3, 10])
def test_the_budget_holds_to_the_token(budget: int, make: Make, tokenizer: Tokenizer) -> None:
    model = muses(tokenizer)
    _, completion = run(make(model, thinking_budget=budget))
    stop = tokenizer.encode(EARLY_STOP)
    assert completion.token_ids[0] == THINK
    assert completion.token_ids[budget:] == (*stop, *b"ok", EOS)
    assert completion.text == "ok"
    assert completion.thinking.endswith("based on the thinking directly now.")
    assert completion.usage.thinking_tokens == budget + len(stop) - 2
    assert completion.usage.completion_tokens == len(completion.token_ids)
    assert completion.finish_reason == "stop"
    assert stop in model.calls  # in one prefill
    assert tuple(model.caches[0].token_ids[1:]) == completion.token_ids


@pytest.mark.parametrize("budget", [0, 1, 4])
def test_a_budget_for_a_thought_the_prompt_opened(
    budget: int, make: Make, tokenizer: Tokenizer
) -> None:
    """0 is no thinking at all, not one token of it."""
    _, completion = run(make(muses(tokenizer), thinking_budget=budget, in_thinking=True))
    stop = tokenizer.encode(EARLY_STOP)
    assert completion.token_ids[budget:] == (*stop, *b"ok", EOS)
    assert completion.text == "ok"


def test_max_tokens_is_exact_around_the_budget(make: Make, tokenizer: Tokenizer) -> None:
    stop = tokenizer.encode(EARLY_STOP)
    for max_tokens in (2, 3, 4, 5, 3 + len(stop) - 1, 3 + len(stop), 3 + len(stop) + 1):
        _, completion = run(make(muses(tokenizer), thinking_budget=3, max_tokens=max_tokens))
        assert len(completion.token_ids) == max_tokens
        assert completion.finish_reason == "length"
        assert completion.text == ("o" if max_tokens == 3 + len(stop) + 1 else "")


def test_a_thought_within_budget_is_left_alone(make: Make, tokenizer: Tokenizer) -> None:
    text = "<think>hm</think>yes"
    for budget in (4, 5, 100):
        _, completion = run(make(saying(tokenizer, text), thinking_budget=budget))
        assert completion.token_ids == (*tokenizer.encode(text), EOS)


def test_an_answer_is_no_thinking(make: Make, tokenizer: Tokenizer) -> None:
    _, completion = run(make(saying(tokenizer, "a long answer"), thinking_budget=1))
    assert completion.text == "a long answer"
    assert completion.usage.thinking_tokens == 0


def test_stop_strings_in_the_early_stop_do_not_count(make: Make, tokenizer: Tokenizer) -> None:
    _, completion = run(make(muses(tokenizer), thinking_budget=2, stop=["thinking", "\n\n"]))
    assert (completion.text, completion.finish_reason) == ("ok", "stop")
    assert completion.token_ids[-1] == EOS


def test_raw_text_is_neither_thinking_nor_calls(make: Make, tokenizer: Tokenizer) -> None:
    text = f"<think>a</think>{CALL}"
    _, completion = run(make(saying(tokenizer, text), raw=True))
    assert completion.text == text
    assert (completion.thinking, completion.tool_calls) == ("", ())
    assert completion.usage.thinking_tokens == 0
    assert completion.finish_reason == "stop"


# --- logprobs ----------------------------------------------------------------------------


def test_logprobs_of_every_token_that_was_drawn(make: Make, tokenizer: Tokenizer) -> None:
    _, completion = run(make(saying(tokenizer, "hi"), logprobs=2))
    assert completion.logprobs is not None
    assert [one.token for one in completion.logprobs] == ["h", "i", "<|im_end|>"]
    assert all(one.logprob == pytest.approx(0, abs=1e-4) for one in completion.logprobs)
    assert all(one.top[0][:2] == (one.token_id, one.token) for one in completion.logprobs)
    _, completion = run(make(muses(tokenizer), logprobs=0, thinking_budget=2))
    assert completion.logprobs is not None  # words put into its mouth have none
    assert [one.token_id for one in completion.logprobs] == [THINK, 99, *b"ok", EOS]


# --- construction and closing ------------------------------------------------------------


def test_bad_values_are_refused_before_work(make: Make, tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "hi")
    with pytest.raises(OptionError, match="logit_bias names token 288"):
        make(model, logit_bias={288: 1.0})
    assert model.calls == []


def test_a_closed_reply_lets_go_of_its_cache(make: Make, tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "hello")
    reply = make(model)
    reply.start()
    reply.step()
    cache = weakref.ref(model.caches.pop())
    assert cache() is not None
    reply.close()
    reply.close()
    assert cache() is None
    with pytest.raises(RuntimeError, match="closed"):
        reply.step()


def test_the_seed_is_drawn_anew_unless_given(make: Make) -> None:
    """A model that does not care what it says, asked twice."""

    def undecided() -> FakeModel:
        return FakeModel(lambda ids: [0.0] * 288)

    def texts(**options: Any) -> set[tuple[int, ...]]:
        replies = (make(undecided(), max_tokens=6, temperature=1.0, **options) for _ in range(3))
        return {run(reply)[1].token_ids for reply in replies}

    assert len(texts(seed=4)) == 1
    assert len(texts()) == 3
