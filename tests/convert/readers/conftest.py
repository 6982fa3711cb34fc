"""Each format is written once a session."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.convert.readers.cases import CASES, CONFIGS


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """written(case, config): what `open_source` opens; read it, do not change it."""
    root = tmp_path_factory.mktemp("formats")

    @functools.cache
    def write(case: str, config: str) -> Path:
        one = CASES[case]
        return one.write(root / f"{case}-{config}", CONFIGS[config], 3, **one.options)

    return write
