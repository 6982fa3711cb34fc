"""Fixtures for every test: tiny checkpoints, made once a session."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_qwen3 import device
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import load_model
from tests.checkpoints import write_checkpoint
from tests.model.tiny_models import TINY_MODELS

device.prepare()  # before any test module imports mlx


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would every process a test starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _offline() -> Iterator[None]:
    """No test reaches the network, whatever it calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_QWEN3_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tiny_folder(name): the checkpoint of that tiny model; read it, do not change it."""
    root = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def folder(name: str) -> Path:
        tiny = TINY_MODELS[name]
        return write_checkpoint(root / name, tiny.config, tiny.seed, dtype=tiny.dtype)

    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Callable[[str], Path]) -> Callable[[str], Transformer]:
    """tiny_model(name): that tiny model, loaded in float32."""
    return functools.cache(lambda name: load_model(tiny_folder(name), dtype="float32"))


@pytest.fixture(scope="session")
def checkpoint(tiny_folder: Callable[[str], Path]) -> Path:
    """A complete folder (model, tokenizer, template) for tests that do not care which."""
    return tiny_folder("dense")
