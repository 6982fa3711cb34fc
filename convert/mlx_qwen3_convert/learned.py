"""Learned quantization by mlx-lm: the roundings are chosen so that the outputs stay close.

    gptq   each column's rounding error is pushed into the columns still to be rounded
    awq    channels that matter are scaled up before rounding (dense models)
    dwq    scales and biases of a conversion are trained towards the original's predictions

mlx-lm does the work on its own model, in memory; ours are the calibration text, the conversion
that it starts from (any source format, any recipe for dwq) and routers that keep 8 bits.
References: arXiv:2210.17323, arXiv:2306.00978, mlx_lm/LEARNED_QUANTS.md.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen3.device import Device
from mlx_qwen3.errors import OptionError, Qwen3Error
from mlx_qwen3.model.policy import DTYPES
from mlx_qwen3_convert.calibration import CALIBRATION, Window, read_text, read_windows
from mlx_qwen3_convert.card import Making, model_card
from mlx_qwen3_convert.evaluate import measure_size
from mlx_qwen3_convert.job import Options, convert, require_apart, require_free
from mlx_qwen3_convert.origin import Origin, origin_of
from mlx_qwen3_convert.plan import require_dtype
from mlx_qwen3_convert.readers import open_source
from mlx_qwen3_convert.readers.base import FloatType
from mlx_qwen3_convert.readers.licence import folder_licence
from mlx_qwen3_convert.record import Record, read_facts

# Written anew; the other files are copied from the conversion that a method starts from.
_OWN_FILES = ("config.json", "model.safetensors.index.json")


@dataclass(frozen=True)
class Learning:
    """How to learn. bits, group_size: of gptq and awq; recipe: what dwq starts from.

    context: tokens of a window. epochs, learning_rate, batch_size: of dwq, passes over the text;
    learning_rate None: the parameters may go as far as with mlx-lm's defaults.
    """

    bits: int = 4
    group_size: int = 64
    recipe: str | None = None
    calibration: str | Path | None = None
    context: int = 512
    epochs: int = 4
    learning_rate: float | None = None
    batch_size: int = 4
    dtype: str | None = None
    overwrite: bool = False

    def request(self, method: str) -> object:
        """All that decides the outcome, beside the source."""
        return method, replace(self, overwrite=False)


def learned(
    method: str,
    source: str | Path,
    out: str | Path,
    how: Learning | None = None,
    *,
    name: str | None = None,
) -> Path:
    """Quantize the checkpoint `source` into the folder `out` by "gptq", "awq" or "dwq".

    name: what the card calls the source, as in `convert`.

    Needs memory for the whole model in floating point, for dwq beside the quantized one.
    mlx-lm shows its own progress on stderr. Raises OptionError for what a method cannot do,
    Qwen3Error where mlx-lm fails.
    """
    how = how or Learning()
    target = Path(out)
    require_free(target, overwrite=how.overwrite)
    require_apart(Path(source), target)
    if method not in _METHODS:
        raise OptionError(f"learned is {method!r}; expected one of {', '.join(_METHODS)}")
    work = target.with_name(target.name + ".learning")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _learn(method, source, work, how)
        _tell(method, origin_of(source, name), work, how)
        if target.exists():
            shutil.rmtree(target)
        (work / "out").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _learn(method: str, source: str | Path, work: Path, how: Learning) -> None:
    dtype = how.dtype or _source_dtype(source)
    # In the dtype that this machine computes fast in; mlx-lm reads what we write.
    computing = Device.current().default_dtype()
    original = convert(source, work / "original", Options(recipe="bf16", dtype=computing)).folder
    text = read_text(how.calibration, CALIBRATION)
    windows = read_windows(original, text=text, context=how.context)
    windows = [window for window in windows if len(window) == how.context]
    if not windows:
        raise OptionError(f"the calibration text has fewer than {how.context} tokens; give more")
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mlx-lm's imports; and it prints how far it is
        model = _run(method, original, windows, how, work)
    _write(model, original, work / "out", require_dtype(dtype))


def _run(method: str, original: Path, windows: Sequence[Window], how: Learning, work: Path) -> Any:
    """mlx-lm's work. Raises Qwen3Error where it cannot be done, in one line."""
    try:
        return _METHODS[method](original, windows, how, work)
    except Qwen3Error:
        raise
    except (ImportError, ValueError, RuntimeError, TypeError, AttributeError) as exc:
        said = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise Qwen3Error(
            f"mlx-lm's {method} cannot run on this model ({said}); --recipe mixed-{how.bits + 0.5} "
            "or --auto need no mlx-lm"
        ) from exc


def _source_dtype(source: str | Path) -> str:
    opened = open_source(source)
    try:
        return str(opened.config.get("torch_dtype") or "bfloat16")
    finally:
        opened.close()


def _gptq(original: Path, windows: Sequence[Window], how: Learning, work: Path) -> Any:
    if how.bits not in (2, 4, 8):
        raise OptionError(f"bits is {how.bits}; mlx-lm's gptq makes 2, 4 and 8")
    from mlx_lm.quant.gptq import gptq_quantize

    model = _load(original)
    _quantize_routers(model)
    fallback = max(how.bits, 6)
    data = mx.array(list(windows))
    return gptq_quantize(
        model, data, how.bits, how.group_size, fallback, how.group_size, batch_size=1
    )[0]


def _awq(original: Path, windows: Sequence[Window], how: Learning, work: Path) -> Any:
    from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize

    model_type = _read(original / "config.json")["model_type"]
    if model_type not in AWQ_MODEL_CONFIGS:
        raise OptionError("mlx-lm's awq knows dense Qwen3 models only; use gptq or dwq")
    model = _load(original)
    awq_quantize(
        model,
        mx.array(list(windows)),
        AWQ_MODEL_CONFIGS[model_type],
        bits=how.bits,
        group_size=how.group_size,
        embed_bits=max(how.bits, 6),
        embed_group_size=how.group_size,
    )
    return model


def _dwq(original: Path, windows: Sequence[Window], how: Learning, work: Path) -> Any:
    import mlx.optimizers as optimizers
    from mlx_lm.quant.dwq import dwq_quantize

    if len(windows) < how.batch_size:
        how = replace(how, batch_size=len(windows))
    options = _student_options(how)
    student = _load(convert(original, work / "student", options).folder)
    teacher = _load(original)
    examples = [(window, 0) for window in windows]
    dwq_quantize(
        student,
        lambda batch, index, split: teacher(batch),
        optimizers.Adam(learning_rate=_learning_rate(how, len(windows)), bias_correction=True),
        examples * how.epochs,
        examples[: 4 * how.batch_size],
        batch_size=how.batch_size,
        max_seq_length=how.context,
        seed=0,
        dtype=DTYPES[Device.current().default_dtype()],
    )
    return student


def _learning_rate(how: Learning, windows: int) -> float:
    """mlx-lm takes 512 steps of 1e-6, ours are few: the text is short.

    A step of Adam is about as long as its rate, so that the way is steps times rate.
    """
    steps = max(windows * how.epochs // how.batch_size, 1)
    return how.learning_rate or 512e-6 / steps


def _student_options(how: Learning) -> Options:
    if how.recipe is not None:
        return Options(recipe=how.recipe)
    return Options(bits=how.bits, group_size=how.group_size)


_METHODS: Mapping[str, Callable[[Path, Sequence[Window], Learning, Path], Any]] = {
    "gptq": _gptq,
    "awq": _awq,
    "dwq": _dwq,
}


def _load(folder: Path) -> Any:
    """As mlx-lm sees it."""
    from mlx_lm.utils import load_model

    return load_model(folder)[0]


def _quantize_routers(model: Any) -> None:
    """To 8 bits beforehand: mlx-lm would round them like everything else."""
    for layer in model.layers:
        router = getattr(layer.mlp, "gate", None)
        if router is not None and router.weight.shape[-1] % 64 == 0:
            layer.mlp.gate = router.to_quantized(group_size=64, bits=8)


def _write(model: Any, original: Path, folder: Path, dtype: FloatType) -> None:
    """The folder of an mlx-lm model, in the layout of a conversion."""
    from mlx.utils import tree_map
    from mlx_lm.utils import save_model

    model.update(tree_map(lambda value: _cast(value, DTYPES[dtype]), model.parameters()))
    save_model(folder, model)
    quantization = _quantization(model)
    config = _read(original / "config.json") | {
        "quantization": quantization,
        "quantization_config": quantization,
        "torch_dtype": dtype,
    }
    text = json.dumps(dict(sorted(config.items())), indent=4, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    for file in original.iterdir():
        if file.suffix != ".safetensors" and file.name not in _OWN_FILES and file.is_file():
            shutil.copy(file, folder / file.name)


def _tell(method: str, origin: Origin, work: Path, how: Learning) -> None:
    """The card and the record of what was learned."""
    folder = work / "out"
    dtype = str(_read(folder / "config.json")["torch_dtype"])
    made = read_facts(work / "original")
    bits = measure_size(folder).bits_per_weight
    making = Making(f"quantized with mlx-lm's {method}", bits, dtype)
    card = model_card(origin, made["source_format"], making, folder_licence(work / "original"))
    (folder / "README.md").write_text(card, encoding="utf-8")
    facts = {
        "source_format": made["source_format"],
        "recipe": method,
        "dtype": dtype,
        "bits_per_weight": round(bits, 4),
    }
    Record.of(origin, how.request(method), facts).write(folder)


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _cast(value: mx.array, dtype: mx.Dtype) -> mx.array:
    return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value


def _quantization(model: Any) -> dict[str, Any]:
    """config.json's table: the commonest format, and the modules that differ."""
    formats = {
        name: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        for name, module in model.named_modules()
        if hasattr(module, "bits") and hasattr(module, "group_size")
    }
    spelled = [json.dumps(value) for value in formats.values()]
    default = json.loads(max(set(spelled), key=spelled.count))
    return {**default, **{name: value for name, value in formats.items() if value != default}}
