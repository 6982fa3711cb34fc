"""Batched greedy or sampled generation with the torch model: tests while training goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from chat import Example, render_prompt
from export import ROUTER_BITS
from model import KVCache, ModelConfig, Qwen3
from quantization import fake_quantize
from tokenizers import Tokenizer
from torch import Tensor

CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def load_checkpoint(path: Path, bits: int) -> Qwen3:
    """The model of a training checkpoint, its matrices rounded to `bits` (16: not at all)."""
    state = torch.load(path, weights_only=True)
    model = Qwen3(ModelConfig(**state["config"]))
    weights = state["optimizer"]["master"]
    if bits < 16:
        weights = {name: _rounded(name, weight, bits) for name, weight in weights.items()}
    model.load_state_dict(weights)
    return model.bfloat16()


def _rounded(name: str, weight: Tensor, bits: int) -> Tensor:
    """A weight as export.py quantizes it: norms not at all, routers to 8 bits."""
    if weight.ndim < 2:
        return weight
    return fake_quantize(weight, ROUTER_BITS if name.endswith("mlp.gate.weight") else bits)


def _choose(logits: Tensor, temperature: float, top_p: float = 0.95, top_k: int = 20) -> Tensor:
    """(B, vocab_size) -> (B,): greedy at temperature 0."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    top, index = (logits.float() / temperature).topk(top_k)
    probabilities = top.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    drawn = torch.multinomial(probabilities.masked_fill(before >= top_p, 0), 1)
    return index.gather(1, drawn)[:, 0]


@torch.inference_mode()
def complete(
    model: Qwen3, prompts: list[list[int]], max_tokens: int, end: int, temperature: float
) -> list[list[int]]:
    """Continue every prompt until `end` or max_tokens; the results leave out `end`."""
    longest = max(map(len, prompts))
    token_ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    start = torch.tensor([longest - len(p) for p in prompts])
    caches = [KVCache(start) for _ in model.model.layers]
    rows, out = torch.arange(len(prompts)), [[] for _ in prompts]
    for _ in range(max_tokens):
        last = model.hidden(token_ids, caches)[:, -1]
        logits = torch.nn.functional.linear(last, model.model.embed_tokens.weight)
        chosen = _choose(logits, temperature)
        going = (chosen != end).nonzero()[:, 0]
        rows, chosen = rows[going], chosen[going]
        if not len(rows):
            break
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            out[row].append(token)
        if len(going) < len(caches[0].start):
            for cache in caches:
                cache.keep(going)
        token_ids = chosen[:, None]
    return out


def parse(text: str) -> tuple[str, list[dict]]:
    """Generated text -> (answer without thinking and calls, tool calls)."""
    answer = text.rpartition("</think>\n\n")[2]
    calls = [_call(body) for body in CALL.findall(answer)]
    return CALL.sub("", answer).strip(), calls


def _call(body: str) -> dict:
    try:
        return json.loads(body)
    except json.JSONDecodeError:
        return {"broken": body}


def torch_backend(
    checkpoint: Path, tokenizer_file: Path, bits: int, temperature: float, batch: int = 100
):
    """A function from examples to (answer, tool calls) pairs."""
    model = load_checkpoint(checkpoint, bits)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    end = tokenizer.token_to_id("<|im_end|>")

    def answer(examples: list[Example], max_tokens: int) -> list[tuple[str, list[dict]]]:
        prompts = [render_prompt(e) for e in examples]
        encoded = [tokenizer.encode(p, add_special_tokens=False).ids for p in prompts]
        out = []
        for index in range(0, len(encoded), batch):
            part = encoded[index : index + batch]
            out += complete(model, part, max_tokens, end, temperature)
        return [parse(tokenizer.decode(ids, skip_special_tokens=False)) for ids in out]

    return answer
