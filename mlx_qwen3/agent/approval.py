"""Who may call what: a person decides once, or for the rest of the conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from mlx_qwen3.text.tool_calls import ToolCall

Decision = Literal["once", "always", "no", "never"]


class Approvals:
    """Remembers what a person said about each tool.

    ask: is shown a call and returns "once" (run this one), "always" (and all later calls of this
    tool), "no" (not this one) or "never" (nor later ones). Whatever it raises goes through.
    """

    def __init__(self, ask: Callable[[ToolCall], Decision]) -> None:
        self._ask = ask
        self._settled: dict[str, bool] = {}

    def __call__(self, call: ToolCall) -> bool:
        """Whether a call may run."""
        if call.name not in self._settled:
            decision = self._ask(call)
            if decision in ("once", "no"):
                return decision == "once"
            self._settled[call.name] = decision == "always"
        return self._settled[call.name]
