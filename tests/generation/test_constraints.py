"""Constraints: what may come next, where they hold, and that tokens can be taken back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.errors import SchemaError
from mlx_qwen3.generation.constraints import (
    AnswerConstraint,
    Constraint,
    GrammarRule,
    TriggeredRule,
    Vocabulary,
    check_grammar,
    check_satisfiable,
    unpack,
)
from mlx_qwen3.generation.grammars import answer_grammar, json_part, lark_part, regex_part
from mlx_qwen3.generation.loop import TokenLoop
from mlx_qwen3.generation.sampling import Sampler, SamplingParams
from mlx_qwen3.generation.thinking import EARLY_STOP
from mlx_qwen3.text.tokenizer import Tokenizer
from tests.fakes_model import EOS, THINK, THINK_END, VOCAB_SIZE, FakeModel

DIGITS = answer_grammar(regex_part("[0-9]{2,3}"))
END = (256, 258)


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Path) -> Vocabulary:
    return Vocabulary(Tokenizer.from_folder(checkpoint), VOCAB_SIZE, END)


def answering(vocabulary: Vocabulary, grammar: str = DIGITS, **options: bool) -> AnswerConstraint:
    where = {"in_thinking": False, "may_think": False, **options}
    return AnswerConstraint(vocabulary, GrammarRule(vocabulary, grammar), **where)


def allowed(constraint: Constraint) -> set[int] | None:
    mask = constraint.allowed()
    if mask is None:
        return None
    assert (mask.shape, mask.dtype) == ((VOCAB_SIZE,), mx.bool_)
    return {token_id for token_id, may in enumerate(mask.tolist()) if may}


def say(constraint: Constraint, text: bytes | list[int]) -> set[int] | None:
    for token_id in text:
        constraint.accept(token_id)
    return allowed(constraint)


NUMBERS = set(b"0123456789")


def test_bits_become_booleans() -> None:
    wanted = np.array([random.Random(5).random() < 0.5 for _ in range(100)])
    words = np.packbits(wanted, bitorder="little")
    bits = np.frombuffer(words.tobytes().ljust(16, b"\0"), dtype=np.int32)
    assert np.array_equal(np.array(unpack(bits, 100)), wanted)


def test_the_end_is_allowed_only_when_the_grammar_is_complete(vocabulary: Vocabulary) -> None:
    constraint = answering(vocabulary)
    assert allowed(constraint) == NUMBERS
    assert say(constraint, b"1") == NUMBERS
    assert say(constraint, b"2") == NUMBERS | set(END)
    assert say(constraint, b"3") == set(END)
    assert say(constraint, [EOS]) is None  # the step in flight behind the end draws what it likes


def test_nothing_stands_for_no_token(vocabulary: Vocabulary) -> None:
    """Rows of the logits behind the tokenizer's last token, and special tokens, are no text."""
    constraint = answering(vocabulary, answer_grammar(regex_part("(?s:.*)")))
    assert allowed(constraint) == {*range(256), *range(259, 265), *END} - {*range(0xF5, 256)} - {
        *range(0x80, 0xC2)
    }


def test_thinking_is_free_and_the_lead_is_not_the_answer(vocabulary: Vocabulary) -> None:
    constraint = answering(vocabulary, may_think=True)
    assert allowed(constraint) == NUMBERS | {THINK}
    assert say(constraint, [THINK]) is None
    assert say(constraint, b"x </think") is None
    assert say(constraint, [THINK_END]) == NUMBERS | {10}
    assert say(constraint, b"\n") == NUMBERS | {10}
    assert say(constraint, b"\n") == NUMBERS
    assert say(constraint, b"45") == NUMBERS | set(END)


def test_an_answer_at_once(vocabulary: Vocabulary) -> None:
    constraint = answering(vocabulary, may_think=True)
    assert say(constraint, b"4") == NUMBERS
    assert allowed(answering(vocabulary)) == NUMBERS


def test_a_prompt_that_opened_the_thought(vocabulary: Vocabulary) -> None:
    constraint = answering(vocabulary, in_thinking=True)
    assert allowed(constraint) is None
    assert say(constraint, b"hm</think>\n\n") == NUMBERS  # spelled out


def test_an_early_stop_is_not_constrained(vocabulary: Vocabulary) -> None:
    constraint = answering(vocabulary, may_think=True)
    assert say(constraint, [THINK, *vocabulary.tokenizer.encode("hm" + EARLY_STOP)]) == NUMBERS


def test_a_token_that_is_not_allowed_breaks_off(vocabulary: Vocabulary) -> None:
    with pytest.raises(SchemaError, match="the grammar broke off"):
        say(answering(vocabulary), b"x")


@pytest.mark.parametrize("seed", range(8))
def test_rollback_equals_never_having_said_it(seed: int, vocabulary: Vocabulary) -> None:
    """In every phase: before, inside and behind the thought, in a call, behind the end."""
    rng = random.Random(seed)
    text = [THINK, *b"a <tool_call>", THINK_END, *b"\n\n12", EOS]
    call = [*vocabulary.tokenizer.encode("hi <tool_call>[12] and <tool_call>[34]!"), EOS]
    triggers = {"<tool_call>": answer_grammar(regex_part(r"\[[0-9]+\]"))}

    def strict() -> AnswerConstraint:
        return AnswerConstraint(
            vocabulary, TriggeredRule(vocabulary, triggers), in_thinking=False, may_think=True
        )

    for said, make in ((text, lambda: answering(vocabulary, may_think=True)), (call, strict)):
        states = [say(make(), said[:length]) for length in range(len(said) + 1)]
        constraint, length = make(), 0
        for _ in range(60):
            if rng.random() < 0.6 and length < len(said):
                constraint.accept(said[length])
                length += 1
            else:
                back = rng.randint(0, length)
                constraint.rollback(back)
                length -= back
            assert allowed(constraint) == states[length]


def test_a_trigger_starts_a_grammar_and_its_end_frees_the_text(vocabulary: Vocabulary) -> None:
    rule = TriggeredRule(vocabulary, {"<a>": answer_grammar(regex_part("[0-9];"))})
    constraint = AnswerConstraint(vocabulary, rule, in_thinking=False, may_think=False)
    assert say(constraint, b"text <a") is None
    assert say(constraint, b">") == NUMBERS
    assert say(constraint, b"5") == set(b";")
    assert say(constraint, b";") is None
    assert say(constraint, b"<a>1; more") is None


# --- refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (json_part({"not": {"type": "string"}}, "compact"), '"not"'),
        (json_part({"type": "array", "uniqueItems": True}, "compact"), '"uniqueItems"'),
        (json_part({"type": "integer", "minimum": 5, "maximum": 3}, "compact"), r"minimum \(5\)"),
        (json_part({"enum": []}, "compact"), "empty"),
        (json_part({"$ref": "https://example.com/x.json"}, "compact"), "example.com"),
        (json_part({"$ref": "#/$defs/none"}, "compact"), "none"),
        (json_part({"type": "strin"}, "compact"), "strin"),
        (json_part({"type": "string", "format": "shape"}, "compact"), "shape"),
        (regex_part("(a"), "unclosed group"),
        (regex_part("(?=a)b"), "look-around"),
        (lark_part("start: nothing"), 'unknown name: "nothing"'),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_one_line(part: dict[str, Any], says: str) -> None:
    with pytest.raises(SchemaError, match=says) as caught:
        check_grammar(answer_grammar(part), "schema")
    assert str(caught.value).startswith("schema cannot be enforced: ")
    assert "\n" not in str(caught.value)


def test_what_nothing_satisfies_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(SchemaError, match="regex cannot be satisfied"):
        check_satisfiable(vocabulary, answer_grammar(regex_part(r"[^\s\S]")), "regex")
    check_satisfiable(vocabulary, DIGITS, "regex")


# --- in the token loop -------------------------------------------------------------------


def draw(
    vocabulary: Vocabulary, model: FakeModel, count: int, **options: Any
) -> tuple[TokenLoop, list[int]]:
    sampler = Sampler(SamplingParams.from_options(options), VOCAB_SIZE, seed=3)
    loop = TokenLoop(model, model.make_cache(), sampler, constraint=answering(vocabulary))  # type: ignore[arg-type]
    loop.feed([65])
    return loop, [loop.next().token_id for _ in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.01, "top_k": 1},
        {"temperature": 5.0, "top_p": 0.1, "min_p": 0.5},
        {"temperature": 1.0, "presence_penalty": 2.0, "repetition_penalty": 1.5},
        {"temperature": 0.0, "logit_bias": dict.fromkeys(NUMBERS, -float("inf"))},
        {"temperature": 1.0, "logit_bias": dict.fromkeys(NUMBERS, -float("inf"))},
    ],
    ids=str,
)
def test_only_what_is_allowed_is_drawn(options: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Whatever the model would rather say, and whatever a bias bans."""
    model = FakeModel(lambda ids: ord("x"))
    _, drawn = draw(vocabulary, model, 4, **options)
    assert set(drawn[:2]) <= NUMBERS
    assert drawn[2] in NUMBERS | set(END)
    ends = [place for place, token_id in enumerate(drawn) if token_id in END]
    assert ends
    assert ends[0] in (2, 3)


def test_the_mask_is_made_while_the_next_step_runs(vocabulary: Vocabulary) -> None:
    """The forward pass of the next position is enqueued before the constraint is asked."""
    order: list[str] = []

    class Watching:
        def allowed(self) -> None:
            order.append("mask")

        def accept(self, token_id: int) -> None:
            order.append(f"accept {chr(token_id)}")

        def rollback(self, tokens: int) -> None:
            raise AssertionError

    model = FakeModel(
        lambda ids: ord("a") + len(ids), before_step=lambda model: order.append("step")
    )
    sampler = Sampler(SamplingParams(temperature=0), VOCAB_SIZE, 0)
    loop = TokenLoop(model, model.make_cache(), sampler, constraint=Watching())  # type: ignore[arg-type]
    loop.feed([65])
    loop.next()
    loop.next(last=True)
    assert order == ["step", "mask", "step", "accept b", "mask"]


def test_forced_tokens_reach_the_constraint(vocabulary: Vocabulary) -> None:
    model = FakeModel(lambda ids: ord("x"))
    loop, drawn = draw(vocabulary, model, 1, temperature=0.0)
    loop.force(b"7")
    assert drawn[0] in NUMBERS
    assert loop.next().token_id in NUMBERS | set(END)
    assert loop.next().token_id in END
