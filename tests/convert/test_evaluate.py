"""Perplexity and divergence, against their definitions written out in numpy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.errors import OptionError, Qwen3Error, WeightsError
from mlx_qwen3.model.weights import load_model
from mlx_qwen3_convert import reference
from mlx_qwen3_convert.calibration import cut, read_text, read_windows, spread
from mlx_qwen3_convert.divergence import agrees, divergence, log_probabilities, predict
from mlx_qwen3_convert.evaluate import evaluate, exact_reference, measure_size
from mlx_qwen3_convert.job import Options, convert
from mlx_qwen3_convert.reference import Reference, open_reference
from mlx_qwen3_convert.stream import LayerStream
from tests.checkpoints import write_checkpoint
from tests.model.tiny_models import LONG, TINY_MODELS

Array = np.ndarray[Any, Any]
Folder = Callable[[str], Path]

CONTEXT = 30
SIZES = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
# Larger than what is kept whole.
VOCABULARY = 6000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the same in 4 bits."""
    root = tmp_path_factory.mktemp("pair")
    config = TINY_MODELS["dense"].config | SIZES
    source = write_checkpoint(root / "source", config, 3)
    return source, convert(source, root / "quantized", Options(bits=4)).folder


def windows_of(folder: Path, text: str = LONG) -> list[list[int]]:
    return read_windows(folder, text=text, context=CONTEXT)


def numpy_logprobs(folder: Path, windows: list[list[int]]) -> list[Array]:
    """Of the positions that have a next token, by the model in memory."""
    model = load_model(folder, dtype="float32")
    found = []
    for window in windows:
        logits = np.array(model([window])[0, :-1], dtype=np.float64)
        found.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return found


def numpy_divergence(p: Array, q: Array) -> Array:
    total: Array = (np.exp(p) * (p - q)).sum(-1)
    return total


# --- perplexity


@pytest.mark.parametrize("name", ["dense", "tied", "moe", "yarn", "sliding", "layer-types"])
def test_perplexity_is_what_it_is_defined_as(name: str, tiny_folder: Folder) -> None:
    """A model run layer by layer, against the model in memory and numpy."""
    folder = tiny_folder(name)
    windows = windows_of(folder)
    assert len(windows[-1]) < CONTEXT  # the last is shorter
    losses = [
        -logprobs[np.arange(len(window) - 1), window[1:]]
        for window, logprobs in zip(windows, numpy_logprobs(folder, windows), strict=True)
    ]
    score = evaluate(folder, windows, dtype="float32")
    assert score.perplexity == pytest.approx(np.exp(np.concatenate(losses).mean()), rel=1e-5)
    assert score.tokens == sum(map(len, windows)) - len(windows)
    assert score.divergence is None


def test_progress_counts_layers(checkpoint: Path) -> None:
    steps: list[tuple[int, int]] = []
    evaluate(checkpoint, [[1, 2]], progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_a_checkpoint_with_foreign_tensors_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    config = TINY_MODELS["dense"].config
    folder = write_checkpoint(tmp_path / "model", config)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("3,", "2,"))
    with pytest.raises(WeightsError):
        evaluate(folder, [[1, 2]])


# --- divergence


def test_a_model_does_not_diverge_from_itself(pair: tuple[Path, Path], tmp_path: Path) -> None:
    windows = windows_of(pair[0])
    score = evaluate(pair[0], windows, open_reference(pair[0], windows, cache=tmp_path))
    assert score.divergence is not None
    assert (score.divergence.mean, score.divergence.max) == (0, 0)
    assert score.divergence.top1 == 1
    assert score.divergence.exact


def test_divergence_is_what_it_is_defined_as(pair: tuple[Path, Path], tmp_path: Path) -> None:
    windows = windows_of(pair[0])
    p, q = (np.concatenate(numpy_logprobs(folder, windows)) for folder in pair)
    each = numpy_divergence(p, q)
    kept = open_reference(pair[0], windows, dtype="float32", cache=tmp_path)
    anew = exact_reference(pair[0], windows, dtype="float32")
    for expected in (kept, anew):
        found = evaluate(pair[1], windows, expected, dtype="float32").divergence
        assert found is not None
        assert found.mean == pytest.approx(each.mean(), rel=1e-3)
        assert found.mean > 1e-4
        assert found.p99 == pytest.approx(np.percentile(each, 99), rel=1e-3)
        assert found.max == pytest.approx(each.max(), rel=1e-3)
        assert found.top1 == (p.argmax(-1) == q.argmax(-1)).mean()


def random_logprobs(rng: np.random.Generator, near: mx.array | None = None) -> mx.array:
    noise = mx.array(rng.normal(size=(20, VOCABULARY)).astype(np.float32))
    return log_probabilities(4 * noise if near is None else near + 0.5 * noise)


@pytest.mark.parametrize("keep", [16, 256])
def test_the_likeliest_tokens_give_a_lower_bound_with_a_known_gap(keep: int) -> None:
    """The gap is the tail's mass times the divergence within it: the chain rule."""
    rng = np.random.default_rng(0)
    p = random_logprobs(rng)
    q = random_logprobs(rng, p)
    exact = numpy_divergence(np.array(p, dtype=np.float64), np.array(q, dtype=np.float64))
    prediction = predict(p, keep)
    assert prediction.logprobs.shape == (20, keep)
    found = np.array(divergence(prediction, q), dtype=np.float64)
    gap = np.array([tail_gap(np.array(p[row]), np.array(q[row]), keep) for row in range(20)])
    assert (gap > 1e-5).all()
    assert (found < exact).all()
    np.testing.assert_allclose(found + gap, exact, rtol=1e-3, atol=1e-4)
    if keep == 256:
        np.testing.assert_allclose(found, exact, rtol=0.2)


def tail_gap(p: Array, q: Array, keep: int) -> float:
    tail = np.argsort(-p)[keep:]
    p_mass, q_mass = np.exp(p[tail]).sum(), np.exp(q[tail]).sum()
    within = np.exp(p[tail]) / p_mass * (p[tail] - np.log(p_mass) - q[tail] + np.log(q_mass))
    return float(p_mass * within.sum())


def test_kept_tokens_come_likeliest_first_and_agree_with_themselves() -> None:
    p = random_logprobs(np.random.default_rng(1))
    prediction = predict(p, 8)
    assert prediction.ids is not None
    assert np.array_equal(np.array(prediction.ids[:, 0]), np.array(p.argmax(axis=-1)))
    assert (np.diff(np.array(prediction.logprobs), axis=-1) <= 0).all()
    assert bool(agrees(prediction, p).all().item())
    assert np.array(divergence(prediction, p)).max() == 0
    shifted = mx.roll(p, 1, axis=-1)
    assert not bool(agrees(prediction, shifted).any().item())


# --- the cache


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    runs: list[int] = []
    original = LayerStream.run

    def run(self: LayerStream, *args: Any) -> Any:
        runs.append(1)
        return original(self, *args)

    monkeypatch.setattr(LayerStream, "run", run)
    return runs


def test_a_reference_is_run_once(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = count_runs(monkeypatch)
    windows = windows_of(pair[0])
    first, again = (list(open_reference(pair[0], windows, cache=tmp_path)) for _ in range(2))
    assert len(runs) == 1
    assert all(mx.array_equal(a.logprobs, b.logprobs) for a, b in zip(first, again, strict=True))
    assert len(list(tmp_path.iterdir())) == 1


def test_other_weights_or_another_text_are_another_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "model", TINY_MODELS["dense"].config)
    cache = tmp_path / "cache"
    runs = count_runs(monkeypatch)
    windows = windows_of(folder)
    open_reference(folder, windows, cache=cache)
    open_reference(folder, windows[:1], cache=cache)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    open_reference(folder, windows, cache=cache)
    assert len(runs) == 3


def test_an_interrupted_reference_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(file: str, tensors: object) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(mx, "save_safetensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_reference(checkpoint, [[1, 2, 3]], cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Qwen3Error, match="XDG_CACHE_HOME"):
        open_reference(checkpoint, [[1, 2, 3]], cache=tmp_path / "file")


def test_what_was_used_longest_ago_makes_room(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [[[1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]]]
    for age, windows in enumerate(texts[:2]):
        open_reference(checkpoint, windows, cache=tmp_path)
        for file in tmp_path.iterdir():
            os.utime(file, (1000 + age, file.stat().st_mtime - 10))
    oldest = min(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime)
    size = oldest.stat().st_size
    monkeypatch.setattr(reference, "_CACHE_BYTES", 2 * size + size // 2)
    open_reference(checkpoint, texts[2], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not oldest.exists()


def test_predictions_come_in_the_order_of_the_windows(checkpoint: Path, tmp_path: Path) -> None:
    windows = [[index, index + 1, index + 2] for index in range(12)]  # "10" sorts before "2"
    found = open_reference(checkpoint, windows, cache=tmp_path)
    assert isinstance(found, Reference)
    for window, prediction in zip(windows, found, strict=True):
        expected = numpy_logprobs(checkpoint, [window])[0]
        np.testing.assert_allclose(np.array(prediction.logprobs), expected, atol=1e-4)


# --- text and size


SCRIPTS = {
    "Latin": ("a", "z"),
    "Cyrillic": ("а", "я"),
    "Greek": ("α", "ω"),
    "Hebrew": ("א", "ת"),
    "Arabic": ("ا", "ي"),
    "Devanagari": ("अ", "ह"),
    "Bengali": ("অ", "হ"),
    "Thai": ("ก", "ฮ"),
    "Han": ("一", "龥"),
    "Kana": ("ぁ", "ん"),
    "Hangul": ("가", "힣"),
}


@pytest.mark.parametrize("half", ["calibration", "evaluation"])
def test_the_bundled_text_is_diverse(half: Any) -> None:
    text = read_text(None, half)
    for script, (low, high) in SCRIPTS.items():
        assert sum(low <= char <= high for char in text) > 60, script
    for word in ("<tool_call>", "<think>", "for (", "def ", "SELECT" if half[0] == "e" else "fn "):
        assert word in text
    assert 15_000 < len(text.encode()) < 50_000


def test_the_halves_have_nothing_in_common() -> None:
    """Or a recipe would be judged on what it was made from."""
    halves = [set(read_text(None, half).splitlines()) for half in ("calibration", "evaluation")]
    long = {line for line in halves[0] & halves[1] if len(line) > 60}
    assert all("function" in line for line in long)  # what the chat template writes


def test_windows_are_spread_over_the_whole_text() -> None:
    windows = cut(range(1000), 10)
    assert len(windows) == 100
    chosen = spread(windows, 50, 10)
    assert len(chosen) == 5
    assert chosen[0][0] < 250
    assert chosen[-1][0] > 750
    assert spread(windows, None, 10) == windows
    assert [len(window) for window in spread(windows, 4, 10)] == [4]
    assert cut(range(11), 10) == [list(range(10))]  # a lone token predicts nothing


@pytest.mark.parametrize(
    ("options", "said"),
    [({"context": 1}, "context is 1"), ({"tokens": 0}, "tokens is 0"), ({"text": "a"}, "two")],
)
def test_impossible_windows_are_refused(
    checkpoint: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        read_windows(checkpoint, **{"text": "some text", **options})


def test_a_text_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("latin.txt", "absent.txt"):
        with pytest.raises(OptionError, match=name):
            read_text(tmp_path / name, "evaluation")


def test_size_is_that_of_the_conversion(pair: tuple[Path, Path]) -> None:
    assert measure_size(pair[0]).bits_per_weight == 32
    result = convert(pair[0], pair[1].with_name("again"), Options(bits=4))
    size = measure_size(pair[1])
    assert (size.nbytes, size.bits_per_weight) == (result.nbytes, result.bits_per_weight)
