"""`mlx-qwen3 bench` on the demo models: the table, the JSON, the picture, wrong usage."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminals import Command

SPREAD = {"median", "low", "high", "count"}
TURN = {
    *("load_seconds", "first_token_seconds", "step_seconds"),
    *("step_host_seconds", "step_device_seconds"),
}
RATES = {"first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"}
LENGTH = {
    *("prompt_tokens", "decoded_tokens", "asked_prompt_tokens", "asked_decoded_tokens"),
    *("kv_bytes", "prefill_peak_bytes", "decode_peak_bytes"),
    *("prefill_peak_to_weights_and_kv", "decode_peak_to_weights_and_kv"),
    *("read_per_token_bytes", "bandwidth_share"),
    *("expert_hit_rate", "expert_bytes_read_per_token"),
}
SIDE = {
    *("dtype", "weights_bytes", "weights_read_per_token_bytes", "load_peak_bytes", "kernels"),
    *("cold_first_token_seconds", "first_token_prompt_tokens", "lengths"),
}
SHORT = ("--prompt", "6,12", "--tokens", "3", "--rounds", "2")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "bench.svg"


def test_json_of_both_sides(command: Command, drawn: Path) -> None:
    done = command(
        "bench", "--model", "demo-moe", "--vs", "mlx-lm", "--plot", str(drawn), "--json", *SHORT
    )
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert set(found) == {
        *("model", "config", "machine", "versions", "memory_bandwidth", "rounds"),
        *("sides", "ratios"),
    }
    assert list(found["sides"]) == ["mlx-qwen3", "mlx-lm"]
    for side in found["sides"].values():
        check_side(side)
    ratios = found["ratios"][0]
    assert (ratios["of"], ratios["to"]) == ("mlx-qwen3", "mlx-lm")
    assert set(ratios["load_seconds"]) == SPREAD
    assert set(ratios["lengths"][1]) == {"asked_prompt_tokens", *RATES}
    check_picture(drawn)


def check_side(side: dict[str, Any]) -> None:
    assert set(side) == SIDE | TURN
    assert all(set(side[name]) == SPREAD for name in TURN)
    assert all(0 < side[name]["low"] <= side[name]["median"] for name in TURN - {DEVICE})
    assert set(side["kernels"]) == {"total", "per_layer", "layers"}
    assert side["weights_read_per_token_bytes"] < side["weights_bytes"]  # a mixture of experts
    first, second = side["lengths"]
    assert set(first) == LENGTH | RATES
    assert (first["prompt_tokens"], second["prompt_tokens"]) == (6, 12)
    assert first["kv_bytes"] < second["kv_bytes"]
    assert all(0 < first[name]["low"] <= first[name]["high"] for name in RATES)
    assert first["prefill_peak_to_weights_and_kv"] > 1
    assert 0 < first["bandwidth_share"] < 1


DEVICE = "step_device_seconds"  # 0 where the host is always busier


def check_picture(drawn: Path) -> None:
    root = ElementTree.parse(drawn).getroot()
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"demo-moe", "mlx-qwen3", "mlx-lm"} <= words


def test_the_table_of_one_side(command: Command) -> None:
    shape = ("--shape", "0.6b", "--layers", "2", "--hidden", "64", "--vocab", "300")
    done = command("bench", *shape, *SHORT)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("0.6b shape, 4-bit, layers 2, hidden 64, vocab 300: 2 layers")
    rows = done.out.splitlines()
    for label in ("load", "kernels per layer", "6 tokens read", "  decode", "  of the memory's"):
        assert any(row.startswith(label) for row in rows), label
    assert "GB/s" in done.out
    assert "tokens/s" in done.out
    assert "mlx-lm" not in done.out


def test_whole_processes(command: Command, checkpoint: Path) -> None:
    done = command(
        *("bench", "--startup", "--tokenizer", str(checkpoint), "--rounds", "1", "--json"),
        *("--layers", "1", "--hidden", "64", "--vocab", "300", "--bits", "32"),
    )
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["rounds"], found["tokens"]) == (1, 8)
    assert list(found["sides"]) == ["mlx-qwen3", "mlx-lm"]
    seconds = [side["process_seconds"]["median"] for side in found["sides"].values()]
    ratio = found["ratios"][0]["process_seconds"]
    assert ratio["median"] == pytest.approx(seconds[0] / seconds[1])
    assert ratio["count"] == 1


WRONG = [
    (("--prompt", "0"), "--prompt 0"),
    (("--prompt", "12,"), "--prompt 12,"),
    (("--tokens", "0"), "--tokens"),
    (("--rounds", "0"), "--rounds"),
    (("--vs", "llama.cpp"), "expected mlx-lm"),
    (("--plot", "bench.gif"), ".svg"),
    (("--plot", "absent/bench.svg"), "no folder absent"),
    (("--dtype", "int8"), "int8"),
    (("--bits", "7"), "bits is 7"),
    (("--hidden", "65"), "hidden is 65"),
    (("--shape", "0.7b"), "0.7b"),
    (("--model", "demo", "--layers", "2"), "--layers is for random weights"),
    (("--model", "demo", "--startup", "--tokenizer", "x"), "--tokenizer"),
    (("--startup", "--plot", "x.svg"), "--startup"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=[" ".join(one) for one, _ in WRONG])
def test_wrong_usage_is_one_line_and_2(
    options: tuple[str, ...], said: str, command: Command
) -> None:
    done = command("bench", *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1
