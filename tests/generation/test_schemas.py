"""A model of random weights under random schemas: whatever it completes is valid."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import jsonschema
import pytest

from mlx_qwen3.llm import LLM
from tests.checkpoints import write_checkpoint
from tests.generation.random_schemas import random_schema
from tests.model.tiny_models import TINY_MODELS

ANY = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": 300}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    small = {"num_hidden_layers": 1, "max_position_embeddings": 1024}
    folder = write_checkpoint(tmp_path_factory.mktemp("m"), TINY_MODELS["dense"].config | small)
    return LLM.from_folder(folder)


def test_every_completed_answer_validates(llm: LLM) -> None:
    """Drawn at temperature 1 from one token a byte, so unicode comes byte by byte."""
    reasons: Counter[str] = Counter()
    for seed in range(200):
        schema = random_schema(Random(seed))
        done = llm.generate("Hi", schema=schema, seed=seed, thinking=False, **ANY)
        reasons[done.finish_reason] += 1
        if done.finish_reason == "length":
            assert done.parsed is None
            continue
        value = json.loads(done.text)
        assert done.parsed == value
        checker = jsonschema.FormatChecker()
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
        assert done.warnings == ()
    assert reasons["stop"] >= 190


@pytest.mark.parametrize(
    ("whitespace", "between"),
    [("compact", (",", ":")), ("spaced", (", ", ": ")), ("free", None)],
)
def test_whitespace(whitespace: str, between: tuple[str, str] | None, llm: LLM) -> None:
    small = {"enum": [1, 22, None, "x, y: z"]}
    properties = dict.fromkeys(("a", "b"), small)
    schema = {"type": "array", "items": {"properties": properties, "required": ["a", "b"]}}
    schema["items"] |= {"type": "object", "additionalProperties": False}
    schema |= {"minItems": 2, "maxItems": 2}
    texts = set()
    for seed in range(3):
        done = llm.generate(
            "Hi", schema=schema, whitespace=whitespace, seed=seed, thinking=False, **ANY
        )
        texts.add(done.text)
        if between is not None:
            assert done.text == json.dumps(done.parsed, separators=between)
    assert len(texts) > 1
