"""Options that make no sense for a model spread over processes are refused, not dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.engine.settings import PrefixCache
from mlx_qwen3.errors import OptionError
from mlx_qwen3.llm import LLM
from mlx_qwen3.text.tokenizer import Tokenizer
from tests.fakes_model import FakeModel


@pytest.fixture
def spread(checkpoint: Path) -> LLM:
    """A model that takes itself for one of several processes."""
    model: Any = FakeModel(lambda ids: ids[-1])
    model.peers = object()
    return LLM(model, Tokenizer.from_folder(checkpoint), {})


@pytest.mark.parametrize(
    "options",
    [{"experts": "streamed"}, {"memory_budget": "6GB"}, {"prefix_cache": PrefixCache()}],
)
def test_what_a_spread_model_cannot_have_is_refused(
    checkpoint: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match=f"takes no {next(iter(options))}"):
        LLM.from_folder(checkpoint, parallel="tensor", **options)


def test_an_unknown_way_is_refused_before_anybody_is_waited_for(checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="expected one of tensor, pipeline"):
        LLM.from_folder(checkpoint, parallel="sideways")


def test_guesses_are_refused(spread: LLM) -> None:
    assert spread.request("x", raw=True).speculation == "off"
    assert spread.request("x", raw=True, speculation="off").speculation == "off"
    with pytest.raises(OptionError, match="takes no speculation"):
        spread.request("x", raw=True, speculation="lookup")
    with pytest.raises(OptionError, match="takes no draft"):
        spread.draft = spread
