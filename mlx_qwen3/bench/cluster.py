"""How long a token takes on several hosts, estimated: memory read, and messages waited for.

A round is a message that everybody waits for: latency plus its bytes over the bandwidth. A ring
of n sums x bytes in 2 (n - 1) rounds of x / n (two hosts: in one, of x), gathers them in n - 1
rounds of x. Compute is taken as hidden behind the reading of weights, as in decoding it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_qwen3.releases import FORMATS, Architecture


@dataclass(frozen=True)
class Link:
    """Between two hosts. latency: seconds of an empty round. bandwidth: bytes per second."""

    latency: float
    bandwidth: float

    def round(self, nbytes: float) -> float:
        """Seconds of one."""
        return self.latency + nbytes / self.bandwidth

    def sum(self, hosts: int, nbytes: float) -> float:
        """Seconds until `hosts` have the sum of what each has: nbytes."""
        return self.round(nbytes) if hosts == 2 else 2 * (hosts - 1) * self.round(nbytes / hosts)

    def gather(self, hosts: int, nbytes: float) -> float:
        """Seconds until `hosts` have what each has: nbytes."""
        return (hosts - 1) * self.round(nbytes)


@dataclass(frozen=True)
class Work:
    """What one decode step is made of.

    active_bytes: weights that it reads. float_bytes: of an activation and a logit.
    """

    layers: int
    hidden_size: int
    vocab_size: int
    active_bytes: float
    float_bytes: int = 2

    @classmethod
    def of(cls, architecture: Architecture, format_name: str) -> Work:
        """Of a release in one of releases.FORMATS. Embedding and head count as read whole."""
        size = FORMATS[format_name].size(architecture)
        share = architecture.active_parameters / architecture.parameters
        return cls(
            architecture.num_hidden_layers,
            architecture.hidden_size,
            architecture.vocab_size,
            size * share,
        )

    def tensor_messages(self, hosts: int, link: Link) -> float:
        """Seconds of a tensor-parallel step that go into messages."""
        if hosts == 1:
            return 0.0
        hidden = link.sum(hosts, self.hidden_size * self.float_bytes)
        logits = link.gather(hosts, self.vocab_size / hosts * self.float_bytes)
        return (2 * self.layers + 1) * hidden + logits + link.sum(hosts, 4)  # and the token

    def pipeline_messages(self, hosts: int, link: Link) -> float:
        """The same of a pipeline's step: a hidden state from each to the next, and the token."""
        if hosts == 1:
            return 0.0
        return (hosts - 1) * link.round(self.hidden_size * self.float_bytes) + link.sum(hosts, 4)

    def tensor(self, hosts: int, link: Link, memory_bandwidth: float) -> float:
        """Seconds per token: everybody reads a part of the weights at the same time."""
        read = self.active_bytes / hosts / memory_bandwidth
        return read + self.tensor_messages(hosts, link)

    def pipeline(self, hosts: int, link: Link, memory_bandwidth: float) -> float:
        """Seconds per token: one after the other reads its own."""
        return self.active_bytes / memory_bandwidth + self.pipeline_messages(hosts, link)
