"""Memory and estimated speed by number of hosts, as the tables of README.md have them.

    python examples/two_macs/table.py

Everything here is computed, from the shapes of the releases and the assumptions below; nothing
is measured.
"""

from __future__ import annotations

from mlx_qwen3.bench.cluster import Link, Work
from mlx_qwen3.device import MARGIN
from mlx_qwen3.releases import FORMATS, SIZES

MODELS = (("32B", "4bit"), ("30B-A3B", "4bit"), ("235B-A22B", "4bit"), ("480B-A35B", "4bit"))
HOSTS = (1, 2, 4, 8, 16)
CONTEXT = 32_768  # tokens, of keys and values in 16 bits
# Assumed, not measured: seconds a round of small messages takes in all, bytes per second.
LINKS = {
    "Thunderbolt 5, ring": Link(100e-6, 8e9),
    "10 GbE, ring": Link(200e-6, 1.1e9),
    "Thunderbolt 5, JACCL": Link(20e-6, 8e9),
}
MEMORY_BANDWIDTH = 0.5 * 546e9  # bytes/s: half of what Apple names for an M4 Max


def memory(model: str, format_name: str, hosts: int) -> float:
    """GB a host needs: its part of weights, keys and values, and what the device leaves free."""
    shape = SIZES[model]
    # More hosts than key-value heads have the same ones.
    context = shape.kv_bytes(CONTEXT) / min(hosts, shape.num_key_value_heads)
    return (FORMATS[format_name].size(shape) / hosts + context) / (1 - MARGIN) / 1e9


def memory_table() -> list[str]:
    head = f"| model | {' | '.join(f'{hosts} Mac' + 's' * (hosts > 1) for hosts in HOSTS)} |"
    lines = [head, "| --- |" + " ---: |" * len(HOSTS)]
    for model, format_name in MODELS:
        cells = [f"{memory(model, format_name, hosts):.0f} GB" for hosts in HOSTS]
        lines.append(f"| {model}, {format_name} | {' | '.join(cells)} |")
    return lines


def speed_table(model: str, format_name: str) -> list[str]:
    work = Work.of(SIZES[model], format_name)
    lines = ["| link | way | " + " | ".join(map(str, HOSTS)) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(HOSTS))
    for name, link in LINKS.items():
        for way in (work.tensor, work.pipeline):
            rates = [f"{1 / way(hosts, link, MEMORY_BANDWIDTH):.0f}" for hosts in HOSTS]
            lines.append(f"| {name} | {way.__name__} | {' | '.join(rates)} |")
    return lines


if __name__ == "__main__":
    print("\n".join([*memory_table(), "", *speed_table("235B-A22B", "4bit")]))
