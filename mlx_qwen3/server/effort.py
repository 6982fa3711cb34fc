"""How hard to think, as clients of other models say it, in tokens of thinking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)

# Effort -> thinking budget, None for no limit. "none" turns thinking off.
BUDGETS: Mapping[Effort, int | None] = {
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": 16_384,
    "xhigh": None,
    "max": None,
}


def effort_options(effort: Effort | None) -> dict[str, Any]:
    """The options of `LLM.request` that it stands for; None leaves them to the model."""
    if effort is None:
        return {}
    return {"thinking": effort != "none", "thinking_budget": BUDGETS.get(effort)}
