"""How long the model may think, counted in tokens.

A hybrid model thinks between <think> and </think>. At the budget the words of Qwen's own
early stop are put into its mouth, and it goes on with the answer (Qwen3 technical report,
arXiv:2505.09388, section 4.3).
"""

from __future__ import annotations

from mlx_qwen3.text.parser import THINK, THINK_END
from mlx_qwen3.text.tokenizer import Tokenizer

EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the "
    "thinking directly now.\n</think>\n\n"
)


class ThinkingMeter:
    """Watches one reply's tokens for the thinking part.

    Reads text, not ids, and so agrees with the parser of that text however the tags are spelled.
    in_thinking: the prompt already opened it. expect_thinking: False where the text is all
    answer. budget: tokens of thinking allowed, None for any.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        in_thinking: bool,
        expect_thinking: bool = True,
        budget: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._budget = budget
        self._thinking = in_thinking
        self._begins = expect_thinking and not in_thinking  # an opening tag may still come
        self._text = ""  # as much of it as may hold the tag that is next
        self._seen = 0
        self.tokens = 0

    def add(self, token_id: int) -> None:
        """Count one generated token; the tags belong to the thinking."""
        if not self._begins and not self._thinking:
            return
        self._seen += 1
        self._text += self._detokenizer.add(token_id)
        if self._begins:
            self._begin(self._text.lstrip())
        if self._thinking:
            self.tokens = self._seen
            self._thinking = THINK_END not in self._text
            self._text = self._text[1 - len(THINK_END) :]

    def early_stop(self) -> list[int]:
        """The tokens to feed now because the budget is used up; [] while it is not."""
        if self._budget is None or not self._thinking or self.tokens < self._budget:
            return []
        return self._tokenizer.encode(EARLY_STOP)

    def _begin(self, text: str) -> None:
        self._thinking = text.startswith(THINK)
        self._begins = not self._thinking and THINK.startswith(text)
