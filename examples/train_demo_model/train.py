"""Train the demo model: python train.py --variant dense --out runs/dense

The data are made on the fly from --seed; a run goes on from its last checkpoint with --resume.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import torch
from data import MIXES, batches
from initialisation import initialise
from model import VARIANTS, ModelConfig, Qwen3
from optimizer import Optimizer
from tokenizers import Tokenizer

BALANCE_WEIGHT = 0.01
WARMUP_STEPS = 100
FINAL_SCALE = 0.02
log = logging.getLogger("train")


def learning_rate_scale(step: int, steps: int, flat: float) -> float:
    """Warm-up, a flat part, and a linear decay to FINAL_SCALE."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    start = flat * steps
    if step <= start:
        return 1.0
    return max(FINAL_SCALE, 1 - (1 - FINAL_SCALE) * (step - start) / (steps - start))


def save(path: Path, model: Qwen3, optimizer: Optimizer, progress: dict[str, Any]) -> None:
    """Write a checkpoint; an interrupted write leaves the previous one."""
    state = {"config": model.config.to_dict(), "optimizer": optimizer.state_dict(), **progress}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def build(arguments: argparse.Namespace, vocab_size: int) -> tuple[Qwen3, Optimizer]:
    torch.manual_seed(arguments.seed)
    config = ModelConfig(vocab_size=vocab_size, **VARIANTS[arguments.variant])
    model = Qwen3(config)
    initialise(model)
    return model, Optimizer(model, arguments.muon_lr, arguments.adam_lr)


def train(arguments: argparse.Namespace) -> None:
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    model, optimizer = build(arguments, tokenizer.get_vocab_size())
    checkpoint = arguments.out / "checkpoint.pt"
    first_step = first_pool = 0
    if arguments.resume:
        state = torch.load(checkpoint, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        first_step, first_pool = state["step"], state["pool"] + 1
    log.info("%.2fM parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    stream = batches(tokenizer, arguments.seed, arguments.batch_tokens, first_pool, arguments.mix)
    pool, tokens, started = first_pool, 0, time.monotonic()
    losses: list[float] = []
    echoes: list[float] = []
    for step in range(first_step, arguments.steps):
        optimizer.quantize = step >= arguments.quantize_from * arguments.steps
        for _ in range(arguments.accumulate):
            pool, batch = next(stream)
            loss = model.loss(batch.token_ids, batch.targets)
            (echoes if batch.echo else losses).append(loss.item())
            if model.config.num_experts:
                loss = loss + BALANCE_WEIGHT * model.balance_loss()
            (loss / arguments.accumulate).backward()
            tokens += batch.token_ids.numel()
        optimizer.step(learning_rate_scale(step, arguments.steps, arguments.flat))
        if (step + 1) % 50 == 0:
            rate = tokens / (time.monotonic() - started)
            means = [sum(x) / max(1, len(x)) for x in (losses, echoes)]
            log.info("step %d loss %.4f, echo %.4f, %.0f tokens/s", step + 1, *means, rate)
            losses, echoes = [], []
        if (step + 1) % arguments.save_every == 0 or step + 1 == arguments.steps:
            save(checkpoint, model, optimizer, {"step": step + 1, "pool": pool})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=tuple(VARIANTS), required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer.json"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-tokens", type=int, default=2304)
    parser.add_argument("--accumulate", type=int, default=2, help="batches to a step")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--flat", type=float, default=0.2, help="share of steps before the decay")
    parser.add_argument(
        "--quantize-from", type=float, default=0.8, help="share of steps before 4-bit rounding"
    )
    parser.add_argument("--mix", choices=tuple(MIXES), default="base")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments)


if __name__ == "__main__":
    main()
