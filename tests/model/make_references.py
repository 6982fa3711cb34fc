"""Write references/*.npz: what transformers computes for the tiny models, in float32.

    python -m tests.model.make_references [NAME ...]

from the repository's root, where torch and transformers are installed (`pip install torch
transformers`); on a CPU it takes a minute or two. The tests read the files and need neither.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import digest, make_tensors, write_checkpoint
from tests.model.tiny_models import TINY_MODELS, TinyModel

FOLDER = Path(__file__).with_name("references")
NUM_GREEDY = 64
NUM_POSITIONS = 8
# Logits may differ by 1e-3 of their standard deviation; a step whose two best tokens are
# closer than twice that could go either way.
MIN_GAP = 2e-3

Arrays = dict[str, NDArray[Any]]


def model_digest(tiny: TinyModel) -> str:
    return digest(tiny.config, make_tensors(tiny.config, tiny.seed)) + ":" + tiny.dtype


def positions(length: int) -> NDArray[Any]:
    """Which positions' logits are stored: the first, the last and some between."""
    return np.unique(np.linspace(0, length - 1, NUM_POSITIONS).round().astype(int))


def load_reference(tiny: TinyModel, folder: Path, attention: str = "eager") -> Any:
    """The transformers model of a checkpoint, in float32."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM

    write_checkpoint(folder, tiny.config, tiny.seed, dtype=tiny.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def compute(tiny: TinyModel, folder: Path, attention: str = "eager") -> Arrays:
    """Logits (positions, vocab_size) and greedy continuations (64,) of every prompt.

    Raises ValueError when a greedy step is a near tie.
    """
    import torch

    model = load_reference(tiny, folder, attention)
    arrays: Arrays = {"digest": np.array(model_digest(tiny))}
    with torch.no_grad():
        for number, prompt in enumerate(tiny.prompts):
            token_ids = torch.tensor([list(prompt.encode())])
            logits = model(token_ids).logits[0].numpy()
            arrays[f"positions_{number}"] = positions(len(logits))
            arrays[f"logits_{number}"] = logits[arrays[f"positions_{number}"]]
            arrays[f"greedy_{number}"] = greedy(model, token_ids)
    return arrays


def greedy(model: Any, token_ids: Any) -> NDArray[Any]:
    """The 64 tokens that generate() picks, past any end-of-sequence token."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NUM_GREEDY)
    model.config.eos_token_id = None
    out = model.generate(token_ids, output_logits=True, return_dict_in_generate=True)
    tokens = out.sequences[0, token_ids.shape[1] :].numpy()
    if len(tokens) != NUM_GREEDY:
        raise ValueError(f"generate stopped after {len(tokens)} tokens")
    steps = np.stack([step[0].numpy() for step in out.logits])  # (64, vocab_size)
    best = np.sort(steps, axis=-1)
    gap = float(((best[:, -1] - best[:, -2]) / steps.std()).min())
    if gap < MIN_GAP:
        raise ValueError(f"two tokens are {gap:.1e} standard deviations apart: take another seed")
    return tokens.astype(np.int16)


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or TINY_MODELS:
        with tempfile.TemporaryDirectory() as folder:
            arrays = compute(TINY_MODELS[name], Path(folder))
        np.savez(FOLDER / f"{name}.npz", **arrays)
        print(name, *(len(set(v.tolist())) for k, v in arrays.items() if "greedy" in k))


if __name__ == "__main__":
    main(sys.argv[1:])
