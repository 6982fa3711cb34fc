"""Which tokens may come next: grammars over the vocabulary, by llguidance.

    Rule            host side: bits of the allowed tokens, for a text that began with the rule
    GrammarRule     one grammar, from its first token to its end
    TriggeredRule   anything, until a tag is written; then that tag's grammar, then anything again
    AnswerConstraint    a rule that waits for the answer: thinking is free (Constraint)

llguidance (https://github.com/guidance-ai/llguidance) and numpy are imported when a grammar is
first used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import mlx.core as mx

from mlx_qwen3.errors import SchemaError
from mlx_qwen3.text.folder import one_line
from mlx_qwen3.text.parser import THINK, THINK_END
from mlx_qwen3.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance
    import numpy as np
    from numpy.typing import NDArray

    Bits = NDArray[np.int32]  # (ceil(vocab_size / 32),): bit i % 32 of word i // 32 is token i


class Constraint(Protocol):
    """What one sequence may say next. Owned by the sequence; not thread-safe."""

    def allowed(self) -> mx.array | None:
        """(vocab_size,) bool: the tokens that may come next; None: any."""

    def accept(self, token_id: int) -> None:
        """The sequence goes on with this token, drawn or forced."""

    def rollback(self, tokens: int) -> None:
        """Take the last so many accepted tokens back."""


class Rule(Protocol):
    """A constraint's host side, as bits."""

    def bits(self) -> Bits | None:
        """The tokens that may come next (the caller's to change); None: any."""

    def accept(self, token_id: int) -> None:
        """See Constraint."""

    def rollback(self, tokens: int) -> None:
        """See Constraint."""


class Vocabulary:
    """A tokenizer as llguidance wants it: the bytes of every token, in a trie.

    Built when first used (half a second at 152k tokens), so one is kept per model. vocab_size:
    of the logits, which may be more than the tokenizer has. eos_ids: tokens that end a reply.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Collection[int]) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_ids = frozenset(one for one in eos_ids if one < vocab_size)

    @cached_property
    def trie(self) -> llguidance.LLTokenizer:
        """llguidance's own form of it."""
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self.eos_ids:
            raise SchemaError("this model names no end token, so no grammar could end its answer")
        wrapped = TokenizerWrapper(_Tokens(self.tokenizer, self.vocab_size, min(self.eos_ids)))
        return LLTokenizer(wrapped, n_vocab=self.vocab_size, eos_token=sorted(self.eos_ids))

    def id_of(self, text: str) -> int | None:
        """The one token that spells this text, None where it takes several."""
        ids = self.tokenizer.encode(text)
        return ids[0] if len(ids) == 1 and ids[0] < self.vocab_size else None

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        """A fresh matcher. Raises SchemaError for a grammar that cannot be used."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self.trie, grammar, log_level=0)
        if matcher.is_error():
            raise SchemaError(one_line(matcher.get_error()))
        return matcher


class _Tokens:
    """What llguidance's TokenizerWrapper reads."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def check_grammar(grammar: str, name: str) -> None:
    """Raise SchemaError, saying why, for a grammar that llguidance cannot enforce.

    name: what the user calls it ("schema", "regex"). Needs no vocabulary.
    """
    from llguidance import LLMatcher

    try:
        broken, reasons = LLMatcher.validate_grammar_with_warnings(grammar)
    except BaseException as exc:
        if type(exc).__name__ != "PanicException":  # Rust's, which is no Exception and has no name
            raise
        raise SchemaError(f"{name} cannot be enforced: it makes no sense to llguidance") from exc
    if broken:
        raise SchemaError(f"{name} cannot be enforced: {_reason(reasons[0])}")


def check_satisfiable(vocabulary: Vocabulary, grammar: str, name: str) -> None:
    """Raise SchemaError for a grammar that no text of this vocabulary can begin to satisfy."""
    matcher = vocabulary.matcher(grammar)
    _fill(matcher, vocabulary.vocab_size)  # only now is it known that there is no way on
    if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
        raise SchemaError(f"{name} cannot be satisfied: it allows no text at all; loosen it")


def _reason(message: str) -> str:
    """The library's words in one line, without its excerpt of the grammar."""
    return one_line(message.split("\n   1 |")[0])


class GrammarRule:
    """One grammar, matched from its start; end tokens are allowed once it is complete."""

    def __init__(self, vocabulary: Vocabulary, grammar: str) -> None:
        self._vocabulary = vocabulary
        self._matcher = vocabulary.matcher(grammar)
        self._ended = 0  # tokens from the end token on, which the matcher does not see

    @property
    def complete(self) -> bool:
        """Whether what was written so far satisfies the grammar."""
        return self._matcher.is_accepting()

    def bits(self) -> Bits | None:
        return None if self._ended else _fill(self._matcher, self._vocabulary.vocab_size)

    def accept(self, token_id: int) -> None:
        """Raises SchemaError when the grammar does not allow the token, or is too complex."""
        if self._ended or token_id in self._vocabulary.eos_ids:
            self._ended += 1
        elif not self._matcher.consume_token(token_id):
            raise SchemaError(f"the grammar broke off: {one_line(self._matcher.get_error())}")

    def accepts(self, token_ids: list[int]) -> bool:
        """Go on with these tokens if the grammar allows all of them."""
        if self._matcher.validate_tokens(token_ids) < len(token_ids):
            return False
        for token_id in token_ids:
            self.accept(token_id)
        return True

    def rollback(self, tokens: int) -> None:
        unseen = min(tokens, self._ended)
        self._ended -= unseen
        if tokens > unseen:
            self._matcher.rollback(tokens - unseen)


def _fill(matcher: llguidance.LLMatcher, vocab_size: int) -> Bits:
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    mask = allocate_token_bitmask(1, vocab_size)
    fill_next_token_bitmask(matcher, mask)
    bits: Bits = mask[0]
    return bits


class TriggeredRule:
    """Free text in which a tag starts a grammar; behind the grammar the text is free again.

    triggers: tag -> the grammar of what follows it, which must end by itself. Costs nothing
    while the text is free.
    """

    def __init__(self, vocabulary: Vocabulary, triggers: Mapping[str, str]) -> None:
        self._vocabulary = vocabulary
        self._triggers = {tag.encode(): grammar for tag, grammar in triggers.items()}
        self._longest = max(map(len, self._triggers))
        self._tail = b""
        self._rule: GrammarRule | None = None
        # Before each token: tail and rule as they were, and tokens the rule took.
        self._history: list[tuple[bytes, GrammarRule | None, int]] = []

    def bits(self) -> Bits | None:
        return None if self._rule is None else self._rule.bits()

    def accept(self, token_id: int) -> None:
        self._history.append((self._tail, self._rule, int(self._rule is not None)))
        if self._rule is None:
            self._watch(self._vocabulary.tokenizer.token_bytes(token_id))
        else:
            self._rule.accept(token_id)
            if self._rule.complete:
                self._rule, self._tail = None, b""

    def rollback(self, tokens: int) -> None:
        for _ in range(tokens):
            self._tail, self._rule, taken = self._history.pop()
            if self._rule is not None:
                self._rule.rollback(taken)

    def _watch(self, said: bytes) -> None:
        self._tail += said
        found = [(self._tail.find(tag), tag) for tag in self._triggers if tag in self._tail]
        if not found:
            self._tail = self._tail[-self._longest :]
            return
        start, tag = min(found)
        rest = self._tail[start + len(tag) :].decode(errors="replace")
        rule = GrammarRule(self._vocabulary, self._triggers[tag])
        if rule.accepts(self._vocabulary.tokenizer.encode(rest) if rest else []):
            self._rule = rule
        self._tail = b""


Phase = Literal["begin", "thinking", "lead", "answer"]
_LEAD = 2  # line ends that may stand between </think> and the answer


@dataclass(frozen=True)
class _Place:
    """Where a sequence stands: its phase, the text's end that may hold a tag, line ends left."""

    phase: Phase
    tail: str = ""
    line_ends: int = _LEAD


class AnswerConstraint:
    """A rule for the answer alone: thinking is free, as are the line ends between the two.

    may_think: whether the model may open <think> itself; otherwise the answer is due at once.
    A vocabulary without a token for <think> never lets it.
    """

    def __init__(
        self, vocabulary: Vocabulary, rule: Rule, *, in_thinking: bool, may_think: bool
    ) -> None:
        self._vocabulary = vocabulary
        self._rule = rule
        self._think_id = vocabulary.id_of(THINK) if may_think else None
        self._line_ends = {
            token_id: count
            for count in (1, 2)
            if (token_id := vocabulary.id_of("\n" * count)) is not None
        }
        begins = "begin" if self._think_id is not None else "answer"
        self._place = _Place("thinking" if in_thinking else begins)  # type: ignore[arg-type]
        self._history: list[tuple[_Place, int]] = []  # before each token; tokens the rule took

    def allowed(self) -> mx.array | None:
        if self._place.phase == "thinking":
            return None
        bits = self._rule.bits()
        if bits is None:
            return None
        for token_id in self._exempt():
            bits.view("uint32")[token_id // 32] |= 1 << token_id % 32
        return unpack(bits, self._vocabulary.vocab_size)

    def accept(self, token_id: int) -> None:
        place, taken = self._place, 0
        if place.phase == "thinking":
            self._place = self._think(token_id)
        elif place.phase == "begin" and token_id == self._think_id:
            self._place = _Place("thinking")
        elif place.phase == "lead" and self._line_ends.get(token_id, 9) <= place.line_ends:
            self._place = _Place("lead", "", place.line_ends - self._line_ends[token_id])
        else:
            self._rule.accept(token_id)
            self._place, taken = _Place("answer"), 1
        self._history.append((place, taken))

    def rollback(self, tokens: int) -> None:
        for _ in range(tokens):
            self._place, taken = self._history.pop()
            self._rule.rollback(taken)

    def _exempt(self) -> list[int]:
        """Tokens that are no part of the answer and may come instead of it."""
        place = self._place
        if place.phase == "begin" and self._think_id is not None:
            return [self._think_id]
        if place.phase == "lead":
            return [one for one, count in self._line_ends.items() if count <= place.line_ends]
        return []

    def _think(self, token_id: int) -> _Place:
        text = self._place.tail + self._vocabulary.tokenizer.decode([token_id])
        _, end, rest = text.rpartition(THINK_END)
        if not end:
            return _Place("thinking", text[1 - len(THINK_END) :])
        line_ends = len(rest) - len(rest.lstrip("\n"))
        return _Place("lead", "", max(0, _LEAD - line_ends))


def unpack(bits: Bits, vocab_size: int) -> mx.array:
    """(words,) int32 -> (vocab_size,) bool, on the device: a 32nd of the bytes travel."""
    words = mx.array(bits)[:, None]
    return ((words >> mx.arange(32)) & 1).reshape(-1)[:vocab_size].astype(mx.bool_)
