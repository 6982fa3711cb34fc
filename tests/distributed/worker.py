"""What one process of the tests computes: `python -m tests.distributed.worker FOLDERS OUT`.

FOLDERS: a folder with one checkpoint in each. Writes OUT.RANK, JSON: by model and parallelism, what
this process had and found.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen3.llm import LLM
from mlx_qwen3.model.linear import nbytes
from mlx_qwen3.model.peers import Peers
from mlx_qwen3.model.transformer import Transformer

PROMPT = list(b"The quick brown fox")
# Replies that differ in who draws them, and in what stops them.
REPLIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 6},
    "seeded": {"temperature": 1.0, "seed": 7, "max_tokens": 6, "logprobs": 2},
    "regex": {"temperature": 1.0, "seed": 7, "regex": "(ab|ba){2}", "max_tokens": 6},
    "penalties": {"temperature": 0, "max_tokens": 6, "presence_penalty": 1.5},
    "rotating": {"temperature": 0, "max_tokens": 6, "max_kv_size": 16},
    "packed": {"temperature": 0, "max_tokens": 6, "kv_bits": 8},
}
UNSEEDED = {"temperature": 1.0, "max_tokens": 6}


def logits(model: Transformer) -> list[list[float]]:
    """Of a prompt read in two chunks, and of one token behind it."""
    cache = model.make_cache()
    rows = [model([PROMPT[:8]], cache)[0], model([PROMPT[8:]], cache)[0]]
    mx.eval(rows)
    rows.append(model.step(mx.array([65]), cache))
    mx.eval(rows)
    found: Any = mx.concatenate(rows).tolist()
    return list(found)


def reply(llm: LLM, name: str) -> list[int]:
    """The token ids of one of REPLIES."""
    return list(llm.generate(PROMPT, raw=True, **REPLIES[name]).token_ids)


def examine(folder: Path, parallel: str, peers: Peers) -> dict[str, Any]:
    llm = LLM.from_folder(folder, dtype="float32", parallel=parallel, peers=peers)
    found: dict[str, Any] = {"logits": logits(llm.model), "nbytes": nbytes(llm.model)}
    cache, before = llm.model.make_cache(), peers.traffic
    mx.eval(llm.model.step(mx.array([65]), cache))
    found["traffic"] = asdict(peers.traffic - before)
    found["wire"] = (peers.traffic - before).wire_bytes(peers.size)
    names = REPLIES if folder.name == "dense" and peers.size == 2 else ["greedy"]
    found["replies"] = {name: reply(llm, name) for name in names}
    found["unseeded"] = list(llm.generate(PROMPT, raw=True, **UNSEEDED).token_ids)
    return found


def main(folders: Path, out: Path) -> None:
    peers = Peers.join()
    found = {
        f"{folder.name} {parallel}": examine(folder, parallel, peers)
        for folder in sorted(folders.iterdir())
        for parallel in ("tensor", "pipeline")
    }
    Path(f"{out}.{peers.rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
